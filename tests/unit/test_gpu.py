# SPDX-License-Identifier: MIT
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmuxd.model import gpu
from llmuxd.model.gpu import Action, CudaError, Driver, NoDriver, NotDone, State, TimedOut

from . import fake_cuda
from .fake_cuda import FakeCuda

OLD = bytes(range(16))
NEW = bytes(range(100, 116))


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    return Driver(str(cuda.library))


# What goes over the wire; the layouts are those of cuda.h.


def test_lock_has_its_milliseconds_first_and_zeroes_behind(cuda: FakeCuda, driver: Driver) -> None:
    driver.lock(cuda.process(12), 66.051)
    (call,) = cuda.calls()
    assert (call.name, call.pid) == ("Lock", 12)
    assert call.argument == (66051).to_bytes(4, "little") + bytes(60)


def test_lock_is_never_without_a_limit(cuda: FakeCuda, driver: Driver) -> None:
    driver.lock(cuda.process(12), 0.0)
    assert cuda.calls()[0].argument == b"\1" + bytes(63)


def test_checkpoint_and_unlock_have_64_zeroes(cuda: FakeCuda, driver: Driver) -> None:
    driver.checkpoint(cuda.process(12, State.LOCKED))
    driver.unlock(cuda.process(13, State.LOCKED))
    told = [(call.name, call.pid, call.argument) for call in cuda.calls()]
    assert told == [("Checkpoint", 12, bytes(64)), ("Unlock", 13, bytes(64))]


def test_restore_without_a_map_has_64_zeroes(cuda: FakeCuda, driver: Driver) -> None:
    driver.restore(cuda.process(12, State.CHECKPOINTED))
    initialized, restored = cuda.calls()
    assert (initialized.name, initialized.argument) == ("cuInit", bytes(4))
    assert (restored.name, restored.pid) == ("Restore", 12)
    assert (restored.argument, restored.pairs) == (bytes(64), b"")


def test_restore_with_a_map_points_to_pairs(cuda: FakeCuda, driver: Driver) -> None:
    driver.restore(cuda.process(12, State.CHECKPOINTED), [(OLD, NEW), (NEW, OLD)])
    restored = cuda.calls()[-1]
    assert restored.pairs == OLD + NEW + NEW + OLD
    assert restored.argument[:8] != bytes(8)
    assert restored.argument[8:] == b"\2" + bytes(55)


def test_only_a_restore_initializes_and_only_the_first(cuda: FakeCuda, driver: Driver) -> None:
    gpu.suspend(driver, [cuda.process(12), cuda.process(13)], 5.0)
    assert "cuInit" not in cuda.asked()
    gpu.resume(driver, [12, 13], 5.0)
    gpu.suspend(driver, [12, 13], 5.0)
    gpu.resume(driver, [12, 13], 5.0)
    assert cuda.asked().count("cuInit") == 1


def test_initialization_that_fails_is_told(cuda: FakeCuda, driver: Driver) -> None:
    cuda.monkeypatch.setenv("FAKE_CUDA_CODES", "cuInit:0=3")
    with pytest.raises(CudaError, match="initialization .* of process 12: CUDA_ERROR_NOT_INIT"):
        driver.restore(cuda.process(12, State.CHECKPOINTED))


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (State.RUNNING, "running"),
        (State.LOCKED, "locked"),
        (State.CHECKPOINTED, "checkpointed"),
        (State.FAILED, "failed"),
    ],
)
def test_states_and_their_words(cuda: FakeCuda, driver: Driver, state: State, word: str) -> None:
    told = driver.state(cuda.process(12, state))
    assert (told, str(told)) == (state, word)


def test_state_that_nobody_knows_is_failed(cuda: FakeCuda, driver: Driver) -> None:
    (cuda.directory / "12").write_text("7")
    assert driver.state(12) is State.FAILED


def test_restore_thread(cuda: FakeCuda, driver: Driver) -> None:
    assert driver.restore_tid(cuda.process(12)) == 13


# Errors.


@pytest.mark.parametrize("function", ["GetState", "GetRestoreThreadId", *(map(str.title, Action))])
def test_each_call_has_its_codes(cuda: FakeCuda, driver: Driver, function: str) -> None:
    cuda.fail(f"{function}:12=401")
    calls: dict[str, Callable[[], object]] = {
        "GetState": lambda: driver.state(12),
        "GetRestoreThreadId": lambda: driver.restore_tid(12),
        "Lock": lambda: driver.lock(12, 5.0),
        "Checkpoint": lambda: driver.checkpoint(12),
        "Restore": lambda: driver.restore(12),
        "Unlock": lambda: driver.unlock(12),
    }
    with pytest.raises(CudaError) as caught:
        calls[function]()
    assert (caught.value.code, caught.value.name) == (401, "CUDA_ERROR_ILLEGAL_STATE")
    assert str(caught.value).endswith(
        " of process 12: CUDA_ERROR_ILLEGAL_STATE (401):"
        " the operation cannot be performed in the present state"
    )


