# SPDX-License-Identifier: MIT
"""Loggers that load Python's logging once there is something to log."""

import subprocess
import sys

import pytest

from llmuxd import loggers

BEGIN = f"""
import sys; sys.path[:0] = {sys.path!r}
from llmuxd import loggers
log = loggers.named("llmux-model")

def set_up():
    import logging
    logging.basicConfig(format="%(name)s %(funcName)s: %(message)s", level="INFO")
    print("set up", file=sys.stderr)

"""


def told(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", BEGIN + code], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_a_program_that_logs_nothing_loads_nothing() -> None:
    loaded = "print('logging' in sys.modules, file=sys.stderr)"
    assert told(f"loggers.before_first(set_up)\nlog.debug('%s', 1)\n{loaded}") == ["False"]
    assert told(f"import logging\n{loaded}") == ["True"]


def test_the_first_line_comes_after_the_set_up() -> None:
    code = "loggers.before_first(set_up)\ndef work():\n log.info('%d lines', 2)\n log.error('!')\n"
    assert told(f"{code}work()\nlog.debug('not shown')") == [
        "set up",
        "llmux-model work: 2 lines",
        "llmux-model work: !",
    ]


def test_who_has_set_it_up_for_details_sees_them() -> None:
    code = "set_up()\nimport logging\nlogging.getLogger().setLevel('DEBUG')\nlog.debug('+ podman')"
    assert told(code) == ["set up", "llmux-model <module>: + podman"]


def test_it_is_the_logger_of_that_name(caplog: pytest.LogCaptureFixture) -> None:
    loggers.named("a.b").warning("heard", extra={"journal": {"LLMUX_MODEL": "m"}})
    (record,) = caplog.records
    assert record.name == "a.b" and record.funcName == "test_it_is_the_logger_of_that_name"
