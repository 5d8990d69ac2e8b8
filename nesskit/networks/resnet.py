"""The reduced ResNet18 of 5-Datasets and Split MiniImageNet (paper, Section 4; Lopez-Paz and Ranzato 2017)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit.networks.normalisation import Norm, batch_norm
from nesskit.networks.units import Units


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = batch_norm(channels_out, norm)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = batch_norm(channels_out, norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, batch_norm(channels_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) → (n, channels_out, h/stride, w/stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Basic blocks 2-2-2-2 of widths w, 2w, 4w, 8w behind a 3 × 3 stem, then average pooling by 2; no biases.

    With width 20, images of 32 × 32 and a stem of stride 1 leave 640 features, 84 × 84 and stride 2 leave 1440.
    """

    def __init__(self, norm: Norm = "batch", width: int = 20, stem_stride: int = 1, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)
        self.norm = batch_norm(width, norm)
        blocks: list[nn.Module] = []
        channels = width
        for group in range(4):
            for block in range(2):
                stride = 2 if group > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**group, stride, norm))
                channels = width * 2**group
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, …) of images (n, 3, h, w)."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return F.avg_pool2d(x, 2).flatten(1)

    def units(self) -> Iterator[Units]:
        """The channels of the residual stream, and those within each block.

        A shortcut hands a channel on as it is, so whatever adds to it adds to one unit: it has one gate from where the
        stream becomes that wide (the stem, or a block with a convolution in its shortcut) to the last block before it
        changes, applied to every sum. Within a block the channels of the first convolution have gates of their own.
        Those behind a ReLU may as well stand before it: a ≥ 0.
        """
        made_by, gated_at, feed = ["stem", "norm"], ["norm"], list[str]()
        for name, block in self.blocks.named_children():
            name = f"blocks.{name}"
            yield Units((f"{name}.conv1", f"{name}.norm1"), (f"{name}.norm1",), (f"{name}.conv2",))
            shortcut = [f"{name}.shortcut.{part}" for part, _ in block.get_submodule("shortcut").named_children()]
            feed += [f"{name}.conv1", *shortcut[:1]]
            if shortcut:
                yield Units(tuple(made_by), tuple(gated_at), tuple(feed))
                made_by, gated_at, feed = [], [], []
            made_by += [f"{name}.conv2", f"{name}.norm2", *shortcut]
            gated_at += [name]
        yield Units(tuple(made_by), tuple(gated_at), tuple(feed))
