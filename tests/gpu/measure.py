# SPDX-License-Identifier: MIT
"""What is measured in the machine: requests to their first token and end, VRAM, RAM, images."""

import http.client
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llmuxd import files, names
from llmuxd.model import network
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

MODELS = (QWEN, OPT)
FOLDERS = {OPT: "/srv/models/opt-125m", QWEN: "/srv/models/qwen2.5-3b-instruct"}
HAS_GPU = Path("/proc/driver/nvidia/version").exists()
CACHE = Path("/var/cache/llmux-vllm")
TOKENS = 8
# What each model is given of the GPU, whatever GPU it is: what is copied by hand is most of this,
# six times out and six times back. With the CUDA contexts, which vLLM does not count, it is less
# than NEED.
VRAM_GIB = 16
NEED = "18GiB"


def configure(top: dict[str, Any] | None = None, only: str = "", **more: Any) -> None:
    """Both models, or `only` this, with these settings on top, and llmuxd started anew.

    `top` are llmuxd's own.
    """
    # A plan restarts it more often than its start limit lets it be.
    sh("systemctl", "reset-failed", "llmuxd.service", check=False)
    models = {name: model(name) | (more if only in ("", name) else {}) for name in MODELS}
    guest.configure(models, top=top)


def model(name: str) -> dict[str, Any]:
    """The definition of one; without a GPU for a rehearsal on the CPU."""
    args = ["--model", FOLDERS[name], "--served-model-name", name, "--max-model-len", "512"]
    common = {"engine": "vllm", "snapshot": "pristine", "start_timeout": 240}
    if why_open():
        common["network"] = "open"
    if not HAS_GPU:
        image = "localhost/llmux-vllm:latest"
        return common | {"image": image, "args": args, "volumes": ["/srv/models:/srv/models:ro"]}
    compiled(name).mkdir(parents=True, exist_ok=True)
    share = VRAM_GIB * 1024 / total_vram()
    return common | {
        "image": "localhost/llmux-vllm-gpu:latest",
        "devices": ["nvidia.com/gpu=0"],
        "volumes": ["/srv/models:/srv/models:ro", f"{compiled(name)}:/var/cache/vllm"],
        "args": [*args, "--gpu-memory-utilization", f"{share:.2f}", "--enable-sleep-mode"],
        "env": {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"},
    }


@cache
def why_open() -> str:
    """Why this kernel cannot have llmuxd's rules for containers' networks; empty where it can."""
    done = subprocess.run(
        ["nft", "--file", str(network.RULES)], capture_output=True, text=True, check=False
    )
    return done.stderr.strip() if done.returncode else ""


def compiled(name: str) -> Path:
    """The volume that a model's vLLM keeps compiled code in.

    Each its own: CRIU restores no server whose mapped files were written anew (`bad build-ID`).
    """
    return CACHE / names.slug(name)


def forget_compiled(name: str) -> None:
    """Empty it, and what llmuxd keeps of root's home, where there is one: not the directories
    themselves, which containers have mounted."""
    for place, below in ((compiled(name), "*"), (files.cache_root() / names.slug(name), "*/*")):
        for path in place.glob(below):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Refused(RuntimeError):
    """A request was answered with an error; `retry_after` is in seconds, 0.0 where not told."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Answer:
    """Seconds from the request to the first token and to the end, and the text."""

    first: float
    end: float
    text: str


def ask(name: str, port: int = 4000, timeout: float = 300.0) -> Answer:
    """A streamed completion at temperature 0."""
    body = {
        "model": name, "prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0,
        "stream": True,
    }  # fmt: skip
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            retry_after = float(response.headers.get("Retry-After", "0"))
            raise Refused(f"{name}: {response.status} {response.read()[:500]!r}", retry_after)
        first, text = 0.0, ""
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                first = first or time.monotonic() - begin
                text += json.loads(line[6:])["choices"][0]["text"]
        return Answer(first, time.monotonic() - begin, text)
    finally:
        connection.close()


_TEXTS = Path("/run/llmux-texts.json")


def same(name: str, text: str) -> bool:
    """Whether a text is the one that was given under this name the first time."""
    texts = json.loads(_TEXTS.read_text()) if _TEXTS.exists() else {}
    known = texts.setdefault(name, text)
    _TEXTS.write_text(json.dumps(texts))
    return bool(known == text)


def vram() -> int:
    """MiB in use on the GPU; 0 where there is none."""
    if not HAS_GPU:
        return 0
    return int(sh("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"))


@cache
def total_vram() -> int:
    """MiB that the GPU has."""
    return int(sh("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"))


def gpu_name() -> str:
    """As `NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB`."""
    if not HAS_GPU:
        return "none"
    return sh("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def ram(name: str) -> float:
    """GiB of host memory that the model's unit holds, page cache and all; 0.0 where not known."""
    text = sh("systemctl", "show", "-P", "MemoryCurrent", names.unit(name))
    return int(text) / 2**30 if text.isdigit() else 0.0


def resident(process: int) -> int:
    """Pages of memory that the process has; what it shares counts, too."""
    return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])


def available() -> float:
    """GiB of host memory that programs can have."""
    return int(lines("/proc/meminfo", "MemAvailable")[0].split()[1]) / 2**20


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_pages() -> str:
    """Which memory the kernel backs with huge pages: always, madvise or never."""
    return HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]


def lines(path: str, begin: str) -> list[str]:
    """The lines of a file that begin so."""
    return [line for line in Path(path).read_text().splitlines() if line.startswith(begin)]


def disk() -> float:
    """GiB that are free where podman's images lie."""
    return shutil.disk_usage("/var/lib/containers").free / 2**30


def memory(name: str) -> dict[str, float]:
    """What is taken of the GPU, and of the host by the model's unit."""
    return {"vram_MiB": vram(), "ram_GiB": ram(name), "available_GiB": available()}


def leave(name: str) -> None:
    """Have the model in its image, if it runs."""
    sh("llmuxctl", "checkpoint", name, check=False, timeout=120)


def image_size(name: str) -> float:
    """GiB of the model's image on disk."""
    return float(guest.record(name)["size"]) / 2**30


def pretend(name: str, **identity: str) -> None:
    """Have the record say that the image was taken on a host that is as this one is now."""
    path = guest.CHECKPOINTS / f"{names.slug(name)}.json"
    record = json.loads(path.read_text())
    record["identity"] |= identity
    path.write_text(json.dumps(record))


def command(*argv: str, timeout: float = 300.0) -> float:
    """Run a command; the seconds it took. It must succeed."""
    begin = time.monotonic()
    sh(*argv, timeout=timeout)
    return time.monotonic() - begin


def said(name: str, since: float) -> list[str]:
    """What llmuxd's helper said in a model's unit since that Unix time."""
    done = subprocess.run(
        [
            *("journalctl", "--no-pager", "--output=cat", f"--since=@{since:.3f}"),
            *(f"_SYSTEMD_UNIT={names.unit(name)}", "SYSLOG_IDENTIFIER=llmux-model"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()
