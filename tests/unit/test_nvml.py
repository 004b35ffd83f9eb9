# SPDX-License-Identifier: MIT
from collections.abc import Iterator

import pytest

from llmuxd.meter.nvml import Memory, Nvml, NvmlError

from .fake_cuda import compile_library
from .fake_nvml import H100, FakeNvml

MIB = 1 << 20


@pytest.fixture
def open_nvml(nvml: FakeNvml) -> Iterator[Nvml]:
    opened = Nvml(str(nvml.library))
    yield opened
    opened.close()


def test_what_a_gpu_is(nvml: FakeNvml, open_nvml: Nvml) -> None:
    nvml.tell(H100, "gpu 24576 400 16 NVIDIA RTX 4090")
    assert open_nvml.count() == 2
    assert [open_nvml.name(number) for number in range(2)] == [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA RTX 4090",
    ]
    assert open_nvml.memory(0) == Memory(81559 * MIB, 551 * MIB, 0)
    assert open_nvml.memory(1) == Memory(24576 * MIB, 400 * MIB, 16 * MIB)


def test_who_is_on_it(nvml: FakeNvml, open_nvml: Nvml) -> None:
    nvml.tell(H100, H100, "process 0 11 5", "process 1 12 6", "graphics 0 13 7", "process 0 14 -")
    assert open_nvml.processes(0) == {11: 5 * MIB, 13: 7 * MIB, 14: None}
    assert open_nvml.processes(1) == {12: 6 * MIB}


def test_a_process_that_draws_and_computes_is_one(nvml: FakeNvml, open_nvml: Nvml) -> None:
    nvml.tell(H100, "process 0 11 5", "graphics 0 11 5")
    assert open_nvml.processes(0) == {11: 5 * MIB}


def test_any_number_of_processes(nvml: FakeNvml, open_nvml: Nvml) -> None:
    pids = range(1000, 1300)
    nvml.tell(H100, *(f"process 0 {pid} 1" for pid in pids))
    assert open_nvml.processes(0) == dict.fromkeys(pids, MIB)


def test_a_gpu_that_lists_no_processes_of_a_kind(nvml: FakeNvml, open_nvml: Nvml) -> None:
    nvml.tell(H100, "process 0 11 5", "fail nvmlDeviceGetGraphicsRunningProcesses_v3 3")
    assert open_nvml.processes(0) == {11: 5 * MIB}


def test_a_refusal_says_what_and_why(nvml: FakeNvml, open_nvml: Nvml) -> None:
    nvml.tell(H100, "fail nvmlDeviceGetMemoryInfo_v2 15")
    with pytest.raises(NvmlError, match=r"^nvmlDeviceGetMemoryInfo_v2: GPU is lost \(15\)$"):
        open_nvml.memory(0)


def test_no_driver(nvml: FakeNvml) -> None:
    nvml.tell("fail nvmlInit_v2 9")
    with pytest.raises(NvmlError, match="Driver Not Loaded"):
        Nvml(str(nvml.library))


def test_no_library() -> None:
    with pytest.raises(NvmlError, match="NVML cannot be loaded: .*libnvidia-none"):
        Nvml("libnvidia-none.so.1")


def test_a_library_too_old(nvml: FakeNvml) -> None:
    source = nvml.file.with_suffix(".c")
    source.write_text("int nvmlInit_v2(void) { return 0; }\n")
    old = Nvml(str(compile_library(source, nvml.file.with_suffix(".so"))))
    with pytest.raises(NvmlError, match="no nvmlDeviceGetCount_v2, drivers from 510 on do"):
        old.count()
