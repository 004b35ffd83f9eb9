# SPDX-License-Identifier: MIT
"""Log lines to where they are read: the journal, with fields, or a terminal."""

import logging
import os
import socket
import sys
from pathlib import Path

JOURNAL = "/run/systemd/journal/socket"

# Names of syslog(3)'s priorities are their numbers.
_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
# Larger datagrams would need the protocol's way with a memfd.
_LONGEST = 32768


class JournalHandler(logging.Handler):
    """Each record is one entry: systemd.io's JOURNAL_NATIVE_PROTOCOL.

    Not by a library: pystemd's takes 30 ms to import, and a model's unit would wait for it at each
    start, stop and park.
    """

    def __init__(self, path: str = JOURNAL, otherwise: logging.Handler | None = None):
        super().__init__()
        self._program = Path(sys.argv[0]).name
        self._otherwise = otherwise or logging.StreamHandler(sys.stderr)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; to standard error where the journal takes nothing."""
        try:
            self._socket.sendto(encode(self._fields(record)), self._path)
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        """Leave the journal's socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> dict[str, str]:
        extra = getattr(record, "journal", {})
        return {
            "MESSAGE": self.format(record)[:_LONGEST],
            "PRIORITY": str(_PRIORITY.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": self._program,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **extra,
        }


def encode(fields: dict[str, str]) -> bytes:
    """One entry; a value with a line feed in it is preceded by its length."""
    out = b""
    for key, value in fields.items():
        raw = value.encode(errors="replace")
        if b"\n" in raw:
            out += key.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            out += key.encode() + b"=" + raw + b"\n"
    return out


def set_up(verbose: bool = False) -> None:
    """Log to the journal if standard error goes there, else to standard error."""
    handler: logging.Handler
    if _stderr_is_the_journal():
        handler = JournalHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def _stderr_is_the_journal() -> bool:
    """systemd.exec(5): JOURNAL_STREAM is inherited; only the file itself tells."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
