# SPDX-License-Identifier: MIT
"""llmux.yaml, read into frozen dataclasses.

The file is composed to nodes, never constructed to objects: nodes keep their line and column
for the error text, and the text that was written. PyYAML's constructor would take duplicate
keys silently, `4000:01` for 240001 and `on` for true.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

import yaml

from . import files, names
from .errors import ConfigInvalid, InvalidName, NoSuchModel

DEFAULT_PATH = Path("/etc/llmux/llmux.yaml")
DEFAULT_MAX_BODY = 32 * 1024 * 1024
MAX_SIZE = 4 << 20
MAX_DEPTH = 20
_NULL = "tag:yaml.org,2002:null"
# The C loader is ten times faster, and llmux-model reads the file at each start; it is
# missing where PyYAML was built without libyaml.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Engine(StrEnum):
    """What serves the model in its container; decides what can be asked of it."""

    VLLM = "vllm"
    LLAMA_SERVER = "llama-server"
    GENERIC = "generic"


class Snapshot(StrEnum):
    """Which state of the model its checkpoint holds."""

    PRISTINE = "pristine"  # taken once, restored as often as wanted
    LIVE = "live"  # taken anew each time the model leaves


class Tier(StrEnum):
    """Where a model waits that another one takes the GPU from."""

    CHECKPOINT = "checkpoint"  # on disk, the unit inactive
    PARK = "park"  # in memory, the unit frozen; on disk where memory is short


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
    canary: bool = True
    tier: Tier = Tier.CHECKPOINT

    @property
    def device_names(self) -> tuple[str, ...]:
        """What podman's --device is given: the configured ones, else the GPUs by CDI name."""
        if self.devices is not None:
            return self.devices
        return tuple(f"nvidia.com/gpu={gpu}" for gpu in self.gpus)

    @property
    def definition(self) -> str:
        """A hash of all that makes the container what it is.

        A checkpoint of another definition must not be restored. What only llmuxd reads
        (aliases, time limits) leaves it as it was.
        """
        mine = asdict(self) | {"devices": self.device_names}
        for key in (
            "aliases",
            "start_timeout",
            "restore_timeout",
            "checkpoint",
            "snapshot",
            "canary",
            "tier",
            "health",
            "engine",
        ):
            del mine[key]
        return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Config:
    """The whole file. `models` keeps the file's order."""

    path: Path
    models: dict[str, ModelConfig] = field(default_factory=dict)
    max_body: int = DEFAULT_MAX_BODY

    @property
    def aliases(self) -> dict[str, str]:
        """Each alias and the model that it stands for."""
        return {alias: model.name for model in self.models.values() for alias in model.aliases}

    def resolve(self, name: str) -> str:
        """The model behind a name or an alias; NoSuchModel with the nearest one otherwise."""
        if name in self.models:
            return name
        aliases = self.aliases
        if name in aliases:
            return aliases[name]
        known = [*self.models, *aliases]
        hint = nearest(name, known) or "'llmuxctl status' lists the models"
        raise NoSuchModel(f"there is no model {name!r}", hint)


def nearest(word: str, known: list[str]) -> str:
    """`did you mean …?` for the closest of `known`; empty where none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def point_units_to(path: Path) -> None:
    """Have the models' units read the file that this llmuxd was given."""
    link = _link()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    if path != DEFAULT_PATH:
        link.symlink_to(path.absolute())


def current_path() -> Path:
    """The file that the running llmuxd was given, for who is started by it."""
    link = _link()
    return link.readlink() if link.is_symlink() else DEFAULT_PATH


