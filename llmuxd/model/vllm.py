# SPDX-License-Identifier: MIT
"""What vLLM lets go of before it leaves its GPU, and how it takes that up again.

By its sleep mode (`--enable-sleep-mode`, and VLLM_SERVER_DEV_MODE=1 for the routes). Level 1 moves
the weights to pinned host memory, level 2 forgets them and reads them from their files again; both
drop the KV cache. `kv` drops the KV cache alone: by a route of vLLM's own where it has one (0.32
has), else by the worker extension in inside/.
"""

import contextlib
import http
from dataclasses import dataclass
from pathlib import Path

from ..config import Engine, ModelConfig, Sleep, Snapshot, Tier
from .server import WrongAnswer, ask

# Level 2 reads all weights again on its way back: 80 GB from a disk of 0.4 GB/s.
TIMEOUT = 240.0

# The directory of the worker extension: here, and where the container has it.
INSIDE = Path(__file__).parent / "inside"
MOUNTED = "/opt/llmux"
EXTENSION = "llmux_kv_cache.KvCache"

_RELEASE = "/release_kv_cache_memory"
_RPC = "/collective_rpc"


@dataclass(frozen=True)
class Nap:
    """The requests by which a server lets go, and those that undo it, in order.

    Each is a path to post to; a word behind it is the method that all workers are to call. `back`
    may be asked of a server that did only some of `out`.
    """

    out: tuple[str, ...] = ()
    back: tuple[str, ...] = ()


# These bring what is on the GPU into memory before anybody could look how much that is.
TO_MEMORY = (Sleep.LEVEL_1,)

_LEVEL_1 = Nap(("/sleep?level=1",), ("/wake_up",))
_LEVEL_2 = Nap(
    ("/sleep?level=2",),
    # In this order, and with the weights read again: else it answers with noise.
    (
        "/wake_up?tags=weights",
        f"{_RPC} reload_weights",
        "/wake_up?tags=kv_cache",
        "/reset_prefix_cache",
    ),
)
# Level 0 drops nothing: the scheduler stands still.
_KV_BY_ROUTE = Nap(("/sleep?level=0", _RELEASE), ("/wake_up?tags=kv_cache", "/reset_prefix_cache"))
_KV_BY_EXTENSION = Nap(
    ("/sleep?level=0", f"{_RPC} llmux_drop_kv_cache"),
    (f"{_RPC} llmux_map_kv_cache", "/reset_prefix_cache", "/wake_up?tags=scheduling"),
)


def lets_go(model: ModelConfig) -> bool:
    """Whether its engine may have something to let go of: without a GPU all is host memory."""
    return model.engine is Engine.VLLM and bool(model.device_names)


def default(model: ModelConfig, tier: Tier) -> Sleep:
    """What a model that lets go is to let go of where nobody says and it was not measured.

    Before an image is written level 2 (an H100 and a 3B model: 3.2 GiB instead of 26.7, back in
    4.2 s instead of 19.7); a live image keeps the caches. Before a park level 1, which comes back
    soonest (1.3 s).
    """
    if tier is Tier.PARK:
        return Sleep.LEVEL_1
    return Sleep.LEVEL_2 if model.snapshot is Snapshot.PRISTINE else Sleep.OFF


def offers(port: int, *, extension: bool) -> tuple[Sleep, ...]:
    """What the server on `port` can let go of; nothing where its sleep mode is off.

    `extension`: its container has ours. Level 1 is last: the pinned memory that it takes is not
    given back, and would weigh on whatever is measured after it.
    """
    if not _can_sleep(port):
        return ()
    kv = (Sleep.KV,) if extension or _releases(port) else ()
    return Sleep.LEVEL_2, *kv, Sleep.OFF, Sleep.LEVEL_1


def nap(port: int, how: Sleep) -> Nap:
    """How the server on `port` lets go of what `how` names; an empty one where it cannot."""
    if how is Sleep.OFF or not _can_sleep(port):
        return Nap()
    if how is Sleep.KV:
        return _KV_BY_ROUTE if _releases(port) else _KV_BY_EXTENSION
    return _LEVEL_1 if how is Sleep.LEVEL_1 else _LEVEL_2


def let_go(port: int, chosen: Nap) -> None:
    """Carry it out. WrongAnswer where the server does not: it was asked to go on as it was."""
    try:
        _post_all(port, chosen.out)
    except WrongAnswer:
        # Each by itself: one of them may be what it does not know.
        for step in chosen.back:
            with contextlib.suppress(WrongAnswer):
                _post_all(port, (step,))
        raise


def take_up(port: int, back: tuple[str, ...]) -> None:
    """Have it all again; WrongAnswer where the server does not do it."""
    _post_all(port, back)


def _can_sleep(port: int) -> bool:
    status, answer = ask(port, "GET", "/is_sleeping")
    return status == http.HTTPStatus.OK and "is_sleeping" in answer


def _releases(port: int) -> bool:
    """Whether it can drop its KV cache by itself: it refuses the GET by its method then."""
    status, _ = ask(port, "GET", _RELEASE)
    return status != http.HTTPStatus.NOT_FOUND


def _post_all(port: int, steps: tuple[str, ...]) -> None:
    for step in steps:
        path, _, method = step.partition(" ")
        body = {"method": method} if method else None
        status, _ = ask(port, "POST", path, body, TIMEOUT)
        if status != http.HTTPStatus.OK:
            raise WrongAnswer(f"it refuses {step} with status {status}")
