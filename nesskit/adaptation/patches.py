"""What a convolution multiplies its kernel with: patches of its input, and their second moment.

A patch has d = C_in/groups · k_h · k_w values. Written out one by one (:func:`patches`, im2col) they are k_h · k_w
times larger than the input, and their moment costs N d² products. But they overlap: the same two rows of an image meet
in many patches. :func:`patch_moment` multiplies every pair of rows once and adds the product wherever a pair of kernel
rows sees it; the moment is the same to rounding, at little more than a third of the cost for a 3 × 3 kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nesskit.spectra.precision import float64_device

# Images are taken in pieces so that what is written out of them holds about this many values: 8 MiB in float64.
BUFFER_VALUES = 2**20


class Geometry(NamedTuple):
    """Where a convolution of one, two or three axes looks: sizes an axis, padded with zeros."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def shares_rows(self) -> bool:
        """Whether :func:`patch_moment` knows it: an image has two axes, and a signal is an image of one row."""
        return len(self.kernel_size) <= 2

    def as_image(self) -> Geometry:
        """The same with two axes, the first of size one."""
        return Geometry((1, *self.kernel_size), (1, *self.stride), (0, *self.padding), (1, *self.dilation), self.groups)


def patches(geometry: Geometry, x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """im2col in pieces of bounded size, each with its number of samples × positions.

    Yields:
        (samples · positions · groups, C_in/groups · k_h · k_w) rows, laid out as the weight is, and their count.
    """
    if len(geometry.kernel_size) == 1:
        geometry, x = geometry.as_image(), x.unsqueeze(2)
    x = _pad(geometry, x)
    if len(geometry.kernel_size) > 2:
        yield from _volumes(geometry, x)
        return
    k_h, k_w = geometry.kernel_size
    for piece in _pieces(x, x[0].numel() * k_h * k_w):
        columns = F.unfold(piece, geometry.kernel_size, dilation=geometry.dilation, stride=geometry.stride)
        n, _, positions = columns.shape
        rows = columns.view(n, geometry.groups, -1, positions).permute(0, 3, 1, 2)
        yield rows.reshape(n * positions * geometry.groups, -1), n * positions


def patch_moment(geometry: Geometry, x: Tensor, augment: bool = False) -> tuple[Tensor, int]:
    """Σ p pᵀ over all patches p of ``x``, (d, d) in float64, and how many samples × positions there are.

    Kernel row a sees of output row o the image row s·o + δ·a (stride s, dilation δ). So the block of kernel rows a, b
    is the sum over o of the products of the image rows s·o + δ·a and s·o + δ·b. With s = 1 all blocks of one b - a sum
    up the same products, but for those of the first and the last rows of an image. Groups are pooled.

    Args:
        geometry: with one or two axes.
        x: (n, C_in, h, w), or (n, C_in, w) with one axis.
        augment: end every patch with a 1: d grows by one.
    """
    if len(geometry.kernel_size) == 1:
        geometry, x = geometry.as_image(), x.unsqueeze(2)
    x = _pad(geometry, x)
    n, channels, height, width = x.shape
    (k_h, k_w), group = geometry.kernel_size, channels // geometry.groups
    x = x.reshape(n * geometry.groups, group, height, width)
    row = k_w * group
    device = float64_device(x.device)
    blocks = torch.zeros(k_h, k_h, row, row, dtype=torch.float64, device=device)
    sums = blocks.new_zeros(k_h, row)
    for piece in _pieces(x, x[0].numel() * k_w):
        rows = _flat_patches(geometry, piece.to(device, torch.float64))  # (height, m, row)
        for shared in _shared_rows(geometry, height):
            upper = rows[shared.rows].flatten(0, 1)
            lower = rows[shared.rows_below(geometry)].flatten(0, 1)
            product = upper.T @ lower
            if augment and shared.distance == 0:
                sums[shared.tops] += upper.sum(dim=0)
            for top in shared.tops:
                blocks[top, top + shared.distance] += product
    for a in range(k_h):
        for b in range(a):
            blocks[a, b] = blocks[b, a].T
    d = k_h * row
    # From (k_h, k_w, C) to the order of the weight, (C, k_h, k_w)
    moment = blocks.view(k_h, k_h, k_w, group, k_w, group).permute(3, 0, 2, 5, 1, 4).reshape(d, d)
    positions = _positions(geometry, 0, height) * _positions(geometry, 1, width)
    if augment:
        ones = sums.view(k_h, k_w, group).permute(2, 0, 1).reshape(d, 1)
        corner = ones.new_full((1, 1), n * geometry.groups * positions)
        moment = torch.cat([torch.cat([moment, ones], dim=1), torch.cat([ones.T, corner], dim=1)])
    return moment, n * positions


def _volumes(geometry: Geometry, x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """:func:`patches` of padded volumes, (n, C_in, depth, h, w)."""
    for piece in _pieces(x, x[0].numel() * math.prod(geometry.kernel_size)):
        windows = piece.unflatten(1, (geometry.groups, -1))
        for axis, (size, stride, dilation) in enumerate(
            zip(geometry.kernel_size, geometry.stride, geometry.dilation, strict=True), start=3
        ):
            windows = windows.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        rows = windows.permute(0, 3, 4, 5, 1, 2, 6, 7, 8).flatten(0, 4).flatten(1)
        yield rows, len(rows) // geometry.groups


class _SharedRows(NamedTuple):
    """Image rows that the kernel rows ``tops`` all see, while the kernel rows ``distance`` below see other ones."""

    distance: int
    tops: list[int]
    rows: slice

    def rows_below(self, geometry: Geometry) -> slice:
        """The image rows that the kernel rows ``distance`` below the ``tops`` see at the same time."""
        shift = self.distance * geometry.dilation[0]
        return slice(self.rows.start + shift, self.rows.stop + shift, self.rows.step)


def _shared_rows(geometry: Geometry, height: int) -> Iterator[_SharedRows]:
    """For each distance of two kernel rows: the rows of an image, by which kernel rows see them.

    ``height`` is that of the padded image. Rows seen by the same kernel rows lie a stride apart, without gaps.
    """
    kernel, stride, dilation = geometry.kernel_size[0], geometry.stride[0], geometry.dilation[0]
    outputs = _positions(geometry, 0, height)
    for distance in range(kernel):
        seen_by: dict[tuple[int, ...], list[int]] = {}
        for row in range(height):
            starts = {top: row - dilation * top for top in range(kernel - distance)}
            tops = tuple(top for top, start in starts.items() if start in range(0, stride * outputs, stride))
            if tops:
                seen_by.setdefault(tops, []).append(row)
        for tops, rows in seen_by.items():
            yield _SharedRows(distance, list(tops), slice(rows[0], rows[-1] + 1, stride))


def _flat_patches(geometry: Geometry, x: Tensor) -> Tensor:
    """Patches of ``x`` (m, C, h, w), padded, that are one row high: (h, m · w_out, k_w · C)."""
    m, channels, height, width = x.shape
    stride, dilation, k_w = geometry.stride[1], geometry.dilation[1], geometry.kernel_size[1]
    outputs = _positions(geometry, 1, width)
    x = x.permute(2, 0, 3, 1).contiguous()  # (h, m, w, C)
    steps = (m * width * channels, width * channels, stride * channels, dilation * channels, 1)
    return x.as_strided((height, m, outputs, k_w, channels), steps).reshape(height, m * outputs, k_w * channels)


def _positions(geometry: Geometry, axis: int, size: int) -> int:
    """How many outputs an axis of this (padded) size has."""
    return (size - geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) - 1) // geometry.stride[axis] + 1


def _pieces(x: Tensor, values: int) -> tuple[Tensor, ...]:
    """``x`` in pieces of so many samples that ``values`` for each of them fill the buffer, or of one sample."""
    return x.split(max(1, BUFFER_VALUES // values))


def _pad(geometry: Geometry, x: Tensor) -> Tensor:
    """``x`` with zeros around it; another mode of padding is a matter of whoever calls the convolution."""
    return F.pad(x, [amount for side in reversed(geometry.padding) for amount in (side, side)])
