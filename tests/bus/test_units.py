# SPDX-License-Identifier: MIT
import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dbus_next.aio import MessageBus
from dbus_next.constants import BusType

from llmuxd import caller, names, units
from llmuxd.errors import LlmuxError, SystemdUnreachable, UnitRefused
from llmuxd.state import UnitStatus
from llmuxd.units import Units
from tests.unit.guards import children

from .private_bus import PrivateBus, leave
from .systemd1 import NAME, ROOT, Systemd, Unit

QWEN = "Qwen/Qwen2.5-3B-Instruct"
UNIT = "llmux-model@Qwen-Qwen2.5\\x2d3B\\x2dInstruct.service"
RUNNING = Unit("active", "running", StatusText="serving")


async def connection() -> MessageBus:
    return await MessageBus(bus_type=BusType.SYSTEM).connect()


class Attached:
    """The real Units on the private bus, and what it tells."""

    def __init__(self) -> None:
        self.units = Units()
        self.told: list[tuple[str, UnitStatus]] = []
        self.changed = asyncio.Event()
        self.units.changed = self._changed
        self.bus: MessageBus | None = None

    def _changed(self, name: str, status: UnitStatus) -> None:
        self.told.append((name, status))
        self.changed.set()

    async def attach(self) -> None:
        self.bus = await connection()
        await self.units.attach(self.bus)

    async def until_active(self, name: str, active: str) -> None:
        while self.units.status(name).active != active:
            self.changed.clear()
            await self.changed.wait()

    async def close(self) -> None:
        await self.units.close()
        if self.bus is not None:
            await leave(self.bus)


@pytest.fixture
async def attached(systemd: Systemd) -> AsyncIterator[Attached]:
    found = Attached()
    await found.attach()
    yield found
    await found.close()


