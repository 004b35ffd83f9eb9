# SPDX-License-Identifier: MIT
"""org.freedesktop.PolicyKit1 as far as llmuxd calls it."""

import asyncio
from dataclasses import dataclass, field

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from .private_bus import PrivateBus, leave

NAME = "org.freedesktop.PolicyKit1"

YES = (True, False)
NO = (False, False)
CHALLENGE = (False, True)


@dataclass(frozen=True)
class Question:
    """What CheckAuthorization was called with."""

    kind: str
    name: str
    action: str
    flags: int
    ticket: str


@dataclass
class Polkit:
    """The mock. Its knobs say what it answers."""

    answer: tuple[bool, bool] = NO
    error: tuple[str, str] | None = None
    hangs: bool = False
    signature: str = "(bba{ss})"
    questions: list[Question] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    bus: MessageBus | None = None

    async def attach(self, bus: PrivateBus) -> None:
        """Take the name on `bus`."""
        self.bus = (await bus.connect()).bus
        self.bus.add_message_handler(self._on_message)
        await self.bus.request_name(NAME)

    async def close(self) -> None:
        """Leave the bus."""
        if self.bus is not None:
            await leave(self.bus)

    def _on_message(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        if message.path != "/org/freedesktop/PolicyKit1/Authority":
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownObject", "")
        if message.member == "CancelCheckAuthorization":
            self.cancelled += message.body
            self.asked.set()
            return Message.new_method_return(message)
        (kind, about), action, _, flags, ticket = message.body
        self.questions.append(Question(kind, about["name"].value, action, flags, ticket))
        self.asked.set()
        if self.hangs:
            return True
        if self.error is not None:
            return Message.new_error(message, *self.error)
        body = [[*self.answer, {}]] if self.signature == "(bba{ss})" else [1]
        return Message.new_method_return(message, self.signature, body)
