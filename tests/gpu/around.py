# SPDX-License-Identifier: MIT
"""The plan's step that looks at what is around a model: its devices and network, the meter."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmuxd import names
from tests.machine.ring import guest
from tests.machine.ring.guest import QWEN, sh

from . import measure
from .plan import Notes
from .switches import ready, told

_PORT = 9090
_METER = "llmux-gpus.service"
_DENIED = ("systemd-run", "--quiet", "--wait", "--collect", "--property=IPAddressDeny=any")
_CURL = ("curl", "--silent", "--max-time", "2", "--output", "/dev/null")


def around(notes: Notes) -> None:
    """With one model serving: what it can reach, and what llmuxd knows of its GPU."""
    ready(notes, (QWEN,), vram=measure.NEED)
    told(notes, "before", QWEN)
    form = "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
    pid, gateway = sh("podman", "inspect", "--format", form, names.container(QWEN)).split()
    nodes = sorted(path.name for path in Path(f"/proc/{pid}/root/dev").iterdir())
    notes.add("devices in the container", nodes=nodes)
    with _server():
        url = f"http://{gateway}:{_PORT}/"
        inside = ("nsenter", f"--target={pid}", "--net")
        notes.add(
            "reached, the host by its bridge", by_itself=_succeeds(*_CURL, url),
            by_the_container=_succeeds(*inside, *_CURL, url),
            by_a_unit=_succeeds(*_DENIED[:3], *_CURL, url),
            by_a_unit_denied=_succeeds(*_DENIED, *_CURL, url),
        )  # fmt: skip
    shown = ("IPAddressDeny", "DevicePolicy", "DeviceAllow", "ActiveState", "NRestarts")
    notes.add("the meter", **{key: sh("systemctl", "show", "-P", key, _METER) for key in shown})
    get = ("busctl", "--json=short", "get-property", "org.llmux", "/Manager", "org.llmux.Manager")
    notes.add("GPUs", told=json.loads(sh(*get, "GPUs"))["data"])
    identity = guest.record(QWEN)["identity"]
    notes.add("the image's identity", **identity)
    uuid = sh("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader") if measure.HAS_GPU else ""
    notes.add("the GPU", uuid=uuid, in_the_identity=bool(uuid) and uuid in json.dumps(identity))
    measure.leave(QWEN)


@contextmanager
def _server() -> Iterator[None]:
    """It answers on every address of this host."""
    command = [sys.executable, "-m", "http.server", str(_PORT), "--directory", "/srv"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as running:
        try:
            here = f"http://127.0.0.1:{_PORT}/"
            guest.eventually(lambda: _succeeds(*_CURL, here), "it answers", 20)
            yield
        finally:
            running.kill()


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0
