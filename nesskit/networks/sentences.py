"""The transformer that a stream of sentences is learned with, and whether the two belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from nesskit.errors import DataError
from nesskit.networks.encoder import Encoder, Part
from nesskit.networks.load import load_config, load_model, untrained_model
from nesskit.settings import NetworkSettings
from nesskit.streams.fields import Fields, OnDisk, Stored, in_memory
from nesskit.streams.tokens import MINILM, load_tokenizer, longest_input, may_have_tokenizer

if TYPE_CHECKING:
    from nesskit.streams.base import TaskStream

TOKENS = "input_ids"


def has_tokens(x: Stored) -> bool:
    """Whether inputs ``x`` (n, …) are token ids: the field ``input_ids``, or one tensor of whole numbers (n, length).

    Only a first row is looked at.
    """
    first = in_memory(x[:1])
    if isinstance(first, Fields):
        return TOKENS in first
    return first.ndim == 2 and not first.is_floating_point() and first.element_size() > 1


def build_encoder(stream: TaskStream, settings: NetworkSettings) -> Encoder:
    """The transformer that ``settings`` name, as a backbone for the sentences of ``stream``.

    Random weights are drawn from torch's generator.

    Raises:
        SettingsError: ``transformers`` is not installed, or a setting does not fit the model.
        DataError: there is no such model, it does not take sentences, they were tokenised for another model, or one of
            them is longer than the model takes.
        AdaptationError: the model has none of the layers that are to learn.
    """
    config = load_config(settings.source, settings.depth)  # first: nothing is loaded for a stream that does not fit
    tokenizer = load_tokenizer(settings.source) if may_have_tokenizer(settings.source) else None
    _refuse_other_tokenizer(stream, tokenizer, settings.source)
    _refuse_long_sentences(stream, longest_input(tokenizer, config), settings.source)
    model = load_model(settings.source, settings.depth) if settings.weights == "pretrained" else untrained_model(config)
    _refuse_unknown_tokens(stream, model, settings.source)
    named = settings.layers[0] if settings.layers[0] in get_args(Part) and len(settings.layers) == 1 else None
    return Encoder(model, settings.pooling, settings.layers if named is None else named)


def _refuse_other_tokenizer(stream: TaskStream, tokenizer: Any, source: str) -> None:
    """Ids of another vocabulary would be taken for other words, which no error ever shows."""
    if stream.tokenizer is None or tokenizer is None or source == stream.tokenizer:
        return
    if tokenizer.get_vocab() != load_tokenizer(stream.tokenizer).get_vocab():
        raise DataError(
            f"{stream.name} is tokenised for '{stream.tokenizer}', but '{source}' has another vocabulary: take "
            f"source = {MINILM}, or make a stream of your own with nesskit.pretrained('{source}').tokens(sentences)"
        )


def _refuse_long_sentences(stream: TaskStream, most: int | None, source: str) -> None:
    longest = max((ids.shape[1] for ids in _token_ids(stream)), default=0)
    if most is not None and longest > most:
        raise DataError(
            f"{stream.name} has a sentence of {longest} tokens, more than the {most} that '{source}' takes: shorten "
            "it, or take a model for longer ones"
        )


def _refuse_unknown_tokens(stream: TaskStream, model: nn.Module, source: str) -> None:
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    if getattr(model, "main_input_name", TOKENS) != TOKENS or not isinstance(embeddings, nn.Embedding):
        raise DataError(f"'{source}' takes no token ids, but {stream.name} has sentences: take source = {MINILM}")
    largest = max((int(ids.max()) for ids in _token_ids(stream) if ids.numel()), default=0)
    if largest >= embeddings.num_embeddings:
        raise DataError(
            f"{stream.name} has the token {largest}, but '{source}' has embeddings of {embeddings.num_embeddings}: it "
            "is tokenised for another model"
        )


def _token_ids(stream: TaskStream) -> Iterator[Tensor]:
    """Token ids (n, length) of every part of every task without columns of padding; none of what is on disk."""
    for task in stream:
        for x in (task.train.x, task.valid.x, task.test.x):
            if not isinstance(x, OnDisk):
                yield x.prepared()[TOKENS] if isinstance(x, Fields) else x