def helper() -> int:
    """The process that calls PID 1."""
    (pid,) = [
        pid for pid in children() if b"llmuxd.pid1" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return pid


# Jobs


async def test_start_waits_for_the_job(systemd: Systemd, attached: Attached) -> None:
    systemd.hold_jobs = True
    task = asyncio.create_task(attached.units.start(QWEN))
    await attached.until_active(QWEN, "activating")
    assert not task.done()
    systemd.finish(f"{ROOT}/job/1")
    assert await task == "done"
    assert attached.units.status(QWEN) == UnitStatus("active", "running")
    assert f"StartUnit {UNIT}" in systemd.calls


async def test_stop_waits_for_the_job(systemd: Systemd, attached: Attached) -> None:
    await attached.units.start(QWEN)
    systemd.hold_jobs = True
    task = asyncio.create_task(attached.units.stop(QWEN))
    await attached.until_active(QWEN, "deactivating")
    assert not task.done()
    systemd.finish(f"{ROOT}/job/2")
    assert await task == "done"
    assert attached.units.status(QWEN).down


async def test_a_job_that_did_as_asked_is_not_asked_after(
    systemd: Systemd, attached: Attached
) -> None:
    await attached.units.start(QWEN)
    await attached.units.stop(QWEN)
    assert systemd.calls[-2:] == [f"StartUnit {UNIT}", f"StopUnit {UNIT}"]


async def test_result_of_a_failed_job_is_told(systemd: Systemd, attached: Attached) -> None:
    systemd.fail_jobs = True
    assert await attached.units.start(QWEN) == "failed"
    assert attached.units.status(QWEN).active == "failed"
    assert attached.units.status(QWEN).result == "exit-code"


async def test_job_that_ends_before_the_reply_is_not_waited_for_in_vain(
    systemd: Systemd, attached: Attached
) -> None:
    systemd.early_signal = True
    assert await attached.units.start(QWEN) == "done"
    systemd.fail_jobs = True
    assert await attached.units.start(QWEN) == "failed"


async def test_ends_of_other_jobs_are_not_taken_for_it(
    systemd: Systemd, attached: Attached
) -> None:
    systemd.hold_jobs = True
    one = asyncio.create_task(attached.units.start("a"))
    await attached.until_active("a", "activating")
    two = asyncio.create_task(attached.units.start("b"))
    await attached.until_active("b", "activating")
    systemd.removed(f"{ROOT}/job/99", names.unit("a"), "failed")
    systemd.finish(f"{ROOT}/job/2", "canceled")
    assert await two == "canceled"
    assert not one.done()
    systemd.finish(f"{ROOT}/job/1")
    assert await one == "done"


async def test_many_strange_jobs_are_forgotten(systemd: Systemd, attached: Attached) -> None:
    for number in range(1000, 1000 + 3 * units.REMEMBERED_JOBS):
        systemd.removed(f"{ROOT}/job/{number}", "x.service", "done")
        if number % 100 == 0:
            await systemd.flush()
    assert await attached.units.start("a") == "done"
    assert len(attached.units._ended) <= units.REMEMBERED_JOBS


async def test_job_whose_end_was_not_heard_is_asked_for(
    systemd: Systemd, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "ASK_AGAIN", 0.05)
    systemd.hold_jobs = True
    task = asyncio.create_task(attached.units.start("a"))
    await attached.until_active("a", "activating")
    systemd.asked.clear()
    await systemd.asked.wait()  # it asks, and the job is there
    assert not task.done()
    systemd.finish_unheard(f"{ROOT}/job/1")
    assert await task == "lost"
    assert attached.units.status("a").active == "active"


async def test_what_happened_while_systemd_executed_itself_is_caught_up_with(
    systemd: Systemd, attached: Attached
) -> None:
    await attached.units.start("b")
    systemd.hold_jobs = True
    one = asyncio.create_task(attached.units.start("a"))
    await attached.until_active("a", "activating")
    two = asyncio.create_task(attached.units.stop("b"))
    await attached.until_active("b", "deactivating")
    systemd.reloading(True)
    systemd.finish_unheard(f"{ROOT}/job/2")
    systemd.reloading(False)
    assert await one == "lost"
    assert attached.units.status("a").active == "active"
    assert not two.done()
    systemd.finish(f"{ROOT}/job/3")
    assert await two == "done"


async def test_systemd_that_is_away_for_a_moment_is_waited_for(
    systemd: Systemd, attached: Attached
) -> None:
    assert systemd.bus is not None
    await systemd.bus.release_name(NAME)
    task = asyncio.create_task(attached.units.start("a"))
    done, _ = await asyncio.wait([task], timeout=3 * caller.AWAY_PAUSE)
    assert not done
    await systemd.bus.request_name(NAME)
    assert await task == "done"


async def test_systemd_that_stays_away_is_an_error(
    systemd: Systemd, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "AWAY_LIMIT", 0.05)
    assert systemd.bus is not None
    await systemd.bus.release_name(NAME)
    with pytest.raises(SystemdUnreachable):
        await attached.units.start("a")


# A silent PID 1


async def test_loop_turns_while_pid1_is_silent(systemd: Systemd, attached: Attached) -> None:
    systemd.asked.clear()
    systemd.speaks.clear()
    task = asyncio.create_task(attached.units.start("a"))
    await systemd.asked.wait()
    longest = 0.0
    for _ in range(20):
        begin = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - begin)
    assert not task.done()
    assert longest < 0.5
    systemd.speaks.set()
    assert await task == "done"


async def test_pid1_that_never_answers_is_an_error(
    systemd: Systemd, attached: Attached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "CALL_TIMEOUT", 0.05)
    systemd.speaks.clear()
    with pytest.raises(SystemdUnreachable, match="does not answer"):
        await attached.units.start("a")
    monkeypatch.undo()
    systemd.speaks.set()


