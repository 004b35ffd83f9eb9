# SPDX-License-Identifier: MIT
"""make bench-switch: what a switch between two vLLM models costs, by hand and by llmuxd.

Each switch is timed to the end of the first completion, of one token. By hand is what one does
without llmuxd: podman container checkpoint, podman container restore, ask for the health each
second. Each switch begins once the one before has come to its end, the leaving of the old model
included, which llmuxd has behind the new one's coming where memory holds both; `at once` has it
begin with the answer before, and wait for what is left of that. Runs in the test machine; the
models are those of tests/machine/weights.py.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmuxd import names
from llmuxd.ctl import table
from llmuxd.model import freezer
from tests.machine import host, parts
from tests.machine.machine import Machine
from tests.machine.ring import guest
from tests.machine.ring.guest import OPT, QWEN, sh

from .share import moves, share

MODELS = (OPT, QWEN)
PATHS = {OPT: "/srv/models/opt-125m", QWEN: "/srv/models/qwen2.5-3b-instruct"}
_SELF = "tests.bench.switch"
PODMAN = "  podman and CRIU alone"
FREEZER = "  bare freeze and thaw"
HAND = "(a) by hand"
COLD = "(b) llmuxd, cold starts"
LIVE = "(c) llmuxd, live checkpoints"
PRISTINE = "(d) llmuxd, pristine"
PARK = "(e) llmuxd, park"
AT_ONCE = ", at once"
# Switches in all, after which nothing may be left; and what llmuxd itself may have grown by.
ENDURANCE = 100
MAX_GROWTH_MB = 8.0
MAX_NEW_FILES = 2


@dataclass
class Bench:
    """The seconds of each way to switch, and what was seen meanwhile."""

    rounds: int
    switches: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    wrong: int = 0
    mismatches: int = 0
    left: list[str] = field(default_factory=list)
    held: list[list[float]] = field(default_factory=list)
    warm: dict[str, float] = field(default_factory=dict)  # an answer of one that serves, by model
    own: dict[str, list[float]] = field(default_factory=dict)  # llmuxd's, of each way
    missed: bool = False

    @classmethod
    def resume(cls, path: Path | None, rounds: int, switches: int) -> "Bench":
        """What was measured before, by a run that kept it in `path`."""
        bench = cls(rounds, switches)
        if path is not None and path.exists():
            vars(bench).update(json.loads(path.read_text()))
            bench.rounds, bench.switches = rounds, switches
        return bench

    def keep(self, path: Path | None) -> None:
        """The reverse."""
        if path is not None:
            path.write_text(json.dumps(vars(self)))

    def time(self, way: str, model: str, act: Callable[[], str]) -> None:
        """Time one switch to `model`; its answer must be the one that it gave first."""
        begin = time.monotonic()
        text = act()
        self.note(way, time.monotonic() - begin)
        self.wrong += text != self.texts.setdefault(model, text)

    def note_own(self, way: str, model: str, asked: float) -> None:
        """Keep what was llmuxd's of the last switch of this way; its moves have come to an end."""
        answered = asked + self.seconds[way][-1]
        found = share(asked, answered, moves(asked)) - self.warm[model]
        self.own.setdefault(way, []).append(found)

    def note(self, way: str, seconds: float) -> None:
        """Keep a measured part."""
        self.seconds.setdefault(way, []).append(seconds)

    def median(self, way: str) -> float:
        """The median of a way, in seconds."""
        return statistics.median(self.seconds[way])

    def goal(self, name: str, measured: float, unit: str, bound: float, *, least: bool) -> None:
        """Print a goal's line."""
        good = measured >= bound if least else measured <= bound
        self.missed = self.missed or not good
        sign = "at least" if least else "at most"
        print(
            f"goal {name}: {measured:.4g}{unit} (wanted {sign} {bound:.4g}{unit}):"
            f" {'met' if good else 'missed'}"
        )


def turns(count: int) -> Iterator[tuple[str, str]]:
    """(old, new) of each switch; the first turn finds MODELS[1] serving."""
    for number in range(count):
        yield MODELS[(number + 1) % 2], MODELS[number % 2]


def configure(**more: Any) -> None:
    """The two models with these settings, and llmuxd started anew."""
    models = {
        name: {
            "image": "localhost/llmux-vllm:latest",
            "engine": "vllm",
            "args": ["--model", PATHS[name], "--served-model-name", name, "--max-model-len", "512"],
            **more,
        }
        for name in MODELS
    }
    guest.configure(models, {"volumes": ["/srv/models:/srv/models:ro"]})


