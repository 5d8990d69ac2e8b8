"""NESS with a soft filter: no direction is cut off, each is used as far as old inputs leave room in it.

The four choices: directions come from layer *inputs*; their spectrum is filtered *softly*, w = 1/(1 + σ²/τ²); it is
enforced by *reparametrisation*, ΔW = U diag(√w) V; remembered are *moments* or the old *data*.
"""

from __future__ import annotations

from nesskit.methods.ness import NESS
from nesskit.settings import NESSSoftSettings


class NESSSoft(NESS):
    """Every task after the first trains V of ΔW = U diag(√w) V, so that its gradient is filtered by U diag(w) Uᵀ.

    The filtered D is the exact minimiser of ‖D - X‖_F² + ‖X I‖_F²/τ² over updates X: near to what the task wants, with
    a price on moving the outputs for the old inputs I. There is no cut, hence no bound as that of Eq. 7 either.
    """

    name = "ness-soft"
    settings_type = NESSSoftSettings
    replayable = True