def test_code_that_the_driver_has_no_name_for(cuda: FakeCuda, driver: Driver) -> None:
    cuda.fail("Lock:12=4711")
    with pytest.raises(CudaError, match=r"an unknown error \(4711\)"):
        driver.lock(12, 5.0)


def test_no_driver() -> None:
    with pytest.raises(NoDriver, match=r"no NVIDIA driver: .*No such file"):
        Driver("/nowhere/libcuda.so.1")


def test_driver_before_570(tmp_path: Path) -> None:
    with pytest.raises(NoDriver, match="570 and newer"):
        Driver(str(fake_cuda.compiled(tmp_path, "-DTOO_OLD", "-Wno-unused-function")))


# Several processes.


def test_find_leaves_out_who_has_no_cuda(cuda: FakeCuda, driver: Driver) -> None:
    cuda.process(12)
    cuda.process(14, State.CHECKPOINTED)
    cuda.fail("GetState:15=304", "GetState:16=801")
    found = gpu.find(driver, range(11, 17))
    assert found == {12: State.RUNNING, 14: State.CHECKPOINTED}


def test_find_takes_no_other_error_for_no_cuda(cuda: FakeCuda, driver: Driver) -> None:
    cuda.fail("GetState:12=999")
    with pytest.raises(NotDone, match=r"\(999\)"):
        gpu.find(driver, [cuda.process(12), cuda.process(13)])


def test_suspend_locks_all_before_it_checkpoints_any(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(12), cuda.process(13), cuda.process(14)]
    gpu.suspend(driver, pids, 5.0)
    assert {cuda.state(pid) for pid in pids} == {State.CHECKPOINTED}
    assert [name for name, _ in cuda.steps()] == ["Lock"] * 3 + ["Checkpoint"] * 3


def test_resume_restores_all_before_it_unlocks_any(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(pid, State.CHECKPOINTED) for pid in (12, 13)]
    gpu.resume(driver, pids, 5.0, [(OLD, NEW)])
    assert {cuda.state(pid) for pid in pids} == {State.RUNNING}
    assert [name for name, _ in cuda.steps()] == ["Restore"] * 2 + ["Unlock"] * 2
    assert [call.pairs for call in cuda.calls() if call.name == "Restore"] == [OLD + NEW] * 2


def test_suspend_and_resume_go_on_from_where_each_is(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(int(state) + 10, state) for state in list(State)[:3]]
    gpu.suspend(driver, pids, 5.0)
    assert sorted(cuda.steps()) == [("Checkpoint", 10), ("Checkpoint", 11), ("Lock", 10)]
    cuda.process(11, State.LOCKED)
    cuda.process(12, State.RUNNING)
    gpu.resume(driver, pids, 5.0)
    assert sorted(cuda.steps()[3:]) == [("Restore", 10), ("Unlock", 10), ("Unlock", 11)]


def test_nothing_to_do_is_no_call(cuda: FakeCuda, driver: Driver) -> None:
    gpu.suspend(driver, [], 5.0)
    gpu.resume(driver, [cuda.process(12)], 5.0)
    assert cuda.calls() == []


def test_one_that_cannot_be_locked_unlocks_the_others(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(12), cuda.process(13), cuda.process(14)]
    cuda.fail("Lock:13=600")
    with pytest.raises(NotDone, match=r"^lock of process 13: CUDA_ERROR_NOT_READY") as caught:
        gpu.suspend(driver, pids, 5.0)
    assert {cuda.state(pid) for pid in pids} == {State.RUNNING}
    assert "Checkpoint" not in [name for name, _ in cuda.steps()]
    assert not caught.value.timed_out and caught.value.left == {}


def test_one_that_cannot_be_checkpointed_brings_all_back(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(12), cuda.process(13, State.LOCKED), cuda.process(14)]
    pids.append(cuda.process(15, State.CHECKPOINTED))
    cuda.fail("Checkpoint:14=401")
    with pytest.raises(NotDone) as caught:
        gpu.suspend(driver, pids, 5.0)
    states = [cuda.state(pid) for pid in pids]
    assert states == [State.RUNNING, State.LOCKED, State.RUNNING, State.CHECKPOINTED]
    assert list(caught.value.errors) == [14]
    error = caught.value.errors[14]
    assert isinstance(error, CudaError) and error.code == 401


