"""A transformer of ``transformers`` as a backbone: token ids or pixels in, one vector of features an input out.

Nothing of ``transformers`` is imported here: an encoder holds a model that somebody else made, see ``load.py`` beside.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nesskit.adaptation.capture import named_layers
from nesskit.errors import AdaptationError, SettingsError

Pooling = Literal["mean", "first", "last"]
Part = Literal["blocks", "attention", "feed-forward", "whole", "none"]


class Encoder(nn.Module):
    """Features (n, width) of a transformer's last hidden states (n, length, width), pooled over what is no padding.

    Encoders of text (BERT and its kin), of images (ViT) and decoders (GPT-2) alike. The model is taken as it is, with
    its dropout; only which of its parameters learn is decided here: those of the chosen layers, weight and bias. All
    others stand still from the start, because what a pretrained model knows lies in them, too.

    Args:
        model: what ``transformers.AutoModel`` makes: a model without a head.
        pooling: ``mean`` over the tokens; the ``first`` token, which stands for the whole input in BERT and ViT; or the
            ``last`` one, which alone has seen all others in a decoder.
        layers: which layers learn: ``blocks``, the linear layers of all blocks; of these ``attention`` or
            ``feed-forward`` alone; names or patterns of names in ``model``, such as ``encoder.layer.5.*``; ``whole``,
            everything, embeddings and LayerNorm too; ``none``.

    Attributes:
        layers: names of the layers that learn, as :func:`nesskit.collect_moments` of the encoder calls them.
        width: of the features.

    Raises:
        SettingsError: there is no such pooling, or no such part.
        AdaptationError: the model has no layer of that name or pattern, or none that can be adapted.
    """

    def __init__(self, model: nn.Module, pooling: Pooling = "mean", layers: Part | Sequence[str] = "blocks") -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise SettingsError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        self.model = model
        self.pooling = pooling
        chosen = _chosen_layers(model, layers)
        self.layers = tuple(f"model.{name}" for name in chosen)
        if layers != "whole":
            model.requires_grad_(False)
            for layer in chosen.values():
                layer.requires_grad_(True)
        self._main_input = str(getattr(model, "main_input_name", "input_ids"))
        # A decoder would keep every key and value for a next token that nobody asks for.
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    @property
    def width(self) -> int:
        """How many features an input has."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(
        self,
        x: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Features (n, width).

        Args:
            x: the model's main input, whatever it calls it: token ids (n, length) or pixels (n, channels, h, w).
            attention_mask: (n, length), not 0 where there is a token, 0 where there is padding, on either side; None:
                no padding.
            input_ids, pixel_values, token_type_ids: as the model calls them.
        """
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "token_type_ids": token_type_ids,
        }
        if x is not None:
            named[self._main_input] = x
        given = {name: tensor for name, tensor in named.items() if tensor is not None}
        hidden: Tensor = self.model(**given, **self._options).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def extra_repr(self) -> str:
        """Shown when the encoder is printed."""
        return f"pooling={self.pooling}, {len(self.layers)} layers learn"


def pool(hidden: Tensor, mask: Tensor | None, pooling: Pooling) -> Tensor:
    """(n, length, width) → (n, width): the mean of the tokens, the first or the last one; padding does not count.

    Args:
        hidden: a vector a token.
        mask: (n, length), not 0 where there is a token; None: everywhere. Of an input without any token the mean is 0.
        pooling: which.
    """
    there = torch.ones_like(hidden[..., 0], dtype=torch.bool) if mask is None else mask != 0
    if pooling == "mean":
        counted = there.unsqueeze(-1).to(hidden.dtype)
        return (hidden * counted).sum(1) / counted.sum(1).clamp(min=1)
    # argmax finds the first of the ones.
    position = there.int().argmax(1) if pooling == "first" else there.shape[1] - 1 - there.int().flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


def _chosen_layers(model: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """The layers that learn, by their name in ``model``."""
    known = named_layers(model)
    if isinstance(layers, str):
        if layers not in get_args(Part):
            raise SettingsError(
                f"layers must be one of {', '.join(get_args(Part))}, or a list of names or patterns, got {layers!r}"
            )
        parts = {
            "whole": lambda name: True,
            "none": lambda name: False,
            "blocks": lambda name: _in_block(model, name),
            "attention": lambda name: _in_block(model, name) and _in_attention(name),
            "feed-forward": lambda name: _in_block(model, name) and not _in_attention(name),
        }
        chosen = {name: layer for name, layer in known.items() if parts[layers](name)}
        if not chosen and layers != "none":
            raise AdaptationError(
                f"{type(model).__name__} has no linear layer in its {layers} that can be adapted: name layers instead; "
                f"it has {', '.join(known)}"
            )
        return chosen
    patterns = [name for name in layers if set(name) & set("*?[")]
    names = set(named_layers(model, [name for name in layers if name not in patterns]))
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise AdaptationError(
                f"no layer of {type(model).__name__} matches '{pattern}'; its layers are {', '.join(known)}"
            )
        names.update(matching)
    return {name: module for name, module in model.named_modules() if name in names}


def _in_block(model: nn.Module, name: str) -> bool:
    """Whether the layer belongs to one of the model's blocks, which stand in a list, and is no embedding."""
    ancestors = [name.rpartition(".")[0]]
    while ancestors[-1]:
        ancestors.append(ancestors[-1].rpartition(".")[0])
    listed = any(isinstance(model.get_submodule(ancestor), nn.ModuleList) for ancestor in ancestors)
    return listed and not isinstance(model.get_submodule(name), nn.Embedding)


def _in_attention(name: str) -> bool:
    """Whether the layer is part of an attention, by its name: every model of transformers calls it so."""
    return any("attention" in part or "attn" in part for part in name.lower().split("."))
