# SPDX-License-Identifier: MIT
import asyncio

import pytest

from llmuxd.config import Sleep
from llmuxd.model import vllm
from llmuxd.model.canary import ask_canary
from llmuxd.model.server import WrongAnswer

from .engine import an_engine
from .fake_vllm import FakeVllm


async def nap(port: int, how: Sleep) -> vllm.Nap:
    """Choose and carry out."""
    chosen = await asyncio.to_thread(vllm.nap, port, how)
    await asyncio.to_thread(vllm.let_go, port, chosen)
    return chosen


@pytest.mark.parametrize("releases", [False, True])
@pytest.mark.parametrize(
    ("how", "gone"),
    [
        (Sleep.LEVEL_1, {"weights", "kv_cache"}),
        (Sleep.LEVEL_2, {"weights", "kv_cache"}),
        (Sleep.KV, {"kv_cache"}),
    ],
)
async def test_what_sleeps_comes_back_whole(how: Sleep, gone: set[str], releases: bool) -> None:
    async with an_engine() as server:
        fake = FakeVllm(server, releases=releases)
        before = await asyncio.to_thread(ask_canary, server.port, "Once")
        chosen = await nap(server.port, how)
        assert fake.asleep == gone and fake.still
        assert fake.weights_lost is (how is Sleep.LEVEL_2)
        await asyncio.to_thread(vllm.take_up, server.port, chosen.back)
        assert fake.awake
        assert await asyncio.to_thread(ask_canary, server.port, "Once") == before


async def test_level_2_reads_the_weights_before_the_cache_is_there_again() -> None:
    async with an_engine() as server:
        fake = FakeVllm(server)
        chosen = await nap(server.port, Sleep.LEVEL_2)
        await asyncio.to_thread(vllm.take_up, server.port, chosen.back)
        assert fake.posts == [
            "/sleep?level=2",
            "/wake_up?tags=weights",
            "/collective_rpc reload_weights",
            "/wake_up?tags=kv_cache",
            "/reset_prefix_cache",
        ]


async def test_without_its_extension_a_newer_vllm_drops_the_cache_itself() -> None:
    async with an_engine() as server:
        fake = FakeVllm(server, releases=True)
        fake.extension = False
        chosen = await nap(server.port, Sleep.KV)
        await asyncio.to_thread(vllm.take_up, server.port, chosen.back)
        assert fake.awake
        assert not any("collective_rpc" in post for post in fake.posts)


@pytest.mark.parametrize("how", [Sleep.OFF, Sleep.KV, Sleep.LEVEL_1, Sleep.LEVEL_2])
async def test_a_server_without_sleep_mode_is_left_alone(how: Sleep) -> None:
    async with an_engine() as server:
        fake = FakeVllm(server, sleeps=False)
        assert await nap(server.port, how) == vllm.Nap()
        assert fake.posts == []


@pytest.mark.parametrize("how", [Sleep.KV, Sleep.LEVEL_1, Sleep.LEVEL_2])
async def test_one_that_does_not_let_go_goes_on_as_it_was(how: Sleep) -> None:
    async with an_engine() as server:
        fake = FakeVllm(server)
        fake.extension = False
        fake.refused = {f"/sleep?level={level}" for level in (1, 2)}
        with pytest.raises(WrongAnswer, match="refuses .* with status 500"):
            await nap(server.port, how)
        assert fake.awake


@pytest.mark.parametrize("step", vllm._LEVEL_2.back)
async def test_one_that_does_not_wake_up_is_told(step: str) -> None:
    async with an_engine() as server:
        fake = FakeVllm(server)
        chosen = await nap(server.port, Sleep.LEVEL_2)
        fake.refused = {step}
        with pytest.raises(WrongAnswer, match="refuses"):
            await asyncio.to_thread(vllm.take_up, server.port, chosen.back)


@pytest.mark.parametrize(
    ("releases", "extension", "offered"),
    [
        (False, False, "2 off 1"),
        (True, False, "2 kv off 1"),
        (False, True, "2 kv off 1"),
    ],
)
async def test_it_offers_what_it_can_do_the_one_that_pins_memory_last(
    releases: bool, extension: bool, offered: str
) -> None:
    async with an_engine() as server:
        FakeVllm(server, releases=releases)
        found = await asyncio.to_thread(vllm.offers, server.port, extension=extension)
        assert " ".join(found) == offered


async def test_without_sleep_mode_it_offers_nothing() -> None:
    async with an_engine() as server:
        FakeVllm(server, sleeps=False, releases=True)
        assert await asyncio.to_thread(vllm.offers, server.port, extension=True) == ()
