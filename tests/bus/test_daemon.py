# SPDX-License-Identifier: MIT
"""The whole of llmuxd as a process, on a private bus with a mock of systemd."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from llmuxd import accepted, files, names
from tests.unit.engine import Engine, an_engine
from tests.unit.fake_units import an_activation

from .llmuxd import Daemon, a_daemon, free_port
from .polkit import Polkit
from .private_bus import NOBODY, ROOT, Caller, PrivateBus, Refused
from .systemd1 import Systemd, Unit

GOOD = "defaults: {image: i}\nmodels: {a: {aliases: [first]}, b: {gpus: [1]}}\n"
BAD = "models:\n  a:\n    imag: i\n"


async def run(*arguments: str) -> tuple[int, str, str]:
    """llmuxd with these arguments, to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmuxd", *arguments, cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llmux.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
async def engine(systemd: Systemd) -> AsyncIterator[Engine]:
    async with an_engine() as found:
        systemd.come_up = lambda name: an_activation(name, found.port).save()
        yield found


@pytest.fixture
async def daemon(
    bus: PrivateBus, systemd: Systemd, engine: Engine, config: Path, tmp_path: Path
) -> AsyncIterator[Daemon]:
    async with a_daemon(config, tmp_path) as found:
        await found.notify("READY=1")
        yield found


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def caller(bus: PrivateBus, daemon: Daemon) -> AsyncIterator[Caller]:
    found = await bus.connect()
    yield found
    await found.close()


async def ask(http: aiohttp.ClientSession, daemon: Daemon, model: str) -> int:
    url = f"{daemon.url}/v1/chat/completions"
    async with http.post(url, json={"model": model}) as response:
        await response.read()
        return response.status


# Life


async def test_ready_only_when_everything_answers(
    daemon: Daemon, caller: Caller, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{daemon.url}/health") as response:
        assert response.status == 200
    assert await caller.get("/Manager", "org.llmux.Manager", "QueueLength") == 0
    assert "2 models" in await daemon.notify("STATUS=")


async def test_not_ready_before_systemd_was_heard(
    bus: PrivateBus, systemd: Systemd, config: Path, tmp_path: Path
) -> None:
    systemd.speaks.clear()
    async with a_daemon(config, tmp_path) as daemon:
        await systemd.asked.wait()
        assert not [line for line in daemon.heard if line.startswith("READY")]
        systemd.speaks.set()
        await daemon.notify("READY=1")
        assert await daemon.end() == 0


async def test_request_goes_all_the_way(
    daemon: Daemon, systemd: Systemd, engine: Engine, http: aiohttp.ClientSession
) -> None:
    assert await ask(http, daemon, "first") == 200
    assert engine.seen[0].json["model"] == "a"
    assert systemd.units[names.unit("a")].ActiveState == "active"
    assert "serving: a" in await daemon.notify("STATUS=2 models, serving: a")


async def test_watchdog_is_fed_again_and_again(daemon: Daemon) -> None:
    await daemon.notify("WATCHDOG=1", count=3)


async def test_watchdog_is_fed_while_pid1_is_silent(
    daemon: Daemon, systemd: Systemd, http: aiohttp.ClientSession
) -> None:
    systemd.asked.clear()
    systemd.speaks.clear()
    asking = asyncio.create_task(ask(http, daemon, "a"))
    await systemd.asked.wait()
    before = daemon.heard.count("WATCHDOG=1")
    await daemon.notify("WATCHDOG=1", count=before + 3)
    assert not asking.done()
    systemd.speaks.set()
    assert await asking == 200


async def test_what_runs_at_the_begin_is_adopted(
    bus: PrivateBus, systemd: Systemd, engine: Engine, config: Path, tmp_path: Path,
    http: aiohttp.ClientSession,
) -> None:  # fmt: skip
    systemd.units[names.unit("a")] = Unit("active", "running")
    systemd.come_up("a")
    async with a_daemon(config, tmp_path) as daemon:
        await daemon.notify("READY=1")
        assert await ask(http, daemon, "a") == 200
        assert await daemon.end() == 0
    assert not [call for call in systemd.calls if call.startswith(("Start", "Stop"))]


async def test_end_leaves_the_models_running(
    daemon: Daemon, systemd: Systemd, http: aiohttp.ClientSession
) -> None:
    await ask(http, daemon, "a")
    assert await daemon.end() == 0
    assert systemd.units[names.unit("a")].ActiveState == "active"
    assert "STOPPING=1" in daemon.heard
    assert not [line for line in daemon.journal if "Traceback" in line or "rror" in line]


async def test_sigterm_lets_a_request_in_flight_end(
    daemon: Daemon, engine: Engine, http: aiohttp.ClientSession
) -> None:
    go_on = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"last")
        return response

    engine.answer = answer
    url = f"{daemon.url}/v1/chat/completions"
    async with http.post(url, json={"model": "a"}) as response:
        assert await response.content.readany() == b"first"
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.notify("STOPPING=1")
        go_on.set()
        assert await response.read() == b"last"
    assert await daemon.end() == 0
    assert not [line for line in daemon.journal if "Traceback" in line]


async def test_end_while_polkit_thinks_is_quiet(
    daemon: Daemon, bus: PrivateBus, polkit: Polkit
) -> None:
    polkit.hangs = True
    stranger = await bus.connect(NOBODY)
    call = asyncio.create_task(stranger.call("/Manager", "Reload"))
    await polkit.asked.wait()
    assert await daemon.end() == 0
    with pytest.raises(Refused):
        await call
    await stranger.close()
    assert not [line for line in daemon.journal if "Traceback" in line or "rror" in line]


