# SPDX-License-Identifier: MIT
import json
import re
import site
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmuxd.model import cgroup, cuda_checkpoint
from llmuxd.model.cuda_checkpoint import LIMIT, Request, WrongUsage, device_map
from llmuxd.model.gpu import QUERY_LIMIT, State

from . import cuda_program
from .cuda_program import TOP
from .fake_cuda import FakeCuda

OLD = "GPU-eea0d83f-ebcd-ac27-6b3e-bec2a19724e6"
NEW = "GPU-8f4022ba-e0cb-1298-286e-225c953a7feb"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program as it is installed."""
    return cuda_program.install(tmp_path / "bin")


@pytest.fixture
def run(program: Path, cuda: FakeCuda) -> Run:
    """Runs it where libcuda is the one that records."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        cuda.monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda.library.parent))
        return subprocess.run([program, *words], capture_output=True, text=True, timeout=9)

    return run


def done(result: subprocess.CompletedProcess[str]) -> str:
    """What it printed where all went well."""
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


# As CRIU's plugin calls it (4.2.1, plugins/cuda/cuda_plugin.c): both outputs into one buffer,
# of which it keeps 127 bytes, or 2047 of the help.


def criu(program: Path, cuda: FakeCuda, *words: str) -> tuple[int, str]:
    environment = {"PATH": str(program.parent), "LD_LIBRARY_PATH": str(cuda.library.parent)}
    environment["FAKE_CUDA"] = str(cuda.directory)
    result = subprocess.run(
        ["cuda-checkpoint", *words],
        executable=program,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout[: 2047 if words == ("-h",) else 127]


def test_criu_finds_the_flag_in_the_help(program: Path, cuda: FakeCuda) -> None:
    status, told = criu(program, cuda, "-h")
    assert status == 0 and "--action" in told
    assert len(told) < 2047


def test_criu_dumps_and_restores(program: Path, cuda: FakeCuda) -> None:
    cuda.process(12)
    assert criu(program, cuda, "--get-restore-tid", "--pid", "12") == (0, "13\n")
    assert criu(program, cuda, "--get-state", "--pid", "12") == (0, "running\n")
    lock = ["--action", "lock", "--pid", "12", "--timeout", "300000"]
    assert criu(program, cuda, *lock) == (0, "")
    for action in ("checkpoint", "restore", "unlock"):
        assert criu(program, cuda, "--action", action, "--pid", "12") == (0, "")
    assert [name for name, _ in cuda.steps()] == ["Lock", "Checkpoint", "Restore", "Unlock"]
    assert cuda.calls()[0].argument == (300000).to_bytes(4, "little") + bytes(60)


def test_criu_learns_that_a_process_has_no_cuda(program: Path, cuda: FakeCuda) -> None:
    status, told = criu(program, cuda, "--get-restore-tid", "--pid", "12")
    assert status == 1
    assert told.startswith("cuda-checkpoint: restore thread of process 12: CUDA_ERROR_NOT_INITIAL")


# The other calls.


@pytest.mark.parametrize("state", list(State))
def test_state_is_one_word(run: Run, cuda: FakeCuda, state: State) -> None:
    cuda.process(12, state)
    assert done(run("--get-state", "-p", "12")) == f"{state.name.lower()}\n"


def test_several_have_a_line_each(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12)
    cuda.process(14, State.LOCKED)
    assert done(run("--get-state", "--pid", "12,14")) == "12 running\n14 locked\n"
    assert done(run("--get-restore-tid", "--pid=12", "--pid=14")) == "12 13\n14 15\n"


def test_toggle_there_and_back(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12)
    cuda.process(13)
    assert done(run("--toggle", "--pid", "12,13")) == ""
    assert {cuda.state(12), cuda.state(13)} == {State.CHECKPOINTED}
    assert done(run("--toggle", "--pid", "12,13")) == ""
    assert {cuda.state(12), cuda.state(13)} == {State.RUNNING}


@pytest.mark.parametrize("other", [State.LOCKED, State.CHECKPOINTED, State.FAILED])
def test_toggle_needs_a_common_state(run: Run, cuda: FakeCuda, other: State) -> None:
    cuda.process(12)
    cuda.process(13, other)
    result = run("--toggle", "--pid", "12,13")
    assert result.returncode == 1
    assert f"process 12 is running, process 13 is {other}" in result.stderr
    assert cuda.calls() == []


def test_suspend_of_several_is_all_or_none(run: Run, cuda: FakeCuda) -> None:
    for pid in (12, 13, 14):
        cuda.process(pid)
    cuda.fail("Checkpoint:13=401")
    result = run("--action", "suspend", "--pid", "12,13,14")
    assert (result.returncode, result.stdout) == (1, "")
    assert "checkpoint of process 13: CUDA_ERROR_ILLEGAL_STATE (401)" in result.stderr
    assert {cuda.state(pid) for pid in (12, 13, 14)} == {State.RUNNING}


@pytest.mark.parametrize("action", ["suspend", "resume"])
def test_several_at_the_same_time(run: Run, cuda: FakeCuda, action: str) -> None:
    state = State.RUNNING if action == "suspend" else State.CHECKPOINTED
    for pid in (12, 13, 14):
        cuda.process(pid, state)
    cuda.monkeypatch.setenv("FAKE_CUDA_MEET", "3")
    done(run("--action", action, "--pid", "12,13,14"))


@pytest.mark.parametrize("operation", [["--action", "restore"], ["--toggle"]])
def test_device_map_gets_to_the_driver(run: Run, cuda: FakeCuda, operation: list[str]) -> None:
    cuda.process(12, State.CHECKPOINTED)
    done(run(*operation, "--pid", "12", "-d", f"{OLD}={NEW}"))
    (restored,) = [call for call in cuda.calls() if call.name == "Restore"]
    both = OLD.replace("-", "")[3:] + NEW.replace("-", "")[3:]
    assert restored.pairs == bytes.fromhex(both)
    assert restored.argument[8:12] == b"\1\0\0\0"


# Limits.


@pytest.mark.parametrize(
    "words",
    [["--get-state"], ["--action", "checkpoint"], ["--action", "suspend"], ["--toggle"]],
)
def test_call_that_hangs_ends_with_its_own_status(
    run: Run, cuda: FakeCuda, words: list[str]
) -> None:
    single = words == ["--action", "checkpoint"]
    cuda.process(12, State.LOCKED if single else State.RUNNING)
    cuda.fail("GetState:12=hang" if words == ["--get-state"] else "Checkpoint:12=hang")
    begin = time.monotonic()
    result = run(*words, "--pid", "12", "--timeout", "200")
    assert time.monotonic() - begin < 5.0
    assert (result.returncode, result.stdout) == (124, "")
    assert "process 12: it did not end within 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("words", "state", "hangs"),
    [
        (["--get-restore-tid"], State.RUNNING, "cuCheckpointProcessGetRestoreThreadId:12"),
        (["--action", "lock"], State.RUNNING, "cuCheckpointProcessLock:12"),
        (["--action", "restore"], State.CHECKPOINTED, "cuInit:0"),
        (["--action", "restore"], State.CHECKPOINTED, "cuCheckpointProcessRestore:12"),
        (["--action", "resume"], State.CHECKPOINTED, "cuCheckpointProcessUnlock:12"),
    ],
)
def test_each_call_has_a_limit(
    run: Run, cuda: FakeCuda, words: list[str], state: State, hangs: str
) -> None:
    cuda.process(12, state)
    cuda.monkeypatch.setenv("FAKE_CUDA_CODES", f"{hangs}=hang")
    result = run(*words, "--pid", "12", "--timeout", "200")
    assert (result.returncode, result.stdout) == (124, "")
    assert "process 12: it did not end within" in result.stderr


