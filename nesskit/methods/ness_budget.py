"""NESS with a budget of interference: one number that means the same in every layer, instead of one ε₁ for all.

The four choices: directions come from layer *inputs*; their spectrum is *cut* where the interference that an update
could do, relative to the layer's outputs, exceeds a budget; it is enforced by *reparametrisation*, ΔW = U V; remembered
are *moments* or the old *data*.
"""

from __future__ import annotations

from nesskit.methods.ness import NESS
from nesskit.settings import NESSBudgetSettings


class NESSBudget(NESS):
    """NESS whose rank in every layer follows from what the layer's weight makes of its old inputs.

    The rule is that of :class:`nesskit.InterferenceBudget`: no update as long as the weight moves the layer's outputs
    for any old task by more than the budget, a share of their size.
    """

    name = "ness-budget"
    settings_type = NESSBudgetSettings
    replayable = True