async def test_cancelled_call_does_not_spoil_the_next(systemd: Systemd, attached: Attached) -> None:
    systemd.asked.clear()
    systemd.speaks.clear()
    task = asyncio.create_task(attached.units.start("a"))
    await systemd.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    systemd.speaks.set()
    systemd.units[names.unit("b")] = RUNNING
    assert (await attached.units.refresh("b")).active == "active"


# The process that calls


async def test_calls_go_on_when_the_process_was_killed(
    systemd: Systemd, attached: Attached
) -> None:
    os.kill(helper(), signal.SIGKILL)
    assert await attached.units.start("a") == "done"
    assert attached.units.status("a").active == "active"


async def test_call_in_whose_middle_the_process_is_killed_is_made_again(
    systemd: Systemd, attached: Attached
) -> None:
    systemd.asked.clear()
    systemd.speaks.clear()
    task = asyncio.create_task(attached.units.refresh("a"))
    await systemd.asked.wait()
    os.kill(helper(), signal.SIGKILL)
    systemd.units[names.unit("a")] = RUNNING
    systemd.speaks.set()
    assert (await task).active == "active"


async def test_close_ends_the_process(systemd: Systemd, attached: Attached) -> None:
    pid = helper()
    await attached.units.close()
    assert pid not in children()


# Errors


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{NAME}.NoSuchUnit", "Unit llmux-model@a.service not found."),
        (f"{NAME}.TransactionIsDestructive", "Transaction is destructive."),
        ("org.freedesktop.DBus.Error.AccessDenied", "Interactive authentication required."),
    ],
)
async def test_refusal_of_systemd_is_told_in_its_words(
    systemd: Systemd, attached: Attached, name: str, text: str
) -> None:
    systemd.refusals["StartUnit"] = (name, text)
    with pytest.raises(UnitRefused) as caught:
        await attached.units.start("a")
    assert text in str(caught.value) and "\n" not in str(caught.value)
    systemd.refusals.clear()
    assert await attached.units.start("a") == "done"


async def test_refused_thaw_is_told(systemd: Systemd, attached: Attached) -> None:
    systemd.refusals["ThawUnit"] = (f"{NAME}.UnitInactive", "Unit is not active.")
    with pytest.raises(UnitRefused, match="Unit is not active"):
        await attached.units.thaw("a")


# States


async def test_units_that_run_already_are_found(systemd: Systemd) -> None:
    systemd.units = {UNIT: RUNNING, names.unit("a"): Unit("failed", "failed", Result="signal")}
    found = Attached()
    await found.attach()
    assert found.units.status(QWEN) == UnitStatus("active", "running", text="serving")
    assert found.units.status("a").result == "signal"
    assert found.units.status("never heard of") == UnitStatus()
    await found.close()


async def test_signals_change_the_status_and_are_told_once(
    systemd: Systemd, attached: Attached
) -> None:
    systemd.change(UNIT, ActiveState="active", SubState="running", StatusText="serving")
    systemd.change(UNIT, ActiveState="active", SubState="running", StatusText="serving")
    systemd.change("other.service", ActiveState="failed")
    systemd.change(UNIT, ActiveState="failed", SubState="failed", Result="oom-kill")
    await attached.until_active(QWEN, "failed")
    assert {name for name, _ in attached.told} == {QWEN}
    assert [status.active for _, status in attached.told] == [
        "inactive", "active", "active", "failed",
    ][: len(attached.told)]  # fmt: skip
    assert len(attached.told) == len(set(attached.told)) <= 4
    assert attached.units.status(QWEN).text == "serving"


async def test_signals_of_strangers_are_ignored(
    bus: PrivateBus, systemd: Systemd, attached: Attached
) -> None:
    stranger = Systemd()
    stranger.bus = (await bus.connect()).bus
    stranger.change(UNIT, ActiveState="active")
    await stranger.bus.introspect("org.freedesktop.DBus", "/org/freedesktop/DBus")
    systemd.change(names.unit("a"), ActiveState="active")
    await attached.until_active("a", "active")
    assert attached.units.status(QWEN) == UnitStatus()
    await leave(stranger.bus)


