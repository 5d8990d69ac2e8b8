"""The NESS layers: a frozen layer and an update ΔW = U V in free directions (paper, Section 3.2, Eq. 6).

    U  (d, r)      frozen; orthonormal columns, in directions in which the layer's old inputs are small
    V  (r, d_out)  trainable, starts at zero
    ΔW = U V       the update; torch stores weights transposed, so ``weight`` (d_out, d) changes by (U V)ᵀ

That is the *factored* form. The *projected* form trains ΔW itself and takes from its gradient what lies along the
other d - r directions, M: with UᵀU = 1 that is the same under SGD, with momentum or not, and under no other optimizer.
It multiplies by M where the factored one multiplies by U: cheaper where more than half of the directions are free.

A convolution is the same layer on im2col patches, d = C_in/groups · k_h · k_w. Its groups share U.

With a bias there may be one more input that is always 1 (``bias="augment"`` elsewhere): U and M then have d + 1 rows,
and what their last row does changes the bias. One basis, one guarantee for both.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation import projected
from nesskit.errors import AdaptationError
from nesskit.spectra.projections import project_out


class NESSLayer(nn.Module):
    """What all adapted layers share: a frozen layer, and an update that starts at zero and can be merged into it.

    Attributes:
        layer: the original layer, frozen.
        directions: how many inputs a row of the weight sees: d, or d + 1 with the constant one for the bias.
        augmented: whether there is that constant input, so that the bias is updated too.
    """

    layer: nn.Linear | nn.Conv2d

    def __init__(self, layer: nn.Linear | nn.Conv2d, basis: Tensor) -> None:
        super().__init__()
        d = layer.weight.shape[1:].numel()
        rows = {d, d + 1} if layer.bias is not None else {d}
        if basis.ndim != 2 or basis.shape[0] not in rows or basis.shape[1] > basis.shape[0]:
            expected = " or ".join(str(row) for row in sorted(rows))
            raise AdaptationError(
                f"a basis for {layer} must be ({expected}, r) with r at most that, got {tuple(basis.shape)}"
            )
        self.layer, self.directions = layer, basis.shape[0]
        self.augmented = self.directions > d
        self._was_trainable = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
        layer.requires_grad_(False)

    @property
    @abstractmethod
    def trained(self) -> nn.Parameter:
        """The only parameter that learns."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """r, how many directions are free."""

    @abstractmethod
    def update_matrix(self) -> Tensor:
        """ΔW as a matrix (d_out, d), with the change of the bias as a last column if ``augmented``."""

    def delta(self) -> tuple[Tensor, Tensor | None]:
        """ΔW in the shape of the layer's own weight; (d_out,) the change of the bias, None unless ``augmented``."""
        update = self.update_matrix()
        weight, bias = (update[:, :-1], update[:, -1]) if self.augmented else (update, None)
        return weight.reshape(self.layer.weight.shape), bias

    def updated(self) -> tuple[Tensor, Tensor | None]:
        """W + ΔW, and the bias with its change, None if the layer has none."""
        weight, bias = self.delta()
        own = self.layer.bias
        return self.layer.weight + weight, own if own is None or bias is None else own + bias

    def delta_weight(self) -> Tensor:
        """ΔW in the shape of the layer's own weight."""
        return self.delta()[0]

    def delta_bias(self) -> Tensor | None:
        """(d_out,) the change of the bias, None unless ``augmented``."""
        return self.delta()[1]

    @property
    def weight(self) -> Tensor:
        """W + ΔW, for models that look at a layer's weight beside calling the layer."""
        return self.updated()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias with its change, None if the layer has none."""
        return self.updated()[1]

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The original layer object with ΔW folded into its weight, trainable again where it was."""
        # Adding a ΔW of zeros would turn -0.0 into 0.0: untouched layers stay as they are, bit by bit.
        if self.trained.any():
            weight, bias = self.delta()
            self.layer.weight += weight
            if self.layer.bias is not None and bias is not None:
                self.layer.bias += bias
        for parameter, trainable in zip(self.layer.parameters(recurse=False), self._was_trainable, strict=True):
            parameter.requires_grad_(trainable)
        return self.layer

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"rank={self.rank} of {self.directions}"


class _Linear(NESSLayer):
    """What a model may ask of an ``nn.Linear``."""

    layer: nn.Linear

    @property
    def in_features(self) -> int:
        """d, as the original layer's."""
        return self.layer.in_features

    @property
    def out_features(self) -> int:
        """d_out, as the original layer's."""
        return self.layer.out_features


