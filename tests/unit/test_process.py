# SPDX-License-Identifier: MIT
import sys
from pathlib import Path

import pytest

from llmuxd.model.process import CommandFailed, _reason, plain, run

NOFILE = "Error (criu/util.c:1): Can't setup RLIMIT_NOFILE for self: Operation not permitted"


def python(code: str, timeout: float = 9.0) -> str:
    return run([sys.executable, "-S", "-E", "-c", code], timeout)


def test_output_comes_back() -> None:
    assert python("print('é')") == "é\n"


def test_input_is_empty() -> None:
    assert python("import sys; print(repr(sys.stdin.read()))") == "''\n"


def test_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("LC_ALL", "de_DE")
    monkeypatch.setenv("INVOCATION_ID", "17")
    shown = python("import os; print(sorted(os.environ), os.environ['LC_ALL'])")
    assert "SECRET" not in shown and "NOTIFY_SOCKET" not in shown
    assert "INVOCATION_ID" in shown and "'PATH'" in shown and "C.UTF-8" in shown


def test_what_is_shown_on_terminals_is_plain() -> None:
    assert plain("\x1b[31mERROR\x1b[0m \x07out of\tmemory\x9b") == "ERROR out of\tmemory"
    with pytest.raises(CommandFailed) as caught:
        python("import sys; print('\\x1b[1mError: no\\x1b[0m', file=sys.stderr); sys.exit(1)")
    assert caught.value.reason == "no"


def test_failure_has_status_and_reason() -> None:
    with pytest.raises(CommandFailed) as caught:
        python("import sys; print('Error: no such thing', file=sys.stderr); sys.exit(125)")
    assert (caught.value.status, caught.value.reason) == (125, "no such thing")


def test_output_that_is_not_text_is_no_crash() -> None:
    with pytest.raises(CommandFailed, match="error"):
        python("import sys; sys.stderr.buffer.write(b'error \\xff\\n'); sys.exit(1)")


def test_missing_program() -> None:
    with pytest.raises(CommandFailed, match="No such file") as caught:
        run(["/nowhere/podman", "ps"], 9.0)
    assert caught.value.status == 127


def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(CommandFailed, match="did not end within") as caught:
        python("import signal; signal.pause()", timeout=0.05)
    assert caught.value.status == 124


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("", "no output"),
        ("\n \n", "no output"),
        ("Error: it broke\n", "it broke"),
        ("Error: the cause\n" + NOFILE + "\n", "the cause"),
        (NOFILE + "\n", NOFILE),
        ("time=… level=warning\nError: the cause\nuse --log-level\n", "the cause"),
        ("first\nlast\n", "last"),
        ("first\n" + NOFILE + "\n", "first"),
        ("Error: " + "x" * 1000, "x" * 500),
    ],
)
def test_reason_is_the_cause(stderr: str, reason: str) -> None:
    assert _reason(stderr) == reason


def test_what_is_done_meanwhile_is_done_beside_it(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = f"import os, time\nwhile not os.path.exists({str(done)!r}): time.sleep(0.001)\nprint(1)"
    argv = [sys.executable, "-S", "-E", "-c", code]
    assert run(argv, 9.0, meanwhile=done.touch) == "1\n"


def test_what_fails_meanwhile_is_no_fault_of_the_command() -> None:
    def load() -> None:
        raise FileNotFoundError(2, "No such file or directory", "signals.py")

    code = "import time; time.sleep(0.1); print('whole')"
    assert run([sys.executable, "-c", code], 9.0, meanwhile=load) == "whole\n"
