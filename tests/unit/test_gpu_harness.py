# SPDX-License-Identifier: MIT
"""tests/gpu, as far as it needs no GPU: what it packs, its plan's runner, what it reports."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmuxd.config import Tier
from llmuxd.names import slug
from tests.gpu import (
    boot,
    by_hand,
    driver,
    fatbin,
    faults,
    measure,
    pack,
    patience,
    plan,
    switches,
    up,
    userland,
)
from tests.gpu.inside import STEPS
from tests.gpu.report import GPU_LINES, OPT, QWEN, Report
from tests.machine import cgroup
from tests.machine.ring import guest

_PTX, _ELF = 1, 2


def _entry(kind: int, architecture: int, code: bytes) -> bytes:
    header = bytearray(64)
    struct.pack_into("<HHIQ", header, 0, kind, 0x101, 64, len(code))
    struct.pack_into("<I", header, 28, architecture)
    return bytes(header) + code


def _fat_binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_only_the_code_for_one_gpu_is_kept() -> None:
    ours, other, text = b"9" * 40, b"8" * 24, b"p" * 16
    first = _fat_binary(_entry(_ELF, 80, other), _entry(_ELF, 90, ours), _entry(_PTX, 90, text))
    second = _fat_binary(_entry(_ELF, 80, other))
    library = bytearray(b"\x7fELF" + first + b"between" + second + b"end")
    size = len(library)

    zeroed = fatbin.keep_only(library, 90)

    assert zeroed == 2 * len(other) + len(text)
    assert len(library) == size
    assert ours in library
    assert other not in library
    assert text not in library
    assert library.startswith(b"\x7fELF")
    assert library.endswith(b"end")
    assert [entry.architecture for entry in fatbin.entries(library)] == [80, 90, 90, 80]


def test_what_only_looks_like_a_fat_binary_is_left_alone() -> None:
    cut = bytearray(_fat_binary(_entry(_ELF, 80, b"8" * 64))[:-10])
    before = bytes(cut)
    assert fatbin.keep_only(cut, 90) == 0
    assert bytes(cut) == before


def test_the_cdi_file_has_each_gpu_and_the_driver_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "nodes", lambda: ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"])
    library = Path("/lib/libcuda.so.580.159.04")
    monkeypatch.setattr(driver, "_libraries", lambda: {"libcuda.so.1": library})
    (tmp_path / "etc").mkdir()

    driver.write_cdi(tmp_path)

    spec = yaml.safe_load((tmp_path / "etc/cdi/nvidia.yaml").read_text())
    assert spec["kind"] == "nvidia.com/gpu"
    own = {
        device["name"]: [node["path"] for node in device["containerEdits"]["deviceNodes"]]
        for device in spec["devices"]
    }
    assert own == {"0": ["/dev/nvidia0"], "1": ["/dev/nvidia1"]}
    common = spec["containerEdits"]
    assert [node["path"] for node in common["deviceNodes"]] == ["/dev/nvidia-uvm", "/dev/nvidiactl"]
    (mount,) = common["mounts"]
    assert mount["hostPath"].endswith("/libcuda.so.580.159.04")
    assert mount["containerPath"] == "/usr/lib/x86_64-linux-gnu/libcuda.so.1"


# Played by a module of the test's own in place of tests.gpu.inside.
_PLAYED = """
import json, pathlib, sys, time
name, notes = sys.argv[2], pathlib.Path(sys.argv[4])
with open("ran", "a") as ran:
    ran.write(name + " ")
notes.write_text(json.dumps({"rows": [{"what": name}]}))
if name == "slow":
    time.sleep(60)
if name == "broken":
    sys.exit("it is broken")