def test_hanging_one_does_not_keep_the_others_suspended(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12)
    cuda.process(13)
    cuda.fail("Checkpoint:13=hang")
    assert run("--toggle", "--pid", "12,13", "--timeout", "300").returncode == 124
    assert cuda.state(12) is State.RUNNING


def test_limits_where_none_is_given() -> None:
    assert Request(["--get-state", "--pid", "1"]).limit == QUERY_LIMIT
    assert Request(["--action", "checkpoint", "--pid", "1"]).limit == LIMIT
    assert Request(["--action", "lock", "--pid", "1", "--timeout", "0"]).limit == LIMIT
    assert Request(["--action", "lock", "--pid", "1", "-t", "1500"]).limit == 1.5


# No driver.


@pytest.mark.parametrize("words", [["--get-state"], ["--toggle"], ["--action", "lock"]])
def test_host_without_a_driver(program: Path, words: list[str], tmp_path: Path) -> None:
    # A file that is no library comes before any real one.
    (tmp_path / "libcuda.so.1").touch()
    result = subprocess.run(
        [program, *words, "--pid", "12"],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("cuda-checkpoint: no NVIDIA driver: ")


def test_host_without_a_driver_in_json(program: Path, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()
    result = subprocess.run(
        [program, "--get-state", "--pid", "12", "--json"],
        env={"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    told = json.loads(result.stdout)
    assert (result.returncode, told["status"], told["processes"]) == (3, 3, [])
    assert told["message"].startswith("no NVIDIA driver: ")


def test_help_needs_no_driver(program: Path, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    told = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True)
    assert done(told).startswith("CUDA checkpoint and restore utility")


# JSON.


def test_json_of_a_query(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12, State.CHECKPOINTED)
    told = json.loads(done(run("--get-state", "--pid", "12", "--json")))
    assert told.pop("seconds") >= 0
    assert told == {
        "operation": "get-state",
        "status": 0,
        "message": "",
        "processes": [{"pid": 12, "state": "checkpointed"}],
    }
    told = json.loads(done(run("--get-restore-tid", "--pid", "12", "--json")))
    assert told["processes"] == [{"pid": 12, "restore_tid": 13}]


def test_json_of_an_action(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12)
    cuda.process(13)
    for action, state in (("lock", "locked"), ("suspend", "checkpointed"), ("resume", "running")):
        told = json.loads(done(run("--action", action, "--pid", "12,13", "--json")))
        assert told["operation"] == action
        assert told["processes"] == [{"pid": 12, "state": state}, {"pid": 13, "state": state}]


def test_json_of_a_failure_has_its_code(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12)
    cuda.fail("Lock:12=600")
    result = run("--action", "lock", "--pid", "12", "--json")
    told = json.loads(result.stdout)
    error = "lock of process 12: CUDA_ERROR_NOT_READY (600): device not ready"
    assert (result.returncode, told["status"], told["message"]) == (1, 1, error)
    facts = {"pid": 12, "error": error, "code": 600, "name": "CUDA_ERROR_NOT_READY"}
    assert told["processes"] == [facts]


def test_json_of_what_took_too_long(run: Run, cuda: FakeCuda) -> None:
    cuda.process(12, State.LOCKED)
    cuda.fail("Checkpoint:12=hang")
    result = run("--action", "checkpoint", "--pid", "12", "--timeout", "100", "--json")
    told = json.loads(result.stdout)
    assert (result.returncode, told["status"]) == (124, 124)
    assert "did not end within 0.1 s" in told["processes"][0]["error"]


# A cgroup, a unit.


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup hierarchy with one unit and a container's cgroup below it."""
    root = tmp_path / "cgroup"
    payload = root / "system.slice/m.service/container"
    payload.mkdir(parents=True)
    (payload.parent / "cgroup.procs").write_text("11\n12\n")
    (payload / "cgroup.procs").write_text("13\n14\n")
    monkeypatch.setattr(cgroup, "ROOT", root)
    return root


def inside(cuda: FakeCuda, *words: str) -> int:
    """main() in this process, which has the hierarchy replaced."""
    cuda.monkeypatch.setattr("llmuxd.model.gpu.LIBRARY", str(cuda.library))
    cuda.monkeypatch.setattr(sys, "argv", ["cuda-checkpoint", *words])
    return cuda_checkpoint.main()


@pytest.mark.parametrize("path", ["system.slice/m.service", "/system.slice/m.service", "whole"])
def test_cgroup_means_those_that_use_cuda(
    cuda: FakeCuda, tree: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    cuda.process(12)
    cuda.process(14)
    cuda.process(99)
    whole = str(tree / "system.slice/m.service") if path == "whole" else path
    assert inside(cuda, "--action", "suspend", "--cgroup", whole) == 0
    assert [cuda.state(pid) for pid in (12, 14, 99)] == [
        State.CHECKPOINTED,
        State.CHECKPOINTED,
        State.RUNNING,
    ]
    assert inside(cuda, "--get-state", "--cgroup", whole) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == ["12 checkpointed", "14 checkpointed"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("system.slice/m.service", "no process of system.slice/m.service uses CUDA"),
        ("system.slice/n.service", "system.slice/n.service has no cgroup: it does not run"),
    ],
)
def test_cgroup_without_cuda_is_refused(
    cuda: FakeCuda, tree: Path, capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    assert inside(cuda, "--toggle", "--cgroup", path) == 1
    assert capsys.readouterr().err == f"cuda-checkpoint: {message}\n"


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a systemctl of the given shell lines on the path."""

    def put(lines: str) -> None:
        path = tmp_path / "systemctl"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


def test_unit_is_its_cgroup(cuda: FakeCuda, tree: Path, systemctl: Callable[[str], None]) -> None:
    systemctl(
        '[ "$*" = "show --property=ControlGroup --value -- m.service" ]'
        " && echo /system.slice/m.service"
    )
    cuda.process(13)
    assert inside(cuda, "--action", "suspend", "--unit", "m.service") == 0
    assert cuda.state(13) is State.CHECKPOINTED


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo", "m.service has no cgroup: it does not run"),
        ("echo 'no bus' >&2; exit 1", "systemctl show --property=ControlGroup: no bus"),
    ],
)
def test_unit_that_does_not_run_is_refused(
    cuda: FakeCuda,
    tree: Path,
    systemctl: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    lines: str,
    message: str,
) -> None:
    systemctl(lines)
    assert inside(cuda, "--toggle", "--unit", "m.service") == 1
    assert capsys.readouterr().err == f"cuda-checkpoint: {message}\n"


# The command line.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --get-state, "),
        (["--pid", "1"], "give one of --get-state, "),
        (["--toggle", "--get-state", "--pid", "1"], "give one of --get-state, "),
        (["--toggle"], "give processes by one of"),
        (["--toggle", "--pid", "1", "--unit", "m"], "give processes by one of"),
        (["--toggle", "--pid"], "--pid needs a value"),
        (["--toggle", "--pid="], "--pid needs a value"),
        (["--toggle", "--pid", "x"], "'x' is no process id"),
        (["--toggle", "--pid", "0"], "'0' is no process id"),
        (["--toggle", "--pid", "-1"], "'-1' is no process id"),
        (["--toggle", "--pid", "4294967297"], "'4294967297' is no process id"),
        (["--toggle", "--pid", "1,"], "'' is no process id"),
        (["--action", "explode", "--pid", "1"], "unknown action 'explode'"),
        (["--toggle", "--pid", "1", "--timeout", "1s"], "'1s' is no number of milliseconds"),
        (["--toggle", "--pid", "1", "--timeout", "4294967296"], "'4294967296' is no number"),
        (["--toggle=yes", "--pid", "1"], "unknown option '--toggle=yes'"),
        (["--toggel", "--pid", "1"], "unknown option '--toggel'"),
        (["1"], "unknown option '1'"),
        (["--action", "lock", "--pid", "1", "-d", f"{OLD}={NEW}"], "--device-map is for a restore"),
        (["--action", "restore", "--pid", "1", "-d", "GPU-1=GPU-2"], "'GPU-1' is no GPU's UUID"),
    ],
)
def test_wrong_usage_says_what_is_wrong(words: list[str], message: str) -> None:
    with pytest.raises(WrongUsage) as caught:
        Request(words)
    assert str(caught.value).startswith(message)


def test_wrong_usage_has_its_own_status(run: Run) -> None:
    result = run("--toggle")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("cuda-checkpoint: give processes by one of")


def test_device_map_has_pairs_in_their_order() -> None:
    old = bytes.fromhex("eea0d83febcdac276b3ebec2a19724e6")
    new = bytes.fromhex("8f4022bae0cb1298286e225c953a7feb")
    assert device_map(f"{OLD}={NEW}") == [(old, new)]
    assert device_map(f"{OLD}={NEW},{NEW}={OLD}") == [(old, new), (new, old)]
    assert device_map(f"{OLD[4:]}={NEW[4:].upper()}") == [(old, new)]


@pytest.mark.parametrize(
    "text",
    ["", OLD, f"{OLD}=", f"={NEW}", f"{OLD}={NEW},", f"{OLD}:{NEW}", f"{OLD}={NEW[:-1]}",
     f"{OLD}={NEW}0", f"{OLD}={NEW}={OLD}", f"{OLD}={NEW},{OLD}={OLD}", f"{OLD}={NEW[:-1]}g",
     f"MIG-{OLD[4:]}={NEW}", f"{OLD} ={NEW}"],
)  # fmt: skip
def test_device_map_that_is_none(text: str) -> None:
    with pytest.raises(WrongUsage):
        device_map(text)


# The installation.


def test_plugin_finds_it_by_its_name(tmp_path: Path) -> None:
    make = ["make", "-s", "-C", str(TOP), "install-files", f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    subprocess.run(make, check=True)
    link = tmp_path / "usr/libexec/llmux/bin/cuda-checkpoint"
    assert link.resolve() == (tmp_path / "usr/bin/llmux-cuda-checkpoint").resolve()
    assert not link.readlink().is_absolute()
    assert link.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("there", [True, False])
def test_it_is_found_without_a_search_for_packages(tmp_path: Path, there: bool) -> None:
    """Where it was put; and where another Python looks now."""
    make = ["make", "-s", "-C", str(TOP), "install-files", f"DESTDIR={tmp_path}", "PREFIX=/usr"]
    subprocess.run([*make, f"PYTHON={sys.executable}"], check=True)
    path = tmp_path / "usr/bin/llmux-cuda-checkpoint"
    text = path.read_text()
    (told,) = re.findall(r'^sys.path.append\("(/.*)"\)$', text, re.MULTILINE)
    assert told in site.getsitepackages()
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "llmuxd").symlink_to(TOP / "llmuxd")
    path.write_text(
        text.replace(told, str(packages))
        if there
        else text.replace("site.main()", f"sys.path.append({str(packages)!r})")
    )
    assert done(subprocess.run([path, "-h"], capture_output=True, text=True)).startswith("CUDA")
