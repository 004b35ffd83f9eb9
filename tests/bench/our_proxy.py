# SPDX-License-Identifier: MIT
"""llmuxd's proxy and switcher before one server; only systemd is played, as it has nothing to do.

`uvloop` as a third argument runs it on that loop, which is how it was found to gain nothing.
"""

import asyncio
import importlib
import os
import socket
import sys
import tempfile
from dataclasses import replace

from llmuxd import garbage
from llmuxd.config import DEFAULT_MAX_BODY
from llmuxd.gpus import Gpus
from llmuxd.proxy import BACKLOG, Proxy
from tests.unit.fake_units import a_model
from tests.unit.stage import on_stage

MODEL = "org/model"


async def main(backend_port: int, port: int) -> None:
    async with on_stage(a_model(MODEL)) as stage:
        stage.units.ports = {MODEL: backend_port}
        stage.switcher.reload(replace(stage.config, max_body=DEFAULT_MAX_BODY))
        proxy = Proxy(stage.switcher, Gpus(), None)
        await proxy.start([socket.create_server(("127.0.0.1", port), backlog=BACKLOG)])
        garbage.settle()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"STATE_DIRECTORY": scratch, "RUNTIME_DIRECTORY": scratch}
        runner = importlib.import_module(sys.argv[3]) if len(sys.argv) > 3 else asyncio
        runner.run(main(int(sys.argv[1]), int(sys.argv[2])))