def helper_of(pid: int) -> int:
    """The one child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_killed_llmuxd_leaves_no_helper_behind(daemon: Daemon) -> None:
    watched = os.pidfd_open(helper_of(daemon.process.pid))
    daemon.process.kill()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)


# Reload


async def test_hangup_takes_a_good_file(
    daemon: Daemon, engine: Engine, http: aiohttp.ClientSession
) -> None:
    daemon.config.write_text(GOOD.replace("b:", "c:"))
    daemon.process.send_signal(signal.SIGHUP)
    await daemon.logged("configuration reloaded")
    assert await ask(http, daemon, "c") == 200
    assert await ask(http, daemon, "b") == 404


async def test_hangup_with_a_bad_file_changes_nothing(
    daemon: Daemon, engine: Engine, http: aiohttp.ClientSession
) -> None:
    daemon.config.write_text(BAD)
    daemon.process.send_signal(signal.SIGHUP)
    line = await daemon.logged("the configuration stays as it was")
    assert f"{daemon.config}:3:5: unknown key 'imag'" in line and "did you mean 'image'?" in line
    assert await ask(http, daemon, "b") == 200


async def test_a_slow_disk_at_a_reload_holds_nobody_up(
    daemon: Daemon, engine: Engine, http: aiohttp.ClientSession, caller: Caller
) -> None:
    daemon.config.unlink()
    os.mkfifo(daemon.config)  # a file whose reading lasts until this test writes it
    reload = asyncio.create_task(caller.call("/Manager", "Reload"))
    with await asyncio.to_thread(daemon.config.open, "w") as disk:
        assert await ask(http, daemon, "b") == 200
        assert not reload.done()
        disk.write(GOOD.replace("b:", "c:"))
    await reload
    assert await ask(http, daemon, "c") == 200


async def test_sockets_that_are_meant_for_another_process_are_an_error(config: Path) -> None:
    os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", "1"
    try:
        status, _, said = await run("--config", str(config))
    finally:
        del os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"]
    assert status == 1 and "systemd passed no socket to this process" in said


async def test_reload_by_bus_tells_the_mistake(daemon: Daemon, caller: Caller) -> None:
    daemon.config.write_text(BAD)
    with pytest.raises(Exception, match=r"ConfigInvalid: .*:3:5: unknown key 'imag'"):
        await caller.call("/Manager", "Reload")
    assert ":3:5: unknown key" in await daemon.logged("the configuration stays as it was")
    daemon.config.write_text(GOOD)
    await caller.call("/Manager", "Reload")


# The bus


async def test_it_survives_a_restart_of_the_bus(
    daemon: Daemon, bus: PrivateBus, systemd: Systemd, engine: Engine, http: aiohttp.ClientSession
) -> None:
    assert await ask(http, daemon, "a") == 200
    await systemd.close()
    bus.stop()
    await daemon.logged("the system bus is gone")
    assert await ask(http, daemon, "a") == 200
    bus.start()
    await systemd.attach(bus)
    await daemon.logged("connected to the system bus again")
    assert await ask(http, daemon, "b") == 200
    caller = await bus.connect()
    assert await caller.get("/Manager", "org.llmux.Manager", "ActiveModels") == ["a", "b"]
    await caller.close()
    assert await daemon.end() == 0


async def test_no_bus_is_one_line_and_status_1(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    status, _, err = await run("-c", str(config), "-p", str(free_port()))
    assert status == 1 and "Traceback" not in err and len(err.splitlines()) == 1


async def test_state_of_a_newer_release_is_one_line_and_status_1(config: Path) -> None:
    newer = files.state_root() / "form.json"
    newer.parent.mkdir(exist_ok=True)
    newer.write_text('{"form": 1000}')
    status, _, err = await run("-c", str(config), "-p", str(free_port()))
    assert status == 1 and "is of form 1000; this llmuxd knows 1 to" in err
    assert "Traceback" not in err and len(err.splitlines()) == 1
    assert newer.read_text() == '{"form": 1000}'


async def test_second_llmuxd_is_told_so(daemon: Daemon) -> None:
    status, _, err = await run("-c", str(daemon.config), "-p", str(free_port()))
    assert status == 1 and "another process owns the bus name org.llmux" in err
    # What the first one's models read is still there.
    assert accepted.path() == daemon.config and accepted.load().text == GOOD
    assert "Traceback" not in err


async def test_taken_port_is_told(daemon: Daemon) -> None:
    status, _, err = await run("-c", str(daemon.config), "-p", str(daemon.port))
    assert status == 1 and "Address already in use" in err and "Traceback" not in err


# Arguments


async def test_bad_configuration_is_status_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    status, out, err = await run("-c", str(path))
    assert (status, out) == (2, "")
    assert f"{path}:3:5: unknown key 'imag'" in err and len(err.splitlines()) == 1


async def test_check_of_a_good_file(config: Path) -> None:
    assert await run("-c", str(config), "--check-config") == (0, f"{config}: good, 2 models\n", "")


async def test_check_of_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    assert await run("-c", str(path), "--check-config") == (
        2, "", f"{path}:3:5: unknown key 'imag' in model 'a' (did you mean 'image'?)\n",
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["-p", "0"], ["-p", "x"], ["--fly"], ["-p", "70000"]])
async def test_wrong_argument_is_status_2(arguments: list[str]) -> None:
    status, _, err = await run(*arguments)
    assert status == 2 and "usage: llmuxd" in err and "Traceback" not in err
