# SPDX-License-Identifier: MIT
"""Just enough ELF to see whether a plugin fits the program that loads it."""

import struct
from typing import NamedTuple

_DYNSYM = 11
_VERSYM = 0x6FFFFFFF
_WEAK = 2


class Symbols(NamedTuple):
    """Names that a file offers, and names that it expects its loader to have."""

    offered: frozenset[str]
    expected: frozenset[str]


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def symbols(content: bytes) -> Symbols | None:
    """The dynamic symbols of a 64-bit little-endian ELF file; None for anything else."""
    if content[:6] != b"\x7fELF\x02\x01":
        return None
    try:
        return _symbols(content)
    except (struct.error, IndexError, ValueError):
        return None


def _symbols(content: bytes) -> Symbols | None:
    (offset,) = struct.unpack_from("<Q", content, 0x28)
    entry_size, count = struct.unpack_from("<HH", content, 0x3A)
    sections = [
        _Section._make(struct.unpack_from("<IIQQQQIIQQ", content, offset + index * entry_size))
        for index in range(count)
    ]
    table = next((section for section in sections if section.type == _DYNSYM), None)
    if table is None:
        return None
    names = sections[table.link].offset
    versions = next((section for section in sections if section.type == _VERSYM), None)
    offered, expected = set(), set()
    for index in range(1, table.size // 24):
        start, info, _, home = struct.unpack_from("<IBBH", content, table.offset + index * 24)
        name = content[names + start : content.index(b"\0", names + start)].decode()
        if home:
            offered.add(name)
        elif info >> 4 != _WEAK and not _versioned(content, versions, index):
            expected.add(name)
    return Symbols(frozenset(offered), frozenset(expected))


def _versioned(content: bytes, versions: _Section | None, index: int) -> bool:
    """Whether the symbol names its library's version: then it is libc's, not the loader's."""
    if versions is None:
        return False
    (number,) = struct.unpack_from("<H", content, versions.offset + index * 2)
    return bool(number & 0x7FFF > 1)
