# SPDX-License-Identifier: MIT
"""The file of API keys: who may use which models, and how much.

It holds SHA-256 hashes, never a key. A key is a long random text, so that a plain hash does: what
slow hashes protect are passwords that people think up.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from .config import Config
from .errors import ConfigInvalid, NoSuchModel
from .llmux_yaml import MAX_PRIORITY, MAX_SIZE
from .nodes import Nodes

_HASH = re.compile(r"[0-9a-f]{64}")
_SETTINGS = ["sha256", "models", "requests_per_minute", "concurrency", "priority", "metrics"]


@dataclass(frozen=True)
class Key:
    """One key. `models`: the only ones that it may use, None for all; limits of 0 are none.

    `priority` is added to that of the model that it waits for. `metrics`: whether it may read
    what all models do.
    """

    name: str
    sha256: bytes
    models: frozenset[str] | None = None
    requests_per_minute: int = 0
    concurrency: int = 0
    priority: int = 0
    metrics: bool = True


def load(config: Config) -> tuple[Key, ...] | None:
    """The keys that `config` names; None where it names no file, and everybody may do all.

    A relative path is a systemd credential. ConfigInvalid says where and what is wrong.
    """
    if not config.keys:
        return None
    path = Path(config.keys)
    if not path.is_absolute():
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory is None:
            raise ConfigInvalid(
                f"{config.path}: systemd passed no credential {config.keys!r}",
                f"LoadCredential={config.keys}:/path/to/file in llmuxd.service",
            )
        path = Path(directory) / path
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: not valid UTF-8 at byte {error.start}") from None
    return parse(text, path, config)


def parse(text: str, path: Path, config: Config) -> tuple[Key, ...]:
    """`load` for a text in hand; an empty one lets nobody in."""
    if len(text) > MAX_SIZE:
        raise ConfigInvalid(f"{path}: the file is larger than {MAX_SIZE >> 20} MiB")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        # What stands near a mistake may be a key's hash, or a key by mistake: it is not told.
        raise ConfigInvalid(f"{path}: not valid YAML") from None
    if root is None:
        return ()
    keys = _Reader(path).keys(root, config)
    if len({key.sha256 for key in keys}) != len(keys):
        raise ConfigInvalid(f"{path}: two keys have one sha256")
    return keys


class _Reader(Nodes):
    """What the settings of a key mean."""

    def keys(self, root: yaml.Node, config: Config) -> tuple[Key, ...]:
        return tuple(
            self._key(name, self.mapping(node, f"key {name.value!r}", _SETTINGS), config)
            for name, node in self.pairs(root, "the file")
        )

    def _key(self, name: yaml.ScalarNode, settings: dict[str, yaml.Node], config: Config) -> Key:
        if "sha256" not in settings:
            raise self.error(name, f"key {name.value!r} has no sha256")
        values: dict[str, object] = {"metrics": "models" not in settings}
        for setting, node in settings.items():
            match setting:
                case "sha256":
                    values[setting] = self._hash(node)
                case "models":
                    values[setting] = self._models(node, config)
                case "metrics":
                    values[setting] = self.boolean(node, setting)
                case "priority":
                    values[setting] = self.integer(node, setting, -MAX_PRIORITY, MAX_PRIORITY)
                case _:
                    values[setting] = self.integer(node, setting, low=1)
        return Key(name=str(name.value), **values)  # type: ignore[arg-type]

    def _hash(self, node: yaml.Node) -> bytes:
        text = self.text(node, "sha256").lower()
        if not _HASH.fullmatch(text):
            raise self.error(
                node, "sha256 must be 64 hexadecimal digits", "printf %s KEY | sha256sum"
            )
        return bytes.fromhex(text)

    def _models(self, node: yaml.Node, config: Config) -> frozenset[str]:
        try:
            return frozenset(config.resolve(name) for name in self.texts(node, "models"))
        except NoSuchModel as error:
            raise self.error(node, error.message, error.hint_text) from None
