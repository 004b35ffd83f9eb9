# SPDX-License-Identifier: MIT
"""The proxies that are compared, each in a process of its own, before the same backend."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODEL = "org/model"
TICKS = os.sysconf("SC_CLK_TCK")
_CACHE = Path(os.environ.get("LLMUX_MACHINE_CACHE", "/var/cache/llmux-machine"))
# litellm's proxy and all that it needs, each file with its hash; `make requirements` writes it.
_LITELLM = Path(__file__).with_name("litellm.txt")

ANSWER = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": "Hello, how are you today?"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
    }
)  # fmt: skip

_NGINX = """\
worker_processes 1;
daemon off;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_max_body_size 64m;
    client_body_buffer_size 2m;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    {servers}
}}
"""
_BACKEND = """\
server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ default_type application/json; return 200 '{answer}'; }}
    }}"""
_REVERSE = """\
upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}"""


@dataclass
class Contender:
    """One that listens; `pid` is 0 for the backend itself."""

    name: str
    port: int
    pid: int

    @property
    def seconds(self) -> float:
        """Processor time that it used so far, its children's included."""
        if not self.pid:
            return 0.0
        return sum(_seconds(pid) for pid in (self.pid, *_children(self.pid)))

    @property
    def resident_mb(self) -> float:
        """Its own resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1e3


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def backend(scratch: Path) -> Iterator[Contender]:
    """nginx that answers each request with the same completion."""
    port = free_port()
    with _nginx(scratch / "backend", _BACKEND.format(port=port, answer=ANSWER), port):
        yield Contender("direct", port, 0)


@contextlib.contextmanager
def reverse_nginx(scratch: Path, backend_port: int) -> Iterator[Contender]:
    """nginx that passes requests on."""
    port = free_port()
    servers = _REVERSE.format(port=port, backend=backend_port)
    with _nginx(scratch / "reverse", servers, port) as pid:
        yield Contender("nginx", port, pid)


@contextlib.contextmanager
def plain(backend_port: int) -> Iterator[Contender]:
    """Forty lines of aiohttp."""
    port = free_port()
    argv = ["-m", "tests.bench.plain_proxy", f"http://127.0.0.1:{backend_port}", str(port)]
    with _process([sys.executable, *argv], port) as pid:
        yield Contender("aiohttp", port, pid)


@contextlib.contextmanager
def llmuxd(backend_port: int, *loop: str, name: str = "llmuxd") -> Iterator[Contender]:
    """Ours."""
    port = free_port()
    argv = ["-m", "tests.bench.our_proxy", str(backend_port), str(port), *loop]
    # As in llmuxd.service.
    environment = os.environ | {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/dev/null"}
    with _process([sys.executable, *argv], port, environment=environment) as pid:
        yield Contender(name, port, pid)


@contextlib.contextmanager
def litellm(scratch: Path, backend_port: int) -> Iterator[Contender]:
    """litellm's proxy, from PyPI, in an environment that is kept."""
    base = f"http://127.0.0.1:{backend_port}/v1"
    with litellm_of(scratch, base, {MODEL: (MODEL, "none")}) as proxy:
        yield proxy


@contextlib.contextmanager
def litellm_of(scratch: Path, base: str, models: dict[str, tuple[str, str]]) -> Iterator[Contender]:
    """It, for these names; each is a model at `base` and the key to be sent."""
    program = install_litellm()
    known = [
        {"model_name": name,
         "litellm_params": {"model": f"openai/{model}", "api_base": base, "api_key": key}}
        for name, (model, key) in models.items()
    ]  # fmt: skip
    config = scratch / "litellm.yaml"
    settings = {"num_retries": 0, "disable_cooldowns": True}
    config.write_text(json.dumps({"model_list": known, "router_settings": settings}))
    port = free_port()
    argv = [str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with _process(argv, port, patience=120.0, environment=environment) as pid:
        yield Contender("litellm", port, pid)


def install_litellm() -> Path:
    """Its program; what was installed from other pins is another environment."""
    pins = hashlib.sha256(_LITELLM.read_bytes()).hexdigest()[:12]
    place = _CACHE / f"bench-litellm-{pins}"
    program = place / "bin" / "litellm"
    if program.exists():
        return program
    print("installing litellm …", flush=True)
    for stale in _CACHE.glob("bench-litellm*"):
        shutil.rmtree(stale)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    argv = [str(place / "bin/pip"), "install", "--quiet", "--require-hashes", "--only-binary=:all:"]
    try:
        subprocess.run([*argv, "-r", _LITELLM], check=True)
    except BaseException:
        # Half of it would be taken for all of it the next time.
        shutil.rmtree(place)
        raise
    return program


@contextlib.contextmanager
def streams() -> Iterator[int]:
    """The backend of event streams; its port."""
    port = free_port()
    with _process([sys.executable, "-m", "tests.bench.stream_server", str(port)], port):
        yield port


@contextlib.contextmanager
def _nginx(scratch: Path, servers: str, port: int) -> Iterator[int]:
    scratch.mkdir()
    config = scratch / "nginx.conf"
    config.write_text(_NGINX.format(scratch=scratch, servers=servers), encoding="utf-8")
    with _process(["nginx", "-p", str(scratch), "-c", str(config)], port) as pid:
        yield pid


@contextlib.contextmanager
def _process(
    argv: list[str], port: int, patience: float = 20.0, environment: dict[str, str] | None = None
) -> Iterator[int]:
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            _wait(process, port, patience)
            yield process.pid
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, patience: float) -> None:
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not listen on {port}")


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]