"""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "played.py").write_text(_PLAYED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "_SELF", "played")
    return tmp_path


def _run(where: Path, *steps: plan.Step, budget: float = 100.0) -> dict[str, Any]:
    plan.run(steps, where / "results.json", budget, {"cores": 2})
    told: dict[str, Any] = json.loads((where / "results.json").read_text())
    return told


def _step(name: str, seconds: float = 30.0, *, vital: bool = False) -> plan.Step:
    return plan.Step(name, seconds, lambda _notes: None, vital)


def test_a_step_that_is_done_is_not_done_again(played: Path) -> None:
    _run(played, _step("one"), _step("broken"))
    told = _run(played, _step("one"), _step("broken"), _step("two"))
    assert (played / "ran").read_text().split() == ["one", "broken", "broken", "two"]
    assert told["steps"]["one"]["state"] == "done"
    assert told["steps"]["broken"]["state"] == "failed (1): it is broken"
    assert told["steps"]["two"]["rows"] == [{"what": "two"}]
    assert told["host"] == {"cores": 2}


def test_a_step_out_of_time_keeps_what_it_had(played: Path) -> None:
    told = _run(played, _step("slow", 1.0), _step("after"))
    assert told["steps"]["slow"]["state"] == "ran out of 1 s"
    assert told["steps"]["slow"]["rows"] == [{"what": "slow"}]
    assert told["steps"]["after"]["state"] == "done"


def test_without_a_vital_step_the_plan_ends(played: Path) -> None:
    told = _run(played, _step("broken", vital=True), _step("after"))
    assert list(told["steps"]) == ["broken"]


def test_no_step_begins_that_has_no_time(played: Path) -> None:
    told = _run(played, _step("one"))
    plan.run([_step("late")], played / "results.json", 10.0, told["host"])
    assert (played / "ran").read_text().split() == ["one"]


def _move(direction: str, begin: float, end: float, **parts: float) -> dict[str, Any]:
    told = {"model": "a", "direction": direction, "way": "some", "parts": parts}
    return told | {"ended": end, "seconds": end - begin}


def _report(*moves: dict[str, Any], first: float = 2.0, **more: float) -> Report:
    asked = {"what": "parked switch", "model": QWEN, "asked": 100.0, "first": first}
    rows = [{"what": "warm", "model": QWEN, "first": 0.05}, asked | {"moves": moves} | more]
    return Report({"host": {}, "steps": {"all": {"state": "done", "rows": rows}}})


def _shares(*moves: dict[str, Any], first: float = 2.0) -> list[float]:
    return _report(*moves, first=first).shares()


def test_own_share_is_what_the_parts_leave() -> None:
    # 0.1 before the first, 0.02 of it, 0.03 between the two, 0.1 for a look, 0.05 after them
    one_by_one = (
        _move("out", 100.1, 101.12, suspend=1.0),
        _move("in", 101.15, 101.95, look=0.06, close=0.04, resume=0.7),
    )
    assert _shares(*one_by_one) == [pytest.approx(0.25)]


def test_what_leaves_beside_the_one_that_comes_hides_nothing() -> None:
    alone = _move("in", 100.3, 101.9, resume=1.6)
    assert _shares(alone) == [pytest.approx(0.35)]
    assert _shares(alone, _move("out", 100.3, 101.8, suspend=1.5)) == [pytest.approx(0.35)]
    # One that leaves first is waited for up to where the other one comes in.
    first = _move("out", 100.1, 100.5, kill=0.1, tidy=0.3)
    assert _shares(first, alone) == [pytest.approx(0.15)]


def test_what_was_over_before_it_was_asked_for_nobody_waited_for() -> None:
    comes = _move("in", 100.3, 101.9, resume=1.6)
    # 0.02 without a name may have come last, and are waited for, as are 0.2 between the two.
    left = _move("out", 99.7, 100.1, look=0.08, kill=0.3)
    assert _shares(comes, left) == [pytest.approx(0.27)]
    # Of these it is not known to have been over.
    left = _move("out", 99.7, 100.1, kill=0.3, look=0.08)
    assert _shares(comes, left) == [pytest.approx(0.35)]


@pytest.mark.parametrize(
    ("kept_until", "own"),
    [(100.0, 6.1), (105.97, 0.13), (106.03, 0.1), (109.0, 6.1), (0.0, 6.1)],
)
def test_the_policys_patience_is_not_llmuxds_own_but_what_came_after_it_is(
    kept_until: float, own: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is what it would have waited by its rule, and did not."""
    switch = _move("out", 106.0, 106.3, kill=0.3), _move("in", 106.3, 107.9, restore=1.6)
    report = _report(*switch, first=8.05, kept_until=kept_until)
    assert report.shares() == [pytest.approx(own)]
    report.tables()
    told = capsys.readouterr().out
    assert ("kept an idle model" in told) is (own < 1.0)
    assert "parked switch  a      in, some   1  restore 1.6\n" in told
    assert f"own share, parked switch: {report.shares()[0]:.3f} s in the median of 1" in told


