"""A filter of your own: ``nesskit run permuted-digits --filter examples/own_filter.py:Steep:0.02``."""

from dataclasses import dataclass

from torch import Tensor

from nesskit import Filter, Probe, Spectrum


@dataclass(frozen=True)
class Steep(Filter):
    """w = 1 / (1 + (σ/(τ ‖I‖_F))^p): as the soft filter for p = 2, and ever more like a cut at τ ‖I‖_F as p grows."""

    tau: float
    power: float = 6.0

    def weights(self, spectrum: Spectrum, probe: Probe | None = None) -> Tensor:
        """(d,) how freely each direction may be used, from 0 to 1."""
        tau = self.tau * spectrum.frobenius_norm
        return 1 / (1 + (spectrum.singular_values / tau) ** self.power)