def _link() -> Path:
    return files.runtime_root() / "llmux.yaml"


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
    if len(text) > MAX_SIZE:
        raise ConfigInvalid(f"{path}: the file is larger than {MAX_SIZE >> 20} MiB")
    try:
        _check_depth(text, path)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigInvalid(f"{where}: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes.
        before = text.encode()[: error.position].decode(errors="ignore")
        where = f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise ConfigInvalid(f"{where}: {error.reason}") from None
    if root is None:
        raise ConfigInvalid(f"{path}: the file is empty", "it needs a 'models:' section")
    return _Reader(path).config(root)


def _check_depth(text: str, path: Path) -> None:
    """libyaml's composer recurses, and a file of brackets alone would overflow its stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigInvalid(f"{path}:{line}: nested more than {MAX_DEPTH} levels deep")


class _Reader:
    """Typed getters over YAML nodes; every complaint carries the node's place."""

    def __init__(self, path: Path):
        self._path = path

    def config(self, root: yaml.Node) -> Config:
        top = self._mapping(root, "the file", ["defaults", "models", "max_body"])
        if "models" not in top:
            raise self._error(root, "there is no 'models:' section")
        defaults = self._settings(top.get("defaults"), "defaults", exclude=frozenset({"aliases"}))
        models = self._models(top["models"], defaults)
        max_body = DEFAULT_MAX_BODY
        if "max_body" in top:
            max_body = self._integer(top["max_body"], "max_body", low=1024)
        return Config(self._path, models, max_body)

    def _models(self, node: yaml.Node, defaults: dict[str, yaml.Node]) -> dict[str, ModelConfig]:
        models: dict[str, ModelConfig] = {}
        taken: dict[str, str] = {}
        entries = self._pairs(node, "models")
        if not entries:
            raise self._error(node, "'models:' lists no model")
        for key, _ in entries:
            self._check_name(key, key.value)
            taken[key.value] = key.value
        for key, value in entries:
            settings = defaults | self._settings(value, f"model {key.value!r}")
            model = self._model(key, settings)
            for alias in model.aliases:
                self._check_name(settings["aliases"], alias)
                if alias in taken:
                    raise self._error(
                        settings["aliases"],
                        f"{alias!r} already names the model {taken[alias]!r}",
                    )
                taken[alias] = model.name
            models[model.name] = model
        return models

    def _check_name(self, node: yaml.Node, name: str) -> None:
        try:
            names.check(name)
        except InvalidName as error:
            raise self._error(node, error.message) from None

    def _settings(
        self, node: yaml.Node | None, what: str, exclude: frozenset[str] = frozenset()
    ) -> dict[str, yaml.Node]:
        if node is None or node.tag == _NULL:
            return {}
        known = [f.name for f in fields(ModelConfig) if f.name != "name" and f.name not in exclude]
        return self._mapping(node, what, known)

    def _model(self, key: yaml.ScalarNode, settings: dict[str, yaml.Node]) -> ModelConfig:
        if "image" not in settings:
            raise self._error(key, f"model {key.value!r} has no 'image:', nor have the defaults")
        model = ModelConfig(name=key.value, image=self._text(settings["image"], "image"))
        values: dict[str, object] = {}
        for name, node in settings.items():
            match name:
                case "args" | "volumes" | "podman_args" | "aliases" | "devices":
                    values[name] = self._texts(node, name)
                case "env":
                    values[name] = self._env(node)
                case "gpus":
                    values[name] = self._gpus(node)
                case "engine":
                    values[name] = Engine(self._choice(node, name, list(Engine)))
                case "port":
                    values[name] = self._integer(node, name, low=1, high=65535)
                case "start_timeout" | "restore_timeout":
                    values[name] = self._seconds(node, name)
                case "checkpoint" | "canary":
                    values[name] = self._boolean(node, name)
                case "tier":
                    values[name] = Tier(self._choice(node, name, list(Tier)))
                case "snapshot":
                    values[name] = Snapshot(self._choice(node, name, list(Snapshot)))
                case "health":
                    values[name] = self._health(node)
                case _:
                    values[name] = self._text(node, name)
        return ModelConfig(**{"name": model.name, **values})  # type: ignore[arg-type]

    def _env(self, node: yaml.Node) -> tuple[tuple[str, str], ...]:
        pairs = []
        for key, value in self._pairs(node, "env"):
            if not key.value or "=" in key.value or "\0" in key.value:
                raise self._error(key, f"{key.value!r} cannot be a variable's name")
            pairs.append((str(key.value), self._text(value, f"env {key.value}")))
        return tuple(pairs)

    def _mapping(self, node: yaml.Node, what: str, known: list[str]) -> dict[str, yaml.Node]:
        result = {}
        for key, value in self._pairs(node, what):
            if key.value not in known:
                hint = nearest(key.value, known) or f"known here: {', '.join(sorted(known))}"
                raise self._error(key, f"unknown key {key.value!r} in {what}", hint)
            result[key.value] = value
        return result

    def _pairs(self, node: yaml.Node, what: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what} must be a mapping of 'key: value' lines")
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, f"a key of {what} must be plain text")
            if key.value in seen:
                raise self._error(
                    key, f"{key.value!r} stands twice in {what}, first in line {seen[key.value]}"
                )
            seen[key.value] = key.start_mark.line + 1
        return list(node.value)

    def _text(self, node: yaml.Node, what: str) -> str:
        # The text as it was written: `--max-model-len, 512` means "512", not a number.
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            raise self._error(node, f"{what} must be a text")
        if "\0" in node.value:
            raise self._error(node, f"{what} has a NUL character in it")
        return str(node.value)

    def _texts(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, f"{what} must be a list", f"write {what}: [one, two]")
        return tuple(self._text(item, f"an item of {what}") for item in node.value)

    def _gpus(self, node: yaml.Node) -> tuple[int, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, "gpus must be a list of numbers", "write gpus: [0]")
        numbers = tuple(self._integer(item, "an item of gpus", low=0) for item in node.value)
        if len(set(numbers)) != len(numbers):
            raise self._error(node, "gpus names one GPU twice")
        return numbers

    def _integer(self, node: yaml.Node, what: str, low: int, high: int | None = None) -> int:
        text = self._text(node, what)
        # The length: int() itself refuses more than 4300 digits, with another error.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._error(node, f"{what} must be a whole number, not {text!r}")
        number = int(text)
        if number < low or (high is not None and number > high):
            bound = f"from {low} to {high}" if high is not None else f"{low} or more"
            raise self._error(node, f"{what} must be {bound}, not {text}")
        return number

    def _seconds(self, node: yaml.Node, what: str) -> float:
        text = self._text(node, what)
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e9:
            raise self._error(node, f"{what} must be a number of seconds, not {text!r}")
        return seconds

    def _boolean(self, node: yaml.Node, what: str) -> bool:
        text = self._text(node, what)
        if text not in ("true", "false"):
            raise self._error(node, f"{what} must be true or false, not {text!r}")
        return text == "true"

    def _choice(self, node: yaml.Node, what: str, choices: Sequence[str]) -> str:
        text = self._text(node, what)
        known = [str(choice) for choice in choices]
        if text not in known:
            raise self._error(
                node, f"unknown {what} {text!r}", nearest(text, known) or f"one of {known}"
            )
        return text

    def _health(self, node: yaml.Node) -> str:
        text = self._text(node, "health")
        if not text.startswith("/"):
            raise self._error(node, f"health must be a path such as /health, not {text!r}")
        return text

    def _error(self, node: yaml.Node, message: str, hint: str = "") -> ConfigInvalid:
        mark = node.start_mark
        return ConfigInvalid(f"{self._path}:{mark.line + 1}:{mark.column + 1}: {message}", hint)
