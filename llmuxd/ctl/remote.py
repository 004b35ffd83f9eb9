# SPDX-License-Identifier: MIT
"""The system bus of another host, over ssh, as systemctl's `-H` reaches it.

There, systemd-stdio-bridge(1) connects its standard input and output to the bus; polkit and the
bus's policy see the user that ssh logged in as.
"""

import asyncio
import socket

from ..connection import Connection
from ..errors import LlmuxError


class NotConnected(LlmuxError):
    """There is no way to the bus."""


class RemoteBus(Connection):
    """A connection to the bus of `host` (anything that ssh takes: `user@host`, an alias)."""

    def __init__(self, host: str):
        self._host = host
        self._ours, self._theirs = socket.socketpair()
        self._ssh: asyncio.subprocess.Process | None = None
        # An address is wanted; `_setup_socket` looks at none.
        super().__init__(bus_address="unix:path=/")

    async def connect(self) -> "RemoteBus":
        """Run ssh, which asks for passwords on the terminal, and log in to the bus."""
        try:
            self._ssh = await asyncio.create_subprocess_exec(
                *ssh(self._host), "systemd-stdio-bridge",
                stdin=self._theirs.fileno(), stdout=self._theirs.fileno(),
            )  # fmt: skip
        except FileNotFoundError:
            raise no_ssh() from None
        finally:
            self._theirs.close()
        try:
            await super().connect()
        except (OSError, EOFError):
            status = await self._ssh.wait()
            raise NotConnected(
                f"no way to the system bus of {self._host}: ssh ended with {status}",
                "is systemd-stdio-bridge there? ssh's own words are above",
            ) from None
        return self

    async def close(self) -> None:
        """Disconnect, and wait until ssh has ended."""
        if self.connected:
            self.disconnect()
            await self.wait_for_disconnect()
        self._stream.close()
        self._ours.close()
        if self._ssh is not None:
            await self._ssh.wait()

    def _setup_socket(self) -> None:
        self._sock = self._ours
        self._stream = self._sock.makefile("rwb")
        self._fd = self._sock.fileno()
        self._sock.setblocking(False)


def no_ssh() -> NotConnected:
    """The command is not installed."""
    return NotConnected("there is no ssh here", "install openssh-client")


def ssh(host: str) -> list[str]:
    """The words before a command for `host`; -x and -T as systemctl has them: no X, no terminal.

    `host` may end with `:port`; an IPv6 address is in brackets then.
    """
    there, _, port = host.rpartition(":")
    if there and port.isdecimal() and (":" not in there or there.endswith("]")):
        return ["ssh", "-xT", "-p", port, "--", there.replace("[", "").replace("]", "")]
    return ["ssh", "-xT", "--", host.replace("[", "").replace("]", "")]
