# SPDX-License-Identifier: MIT
"""Where D-Bus begins: errors become answers, and what changes something asks first who calls."""

import contextlib
import functools
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar

from dbus_next import DBusError
from dbus_next.constants import PropertyAccess
from dbus_next.service import dbus_property

from .. import authority
from ..authority import Action
from ..errors import Internal, LlmuxError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def _translated(member: str) -> Iterator[None]:
    """Translate exceptions, once, where D-Bus begins."""
    try:
        yield
    except LlmuxError as error:
        raise DBusError(error.dbus_name, str(error)) from None
    except Exception:
        log.exception("%s failed", member)
        raise DBusError(Internal.dbus_name, str(Internal("internal error"))) from None


def edge(function: Callable[P, R]) -> Callable[P, R]:
    """What everybody may call."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with _translated(function.__name__):
            return function(*args, **kwargs)

    return guarded


def changing(
    action: Action | Callable[[Any], Action],
) -> Callable[[Callable[P, Any]], Callable[P, Coroutine[Any, Any, Any]]]:
    """What only those may call who may do `action`, or the action that its object names."""

    def decorate(function: Callable[P, Any]) -> Callable[P, Coroutine[Any, Any, Any]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _translated(function.__name__):
                needed = action if isinstance(action, Action) else action(args[0])
                await authority.require(needed)
                result = function(*args, **kwargs)
                return await result if isinstance(result, Awaitable) else result

        return guarded

    return decorate


def reading(function: Callable[[Any], R]) -> Any:
    """A property that can be read and not be written."""
    return dbus_property(access=PropertyAccess.READ)(edge(function))


def is_no_answer(record: logging.LogRecord) -> bool:
    """dbus-next logs each error that a method answers with, as if it were a crash of its own."""
    return not isinstance(sys.exc_info()[1], DBusError)
