# SPDX-License-Identifier: MIT
"""Clients that poll llmuxd over D-Bus: python -m tests.bench.bus_load ADDRESS CLIENTS RATE SECONDS.

Prints how many calls were answered. Messages are marshalled once and answers are only counted, so
that the load costs the host no more than it must.
"""

import os
import selectors
import socket
import sys
import time

from dbus_next import Message

_CALLS: tuple[tuple[str, str, str, str, list[object]], ...] = (
    ("/Model/a", "org.freedesktop.DBus.Properties", "GetAll", "s", ["org.llmux.Model"]),
    ("/Manager", "org.llmux.Manager", "ListModels", "", []),
    ("/Model/b", "org.freedesktop.DBus.Properties", "Get", "ss", ["org.llmux.Model", "State"]),
    ("/Manager", "org.freedesktop.DBus.Properties", "GetAll", "s", ["org.llmux.Manager"]),
)
_METHOD_RETURN = 2


class Client:
    """One connection. `answered` counts replies; there is one call under way at most."""

    def __init__(self, path: str, number: int):
        self.answered = 0
        self.waits = False
        self._next = number
        self._serial = 1
        self._buffer = b""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        uid = str(os.getuid()).encode().hex()
        self.sock.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\n")
        assert self.sock.recv(256).startswith(b"OK")
        self.sock.sendall(b"BEGIN\r\n")
        self._send("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello",
                   "", [])  # fmt: skip
        self.sock.setblocking(False)

    def call(self) -> None:
        """The next one of the calls."""
        self.waits = True
        self._send("org.llmux", *_CALLS[self._next % len(_CALLS)])
        self._next += 1

    def read(self) -> None:
        """Take in what has come."""
        self._buffer += self.sock.recv(1 << 20)
        while len(self._buffer) >= 16:
            body, fields = (int.from_bytes(self._buffer[at : at + 4], "little") for at in (4, 12))
            size = 16 + (fields + 7) // 8 * 8 + body
            if len(self._buffer) < size:
                return
            if self._buffer[1] == _METHOD_RETURN and self.waits:
                self.answered += 1
                self.waits = False
            self._buffer = self._buffer[size:]

    def _send(self, destination: str, path: str, interface: str, member: str, signature: str,
              body: list[object]) -> None:  # fmt: skip
        message = Message(
            destination=destination, path=path, interface=interface, member=member,
            signature=signature, body=body, serial=self._serial,
        )  # fmt: skip
        self._serial += 1
        self.sock.sendall(message._marshall())


def main() -> int:
    """Exit status 0; each client calls in turn, evenly spread over the time."""
    path = sys.argv[1].removeprefix("unix:path=")
    count, rate, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    clients = [Client(path, number) for number in range(count)]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.sock, selectors.EVENT_READ, client)
    begin, sent = time.monotonic(), 0
    print("begun", flush=True)
    while (elapsed := time.monotonic() - begin) < seconds:
        while sent < elapsed * rate:
            client = clients[sent % count]
            if not client.waits:
                client.call()
            sent += 1
        for key, _ in selector.select(max(0.0, sent / rate - elapsed)):
            key.data.read()
    print(sum(client.answered for client in clients))
    return 0


if __name__ == "__main__":
    sys.exit(main())
