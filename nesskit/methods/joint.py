"""Joint training: all tasks at once. The ceiling for methods that see them one after another."""

from __future__ import annotations

from nesskit.methods.base import Method
from nesskit.settings import JointSettings


class Joint(Method):
    """One stage with the data of every task. Each batch comes from one task, in random order."""

    name = "joint"
    settings_type = JointSettings
    replayable = True
    learns_together = True
