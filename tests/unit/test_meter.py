# SPDX-License-Identifier: MIT
import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmuxd import names
from llmuxd.meter import holders, meter
from llmuxd.meter.meter import Meter
from llmuxd.meter.nvml import Nvml
from llmuxd.meter.reading import BadReading, GpuMemory, Holder, Reading, parse

from .fake_nvml import H100, FakeNvml

MIB = 1 << 20
TOTAL = (81559 - 551) * MIB
MODEL = "Qwen/Qwen2.5-3B-Instruct"


class Client:
    """Somebody who listens to the meter."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def reading(self) -> Reading:
        return parse(await self._reader.readline())

    async def ask(self) -> Reading:
        self._writer.write(b"\n")
        return await self.reading()

    def leave(self) -> None:
        self._writer.close()


class Host:
    """A meter that runs, and what it said of itself."""

    def __init__(self, path: Path, nvml: FakeNvml) -> None:
        self.path = path
        self.told: list[str] = []
        self.meter = Meter(self.told.append, str(nvml.library))

    async def client(self) -> Client:
        return Client(*await asyncio.open_unix_connection(self.path))


@pytest.fixture
async def host(tmp_path: Path, nvml: FakeNvml) -> AsyncIterator[Host]:
    host = Host(tmp_path / "gpus.sock", nvml)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(host.path))
    listening.listen()
    task = asyncio.create_task(host.meter.serve(listening))
    yield host
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_who_connects_is_told_at_once(host: Host, nvml: FakeNvml) -> None:
    me = os.getpid()
    nvml.tell(H100, f"process 0 {me} 1024", "process 0 999999999 -")
    before = time.monotonic()
    client = await host.client()
    reading = await client.reading()
    client.leave()
    mine = Holder(me, holders.name(me), None, 1024 * MIB)
    gone = Holder(999999999, "", None, None)
    gpu = GpuMemory(0, "NVIDIA H100 80GB HBM3", TOTAL, 1024 * MIB, (mine, gone))
    assert (reading.gpus, reading.error) == ((gpu,), "")
    assert before <= reading.at <= time.monotonic()
    assert mine.name
    assert host.told == ["GPU 0: 1024 of 81008 MiB used"]


async def test_a_change_is_told_to_all(
    host: Host, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PERIOD", 0.01)
    clients = [await host.client(), await host.client()]
    for client in clients:
        assert (await client.reading()).gpus[0].used == 0
    nvml.tell(H100, "process 0 1 3")
    for client in clients:
        reading = await client.reading()
        while reading.gpus[0].used == 0:
            # Measured because the other one came, before the change.
            reading = await client.reading()
        assert reading.gpus[0].used == 3 * MIB
        client.leave()


async def test_who_asks_gets_a_measurement_of_after_the_question(host: Host) -> None:
    client = await host.client()
    first = await client.reading()
    asked = time.monotonic()
    second = await client.ask()
    client.leave()
    assert first.at < asked <= second.at
    assert second.tells_as(first)


async def test_an_error_is_told_and_ends(host: Host, nvml: FakeNvml) -> None:
    nvml.tell("fail nvmlInit_v2 9")
    client = await host.client()
    assert (await client.reading()).error == "nvmlInit_v2: Driver Not Loaded (9)"
    nvml.tell(H100)
    assert len((await client.ask()).gpus) == 1
    client.leave()
    assert host.told[0] == "nvmlInit_v2: Driver Not Loaded (9)"


async def test_a_driver_that_was_exchanged_is_opened_anew(host: Host, nvml: FakeNvml) -> None:
    client = await host.client()
    await client.reading()
    nvml.tell(H100, "fail nvmlDeviceGetCount_v2 1")
    assert "Uninitialized" in (await client.ask()).error
    nvml.tell(H100)
    assert len((await client.ask()).gpus) == 1
    client.leave()


async def test_a_lost_gpu_hides_no_other(host: Host, nvml: FakeNvml) -> None:
    nvml.tell(H100, H100, "fail nvmlDeviceGetMemoryInfo_v2 15 0")
    client = await host.client()
    assert [gpu.number for gpu in (await client.reading()).gpus] == [1]
    client.leave()


async def test_the_driver_is_let_go_where_nobody_listens(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = asyncio.Event()
    monkeypatch.setattr(Nvml, "close", lambda _: closed.set())
    client = await host.client()
    await client.reading()
    assert not closed.is_set()
    client.leave()
    await closed.wait()


async def test_a_meter_that_ends_leaves_the_socket_that_it_was_given(host: Host) -> None:
    client = await host.client()
    await client.reading()
    client.leave()
    assert host.path.exists()


# Whose a process is


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(holders, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    return tmp_path / "7"


@pytest.mark.parametrize(
    "path",
    [
        "/system.slice/system-llmux\\x2dmodel.slice/{unit}/libpod-payload-0a1b",
        "/machine.slice/vm.scope/system.slice/{unit}",
    ],
)
def test_a_process_in_a_models_unit_is_the_models(proc: Path, path: str) -> None:
    (proc / "cgroup").write_text(f"0::{path.format(unit=names.unit(MODEL))}\n")
    assert holders.model(7) == MODEL


def test_on_hybrid_hosts_too(proc: Path) -> None:
    unit = names.unit(MODEL)
    (proc / "cgroup").write_text(f"4:memory:/\n1:name=systemd:/system.slice/{unit}\n0::/\n")
    assert holders.model(7) == MODEL


def test_another_process_is_nobodys(proc: Path) -> None:
    assert holders.model(7) is None
    (proc / "cgroup").write_text("0::/user.slice/user-0.slice/session-1.scope\n")
    assert holders.model(7) is None


# What is read of a line

READING = Reading(
    1.5, (GpuMemory(0, "A", 100, 60, (Holder(1, "a", "m", 10), Holder(2, "b", None, None))),)
)


def test_a_line_is_the_reading() -> None:
    assert parse(READING.line()) == READING
    assert READING.line().count(b"\n") == 1


@pytest.mark.parametrize("line", [b"", b"{}\n", b"[]\n", b'{"at": 1, "error": "", "gpus": [1]}\n'])
def test_another_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadReading):
        parse(line)


def test_sums() -> None:
    (gpu,) = READING.gpus
    assert (gpu.held, gpu.foreign, gpu.hidden) == ({"m": 10}, 50, 50)
