# SPDX-License-Identifier: MIT
"""A system bus of the test's own, with the shipped policy; and callers of any user on it."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dbus_next import Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus
from dbus_next.auth import AuthExternal

ROOT = Path(__file__).parents[2]
NOBODY = 65534

# The rules of /usr/share/dbus-1/system.conf, and mocks of systemd and polkit beside llmuxd.
_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon; it can be ended and started again at the same address."""

    def __init__(self, directory: Path):
        self._socket = directory / "bus"
        self._config = directory / "bus.conf"
        self._config.write_text(
            _CONFIG.format(socket=self._socket, policy=ROOT / "dbus" / "org.llmux.conf")
        )
        self.address = f"unix:path={self._socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it listens."""
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile",
             "--print-address=1"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline()

    def stop(self) -> None:
        """As if it crashed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._socket.unlink(missing_ok=True)

    async def connect(self, uid: int = 0) -> "Caller":
        """A connection of the user `uid`."""
        # The bus takes the user from the socket, as it was when it was connected.
        os.seteuid(uid)
        try:
            bus = MessageBus(bus_address=self.address, auth=_As(uid))
        finally:
            os.seteuid(0)
        await bus.connect()
        return Caller(bus)


async def leave(bus: MessageBus) -> None:
    """Disconnect; dbus-next alone would leave the socket to the garbage collector."""
    bus.disconnect()
    with contextlib.suppress(Exception):
        await bus.wait_for_disconnect()
    bus._stream.close()
    bus._sock.close()


class _As(AuthExternal):
    def __init__(self, uid: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self._uid = uid

    def _authentication_start(self, negotiate_unix_fd: bool = False) -> str:
        return f"AUTH EXTERNAL {str(self._uid).encode().hex()}"


class Refused(Exception):
    """A call was answered with an error."""

    def __init__(self, name: str, text: str):
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Caller:
    """Calls members and hears signals, as busctl does."""

    def __init__(self, bus: MessageBus):
        self.bus = bus
        self.signals: list[tuple[str, str, list[object]]] = []
        self._heard = asyncio.Event()
        bus.add_message_handler(self._on_message)

    async def call(
        self,
        path: str,
        member: str,
        *arguments: object,
        interface: str = "org.llmux.Manager",
        signature: str | None = None,
        destination: str = "org.llmux",
        flags: MessageFlag = MessageFlag.NONE,
    ) -> object:
        """What the method returns; None, a value, or a list of values."""
        reply = await self.bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature="s" * len(arguments) if signature is None else signature,
                body=list(arguments),
                flags=flags,
            )
        )
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise Refused(reply.error_name, str(reply.body[0]) if reply.body else "")
        body: list[object] = reply.body
        return body[0] if len(body) == 1 else body or None

    async def get(self, path: str, interface: str, name: str) -> object:
        """A property's value."""
        value = await self.call(
            path, "Get", interface, name, interface="org.freedesktop.DBus.Properties"
        )
        return getattr(value, "value", value)

    async def get_all(self, path: str, interface: str) -> dict[str, object]:
        """Every property's value."""
        found = await self.call(
            path, "GetAll", interface, interface="org.freedesktop.DBus.Properties"
        )
        assert isinstance(found, dict)
        return {key: value.value for key, value in found.items()}

    async def listen(self) -> None:
        """Hear the signals of llmuxd from now on."""
        await self.call(
            "/org/freedesktop/DBus", "AddMatch", "type='signal',sender='org.llmux'",
            interface="org.freedesktop.DBus", destination="org.freedesktop.DBus",
        )  # fmt: skip

    async def heard(self, member: str, count: int = 1) -> list[tuple[str, list[object]]]:
        """Path and arguments of the signals of this name, once there are `count`."""
        while True:
            found = [(path, body) for path, name, body in self.signals if name == member]
            if len(found) >= count:
                return found
            self._heard.clear()
            await self._heard.wait()

    async def close(self) -> None:
        """Leave the bus."""
        await leave(self.bus)

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.sender != "org.freedesktop.DBus":
            self.signals.append((message.path, message.member, message.body))
            self._heard.set()


@contextlib.contextmanager
def a_private_bus(directory: Path) -> Iterator[PrivateBus]:
    """A running bus, ended with the block."""
    bus = PrivateBus(directory)
    bus.start()
    try:
        yield bus
    finally:
        bus.stop()
