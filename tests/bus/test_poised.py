# SPDX-License-Identifier: MIT
"""Units that begin to start before their place is free: what systemd is asked, what is shown."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmuxd import files, names
from llmuxd.hold import WAITING, Hold, Waiting
from llmuxd.state import UnitStatus

from .systemd1 import ROOT, Systemd, Unit
from .test_units import Attached

UNIT = names.unit("a")
BEFORE = UnitStatus(text="off its GPUs, tidying up")


@pytest.fixture
async def attached(systemd: Systemd) -> AsyncIterator[Attached]:
    files.runtime_root().mkdir(parents=True)
    found = Attached()
    await found.attach()
    yield found
    await found.close()


@pytest.fixture
async def poised(systemd: Systemd, attached: Attached) -> Attached:
    """With model a poised: job 1 is its start."""
    systemd.units[UNIT] = Unit(StatusText=BEFORE.text)
    await attached.units.refresh("a")
    systemd.hold_jobs = True
    attached.told.clear()
    attached.units.poise("a")
    await until_called(systemd, f"StartUnit {UNIT}")
    systemd.change(UNIT, StatusText=WAITING)
    await heard(systemd, attached)
    return attached


async def until_called(systemd: Systemd, call: str, times: int = 1) -> None:
    while systemd.calls.count(call) < times:
        systemd.asked.clear()
        await systemd.asked.wait()


async def heard(systemd: Systemd, attached: Attached) -> None:
    """All that systemd has told until now."""
    name = f"marker{len(systemd.calls)}"
    systemd.change(names.unit(name), ActiveState="reloading")
    await attached.until_active(name, "reloading")
    attached.told = [(told, status) for told, status in attached.told if told != name]


async def over(attached: Attached) -> None:
    """Nothing is on its way any more."""
    while tasks := [*attached.units._poised._tasks]:
        await asyncio.wait(tasks)
    assert not attached.units.poised


def is_held() -> bool:
    return (files.runtime_root() / f"{names.slug('a')}.hold").exists()


async def test_nobody_sees_it(systemd: Systemd, poised: Attached) -> None:
    assert systemd.units[UNIT].ActiveState == "activating"
    assert poised.units.status("a") == await poised.units.refresh("a") == BEFORE
    assert not poised.told and "a" not in poised.units.running()
    assert poised.units.poised == {"a"}
    assert is_held()


async def test_a_start_is_the_job_that_waits(systemd: Systemd, poised: Attached) -> None:
    task = asyncio.create_task(poised.units.start("a"))
    await poised.until_active("a", "activating")
    assert not is_held() and not poised.units.poised and not task.done()
    systemd.finish(f"{ROOT}/job/1")
    assert await task == "done"
    assert poised.units.status("a").up
    assert systemd.calls.count(f"StartUnit {UNIT}") == 1


async def test_a_start_that_fails_then_is_not_begun_anew(
    systemd: Systemd, poised: Attached
) -> None:
    task = asyncio.create_task(poised.units.start("a"))
    await poised.until_active("a", "activating")
    systemd.change(UNIT, StatusText="failed: no such image")
    systemd.finish(f"{ROOT}/job/1", "failed")
    assert await task == "failed"
    assert systemd.calls.count(f"StartUnit {UNIT}") == 1


async def test_one_that_was_stopped_just_before_is_started_anew(
    systemd: Systemd, poised: Attached
) -> None:
    task = asyncio.create_task(poised.units.start("a"))
    await poised.until_active("a", "activating")
    systemd.finish(f"{ROOT}/job/1", "canceled")
    systemd.change(UNIT, ActiveState="inactive", Result="success")
    await until_called(systemd, f"StartUnit {UNIT}", times=2)
    systemd.finish(f"{ROOT}/job/2")
    assert await task == "done"


async def test_withdrawn_it_is_stopped_unseen(systemd: Systemd, poised: Attached) -> None:
    poised.units.withdraw("a")
    poised.units.withdraw("a")
    await until_called(systemd, f"StopUnit {UNIT}")
    await heard(systemd, poised)
    assert systemd.units[UNIT].ActiveState == "deactivating"
    assert poised.units.status("a") == BEFORE and is_held()
    start = asyncio.create_task(poised.units.start("a"))
    systemd.finish(f"{ROOT}/job/1", "canceled")
    systemd.change(UNIT, ActiveState="deactivating", Result="success")
    systemd.finish(f"{ROOT}/job/2")
    await until_called(systemd, f"StartUnit {UNIT}", times=2)
    assert not is_held() and not poised.units.poised
    systemd.finish(f"{ROOT}/job/3")
    assert await start == "done"


async def test_stopped_by_hand_it_is_poised_no_more(systemd: Systemd, poised: Attached) -> None:
    systemd.change(UNIT, ActiveState="deactivating")
    await poised.until_active("a", "deactivating")
    # It is on its way: who has stopped it may be about to start it.
    poised.units.withdraw("a")
    systemd.hold_jobs = False
    systemd.finish(f"{ROOT}/job/1", "canceled")
    await over(poised)
    # As it was before, to the last word.
    systemd.change(UNIT, ActiveState="inactive", StatusText=BEFORE.text)
    await poised.until_active("a", "inactive")
    assert not is_held() and f"StopUnit {UNIT}" not in systemd.calls
    # Nobody takes it for one that is on its way for ever.
    assert poised.told[-1] == ("a", poised.units.status("a"))
    assert await poised.units.start("a") == "done"


@pytest.mark.parametrize("text", [BEFORE.text, WAITING])
async def test_taken_back_it_is_told_as_it_is(
    systemd: Systemd, attached: Attached, text: str
) -> None:
    systemd.units[UNIT] = Unit(StatusText=text)
    await attached.units.refresh("a")
    attached.units.poise("a")
    await until_called(systemd, f"StartUnit {UNIT}")
    attached.units.withdraw("a")
    await over(attached)
    assert attached.units.status("a").down
    assert not attached.told or attached.told[-1] == ("a", attached.units.status("a"))


async def test_one_begun_by_hand_is_not_taken_back(systemd: Systemd, poised: Attached) -> None:
    """Its helper was past its wait before it could be held back."""
    systemd.change(UNIT, StatusText="restoring the checkpoint")
    await poised.until_active("a", "activating")
    poised.units.withdraw("a")
    assert not is_held() and not poised.units.poised
    systemd.change(UNIT, ActiveState="deactivating")
    await poised.until_active("a", "deactivating")
    systemd.finish(f"{ROOT}/job/1", "canceled")
    await over(poised)
    assert f"StopUnit {UNIT}" not in systemd.calls


async def test_a_stop_that_may_not_be_over_lets_nobody_go_on(
    systemd: Systemd, poised: Attached
) -> None:
    here = Waiting("a")
    poised.units.withdraw("a")
    await until_called(systemd, f"StopUnit {UNIT}")
    systemd.removed(f"{ROOT}/job/2", UNIT, "timeout")
    systemd.removed(f"{ROOT}/job/1", UNIT, "canceled")
    await over(poised)
    assert not here.wait(5)


async def test_one_that_came_up_by_itself_is_left_alone(systemd: Systemd, poised: Attached) -> None:
    """It was started by hand, and past its wait already."""
    systemd.change(UNIT, StatusText="restoring the checkpoint")
    await poised.until_active("a", "activating")
    systemd.finish(f"{ROOT}/job/1")
    await poised.until_active("a", "active")
    await over(poised)
    assert not is_held() and f"StopUnit {UNIT}" not in systemd.calls


async def test_one_that_systemd_refuses_is_not_poised(systemd: Systemd, attached: Attached) -> None:
    systemd.refusals["StartUnit"] = ("org.example.No", "no")
    attached.units.poise("a")
    await over(attached)
    assert not is_held()
    systemd.refusals.clear()
    assert await attached.units.start("a") == "done"


async def test_only_one_that_is_down_is_poised(systemd: Systemd, attached: Attached) -> None:
    await attached.units.start("a")
    attached.units.poise("a")
    assert not attached.units.poised


async def test_nobody_is_held_at_the_end(systemd: Systemd, poised: Attached) -> None:
    here = Waiting("a")
    await poised.units.close()
    assert not here.wait(5)


async def test_what_was_left_of_another_llmuxds_is_in_nobodys_way(
    systemd: Systemd, attached: Attached
) -> None:
    Hold("a").drop()
    assert is_held()
    assert await attached.units.start("a") == "done"
    assert not is_held()
