# SPDX-License-Identifier: MIT
"""The configuration that the running llmuxd works with, for who is started by it.

A model's unit reads what llmuxd accepted, not the file: that may be half-saved or wrong by then,
and one mistake in it would keep every model of the host from starting. Where llmuxd does not run
there is nothing accepted, and the file is read.
"""

import contextlib
from pathlib import Path

from . import config, files
from .config import DEFAULT_PATH, Config
from .errors import ConfigInvalid


def publish(accepted: Config) -> None:
    """This is the one from now on; ConfigInvalid where it cannot be kept."""
    try:
        _link_to(accepted.path.absolute())
        files.write_private(_text(), accepted.text)
    except OSError as error:
        raise ConfigInvalid(f"{_text()}: {error.strerror}", "is /run full?") from None


def withdraw() -> None:
    """No llmuxd runs."""
    for file in (_text(), _link()):
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


def _link_to(target: Path) -> None:
    """At no moment is there no link."""
    new = _link().with_name("llmux.yaml.new")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(_link())


def _link() -> Path:
    return files.runtime_root() / "llmux.yaml"


def _text() -> Path:
    """Root's alone: `env` may hold what nobody else is to read."""
    return files.runtime_root() / "accepted.yaml"
