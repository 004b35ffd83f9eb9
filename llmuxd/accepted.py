# SPDX-License-Identifier: MIT
"""The configuration that the running llmuxd works with, for who is started by it.

A model's unit reads what llmuxd accepted, not the file: that may be half-saved or wrong by then,
and one mistake in it would keep every model of the host from starting. Where llmuxd does not run
there is nothing accepted, and the file is read.

Each model's definition is kept beside the text as what was understood of it: the unit of one would
wait 30 ms for a reader of YAML. It counts for that very text and this very release.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path

from . import __version__, config, files
from .config import DEFAULT_PATH, Config, ModelConfig, Question
from .errors import ConfigInvalid


def publish(accepted: Config) -> None:
    """This is the one from now on; ConfigInvalid where it cannot be kept."""
    try:
        _link_to(accepted.path.absolute())
        files.write_private(_text(), accepted.text)
        models = {name: asdict(model) for name, model in accepted.models.items()}
        understood = {"of": _hash(accepted.text), "release": __version__, "models": models}
        files.write_private(_understood(), json.dumps(understood))
    except OSError as error:
        raise ConfigInvalid(f"{_text()}: {error.strerror}", "is /run full?") from None


def withdraw() -> None:
    """No llmuxd runs."""
    for file in (_understood(), _text(), _link()):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def path() -> Path:
    """The file that the running llmuxd was given; anybody may ask."""
    link = _link()
    return link.readlink() if link.is_symlink() else DEFAULT_PATH


def load() -> Config:
    """What llmuxd has accepted, else what the file says; ConfigInvalid as `config.load`."""
    try:
        text = _text().read_text(encoding="utf-8")
    except OSError:
        return config.load(path())
    return config.parse(text, path())


def model(name: str) -> ModelConfig | None:
    """The definition of `name` in it; None where `load` has to tell."""
    raw = files.read_json(_understood())
    try:
        if raw is None or (raw["of"], raw["release"]) != (_hash(_text().read_text()), __version__):
            return None
        return _of_json(raw["models"][name])  # type: ignore[index]
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _of_json(raw: dict[str, object]) -> ModelConfig:
    """What `asdict` gave; KeyError, TypeError or ValueError for anything else."""
    values = {key: _tuples(value) for key, value in raw.items()}
    for each in fields(ModelConfig):
        if isinstance(each.default, StrEnum):
            values[each.name] = type(each.default)(str(values[each.name]))
    values["canary"] = Question.from_json(raw["canary"]) or values["canary"]
    return ModelConfig(**values)  # type: ignore[arg-type]


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _link_to(target: Path) -> None:
    """At no moment is there no link."""
    new = _link().with_name("llmux.yaml.new")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(_link())


def _link() -> Path:
    return files.runtime_root() / "llmux.yaml"


def _understood() -> Path:
    """Root's alone, too."""
    return files.runtime_root() / "accepted.json"


def _text() -> Path:
    """Root's alone: `env` may hold what nobody else is to read."""
    return files.runtime_root() / "accepted.yaml"
