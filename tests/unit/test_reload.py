# SPDX-License-Identifier: MIT
"""Another configuration, whatever is under way."""

import asyncio
from dataclasses import replace

import pytest

from llmuxd.errors import NoSuchModel
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.policy import Gpu
from llmuxd.state import State

from .fake_units import a_model
from .simulated import simulated
from .stage import on_stage

A, B, C = a_model("a"), a_model("b"), a_model("c")
GIB = 1 << 30


@simulated
async def test_models_are_in_the_files_order_after_a_reload() -> None:
    async with on_stage(B, A) as stage:
        client = stage.client("b")
        await client.admitted.wait()
        stage.reload(C, A)
        assert stage.switcher.names() == ["c", "a", "b"]  # the last one drains
        await client.finish()
        await stage.until(lambda: stage.switcher.names() == ["c", "a"])


@simulated
async def test_reload_adds_a_model() -> None:
    async with on_stage(A) as stage:
        stage.reload(A, B)
        assert stage.switcher.names() == ["a", "b"]
        await stage.ask("b")


@simulated
async def test_reload_that_removes_a_serving_model_lets_its_requests_end() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.reload(B)
        await stage.until_state("a", State.DRAINING)
        assert isinstance(await stage.client("a").error(), NoSuchModel)
        assert stage.units.log == ["start a"]
        await client.finish()
        await stage.until(lambda: stage.switcher.names() == ["b"])
        assert stage.units.log == ["start a", "stop a"]
        assert Checkpoint.load("a") is None


@simulated
async def test_reload_that_removes_a_model_refuses_its_queue() -> None:
    async with on_stage(A, B) as stage:
        one = stage.client("a")
        await one.admitted.wait()
        waiting = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        stage.reload(A)
        assert isinstance(await waiting.error(), NoSuchModel)
        await stage.until_state("a", State.SERVING)
        assert stage.switcher.names() == ["a"]


@simulated
async def test_reload_that_brings_a_leaving_model_back_keeps_it() -> None:
    async with on_stage(A) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.reload(B)
        await stage.until_state("a", State.DRAINING)
        stage.reload(A)
        await client.finish()
        await stage.until_idle()
        await stage.settle()
        assert stage.switcher.names() == ["a"]
        await stage.ask("a")


@simulated
async def test_running_model_keeps_its_gpu_until_it_leaves() -> None:
    async with on_stage(A, B) as stage:
        client = stage.client("a")
        await client.admitted.wait()
        stage.reload(a_model("a", 1), B)
        other = stage.client("b")
        await stage.until_state("a", State.DRAINING)
        assert stage.units.log == ["start a"]
        await client.finish()
        await other.admitted.wait()
        await stage.ask("a")
        assert stage.units.log == ["start a", "stop a", "start b", "start a"]


@simulated
async def test_removed_model_that_would_not_stop_is_asked_again() -> None:
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a", times=1)
        stage.reload(B)
        await stage.until(lambda: "stop a" in stage.units.log)
        await stage.ask("b")
        await stage.until(lambda: stage.switcher.names() == ["b"])


@simulated
async def test_a_model_of_a_removed_ones_name_is_another() -> None:
    """Removed twice, and the first time it would not stop: that is tried again no more."""
    async with on_stage(A, B) as stage:
        await stage.ask("a")
        stage.units.break_verb("stop", "a", times=1)
        for models in ((B,), (A, B), (B,)):
            stage.reload(*models)
            await asyncio.sleep(1)
        assert stage.switcher.names() == ["b"]
        stage.reload(A, B)
        stream = stage.client("a")
        await stream.admitted.wait()
        await asyncio.sleep(100)
        assert not stream.cut and stage.switcher.names() == ["a", "b"]


@pytest.mark.parametrize("kind", ["switch", "preload", "warmup"])
@simulated
async def test_a_job_that_has_only_begun_fails_where_its_model_is_removed(kind: str) -> None:
    async with on_stage(A, B) as stage:
        job = getattr(stage.switcher, kind)("a")
        stage.reload(B)
        assert await stage.result(job) == "failed"
        assert isinstance(job.error, NoSuchModel)


@simulated
async def test_one_that_is_removed_is_not_preloaded_and_the_others_are() -> None:
    measured = asyncio.Event()

    async def gauge() -> dict[int, Gpu]:
        await measured.wait()
        return {0: Gpu(24 * GIB)}

    a, b = (replace(model, preload=True, vram=8 * GIB) for model in (A, B))
    async with on_stage(a, b, run=False, gauge=gauge) as stage:
        await stage.take_over()
        await stage.settle()
        stage.reload(b)
        await stage.settle()
        measured.set()
        await stage.until_state("b", State.SERVING)
