# SPDX-License-Identifier: MIT
"""Bodies of multipart/form-data: the model in one part, a file in another."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from llmuxd.proxy import body

from .engine import a_raw_server
from .house import A, B, House, told

TRANSCRIBE = "/v1/audio/transcriptions"
EDGE = "--edge\r\nContent-Disposition: form-data; "


def a_form(*parts: tuple[str, bytes], end: bytes = b"--edge--\r\n") -> bytes:
    return b"".join(EDGE.encode() + head.encode() + b"\r\n\r\n" + content + b"\r\n"
                    for head, content in parts) + end  # fmt: skip


MODEL = ('name="model"', b"org/a")
FILE = ('name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b"\r\n--edg\0\xff" * 1000)


async def send(
    house: House, data: bytes | AsyncIterator[bytes], **headers: str
) -> tuple[int, object]:
    kind = {"Content-Type": "multipart/form-data; boundary=edge", **headers}
    async with house.client.post(house.url + TRANSCRIBE, data=data, headers=kind) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("parts", [(MODEL, FILE), (FILE, MODEL), (MODEL,), (FILE, MODEL, FILE)])
async def test_form_reaches_the_engine_as_it_is(
    house: House, parts: tuple[tuple[str, bytes], ...]
) -> None:
    form = a_form(*parts)
    assert (await send(house, form))[0] == 200
    (seen,) = house.engine.seen
    assert seen.body == form
    assert seen.headers["Content-Length"] == str(len(form))
    assert seen.headers["Content-Type"] == "multipart/form-data; boundary=edge"


@pytest.mark.parametrize("parts", [(MODEL, FILE), (FILE, MODEL)])
async def test_engine_hears_its_own_name(
    house: House, parts: tuple[tuple[str, bytes], ...]
) -> None:
    house.stage.reload(replace(A, served_name="whisper-large"), B)
    assert (await send(house, a_form(*parts)))[0] == 200
    wanted = [(head, b"whisper-large" if head == MODEL[0] else data) for head, data in parts]
    assert house.engine.seen[0].body == a_form(*wanted)


async def test_forms_of_aiohttp_are_understood(house: House) -> None:
    form = aiohttp.FormData()
    form.add_field("file", b"x" * 100_000, filename="model.wav", content_type="audio/wav")
    form.add_field("model", "first")
    async with house.client.post(house.url + TRANSCRIBE, data=form) as response:
        assert response.status == 200
    assert (
        b'name="model"\r\n' in house.engine.seen[0].body and b"org/a" in house.engine.seen[0].body
    )


async def test_form_streams_while_it_comes(house: House) -> None:
    """The engine has the first half before the client sends the second."""
    got_first, got = asyncio.Event(), bytearray()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="{}", content_type="application/json")

    async def chunks() -> AsyncIterator[bytes]:
        yield a_form(MODEL, end=b"") + EDGE.encode() + b'name="file"\r\n\r\n'
        await got_first.wait()
        yield b"y" * 10 + b"\r\n--edge--\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"--edge--" not in got:
            got.extend(await reader.read(65536))
            if b'name="file"' in got:
                got_first.set()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
        )
        await writer.drain()

    house.engine.answer = answer
    async with a_raw_server(serve) as port:
        house.stage.units.ports["org/a"] = port
        assert await send(house, chunks()) == (200, {})


async def test_packed_form_is_unpacked(house: House) -> None:
    form = a_form(MODEL, FILE)
    packed = gzip.compress(form)
    assert (await send(house, packed, **{"Content-Encoding": "gzip"}))[0] == 200
    assert house.engine.seen[0].body == form
    assert "Content-Encoding" not in house.engine.seen[0].headers


async def test_form_names_no_model(house: House) -> None:
    assert told(await send(house, a_form(FILE)))[0] == 400
    house.reconfigure(default_model="b")
    form = a_form(FILE)
    assert (await send(house, form))[0] == 200
    assert house.engine.seen[0].body == form


@pytest.mark.parametrize(
    "form",
    [
        b"", b"--edge", b"--edge\r\n" + b"x" * 40_000, a_form(MODEL, end=b"")[:-4],
        b"nothing of that kind",
    ],
)  # fmt: skip
async def test_form_that_is_none(house: House, form: bytes) -> None:
    assert told(await send(house, form))[0] == 400
    assert house.stage.units.log == []


async def test_type_is_told_in_any_letters(house: House) -> None:
    kind = 'Multipart/Form-Data ; charset=utf-8; Boundary="edge"'
    assert (await send(house, a_form(MODEL), **{"Content-Type": kind}))[0] == 200


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 99]
)
async def test_form_without_a_boundary(house: House, kind: str) -> None:
    assert told(await send(house, a_form(MODEL), **{"Content-Type": kind}))[0] == 400


async def test_file_called_model_is_no_name(house: House) -> None:
    form = a_form(('name="model"; filename="org/a"', b"b"), MODEL)
    assert (await send(house, form))[0] == 200
    assert house.stage.units.log == ["start org/a"]


async def test_form_over_the_limit_is_refused(house: House) -> None:
    house.reconfigure(max_body=4096)
    assert told(await send(house, a_form(FILE, MODEL)))[0] == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    assert told(await send(house, chunks()))[0] == 413
    assert house.stage.units.log == []


@pytest.mark.parametrize(
    "head",
    [
        'name="model"', "name=model", 'NAME="model"', 'name="file"; name="model"',
        "name*=utf-8''model", 'name*0="mo"; name*1="del"',
        'name="x"\r\nContent-Disposition: form-data; name="model"', 'name="x";\r\n name="model"',
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [(MODEL,), (MODEL, FILE), ()])
async def test_model_that_an_engine_may_read_in_another_part_is_refused(
    house: House, head: str, before: tuple[tuple[str, bytes], ...]
) -> None:
    """A key for the first of them must not be one for the other."""
    form = a_form(*before, (head, b"b"), *(() if before else (MODEL,)))
    assert told(await send(house, form))[0] == 400
    assert house.engine.seen == []


async def test_second_model_is_refused_wherever_the_pieces_end(house: House) -> None:
    form = a_form(MODEL, ('name="x"', b"-" * 80 + b"\r\n--edg"), MODEL)
    reader = asyncio.StreamReader()
    for start in range(0, len(form), 7):
        reader.feed_data(form[start : start + 7])
    reader.feed_eof()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await reader.read(7):
            yield piece
            await asyncio.sleep(0)

    assert told(await send(house, pieces()))[:2] == (400, "the request names the model twice")


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data; boundary=edge; boundary=other", "multipart/form-data; boundary ="],
)
async def test_form_of_more_than_one_boundary_or_none(house: House, kind: str) -> None:
    assert told(await send(house, a_form(MODEL), **{"Content-Type": kind}))[0] == 400


async def test_two_types_are_refused(house: House) -> None:
    raw = a_form(MODEL)
    answered = await house.raw(
        f"POST {TRANSCRIBE} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: {len(raw)}\n"
        "Content-Type: application/json\nContent-Type: multipart/form-data; boundary=edge\n",
        raw,
    )
    assert answered.split(b" ")[1] == b"400"


async def test_form_that_comes_drop_by_drop_loses_its_model(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "READ_TIMEOUT", 0.3)

    async def drops() -> AsyncIterator[bytes]:
        yield a_form(MODEL, end=b"") + EDGE.encode() + b'name="file"\r\n\r\n'
        while True:
            await asyncio.sleep(0.05)
            yield b"x"

    status, message, _, _ = told(await send(house, drops()))
    assert status == 408 and message.startswith("only ")
    assert house.stage.switcher.model("org/a").in_flight == 0


@pytest.mark.parametrize("first", [True, False])
async def test_form_of_too_many_parts_is_refused(house: House, first: bool) -> None:
    many = [('name="x"', b"")] * 2001
    form = a_form(MODEL, *many) if first else a_form(*many, MODEL)
    status, message, _, _ = told(await send(house, form))
    assert status == 400 and "parts" in message