@pytest.mark.parametrize(
    ("come", "kept"),
    # For three of its gaps, where these are no more than 0.3 of what its switch costs.
    [(20.0, 50.0 + 6.0), (5.0, 50.0)],
)
def test_how_long_the_policy_keeps_an_idle_model_is_known_before(
    come: float, kept: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = {QWEN: {"restore": [come], "out": [0.5], "gap": [9.0], "resume": [99.0]}}
    (tmp_path / "costs.json").write_text(json.dumps({"version": 1, "models": learnt}))
    monkeypatch.setattr(patience, "_LEARNT", tmp_path / "costs.json")
    said = "\n".join(json.dumps({"data": told}) for told in ("serving", 50.0, {"gap": 2.0}))
    monkeypatch.setattr(patience, "sh", lambda *_argv: said)
    assert patience.kept_until(OPT, Tier.CHECKPOINT) == pytest.approx(kept)
    monkeypatch.setattr(patience, "sh", lambda *_argv: said.replace("serving", "checkpointed"))
    assert patience.kept_until(OPT, Tier.CHECKPOINT) == 0.0


def test_a_cold_start_after_a_restore_that_failed_is_told_without_that() -> None:
    came = _move("in", 100.1, 190.0, look=0.1, restore=0.5, clean=1.5, run=0.3, health=87.5)
    left = _move("out", 100.1, 101.0, kill=0.9)
    row = {"first": 90.0, "end": 90.1, "moves": [left, came]}
    assert faults._without_the_try(row) == {"first": 88.0, "end": pytest.approx(88.1), "tried": 2.0}


def test_settings_may_be_of_one_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(measure, "sh", lambda *_argv, **_how: "")
    monkeypatch.setattr(measure, "model", lambda name: {"args": [name]})
    monkeypatch.setattr(guest, "configure", lambda models, **_top: told.append(models))
    measure.configure(only=QWEN, tier="park")
    measure.configure(tier="park")
    assert told == [
        {QWEN: {"args": [QWEN], "tier": "park"}, OPT: {"args": [OPT]}},
        {QWEN: {"args": [QWEN], "tier": "park"}, OPT: {"args": [OPT], "tier": "park"}},
    ]


def test_goals_are_told_from_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"what": "image back", "model": QWEN, "end": 4.0, "same": True, "moves": []},
        {"what": "cold", "model": QWEN, "end": 60.0, "same": True, "moves": []},
        {"what": "check", "lines": dict.fromkeys(GPU_LINES, "ok: yes: ") | {"vram": "fail: no: "}},
        {"what": "check, taken away", "gone": "the driver", "red": True},
    ]
    beside = [{"what": "image back", "model": QWEN, "end": 9.0, "same": True, "moves": []}]
    steps = {"image": rows, "park": beside}
    report = Report(
        {"host": {}, "steps": {k: {"state": "done", "rows": v} for k, v in steps.items()}}
    )

    assert not report.goals()

    lines = capsys.readouterr().out.splitlines()
    assert "goal image to first completion, Qwen 3B: 4 s (wanted at most 5 s): met" in lines
    assert "goal cold start against image, Qwen 3B: 15 (wanted at least 12): met" in lines
    assert any("against a parked one: not measured" in line and "missed" in line for line in lines)
    assert "goal check: lines of the GPU not ok: 1 (wanted at most 0): missed" in lines
    assert "goal check: of 1 things taken away not told: 0 (wanted at most 0): met" in lines


def _way(value: str, out: float, back: float, failed: str = "") -> dict[str, Any]:
    told = {"what": f"park_sleep {value}", "model": QWEN, "key": "park_sleep", "value": value}
    return told | {"out": out, "back": back, "rounds": 0 if failed else 3, "failed": failed}


def _tuned(park: str, image: str, *ways: dict[str, Any]) -> dict[str, Any]:
    told = {"what": "tuned", "model": QWEN, "result": "done"}
    why = {"park_sleep by": "tuned", "image_sleep by": "tuned"}
    rows = [*ways, told | {"park_sleep": park, "image_sleep": image} | why]
    return {"host": {}, "steps": {"tune": {"state": "done", "rows": rows}}}


@pytest.mark.parametrize(
    ("park", "image", "ends"), [("1", "2", "met"), ("2", "kv", "missed"), ("off", "off", "missed")]
)
def test_what_was_chosen_is_held_against_what_was_measured(
    park: str, image: str, ends: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = _way("1", 1.5, 1.3), _way("2", 1.3, 2.1), _way("off", 0.0, 0.0, "it has no room")
    Report(_tuned(park, image, *ways)).goals()
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("goal tune: ")]
    assert len(told) == 2 and all(line.endswith(f": {ends}") for line in told), told


def test_a_step_that_takes_longer_than_is_left_makes_way(played: Path) -> None:
    long = plan.Step("long", 300.0, lambda _notes: None, takes=200.0)
    told = _run(played, long, _step("short"))
    assert list(told["steps"]) == ["short"]


def test_each_step_may_take_what_it_is_expected_to() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert not [step.name for step in STEPS if step.seconds < step.takes]


