# SPDX-License-Identifier: MIT
"""llmuxd: arguments, configuration, run."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from . import __version__, config, journal, keys, stored
from .errors import ConfigInvalid, LlmuxError

log = logging.getLogger("llmuxd")

DEFAULT_PORT = 4000
EXIT_CONFIG = 2


def main() -> int:
    """Entry point; exit status 1 where it failed, 2 for a wrong configuration or argument."""
    arguments = _arguments()
    journal.set_up(verbose=arguments.verbose)
    try:
        loaded = config.load(arguments.config)
        # A credential is there only where systemd has started us.
        if not arguments.check_config or Path(loaded.keys).is_absolute():
            keys.load(loaded)
    except ConfigInvalid as error:
        if arguments.check_config:
            print(error, file=sys.stderr)
        else:
            log.error("%s", error)
        return EXIT_CONFIG
    if arguments.check_config:
        print(f"{arguments.config}: good, {len(loaded.models)} models")
        return 0
    port = arguments.port
    if port is None and "LISTEN_FDS" not in os.environ:
        if "NOTIFY_SOCKET" in os.environ:
            # Listening here would keep the socket unit from ever coming back.
            log.error("systemd passed no socket (see 'systemctl status llmuxd.socket')")
            return 1
        port = DEFAULT_PORT
    # Imported here: --check-config needs none of it.
    from dbus_next import DBusError

    from .daemon import Daemon

    async def run() -> None:
        await Daemon(arguments.config, loaded, port).run()

    try:
        stored.bring_up_to_date()
        asyncio.run(run())
    except (OSError, LlmuxError, DBusError) as error:
        log.error("%s", error)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="llmuxd", description="Switches the models of this host behind one endpoint."
    )
    parser.add_argument(
        "-c", "--config", type=Path, default=config.DEFAULT_PATH, metavar="FILE",
        help="the configuration (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-p", "--port", type=port_number, metavar="PORT",
        help="listen on 127.0.0.1:PORT, not on the socket that systemd passes",
    )  # fmt: skip
    parser.add_argument(
        "--check-config", action="store_true", help="read the configuration, say what is wrong, end"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step")
    parser.add_argument("--version", action="version", version=f"llmuxd {__version__}")
    return parser.parse_args()


def port_number(text: str) -> int:
    """A TCP port, for argparse."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
