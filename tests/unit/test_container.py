# SPDX-License-Identifier: MIT
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from llmuxd import files, names
from llmuxd.config import Engine, ModelConfig, Sleep
from llmuxd.model import container, init, seccomp, vllm
from llmuxd.model.activation import conmon_pidfile
from llmuxd.model.process import CommandFailed


def argv_of(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What podman is called with to start the model."""
    seen: list[str] = []

    def run(argv: Sequence[str], timeout: float, **_: object) -> str:
        seen.extend(argv)
        return ""

    monkeypatch.setattr(container, "run", run)
    container.Container(model).run(21000)
    return seen


def test_a_container_that_is_to_drop_its_kv_cache_has_the_extension(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig("a", "i", env=(("PYTHONPATH", "/mine"),), park_sleep=Sleep.KV)
    argv = argv_of(model, monkeypatch)
    given = set(pairwise(argv))
    assert ("--env", "PYTHONPATH=/opt/llmux:/mine") in given
    assert ("--volume", f"{vllm.INSIDE}:/opt/llmux:ro") in given
    assert argv[-3:] == ["i", "--worker-extension-cls", "llmux_kv_cache.KvCache"]
    assert (vllm.INSIDE / "llmux_kv_cache.py").is_file()


@pytest.mark.parametrize(
    ("env", "said", "given"),
    [
        ((), '["PATH=/bin","PYTHONPATH=/opt/site:/more"]', "/opt/llmux:/opt/site:/more"),
        ((), '["PATH=/bin"]', "/opt/llmux"),
        ((), "null", "/opt/llmux"),
        ((("PYTHONPATH", "/mine"),), '["PYTHONPATH=/opt/site"]', "/opt/llmux:/mine"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_the_extension_hides_no_path_of_the_image(
    env: tuple[tuple[str, str], ...], said: str, given: str, here: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told: list[list[str]] = []

    def run(argv: Sequence[str], timeout: float) -> str:
        told.append([*argv])
        if argv[1:3] != ["image", "inspect"]:
            return ""
        if not here and ["podman", "pull", "--quiet", "i"] not in told:
            raise CommandFailed(argv, 125, "i: image not known")
        return said

    monkeypatch.setattr(container, "run", run)
    container.Container(ModelConfig("a", "i", env=env, park_sleep=Sleep.KV)).run(21000)
    assert ("--env", f"PYTHONPATH={given}") in set(pairwise(told[-1]))


def test_what_podman_is_told_of_the_image_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def run(argv: Sequence[str], timeout: float) -> str:
        told.append([*argv])
        if argv[1:3] == ["image", "inspect"]:
            raise CommandFailed(argv, 125, "i: image not known")
        return ""

    monkeypatch.setattr(container, "run", run)
    model = ModelConfig("a", "i", podman_args=("--pull=never",), park_sleep=Sleep.KV)
    container.Container(model).run(21000)
    assert not any("pull" in argv for argv in told)
    assert ("--env", "PYTHONPATH=/opt/llmux") in set(pairwise(told[-1]))


def test_any_other_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = argv_of(ModelConfig("a", "i", args=("--x",)), monkeypatch)
    assert argv[-2:] == ["i", "--x"]
    assert not any(vllm.MOUNTED in word for word in argv)


def kept(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The model's caches: where the container has them, and where the host."""
    pairs = set(pairwise(argv_of(model, monkeypatch)))
    volumes = [value.split(":") for option, value in pairs if option == "--volume"]
    return {there: Path(here) for here, there, *_ in volumes if str(files.cache_root()) in here}


def test_a_read_only_image_has_a_place_for_each_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own; any user in the container may write there, nobody else of the host comes near."""
    model = ModelConfig("a", "i", volumes=("/hub:/root/.cache/huggingface",))
    mine = kept(model, monkeypatch)
    assert set(mine) == {"/root/.cache", "/root/.nv", "/root/.triton"}
    assert all(here.stat().st_mode & 0o7777 == 0o1777 for here in mine.values())
    assert {here.parent for here in mine.values()} == {files.cache_root() / names.slug("a")}
    assert mine == kept(model, monkeypatch)
    others = kept(replace(model, name="b"), monkeypatch)
    assert not set(mine.values()) & set(others.values())


@pytest.mark.parametrize(
    ("how", "places"),
    [
        ({"volumes": ("/c:/root/.cache",)}, {"/root/.nv", "/root/.triton"}),
        ({"podman_args": ("--tmpfs=/root/.nv/",)}, {"/root/.cache", "/root/.triton"}),
        (
            {"podman_args": ("--mount", "type=bind,src=/c,dst=/root/.triton")},
            {"/root/.cache", "/root/.nv"},
        ),
        ({"env": (("HOME", "/v/"),)}, {"/v/.cache", "/v/.nv", "/v/.triton"}),
        ({"read_only": False}, set()),
        ({"engine": Engine.GENERIC}, set()),
    ],
)
def test_but_not_where_the_configuration_has_one(
    how: dict[str, object], places: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(ModelConfig("a", "i"), **how)  # type: ignore[arg-type]
    assert set(kept(model, monkeypatch)) == places


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """podman's own profile, as an older version has it."""
    path = tmp_path / "podman.json"
    rules = [
        {"names": ["read", "io_uring_setup", "io_uring_enter"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["io_uring_register"], "action": "SCMP_ACT_ERRNO"},
    ]
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
    monkeypatch.setattr(seccomp, "DEFAULTS", ("/nonexistent", str(path)))
    return path


def test_a_container_is_locked(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = argv_of(ModelConfig("a", "i"), monkeypatch)
    mine = files.state_root() / "seccomp.json"
    assert {"--security-opt=no-new-privileges", "--read-only"} <= set(argv)
    assert f"--security-opt=seccomp={mine}" in argv
    assert "--privileged" not in argv
    allowed, refused = json.loads(mine.read_text())["syscalls"]
    assert allowed["names"] == ["read"]
    assert refused["names"] == ["io_uring_register"]


def test_a_privileged_one_is_privileged_but_has_no_io_uring(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = argv_of(ModelConfig("a", "i", privileged=True, read_only=True), monkeypatch)
    assert {"--privileged", "--read-only"} <= set(argv)
    assert "--security-opt=no-new-privileges" not in argv
    assert any(word.startswith("--security-opt=seccomp=") for word in argv)


def test_the_profile_is_written_once(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv_of(ModelConfig("a", "i"), monkeypatch)
    mine = files.state_root() / "seccomp.json"
    first = mine.stat().st_ino
    argv_of(ModelConfig("a", "i"), monkeypatch)
    assert mine.stat().st_ino == first
    profile.write_text('{"syscalls": []}')
    argv_of(ModelConfig("a", "i"), monkeypatch)
    assert json.loads(mine.read_text()) == {"syscalls": []}


def test_without_a_profile_podman_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "DEFAULTS", ("/nonexistent",))
    assert not [word for word in argv_of(ModelConfig("a", "i"), monkeypatch) if "seccomp" in word]


def _conmon(program: Path, script: str) -> subprocess.Popen[bytes]:
    """A process of that name, and its pid where conmon leaves its own."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    running = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    pidfile = conmon_pidfile("a")
    pidfile.parent.mkdir(parents=True, exist_ok=True)
    pidfile.write_text(f"{running.pid}")
    return running


@pytest.mark.parametrize(
    ("name", "script", "found"),
    [
        ("conmon", "exec 3<&0; cat <&3 & echo $!; wait", True),
        ("conmon", "exec 3<&0; cat <&3 & cat <&3 & echo $!; wait", False),
        ("conmon", "echo none; read end", False),
        ("other", "exec 3<&0; cat <&3 & echo $!; wait", False),
    ],
)
def test_conmon_knows_the_containers_first_process(
    tmp_path: Path, name: str, script: str, found: bool
) -> None:
    with _conmon(tmp_path / name, script) as running:
        pids = container.Container(ModelConfig("a", "i")).pids()
        running.communicate()
    if found:
        assert pids is not None and pids[1] == running.pid != pids[0]
    else:
        assert pids is None


def test_without_a_conmon_podman_is_asked() -> None:
    assert container.Container(ModelConfig("a", "i")).pids() is None


@pytest.mark.parametrize(
    ("written", "size"), [("2g", "2g"), ("512M", "512m"), ("1GiB", "1g"), ("4096", "4096")]
)
def test_dev_shm_is_the_containers_own(
    written: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = argv_of(ModelConfig("a", "i", devices=(), shm_size=written), monkeypatch)
    [tmpfs] = [word for word in argv if word.startswith("--tmpfs=/dev/shm:")]
    assert tmpfs.endswith(f",mode=1777,size={size}")
    assert "--ipc=none" in argv and "--shm-size" not in argv


@pytest.mark.parametrize(
    "how",
    [
        {"shm_size": "1.5g"}, {"devices": None}, {"devices": ("/dev/kfd",)},
        {"podman_args": ("--ipc=host",)}, {"podman_args": ("--volume", "/x:/dev/shm")},
        {"volumes": ("/x:/dev/shm",)},
    ],
)  # fmt: skip
def test_or_podmans_where_that_is_not_known_to_work(
    how: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(ModelConfig("a", "i", devices=()), **how)  # type: ignore[arg-type]
    given = set(pairwise(argv_of(model, monkeypatch)))
    assert ("--shm-size", model.shm_size) in given
    assert not any(word.startswith("--ipc=none") for pair in given for word in pair)


@pytest.fixture
def catatonit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is, and podman finds it by a link."""
    path = tmp_path / "bin/catatonit"
    place = tmp_path / "libexec"
    for directory in (path.parent, place):
        directory.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    (place / "catatonit").symlink_to(path)
    monkeypatch.setattr(init, "PLACES", (str(place),))
    return path


@pytest.mark.parametrize(
    "how",
    [
        {"podman_args": ("--cpus=2",)}, {"podman_args": ("--init",)},
        {"podman_args": ("--init=false",)},
        {"engine": Engine.GENERIC, "podman_args": ("--init",)},
        {"engine": Engine.GENERIC, "podman_args": ("--init=true",)},
    ],
)  # fmt: skip
def test_a_container_of_vllm_begins_with_podmans_init(
    how: dict[str, object], catatonit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(ModelConfig("a", "i"), **how)  # type: ignore[arg-type]
    argv = argv_of(model, monkeypatch)
    # CRIU brings back no mount of a symbolic link. And what the configuration says has the last
    # word.
    at = argv.index(f"--init-path={catatonit}")
    assert argv[at - 1] == "--init" and argv.index(model.podman_args[0], at)


@pytest.mark.parametrize(
    "how",
    [
        {"engine": Engine.LLAMA_SERVER}, {"engine": Engine.GENERIC},
        {"engine": Engine.GENERIC, "podman_args": ("--init=false",)},
        {"podman_args": ("--pid", "host")}, {"podman_args": ("--init", "--pid=host")},
        {"podman_args": ("--systemd=always",)}, {"podman_args": ("--init-path=/x",)},
    ],
)  # fmt: skip
def test_but_not_one_that_may_have_its_own(
    how: dict[str, object], catatonit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(ModelConfig("a", "i"), **how)  # type: ignore[arg-type]
    assert f"--init-path={catatonit}" not in argv_of(model, monkeypatch)


def test_nor_where_there_is_none(catatonit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catatonit.unlink()
    monkeypatch.setenv("PATH", "")
    assert "--init" not in argv_of(ModelConfig("a", "i"), monkeypatch)


FAILS = CommandFailed(["podman"], 125, "exit status 1")


class Podman:
    """Stands for podman: each command has the next of its answers, the last one for good."""

    def __init__(self, **answers: list[str | CommandFailed]):
        self.told: list[str] = []
        self._answers = answers

    def run(self, argv: Sequence[str], timeout: float, *, merge: bool = False, **_: object) -> str:
        verb = argv[2] if argv[1] == "container" else argv[1]
        self.told.append(verb)
        answers = self._answers.get(verb, [""])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, CommandFailed):
            raise answer
        return answer


def _inspected(userdata: Path) -> list[str | CommandFailed]:
    state = {"Status": "running", "Pid": 1, "ConmonPid": 2}
    return [json.dumps([{"Id": "c", "Image": "i", "State": state, "StaticDir": str(userdata)}])]


def _podman(monkeypatch: pytest.MonkeyPatch, **answers: list[str | CommandFailed]) -> Podman:
    podman = Podman(**answers)
    monkeypatch.setattr(container, "run", podman.run)
    return podman


MODEL = ModelConfig("a", "i")


def test_one_whose_conmon_was_killed_is_cleaned_up_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = CommandFailed(["podman"], 125, "conmon exited prematurely")
    podman = _podman(monkeypatch, stop=[dead])
    container.Container(MODEL).halt()
    assert podman.told == ["stop", "cleanup"]


def test_what_podman_takes_for_running_is_ended_and_restored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = CommandFailed(["podman"], 125, "container c is running or paused, cannot restore")
    podman = _podman(monkeypatch, restore=[runs, ""], inspect=_inspected(tmp_path))
    container.Container(MODEL).restore(1.0)
    assert [verb for verb in podman.told if verb != "inspect"] == [
        "restore", "stop", "cleanup", "restore",
    ]  # fmt: skip
    podman = _podman(monkeypatch, restore=[FAILS], inspect=_inspected(tmp_path))
    with pytest.raises(CommandFailed, match="exit status 1"):
        container.Container(MODEL).restore(1.0)
    assert podman.told == ["restore", "inspect"]


@pytest.mark.parametrize(("age", "cause"), [(0.0, "CRIU: of this one"), (60.0, "exit status 1")])
def test_an_earlier_restores_log_says_nothing_of_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age: float, cause: str
) -> None:
    log = tmp_path / container.RESTORE_LOG
    log.write_text("(00.1) Error of this one\n(00.2) cuda_plugin: out of memory\n(00.3) mmap\n")
    # Written while it restores.
    when = time.time() + 5 - age
    os.utime(log, (when, when))
    _podman(monkeypatch, restore=[FAILS], inspect=_inspected(tmp_path), logs=["the server"])
    with pytest.raises(CommandFailed, match=cause):
        container.Container(MODEL).restore(1.0)
    said = container.Container(MODEL).said_since(time.time())
    assert "the server" in said and "mmap" not in said
    assert ("cuda_plugin: out of memory" in said) is (age == 0.0)
