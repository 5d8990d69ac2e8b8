"""The subspace viewer: which directions images leave free, and what happens to old predictions when they are used.

The mathematics are four pure functions; the widget shows what they return.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call

from nesskit.adaptation.capture import evaluating
from nesskit.analysis.spectra import ROUND_OFF
from nesskit.errors import AdaptationError, DataError, SpectrumError
from nesskit.networks import TaskModel
from nesskit.plots import BLUE, GREY, INK, MUTED, ORANGE, VERMILLION, style
from nesskit.plots.drawing import tidy
from nesskit.spectra.filters import FrobeniusThreshold, Threshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.spectrum import Spectrum
from nesskit.widgets.keys import OwnKeys
from nesskit.widgets.live import picture_bundle, say, stacked, text_line
from nesskit.widgets.picture import DPI, LivePicture, new_figure
from nesskit.widgets.slider import Slider

Array = NDArray[np.float64]

SIGNED = LinearSegmentedColormap.from_list("nesskit-signed", [VERMILLION, "white", BLUE])  # negative, zero, positive
SIZES = np.linspace(0.0, 2.0, 41)  # ‖ΔW‖_F / ‖W‖_F that the slider offers
SHOWN = 10  # images whose predictions are drawn
WIDTH = 4.7  # of every figure, in inches


def project(x: ArrayLike, spectrum: Spectrum, rank: int) -> tuple[Array, Array]:
    """``x`` = occupied + free, where free = U Uᵀ x with U (d, rank) the directions of the smallest singular values.

    Args:
        x: (…, d).
        spectrum: of the inputs that are to be kept as they are.
        rank: r, how many directions are free.

    Raises:
        SpectrumError: ``rank`` is not between 0 and d, or x has another width than d.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.shape[-1:] != (len(spectrum),):
        raise SpectrumError(f"expected inputs of {len(spectrum)} values, as the spectrum has, got shape {x.shape}")
    basis = spectrum.null_basis(rank).cpu().numpy()
    free = x @ basis @ basis.T
    return x - free, free


