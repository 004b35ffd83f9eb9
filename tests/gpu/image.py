# SPDX-License-Identifier: MIT
"""The image of vLLM for a GPU: all that its server needs and the host has not.

PyTorch, CUDA's libraries and Python stay where the host has them; userland.py puts them into the
image there. What is here fits into one part of 60 MiB: the code for GPUs of other architectures
and the kernels that no GPU of this one runs are left out.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from tests.machine import process

from . import fatbin

NAME = "localhost/llmux-vllm-gpu:latest"
# Packages, and the program that userland.py writes for the host's Python.
SITE = "opt/vllm/site"
START = "opt/vllm/start"

_ENVIRONMENT = {
    "PYTHONPATH": f"/{SITE}",
    "HOME": "/root",
    "VLLM_CACHE_ROOT": "/var/cache/vllm",
    "TRITON_CACHE_DIR": "/var/cache/vllm/triton",
    "TORCHINDUCTOR_CACHE_DIR": "/var/cache/vllm/inductor",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # flashinfer is not among the packages.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Triton looks for libcuda in ld.so's cache, and CDI brings it in after that was written.
    "TRITON_LIBCUDA_PATH": "/usr/lib/x86_64-linux-gnu",
    # Sleep, and what brings a server back after it.
    "VLLM_SERVER_DEV_MODE": "1",
    # A connection to outside would spoil a checkpoint.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}

CHANGES = [
    *(f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()),
    f"ENTRYPOINT {json.dumps([f'/{START}'])}",
    "EXPOSE 8000",
]

ARCHITECTURE = 90  # H100 and H200
_PYTHON = "3.12"
_REQUIREMENTS = Path(__file__).with_name("vllm-requirements.txt")
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
# FlashAttention 2 and FlashMLA: FlashAttention 3 serves both models. A server in Rust, static
# libraries, tokenizers of other models, and what packages are built from.
_UNUSED = (
    *("vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so", "vllm/_flashmla*.so", "vllm/vllm-rs"),
    *("vllm/third_party/deep_gemm", "vllm/benchmarks", "vllm/vllm_flash_attn/cute"),
    *("xgrammar/lib", "mistral_common/data", "pycountry/locales", "bin", "share"),
)
_PROGRAMS = ("vllm/_C.abi3.so", "vllm/_C_stable_libtorch.abi3.so", "vllm/_moe_C.abi3.so")


def recipe() -> str:
    """What the image depends on."""
    return "\n".join(
        path.read_text() for path in (Path(__file__), Path(fatbin.__file__), _REQUIREMENTS)
    )


def rootfs(target: Path, downloads: Path) -> None:
    """Fill target with the packages, and the directories that the host's files go to."""
    site = target / SITE
    site.parent.mkdir(parents=True)
    with process.step("vllm for a GPU: packages from PyPI"):
        _install(site, downloads)
    for pattern in _UNUSED:
        for path in list(site.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with process.step("vllm for a GPU: leaving other GPUs' code out"):
        for name in _PROGRAMS:
            library = bytearray((site / name).read_bytes())
            fatbin.keep_only(library, ARCHITECTURE)
            (site / name).write_bytes(library)
    for name in ("etc", "opt", "root", "srv/models", "tmp", "usr", "var/cache/vllm", "var/tmp"):
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (target / name).symlink_to(f"usr/{name}")


def _install(site: Path, downloads: Path) -> None:
    command: list[str | Path] = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--no-deps"),
        *("--no-compile", "--only-binary=:all:", f"--python-version={_PYTHON}"),
        *(f"--platform={platform}" for platform in _PLATFORMS),
        *("--cache-dir", downloads / "pip", "--target", site, "--requirement", _REQUIREMENTS),
    ]
    process.run(command, env={**os.environ, "TMPDIR": str(downloads)})
