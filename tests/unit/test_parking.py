# SPDX-License-Identifier: MIT
import asyncio
from dataclasses import replace

import pytest
from aiohttp import web

from llmuxd import files
from llmuxd.model import activation, gpu, parking
from llmuxd.model.activation import Activation
from llmuxd.model.gpu import State
from llmuxd.model.parking import CannotPark, CannotWake, Parked

from .engine import Engine, an_engine
from .fake_cuda import FakeCuda
from .fake_units import an_activation

API, CORE = 12, 13


class Vllm:
    """vLLM's sleep mode and completions, as far as they are asked for."""

    def __init__(self, server: Engine):
        self.run = replace(an_activation("a", server.port), canary=True)
        self.asleep = False
        self.text = " dog"
        self.sleeps = True
        self.posts: list[str] = []
        server.answer = self.answer

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.posts.append(request.raw_path)
        match request.path:
            case "/v1/models":
                return web.json_response({"data": [{"id": "a"}]})
            case "/v1/completions":
                return web.json_response({"choices": [{"text": self.text}]})
            case "/is_sleeping" if self.sleeps:
                return web.json_response({"is_sleeping": self.asleep})
            case "/sleep" | "/wake_up" if self.sleeps:
                self.asleep = request.path == "/sleep"
                return web.Response()
            case _:
                return web.Response(status=404)

    async def park(self) -> None:
        await asyncio.to_thread(parking.park, self.run)

    async def wake(self) -> None:
        await asyncio.to_thread(parking.wake, self.run)


@pytest.fixture(autouse=True)
def unit(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit's processes: conmon without CUDA, and vLLM's two with it."""
    files.runtime_root().mkdir(parents=True, exist_ok=True)
    cuda.process(API)
    cuda.process(CORE)
    monkeypatch.setattr(parking, "_processes", lambda: [11, API, CORE])
    monkeypatch.setattr(gpu, "LIBRARY", str(cuda.library))


async def test_a_park_and_its_reverse(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        assert vllm.asleep and activation.off_gpu("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.CHECKPOINTED] * 2
        await vllm.wake()
        assert not vllm.asleep and not activation.off_gpu("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.RUNNING] * 2
        assert vllm.posts == ["/v1/completions", "/sleep?level=1", "/wake_up", "/v1/completions"]


async def test_a_server_without_sleep_mode_is_parked_as_it_stands(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        vllm.sleeps = False
        await vllm.park()
        await vllm.wake()
        assert vllm.posts == ["/v1/completions", "/v1/completions"]
        assert cuda.steps()[0][0] == "Lock"


@pytest.mark.parametrize("order", ["Lock:13=600", "Checkpoint:12=2"])
async def test_a_driver_that_refuses_leaves_the_model_as_it_was(cuda: FakeCuda, order: str) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        cuda.fail(order)
        with pytest.raises(CannotPark, match="CUDA could not be suspended"):
            await vllm.park()
        assert not vllm.asleep and not activation.off_gpu("a")
        assert [cuda.state(pid) for pid in (API, CORE)] == [State.RUNNING] * 2


async def test_a_host_without_a_driver_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libno-such-cuda.so.1")
    async with an_engine() as server:
        vllm = Vllm(server)
        with pytest.raises(CannotPark):
            await vllm.park()
        assert not vllm.asleep and not activation.off_gpu("a")


async def test_a_resume_that_fails_is_told_and_stays_known(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        cuda.fail("Restore:13=2")
        with pytest.raises(CannotWake, match="does not come back"):
            await vllm.wake()
        assert activation.off_gpu("a")


async def test_another_answer_than_before_is_no_comeback() -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.park()
        vllm.text = "!!!!"
        with pytest.raises(CannotWake, match="its canary says"):
            await vllm.wake()
        assert activation.off_gpu("a")


async def test_what_was_not_parked_has_nothing_to_wake(cuda: FakeCuda) -> None:
    async with an_engine() as server:
        vllm = Vllm(server)
        await vllm.wake()
        assert vllm.posts == [] and cuda.asked() == []


def test_a_record_that_cannot_be_read_is_none() -> None:
    activation.parked_path("a").write_text("{")
    assert Parked.load("a") is None
    assert Activation.load("a") is None