def rank_one_update(weight: Tensor, spectrum: Spectrum, direction: int, size: float, seed: int = 0) -> Tensor:
    """ΔW = size · ‖W‖_F · v u_iᵀ, (d_out, d) like ``weight``, with a random unit vector v (d_out,) that ``seed`` fixes.

    Args:
        weight: W, (d_out, d).
        spectrum: of the layer's inputs.
        direction: i, counted from 1 for the largest singular value to d for the smallest, as in the paper.
        size: ‖ΔW‖_F / ‖W‖_F.
        seed: of v.

    Raises:
        SpectrumError: there is no such direction, or the weight has other inputs than the spectrum.
    """
    d = len(spectrum)
    if not 1 <= direction <= d:
        raise SpectrumError(f"direction {direction} is out of range: this layer has {d} directions (1 … {d})")
    if weight.ndim != 2 or weight.shape[1] != d:
        raise SpectrumError(f"expected a weight of shape (d_out, {d}) for this spectrum, got {tuple(weight.shape)}")
    v = torch.randn(len(weight), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u = spectrum.directions[:, direction - 1].cpu()
    update = size * float(weight.detach().norm()) * torch.outer(v / v.norm(), u)
    return update.to(weight)


@torch.no_grad()
def perturbed_predictions(model: nn.Module, layer: str, update: Tensor, x: Tensor, task: int = 0) -> Tensor:
    """(n,) the classes that ``model`` predicts for ``x`` with W + ``update`` in place of the weight W of ``layer``.

    Args:
        model: stays as it is; called as ``model(x, task)`` if it is a :class:`nesskit.TaskModel`, else as ``model(x)``.
        layer: name of a linear layer in it.
        update: ΔW, in the shape of the layer's weight.
        x: (n, …) inputs as the model takes them.
        task: whose head answers.
    """
    name = f"{layer}.weight" if layer else "weight"  # of a model that is a layer itself
    weight = model.get_parameter(name)
    inputs = x.to(weight)
    arguments = (inputs, task) if isinstance(model, TaskModel) else (inputs,)
    with evaluating(model):
        logits: Tensor = functional_call(model, {name: weight + update.to(weight)}, arguments)
    return logits.argmax(dim=1).cpu()


def perturbed_accuracy(model: nn.Module, layer: str, update: Tensor, x: Tensor, y: Tensor, task: int = 0) -> float:
    """Percent of ``x`` for which :func:`perturbed_predictions` are ``y`` (n,)."""
    return accuracy_of(perturbed_predictions(model, layer, update, x, task), y)


def accuracy_of(predictions: Tensor, y: Tensor) -> float:
    """Percent of predictions (n,) that are right."""
    return 100 * float((predictions == y).double().mean())


class SubspaceViewer(widgets.VBox):
    """The directions of images by singular value, an input in two parts, and weights perturbed along a direction.

    Args:
        source: moment or spectrum of what the first layer sees, such as ``collect_moments(…)["backbone.layers.0"]``.
        images: (n, d), (n, h, w) or (n, 1, h, w), as the model takes them once they are flat.
        labels: (n,) classes; without them predictions are compared with those of the unperturbed model.
        model: whose first layer is perturbed; without one only directions and parts are shown. A copy is kept.
        layer: the layer to perturb; by default the first linear one.
        task: whose head answers, for a :class:`nesskit.TaskModel`.
        rule: what is free to begin with; a slider moves its ε.
        shape: height and width of an image, if images are flat and not square.
        seed: of the random output direction v.

    Attributes:
        direction, eps, image, size: the controls; set ``.value``.
        rank: how many directions are free at the present ε.
        accuracy: percent at the present size (of predictions that stay, without labels); NaN without a model.
        predictions: (n,) classes that are predicted at the present size, None without a model.

    Raises:
        SpectrumError: the moment has seen no input, or its dimension is not that of an image.
        DataError: there is no image, or labels and images differ in number.
        AdaptationError: the model has no linear layer that takes such images.
    """

    def __init__(
        self,
        source: Moment | Spectrum,
        images: ArrayLike | Tensor,
        labels: ArrayLike | Tensor | None = None,
        *,
        model: nn.Module | None = None,
        layer: str | None = None,
        task: int = 0,
        rule: Threshold | None = None,
        shape: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.spectrum = source.spectrum() if isinstance(source, Moment) else source
        self.x, self.shape = _as_images(images, len(self.spectrum), shape)
        self._rule = rule or FrobeniusThreshold(0.03)
        self._trial = None if model is None else Trial(model, self.spectrum, self.x, labels, layer, task, seed)
        self._directions = DirectionsFigure(self.spectrum, self.shape)
        self._parts = PartsFigure(self.shape)
        self._controls()
        left = [self._directions.picture, self.direction, self._jumps, self._about]
        right = [self._parts.picture, self.eps, self.image, self._split]
        if self._trial is not None:
            self._outcome = OutcomeFigure(self._trial, self.shape)
            right += [self._outcome.picture, self.size]
        half = {"flex": "1 1 320px", "min_width": "0", "max_width": f"{WIDTH * DPI:.0f}px"}
        both = [widgets.VBox(column, layout=half) for column in (left, right)]
        columns = widgets.HBox(both, layout={"flex_flow": "row wrap"})
        self._keys = OwnKeys()
        super().__init__([columns, self._keys])
        self.add_class("nk-subspace")
        self._show_rank()
        self._show_direction()

    @property
    def rank(self) -> int:
        """r, how many directions are free."""
        return self._rule_now.null_rank(self.spectrum)

    @property
    def predictions(self) -> Tensor | None:
        """(n,) classes predicted with the perturbed weights."""
        return None if self._trial is None else self._trial.predictions[self._step]

    @property
    def accuracy(self) -> float:
        """Percent; see the class."""
        return math.nan if self._trial is None else float(self._trial.accuracies[self._step])

    @property
    def _rule_now(self) -> Threshold:
        return type(self._rule)(self.eps.value)  # type: ignore[call-arg]

    @property
    def _step(self) -> int:
        return int(np.abs(SIZES - self.size.value).argmin())

    def _controls(self) -> None:
        d = len(self.spectrum)
        self.direction = Slider(value=d, min=1, max=d, step=1, whole=True, description="direction i")
        self.direction.tooltip = "A direction of the input space, 1 for the largest singular value"
        smallest = self._rule.eps_to_free(self.spectrum).cpu().numpy()
        positive = smallest[smallest > ROUND_OFF * smallest[0]]
        start, step = math.log10(self._rule.eps), 0.02
        low = start - step * math.ceil((start - math.floor(math.log10(min([*positive, self._rule.eps])))) / step)
        high = start + step * math.ceil(max(0.0, -start) / step)  # the browser rounds to steps from low: start is one
        self.eps = Slider(value=self._rule.eps, min=low, max=high, step=step, log=True, description="ε")
        self.eps.tooltip = f"Directions with σ at most ε times the scale of the {self._rule.name} rule are free"
        self.image = Slider(value=1, min=1, max=len(self.x), step=1, whole=True, description="image")
        self.image.tooltip = "The input that is split into its occupied and its free part"
        self.size = Slider(value=0, min=SIZES[0], max=SIZES[-1], step=SIZES[1], description="size a")
        self.size.tooltip = "Length of the change of the first layer's weights over their own length"
        first, last = (
            widgets.Button(description=text, layout={"width": "auto"}) for text in ("most occupied", "most free")
        )
        first.on_click(lambda _: setattr(self.direction, "value", 1))
        last.on_click(lambda _: setattr(self.direction, "value", d))
        first.tooltip, last.tooltip = "Go to direction 1, of the largest σ", f"Go to direction {d}, of the smallest σ"
        first.add_class("nk-first")
        last.add_class("nk-last")
        self._jumps = widgets.HBox([first, last])
        self._about, self._split = text_line("nk-status"), text_line("nk-split")
        for name in ("direction", "eps", "image", "size"):
            getattr(self, name).add_class(f"nk-{name}")
        self.direction.observe(lambda _: self._show_direction(), "value")
        self.eps.observe(lambda _: self._show_rank(), "value")
        self.image.observe(lambda _: self._show_parts(), "value")
        self.size.observe(lambda _: self._show_size(), "value")

    def _show_direction(self) -> None:
        self._directions.frame(self.direction.value)
        if self._trial is not None:
            self._trial.turn_to(self.direction.value)
            self._outcome.show_direction(self._trial, self.direction.value)
        self._show_size()

    def _show_rank(self) -> None:
        self._directions.mark(self.rank)
        self._show_parts()
        self._describe()

    def _show_parts(self) -> None:
        x = self.x[self.image.value - 1].numpy()
        occupied, free = project(x, self.spectrum, self.rank)
        self._parts.show(x, occupied, free, self.rank)
        energy = float(np.square(x).sum())
        share = float(np.square(free).sum()) / energy if energy else 0.0
        say(self._split, f"{share:.2%} of ‖x‖² lies in the {self.rank} free directions of {len(self.spectrum)}.")

    def _show_size(self) -> None:
        if self._trial is not None:
            self._outcome.show_size(self._trial, self._step)
        self._describe()

    def _describe(self) -> None:
        i, d = self.direction.value, len(self.spectrum)
        kind = "free" if i > d - self.rank else "occupied"
        sigma = sigma_texts(self.spectrum)[i - 1]
        text = f"σ {sigma}." if sigma.startswith("≈") else f"σ = {sigma}."
        trial = self._trial
        if trial is not None:
            changed = int((trial.predictions[self._step] != trial.predictions[0]).sum())
            text += f" ΔW of size a = {self.size.value:.2f} along it: {trial.measure} {self.accuracy:.1f} %"
            text += f" (before {trial.accuracies[0]:.1f} %), {changed} of {len(self.x)} predictions changed."
        say(self._about, text, f"Direction {i} of {d} is {kind}:")

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        alt = "Directions of the inputs as images, from the most to the least used, and an input split into its parts."
        figures = [self._directions.figure, self._parts.figure]
        figures += [] if self._trial is None else [self._outcome.figure]
        bundle = super()._repr_mimebundle_(**kwargs)
        return picture_bundle(bundle, "Subspace viewer", alt, stacked(figures), self._keys)


class Trial:
    """A model whose first layer is perturbed along one direction, at every size at once.

    Attributes:
        predictions: (sizes, n) predicted classes; row 0 is the model as it is.
        accuracies: (sizes,) percent.
        y: (n,) what is right.
        measure: what ``accuracies`` are.
    """

    def __init__(
        self,
        model: nn.Module,
        spectrum: Spectrum,
        x: Tensor,
        labels: ArrayLike | Tensor | None,
        layer: str | None,
        task: int,
        seed: int,
    ) -> None:
        self.model, self.spectrum, self.x, self.task, self.seed = copy.deepcopy(model), spectrum, x, task, seed
        self.layer, linear = _layer_of(self.model, layer, len(spectrum))
        self.weight = linear.weight.detach()
        before = perturbed_predictions(self.model, self.layer, torch.zeros_like(self.weight), x, task)
        self.y = before if labels is None else torch.as_tensor(np.asarray(labels))
        if self.y.shape != before.shape:
            raise DataError(f"there are {len(x)} images but labels of shape {tuple(self.y.shape)}: one each is needed")
        self.measure = "predictions kept" if labels is None else "accuracy"
        self.turn_to(1)

    def turn_to(self, direction: int) -> None:
        """Perturb along ``direction`` (from 1) from now on."""
        whole = rank_one_update(self.weight, self.spectrum, direction, 1.0, self.seed)
        self.predictions = torch.stack(
            [perturbed_predictions(self.model, self.layer, size * whole, self.x, self.task) for size in SIZES]
        )
        self.accuracies = np.array([accuracy_of(row, self.y) for row in self.predictions])


class DirectionsFigure:
    """All directions as images, in the order of σ, a line around those that are free, a frame around the chosen one."""

    def __init__(self, spectrum: Spectrum, shape: tuple[int, int]) -> None:
        d = len(spectrum)
        self.columns = math.ceil(math.sqrt(d))
        rows = math.ceil(d / self.columns)
        self.figure = new_figure(WIDTH, 0.5 + WIDTH * rows / self.columns)
        with style():
            ax = self.figure.add_axes((0.02, 0.02, 0.96, 0.98 - 0.45 / self.figure.get_figheight()))
            ax.set_title("directions $u_i$ with $\\sigma_i$ below; free: inside the line", color=INK, fontsize=10)
            directions = spectrum.directions.cpu().numpy().T.reshape(d, *shape)
            self.pictures = [_picture(ax, u / np.abs(u).max(), self._box(i)) for i, u in enumerate(directions)]
            size = 52 / self.columns
            self.values = [
                ax.text(*self._corner(i, 0.5, 0.97), text, ha="center", va="bottom", fontsize=size, color=INK)
                for i, text in enumerate(sigma_texts(spectrum))
                if size > 4
            ]
            (self.border,) = ax.plot([], [], color=ORANGE, linewidth=2.2, zorder=3)
            self.chosen = Rectangle((0, 0), 1, 1, fill=False, edgecolor=INK, linewidth=2.0, zorder=4)
            ax.add_patch(self.chosen)
            ax.set_xlim(-0.03, self.columns + 0.03)
            ax.set_ylim(rows + 0.03, -0.03)
            ax.set_axis_off()
        alt = "All directions as images, from the most to the least used, with a line around those that are free."
        self.picture = LivePicture(self.figure, alt, [self.border, self.chosen])

    def mark(self, rank: int) -> None:
        """Draw the line around the ``rank`` free directions."""
        row, column = divmod(len(self.pictures) - rank, self.columns)
        last, end = divmod(len(self.pictures) - 1, self.columns)
        left, right = (column, end + 1) if row == last else (0, self.columns)
        corners = [(left, row + 1), (column, row + 1), (column, row), (right, row), (right, last), (end + 1, last)]
        corners += [(end + 1, last + 1), (left, last + 1), (left, row + 1)]
        self.border.set_data(*zip(*corners, strict=True) if rank else ([], []))
        self.picture.draw()

    def frame(self, direction: int) -> None:
        """Frame the chosen direction (from 1)."""
        self.chosen.set_xy(self._corner(direction - 1))
        self.picture.draw()

    def _corner(self, index: int, right: float = 0.0, down: float = 0.0) -> tuple[float, float]:
        return index % self.columns + right, index // self.columns + down

    def _box(self, index: int) -> tuple[float, float, float, float]:
        """Where a picture lies in its cell, which has room for a number below: left, right, bottom, top."""
        (left, top), (right, bottom) = self._corner(index, 0.14, 0.05), self._corner(index, 0.86, 0.77)
        return left, right, bottom, top


class PartsFigure:
    """x = occupied part + free part, three images in one scale."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.figure = new_figure(WIDTH, 1.75)
        with style():
            axes = [self.figure.add_axes((0.02 + 0.34 * k, 0.03, 0.28, 0.78)) for k in range(3)]
            self.pictures = [_picture(ax, np.zeros(shape)) for ax in axes]
            self.titles = [ax.set_title("", fontsize=10, color=INK, loc="center") for ax in axes]
            for k, sign in ((0, "="), (1, "+")):
                self.figure.text(0.33 + 0.34 * k, 0.42, sign, ha="center", va="center", fontsize=16, color=MUTED)
        self.picture = LivePicture(self.figure, "The input as the sum of its occupied and its free part.")

    def show(self, x: Array, occupied: Array, free: Array, rank: int) -> None:
        """Show the parts of ``x`` (d,)."""
        largest = float(np.abs(x).max()) or 1.0
        for picture, part in zip(self.pictures, (x, occupied, free), strict=True):
            picture.set_data(part.reshape(picture.get_array().shape))
            picture.set_clim(-largest, largest)
        for title, text in zip(self.titles, ("x", f"occupied ({len(x) - rank})", f"free ({rank})"), strict=True):
            title.set_text(text)
        self.picture.draw_everything()


class OutcomeFigure:
    """Accuracy against the size of the perturbation, and what becomes of a few images."""

    def __init__(self, trial: Trial, shape: tuple[int, int]) -> None:
        self.figure = new_figure(WIDTH, 3.3)
        self.images = _one_of_each(trial.y)
        with style():
            ax = self.figure.add_axes((0.13, 0.48, 0.84, 0.43))
            tidy(ax)
            (self.curve,) = ax.plot(SIZES, trial.accuracies, color=BLUE, linewidth=1.8)
            (self.point,) = ax.plot([], [], "o", color=ORANGE, markeredgecolor=INK, markersize=9)
            ax.set_xlim(SIZES[0] - 0.03, SIZES[-1] + 0.03)
            ax.set_ylim(0, 103)
            ax.set_xlabel("size a of the change: ‖ΔW‖ / ‖W‖", labelpad=1)
            ax.set_ylabel(f"{trial.measure} (%)")
            self.title = ax.set_title("", color=INK, fontsize=10)
            self.figure.text(0.01, 0.27, "predicted then (before → now, where it changed):", fontsize=9, color=INK)
            width = 0.98 / SHOWN
            self.labels = []
            for place, index in enumerate(self.images):
                small = self.figure.add_axes((0.01 + place * width, 0.09, 0.86 * width, 0.86 * width * WIDTH / 3.3))
                _picture(small, trial.x[index].numpy().reshape(shape))
                self.labels.append(
                    small.text(0.5, -0.12, "", transform=small.transAxes, ha="center", va="top", fontsize=9)
                )
        alt = f"The {trial.measure} by the size of the change, and what a few images are taken for."
        self.picture = LivePicture(self.figure, alt, [self.curve, self.title, self.point, *self.labels])

    def show_direction(self, trial: Trial, direction: int) -> None:
        """Take the curve of another direction, which is drawn with the place on it."""
        self.curve.set_ydata(trial.accuracies)
        self.title.set_text(f"weights changed along $u_{{{direction}}}$")

    def show_size(self, trial: Trial, step: int) -> None:
        """Move along the curve."""
        self.point.set_data([SIZES[step]], [trial.accuracies[step]])
        for label, index in zip(self.labels, self.images, strict=True):
            before, now = int(trial.predictions[0, index]), int(trial.predictions[step, index])
            label.set_text(f"{now}" if now == before else f"{before} → {now}")
            label.set(color=INK if now == before else VERMILLION, fontweight="normal" if now == before else "bold")
        self.picture.draw()


def sigma_texts(spectrum: Spectrum) -> list[str]:
    """The singular values as they are written; under round-off, where nothing tells them from zero, ≈ 0."""
    values = spectrum.singular_values.tolist()
    return ["≈ 0" if value <= ROUND_OFF * values[0] else f"{value:.3g}" for value in values]


def _picture(ax: Axes, values: Array, box: Sequence[float] | None = None) -> Any:
    """An image in the signed colours with a thin frame; ``box`` places it inside of ``ax``."""
    largest = float(np.abs(values).max()) or 1.0
    extent = None if box is None else tuple(box)
    picture = ax.imshow(values, cmap=SIGNED, vmin=-largest, vmax=largest, extent=extent, interpolation="nearest")  # type: ignore[arg-type]
    if box is None:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set(visible=True, color=GREY, linewidth=0.6)
    else:
        left, right, bottom, top = box
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=GREY, linewidth=0.5)
        ax.add_patch(frame)
    return picture


def _as_images(
    images: ArrayLike | Tensor, dimension: int, shape: tuple[int, int] | None
) -> tuple[Tensor, tuple[int, int]]:
    """Flat images (n, d) as float32, and height and width of one."""
    x = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images)).detach().cpu().float()
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim not in (2, 3) or not x.numel():
        raise DataError(f"images must be (n, pixels), (n, h, w) or (n, 1, h, w), one at least, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise DataError("the images hold NaN or infinite values")
    side = math.isqrt(x.shape[-1])
    height, width = shape or (tuple(x.shape[1:]) if x.ndim == 3 else (side, side))
    x = x.flatten(1)
    if height * width != x.shape[1]:
        raise DataError(f"{x.shape[1]} pixels are no image of {height} × {width}: pass shape=(height, width)")
    if x.shape[1] != dimension:
        raise SpectrumError(
            f"the spectrum has {dimension} dimensions but an image {x.shape[1]} pixels: take the moment of the "
            "layer that sees the images, without bias='augment'"
        )
    return x, (height, width)


def _layer_of(model: nn.Module, layer: str | None, dimension: int) -> tuple[str, nn.Linear]:
    """The linear layer called ``layer``, else the first one, and its name."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    name = next(iter(linear), "") if layer is None else layer
    if name not in linear or linear[name].in_features != dimension:
        which = "the first linear layer" if layer is None else f"'{layer}'"
        raise AdaptationError(
            f"{which} of the model does not take {dimension} inputs: name a linear layer that does with layer=…, "
            f"of {', '.join(linear) or 'which it has none'}"
        )
    return name, linear[name]


def _one_of_each(y: Tensor) -> list[int]:
    """Up to ten indices: the first image of each class, then further ones."""
    first = [int((y == label).nonzero()[0]) for label in y.unique()]
    rest = [index for index in range(len(y)) if index not in first]
    return (first + rest)[:SHOWN]
