"""CLINC150 (Larson et al. 2019): what people ask an assistant, 150 intents in ten domains.

The files are JSON: ``clinc150-full.json`` has lists of [sentence, intent] under ``train``, ``val`` and ``test``, and
sentences of no intent under ``oos_train``, ``oos_val`` and ``oos_test`` ("out of scope"); ``clinc150-domains.json`` has
the intents of each domain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nesskit.errors import DataError
from nesskit.seeds import derive_seed
from nesskit.streams.base import Examples, Task, TaskStream
from nesskit.streams.fetch import locate_stream, sha256_of
from nesskit.streams.fields import Fields
from nesskit.streams.reading import opened
from nesskit.streams.tokens import MINILM, load_tokenizer, located, tokenise

NAME = "split-clinc150"
FULL, DOMAINS = "clinc150-full.json", "clinc150-domains.json"
PARTS = ("train", "val", "test")
OUT_OF_SCOPE = ("oos_train", "oos_val", "oos_test")


class Sentences(NamedTuple):
    """Sentences and the number of the intent of each, counted over all domains."""

    texts: list[str]
    labels: Tensor


class Clinc150(NamedTuple):
    """The data set: domain → its intents, both in the order of the file; train, val and test sentences.

    Of the sentences of no intent, ``reference`` are those of train and val and the first half of those of test, which
    are 100, 100 and 500, and ``held_out`` the second half of those of test, 500.
    """

    domains: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Sentences]
    reference: Sequence[str]
    held_out: Sequence[str]


def split_clinc150(seed: int, validation_share: float = 0.0) -> TaskStream:
    """Ten tasks of 15 intents, one a domain, in the order of the file of domains.

    Inputs are ``input_ids`` and ``attention_mask``, int64 (n, length): the tokens of ``minilm``'s tokenizer, padded to
    the longest sentence of the whole stream. Per task 1500 sentences to train, 450 to test. The sentences of no intent
    are neutral between the domains: 700 are the stream's ``reference``, 500 are ``held_out``, the same for all seeds.

    Args:
        seed: shuffles the sentences of each task; the tasks are the same for all seeds.
        validation_share: above 0 the 300 sentences a task that the data set itself sets aside, whatever the share: no
            training sentence is given up for them. 0: none.

    Raises:
        DataError: a file cannot be had, is damaged, or the domains and the sentences do not fit together.
        SettingsError: the extra ``text`` is not installed.
    """
    files = locate_stream(NAME)
    data = read_clinc150(files[FULL].path, files[DOMAINS].path)
    tokens = _tokens(data)
    examples = {part: examples_by_domain(data, part, tokens[part], seed) for part in PARTS}
    tasks = []
    for number, (domain, intents) in enumerate(data.domains.items()):
        train, valid, test = (examples[part][number] for part in PARTS)
        unused = Examples(_rows(valid.x, slice(0, 0)), valid.y[:0])
        tasks.append(Task(domain, intents, train, valid if validation_share > 0 else unused, test))
    checksums = {name: file.sha256 for name, file in files.items()}
    vocabulary = Path(located(MINILM)) / "tokenizer.json"
    checksums |= {f"{MINILM}, {vocabulary.name}": sha256_of(vocabulary)}
    reference, held_out = Fields(tokens["reference"]), Fields(tokens["held_out"])
    return TaskStream(NAME, tuple(tasks), checksums, MINILM, reference, held_out)


def read_clinc150(full: Path, domains: Path) -> Clinc150:
    """What the two files hold.

    Raises:
        DataError: a file is damaged, an intent stands in no domain or in two, or has no sentence.
    """
    by_domain = _read_domains(domains)
    numbers = {intent: number for number, intent in enumerate(i for group in by_domain.values() for i in group)}
    content = _read_json(full)
    if not isinstance(content, dict) or not {*PARTS, *OUT_OF_SCOPE} <= content.keys():
        raise DataError(f"{full} is not CLINC150: it must have the parts {', '.join((*PARTS, *OUT_OF_SCOPE))}")
    parts = {}
    for part in PARTS:
        pairs = list(_pairs(full, part, content[part]))
        homeless = sorted({intent for _, intent in pairs} - numbers.keys())
        if homeless:
            raise DataError(
                f"{full} has {part} sentences of {_some(homeless)}, but {domains} has no domain with that: a domain is "
                "missing, or the files do not belong together"
            )
        absent = [intent for intent in numbers if intent not in {intent for _, intent in pairs}]
        if absent:
            raise DataError(f"{domains} names {_some(absent)}, but {full} has no {part} sentence of that")
        labels = torch.tensor([numbers[intent] for _, intent in pairs])
        parts[part] = Sentences([text for text, _ in pairs], labels)
    train, val, test = ([text for text, _ in _pairs(full, part, content[part])] for part in OUT_OF_SCOPE)
    half = len(test) // 2
    return Clinc150(by_domain, parts, [*train, *val, *test[:half]], test[half:])


def examples_by_domain(data: Clinc150, part: str, tokens: Mapping[str, Tensor], seed: int) -> list[Examples]:
    """One ``Examples`` a domain, shuffled; label k is the domain's k-th intent.

    Args:
        data: the data set.
        part: ``train``, ``val`` or ``test``.
        tokens: of all sentences of that part, in the order of the file.
        seed: of the run; from it comes one of the data set's and the part's own.
    """
    labels = data.parts[part].labels
    drawn = np.random.default_rng(derive_seed(seed, "samples", "CLINC150", part)).permutation(len(labels))
    order = torch.from_numpy(drawn)
    examples, first = [], 0
    for intents in data.domains.values():
        mine = order[(labels[order] >= first) & (labels[order] < first + len(intents))]
        examples.append(Examples(_rows(tokens, mine), labels[mine] - first))
        first += len(intents)
    return examples


def _rows(tokens: Any, rows: Tensor | slice) -> Any:
    """The same rows of every tensor: Task takes a dict of them as inputs."""
    return {name: tensor[rows] for name, tensor in tokens.items()}


def _tokens(data: Clinc150) -> dict[str, dict[str, Tensor]]:
    """Token ids and masks of every part and of the sentences of no intent, all as long as the longest sentence."""
    texts = {part: data.parts[part].texts for part in PARTS}
    texts |= {"reference": list(data.reference), "held_out": list(data.held_out)}
    tokens = tokenise(load_tokenizer(MINILM), [text for part in texts.values() for text in part])
    split = {name: tensor.split([len(part) for part in texts.values()]) for name, tensor in tokens.items()}
    return {part: {name: pieces[number] for name, pieces in split.items()} for number, part in enumerate(texts)}


def _read_domains(path: Path) -> dict[str, tuple[str, ...]]:
    content = _read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} must say which intents each domain has, as an object of lists")
    owner: dict[str, str] = {}
    for domain, intents in content.items():
        if not isinstance(intents, list) or not intents or not all(isinstance(intent, str) for intent in intents):
            raise DataError(f"{path}: the domain '{domain}' must be a list of the names of its intents")
        for intent in intents:
            if intent in owner:
                raise DataError(f"{path}: '{intent}' stands in '{owner[intent]}' and in '{domain}', but has one domain")
            owner[intent] = domain
    return {domain: tuple(intents) for domain, intents in content.items()}


def _pairs(path: Path, part: str, pairs: Any) -> Iterator[tuple[str, str]]:
    """(sentence, intent), each of them checked."""
    if not isinstance(pairs, list):
        raise DataError(f"{path}: the part '{part}' must be a list of pairs of a sentence and its intent")
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(value, str) for value in pair)):
            raise DataError(f"{path}: entry {number} of '{part}' must be a pair of a sentence and its intent")
        yield pair[0], pair[1]


def _read_json(path: Path) -> Any:
    with opened(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    further = f" and {len(names) - most} more intents" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + further
