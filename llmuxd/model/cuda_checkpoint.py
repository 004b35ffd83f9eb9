# SPDX-License-Identifier: MIT
"""llmux-cuda-checkpoint: NVIDIA's cuda-checkpoint, for several processes, with limits and JSON.

CRIU's plugin calls it as cuda-checkpoint. It reads both outputs as one text and takes the number
or the word at its very begin, so nothing else is ever printed where a call succeeds.
"""

import os
import sys
import time
from collections.abc import Callable

from . import gpu
from .cuda_asking import Answer, name_of, tell

OK = 0
REFUSED = 1
USAGE = 2
NO_DRIVER = 3
TIMED_OUT = 124  # as timeout(1) has it

# Seconds, for a checkpoint or restore of hundreds of GB; CRIU's own limit must come first.
LIMIT = 600.0

# CRIU looks for --action in the first 2047 bytes.
HELP = """\
CUDA checkpoint and restore utility of llmuxd.

Operations:
--get-state
    Print the state: running, locked, checkpointed or failed
--get-restore-tid
    Print the id of the thread through which the driver restores
--action lock | checkpoint | restore | unlock
    Take one step from running to locked to checkpointed, or back
--action suspend | resume
    Take both steps, each with all processes before the next
--toggle
    suspend what is running, resume what is checkpointed

Processes (of several, all or none; each in a line of its own with its pid):
--pid|-p PID
    A process; may be given again, or as PID,PID,...
--unit UNIT
    Those of a systemd unit that use CUDA
--cgroup PATH
    Those of a cgroup that use CUDA

Options:
--timeout|-t MS
    Limit for each step, in milliseconds (600000; 30000 for --get-...)
--device-map|-d OLD=NEW,OLD=NEW,...
    UUIDs of all GPUs that were checkpointed, and of those to restore on
--json
    Print one JSON object
--help|-h
    Print this help

Exit status: 0 done, 1 refused, 2 wrong usage, 3 no driver, 124 out of time.
"""

_FLAGS = ("--get-state", "--get-restore-tid", "--toggle", "--json", "--help")
_VALUES = ("--action", "--pid", "--unit", "--cgroup", "--timeout", "--device-map")
_SHORT = {"-p": "--pid", "-t": "--timeout", "-d": "--device-map", "-h": "--help"}
_OPERATIONS = ("--get-state", "--get-restore-tid", "--toggle", "--action")
_BOTH_STEPS = ("suspend", "resume")
_RESTORING = ("restore", "resume", "toggle")


class WrongUsage(Exception):
    """The command line cannot be understood."""


class Refused(Exception):
    """What was asked for cannot be done with these processes."""


class Request:
    """A command line. `operation` is an action, get-state, get-restore-tid or toggle."""

    def __init__(self, argv: list[str]):
        """WrongUsage where it has no meaning."""
        given = _options(argv)
        self.help = "--help" in given
        if self.help:
            return
        self.json = "--json" in given
        self.operation = _operation(given)
        self.pids = [_pid(word) for text in given.get("--pid", []) for word in text.split(",")]
        self.unit = given.get("--unit", [""])[-1]
        self.cgroup = given.get("--cgroup", [""])[-1]
        if [bool(self.pids), bool(self.unit), bool(self.cgroup)].count(True) != 1:
            raise WrongUsage("give processes by one of --pid, --unit and --cgroup")
        query = self.operation.startswith("get-")
        self.limit = gpu.QUERY_LIMIT if query else LIMIT
        # NVIDIA's takes 0 for no limit; here that is the usual one.
        if milliseconds := _milliseconds(given.get("--timeout", ["0"])[-1]):
            self.limit = milliseconds / 1000
        self.pairs = device_map(given["--device-map"][-1]) if "--device-map" in given else []
        if self.pairs and self.operation not in _RESTORING:
            raise WrongUsage("--device-map is for a restore")


def main() -> int:
    """Entry point of the whole program (cuda_asking.py is the quick way).

    A call that is still under way is left behind with the process.
    """
    status = tell(answer(sys.argv[1:], name_of(sys.argv[0]), gpu.Driver))
    if status == TIMED_OUT:
        # The driver's own end would wait for the call.
        os._exit(status)
    return status


def answer(argv: list[str], name: str, driver: Callable[[], gpu.Driver]) -> Answer:
    """Do what the command line says, by the program of that `name`."""
    try:
        request = Request(argv)
    except WrongUsage as error:
        return USAGE, "", f"{name}: {error}; see {name} --help\n"
    if request.help:
        return OK, HELP, ""
    begin = time.monotonic()
    told: dict[int, dict[str, object]] = {}
    try:
        found = driver()
        pids = request.pids or _members(found, request)
        told = _carry_out(found, request, pids)
        status, message = OK, ""
    except gpu.NoDriver as error:
        status, message = NO_DRIVER, str(error)
    except Refused as error:
        status, message = REFUSED, str(error)
    except gpu.NotDone as error:
        status, message = TIMED_OUT if error.timed_out else REFUSED, str(error)
        told = {pid: _told_of(each) for pid, each in (error.errors | error.left).items()}
    output = _output(request, status, message, told, time.monotonic() - begin)
    return status, output, f"{name}: {message}\n" if message else ""