class _Conv2d(NESSLayer):
    """Every option of the convolution is honoured (stride, padding and its mode, dilation, groups, bias), because the
    layer itself runs, with W + ΔW for a kernel: ΔW is as small as the kernel, and adding it costs next to nothing.
    """

    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(n, C_in, h, w) → (n, C_out, h', w')."""
        # torch's own quantised layers call this method of the layer too.
        output: Tensor = self.layer._conv_forward(x, *self.updated())
        return output


class _Factored(NESSLayer):
    """ΔW = U V.

    Attributes:
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    basis: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, basis: Tensor) -> None:
        super().__init__(layer, basis)
        self.register_buffer("basis", basis.detach().to(layer.weight))
        self.coefficients = nn.Parameter(layer.weight.new_zeros(basis.shape[1], layer.weight.shape[0]))

    @property
    def trained(self) -> nn.Parameter:
        """V."""
        return self.coefficients

    @property
    def rank(self) -> int:
        """r, how many directions are free."""
        return self.basis.shape[1]

    def update_matrix(self) -> Tensor:
        """(U V)ᵀ."""
        return (self.basis @ self.coefficients).T


class _Projected(NESSLayer):
    """ΔW, whose gradient is taken out of the occupied directions.

    Attributes:
        occupied: M, (d, k), or (d + 1, k) with a last row for the bias; a buffer. Orthonormal.
        update: ΔW, (d_out, d) or (d_out, d + 1), the only trainable parameter; zero at the start.
    """

    occupied: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, occupied: Tensor) -> None:
        super().__init__(layer, occupied)
        self.register_buffer("occupied", occupied.detach().to(layer.weight))
        self.update = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0], occupied.shape[0]))

    @property
    def trained(self) -> nn.Parameter:
        """ΔW."""
        return self.update

    @property
    def rank(self) -> int:
        """r = d - k, how many directions are free."""
        return self.directions - self.occupied.shape[1]

    def update_matrix(self) -> Tensor:
        """ΔW, through which gradients flow without their part along M."""
        return projected.outside(self.update, self.occupied)

    @torch.no_grad()
    def remove_round_off(self) -> None:
        """ΔW ← ΔW - ΔW M Mᵀ: what the round-off of many steps puts along M, some 1e-7 ‖ΔW‖ in float32."""
        self.update.copy_(project_out(self.update, self.occupied))


class NESSLinear(_Factored, _Linear):
    """A frozen ``nn.Linear`` plus a trainable update in the null space of its old inputs: x W + (x U) V.

    Attributes:
        layer: the original layer, frozen.
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    @classmethod
    def from_layer(cls, layer: nn.Linear, basis: Tensor) -> NESSLinear:
        """Wrap ``layer``; ``basis`` is (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        return cls(layer, basis)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) → (…, d_out). ΔW itself is never formed: two thin products cost less than one dense one."""
        output: Tensor = self.layer(x)
        basis = self.basis
        if self.augmented:
            output = output + basis[-1] @ self.coefficients
            basis = basis[:-1]
        if x.ndim == 2:  # the same sum in one operation, which counts in small networks
            return torch.addmm(output, x @ basis, self.coefficients)
        return output + (x @ basis) @ self.coefficients


class NESSConv2d(_Factored, _Conv2d):
    """A frozen ``nn.Conv2d`` plus a trainable update in the null space of its old input patches.

    Attributes as in :class:`NESSLinear`, with d = C_in/groups · k_h · k_w. Every option of the layer is honoured
    (stride, padding and its mode, dilation, groups, bias), because the layer itself runs, with W + ΔW for a kernel:
    ΔW is as small as the kernel, so forming it costs next to nothing beside the convolution.
    """

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, basis: Tensor) -> NESSConv2d:
        """Wrap ``layer``; ``basis`` is (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        return cls(layer, basis)


class ProjectedLinear(_Projected, _Linear):
    """A frozen ``nn.Linear`` plus a trainable ΔW that learns outside of the occupied directions: x (W + ΔW).

    Attributes:
        layer: the original layer, frozen.
        occupied: M, (d, k), or (d + 1, k) with a last row for the bias; a buffer. Orthonormal.
        update: ΔW, (d_out, d) or (d_out, d + 1), the only trainable parameter; zero at the start.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) → (…, d_out)."""
        layer = self.layer
        if x.is_nested or x.numel() > layer.weight.numel():
            return F.linear(x, *self.updated())
        # Fewer inputs than the weight has rows: the gradient is formed from the projected inputs, which costs less.
        if self.augmented:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
            weight = torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1)
            return projected.linear(x, weight + self.update, self.occupied)
        output = projected.linear(x, layer.weight + self.update, self.occupied)
        return output if layer.bias is None else output + layer.bias


class ProjectedConv2d(_Projected, _Conv2d):
    """A frozen ``nn.Conv2d`` plus a trainable ΔW that learns outside of the occupied directions.

    Attributes as in :class:`ProjectedLinear`, with d = C_in/groups · k_h · k_w.
    """
