# SPDX-License-Identifier: MIT
"""Who gets the GPUs next. Pure: everything it knows is in its arguments, the clock included.

`views` is what it sees and says, `room` what fits on the GPUs, `moment` what does so until another
has left, `tenure` for how long a model keeps its place, `lanes` whose turn it is, `board` the
decision.
"""

from .board import Board, decide
from .moment import Need
from .room import Gpu, NoRoom
from .views import Decision, ModelView, Stage

__all__ = ["Board", "Decision", "Gpu", "ModelView", "Need", "NoRoom", "Stage", "decide"]
