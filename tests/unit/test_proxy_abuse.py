# SPDX-License-Identifier: MIT
"""Input that nobody means well with: the right status, and the next client is served.

INPUTS is the table of what is tried; each is sent as it stands, and the connection closed after
its answer. Where a status is None the connection is closed without one.
"""

import asyncio
import gzip
import json
import re
import resource
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmuxd.errors import BadRequest, LlmuxError
from llmuxd.proxy import json_body, routes, targets

from .engine import a_raw_server
from .house import ASK, CHAT, House

TEXT = json.dumps(ASK).encode()
LENGTH = f"Content-Length: {len(TEXT)}\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(TEXT), TEXT)
POST = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"

INPUTS: dict[str, tuple[bytes, int | None]] = {
    # Two lengths: what one reader takes for the body, the next takes for a request.
    "Content-Length and Transfer-Encoding": (
        f"{POST}{LENGTH}Transfer-Encoding: chunked\r\n\r\n".encode() + CHUNKED, 400,
    ),
    "two lengths that differ": (f"{POST}{LENGTH}Content-Length: 5\r\n\r\n".encode() + TEXT, 400),
    "a list of lengths": (f"{POST}Content-Length: 5, 5\r\n\r\nxxxxx".encode(), 400),
    "a signed length": (f"{POST}Content-Length: +5\r\n\r\nxxxxx".encode(), 400),
    "a negative length": (f"{POST}Content-Length: -1\r\n\r\n".encode(), 400),
    "a length in hexadecimal": (f"{POST}Content-Length: 0x5\r\n\r\nxxxxx".encode(), 400),
    "a length of 30 digits": (f"{POST}Content-Length: {'9' * 30}\r\n\r\n".encode(), 400),
    "chunked twice": (f"{POST}Transfer-Encoding: chunked, chunked\r\n\r\n".encode() + CHUNKED, 400),
    "an encoding that is not chunked": (
        f"{POST}Transfer-Encoding: xchunked\r\n\r\n".encode() + CHUNKED, 400,
    ),
    "a chunk that is longer than it says": (
        f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + b"2\r\nxxxx\r\n0\r\n\r\n", 400,
    ),
    "a chunk's length that is none": (
        f"{POST}Transfer-Encoding: chunked\r\n\r\n".encode() + b"zz\r\n", 400,
    ),
    # Lines that end or go on in another way.
    "a folded header": (f"{POST}X-Folded: a\r\n b\r\n{LENGTH}\r\n".encode() + TEXT, 400),
    "bare line feeds": (POST.replace("\r\n", "\n").encode() + LENGTH.encode() + b"\n" + TEXT, 400),
    "a bare carriage return": (f"{POST}X-A: b\rX-C: d\r\n{LENGTH}\r\n".encode() + TEXT, 400),
    "a space before the colon": (f"{POST}X-Spaced : a\r\n{LENGTH}\r\n".encode() + TEXT, 400),
    "a header without a name": (f"{POST}: a\r\n\r\n".encode(), 400),
    "a NUL in a header": (f"{POST}X-Nul: a\0b\r\n\r\n".encode(), 400),
    # No HTTP.
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3.7": (b"GET /health HTTP/3.7\r\nHost: x\r\n\r\n", 400),
    "nonsense": (b"\xff\xfe\xfd\r\n\r\n", 400),
    "a method of 9000 letters": (b"X" * 9000 + b" / HTTP/1.1\r\n\r\n", 400),
    # Too much.
    "a target of 100 kB": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a header of 100 kB": (f"{POST}X-Long: {'x' * 100_000}\r\n\r\n".encode(), 400),
    "ten thousand headers": (
        POST.encode() + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n", 400,
    ),
    "a body that says it has 1 TB": (f"{POST}Content-Length: {1 << 40}\r\n\r\n".encode(), 413),
    # Bodies.
    "invalid UTF-8": (
        f"{POST}Content-Length: 17\r\n\r\n".encode() + b'{"model": "\xff\xfe\xfd\xfc"}', 400,
    ),
    "UTF-16": (f"{POST}Content-Length: 8\r\n\r\n".encode() + "{}{}".encode("utf-16-le"), 400),
    "a packing that nobody knows": (
        f"{POST}Content-Encoding: br\r\nContent-Length: 5\r\n\r\nxxxxx".encode(), 400,
    ),
    "half of a gzip file": (
        f"{POST}Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n".encode()
        + gzip.compress(TEXT)[:20], 400,
    ),
    "gzip that is none": (
        f"{POST}Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nxxxxx".encode(), 400,
    ),
    "a hundred thousand brackets": (
        f"{POST}Content-Length: 100000\r\n\r\n".encode() + b"[" * 100_000, 400,
    ),
    "a form without an end": (
        f"{POST}Content-Type: multipart/form-data; boundary=x\r\n".encode()
        + b"Content-Length: 3\r\n\r\n--x", 400,
    ),
    # Elsewhere.
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    "TRACE": (f"TRACE {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), 405),
    "h2c": (
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", 200,
    ),
}  # fmt: skip


async def send(house: House, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(raw)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("what", INPUTS)
async def test_bad_input_has_its_status_and_hurts_nobody(house: House, what: str) -> None:
    raw, status = INPUTS[what]
    answered = await send(house, raw)
    got = int(answered.split(b" ")[1]) if answered else None
    assert got == status, answered[:300]
    assert len(re.findall(rb"HTTP/1\.\d \d", answered)) <= 1, "one request, two answers"
    assert house.engine.seen == []
    assert (await house.post())[0] == 200


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_bombs_do_not_go_off(house: House, pack: object) -> None:
    assert callable(pack)
    house.reconfigure(max_body=4 << 20)
    bomb = pack(b" " * (256 << 20))
    name = "gzip" if pack is gzip.compress else "deflate"
    head = f"{POST}Content-Encoding: {name}\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    before = resident_mb()
    begin = time.thread_time()
    answered = await send(house, head + bomb)
    took = time.thread_time() - begin
    assert answered.split(b" ")[1] == b"413"
    assert peak_mb() - before < 32
    # To unpack all of it, though it is refused, takes six times as long as to unpack the limit.
    begin = time.thread_time()
    zlib.decompressobj(47).decompress(bomb)
    assert took < (time.thread_time() - begin) / 2


async def test_hundred_megabytes_are_refused_unread(house: House) -> None:
    house.reconfigure(max_body=1 << 20)
    before = resident_mb()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield b" " * 65536

    status = 0
    try:
        async with house.client.post(house.url + CHAT, data=chunks()) as response:
            status = response.status
    except ConnectionError:
        # It was still sending when the answer was out and the connection closed.
        status = 413
    assert status == 413
    assert peak_mb() - before < 32


async def test_form_of_a_hundred_megabytes_streams(house: House) -> None:
    """It is never in memory as a whole; the engine here keeps it, so it only counts."""
    house.reconfigure(max_body=200 << 20)
    size = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal size
        while (chunk := await reader.read(1 << 20)) and b"--end--" not in chunk[-64:]:
            size += len(chunk)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()

    async def form() -> AsyncIterator[bytes]:
        yield b'--end\r\nContent-Disposition: form-data; name="model"\r\n\r\norg/a\r\n'
        yield b'--end\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(100):
            yield b"x" * (1 << 20)
        yield b"\r\n--end--\r\n"

    before = resident_mb()
    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        headers = {"Content-Type": "multipart/form-data; boundary=end"}
        async with house.client.post(
            house.url + "/v1/audio/transcriptions", data=form(), headers=headers
        ) as response:
            assert response.status == 200
    assert size > 99 << 20
    assert peak_mb() - before < 48


async def test_idle_connections_leave_room_for_others(house: House) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, (soft - 200) // 2)
    writers = [(await asyncio.open_connection("127.0.0.1", house.port))[1] for _ in range(count)]
    assert (await house.post())[0] == 200
    for writer in writers:
        writer.close()


def resident_mb() -> float:
    """The memory of the process now; `peak_mb` looks from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_mb("VmRSS")


def peak_mb() -> float:
    """The most that it had since `resident_mb`."""
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


# Whatever there is


@given(
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126)),
    st.sampled_from(["GET", "POST", "X"]),
)
def test_any_path_has_a_route_or_an_error(path: str, method: str) -> None:
    try:
        route = routes.match(method, "/" + path)
    except LlmuxError:
        return
    assert route.label in {*routes._EXACT, *routes._READS, "/v1/models/{model}", "/v1/realtime",
                           "/v1/other", "/upstream"}  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["stream", "messages", "mod", "model ", "é"]) | st.text(max_size=5)


@given(
    st.dictionaries(keys.filter(lambda key: key != "model"), json_values, max_size=5),
    st.text(min_size=1),
    st.text(min_size=1),
    st.integers(0, 5),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]),
    st.booleans(),
)
def test_any_object_is_read_as_json_reads_it_and_renamed_nowhere_else(
    others: dict[str, object], model: str, name: str, place: int, separators: tuple[str, str],
    ascii_only: bool,
) -> None:  # fmt: skip
    items = list(others.items())
    items.insert(min(place, len(items)), ("model", model))
    text = json.dumps(dict(items), separators=separators, ensure_ascii=ascii_only)
    raw = text.encode("utf-8", "surrogatepass")
    try:
        parsed = json_body.parse(raw)
    except LlmuxError:
        # Half a surrogate pair is no UTF-8.
        raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
        assert "\\ud" in repr(text)
        return
    assert parsed.model == model
    assert parsed.stream == (others.get("stream") is True)
    if name.isprintable():
        assert json.loads(parsed.naming(name)) == {**others, "model": name}


@given(st.dictionaries(keys | st.just("model"), json_values | st.text('"\\\n[]{}'), max_size=5))
def test_large_object_is_read_as_a_small_one(value: dict[str, object]) -> None:
    raw = json.dumps(value).encode()
    try:
        wanted = json_body.parse(raw)
    except LlmuxError as error:
        with pytest.raises(LlmuxError, match=re.escape(error.message)):
            json_body.skim(raw)
        return
    large = json_body.skim(raw)
    assert large == wanted
    assert large.naming("z") == wanted.naming("z")


@pytest.mark.parametrize(
    "raw", [b'{"x": [', b'{"x": ["', b'{"x": ["\\"]}', b'{"x": [1]', b'{"x": {"a": 1}', b'{"x": }']
)
def test_large_object_without_an_end_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid JSON"):
        json_body.skim(raw)


@pytest.mark.parametrize("reads", [json_body.parse, json_body.skim])
def test_object_of_a_hundred_thousand_keys_is_refused(
    reads: Callable[[bytes], json_body.JsonBody],
) -> None:
    """Each takes a turn of everybody's."""
    assert reads(b'{"model": "b"' + b', "": 0' * 900 + b"}").model == "b"
    with pytest.raises(BadRequest, match="more than 1000 keys"):
        reads(b'{"model": "b"' + b', "": 0' * 100_000 + b"}")


@pytest.mark.parametrize("end", [b"\xff", b"\xe2\x82", b"\xed\xa0\x80"])
def test_large_object_that_is_no_utf_8_is_refused(end: bytes) -> None:
    with pytest.raises(BadRequest, match="not valid JSON"):
        json_body.skim(b'{"x": "' + "é".encode() * (40 << 10) + end + b'"}')


def test_picture_in_a_message_waits_for_no_thread() -> None:
    text = {"type": "text", "text": 'What is \\"this"?'}
    picture = {"url": "data:image/png;base64," + "A" * (2 << 20)}
    content = [text, {"type": "image_url", "image_url": picture}]
    raw = json.dumps({"messages": [{"role": "user", "content": content}], "model": "b"}).encode()
    assert json_body.skim(raw, json_body.PATIENCE_AT_ONCE).model == "b"
    many = json.dumps({"x": [{"role": "user", "content": "hi"}] * 20000, "model": "b"}).encode()
    with pytest.raises(json_body.TooLong):
        json_body.skim(many, json_body.PATIENCE_AT_ONCE)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Who holds the interpreter for longer than 0.1 ms is asked for it: what can be shared, is."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("piece", [b"[],", b"[[{}]],", b'"\\"",', b"1.5,", b'\\"', b"\\\\"])
async def test_millions_of_values_hold_up_nobody(piece: bytes, eager_threads: None) -> None:
    many = piece * ((4 << 20) // len(piece))
    value = many + b"0" if piece.endswith(b",") else b'"' + many + b'"'
    raw = b'{"x": [' + value + b'], "model": "b"}'
    before = resident_mb()
    reading = asyncio.create_task(json_body.read(raw))
    turns = [time.monotonic()]
    while not reading.done():
        await asyncio.sleep(0)
        turns.append(time.monotonic())
    assert reading.result().model == "b"
    longest = max(later - turn for turn, later in pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 2
    assert peak_mb() - before < 32


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        json_body.parse(raw)
    except LlmuxError:
        return
    assert isinstance(json.loads(raw), dict)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]),
    st.sampled_from(
        [CHAT, "/v1/models", "/v1/models/x", "/upstream/b/x", "/v1/x", "/health", "/tokenize"]
    ),
    st.sampled_from(["", "?model=b", "?model=", "?model=%ff", "?model=b&model=zzz"]),
    st.dictionaries(
        st.sampled_from(
            ["Content-Type", "Content-Encoding", "Expect", "Accept", "X-LLMux-Waiting"]
        ),
        st.sampled_from(
            [
                "application/json",
                "multipart/form-data",
                "gzip",
                "comments",
                "br",
                "100-continue",
                "*/*",
            ]
        ),
        max_size=3,
    ),
    st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
)
async def test_any_request_is_answered_and_none_is_our_fault(
    house: House, method: str, path: str, query: str, headers: dict[str, str], sent: bytes
) -> None:
    lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    raw = f"{method} {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}"
    answered = await send(house, f"{raw}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    final = answered.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert final.startswith(b"HTTP/1."), answered[:200]
    assert int(final.split(b" ")[1]) < 500, answered[:300]


def test_names_in_a_path_are_found_in_reasonable_time(house: House) -> None:
    config = house.stage.switcher.config
    with pytest.raises(LlmuxError):
        targets.split("a/" * 4000, config, lambda model: True)
