# SPDX-License-Identifier: MIT
"""Who has a place promised that another is leaving for good is made ready to start meanwhile.

So is who is to come in beside another, while the GPU is measured for that, and who has just left
and is wanted back, while what it left is looked at. Its unit's helper needs 0.1 s and more to load;
then it waits. Policy sees nothing of it.
"""

from collections.abc import Iterable

from ..policy import Stage
from .fleet import Fleet
from .models import Model


class Poising:
    """Told of each decision once it is being carried out, and before of who may come in by it."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet

    def ready(self, coming: Iterable[str]) -> None:
        """Have those poised who come in if there is room; what is decided then settles it."""
        for name in coming:
            if name not in self._fleet.units.poised and self._can_wait(self._fleet.models[name]):
                self._fleet.units.poise(name)

    def back(self, model: Model) -> None:
        """Have one poised that has just left; its transition is not over yet."""
        if model.name not in self._fleet.units.poised and self._is_fit(model):
            self._fleet.units.poise(model.name)

    def settle(self, following: Iterable[str]) -> None:
        """Have those poised of whom that is true, of those who follow, and nobody else.

        Who has begun to come lifts it by itself.
        """
        units, models = self._fleet.units, self._fleet.models
        wanted = {name for name in following if self._is_next(models[name])}
        for name in units.poised - wanted:
            if name not in models or models[name].transition is None:
                units.withdraw(name)
        for name in wanted - units.poised:
            units.poise(name)

    def _is_next(self, model: Model) -> bool:
        if not (model.promised and self._can_wait(model)):
            return False
        # A stream may take its time, and it would wait for nothing but that.
        place = set(self._fleet.place(model))
        return not any(
            other.moving is Stage.DRAINING and place & set(other.held)
            for other in self._fleet.models.values()
        )

    def _can_wait(self, model: Model) -> bool:
        return model.transition is None and self._is_fit(model)

    def _is_fit(self, model: Model) -> bool:
        """One that is parked has its helper; one that failed before may do so again and again."""
        down = self._fleet.units.status(model.name).active == "inactive"
        return down and not model.failures and not model.config.unit
