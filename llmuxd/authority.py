# SPDX-License-Identifier: MIT
"""Who may: root always, everybody else as polkit says, asked anew for each call.

The caller is known by the unique name that the bus itself wrote into the message.
"""

import asyncio
import itertools
import logging
from enum import StrEnum

from dbus_next import Message, MessageFlag, MessageType, Variant

from .bus import Call, current_call
from .errors import AccessDenied, InteractionRequired
from .events import Event, about

log = logging.getLogger(__name__)

# Seconds that polkit has for its answer; with interaction, a person types a password meanwhile.
PATIENCE = 10.0
PATIENCE_WITH_PEOPLE = 180.0

_BUS = "org.freedesktop.DBus"
_POLKIT = "org.freedesktop.PolicyKit1"
_ALLOW_USER_INTERACTION = 1

_numbers = itertools.count(1)


class Action(StrEnum):
    """What polkit is asked for; described in dbus/org.llmux.policy."""

    SWITCH = "org.llmux.switch"
    MANAGE = "org.llmux.manage"
    RELOAD = "org.llmux.reload"


async def require(action: Action) -> None:
    """Return if the caller of the method at hand may do `action`; AccessDenied otherwise."""
    call = current_call.get()
    try:
        async with asyncio.timeout(PATIENCE):
            if await _uid(call) == 0:
                return
        await _ask_polkit(call, action)
    except TimeoutError:
        raise AccessDenied(
            f"nobody said in time whether you may do {action}", "is polkit well? root needs none"
        ) from None


async def _uid(call: Call) -> int:
    reply = await _ask(
        call,
        Message(
            destination=_BUS, path="/org/freedesktop/DBus", interface=_BUS,
            member="GetConnectionUnixUser", signature="s", body=[call.message.sender],
        ),
    )  # fmt: skip
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        raise AccessDenied("the caller has left the bus", "")
    return int(reply.body[0])


async def _ask_polkit(call: Call, action: Action) -> None:
    interactive = bool(call.message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
    ticket = f"llmuxd-{next(_numbers)}"
    subject = ["system-bus-name", {"name": Variant("s", call.message.sender)}]
    flags = _ALLOW_USER_INTERACTION if interactive else 0
    question = _to_polkit(
        "CheckAuthorization", "(sa{sv})sa{ss}us", subject, action.value, {}, flags, ticket
    )
    try:
        async with asyncio.timeout(PATIENCE_WITH_PEOPLE if interactive else PATIENCE):
            _judge(await _ask(call, question), action)
    except TimeoutError:
        # Nobody waits for the answer any more: a dialogue that asks for it is to go.
        if call.bus.connected:
            call.bus.send(_to_polkit("CancelCheckAuthorization", "s", ticket))
        raise


def _judge(reply: Message | None, action: Action) -> None:
    """Refuse unless polkit said yes, in so many words."""
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        log.warning("polkit cannot be asked for %s: %s", action, _complaint(reply),
                    extra=about(Event.POLKIT_AWAY))  # fmt: skip
        raise AccessDenied(f"polkit cannot be asked for {action}", "only root needs no polkit")
    if reply.signature != "(bba{ss})":
        raise AccessDenied(f"polkit's answer for {action} makes no sense")
    authorized, challenge, _ = reply.body[0]
    if authorized:
        return
    if challenge:
        raise InteractionRequired(f"{action} wants you to authenticate")
    raise AccessDenied(f"polkit does not allow you {action}")


def _complaint(reply: Message | None) -> str:
    if reply is None:
        return "the bus is gone"
    return f"{reply.error_name}: {' '.join(map(str, reply.body))}"


def _to_polkit(member: str, signature: str, *body: object) -> Message:
    return Message(
        destination=_POLKIT,
        path="/org/freedesktop/PolicyKit1/Authority",
        interface=f"{_POLKIT}.Authority",
        member=member,
        signature=signature,
        body=list(body),
    )


async def _ask(call: Call, message: Message) -> Message | None:
    """The reply, by the connection that the caller is on; None if that was lost."""
    if not call.bus.connected:
        return None
    try:
        return await call.bus.call(message)
    except (OSError, EOFError):
        return None
