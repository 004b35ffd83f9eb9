# SPDX-License-Identifier: MIT
"""What is written to the journal, read from the other end; and the catalog of its messages."""

import logging
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmuxd.events import Event, about
from llmuxd.journal import JournalHandler, encode

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "packaging" / "llmux.catalog"


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    """Its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(5)
        yield sock


@pytest.fixture
def said() -> list[logging.LogRecord]:
    """What went to standard error instead."""
    return []


@pytest.fixture
def log(tmp_path: Path, said: list[logging.LogRecord]) -> Iterator[logging.Logger]:
    """A logger whose records go to the socket."""

    class Otherwise(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record)

    handler = JournalHandler(str(tmp_path / "socket"), Otherwise())
    logger = logging.Logger("llmuxd.test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def entry(raw: bytes) -> dict[str, str]:
    """The fields of one datagram."""
    fields = {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(raw[:8], "little")
            value, raw = raw[8 : 8 + length], raw[9 + length :]
        fields[key.decode()] = value.decode()
    return fields


def test_a_line_has_its_fields(journald: socket.socket, log: logging.Logger) -> None:
    log.warning(
        "%s: gone", "b",
        extra=about(Event.MODEL_ENDED, model="b", job=3, phase="start", seconds=1.5),
    )  # fmt: skip
    found = entry(journald.recv(65536))
    assert (found["MESSAGE"], found["PRIORITY"], found["LOGGER"]) == ("b: gone", "4", "llmuxd.test")
    assert found["CODE_FILE"].endswith("test_journal.py")
    assert {key: found[key] for key in found if key.startswith(("LLMUX", "MESSAGE_"))} == {
        "MESSAGE_ID": Event.MODEL_ENDED.value, "LLMUX_MODEL": "b", "LLMUX_JOB": "3",
        "LLMUX_PHASE": "start", "LLMUX_SECONDS": "1.500",
    }  # fmt: skip


def test_what_is_not_said_is_no_field(journald: socket.socket, log: logging.Logger) -> None:
    log.info("hello", extra=about(model="b"))
    found = entry(journald.recv(65536))
    assert found["LLMUX_MODEL"] == "b"
    assert not {"MESSAGE_ID", "LLMUX_JOB", "LLMUX_PHASE", "LLMUX_SECONDS"} & found.keys()


def test_a_traceback_is_one_entry(journald: socket.socket, log: logging.Logger) -> None:
    try:
        raise RuntimeError("a = b\nPRIORITY=0")
    except RuntimeError:
        log.exception("a bug")
    found = entry(journald.recv(65536))
    assert found["MESSAGE"].startswith("a bug\nTraceback") and found["PRIORITY"] == "3"
    assert found["MESSAGE"].endswith("RuntimeError: a = b\nPRIORITY=0")


def test_a_line_that_is_too_long_is_cut(journald: socket.socket, log: logging.Logger) -> None:
    log.info("x" * 1_000_000)
    assert len(entry(journald.recv(65536))["MESSAGE"]) == 32768


def test_without_journald_it_goes_to_stderr(
    log: logging.Logger, said: list[logging.LogRecord]
) -> None:
    log.info("hello")
    assert [record.getMessage() for record in said] == ["hello"]


def test_text_that_is_no_text_does_not_stop_it() -> None:
    assert encode({"A": "\udcff"}) == b"A=?\n"


# The catalog


def entries() -> dict[str, str]:
    """Each entry by its id."""
    found = re.split(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(encoding="utf-8"), flags=re.M)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def test_each_event_has_an_entry_and_each_entry_its_event() -> None:
    assert sorted(entries()) == sorted(event.value for event in Event)


def test_each_event_happens() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "llmuxd").rglob("*.py"))
    unused = [event.name for event in Event if f"Event.{event.name}" not in text]
    assert not unused


@pytest.mark.parametrize("event", Event)
def test_an_entry_says_what_happened_and_what_then(event: Event) -> None:
    text = entries()[event.value]
    assert re.search(r"^Subject: \S.*$", text, re.M) and len(text.split("\n\n", 1)[1]) > 40
    fields = {"LLMUX_MODEL", "LLMUX_JOB", "LLMUX_PHASE", "LLMUX_SECONDS"}
    assert set(re.findall(r"@(\w+)@", text)) <= fields


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="there is no journalctl here")
def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    command = ["journalctl", f"--root={tmp_path}"]
    done = subprocess.run([*command, "--update-catalog"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = subprocess.run([*command, "--list-catalog"], capture_output=True, text=True).stdout
    assert all(event.value in told for event in Event), told + done.stderr
