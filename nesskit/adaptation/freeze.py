"""Hold everything still that no projection protects, and notice when it moved all the same.

A parameter that is merely set to ``requires_grad = False`` moves again with ``model.requires_grad_(True)``, and
statistics of BatchNorm move whenever the model runs in training mode. Here

* a frozen parameter drops every gradient that reaches it, so that no optimizer sees one, whatever its flag says;
* running state stops: normalisations use their averages and leave them alone, other buffers are put back;
* what a frozen parameter was is remembered, and compared in the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

OURS = ("basis", "occupied")  # buffers of adapted layers, which nothing changes


class Freeze:
    """Parameters and running state of ``model`` that stand still until :meth:`thaw`.

    Args:
        model: the model.
        learning: names of the parameters that go on learning; all others are frozen.

    Attributes:
        frozen: names of the parameters that were trainable and are frozen now.
        kept: names of those that were frozen before, and stay so.
    """

    def __init__(self, model: nn.Module, learning: Sequence[str] = ()) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if name not in learning}
        self.frozen = [name for name, p in self.parameters.items() if p.requires_grad]
        self.kept = [name for name, p in self.parameters.items() if not p.requires_grad]
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.hooks = [_hold(p) for p in self.parameters.values() if p.is_floating_point() or p.is_complex()]
        running = {name: module for name, module in model.named_modules() if _has_running_state(module)}
        self.modes = {name: module.training for name, module in running.items()}
        self.buffers = {name: _Kept(module) for name, module in running.items()}
        for name, module in running.items():
            if isinstance(module, _NormBase):
                self.hooks.append(module.register_forward_pre_hook(_use_averages))
            self.hooks.append(module.register_forward_hook(self.buffers[name]))
        self.hooks.append(model.register_load_state_dict_post_hook(_loaded))

    def remember(self, model: nn.Module, missing: Sequence[str]) -> None:
        """What was loaded is what is kept from now on; ``missing`` names what was not, as whoever loaded knows it."""
        dotted = [f".{key}" for key in missing]  # the model may be a part of what was loaded
        for name, parameter in self.parameters.items():
            if not any(key.endswith(f".{name}") for key in dotted):
                self.values[name] = parameter.detach().clone()
        for name, kept in self.buffers.items():
            kept.take(model.get_submodule(name))

    def moved(self, model: nn.Module) -> Iterator[tuple[str, float]]:
        """Name of each frozen parameter that is not what it was, and ‖now - then‖_F; infinite if it is gone."""
        present = dict(model.named_parameters())
        for name, then in self.values.items():
            now = present.get(name)
            if now is None or now.shape != then.shape:
                yield name, math.inf
                continue
            then = then.to(now)  # the whole model may have been cast
            if not torch.equal(now, then) and not ((now == then) | (now.isnan() & then.isnan())).all():
                yield name, float(torch.linalg.vector_norm(now.detach().double() - then.double()))

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what moved, as far as it is still there."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.values[name])

    def thaw(self, model: nn.Module) -> None:
        """Let go: what was trainable is so again, what the user had frozen is not, running state runs."""
        for hook in self.hooks:
            hook.remove()
        for name, parameter in self.parameters.items():
            parameter.grad = None
            parameter.requires_grad_(name in self.frozen)
        for name, training in self.modes.items():
            model.get_submodule(name).training = training


class _Kept:
    """A forward hook that puts the buffers of its module back to what they were."""

    def __init__(self, module: nn.Module) -> None:
        self.take(module)

    def take(self, module: nn.Module) -> None:
        """The module's present buffers are the ones to keep."""
        own = {name: b for name, b in module._buffers.items() if b is not None and name not in OURS}
        self.values = {name: buffer.detach().clone() for name, buffer in own.items()}
        self.stamps = {name: _stamp(buffer) for name, buffer in own.items()}

    def __call__(self, module: nn.Module, *_: Any) -> None:
        for name, value in self.values.items():
            buffer = module._buffers[name]
            if buffer is None or _stamp(buffer) != self.stamps[name]:
                # A new tensor: the old one may be part of a graph that has yet to be run backwards.
                module._buffers[name] = buffer = value.clone() if buffer is None else value.to(buffer, copy=True)
                self.stamps[name] = _stamp(buffer)


def _stamp(buffer: Tensor) -> tuple[int, int]:
    """Changes whenever the buffer is written to, or becomes another tensor."""
    return id(buffer), buffer._version


def _hold(parameter: nn.Parameter) -> RemovableHandle:
    """Freeze a parameter: gradients that reach it all the same are dropped."""
    parameter.grad = None  # an optimizer takes a left-over gradient, whatever requires_grad says
    parameter.requires_grad_(True)  # torch wants it so to register a hook
    hook: RemovableHandle = parameter.register_post_accumulate_grad_hook(_drop_gradient)
    parameter.requires_grad_(False)
    return hook


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _loaded(model: nn.Module, incompatible: Any) -> None:
    model._freeze.remember(model, incompatible.missing_keys)  # type: ignore[union-attr, operator]


def _has_running_state(module: nn.Module) -> bool:
    """Whether running the module may change it: it has buffers of its own."""
    return any(buffer is not None for name, buffer in module._buffers.items() if name not in OURS)


def _use_averages(module: nn.Module, _: Any) -> None:
    """Normalise by the averages, and leave them alone, whatever mode the model is in."""
    module.training = False
