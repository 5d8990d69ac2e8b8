"""Fine-tuning: every weight follows the newest task. The floor that every method should rise above."""

from __future__ import annotations

from nesskit.methods.base import Method
from nesskit.settings import FinetuneSettings


class Finetune(Method):
    """Plain training on one task after another, with nothing against forgetting."""

    name = "finetune"
    settings_type = FinetuneSettings
    replayable = True