def device_map(text: str) -> list[gpu.Pair]:
    """OLD=NEW,… with UUIDs as nvidia-smi -L prints them; WrongUsage where it is none."""
    pairs = []
    for entry in text.split(","):
        old, _, new = entry.partition("=")
        pairs.append((_uuid(old), _uuid(new)))
    if len({old for old, _ in pairs}) < len(pairs):
        raise WrongUsage("--device-map has a GPU twice")
    return pairs


def _uuid(text: str) -> bytes:
    digits = text.removeprefix("GPU-").replace("-", "")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if len(value) != 16 or len(digits) != 32:
        raise WrongUsage(f"{text!r} is no GPU's UUID")
    return value


def _options(argv: list[str]) -> dict[str, list[str]]:
    """Each option's values, in their order; a flag has one, empty."""
    given: dict[str, list[str]] = {}
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        option = _SHORT.get(option, option)
        if option in _VALUES:
            following = value if equals else next(words, None)
            if not following:
                raise WrongUsage(f"{option} needs a value")
            given.setdefault(option, []).append(following)
        elif word in _FLAGS or word in _SHORT:
            given[option] = [""]
        else:
            raise WrongUsage(f"unknown option {word!r}")
    return given


def _operation(given: dict[str, list[str]]) -> str:
    asked = [option for option in _OPERATIONS if option in given]
    if len(asked) != 1:
        raise WrongUsage(f"give one of {', '.join(_OPERATIONS)}")
    if asked != ["--action"]:
        return asked[0].removeprefix("--")
    action = given["--action"][-1]
    if action not in (*gpu.Action, *_BOTH_STEPS):
        raise WrongUsage(f"unknown action {action!r}")
    return action


def _pid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise WrongUsage(f"{text!r} is no process id")
    return int(text)


def _milliseconds(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise WrongUsage(f"{text!r} is no number of milliseconds")
    return int(text)


def _members(driver: gpu.Driver, request: Request) -> list[int]:
    """The processes of a unit or of a cgroup that use CUDA."""
    from . import cgroup
    from .process import CommandFailed

    whole = request.unit or request.cgroup
    try:
        directory = cgroup.of_unit(whole) if request.unit else cgroup.named(whole)
    except CommandFailed as error:
        raise Refused(str(error)) from None
    if directory is None or not directory.is_dir():
        raise Refused(f"{whole} has no cgroup: it does not run")
    found = gpu.find(driver, cgroup.processes(directory))
    if not found:
        raise Refused(f"no process of {whole} uses CUDA")
    return list(found)


def _carry_out(
    driver: gpu.Driver, request: Request, pids: list[int]
) -> dict[int, dict[str, object]]:
    """Do it; what is now true of each process."""
    operation = request.operation
    if operation == "get-restore-tid":
        tids = gpu.restore_tids(driver, pids, request.limit)
        return {pid: {"restore_tid": tid} for pid, tid in tids.items()}
    if operation == "get-state":
        states = gpu.states(driver, pids, request.limit)
        return {pid: {"state": str(state)} for pid, state in states.items()}
    if operation == "toggle":
        operation = _other(gpu.states(driver, pids))
    match operation:
        case "suspend":
            gpu.suspend(driver, pids, request.limit)
            state = gpu.State.CHECKPOINTED
        case "resume":
            gpu.resume(driver, pids, request.limit, request.pairs)
            state = gpu.State.RUNNING
        case _:
            action = gpu.Action(operation)
            state = gpu.act(driver, action, pids, request.limit, request.pairs)
    return {pid: {"state": str(state)} for pid in pids}


def _other(states: dict[int, gpu.State]) -> str:
    """What --toggle is to do."""
    match set(states.values()):
        case found if found == {gpu.State.RUNNING}:
            return "suspend"
        case found if found == {gpu.State.CHECKPOINTED}:
            return "resume"
    listed = ", ".join(f"process {pid} is {state}" for pid, state in states.items())
    raise Refused(f"cannot toggle: {listed}")


def _told_of(error: Exception) -> dict[str, object]:
    told: dict[str, object] = {"error": str(error)}
    if isinstance(error, gpu.CudaError):
        told |= {"code": error.code, "name": error.name}
    return told


def _output(
    request: Request,
    status: int,
    message: str,
    told: dict[int, dict[str, object]],
    seconds: float,
) -> str:
    """The text for standard output."""
    if request.json:
        return _in_json(request, status, message, told, seconds)
    if status != OK or not request.operation.startswith("get-"):
        return ""
    lines = []
    for pid, facts in told.items():
        (value,) = facts.values()
        lines.append(f"{value}\n" if request.pids == [pid] else f"{pid} {value}\n")
    return "".join(lines)


def _in_json(
    request: Request,
    status: int,
    message: str,
    told: dict[int, dict[str, object]],
    seconds: float,
) -> str:
    import json

    whole = {
        "operation": request.operation,
        "status": status,
        "message": message,
        "seconds": round(seconds, 3),
        "processes": [{"pid": pid, **facts} for pid, facts in told.items()],
    }
    return json.dumps(whole) + "\n"


if __name__ == "__main__":
    sys.exit(main())
