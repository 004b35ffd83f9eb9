# SPDX-License-Identifier: MIT
"""NVML, NVIDIA's management library, as far as memory goes.

Layouts and codes are those of nvml.h in CUDA 13; the versions of the calls that are used came with
driver 510. NVIDIA's own Python binding is in no main archive of Debian, Fedora or RHEL, and seven
calls don't need it.
"""

import ctypes
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"

_NOT_SUPPORTED = 3
_INSUFFICIENT_SIZE = 7
_NOT_AVAILABLE = (1 << 64) - 1
_NAME_SIZE = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE


class NvmlError(Exception):
    """NVML is not here, or refused a call; one line says which and why."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. `reserved` is the driver's own; the rest of `total` is used or free."""

    total: int
    reserved: int
    used: int


class _Memory(ctypes.Structure):
    """nvmlMemory_v2_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which the calls of version 3 fill in."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("usedGpuMemory", ctypes.c_ulonglong),
        ("gpuInstanceId", ctypes.c_uint),
        ("computeInstanceId", ctypes.c_uint),
    )


_MEMORY_VERSION = ctypes.sizeof(_Memory) | 2 << 24


class Nvml:
    """The library, initialized. While it is open the kernel modules cannot be unloaded."""

    def __init__(self, library: str | None = None):
        try:
            self._library = ctypes.CDLL(library or LIBRARY)
        except OSError as error:
            raise NvmlError(f"NVML cannot be loaded: {error}") from None
        self._call("nvmlInit_v2")

    def close(self) -> None:
        """Let go of the driver."""
        self._library.nvmlShutdown()

    def count(self) -> int:
        """How many GPUs there are."""
        value = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(value))
        return value.value

    def name(self, number: int) -> str:
        """What the GPU is called, such as `NVIDIA H100 80GB HBM3`."""
        text = ctypes.create_string_buffer(_NAME_SIZE)
        self._call("nvmlDeviceGetName", self._device(number), text, _NAME_SIZE)
        return text.value.decode(errors="replace")

    def memory(self, number: int) -> Memory:
        """The GPU's memory now."""
        memory = _Memory(version=_MEMORY_VERSION)
        self._call("nvmlDeviceGetMemoryInfo_v2", self._device(number), ctypes.byref(memory))
        return Memory(memory.total, memory.reserved, memory.used)

    def processes(self, number: int) -> dict[int, int | None]:
        """The pids of who has memory on the GPU, and how many bytes; None: not told."""
        device = self._device(number)
        found: dict[int, int | None] = {}
        for kind in ("Graphics", "Compute"):
            # A process that does both is listed twice, with the same number.
            found |= self._running(f"nvmlDeviceGet{kind}RunningProcesses_v3", device)
        return found

    def _running(self, function: str, device: ctypes.c_void_p) -> dict[int, int | None]:
        room = 64
        while True:
            count = ctypes.c_uint(room)
            infos = (_Process * room)()
            code = self._library[function](device, ctypes.byref(count), infos)
            if code == _NOT_SUPPORTED:
                return {}
            if code != _INSUFFICIENT_SIZE:
                break
            # More may come until the next call.
            room = 2 * max(room, count.value)
        self._check(function, code)
        told = [(info.pid, info.usedGpuMemory) for info in infos[: count.value]]
        return {pid: None if size == _NOT_AVAILABLE else size for pid, size in told}

    def _device(self, number: int) -> ctypes.c_void_p:
        device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", number, ctypes.byref(device))
        return device

    def _call(self, function: str, *arguments: object) -> None:
        try:
            entry = self._library[function]
        except AttributeError:
            raise NvmlError(f"this NVML has no {function}, drivers from 510 on do") from None
        self._check(function, entry(*arguments))

    def _check(self, function: str, code: int) -> None:
        if code:
            words = self._library.nvmlErrorString
            words.restype = ctypes.c_char_p
            raise NvmlError(f"{function}: {words(code).decode(errors='replace')} ({code})")
