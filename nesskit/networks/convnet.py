"""A small convolutional network that a CPU trains in minutes; our own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nesskit.errors import SettingsError
from nesskit.networks.normalisation import Norm, batch_norm
from nesskit.networks.units import Units, chain

LEFT = 2  # × 2 pixels are what the linear layer sees, whatever the size of the images


class ConvNet(nn.Module):
    """Convolutions of 3 × 3 and one linear layer, without biases, each followed by BatchNorm and ReLU.

    Each convolution is followed by max-pooling by 2 as well. What they leave is averaged to 2 × 2 pixels before the
    linear layer, so that the weights are the same for images of any size: with three convolutions 16 × 16 pixels have
    become 2 × 2 by themselves, and of 32 × 32, which have become 4 × 4, squares are averaged.

    (n, channels, h, w) → (n, widths[-1]).

    Args:
        shape: (channels, height, width) of the images.
        widths: channels of each convolution and, last, the width of the linear layer.
        norm: which statistics BatchNorm uses at test time.

    Raises:
        SettingsError: fewer than two widths, or images too small to be halved by every convolution.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int], norm: Norm = "batch") -> None:
        super().__init__()
        _check(shape, widths)
        channels = shape[0]
        stages: list[nn.Module] = []
        for width in widths[:-1]:
            stages += [nn.Conv2d(channels, width, 3, padding=1, bias=False), batch_norm(width, norm)]
            stages += [nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        stages += [nn.AdaptiveAvgPool2d(LEFT), nn.Flatten()]
        stages += [nn.Linear(channels * LEFT**2, widths[-1], bias=False), batch_norm(widths[-1], norm, images=False)]
        self.stages = nn.Sequential(*stages, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Features of ``x``."""
        features: Tensor = self.stages(x)
        return features

    def units(self) -> tuple[Units, ...]:
        """The channels of each convolution, gated where they have been pooled, and the outputs of each linear layer."""
        return chain(self.stages, "stages.")


def _check(shape: Sequence[int], widths: Sequence[int]) -> None:
    """Whether ``widths`` make a network for images of ``shape``."""
    if len(widths) < 2:
        raise SettingsError(
            f"the network convnet needs two widths at least, of a convolution and of its linear layer, got {widths}"
        )
    smallest = LEFT * 2 ** (len(widths) - 1)
    if min(shape[1:]) < smallest:
        raise SettingsError(
            f"the network convnet with {len(widths) - 1} convolutions takes images of {smallest} × {smallest} pixels "
            f"at least, got {shape[1]} × {shape[2]}: give it fewer widths"
        )
