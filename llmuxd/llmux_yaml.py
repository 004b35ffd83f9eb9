# SPDX-License-Identifier: MIT
"""What the keys of llmux.yaml mean, and what is wrong with them.

Apart from config.py: a model's unit reads what llmuxd understood, and does without PyYAML.
"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath

import yaml

from . import names
from .config import (
    ANY_ORIGIN,
    Config,
    Engine,
    ModelConfig,
    Question,
    Reach,
    Sleep,
    Snapshot,
    Tier,
    Upstream,
)
from .errors import ConfigInvalid, InvalidName, NoSuchModel
from .nodes import NULL, Nodes

# Far more than anybody tells apart.
MAX_PRIORITY = 1000
MAX_SIZE = 4 << 20
# As browsers send it: no path, no slash.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
MAX_DEPTH = 20
# llmuxd.service has its own of these, or none.
HIDDEN = ("/dev", "/home", "/root", "/run/user", "/tmp", "/var/tmp")
# The keys that say what a container is made of; a unit that serves a model has none.
OF_CONTAINER = frozenset(
    {
        "args", "checkpoint", "checkpoint_dir", "env", "image", "image_sleep", "network",
        "podman_args", "privileged", "read_only", "restore_timeout", "shm_size", "snapshot",
        "volumes",
    }
)  # fmt: skip
# systemd.unit(5); no template, and none of ours.
_UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\-]+)?\.service")
# The C loader is ten times faster; it is missing where PyYAML was built without libyaml.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOP_LEVEL = [f.name for f in fields(Config) if f.name not in ("path", "text")]


def parse(text: str, path: Path) -> Config:
    """The file whose content is `text`; ConfigInvalid calls it `path`."""
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
    return replace(_Reader(path).config(root), text=text)


def _check_depth(text: str, path: Path) -> None:
    """libyaml's composer recurses, and a file of brackets alone would overflow its stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigInvalid(f"{path}:{line}: nested more than {MAX_DEPTH} levels deep")


