# SPDX-License-Identifier: MIT
"""The machine that the tests run in: commands, units, requests."""

import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmuxd import names

CONFIG = Path("/etc/llmux/llmux.yaml")
CHECKPOINTS = Path("/var/lib/llmux/checkpoints")
TUNINGS = Path("/var/lib/llmux/tunings")
FAKE = "localhost/llmux-fake:latest"
PATIENCE = 120.0

OPT = "facebook/opt-125m"
QWEN = "Qwen/Qwen2.5-3B-Instruct"

Json = dict[str, Any]


def require_machine() -> None:
    """These tests stop units and remove containers: never on somebody's own host."""
    host = Path("/etc/hostname").read_text(encoding="utf-8").strip()
    if os.geteuid() != 0 or not host.startswith("llmux-"):
        raise RuntimeError("these tests run in the test machine only: python3 -m tests.machine run")


def sh(*argv: str, check: bool = True, timeout: float = PATIENCE) -> str:
    """Run a command; its standard output, without the last newline."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{argv} exited with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout.rstrip("\n")


def fails(*argv: str) -> tuple[int, str]:
    """Run a command that must fail; its exit status and what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode != 0, f"{argv} did not fail: {done.stdout}"
    return done.returncode, done.stdout + done.stderr


def eventually(what: Callable[[], object], wanted: str, timeout: float = PATIENCE) -> None:
    """Wait until `what()` is true; for what has no signal to wait for."""
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, f"never came true: {wanted}"
        time.sleep(0.02)


def configure(models: Json, defaults: Json | None = None, top: Json | None = None) -> None:
    """Make these the models of the host and start llmuxd. JSON is YAML; `top` are top-level keys.

    A default of None takes the one here away. Checkpoints are live ones here, so that the server's
    memory tells what was restored.
    """
    base: Json = {"image": FAKE, "engine": "generic", "devices": [], "snapshot": "live"}
    settings = {key: value for key, value in (base | (defaults or {})).items() if value is not None}
    CONFIG.write_text(
        json.dumps((top or {}) | {"defaults": settings, "models": models}),
        encoding="utf-8",
    )
    # Not one restart of both: systemctl asks for one after the other, and systemd refuses to start
    # the socket where it comes to that before it has heard that the service is to stop.
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    try:
        sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{journal('llmuxd.service')[-2000:]}") from None


def two_fakes(**more: Any) -> None:
    """The two models of the README, played by the fake engine."""
    configure(
        {
            OPT: {"args": ["--model", OPT], **more},
            QWEN: {"args": ["--model", QWEN], "aliases": ["qwen"], **more},
        }
    )


def stop_everything() -> None:
    """End llmuxd and every model, as an operator would."""
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    for name in frozen_units():
        sh("systemctl", "thaw", name)
    sh("systemctl", "stop", "llmux-model@*.service")
    sh("systemctl", "reset-failed", check=False)


def frozen_units() -> list[str]:
    """The models' units that are frozen."""
    units = sh("systemctl", "list-units", "--plain", "--no-legend", "llmux-model@*").splitlines()
    found = [line.split()[0] for line in units]
    return [
        unit for unit in found if sh("systemctl", "show", "-P", "FreezerState", unit) == "frozen"
    ]


def leftovers() -> list[str]:
    """What runs, or holds a port, although every unit was stopped."""
    left = [f"container {line}" for line in sh("podman", "ps", "-q").splitlines()]
    # What the last ways in and out took is for whoever wants to know it after the unit's end.
    # Who was to leave for whom is for the next llmuxd, what the host has to offer for any start.
    # That an image was as it was written is for its next start.
    kept = (".lock", ".in.json", ".out.json", ".image", "succession.json", "network.json",
            "criu.json")  # fmt: skip
    files = [path for path in Path("/run/llmux").glob("*") if not path.name.endswith(kept)]
    left += [f"file {path}" for path in files]
    left += [
        f"listening {line}"
        for line in sh("ss", "-Hltnp").splitlines()
        if "conmon" in line or ":4000 " in line
    ]
    left += [f"process {line}" for line in sh("pgrep", "-a", "conmon", check=False).splitlines()]
    # A checkpoint's container keeps its own.
    labels = sh("podman", "ps", "--all", "--format", "{{.Names}}").split()
    left += [f"network {name}" for name in networks() if name not in labels]
    cgroups = Path("/sys/fs/cgroup").glob("system.slice/system-llmux*/llmux-model@*")
    left += [f"cgroup {path}" for path in cgroups]
    return left


