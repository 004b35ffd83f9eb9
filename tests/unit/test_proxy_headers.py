# SPDX-License-Identifier: MIT
"""Heads of requests and answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmuxd.proxy.headers import Headers, head, passed

tokens = st.sampled_from([b"a", b"b", b"X-One", b"x-two", b"Connection", b"TE", b"Date"])
values = st.binary(max_size=12)


def test_head_is_what_it_says() -> None:
    assert head(b"GET / HTTP/1.1", [(b"a", b"1"), (b"B", b"\xff")]) == (
        b"GET / HTTP/1.1\r\na: 1\r\nB: \xff\r\n\r\n"
    )


@given(values, st.lists(st.tuples(tokens, values), max_size=4))
def test_no_header_becomes_two_lines(first: bytes, headers: Headers) -> None:
    """Whatever a client or an engine sent, and whatever reads it: a line each, or an error."""
    try:
        lines = head(first, headers).replace(b"\r", b"\n").split(b"\n")
    except ValueError:
        return
    assert len([line for line in lines if line]) <= 1 + len(headers)
    assert not any(b"\0" in line for line in lines)


@pytest.mark.parametrize("character", [b"\r", b"\n", b"\0", b"\r\n"])
@pytest.mark.parametrize("place", ["first", "name", "value"])
def test_character_that_ends_a_line_is_refused(character: bytes, place: str) -> None:
    bad = b"a" + character + b"b: c"
    first, name, value = (bad if place == part else b"x" for part in ("first", "name", "value"))
    with pytest.raises(ValueError, match="control character"):
        head(first, [(name, value)])


def test_headers_that_a_connection_names_are_its_own() -> None:
    headers = [
        (b"Connection", b"close, X-One"), (b"X-ONE", b"1"), (b"connection", b"x-two"),
        (b"x-Two", b"2"), (b"X-Kept", b"3"), (b"TE", b"trailers"), (b"X-Key", b"secret"),
    ]  # fmt: skip
    assert passed(headers) == [(b"X-Kept", b"3"), (b"X-Key", b"secret")]
    assert passed(headers, (b"x-key",)) == [(b"X-Kept", b"3")]
