# SPDX-License-Identifier: MIT
"""Removes images that nothing will restore: of models that left llmux.yaml, or were redefined.

An image is as large as a server's memory, and the unit of such a model is never started again. So
any model's helper does it, once its own start is over and nobody waits for it. What was measured of
a model that left goes too, with its caches, and networks without a container, which a power cut
leaves.

One that an llmuxd of another container form took stays until its model starts, which takes its
container away, or its room is wanted (keeping.py): with an upgrade all of them would go at once,
and whoever goes back to the release before has them still.
"""

from .. import loggers
from ..config import ModelConfig
from . import caches, identity, tuning
from .activation import Busy
from .checkpoint import Checkpoint, recorded
from .container import Container, network_owners
from .keeping import InUse, at_rest, discard
from .process import CommandFailed

log = loggers.named("llmux-model")


def sweep(models: dict[str, ModelConfig]) -> None:
    """Remove what none of `models`, those of the configuration, can use any more."""
    for name in recorded():
        try:
            _sweep(name, models.get(name))
        except (Busy, InUse, CommandFailed, OSError) as error:
            # The next one's start tries again.
            log.info("the image of %s stays for now: %s", name, error)
    for name in tuning.recorded():
        if name not in models:
            tuning.Tuning.forget(name)
    try:
        caches.forget_others(models)
    except OSError as error:
        log.info("the caches of models that left stay for now: %s", error)


def _sweep(name: str, model: ModelConfig | None) -> None:
    record = Checkpoint.load(name)
    if record is None or record.invalid:
        return
    why = "it left llmux.yaml"
    if model is not None:
        redefined = record.identity.redefined(model.definition)
        if redefined is None or record.identity.container_form != identity.FORM:
            return
        why = redefined
    discard(record)
    log.info("removed the checkpoint of %s, %.1f MB: %s", name, record.size / 1e6, why)
    if model is None:
        Checkpoint.forget(name)
    else:
        record.invalidate(why)


def sweep_networks() -> None:
    """Remove the networks of models that neither run nor have a container."""
    try:
        owners = network_owners()
    except CommandFailed as error:
        log.info("no network was looked for that is of no use: %s", error)
        return
    for name in owners:
        try:
            _sweep_network(name)
        except (Busy, InUse, CommandFailed, OSError) as error:
            log.info("the network of %s stays for now: %s", name, error)


def _sweep_network(name: str) -> None:
    # Not at rest to look at it: who makes room for an image meanwhile would take it for one that
    # is on its way, and remove another's.
    if Container(ModelConfig(name=name, image="")).inspect() is not None:
        return
    with at_rest(name) as container:
        # One may have come since.
        if container.inspect() is None:
            log.info("removing the network of %s, which has no container", name)
            container.remove_network()
