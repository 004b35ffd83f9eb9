# SPDX-License-Identifier: MIT
"""What does not work is tried again after a while, and not at once for ever."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from llmuxd import memory
from llmuxd.errors import SystemdUnreachable

from .fake_units import UP, a_model
from .simulated import simulated
from .stage import on_stage

A = a_model("a")


def unreachable(calls: list[str]) -> Callable[[str], Coroutine[None, None, None]]:
    """systemd does not answer; each call is noted."""

    async def call(name: str) -> None:
        calls.append(name)
        # Nobody's clock moves on where it is called at once again.
        await asyncio.sleep(0 if len(calls) < 100 else 1)
        raise SystemdUnreachable("systemd does not answer")

    return call


@simulated
async def test_a_unit_that_is_up_is_looked_for_while_systemd_does_not_answer() -> None:
    calls: list[str] = []
    async with on_stage(A) as stage:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage.units, "refresh", unreachable(calls))
            stage.units.up_by_hand("a")
            await asyncio.sleep(60)
        assert 0 < len(calls) < 10
        await stage.ask("a")
        assert stage.units.log == []


@simulated
async def test_one_that_cannot_be_thawed_is_asked_to_leave_while_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    async with on_stage(A) as stage:
        await stage.ask("a")
        monkeypatch.setattr(stage.units, "thaw", unreachable(calls))
        monkeypatch.setattr(memory, "short", lambda: True)
        stage.units.by_hand("a", replace(UP, freezer="frozen"))
        await asyncio.sleep(60)
        assert 0 < len(calls) < 10
