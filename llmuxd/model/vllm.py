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

from ..config import Engine, ModelConfig, Sleep, Snapshot
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


def for_image(model: ModelConfig) -> Sleep:
    """What the model is to let go of before its image is written.

    By default level 2 (an H100 and a 3B model: 3.2 GiB instead of 26.7, back in 4.2 s instead of
    19.7); a live image keeps the caches.
    """
    default = Sleep.LEVEL_2 if model.snapshot is Snapshot.PRISTINE else Sleep.OFF
    return _resolve(model, model.image_sleep, default)


def for_park(model: ModelConfig) -> Sleep:
    """The same before it is parked: by default level 1, which comes back soonest (1.3 s)."""
    return _resolve(model, model.park_sleep, Sleep.LEVEL_1)


def _resolve(model: ModelConfig, wish: Sleep, default: Sleep) -> Sleep:
    # Without a GPU all of it is host memory anyhow.
    if model.engine is not Engine.VLLM or not model.device_names:
        return Sleep.OFF
    return default if wish is Sleep.AUTO else wish


def nap(port: int, how: Sleep) -> Nap:
    """How the server on `port` lets go of what `how` names; an empty one where it cannot."""
    if how is Sleep.OFF or not _can_sleep(port):
        return Nap()
    if how is Sleep.KV:
        # One that has the route refuses the GET by its method.
        status, _ = ask(port, "GET", _RELEASE)
        return _KV_BY_EXTENSION if status == http.HTTPStatus.NOT_FOUND else _KV_BY_ROUTE
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


def _post_all(port: int, steps: tuple[str, ...]) -> None:
    for step in steps:
        path, _, method = step.partition(" ")
        body = {"method": method} if method else None
        status, _ = ask(port, "POST", path, body, TIMEOUT)
        if status != http.HTTPStatus.OK:
            raise WrongAnswer(f"it refuses {step} with status {status}")