async def test_what_an_operator_froze_can_be_thawed(systemd: Systemd, attached: Attached) -> None:
    await attached.units.start("a")
    systemd.change(names.unit("a"), FreezerState="frozen")
    assert (await attached.units.refresh("a")).frozen
    await attached.units.thaw("a")
    assert not attached.units.status("a").frozen
    assert f"ThawUnit {names.unit('a')}" in systemd.calls


async def test_listening_twice_is_no_error(systemd: Systemd, attached: Attached) -> None:
    systemd.refusals["Subscribe"] = (f"{NAME}.AlreadySubscribed", "Client is already subscribed.")
    again = Attached()
    await again.attach()
    await again.close()


async def test_systemd_that_will_not_tell_is_an_error(systemd: Systemd) -> None:
    systemd.refusals["Subscribe"] = ("org.freedesktop.DBus.Error.AccessDenied", "no")
    found = Attached()
    with pytest.raises(SystemdUnreachable, match="Subscribe"):
        await found.attach()
    await found.close()


async def test_bus_without_systemd_is_an_error(bus: PrivateBus) -> None:
    found = Attached()
    with pytest.raises(LlmuxError):
        await found.attach()
    await found.close()


# A bus that goes and comes


async def restart(bus: PrivateBus, systemd: Systemd, attached: Attached) -> None:
    """End the bus and start it again, with systemd on it and without llmuxd."""
    assert attached.bus is not None and systemd.bus is not None
    gone = [asyncio.ensure_future(b.wait_for_disconnect()) for b in (attached.bus, systemd.bus)]
    bus.stop()
    await asyncio.gather(*gone, return_exceptions=True)
    attached.units.detach()
    await leave(attached.bus)
    await leave(systemd.bus)
    bus.start()
    await systemd.attach(bus)


async def test_everything_works_after_a_restart_of_the_bus(
    bus: PrivateBus, systemd: Systemd, attached: Attached
) -> None:
    await attached.units.start("a")
    await restart(bus, systemd, attached)
    await attached.attach()
    assert attached.units.status("a").active == "active"
    assert await attached.units.stop("a") == "done"
    systemd.change(names.unit("a"), ActiveState="failed")
    await attached.until_active("a", "failed")


async def test_unit_that_ended_while_nobody_listened_is_known_to_be_down(
    bus: PrivateBus, systemd: Systemd, attached: Attached
) -> None:
    await attached.units.start("a")
    await restart(bus, systemd, attached)
    systemd.units.clear()
    await attached.attach()
    assert attached.units.status("a").down
    assert attached.told[-1] == ("a", UnitStatus())


async def test_job_whose_end_was_missed_is_lost_and_not_waited_for(
    bus: PrivateBus, systemd: Systemd, attached: Attached
) -> None:
    systemd.hold_jobs = True
    task = asyncio.create_task(attached.units.start("a"))
    await attached.until_active("a", "activating")
    await attached.units.refresh("b")  # calls are answered in turn: the job's path is known
    await restart(bus, systemd, attached)
    systemd.units[names.unit("a")] = RUNNING
    assert await task == "lost"
    assert attached.units.status("a").active == "active"


async def test_first_call_after_a_restart_of_the_bus_works(
    bus: PrivateBus, systemd: Systemd, attached: Attached
) -> None:
    await restart(bus, systemd, attached)
    systemd.units[names.unit("a")] = RUNNING
    assert (await attached.units.refresh("a")).active == "active"


async def test_bus_that_dies_while_systemd_is_silent_is_noticed(
    bus: PrivateBus, systemd: Systemd
) -> None:
    systemd.speaks.clear()
    found = Attached()
    task = asyncio.create_task(found.attach())
    await systemd.asked.wait()
    bus.stop()
    async with asyncio.timeout(2):
        with pytest.raises((OSError, EOFError, LlmuxError)):
            await task
    await found.close()