def test_one_that_cannot_be_restored_parks_the_others_again(cuda: FakeCuda, driver: Driver) -> None:
    pids = [cuda.process(pid, State.CHECKPOINTED) for pid in (12, 13)]
    cuda.fail("Restore:13=999")
    with pytest.raises(NotDone, match=r"^restore of process 13"):
        gpu.resume(driver, pids, 5.0)
    assert {cuda.state(pid) for pid in pids} == {State.CHECKPOINTED}
    assert ("Unlock", 12) not in cuda.steps()


def test_what_cannot_be_put_back_is_told(cuda: FakeCuda, driver: Driver) -> None:
    cuda.process(12)
    cuda.fail("Checkpoint:13=401", "Restore:12=999")
    with pytest.raises(NotDone, match="checkpoint of process 13.*not put back: restore of") as c:
        gpu.suspend(driver, [12, cuda.process(13)], 5.0)
    assert list(c.value.left) == [12]
    assert (cuda.state(12), cuda.state(13)) == (State.CHECKPOINTED, State.RUNNING)


def test_failed_process_is_refused_and_holds_nobody(cuda: FakeCuda, driver: Driver) -> None:
    with pytest.raises(NotDone, match="process 13: CUDA_ERROR_ILLEGAL_STATE"):
        gpu.suspend(driver, [cuda.process(12), cuda.process(13, State.FAILED)], 5.0)
    assert cuda.state(12) is State.RUNNING


def test_process_without_cuda_is_told_before_anything_is_done(
    cuda: FakeCuda, driver: Driver
) -> None:
    with pytest.raises(NotDone, match="state of process 13: CUDA_ERROR_NOT_INITIALIZED"):
        gpu.suspend(driver, [cuda.process(12), 13], 5.0)
    assert cuda.calls() == []


def test_call_that_hangs_is_given_up_and_the_others_brought_back(
    cuda: FakeCuda, driver: Driver
) -> None:
    pids = [cuda.process(12), cuda.process(13)]
    cuda.fail("Checkpoint:13=hang")
    begin = time.monotonic()
    with pytest.raises(NotDone, match=r"checkpoint of process 13: .* within 0\.2 s") as caught:
        gpu.suspend(driver, pids, 0.2)
    assert 0.2 <= time.monotonic() - begin < 3.0
    assert caught.value.timed_out and isinstance(caught.value.errors[13], TimedOut)
    # Nobody knows what becomes of the one that hangs: it is left alone.
    assert (cuda.state(12), cuda.state(13)) == (State.RUNNING, State.LOCKED)
    assert ("Unlock", 13) not in cuda.steps()


def test_lock_waits_for_the_drivers_own_answer(cuda: FakeCuda, driver: Driver) -> None:
    cuda.fail("Lock:12=hang")
    cuda.monkeypatch.setattr(gpu, "_GRACE", 0.2)
    begin = time.monotonic()
    with pytest.raises(NotDone, match="lock of process 12"):
        gpu.act(driver, Action.LOCK, [cuda.process(12)], 0.1)
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("action", list(Action))
def test_action_on_all_or_none(cuda: FakeCuda, driver: Driver, action: Action) -> None:
    before, after = {
        Action.LOCK: (State.RUNNING, State.LOCKED),
        Action.CHECKPOINT: (State.LOCKED, State.CHECKPOINTED),
        Action.RESTORE: (State.CHECKPOINTED, State.LOCKED),
        Action.UNLOCK: (State.LOCKED, State.RUNNING),
    }[action]
    pids = [cuda.process(12, before), cuda.process(13, before)]
    assert gpu.act(driver, action, pids, 5.0) is after
    assert {cuda.state(pid) for pid in pids} == {after}
    cuda.process(12, before)
    cuda.process(13, before)
    cuda.fail(f"{action.title()}:13=999")
    with pytest.raises(NotDone, match=f"^{action} of process 13"):
        gpu.act(driver, action, pids, 5.0)
    assert {cuda.state(pid) for pid in pids} == {before}


def test_single_action_is_a_single_call(cuda: FakeCuda, driver: Driver) -> None:
    gpu.act(driver, Action.CHECKPOINT, [cuda.process(12, State.LOCKED)], 5.0)
    assert cuda.asked() == ["cuCheckpointProcessCheckpoint"]


def test_bug_in_a_thread_is_no_success(cuda: FakeCuda, driver: Driver) -> None:
    cuda.process(12, State.CHECKPOINTED)
    with pytest.raises(ValueError, match="same size"):
        gpu.resume(driver, [12], 5.0, [(OLD[:3], NEW)])
