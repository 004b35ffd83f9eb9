# SPDX-License-Identifier: MIT
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from llmuxd import gpus
from llmuxd.gpus import Gpus
from llmuxd.meter.reading import GpuMemory, Holder, Reading, socket_path
from llmuxd.policy import Gpu

OURS = Holder(1, "vllm", "m", 30)
THEIRS = (Holder(2, "small", None, 5), Holder(3, "", None, 10), Holder(4, "untold", None, None))
GPU = GpuMemory(2, "NVIDIA H100", 100, 50, (OURS, *THEIRS))


class FakeMeter:
    """Says what a test tells it to; `answers`: to each question as well."""

    def __init__(self) -> None:
        self.gpus: tuple[GpuMemory, ...] = (GPU,)
        self.answers = True
        self.questions: asyncio.Queue[None] = asyncio.Queue()
        self.connections: asyncio.Queue[None] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        socket_path().parent.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._client, socket_path())

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        socket_path().unlink(missing_ok=True)
        self.hang_up()

    def say(self, line: bytes | None = None) -> None:
        assert self._writer is not None
        self._writer.write(line or Reading(time.monotonic(), self.gpus).line())

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.put_nowait(None)
        self._writer = writer
        self.say()
        with contextlib.suppress(OSError):
            while await reader.readline():
                self.questions.put_nowait(None)
                if self.answers:
                    self.say()
        writer.close()


class Watch:
    """Gpus that run, and each change of theirs."""

    def __init__(self) -> None:
        self.gpus = Gpus()
        self._changes: asyncio.Queue[dict[int, Gpu]] = asyncio.Queue()
        self.gpus.changed = lambda: self._changes.put_nowait(self.gpus.read())

    async def change(self) -> dict[int, Gpu]:
        return await self._changes.get()

    @property
    def quiet(self) -> bool:
        return self._changes.empty()


@pytest.fixture
async def fake_meter() -> AsyncIterator[FakeMeter]:
    meter = FakeMeter()
    await meter.start()
    yield meter
    await meter.stop()


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    monkeypatch.setattr(gpus, "RETRY", 0.01)
    watch = Watch()
    task = asyncio.create_task(watch.gpus.run())
    yield watch
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_the_policy_gets(fake_meter: FakeMeter, watch: Watch) -> None:
    wanted = Gpu(
        total=100,
        foreign=20,
        hidden=5,
        others=(("a process (PID 3)", 10), ("small (PID 2)", 5)),
        held={"m": 30},
    )
    assert await watch.change() == {2: wanted}
    assert watch.gpus.held() == {"m": {2: 30}}
    assert watch.gpus.measured == (GPU,)


async def test_only_a_change_is_told(fake_meter: FakeMeter, watch: Watch) -> None:
    await watch.change()
    fake_meter.say()
    fake_meter.gpus = ()
    fake_meter.say()
    assert await watch.change() == {}
    assert watch.quiet


async def test_a_measurement_is_of_now(fake_meter: FakeMeter, watch: Watch) -> None:
    await watch.change()
    fake_meter.gpus = (GpuMemory(0, "A", 7, 1),)
    assert await watch.gpus.measure() == {0: Gpu(7, foreign=1, hidden=1)}
    assert fake_meter.questions.qsize() == 1


async def test_the_first_reading_is_waited_for(fake_meter: FakeMeter, watch: Watch) -> None:
    assert list(await watch.gpus.measure()) == [2]
    assert fake_meter.questions.empty()


async def test_a_reading_of_before_is_no_answer(fake_meter: FakeMeter, watch: Watch) -> None:
    await watch.change()
    fake_meter.answers = False
    before = Reading(time.monotonic(), fake_meter.gpus).line()
    asking = asyncio.create_task(watch.gpus.measure())
    await fake_meter.questions.get()
    fake_meter.gpus = ()
    fake_meter.say(before)
    fake_meter.say()
    assert await asking == {}


async def test_a_meter_that_hangs_leaves_nothing_known(
    fake_meter: FakeMeter, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "LIMIT", 0.01)
    await watch.change()
    fake_meter.answers = False
    assert await watch.gpus.measure() == {}
    assert watch.gpus.read() != {}
    monkeypatch.setattr(gpus, "LIMIT", 60)
    assert await watch.gpus.measure() == {}
    fake_meter.answers = True
    fake_meter.gpus = ()
    fake_meter.say()
    await watch.change()
    fake_meter.gpus = (GPU,)
    assert list(await watch.gpus.measure()) == [2]


async def test_a_meter_that_ends_is_waited_for_no_longer(
    fake_meter: FakeMeter, watch: Watch
) -> None:
    await watch.change()
    fake_meter.answers = False
    asking = asyncio.create_task(watch.gpus.measure())
    await fake_meter.questions.get()
    await fake_meter.stop()
    assert await asking == {}


async def test_a_meter_that_was_restarted_is_not_noticed(
    fake_meter: FakeMeter, watch: Watch
) -> None:
    await watch.change()
    fake_meter.answers = False
    asking = asyncio.create_task(watch.gpus.measure())
    await fake_meter.questions.get()
    fake_meter.hang_up()
    assert list(await asking) == [2]
    assert fake_meter.connections.qsize() == 2
    assert watch.quiet


async def test_llmuxd_begins_with_a_reading(fake_meter: FakeMeter, watch: Watch) -> None:
    await watch.gpus.first()
    assert list(watch.gpus.read()) == [2]


async def test_llmuxd_begins_without_a_meter(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "FIRST_LIMIT", 60)
    await watch.gpus.first()
    assert watch.gpus.read() == {}


async def test_llmuxd_begins_while_the_meter_does_not(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "FIRST_LIMIT", 0.01)
    socket_path().parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(_say_nothing, socket_path())
    async with server:
        await watch.gpus.first()
    assert watch.gpus.read() == {}


async def test_without_a_meter_nothing_is_known(watch: Watch) -> None:
    assert await watch.change() == {}
    assert await watch.gpus.measure() == {}
    meter = FakeMeter()
    await meter.start()
    while not watch.gpus.read():
        await watch.change()
    await meter.stop()
    while watch.gpus.read():
        await watch.change()


@pytest.mark.parametrize("line", [b"nonsense\n", b"x" * (3 << 20) + b"\n"])
async def test_a_line_that_is_none_is_nothing_known(
    fake_meter: FakeMeter, watch: Watch, line: bytes
) -> None:
    await watch.change()
    fake_meter.say(line)
    assert await watch.change() == {}
    while not watch.gpus.read():
        await watch.change()


async def test_an_error_is_logged_once(
    fake_meter: FakeMeter, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    await watch.change()
    for at in (1.0, 2.0):
        fake_meter.say(Reading(at, error="Driver Not Loaded").line())
    assert await watch.change() == {}
    fake_meter.say()
    await watch.change()
    assert caplog.messages == ["GPU memory cannot be measured: Driver Not Loaded"]


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()
