"""Smaller images: each pixel the average of a square of pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from nesskit.errors import DataError

IMAGES_AT_ONCE = 1000  # sums of pixels need two bytes each; of so many images they are small beside a data set


def halved(x: Tensor) -> Tensor:
    """Images (n, c, h, w) of uint8 at half their size, (n, c, h/2, w/2) of uint8.

    Each pixel is the average of 2 × 2, rounded to the nearest whole number, halves up. ``x`` stays as it is.

    Raises:
        DataError: no images of uint8, or an odd number of rows or columns.
    """
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise DataError(
            "only images (n, channels, height, width) of uint8 with even height and width can be halved, got "
            f"{tuple(x.shape)} of {x.dtype}"
        )
    count, channels, height, width = x.shape
    small = torch.empty(count, channels, height // 2, width // 2, dtype=torch.uint8)
    for part, target in zip(x.split(IMAGES_AT_ONCE), small.split(IMAGES_AT_ONCE), strict=True):
        squares = part.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        target.copy_((squares.sum((3, 5), dtype=torch.int16) + 2) // 4)
    return small
