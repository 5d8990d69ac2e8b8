"""The NESS layers: a frozen weight W and an update ΔW = U V in free directions (paper, Section 3.2, Eq. 6).

    U  (d, r)      frozen; orthonormal columns, in directions in which the layer's old inputs are small
    V  (r, d_out)  trainable, starts at zero
    ΔW = U V       the update; torch stores weights transposed, so ``weight`` (d_out, d) changes by (U V)ᵀ

That is the *factored* form. The *projected* form trains ΔW itself, of which the layer uses what lies outside of the
other d - r directions, M: ΔW - ΔW M Mᵀ. With UᵀU = 1 that is the same under SGD, with momentum or not. It multiplies by
M where the factored one multiplies by U: cheaper where more than half of the directions are free.

An adapted layer is the module it was: the same object with the same attributes, hooks and parameters, whose class has
been extended by a form. Whoever asks for its ``weight`` gets W + ΔW: its own forward, ``F.linear(x, layer.weight)``,
torch's fused attention. Whatever the trained parameter holds, ΔW lies in the free directions.

A convolution is the same layer on im2col patches, d = C_in/groups · k_h · k_w. Its groups share U.

With a bias there may be one more input that is always 1 (``bias="augment"`` elsewhere): U and M then have d + 1 rows,
and what their last row does changes the bias. One basis, one guarantee for both.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation import projected
from nesskit.adaptation.weights import CONV2D, KINDS, LINEAR, Kind, known_kind
from nesskit.errors import AdaptationError
from nesskit.spectra.projections import project_out

Layer = TypeVar("Layer", bound=nn.Module)


class NESSLayer(nn.Module):
    """What all adapted layers share: a frozen weight, and an update that starts at zero and can be merged into it.

    Attributes:
        directions: how many inputs a row of the weight sees: d, or d + 1 with the constant one for the bias.
        augmented: whether there is that constant input, so that the bias is updated too.
    """

    original: ClassVar[type[nn.Module]]
    """The class that the layer had before, and has again once it is merged."""
    kind: ClassVar[Kind]
    directions: int
    augmented: bool

    @property
    @abstractmethod
    def trained(self) -> nn.Parameter:
        """The only parameter that learns. Whatever it holds, old outputs stay."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """r, how many directions are free."""

    @abstractmethod
    def update_matrix(self) -> Tensor:
        """ΔW as a matrix (d_out, d), with the change of the bias as a last column if ``augmented``."""

    @abstractmethod
    def _open(self, directions: Tensor) -> None:
        """Take the directions and start with an update of zero."""

    @property
    def frozen_weight(self) -> nn.Parameter:
        """W, the weight before the update."""
        return self.kind.weight_of(self)

    def delta(self) -> tuple[Tensor, Tensor | None]:
        """ΔW in the shape of the layer's own weight; (d_out,) the change of the bias, None unless ``augmented``."""
        update = self.update_matrix()
        matrix, bias = (update[:, :-1], update[:, -1]) if self.augmented else (update, None)
        return self.kind.layout.weight(self, matrix, self.frozen_weight), bias

    def updated(self) -> tuple[Tensor, Tensor | None]:
        """W + ΔW, and the bias with its change, None if the layer has none."""
        weight, bias = self.delta()
        own = self.kind.bias_of(self)
        return _sum(self.frozen_weight, weight), own if own is None or bias is None else _sum(own, bias)

    def delta_weight(self) -> Tensor:
        """ΔW in the shape of the layer's own weight."""
        return self.delta()[0]

    def delta_bias(self) -> Tensor | None:
        """(d_out,) the change of the bias, None unless ``augmented``."""
        return self.delta()[1]

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The original layer with ΔW folded into its weight; without an update that learned, bit by bit as before."""
        # Adding a ΔW of zeros would turn -0.0 into 0.0.
        if self.trained.any():
            weight, bias = self.delta()
            # A new tensor, since the old one's memory may be that of another parameter as well.
            self.frozen_weight.data = _sum(self.frozen_weight, weight)
            if bias is not None:
                own = self.kind.bias_of(self)
                assert own is not None
                own.data = _sum(own, bias)
        layer, trainable = self.__dict__.get("beside", (self, ()))
        for parameter in trainable:
            parameter.requires_grad_(True)
        self._close()
        return layer

    def _close(self) -> None:
        """Become an ordinary layer again."""
        for name in ("basis", "occupied"):
            self._buffers.pop(name, None)
        for name in ("coefficients", "update"):
            self._parameters.pop(name, None)
        for name in ("directions", "augmented", "trusting", "beside"):
            self.__dict__.pop(name, None)
        self.__class__ = self.original  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"{self.original.extra_repr(self)}, rank={self.rank} of {self.directions}".removeprefix(", ")

    def __reduce__(self) -> Any:
        """Classes made here are made anew where a copy is unpacked."""
        return _blank, (_form_of(type(self)), self.original, KINDS.index(self.kind)), self.__dict__

    @classmethod
    def from_layer(cls, layer: nn.Module, basis: Tensor) -> Self:
        """A NESS layer beside ``layer``, which it freezes and shares W with; :func:`nesskit.adapt` adapts in place.

        Args:
            layer: the original layer; stays reachable as ``.layer``.
            basis: (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        twin = layer.__new__(type(layer))
        twin.__dict__ = dict(layer.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            setattr(twin, name, dict(getattr(layer, name)))
        open_layer(twin, _form_of(cls), basis)
        trainable = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        twin.__dict__["beside"] = (layer, trainable)  # not registered: these are the NESS layer's own parameters
        layer.requires_grad_(False)
        return twin  # type: ignore[return-value]

    @property
    def layer(self) -> nn.Module:
        """The frozen layer that :meth:`from_layer` was given; a layer that was adapted in place has none beside it."""
        if "beside" not in self.__dict__:
            raise AttributeError("this layer was adapted in place: there is no other one; see frozen_weight")
        layer: nn.Module = self.__dict__["beside"][0]
        return layer


class Factored(NESSLayer):
    """ΔW = U V.

    Attributes:
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    basis: Tensor
    coefficients: nn.Parameter

    def _open(self, directions: Tensor) -> None:
        weight = self.frozen_weight
        outputs = self.kind.layout.matrix(self, weight).shape[0]
        self.register_buffer("basis", directions.detach().clone().to(weight.device, _precise(weight.dtype)))
        self.coefficients = nn.Parameter(self.basis.new_zeros(directions.shape[1], outputs))

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


class Projected(NESSLayer):
    """ΔW outside of the occupied directions: ΔW - ΔW M Mᵀ.

    Attributes:
        occupied: M, (d, k), or (d + 1, k) with a last row for the bias; a buffer. Orthonormal.
        update: ΔW, (d_out, d) or (d_out, d + 1), the only trainable parameter; zero at the start.
        trusting: whether ``update`` is taken to lie outside of M already, as it does when nothing but SGD's steps along
            its own gradients changes it; then only gradients are projected, which costs less. Merging projects anyway.
    """

    occupied: Tensor
    update: nn.Parameter
    trusting: bool = False

    def _open(self, directions: Tensor) -> None:
        weight = self.frozen_weight
        outputs = self.kind.layout.matrix(self, weight).shape[0]
        self.register_buffer("occupied", _orthonormal(directions).to(weight.device, _precise(weight.dtype)))
        self.update = nn.Parameter(self.occupied.new_zeros(outputs, directions.shape[0]))

    @property
    def trained(self) -> nn.Parameter:
        """ΔW."""
        return self.update

    @property
    def rank(self) -> int:
        """r = d - k, how many directions are free."""
        return self.directions - self.occupied.shape[1]

    def update_matrix(self) -> Tensor:
        """ΔW - ΔW M Mᵀ, in the weight's own precision: in half of it a projection would be none."""
        if self.trusting and torch.is_grad_enabled():
            return projected.outside(self.update, self.occupied)
        with torch.autocast(self.update.device.type, enabled=False):
            return project_out(self.update, self.occupied)

    @torch.no_grad()
    def remove_round_off(self) -> None:
        """ΔW ← ΔW - ΔW M Mᵀ: what the round-off of many steps puts along M, some 1e-7 ‖ΔW‖ in float32."""
        self.update.copy_(project_out(self.update, self.occupied))


class _Weight:
    """The weight of an adapted layer, W + ΔW, for whoever looks at it."""

    @property
    def weight(self: Any) -> Tensor:
        """W + ΔW."""
        return self.updated()[0]

    @property
    def bias(self: Any) -> Tensor | None:
        """The bias with its change, None if the layer has none."""
        return self.updated()[1] if self.augmented else self._parameters["bias"]


class _InProjection:
    @property
    def in_proj_weight(self: Any) -> Tensor:
        """W + ΔW."""
        return self.updated()[0]


class NESSLinear(Factored, _Weight, nn.Linear):  # type: ignore[misc, override]
    """An ``nn.Linear`` with a frozen weight plus a trainable update in the null space of its old inputs: x W + (x U) V.

    Attributes:
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    original = nn.Linear
    kind = LINEAR

    def forward(self, input: Tensor) -> Tensor:
        """(…, d) → (…, d_out). ΔW itself is never formed: two thin products cost less than one dense one."""
        own, basis = self._parameters, self.basis
        if own["weight"].dtype != basis.dtype:  # type: ignore[union-attr]
            return F.linear(input, *self.updated())
        output = F.linear(input, own["weight"], own["bias"])  # type: ignore[arg-type]
        if self.augmented:
            output = output + basis[-1] @ self.coefficients
            basis = basis[:-1]
        if input.ndim == 2:  # the same sum in one operation, which counts in small networks
            return torch.addmm(output, input @ basis, self.coefficients)
        return output + (input @ basis) @ self.coefficients


class NESSConv2d(Factored, _Weight, nn.Conv2d):  # type: ignore[override]
    """An ``nn.Conv2d`` with a frozen kernel plus a trainable update in the null space of its old input patches.

    Attributes as in :class:`NESSLinear`, with d = C_in/groups · k_h · k_w. Every option of the layer is honoured
    (stride, padding and its mode, dilation, groups, bias), because it is the layer itself that runs, with W + ΔW for a
    kernel: ΔW is as small as the kernel, so forming it costs next to nothing beside the convolution.
    """

    original = nn.Conv2d
    kind = CONV2D


class ProjectedLinear(Projected, _Weight, nn.Linear):  # type: ignore[misc, override]
    """An ``nn.Linear`` whose trainable ΔW counts outside of the occupied directions: x (W + ΔW)."""

    original = nn.Linear
    kind = LINEAR

    def forward(self, input: Tensor) -> Tensor:
        """(…, d) → (…, d_out)."""
        own = self._parameters
        weight, bias = own["weight"], own["bias"]
        assert weight is not None
        few = input.numel() <= weight.numel() and not input.is_nested
        # One gradient for W + ΔW would hold back what W itself is made of, should that learn.
        if not (self.trusting and few and weight.dtype == self.update.dtype) or weight.requires_grad:
            return F.linear(input, *self.updated())
        # Fewer inputs than the weight has rows: the gradient is formed from the projected inputs, which costs less.
        if self.augmented:
            assert bias is not None
            input = torch.cat([input, input.new_ones(*input.shape[:-1], 1)], dim=-1)
            weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)  # type: ignore[assignment]
            return projected.linear(input, weight + self.update, self.occupied)
        output = projected.linear(input, weight + self.update, self.occupied)
        return output if bias is None else output + bias


class ProjectedConv2d(Projected, _Weight, nn.Conv2d):  # type: ignore[override]
    """An ``nn.Conv2d`` whose trainable ΔW counts outside of the occupied directions."""

    original = nn.Conv2d
    kind = CONV2D


_WRITTEN: dict[tuple[type[NESSLayer], Kind], type[NESSLayer]] = {
    (Factored, LINEAR): NESSLinear,
    (Factored, CONV2D): NESSConv2d,
    (Projected, LINEAR): ProjectedLinear,
    (Projected, CONV2D): ProjectedConv2d,
}


_MADE: dict[tuple[type, type, Kind], type[NESSLayer]] = {}


def _adapted_class(form: type[NESSLayer], original: type[nn.Module], kind: Kind) -> type[NESSLayer]:
    """``original`` extended by a form: one of the classes above, or one made after them, once."""
    if (form, original, kind) not in _MADE:
        _MADE[form, original, kind] = _make_class(form, original, kind)
    return _MADE[form, original, kind]


def _make_class(form: type[NESSLayer], original: type[nn.Module], kind: Kind) -> type[NESSLayer]:
    written: type[NESSLayer] | None = _WRITTEN.get((form, kind))
    if written is not None and written.original is original:
        return written
    faces = (written,) if written else (form, _InProjection if kind.name == "in_proj_weight" else _Weight)
    prefix = "NESS" if form is Factored else "Projected"
    members = {"original": original, "kind": kind, "__module__": __name__, "__doc__": original.__doc__}
    return type(f"{prefix}{original.__name__}", (*faces, original), members)


def _form_of(cls: type[NESSLayer]) -> type[NESSLayer]:
    return Factored if issubclass(cls, Factored) else Projected


def _blank(form: type[NESSLayer], original: type[nn.Module], kind: int) -> NESSLayer:
    """An adapted layer without contents, for a copy to be unpacked into."""
    cls = _adapted_class(form, original, KINDS[kind])
    return cls.__new__(cls)


def open_layer(layer: nn.Module, form: type[NESSLayer], directions: Tensor) -> NESSLayer:
    """Make ``layer`` a NESS layer, in place: the same object, whose class is extended by ``form``.

    Its own parameters stay registered under their names, so that the keys of its state stay what they were; whether
    they are frozen is the caller's concern.

    Args:
        layer: of a kind that can be adapted.
        form: :class:`Factored`, which takes U, or :class:`Projected`, which takes M.
        directions: U (d, r) or M (d, k), in the layer's own order of inputs; a last row more for its bias.

    Raises:
        AdaptationError: the directions do not fit the layer, or are not finite real numbers.
    """
    kind = known_kind(layer)
    rows = check_directions(layer, kind, directions)
    layer.__class__ = _adapted_class(form, type(layer), kind)
    assert isinstance(layer, NESSLayer)
    layer.directions = directions.shape[0]
    layer.augmented = layer.directions > min(rows)
    layer._open(directions)
    return layer


def check_directions(layer: nn.Module, kind: Kind, directions: Tensor) -> set[int]:
    """The numbers of rows that directions of ``layer`` may have: d, or d + 1 for a layer with a bias.

    Raises:
        AdaptationError: these do not fit, or are not finite real numbers.
    """
    d = kind.dimension(layer)
    rows = {d, d + 1} if kind.augments and kind.bias_of(layer) is not None else {d}
    if directions.ndim != 2 or directions.shape[0] not in rows or directions.shape[1] > directions.shape[0]:
        expected = " or ".join(str(row) for row in sorted(rows))
        raise AdaptationError(
            f"a basis for {layer} must be ({expected}, r) with r at most that, got {tuple(directions.shape)}"
        )
    if not directions.is_floating_point() or not torch.isfinite(directions).all():
        raise AdaptationError(f"a basis for {layer} must hold finite real numbers, got NaN, infinity or another type")
    return rows


def _precise(dtype: torch.dtype) -> torch.dtype:
    """In which type the update of a weight of type ``dtype`` is kept: in half precision no direction would be free."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def _sum(own: Tensor, change: Tensor) -> Tensor:
    """``own`` + ``change``, in the type of the first; rounded once."""
    return (own + change).to(own.dtype)


def _orthonormal(directions: Tensor) -> Tensor:
    """An orthonormal basis of the span: ``directions`` themselves if they are one."""
    exact = directions.detach().double()
    gram = exact.T @ exact
    if torch.allclose(
        gram, torch.eye(len(gram)).to(gram), rtol=0, atol=1e-3 if directions.dtype.itemsize == 2 else 1e-5
    ):
        return directions.detach().clone()
    left, values, _ = torch.linalg.svd(exact, full_matrices=False)
    return left[:, values > 1e-10 * values.max()].to(directions.dtype)
