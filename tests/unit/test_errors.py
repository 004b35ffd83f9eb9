# SPDX-License-Identifier: MIT
import re

import pytest

from llmuxd import errors
from llmuxd.errors import LlmuxError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LlmuxError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_place_on_every_edge(kind: type[LlmuxError]) -> None:
    assert re.fullmatch(
        r"(org\.llmux|org\.freedesktop\.DBus)\.Error\.[A-Z][A-Za-z]+", kind.dbus_name
    )
    assert 400 <= kind.http_status < 600
    wrong = kind.openai_type == "invalid_request_error"
    assert wrong == (
        kind.http_status in (400, 401, 404, 405, 408, 413, 417) and kind is not errors.NoSuchJob
    )
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_one_line(kind: type[LlmuxError]) -> None:
    error = kind("it broke:\n  twice\r\n\tin a row", "try it again")
    assert error.message == "it broke: twice in a row"
    assert len(str(error).splitlines()) == 1


def test_hint_follows_the_message() -> None:
    assert str(LlmuxError("it broke", "mend it")) == "it broke (mend it)"
    assert str(LlmuxError("it broke")) == "it broke"


def test_class_hint_can_be_replaced_and_left_out() -> None:
    assert "journalctl -u llmuxd" in str(errors.Internal("x"))
    assert str(errors.Internal("x", "")) == "x"


def test_names_that_users_script_against() -> None:
    known = {kind.__name__: (kind.dbus_name.rpartition(".")[2], kind.http_status)
             for kind in CLASSES}  # fmt: skip
    assert known["NoSuchModel"] == ("NoSuchModel", 404)
    assert known["ModelFailed"] == ("ModelFailed", 503)
    assert known["NoRoom"] == ("NoRoom", 507)
    assert known["QueueFull"] == ("QueueFull", 429)
    assert known["TimedOut"] == ("TimedOut", 504)
    assert known["BackendLost"][1] == 502
    assert known["BodyTooLarge"][1] == 413
    assert known["Internal"] == ("Internal", 500)