class _Reader(Nodes):
    """What the keys of llmux.yaml mean."""

    def config(self, root: yaml.Node) -> Config:
        top = self.mapping(root, "the file", ["defaults", *_TOP_LEVEL])
        if "models" not in top:
            raise self.error(root, "there is no 'models:' section")
        defaults = self._settings(top.get("defaults"), "defaults", exclude=frozenset({"aliases"}))
        models = self._models(top["models"], defaults)
        return self._check_default(top, self._top_level(top, models))

    def _top_level(self, top: dict[str, yaml.Node], models: dict[str, ModelConfig]) -> Config:
        values: dict[str, object] = {}
        for name, node in top.items():
            match name:
                case "max_body":
                    values[name] = self.integer(node, name, low=1024)
                case "queue_limit":
                    values[name] = self.integer(node, name, low=1)
                case "default_model" | "keys":
                    values[name] = self.text(node, name)
                case "cors_origins":
                    values[name] = self._origins(node)
                case "response_headers" | "waiting_comments":
                    values[name] = self.boolean(node, name)
                case "park_memory" | "checkpoint_space":
                    values[name] = None if node.tag == NULL else self.size(node, name)
                case "checkpoint_limit":
                    values[name] = None if node.tag == NULL else self.integer(node, name, low=1)
                case "upstream":
                    values[name] = Upstream(self.choice(node, name, list(Upstream)))
                case _:
                    pass
        return Config(self._path, models, **values)  # type: ignore[arg-type]

    def _origins(self, node: yaml.Node) -> tuple[str, ...]:
        origins = self.texts(node, "cors_origins")
        for origin in origins:
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise self.error(
                    node, f"{origin!r} is no origin", "such as https://chat.example, or '*' for all"
                )
        return origins

    def _check_default(self, top: dict[str, yaml.Node], config: Config) -> Config:
        if config.default_model:
            try:
                config.resolve(config.default_model)
            except NoSuchModel as error:
                raise self.error(
                    top["default_model"], f"default_model: {error.message}", error.hint_text
                ) from None
        return config

    def _models(self, node: yaml.Node, defaults: dict[str, yaml.Node]) -> dict[str, ModelConfig]:
        models: dict[str, ModelConfig] = {}
        taken: dict[str, str] = {}
        entries = self.pairs(node, "models")
        if not entries:
            raise self.error(node, "'models:' lists no model")
        for key, _ in entries:
            self._check_name(key, key.value)
            taken[key.value] = key.value
        units: dict[str, str] = {}
        for key, value in entries:
            own = self._settings(value, f"model {key.value!r}")
            settings = self._of_unit(key, own, defaults) or defaults | own
            model = self._model(key, settings)
            if model.unit and units.setdefault(model.unit, model.name) != model.name:
                raise self.error(settings["unit"], f"{model.unit} is {units[model.unit]!r} already")
            for alias in model.aliases:
                self._check_name(settings["aliases"], alias)
                if alias in taken:
                    raise self.error(
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
            raise self.error(node, error.message) from None

    def _settings(
        self, node: yaml.Node | None, what: str, exclude: frozenset[str] = frozenset()
    ) -> dict[str, yaml.Node]:
        if node is None or node.tag == NULL:
            return {}
        known = [f.name for f in fields(ModelConfig) if f.name != "name" and f.name not in exclude]
        return self.mapping(node, what, known)

    def _of_unit(
        self, key: yaml.Node, own: dict[str, yaml.Node], defaults: dict[str, yaml.Node]
    ) -> dict[str, yaml.Node] | None:
        """The settings of a model that another unit serves; None of any other.

        What the defaults say of containers is not for it.
        """
        settings = defaults | own
        engine = settings.get("engine")
        if engine is None or self.choice(engine, "engine", list(Engine)) != Engine.UNIT:
            if "unit" in settings:
                raise self.error(settings["unit"], "unit is for engine: unit only")
            return None
        if "unit" not in own:
            raise self.error(key, "engine: unit needs a 'unit:'", "such as unit: ollama.service")
        for name in OF_CONTAINER & own.keys():
            raise self.error(own[name], f"{name} is for containers, and engine: unit has none")
        return {name: node for name, node in settings.items() if name not in OF_CONTAINER}

    def _model(self, key: yaml.ScalarNode, settings: dict[str, yaml.Node]) -> ModelConfig:
        values: dict[str, object] = {"image": ""}
        if "unit" in settings:
            values["checkpoint"] = False
        elif "image" not in settings:
            raise self.error(key, f"model {key.value!r} has no 'image:', nor have the defaults")
        elif not self.text(settings["image"], "image"):
            raise self.error(settings["image"], "image must not be empty")
        for name, node in settings.items():
            match name:
                case "args" | "volumes" | "podman_args" | "aliases" | "devices":
                    values[name] = self.texts(node, name)
                case "env":
                    values[name] = self._env(node)
                case "gpus":
                    values[name] = self._gpus(node)
                case "engine":
                    values[name] = Engine(self.choice(node, name, list(Engine)))
                case "port":
                    values[name] = self.integer(node, name, low=1, high=65535)
                case "start_timeout" | "restore_timeout" | "max_wait" | "request_timeout":
                    values[name] = self.seconds(node, name)
                case "ttl" | "drain_timeout":
                    # The word stands for what no key at all means, against the defaults.
                    values[name] = None if node.tag == NULL else self.seconds(node, name)
                case "min_active":
                    values[name] = self.seconds(node, name, or_none=True)
                case "vram":
                    values[name] = None if node.tag == NULL else self.size(node, name)
                case "priority":
                    values[name] = self.integer(node, name, low=-MAX_PRIORITY, high=MAX_PRIORITY)
                case "queue_limit":
                    values[name] = self.integer(node, name, low=1)
                case "checkpoint" | "pin" | "preload" | "privileged":
                    values[name] = self.boolean(node, name)
                case "read_only":
                    values[name] = None if node.tag == NULL else self.boolean(node, name)
                case "image_sleep" | "park_sleep":
                    values[name] = Sleep(self.choice(node, name, list(Sleep)))
                case "tier":
                    values[name] = Tier(self.choice(node, name, list(Tier)))
                case "snapshot":
                    values[name] = Snapshot(self.choice(node, name, list(Snapshot)))
                case "network":
                    values[name] = Reach(self.choice(node, name, list(Reach)))
                case "health":
                    values[name] = self._path_of_request(node, name)
                case "unit":
                    values[name] = self._unit(node)
                case "checkpoint_dir":
                    values[name] = "" if node.tag == NULL else self._directory(node, name)
                case "canary":
                    values[name] = self._canary(node)
                case _:
                    values[name] = self.text(node, name)
        return ModelConfig(**{"name": key.value, **values})

    def _env(self, node: yaml.Node) -> tuple[tuple[str, str], ...]:
        pairs = []
        for key, value in self.pairs(node, "env"):
            if not key.value or "=" in key.value or "\0" in key.value:
                raise self.error(key, f"{key.value!r} cannot be a variable's name")
            pairs.append((str(key.value), self.text(value, f"env {key.value}")))
        return tuple(pairs)

    def _gpus(self, node: yaml.Node) -> tuple[int, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "gpus must be a list of numbers", "write gpus: [0]")
        numbers = tuple(self.integer(item, "an item of gpus", low=0) for item in node.value)
        if len(set(numbers)) != len(numbers):
            raise self.error(node, "gpus names one GPU twice")
        return numbers

    def _canary(self, node: yaml.Node) -> bool | Question:
        if not isinstance(node, yaml.MappingNode):
            return self.boolean(node, "canary")
        asked = self.mapping(node, "canary", ["path", "body"])
        if "path" not in asked:
            raise self.error(node, "canary has no 'path:'", "such as path: /v1/embeddings")
        path = self._path_of_request(asked["path"], "the path of canary")
        if "body" not in asked:
            return Question(path)
        body = self.json(asked["body"], "the body of canary")
        return Question(path, json.dumps(body, ensure_ascii=False))

    def _unit(self, node: yaml.Node) -> str:
        text = self.text(node, "unit")
        if len(text) > names.MAX_UNIT_BYTES or not _UNIT.fullmatch(text):
            raise self.error(node, f"unit must be a service such as ollama.service, not {text!r}")
        if text.startswith("llmux"):
            raise self.error(node, f"{text} is llmuxd's own")
        return text

    def _directory(self, node: yaml.Node, what: str) -> str:
        text = self.text(node, what)
        path = PurePosixPath(text)
        if not path.is_absolute() or ".." in path.parts:
            raise self.error(node, f"{what} must be an absolute path, not {text!r}")
        hidden = next((each for each in HIDDEN if path.is_relative_to(each)), None)
        if hidden is not None:
            raise self.error(node, f"{what} must not be below {hidden}: llmuxd sees none of that")
        return str(path)

    def _path_of_request(self, node: yaml.Node, what: str) -> str:
        text = self.text(node, what)
        if not text.startswith("/"):
            raise self.error(node, f"{what} must be a path such as /health, not {text!r}")
        if not all(0x20 < ord(char) < 0x7F for char in text):
            raise self.error(node, f"{what} has a character that no path has")
        return text
