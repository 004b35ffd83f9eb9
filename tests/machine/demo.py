# SPDX-License-Identifier: MIT
"""make demo: the machine, two real models, one endpoint on this host, and a tour of it."""

import argparse
import http.client
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmuxd import names
from llmuxd.ctl import table

from . import process, store
from .errors import MachineError
from .machine import Machine

PORT = 4000
# How long a cold start of a real server may take on a slow host, in seconds.
PATIENCE = 600.0
WANTED_GAIN = 6.0
ROUNDS = 3

OPT = "facebook/opt-125m"
GEMMA = "gemma-3-270m"
GEMMA_SMALL = "gemma-3-270m-small"
VLLM_IMAGE = "vllm"


class StepFailed(MachineError):
    """A step of the tour did not do what it says."""


@dataclass
class Times:
    """Seconds of one model; `leave` and `restore` have one entry a round."""

    cold: float = 0.0
    checkpoint: float = 0.0
    leave: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    park: float = 0.0
    text: str = ""


def main() -> int:
    """Exit status 0 only if each step did what it says."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("tour", nargs="?", choices=["once"], help="end after the tour")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    machine = Machine("demo")
    try:
        with process.step("demo: building and booting the machine"):
            from . import host, parts

            host.require_root()
            host.install_tools()
            parts.build(None)
            machine.boot()
        with machine.forward(PORT, PORT):
            Tour(machine).run()
            if arguments.tour is None:
                _stay()
    except MachineError as error:
        process.say(f"error: {error}")
        if error.hint:
            process.say(f"hint: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        machine.poweroff()
    return 0


def _stay() -> None:
    process.say("")
    process.say(f"The models go on serving on http://127.0.0.1:{PORT}/v1 until Ctrl-C. In between:")
    process.say("  curl http://127.0.0.1:4000/v1/models")
    process.say("  LLMUX_MACHINE=demo python3 -m tests.machine run -- llmuxctl status")
    process.say("  LLMUX_MACHINE=demo python3 -m tests.machine shell")
    signal.pause()


class Tour:
    """Each step is a command that a user would type; each checks what came of it."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self._models = self._choose()
        self._times = {model: Times() for model in self._models}
        self._switch: dict[str, float] = {}

    def run(self) -> None:
        """The whole tour, and its table."""
        self._say("systemctl start llmuxd")
        self._sh("systemctl", "start", "llmuxd.socket", "llmuxd.service")
        first, second = self._models
        self._cold_checkpoint_restore(first)
        # Its leaving must not count as the other's cold start.
        self._sh("llmuxctl", "checkpoint", first)
        self._cold_checkpoint_restore(second)
        self._back_and_forth()
        self._by_busctl()
        self._park()
        self._chat()
        self._warmup()
        process.say("")
        process.say(self._sh("llmuxctl", "status"))
        self._print_table()

    def _choose(self) -> list[str]:
        """One model of each engine; two of llama-server where vLLM could not be built."""
        if store.entries()[VLLM_IMAGE].is_built:
            return [OPT, GEMMA]
        process.say("demo: vLLM could not be built here; both models are llama-server's")
        self._machine.run(["cp", "/usr/src/llmuxd/tests/machine/llmux-llama.yaml",
                           "/etc/llmux/llmux.yaml"])  # fmt: skip
        return [GEMMA, GEMMA_SMALL]

    def _cold_checkpoint_restore(self, model: str) -> None:
        times = self._times[model]
        times.cold, times.text = self._ask(model, "cold start")
        for number in range(ROUNDS):
            what = f"llmuxctl checkpoint {model}"
            if number == 0:
                times.checkpoint = self._timed(what, "llmuxctl", "checkpoint", model)
            else:
                again = f"{what} (its image is kept)"
                times.leave.append(self._timed(again, "llmuxctl", "checkpoint", model))
            self._expect(self._state(model) == "checkpointed", f"{model} is not checkpointed")
            seconds, text = self._ask(model, "restore")
            times.restore.append(seconds)
            self._same(model, text)
            self._expect(self._way(model) == "restore", f"{model} was not restored")

    def _back_and_forth(self) -> None:
        first, second = self._models
        for old, new in ((second, first), (first, second), (second, first)):
            seconds, text = self._ask(new, f"switch from {old}", stream=new == first)
            self._switch[f"HTTP: {old} -> {new}"] = seconds
            self._same(new, text)
            self._wait_for_state(old, "checkpointed")
            self._expect(self._way(new) == "restore", f"{new} was not restored")

    def _by_busctl(self) -> None:
        first, second = self._models
        call = ("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", "Switch", "s")
        begin = time.monotonic()
        job = self._sh(*call, second).split('"')[1]
        self._wait_for_state(second, "serving")
        seconds = time.monotonic() - begin
        self._say(f"busctl … Switch s {second}  ({job}): {seconds:.2f} s")
        self._switch[f"busctl: {first} -> {second}"] = seconds
        self._expect(self._way(second) == "restore", f"{second} was not restored")
        _, text = self._ask(second, "it serves")
        self._same(second, text)
        job = self._sh(*call[:5], "Checkpoint", "s", second).split('"')[1]
        self._wait_for_state(second, "checkpointed")
        self._say(f"busctl … Checkpoint s {second}  ({job}): checkpointed")
        _, text = self._ask(second, "restore")
        self._same(second, text)

    def _park(self) -> None:
        model = self._models[1]
        self._timed(f"llmuxctl park {model}", "llmuxctl", "park", model)
        self._expect(self._state(model) == "parked", f"{model} is not parked")
        self._times[model].park, text = self._ask(model, "wake")
        self._same(model, text)

    def _chat(self) -> None:
        """A switch for the other of the two APIs, by a client that streams."""
        first, second = self._models
        self._ask(first, f"switch from {second}")
        begin = time.monotonic()
        said = _chat(second)
        seconds = time.monotonic() - begin
        self._say(f"POST /v1/chat/completions {second} (streamed): {seconds:.2f} s {said!r:.60}")
        self._expect(bool(said), f"{second} said nothing")

    def _warmup(self) -> None:
        """The command of the first day; here it finds one model ready and one that runs."""
        self._timed("llmuxctl warmup", "llmuxctl", "warmup")
        for model in self._models:
            self._expect(self._state(model) == "checkpointed", f"{model} is not checkpointed")
        _, text = self._ask(self._models[1], "restore")
        self._same(self._models[1], text)

    def _print_table(self) -> None:
        rows = []
        for model, times in self._times.items():
            parked = f"{times.park:.3f}" if times.park else "-"
            restore = statistics.median(times.restore)
            leave = statistics.median(times.leave)
            rows.append((
                model, f"{times.cold:.2f}", f"{times.checkpoint:.2f}", f"{leave:.2f}",
                f"{restore:.2f}", f"1 : {times.cold / restore:.1f}", parked,
            ))  # fmt: skip
        process.say("")
        process.say("Seconds, from the request to the end of its answer; medians of the rounds.")
        header = (
            "model", "cold", "checkpoint", "leave", "restore", "restore : cold", "from parked"
        )  # fmt: skip
        process.say(table.render(header, rows))
        process.say("")
        process.say(table.render(("full switch", "seconds"),
                                 [(k, f"{v:.2f}") for k, v in self._switch.items()]))  # fmt: skip
        if OPT in self._times:
            times = self._times[OPT]
            gain = times.cold / statistics.median(times.restore)
            word = "met" if gain >= WANTED_GAIN else "missed"
            process.say(
                f"\ngoal restore faster than cold start (vLLM): {gain:.1f} times"
                f" (wanted {WANTED_GAIN:g}): {word}"
            )
            self._expect(gain >= WANTED_GAIN, "the restore is not fast enough")

    def _ask(self, model: str, what: str, *, stream: bool = False) -> tuple[float, str]:
        begin = time.monotonic()
        text = _complete(model, stream=stream)
        seconds = time.monotonic() - begin
        self._say(f"POST /v1/completions {model} ({what}): {seconds:.2f} s {text!r:.60}")
        return seconds, text

    def _timed(self, what: str, *argv: str) -> float:
        begin = time.monotonic()
        self._sh(*argv)
        seconds = time.monotonic() - begin
        self._say(f"{what}: {seconds:.2f} s")
        return seconds

    def _same(self, model: str, text: str) -> None:
        before = self._times[model].text
        self._expect(text == before, f"{model} answered {text!r}, before it was {before!r}")

    def _state(self, model: str) -> str:
        return self._property(model, "State")

    def _way(self, model: str) -> str:
        return self._property(model, "ActivatedBy")

    def _property(self, model: str, key: str) -> str:
        path = names.object_path(model)
        line = self._sh("busctl", "get-property", "org.llmux", path, "org.llmux.Model", key)
        return line.split('"')[1]

    def _wait_for_state(self, model: str, wanted: str) -> None:
        self._until(lambda: self._state(model) == wanted, f"{model} never became {wanted}")

    def _until(self, what: Callable[[], bool], else_: str) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            self._expect(time.monotonic() < end, else_)
            time.sleep(0.05)

    def _sh(self, *argv: str) -> str:
        return str(self._machine.run(list(argv)).stdout).rstrip("\n")

    def _expect(self, good: bool, else_: str) -> None:
        if not good:
            raise StepFailed(else_, "journalctl in the machine: python3 -m tests.machine shell")

    def _say(self, line: str) -> None:
        process.say(f"tour: {line}")


def _complete(model: str, *, stream: bool) -> str:
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
    if stream:
        return "".join(_stream("/v1/completions", body))
    with _post("/v1/completions", body) as response:
        return str(json.loads(response.read())["choices"][0]["text"])


def _chat(model: str) -> str:
    messages = [{"role": "user", "content": "Tell me a story."}]
    body = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0}
    return "".join(_stream("/v1/chat/completions", body))


def _stream(path: str, body: dict[str, Any]) -> Iterator[str]:
    """The texts of a streamed answer, as they come."""
    with _post(path, body | {"stream": True}) as response:
        for line in response:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                for choice in json.loads(data)["choices"]:
                    delta = choice.get("delta", {})
                    yield str(choice.get("text") or delta.get("content") or "")


@contextmanager
def _post(path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise StepFailed(f"{body['model']}: {response.status} {response.read()!r}")
        yield response
    except (OSError, http.client.HTTPException) as error:
        raise StepFailed(f"{body['model']}: {error}") from None
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