def ask(model: str, port: int = 4000) -> str:
    """One token."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        raw = response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{model}: {response.status} {raw!r}")
        return str(json.loads(raw)["choices"][0]["text"])
    finally:
        connection.close()


def by_hand(bench: Bench) -> None:
    """The seed's flow; each restore in a unit of its own, where podman finds its cgroup again.

    The containers have podman's own /dev/shm, as those have that people make.
    """
    configure(snapshot="live", podman_args=["--shm-size=2g"])
    sh("llmuxctl", "warmup", timeout=600)
    ports = {model: int(guest.record(model)["port"]) for model in MODELS}
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    restore(QWEN, 0)
    wait_each_second(ports[QWEN])
    bench.texts[QWEN] = ask(QWEN, ports[QWEN])
    for number, (old, new) in enumerate(turns(bench.rounds), start=1):
        gather(old)

        def act(old: str = old, new: str = new, number: int = number) -> str:
            begin = time.monotonic()
            sh("podman", "container", "checkpoint", "--tcp-established", names.container(old))
            restore(new, number)
            bench.note(PODMAN, time.monotonic() - begin)
            wait_each_second(ports[new])
            return ask(new, ports[new])

        bench.time(HAND, new, act)
    sh("podman", "rm", "--all", "--force", "--time", "0")
    sh("systemctl", "stop", "by-hand-*")
    guest.wipe()


def restore(model: str, number: int) -> None:
    """Restore a container by hand, in a transient unit that stays."""
    sh(
        "systemd-run", "--quiet", f"--unit=by-hand-{number}", "--property=Type=oneshot",
        "--property=RemainAfterExit=yes", "--property=Delegate=yes",
        "podman", "container", "restore", "--keep", "--tcp-established", names.container(model),
    )  # fmt: skip


def wait_each_second(port: int) -> None:
    """As the seed does it."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(1)


def gather(model: str) -> None:
    """Bring a container's processes into one cgroup, where manage-cgroups=ignore scattered them.

    Not part of what is timed: hosts of users have no need of it.
    """
    pid = sh("podman", "inspect", "--format", "{{.State.Pid}}", names.container(model))
    namespace = Path(f"/proc/{pid}/ns/pid").readlink()
    group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition("::")[2]
    for other in Path("/proc").glob("[0-9]*"):
        try:
            if (other / "ns/pid").readlink() == namespace:
                Path(f"/sys/fs/cgroup{group}/cgroup.procs").write_text(other.name)
        except OSError:
            continue


def by_llmuxd(bench: Bench, way: str, **more: Any) -> None:
    """Switches by request, with these settings."""
    configure(**more)
    if more.get("checkpoint") is not False:
        sh("llmuxctl", "warmup", timeout=600)
    for model in MODELS:
        bench.texts.setdefault(model, ask(model))
        begin = time.monotonic()
        ask(model)
        bench.warm[model] = time.monotonic() - begin
    rest()
    for _, new in turns(bench.rounds):
        asked = time.time()
        bench.time(way, new, lambda new=new: ask(new))  # type: ignore[misc]
        rest()
        bench.note_own(way, new, asked)
    # A cold start comes into an empty place only: there it is the same.
    for _, new in turns(bench.rounds if more.get("checkpoint") is not False else 0):
        bench.time(f"{way}{AT_ONCE}", new, lambda new=new: ask(new))  # type: ignore[misc]
    rest()


def rest() -> None:
    """Wait until one serves and the other has left."""
    guest.eventually(lambda: _states() & {"draining", "starting"} == set(), "all is at rest")
    assert len(_states()) == len(MODELS), "both serve"


def _states() -> set[str]:
    return {guest.state(model) for model in MODELS}


def park(bench: Bench) -> None:
    """Switches between parked models, and what the freezer alone takes for them."""
    by_llmuxd(bench, PARK, tier="park")
    bare_freezer(bench)


def bare_freezer(bench: Bench) -> None:
    """The same two models, parked and brought back by their cgroups; asked past the proxy."""
    runs = {model: _run(model) for model in MODELS}
    sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
    for old, new in turns(bench.rounds):

        def act(old: str = old, new: str = new) -> str:
            freezer.freeze(Path(runs[old]["payload"]))
            freezer.thaw(Path(runs[new]["payload"]))
            return ask(new, runs[new]["port"])

        bench.time(FREEZER, new, act)
    sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")


def _run(model: str) -> Any:
    """What the helper wrote of the model's run."""
    return json.loads(Path(f"/run/llmux/{names.slug(model)}.json").read_text())


def daemon() -> list[float]:
    """What llmuxd holds now: open files, and memory in MB."""
    pid = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())), int(resident.split()[1]) / 1e3]


def endure(bench: Bench) -> None:
    """Many switches by one llmuxd; what it held after the first tenth, and after the last."""
    configure(snapshot="pristine")
    sh("llmuxctl", "warmup", timeout=600)
    bench.held = []
    for number, (_, new) in enumerate(turns(bench.switches)):
        if number == bench.switches // 10:
            bench.held.append(daemon())
        text = ask(new)
        bench.wrong += text != bench.texts.setdefault(new, text)
    bench.held.append(daemon())


