# SPDX-License-Identifier: MIT
"""Ends a model whose records this release may not touch: a newer one wrote them.

That is so once llmuxd was put back to an older release while the model ran. Its server is ended,
and everything else stays for the newer release to come back to.
"""

from .. import loggers
from . import parking
from .activation import Activation, LeaveOrder, mark_kept
from .container import Facts
from .lifecycle import Lifecycle
from .moves import Direction, Stopwatch

log = loggers.named("llmux-model")


class Bystander(Lifecycle):
    """A model in a container; neither its image nor its record is written, read or removed."""

    def _stop(self, facts: Facts, order: LeaveOrder, watch: Stopwatch) -> None:
        watch.way = "kill"
        activation = Activation.load(self._model.name)
        if activation is not None:
            parking.thaw(activation)
        log.warning("ending the server; a checkpoint that it has is kept, and none is written")
        with watch.part("kill"):
            self._container.halt()
        mark_kept(self._model.name)
        watch.move().save(self._model.name, Direction.OUT)

    def _clean_container(self) -> None:
        facts = self._container.inspect()
        if facts is not None and facts.running:
            self._container.halt()
