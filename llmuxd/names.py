# SPDX-License-Identifier: MIT
"""A model's name in every notation that it goes by.

A name is free text such as `Qwen/Qwen2.5-3B-Instruct`. systemd, D-Bus and podman each allow
fewer characters, so each has its own reversible or unique form of it here.

Without `re`: a model's unit waits for what is imported here, three times in a switch (handing.py).
"""

import hashlib

from .errors import InvalidName

UNIT_PREFIX = "llmux-model@"
UNIT_SUFFIX = ".service"
MODEL_ROOT = "/Model/"
CONTAINER_PREFIX = "llmux-"

# systemd.unit(5): "The total length of the unit name including the suffix must not exceed 255".
MAX_UNIT_BYTES = 255
# Leaves room for the digest within the 64 characters that host names and most tables allow.
MAX_SLUG_STEM = 40

_UNIT_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_LABEL_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_DIGITS = frozenset(b"0123456789")
_LOWER_HEX = _DIGITS | frozenset(b"abcdef")
_HEX = _LOWER_HEX | frozenset(b"ABCDEF")
_SLUG_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.")


def check(name: str) -> str:
    """Return `name` if it can be a model's name, else raise InvalidName saying why not."""
    if not name:
        raise InvalidName("a model's name must not be empty")
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise InvalidName(f"the model name {name!r} has a control character in it")
    try:
        length = len(unit(name))
    except UnicodeEncodeError:
        raise InvalidName(f"the model name {name!r} is not valid text") from None
    if length > MAX_UNIT_BYTES:
        raise InvalidName(
            f"the model name {name!r} is too long: its unit's name would have {length} characters,"
            f" systemd allows {MAX_UNIT_BYTES}"
        )
    return name


def escape(name: str) -> str:
    """The unit instance for `name`, as systemd-escape(1) writes it."""
    out = []
    for index, byte in enumerate(name.encode()):
        if byte == ord("/"):
            out.append("-")
        elif byte in _UNIT_SAFE and not (index == 0 and byte == ord(".")):
            out.append(chr(byte))
        else:
            out.append(f"\\x{byte:02x}")
    return "".join(out)


def unescape(instance: str) -> str:
    """The name behind a unit instance, as `systemd-escape --unescape` reads it."""

    try:
        return _decode(instance.encode().replace(b"-", b"/"), b"\\x", _HEX).decode()
    except UnicodeDecodeError:
        raise InvalidName(f"the unit instance {instance!r} is not valid text") from None


def unit(name: str) -> str:
    """The systemd unit of the model `name`."""
    return f"{UNIT_PREFIX}{escape(name)}{UNIT_SUFFIX}"


def from_unit(unit_name: str) -> str | None:
    """The model whose unit this is; None for any other unit."""
    if not (unit_name.startswith(UNIT_PREFIX) and unit_name.endswith(UNIT_SUFFIX)):
        return None
    instance = unit_name[len(UNIT_PREFIX) : -len(UNIT_SUFFIX)]
    try:
        return unescape(instance) if instance else None
    except InvalidName:
        return None


def slug(name: str) -> str:
    """A short form of `name` for files and containers: readable, legal in podman, unique.

    Many names share one readable form (`a/b`, `a-b`), so a digest of the name always follows.
    """
    dashed = "".join(char if char in _SLUG_SAFE else "-" for char in name.lower())
    stem = "-".join(filter(None, dashed.split("-"))).strip("-.")[:MAX_SLUG_STEM].strip("-.")
    return f"{stem}-{digest(name)}" if stem else digest(name)


def digest(name: str) -> str:
    """Eight hexadecimal digits that tell `name` from others where there is room for no more."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def container(name: str) -> str:
    """The podman container of the model `name`."""
    return CONTAINER_PREFIX + slug(name)


def object_path(name: str) -> str:
    """The D-Bus object of the model `name`; the label is encoded as by sd_bus_path_encode(3)."""
    out = []
    for index, byte in enumerate(name.encode()):
        safe = byte in _LABEL_SAFE and not (index == 0 and byte in _DIGITS)
        out.append(chr(byte) if safe else f"_{byte:02x}")
    return MODEL_ROOT + ("".join(out) or "_")


def from_object_path(path: str) -> str | None:
    """The model behind a D-Bus object path; None for any other path."""
    if not path.startswith(MODEL_ROOT):
        return None
    label = path[len(MODEL_ROOT) :]
    if label == "_":
        return ""
    try:
        return _decode(label.encode(), b"_", _LOWER_HEX).decode()
    except UnicodeDecodeError:
        return None


def _decode(raw: bytes, mark: bytes, digits: frozenset[int]) -> bytes:
    """Each `mark` with two digits behind it is the byte of that number; any other stands."""
    first, *rest = raw.split(mark)
    out = first
    for part in rest:
        good = len(part) > 1 and part[0] in digits and part[1] in digits
        out += bytes([int(part[:2], 16)]) + part[2:] if good else mark + part
    return out