STEPS: dict[str, Callable[[Bench], None]] = {
    "hand": by_hand,
    "live": lambda bench: by_llmuxd(bench, LIVE, snapshot="live"),
    "pristine": lambda bench: by_llmuxd(bench, PRISTINE, snapshot="pristine"),
    "park": park,
    "cold": lambda bench: by_llmuxd(bench, COLD, checkpoint=False),
    "endure": endure,
}


def inside(wanted: Sequence[str], bench: Bench) -> None:
    """The measurement, in the machine."""
    guest.require_machine()
    guest.stop_everything()
    guest.wipe()
    guest.begin()
    for name in wanted:
        begin = time.monotonic()
        STEPS[name](bench)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        bench.mismatches += sum(
            "its canary says" in guest.journal(names.unit(model)) for model in MODELS
        )
        guest.stop_everything()
        if name != "hand":
            # A restore by hand makes its model's cgroup anew, and nobody removes that.
            bench.left += guest.leftovers()
        guest.wipe()
        guest.begin()


def report(bench: Bench) -> None:
    """The table and the goals."""
    hand, cold = bench.median(HAND), bench.median(COLD)
    rows = [
        (way, f"{bench.median(way):.3f}", f"{min(s):.3f}", f"{max(s):.3f}",
         f"{hand / bench.median(way):.1f}", f"{cold / bench.median(way):.1f}")
        for way, s in sorted(bench.seconds.items(), key=lambda item: -statistics.median(item[1]))
    ]  # fmt: skip
    header = ("seconds a switch", "median", "min", "max", "by hand : it", "cold : it")
    print(f"\n{table.render(header, rows)}\n")
    live, pristine, park = (bench.median(way) for way in (LIVE, PRISTINE, PARK))
    over = (park - bench.median(FREEZER)) * 1e3
    own = [
        (way, f"{bench.median(way):.3f}", f"{statistics.median(s):.3f}", f"{max(s):.3f}")
        for way, s in bench.own.items()
    ]
    print("Without what podman, CRIU, the freezer and the engine took of the same switches:")
    print(f"{table.render(('seconds a switch', 'median', 'own', 'own, max'), own)}\n")
    (files, megabytes), (files_then, megabytes_then) = bench.held
    grown = megabytes_then - megabytes
    print(f"llmuxd held {files:g} files, {megabytes:.1f} MB; then {files_then:g}, {grown:+.1f}")
    print(f"left behind: {bench.left or 'nothing'}\n")
    bench.goal("live against by hand", hand / live, " times", 1, least=True)
    bench.goal("pristine against by hand", hand / pristine, " times", 3, least=True)
    bench.goal("pristine against cold", cold / pristine, " times", 10, least=True)
    bench.goal("park against by hand", hand / park, " times", 25, least=True)
    bench.goal("park above bare freeze and thaw", over, " ms", 150, least=False)
    bench.goal("wrong answers", bench.wrong, "", 0, least=False)
    bench.goal("canary mismatches", bench.mismatches, "", 0, least=False)
    bench.goal("left behind", len(bench.left), "", 0, least=False)
    bench.goal("new open files", files_then - files, "", MAX_NEW_FILES, least=False)
    bench.goal("memory grown", grown, " MB", MAX_GROWTH_MB, least=False)


def main() -> int:
    """Exit status 0 only if each goal was met."""
    parser = argparse.ArgumentParser(prog="make bench-switch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--switches", type=int, default=ENDURANCE)
    parser.add_argument("--inside", action="store_true", help="run here: this is the machine")
    steps = f"with --inside: some of {', '.join(STEPS)}; none: just report"
    parser.add_argument("--only", nargs="*", default=[*STEPS], choices=[*STEPS], help=steps)
    parser.add_argument("--keep", type=Path, help="with --inside: go on with what this file has")
    arguments = parser.parse_args()
    if arguments.inside:
        bench = Bench.resume(arguments.keep, arguments.rounds, arguments.switches)
        inside(arguments.only, bench)
        bench.keep(arguments.keep)
        if not arguments.keep or not arguments.only:
            report(bench)
        return int(bench.missed)
    host.require_root()
    host.install_tools()
    parts.build()
    machine = Machine("bench")
    machine.boot()
    try:
        command = f"cd /usr/src/llmuxd && exec python3 -B -m {_SELF} --rounds {arguments.rounds}"
        command += f" --switches {arguments.switches}"
        argv = machine.command(["sh", "-c", f"{command} --inside"])
        return subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode
    finally:
        machine.poweroff()


if __name__ == "__main__":
    sys.exit(main())
