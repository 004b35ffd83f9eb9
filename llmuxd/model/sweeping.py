# SPDX-License-Identifier: MIT
"""Removes images that nothing will restore: of models that left llmux.yaml, or were redefined.

An image is as large as a server's memory, and the unit of such a model is never started again. So
any model's helper does it, once its own start is over and nobody waits for it.
"""

import logging

from .. import files, names
from ..config import ModelConfig
from . import cgroup
from .activation import Activation, Busy, one_at_a_time
from .checkpoint import Checkpoint
from .container import Container
from .process import CommandFailed

log = logging.getLogger("llmux-model")


def sweep(models: dict[str, ModelConfig]) -> None:
    """Remove what none of `models`, those of the configuration, can use any more."""
    for name in _recorded():
        try:
            with one_at_a_time(name, wait=False):
                _sweep(name, models.get(name))
        except (Busy, CommandFailed, OSError) as error:
            # The next one's start tries again.
            log.info("the image of %s stays for now: %s", name, error)


def _sweep(name: str, model: ModelConfig | None) -> None:
    record = Checkpoint.load(name)
    if record is None or record.invalid:
        return
    if model is not None and record.identity.definition == model.definition:
        return
    # One that runs keeps its own until it leaves.
    if Activation.load(name) is not None or cgroup.of_unit(names.unit(name)) is not None:
        return
    why = "the model's definition in llmux.yaml changed" if model else "it left llmux.yaml"
    log.info("removing the checkpoint of %s, %.1f MB: %s", name, record.size / 1e6, why)
    Container(ModelConfig(name=name, image="")).remove()
    if model is None:
        Checkpoint.forget(name)
    else:
        record.invalidate(why)


def _recorded() -> list[str]:
    """The models that have a record."""
    found = []
    for path in sorted((files.state_root() / "checkpoints").glob("*.json")):
        name = (files.read_json(path) or {}).get("model")
        if isinstance(name, str):
            found.append(name)
    return found
