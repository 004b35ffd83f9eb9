# SPDX-License-Identifier: MIT
"""Many at once: idle connections, and vLLM's own benchmark as a client."""

import json
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from .guest import OPT, QWEN, complete, sh, two_fakes
from .test_engines import VLLM, VOLUMES, _has

IDLE = 10_000


def _resident_mb() -> float:
    pid = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1e3


def test_ten_thousand_idle_connections_hurt_nobody() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"this machine allows {hard} open files")
    two_fakes()
    text = complete(OPT).text
    before = _resident_mb()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(socket.create_connection(("127.0.0.1", 4000)))
            # Answered after all that came before it was accepted.
            assert complete(OPT).text == text
            begin = time.monotonic()
            assert complete(OPT).text == text
            assert time.monotonic() - begin < 1.0
            held = _resident_mb() - before
            assert complete(QWEN).text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # Some 7 kB each.
    assert held < 120
    assert complete(OPT).text == text


def test_vllm_bench_serve() -> None:
    if not _has(VLLM):
        pytest.skip("vLLM's CPU build could not be had: its torch wheel is missing")
    two_fakes()
    made = Path("/tmp/vllm-bench")
    made.mkdir(exist_ok=True)
    sh(
        *("podman", "run", "--rm", "--network=host", f"--volume={VOLUMES[0]}"),
        *(f"--volume={made}:{made}", "--entrypoint=/usr/bin/python3", VLLM),
        *("-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend=openai"),
        *("--base-url=http://127.0.0.1:4000", "--endpoint=/v1/completions", f"--model={OPT}"),
        *("--tokenizer=/srv/models/opt-125m", "--dataset-name=random", "--disable-tqdm"),
        *("--random-input-len=16", "--random-output-len=8", "--num-prompts=200"),
        *("--max-concurrency=32", "--save-result", f"--result-filename={made}/result.json"),
    )
    result = json.loads((made / "result.json").read_text(encoding="utf-8"))
    assert (result["completed"], result["failed"]) == (200, 0)
