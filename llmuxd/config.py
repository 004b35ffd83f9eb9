# SPDX-License-Identifier: MIT
"""llmux.yaml, read into frozen dataclasses."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from .errors import ConfigInvalid, NoSuchModel

DEFAULT_PATH = Path("/etc/llmux/llmux.yaml")
DEFAULT_MAX_BODY = 32 * 1024 * 1024
DEFAULT_QUEUE_LIMIT = 10_000
ANY_ORIGIN = "*"
# Short, for each of its tokens is computed while a client waits; and no doubt about the next one,
# for two that are as likely may change places.
CANARY_PROMPT = "A B C"
# The keys by which a container is not made, and a checkpoint stays good if they change.
NOT_OF_CONTAINER = frozenset(
    {
        "aliases", "canary", "canary_prompt", "checkpoint", "checkpoint_dir", "drain_timeout",
        "engine", "health", "image_sleep", "max_wait", "min_active", "park_sleep", "pin",
        "preload", "priority", "queue_limit", "request_timeout", "restore_timeout",
        "served_name", "snapshot", "start_timeout", "tier", "ttl", "vram",
    }
)  # fmt: skip
# The number of the way in which container.py turns a definition into podman's flags: 1 had none of
# its locks, 2 was in podman's network with all others, 3 reached from its own whatever the host
# does, and had podman's /dev/shm, 4 could write to every image. A checkpoint of another number is
# not restored.
CONTAINER_FORM = 5


class Engine(StrEnum):
    """What serves the model in its container; decides what can be asked of it."""

    VLLM = "vllm"
    LLAMA_SERVER = "llama-server"
    GENERIC = "generic"
    UNIT = "unit"  # another unit of systemd, no container


class Reach(StrEnum):
    """What a model's container may connect to. Its server is asked by this host alone."""

    PRIVATE = "private"  # nothing
    INTERNET = "internet"  # public addresses, not the host's, and servers of names
    OPEN = "open"  # whatever the host can reach, and the host


class Snapshot(StrEnum):
    """Which state of the model its checkpoint holds."""

    PRISTINE = "pristine"  # taken once, restored as often as wanted
    LIVE = "live"  # taken anew each time the model leaves


class Tier(StrEnum):
    """Where a model waits that another one takes the GPU from."""

    CHECKPOINT = "checkpoint"  # on disk, the unit inactive
    PARK = "park"  # in memory, the unit frozen; on disk where memory is short


class Upstream(StrEnum):
    """Which requests pass to the engines' own pages, /upstream/MODEL/…"""

    READ = "read"  # GET and HEAD
    ALL = "all"


class Sleep(StrEnum):
    """What vLLM lets go of before it leaves its GPU; see model/vllm.py."""

    AUTO = "auto"
    OFF = "off"
    KV = "kv"  # the KV cache
    LEVEL_1 = "1"  # the same, and the weights to pinned host memory
    LEVEL_2 = "2"  # the same, and the weights are read from their files again


@dataclass(frozen=True)
class Question:
    """A request to a model's server. `body` is JSON; where it is empty, the request is a GET."""

    path: str
    body: str = ""

    @classmethod
    def from_json(cls, raw: object) -> "Question | None":
        """What `asdict` gave; None for anything else."""
        if not isinstance(raw, dict) or "path" not in raw:
            return None
        return cls(str(raw["path"]), str(raw.get("body", "")))