def test_what_criu_wrote_of_each_restore_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "userdata/restore.log"
    (tmp_path / "userdata").mkdir()
    monkeypatch.setattr(guest, "image", lambda _name: log.with_name("checkpoint"))
    (tmp_path / "results").mkdir()
    notes = plan.Notes(tmp_path / "results/image.notes.json")
    out = {"model": slug(OPT), "direction": "out", "way": "checkpoint"}
    other = {"model": slug(QWEN), "direction": "in", "way": "restore"}
    back = {"model": slug(OPT), "direction": "in", "way": "restore", "seconds": 3.1}
    for number, text in ((1, "first"), (2, "second")):
        log.write_text(text)
        kept = switches.restore_log(notes, OPT, [out, back])["log"]
        assert kept == f"image.restore.log.00{number}.gz"
        assert gzip.decompress((tmp_path / "results" / kept).read_bytes()) == text.encode()
    for made in ([], [out], [other], [back | {"way": "resume"}], [back | {"direction": "out"}]):
        assert switches.restore_log(notes, OPT, made) == {}
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_each_model_goes_out_and_back_by_hand_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[str, str]] = []

    def out(_notes: plan.Notes, name: str) -> float:
        assert moves.count(("back", name)) == moves.count(("out", name)), "it runs"
        moves.append(("out", name))
        return 37.0

    def back(_notes: plan.Notes, name: str, _port: int) -> float:
        assert moves.count(("back", name)) < moves.count(("out", name)), "it is out"
        moves.append(("back", name))
        return 15.0

    monkeypatch.setattr(by_hand, "_out", out)
    monkeypatch.setattr(by_hand, "_back", back)
    notes = plan.Notes(tmp_path / "notes.json")

    by_hand.take_turns(notes, {QWEN: 1, OPT: 2})

    assert sorted(moves) == [
        (way, name) for way in ("back", "out") for name in sorted([QWEN, OPT]) for _ in range(3)
    ]
    switches = [row["seconds"] for row in notes.rows if row["what"] == "seed switch"]
    assert switches == [52.0] * 5


def test_what_a_part_is_here_for_is_prepared_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(up, "STATE", tmp_path / "state")
    monkeypatch.setattr(driver, "present", lambda: True)
    monkeypatch.setattr(pack, "unpack", lambda name, _parts, _target: done.append(name))
    monkeypatch.setattr(userland, "fill", lambda _store: done.append("userland"))
    monkeypatch.setattr(up, "_weights", lambda *, with_gpu: done.append(f"weights {with_gpu}"))
    monkeypatch.setattr(up, "_read_ahead", lambda: done.append("read"))
    machine = boot.Booted(1)

    def come_up(_parts: list[Path], *, with_gpu: bool) -> boot.Booted:
        assert with_gpu
        done.append("up")
        return machine

    monkeypatch.setattr(up, "_machine", come_up)
    monkeypatch.setattr(boot, "running", lambda: None)
    (tmp_path / "vllm.tar.xz.00").touch()

    up.prepare([tmp_path])
    assert sorted(done) == ["read", "userland", "vllm", "weights True"]
    (tmp_path / "root.tar.xz.00").touch()
    done.clear()
    up.prepare([tmp_path])
    assert done == ["up"]
    assert up.up([tmp_path]) is machine


def test_a_machine_boots_before_its_image_is_there_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted: list[dict[str, tuple[Path, str]]] = []
    monkeypatch.setattr(up, "STATE", tmp_path)
    monkeypatch.setattr(up, "IMAGE", tmp_path / "image")
    monkeypatch.setattr(up, "MODELS", tmp_path / "models")
    monkeypatch.setattr(pack, "unpack", lambda _name, _parts, target: target.mkdir())
    monkeypatch.setattr(up, "_files", lambda _root, _stores: None)
    monkeypatch.setattr(cgroup, "remove", lambda _name: None)
    monkeypatch.setattr(driver, "install", lambda _root: {})
    monkeypatch.setattr(driver, "write_cdi", lambda _root: None)
    monkeypatch.setattr(driver, "nodes", lambda: [])
    monkeypatch.setattr(boot, "running", lambda: boot.Booted(1) if booted else None)

    def begin(_root: Path, binds: dict[str, tuple[Path, str]], _nodes: list[str]) -> boot.Booted:
        assert all(place.is_dir() for place, _ in binds.values())
        booted.append(binds)
        return boot.Booted(1)

    monkeypatch.setattr(boot, "boot", begin)
    monkeypatch.setattr(up, "install", lambda _booted: None)
    monkeypatch.setattr(boot.Booted, "shell", lambda _self, _script: "")
    for _ in range(2):
        assert up._machine([tmp_path], with_gpu=True).leader == 1
    (binds,) = booted
    assert binds["/srv/models"] == (tmp_path / "models", "ro")
    assert (tmp_path / "image", "ro") in binds.values()
