# SPDX-License-Identifier: MIT
"""Log lines as the journal reads them: the priority in front, no time, no name twice."""

import logging
import os
import sys

# sd-daemon(3): a line that begins with <N> has the syslog priority N.
_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        # Each line needs its own prefix, a traceback's lines too.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up(verbose: bool = False) -> None:
    """Log to standard error, for the journal or for a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
