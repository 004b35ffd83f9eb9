# SPDX-License-Identifier: MIT
"""Takes the code for other GPUs out of a library that nvcc built, so that it packs small.

A fat binary in a library's .nv_fatbin is a header (magic, u16 version, u16 its own size, u64
size of what follows) and entries: u16 kind (1 PTX, 2 ELF), u16 version, u32 header's size, u64
code's size, and at byte 28 the u32 architecture, 90 for compute capability 9.0. The driver takes
the entry that fits and never looks at the others' code, which can therefore be zeros. Offsets
were read off CUDA 13's own files; cuobjdump --list-elf shows the same entries.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
_HEADER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCHITECTURE = struct.Struct("<I")
_ARCHITECTURE_AT = 28
_SMALLEST_ENTRY = 64
_ELF = 2


@dataclass(frozen=True)
class Entry:
    """Code for one architecture: where it begins in the file, and its bytes."""

    kind: int
    architecture: int
    begin: int
    size: int


def keep_only(library: bytearray, architecture: int) -> int:
    """Zero all code but the machine code for `architecture`; how many bytes that were."""
    zeroed = 0
    for entry in entries(library):
        if (entry.kind, entry.architecture) != (_ELF, architecture):
            library[entry.begin : entry.begin + entry.size] = bytes(entry.size)
            zeroed += entry.size
    return zeroed


def entries(library: bytes | bytearray) -> Iterator[Entry]:
    """Every piece of GPU code in a library."""
    at = library.find(_MAGIC)
    while at >= 0:
        *_, size = _HEADER.unpack_from(library, at)
        place = at + _HEADER.size
        end = min(place + size, len(library))
        while place + _SMALLEST_ENTRY <= end:
            kind, _, header, code = _ENTRY.unpack_from(library, place)
            (architecture,) = _ARCHITECTURE.unpack_from(library, place + _ARCHITECTURE_AT)
            if header < _SMALLEST_ENTRY or place + header + code > end:
                break
            yield Entry(kind, architecture, place + header, code)
            place += header + code
        at = library.find(_MAGIC, max(place, at + 1))
