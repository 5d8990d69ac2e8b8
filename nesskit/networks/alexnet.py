"""The 5-layer AlexNet of Split CIFAR-100 (paper, Section 4; the network of Saha et al. 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from nesskit.networks.normalisation import Norm, batch_norm
from nesskit.networks.units import Units, chain

# (channels, kernel size, dropout) of the convolutions, (width, dropout) of the linear layers
CONVOLUTIONS = ((64, 4, 0.2), (128, 3, 0.2), (256, 2, 0.5))
LINEAR = ((2048, 0.5), (2048, 0.5))


class AlexNet(nn.Module):
    """Three convolutions and two linear layers without biases: 6.50 million weights for images of 3 × 32 × 32.

    Each convolution is followed by BatchNorm, ReLU, dropout and max-pooling by 2, each linear layer by the first three.
    (n, 3, 32, 32) → (n, 2048).
    """

    def __init__(self, norm: Norm = "batch", channels: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for width, size, dropout in CONVOLUTIONS:
            stages += [nn.Conv2d(channels, width, size, bias=False), batch_norm(width, norm)]
            stages += [nn.ReLU(), nn.Dropout(dropout), nn.MaxPool2d(2)]
            channels = width
        stages.append(nn.Flatten())
        inputs = channels * 2 * 2  # 32 × 32 pixels have become 2 × 2
        for width, dropout in LINEAR:
            stages += [nn.Linear(inputs, width, bias=False), batch_norm(width, norm, images=False)]
            stages += [nn.ReLU(), nn.Dropout(dropout)]
            inputs = width
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        """Features of ``x``."""
        features: Tensor = self.stages(x)
        return features

    def units(self) -> tuple[Units, ...]:
        """The channels of each convolution, gated where they have been pooled, and the outputs of each linear layer."""
        return chain(self.stages, "stages.")