@dataclass(frozen=True)
class ModelConfig:
    """One model: what to run, and what it needs. Times are in seconds."""

    name: str
    image: str
    engine: Engine = Engine.VLLM
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    gpus: tuple[int, ...] = (0,)
    devices: tuple[str, ...] | None = None
    podman_args: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    port: int = 8000
    health: str = "/health"
    shm_size: str = "2g"
    start_timeout: float = 900.0
    restore_timeout: float = 300.0
    checkpoint: bool = True
    snapshot: Snapshot = Snapshot.PRISTINE
    checkpoint_dir: str = ""  # empty: among podman's files
    canary: bool | Question = True
    canary_prompt: str = CANARY_PROMPT
    tier: Tier = Tier.CHECKPOINT
    image_sleep: Sleep = Sleep.AUTO
    park_sleep: Sleep = Sleep.AUTO
    vram: int | None = None  # bytes on each of its GPUs; None: all of them
    pin: bool = False
    preload: bool = False
    priority: int = 0
    max_wait: float = 120.0
    min_active: float = 0.0
    ttl: float | None = None
    queue_limit: int = 1000
    request_timeout: float = 1800.0
    drain_timeout: float | None = None
    served_name: str = ""
    privileged: bool = False
    read_only: bool | None = None  # None: as the engine allows
    network: Reach = Reach.INTERNET
    unit: str = ""

    @property
    def engine_name(self) -> str:
        """The name by which its server knows it."""
        return self.served_name or self.name

    @property
    def device_names(self) -> tuple[str, ...]:
        """What podman's --device is given: the configured ones, else the GPUs by CDI name."""
        if self.devices is not None:
            return self.devices
        return tuple(f"nvidia.com/gpu={gpu}" for gpu in self.gpus)

    @property
    def is_read_only(self) -> bool:
        """Whether the image is read-only to the server.

        By itself it is where we know the engine, and so the places that it writes to
        (model/caches.py), and where nobody asked for a container without locks.
        """
        if self.read_only is None:
            return self.engine in (Engine.VLLM, Engine.LLAMA_SERVER) and not self.privileged
        return self.read_only

    @property
    def drops_kv(self) -> bool:
        """Whether the container has to be able to drop its KV cache alone."""
        return self.engine is Engine.VLLM and Sleep.KV in (self.image_sleep, self.park_sleep)

    @property
    def definition(self) -> str:
        """A hash of all that makes the container what it is.

        A checkpoint of another definition must not be restored. What stands at its default is left
        out, so that checkpoints outlive the release that brings a new key.
        """
        mine: dict[str, object] = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in NOT_OF_CONTAINER and getattr(self, each.name) != each.default
        }
        mine |= {
            "devices": self.device_names,
            "form": CONTAINER_FORM,
            "read_only": self.is_read_only,
        }
        if self.drops_kv:
            mine["drops_kv"] = True
        return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Config:
    """The whole file. `models` keeps the file's order; `text` is what was read."""

    path: Path
    models: dict[str, ModelConfig] = field(default_factory=dict)
    max_body: int = DEFAULT_MAX_BODY
    queue_limit: int = DEFAULT_QUEUE_LIMIT
    default_model: str = ""
    upstream: Upstream = Upstream.READ
    keys: str = ""
    response_headers: bool = True
    waiting_comments: bool = False
    cors_origins: tuple[str, ...] = ()
    park_memory: int | None = None  # bytes; None: no limit but the host's
    checkpoint_limit: int | None = None  # images on disk; None: one for each model
    checkpoint_space: int | None = None  # bytes; None: a share of their file system
    text: str = field(default="", repr=False, compare=False)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Each alias and the model that it stands for."""
        return {alias: model.name for model in self.models.values() for alias in model.aliases}

    def knows(self, name: str) -> bool:
        """Whether it is a model's name or an alias."""
        return name in self.models or name in self.aliases

    def resolve(self, name: str, shown_to: Callable[[str], bool] = lambda model: True) -> str:
        """The model behind a name or an alias; NoSuchModel with the nearest one otherwise, of the
        models that are `shown_to` who asks."""
        if name in self.models:
            return name
        aliases = self.aliases
        if name in aliases:
            return aliases[name]
        from .nodes import MAX_SHOWN, nearest

        known = {model: model for model in self.models} | aliases
        hint = nearest(name, [each for each, model in known.items() if shown_to(model)]) or _LISTED
        shown = name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
        raise NoSuchModel(f"there is no model {shown!r}", hint)


_LISTED = "GET /v1/models and 'llmuxctl status' list the models"


def load(path: Path) -> Config:
    """Read and check the file at `path`; ConfigInvalid says where and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: not valid UTF-8 at byte {error.start}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """`load` for a text in hand; `path` is what errors call it."""
    # A model's unit would wait 20 ms for PyYAML, and seldom needs it.
    from . import llmux_yaml

    return llmux_yaml.parse(text, path)
