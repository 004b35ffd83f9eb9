# SPDX-License-Identifier: MIT
"""Models that share a GPU by its measured memory. NVML is a stand-in; all else is real."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from ..libraries import NVML
from .guest import OPT, QWEN, complete, configure, eventually, fails, journal, sh, state, two_fakes

DROP_INS = Path("/run/systemd/system")
TOLD = Path("/run/llmux-nvml")
H100 = "gpu 81559 551 0 NVIDIA H100 80GB HBM3"
GEMMA = "google/gemma-3-1b-it"
MANAGER = ("org.llmux", "/Manager", "org.llmux.Manager")
HOG = "llmux-test-hog.service"
HELD = "sleep 4711"


class Nvml:
    """What the driver says. A model holds memory while its server runs, as the hog does."""

    def tell(self, hog: int = 0, **gib: int) -> None:
        """So many GiB are held by the hog, and by each model's server."""
        sizes = {HELD: hog} | {f"fake_engine.py --model {SHORT[m]}": n for m, n in gib.items()}
        lines = [H100, *(f"running 0 {size << 10} {text}" for text, size in sizes.items())]
        new = TOLD.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        new.replace(TOLD)


SHORT = {"opt": OPT, "qwen": QWEN, "gemma": GEMMA}


@pytest.fixture
def driver() -> Iterator[Nvml]:
    """One H100, nobody on it yet."""
    assert NVML.there.stat().st_size, "the host that booted this machine has no C compiler"
    for kind in ("socket", "service"):
        directory = DROP_INS / f"llmux-gpus.{kind}.d"
        directory.mkdir(parents=True)
        text = "[Unit]\nConditionPathExists=\n"
        if kind == "service":
            text += f"[Service]\nEnvironment=LD_LIBRARY_PATH={NVML.there.parent} FAKE_NVML={TOLD}\n"
        (directory / "test.conf").write_text(text, encoding="ascii")
    sh("systemctl", "daemon-reload")
    driver = Nvml()
    driver.tell()
    try:
        yield driver
    finally:
        sh("systemctl", "stop", HOG, check=False)
        for kind in ("socket", "service"):
            (DROP_INS / f"llmux-gpus.{kind}.d" / "test.conf").unlink()
            (DROP_INS / f"llmux-gpus.{kind}.d").rmdir()
        sh("systemctl", "daemon-reload")


def _models(**vram: str) -> None:
    models: dict[str, Any] = {
        SHORT[short]: {"args": ["--model", SHORT[short]], "vram": size}
        for short, size in vram.items()
    }
    configure(models)


def _states(*models: str) -> list[str]:
    return sorted(state(model) for model in models)


def test_without_a_driver_nothing_runs_and_nothing_fails() -> None:
    two_fakes()
    assert complete(OPT).text
    for name in ("llmux-gpus.socket", "llmux-gpus.service"):
        assert _state(name) == "inactive"
    assert sh("systemctl", "--failed", "--no-legend") == ""


def test_a_foreign_process_is_named_and_waited_for_no_longer(driver: Nvml) -> None:
    driver.tell(hog=40)
    sh("systemd-run", f"--unit={HOG}", *HELD.split())
    pid = sh("systemctl", "show", "-P", "MainPID", HOG)
    _models(opt="60GiB")
    why = (
        " needs 60.0 GiB of GPU 0, 20.9 GiB more than it can have:"
        f" sleep (PID {pid}) holds 40.0 GiB"
    )
    answer = complete(OPT)
    assert (answer.status, answer.json["error"]["code"]) == (507, "no_room")
    assert answer.json["error"]["message"].startswith(f"'{OPT}'{why}")
    sh("busctl", "call", *MANAGER, "Switch", "s", OPT)
    path = names.object_path(OPT)
    error = ["get-property", "org.llmux", path, "org.llmux.Model", "LastError"]
    eventually(lambda: why in sh("busctl", *error), "the job fails")
    status, told = fails("llmuxctl", "switch", OPT)
    assert status == 1 and why in told
    assert state(OPT) == "cold"
    sh("systemctl", "stop", HOG)
    assert complete(OPT).text


def test_models_share_a_gpu_as_far_as_there_is_room(driver: Nvml) -> None:
    driver.tell(opt=30, qwen=40, gemma=30)
    _models(opt="30GiB", qwen="40GiB", gemma="30GiB")
    texts = {model: complete(model).text for model in (OPT, QWEN)}
    assert _states(OPT, QWEN) == ["serving", "serving"]
    row = f'a(usttt) 1 0 "NVIDIA H100 80GB HBM3" {81008 << 20} {70 << 30} 0'
    eventually(lambda: sh("busctl", "get-property", *MANAGER, "GPUs") == row, "it is measured")
    lines = sh("curl", "--silent", "--fail", "http://127.0.0.1:4000/metrics").splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(metrics[f'llmux_model_gpu_bytes{{gpu="0",model="{QWEN}"}}']) == 40 << 30
    assert complete(GEMMA).text
    assert state(GEMMA) == "serving"
    eventually(lambda: _states(OPT, QWEN) == ["checkpointed", "serving"], "one has left")
    # Whoever makes room, all come back in turn, and never two that do not fit.
    for model in (OPT, QWEN, GEMMA):
        assert complete(model).text
        assert _states(OPT, QWEN, GEMMA).count("serving") <= 2
        assert _states(QWEN, OPT) != ["serving", "serving"] or state(GEMMA) != "serving"
    for model, text in texts.items():
        assert complete(model).text == text


def test_a_model_that_holds_more_than_it_says_is_weighed_as_it_is(driver: Nvml) -> None:
    driver.tell(opt=45, qwen=40)
    _models(opt="30GiB", qwen="40GiB")
    assert complete(OPT).text
    eventually(lambda: "46080 of" in _told(), "it is measured")
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")
    assert state(QWEN) == "serving"


def test_a_meter_that_dies_is_started_again(driver: Nvml) -> None:
    driver.tell(opt=60, qwen=60)
    _models(opt="60GiB", qwen="60GiB")
    assert complete(OPT).text
    before = sh("systemctl", "show", "-P", "MainPID", "llmux-gpus.service")
    sh("systemctl", "kill", "--signal=KILL", "llmux-gpus.service")
    assert complete(QWEN).text
    eventually(lambda: state(OPT) == "checkpointed", "it has left")
    eventually(lambda: "61440 of" in _told(), "it measures again")
    assert sh("systemctl", "show", "-P", "MainPID", "llmux-gpus.service") != before
    assert "cannot be measured" not in journal("llmuxd.service")


def test_a_meter_that_cannot_start_is_no_loop_and_in_nobodys_way(driver: Nvml) -> None:
    drop_in = DROP_INS / "llmux-gpus.service.d" / "broken.conf"
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n", encoding="ascii")
    try:
        sh("systemctl", "daemon-reload")
        _models(opt="60GiB", qwen="60GiB")
        for model in (OPT, QWEN):
            assert complete(model).text

        eventually(lambda: _state("llmux-gpus.socket") == "failed", "systemd gives it up")
    finally:
        drop_in.unlink()
    assert journal("llmux-gpus.service").count("Starting ") <= 20


def _told() -> str:
    return sh("systemctl", "show", "-P", "StatusText", "llmux-gpus.service")


def _state(unit_name: str) -> str:
    return sh("systemctl", "is-active", unit_name, check=False)
