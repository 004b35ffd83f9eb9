# SPDX-License-Identifier: MIT
"""What a model's unit loads before podman starts: somebody waits for each import."""

import json
import subprocess
import sys

# Each is of no use to a start that comes from an image, and takes milliseconds.
LATER = {
    *("argparse", "asyncio", "ctypes", "yaml"),
    *("llmuxd.llmux_yaml", "llmuxd.meter.reading", "llmuxd.model.gpu", "llmuxd.model.sweeping"),
}


def test_a_start_loads_nothing_that_it_does_not_need() -> None:
    code = "import json, sys, llmuxd.model.__main__; print(json.dumps(sorted(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        check=True,
    )
    loaded = set(json.loads(told.stdout))
    assert "llmuxd.model.lifecycle" in loaded
    assert not loaded & LATER