def networks() -> list[str]:
    """The models' networks."""
    label = "label=org.llmux.model"
    return sorted(sh("podman", "network", "ls", "--quiet", "--filter", label).splitlines())


def wipe() -> None:
    """Forget every container, its network, that network's rules, its checkpoint and its tuning."""
    sh("podman", "rm", "--all", "--force", "--time", "0")
    sh("podman", "network", "prune", "--force")
    sh("nft", "delete", "table", "inet", "llmux", check=False)
    for path in (*CHECKPOINTS.glob("*.json"), *TUNINGS.glob("*.json")):
        path.unlink()
    for path in Path("/run/llmux").glob("*"):
        path.unlink()


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The completion's text, or the error that came instead."""
        assert self.status == 200, self.body
        choice = self.json["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])


def post(path: str, body: object, timeout: float = PATIENCE) -> Answer:
    """One request to port 4000."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", 4000, timeout=timeout)
    try:
        connection.request("POST", path, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))
    finally:
        connection.close()


def complete(model: str, **more: Any) -> Answer:
    """Ask `model` for ten tokens at temperature 0."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 10, "temperature": 0, **more}
    return post("/v1/completions", body)


@contextmanager
def stream(model: str, tokens: int, **fake: Any) -> Iterator[Iterator[str]]:
    """A streamed chat completion: an iterator over its `data:` payloads."""
    body = {
        "model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True,
        "max_tokens": tokens, "fake": fake,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", 4000, timeout=PATIENCE)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        yield (
            line.decode().removeprefix("data: ").strip()
            for line in response
            if line.startswith(b"data: ")
        )
    finally:
        connection.close()


def state(model: str) -> str:
    """The model's state, read from D-Bus."""
    path = names.object_path(model)
    line = sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", "State")
    return line.split('"')[1]


def unit(model: str, key: str) -> str:
    """A property of the model's unit."""
    return sh("systemctl", "show", "-P", key, names.unit(model))


def record(model: str) -> Json:
    """The record of the model's checkpoint."""
    text = (CHECKPOINTS / f"{names.slug(model)}.json").read_text(encoding="utf-8")
    loaded: Json = json.loads(text)
    return loaded


def container_frozen(model: str) -> bool:
    """Whether the kernel has stopped the processes of the model's container."""
    run = json.loads(Path(f"/run/llmux/{names.slug(model)}.json").read_text(encoding="utf-8"))
    events = Path(run["payload"], "cgroup.events").read_text(encoding="ascii")
    return "frozen 1" in events


def image(model: str) -> Path:
    """The directory of the model's checkpoint."""
    return Path(record(model)["directory"])


def counter(model: str) -> int:
    """How many requests the fake engine of `model` has answered in its memory."""
    return int(report(model)["counter"])


def report(model: str) -> Json:
    """What the fake engine of `model` has in its memory."""
    port = json.loads(Path(f"/run/llmux/{names.slug(model)}.json").read_text())["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/counter")
        told: Json = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()


def journal(unit_name: str) -> str:
    """All that the unit logged since the test began."""
    return sh("journalctl", "--no-pager", "--output=cat", since(), "--unit", unit_name)


def since() -> str:
    """journalctl's option for what was logged since the test began."""
    return f"--since=@{_began:.6f}"


_began = 0.0


def begin() -> None:
    """A test begins: what was logged before is not its."""
    global _began
    _began = time.time()
