"""Out of the house: an update is a LoRA adapter that peft itself loads, and an adapter of peft's is an update."""

import copy
import json
import sys

import pytest
import torch
from small_tasks import training
from test_encoder import (  # the folder is a fixture
    MODELS,
    SIZE,
    adapt,
    bert,
    folder,  # noqa: F401
    generator,
    gpt2,
    randomise,
    token_batch,
    two_tasks,
    vit,
)
from torch import nn

import nesskit
from nesskit import Encoder, FrobeniusThreshold, NESSSettings, TaskModel, adapted_layers, collect_moments, fit
from nesskit.errors import AdaptationError, DataError, SettingsError, UserFileError
from nesskit.methods import make_method
from nesskit.streams.batches import TaskData

transformers = pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")
peft = pytest.importorskip("peft", reason="pip install 'nesskit[text]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def open_model(make, inputs, seed=0):
    """A model with updates of every layer of its blocks, and a copy of it as it was before."""
    torch.manual_seed(seed)
    model = make().eval()
    plain = copy.deepcopy(model)
    adapt(Encoder(model), [inputs(generator(1), n=2)])
    randomise(model)
    return model, plain


@torch.no_grad()
def hidden(model, batch):
    return model.eval()(**batch).last_hidden_state


def loaded_by_peft(plain, adapter):
    return peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(adapter))


def settings_of(adapter):
    return json.loads((adapter / "adapter_config.json").read_text())


def change_settings(adapter, **changes):
    (adapter / "adapter_config.json").write_text(json.dumps(settings_of(adapter) | changes))


# ---------------------------------------------------------------------------------------------------- to_peft


@pytest.mark.parametrize("name", MODELS)
def test_peft_computes_what_the_open_model_computes(name, tmp_path):
    make, inputs = MODELS[name]
    model, plain = open_model(make, inputs)
    batch = inputs(generator())
    adapter = nesskit.to_peft(model, tmp_path / "adapter")
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    ours = hidden(model, batch)
    assert (ours - hidden(plain, batch)).abs().max() > 0.1
    torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), ours, **CLOSE)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_factors_are_the_basis_and_the_coefficients(make, tmp_path):
    from safetensors.torch import load_file

    model, _ = open_model(make, token_batch)
    tensors = load_file(nesskit.to_peft(model, tmp_path / "adapter") / "adapter_model.safetensors")
    layers = adapted_layers(model)
    assert len(tensors) == 2 * len(layers)
    assert len({layer.rank for layer in layers.values()}) > 1
    for layer_name, layer in layers.items():
        assert torch.equal(tensors[f"base_model.model.{layer_name}.lora_A.weight"], layer.basis.T)
        assert torch.equal(tensors[f"base_model.model.{layer_name}.lora_B.weight"], layer.coefficients.T)


def test_the_transformer_is_found_wherever_it_is_and_stays_as_it_is(tmp_path):
    model, _ = open_model(bert, token_batch)
    before, batch = copy.deepcopy(model.state_dict()), token_batch(generator())
    out, encoder = hidden(model, batch), Encoder(model, layers="none")
    holders = {"alone": model, "encoder": encoder, "tasks": TaskModel(encoder, 32, [2])}
    state = torch.get_rng_state()
    for name, holder in holders.items():
        nesskit.to_peft(holder, tmp_path / name)
    files = {(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in holders}
    assert len(files) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(hidden(model, batch), out)


def test_embeddings_and_convolutions_have_adapters_too(tmp_path):
    for make, name, inputs in (
        (bert, "embeddings.word_embeddings", token_batch),
        (vit, "embeddings.patch_embeddings.projection", MODELS["vit"][1]),
    ):
        torch.manual_seed(0)
        model = make().eval()
        plain, batch = copy.deepcopy(model), inputs(generator())
        d = collect_moments(model, [batch], [name])[name].dimension
        nesskit.adapt(model, {name: torch.linalg.qr(torch.randn(d, 5))[0]})
        randomise(model)
        adapter = nesskit.to_peft(model, tmp_path / name)
        torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), hidden(model, batch), **CLOSE)
        again = nesskit.from_peft(copy.deepcopy(plain), adapter)
        assert list(adapted_layers(again)) == [name]
        torch.testing.assert_close(hidden(again, batch), hidden(model, batch), **CLOSE)


def test_the_projected_form_and_a_bias_that_learns_go_along(tmp_path):
    torch.manual_seed(0)
    model = bert().eval()
    plain, batch = copy.deepcopy(model), token_batch(generator())
    name, other = "encoder.layer.0.intermediate.dense", "encoder.layer.1.output.dense"
    with_bias, occupied = torch.linalg.qr(torch.randn(33, 7))[0], torch.linalg.qr(torch.randn(48, 30))[0]
    nesskit.adapt(model, {name: with_bias}, {other: occupied})
    randomise(model)
    adapter = nesskit.to_peft(model, tmp_path / "adapter")
    config = settings_of(adapter)
    assert (config["bias"], {config["r"], *config["rank_pattern"].values()}) == ("all", {7, 18})
    torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), hidden(model, batch), **CLOSE)
    again = nesskit.from_peft(plain, adapter)
    torch.testing.assert_close(hidden(again, batch), hidden(model, batch), **CLOSE)
    torch.testing.assert_close(hidden(nesskit.merge(again), batch), hidden(model, batch), **CLOSE)


def learned_run(make=bert, inputs=token_batch, layers="blocks"):
    """A model that has learned two tasks with NESS, and what it was before."""
    torch.manual_seed(0)
    model = make()
    plain, encoder = copy.deepcopy(model), Encoder(model, layers=layers)
    method = make_method("ness", NESSSettings(FrobeniusThreshold(1e-6)))
    learned = TaskModel(encoder, encoder.width, [3, 3])
    fit(learned, two_tasks(inputs), method, training(lr=0.1))
    return learned, plain


@pytest.mark.parametrize("name", MODELS)
def test_after_a_whole_run_the_difference_to_the_base_is_the_adapter(name, tmp_path):
    make, inputs = MODELS[name]
    learned, plain = learned_run(make, inputs)
    batch, transformer = inputs(generator()), learned.backbone.model
    adapter = nesskit.to_peft(learned, tmp_path / "adapter", base=plain)
    ours = hidden(transformer, batch)
    assert (ours - hidden(plain, batch)).abs().max() > 0.1
    torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), ours, **CLOSE)
    again = nesskit.merge(nesskit.from_peft(copy.deepcopy(plain), adapter))
    torch.testing.assert_close(hidden(again, batch), ours, **CLOSE)
    for key, value in again.state_dict().items():
        torch.testing.assert_close(value, transformer.state_dict()[key], atol=1e-6, rtol=1e-5)


def test_a_difference_has_the_rank_that_it_has(tmp_path):
    """Ten merges of rank 1 each into the first layer, rounded to float32 every time; the second stays."""
    torch.manual_seed(0)
    model = bert().eval()
    plain, first = copy.deepcopy(model), model.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        for _ in range(10):
            first.weight += 0.1 * torch.outer(torch.randn(48), torch.randn(32))
    adapter = nesskit.to_peft(model, tmp_path / "adapter", base=plain)
    config = settings_of(adapter)
    assert (config["r"], config["rank_pattern"], config["bias"]) == (10, {}, "none")
    assert list(config["target_modules"]) == ["encoder.layer.0.intermediate.dense"]
    batch = token_batch(generator())
    torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), hidden(model, batch), **CLOSE)


def test_the_base_may_be_a_folder_which_the_adapter_then_names(tmp_path):
    torch.manual_seed(0)
    bert().save_pretrained(tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(tmp_path / "base")
    adapt(Encoder(model), [token_batch(generator(1), n=2)])
    randomise(model)
    while_open = nesskit.to_peft(model, tmp_path / "open")
    with_base = nesskit.to_peft(model, tmp_path / "open, from a base", base=str(tmp_path / "base"))
    nesskit.merge(model)
    merged = nesskit.to_peft(model, tmp_path / "merged", base=tmp_path / "base")
    batch = token_batch(generator())
    for adapter in (while_open, with_base, merged):
        assert settings_of(adapter)["base_model_name_or_path"] == str(tmp_path / "base")
        plain = transformers.AutoModel.from_pretrained(tmp_path / "base")
        torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), hidden(model, batch), **CLOSE)


def test_after_merge_save_pretrained_is_a_folder_like_any_other(folder, tmp_path):  # noqa: F811
    minimal = nesskit.pretrained(folder)
    model, batch = minimal.encoder.model, token_batch(generator())
    adapt(minimal.encoder, [token_batch(generator(1), n=2)])
    randomise(model)
    adapted = hidden(model, batch)
    nesskit.merge(minimal.encoder).model.save_pretrained(tmp_path)
    minimal.tokenizer.save_pretrained(tmp_path)
    again = nesskit.pretrained(tmp_path)
    torch.testing.assert_close(hidden(again.encoder.model, batch), adapted, **CLOSE)
    torch.testing.assert_close(hidden(transformers.AutoModel.from_pretrained(tmp_path), batch), adapted, **CLOSE)
    assert again.tokens(["word3 word0"])["input_ids"].tolist() == [[5, 2]]


# ---------------------------------------------------------------------------------------------------- from_peft


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_again(name, tmp_path):
    make, inputs = MODELS[name]
    model, plain = open_model(make, inputs)
    encoder, batch = Encoder(copy.deepcopy(plain)), inputs(generator())
    assert nesskit.from_peft(encoder, nesskit.to_peft(model, tmp_path / "adapter")) is encoder
    torch.testing.assert_close(hidden(encoder.model, batch), hidden(model, batch), **CLOSE)
    for key, layer in adapted_layers(encoder.model).items():
        theirs = adapted_layers(model)[key]
        torch.testing.assert_close(layer.basis.T @ layer.basis, torch.eye(theirs.rank), **CLOSE)
        torch.testing.assert_close(layer.update_matrix(), theirs.update_matrix(), **CLOSE)
        torch.testing.assert_close(layer.basis @ layer.basis.T, theirs.basis @ theirs.basis.T, **CLOSE)
    nesskit.merge(encoder)
    assert not adapted_layers(encoder)
    torch.testing.assert_close(hidden(encoder.model, batch), hidden(model, batch), **CLOSE)


def pefts_own(plain, path, **changes):
    """An adapter that peft made, with random factors, and what it computes."""
    options = {"r": 3, "lora_alpha": 12, "lora_dropout": 0.1, "target_modules": ["query", "output.dense"]}
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**(options | changes)))
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if parameter.requires_grad and ("lora_B" in key or "bias" in key):
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(str(path), save_embedding_layers=False)
    return wrapped.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layer.1.output.dense": 5}, "alpha_pattern": {"query": 7}},
        {"layers_to_transform": [1]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
        {"r": 40},
    ],
    ids=lambda changes: ", ".join(changes) or "plain",
)
def test_an_adapter_that_peft_made_is_opened_with_its_scale(changes, tmp_path):
    torch.manual_seed(0)
    plain, batch = bert().eval(), token_batch(generator())
    theirs = hidden(pefts_own(plain, tmp_path / "adapter", **changes), batch)
    assert (theirs - hidden(plain, batch)).abs().max() > 1e-2
    model = nesskit.from_peft(copy.deepcopy(plain), tmp_path / "adapter")
    torch.testing.assert_close(hidden(model, batch), theirs, **CLOSE)
    torch.testing.assert_close(hidden(nesskit.merge(model), batch), theirs, **CLOSE)


def test_what_an_adapter_changes_can_be_measured(tmp_path):
    """‖X ΔW‖ of the inputs that a layer sees, by our analysis and by numpy from the file."""
    from safetensors.numpy import load_file

    torch.manual_seed(0)
    plain, batch = bert().eval(), token_batch(generator())
    pefts_own(plain, tmp_path / "adapter", target_modules=["layer.0.attention.self.query"])
    name = "encoder.layer.0.attention.self.query"
    moment = collect_moments(plain, [batch], [name])[name]
    layer = adapted_layers(nesskit.from_peft(plain, tmp_path / "adapter"))[name]
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    A, B = (factors[f"base_model.model.{name}.lora_{part}.weight"].astype(float) for part in "AB")
    change = 12 / 3 * B @ A
    C = moment.matrix.numpy()
    expected = (change @ C @ change.T).trace() ** 0.5
    update = layer.update_matrix().detach().double()
    assert float((update @ moment.matrix @ update.T).trace().sqrt()) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------- what is refused


def refused(error, sentence, call, *arguments, **named):
    with pytest.raises(error, match=sentence) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(tmp_path):
    model, _ = open_model(bert, token_batch)
    (tmp_path / "result.txt").write_text("mine")
    refused(UserFileError, "is there already, and not empty: choose another", nesskit.to_peft, model, tmp_path)
    refused(UserFileError, "is there already", nesskit.to_peft, model, tmp_path / "result.txt")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.txt", "mine")]
    (tmp_path / "empty").mkdir()
    assert (nesskit.to_peft(model, tmp_path / "empty") / "adapter_config.json").is_file()


def test_of_an_adapter_that_could_not_be_written_nothing_is_left(tmp_path, monkeypatch):
    model, _ = open_model(bert, token_batch)

    def full_disk(tensors, path, metadata):
        raise OSError("no space left on device")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        nesskit.to_peft(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def closed_models():
    torch.manual_seed(0)
    with_norm = bert()
    nn.init.normal_(with_norm.encoder.layer[0].output.LayerNorm.weight)
    other = bert(intermediate_size=40)
    return {
        "none is open": (bert(), {}, AdaptationError, r"no layer is open, .* say which model .*base=…"),
        "a LayerNorm": (
            with_norm,
            {"base": bert()},
            AdaptationError,
            r"LayerNorm\.weight.* learned, too, which no LoRA adapter can hold: write the whole model with merge",
        ),
        "another base": (bert(), {"base": other}, DataError, r"the base is another model .* shape of 'encoder\.layer"),
        "no transformer": (nn.Linear(3, 3), {}, AdaptationError, "this Linear has no model of it within"),
        "two of them": (nn.ModuleList([bert(), bert()]), {}, AdaptationError, r"has 2 models \(0, 1\) of it within"),
    }


@pytest.mark.parametrize("case", ["none is open", "a LayerNorm", "another base", "no transformer", "two of them"])
def test_what_no_adapter_can_hold_is_refused(case, tmp_path):
    model, named, error, sentence = closed_models()[case]
    if case == "a LayerNorm":
        named["base"].load_state_dict(model.state_dict())
        nn.init.ones_(named["base"].encoder.layer[0].output.LayerNorm.weight)
    refused(error, sentence, nesskit.to_peft, model, tmp_path / "adapter", **named)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_its_base_has_no_adapter(tmp_path):
    model = bert()
    refused(
        AdaptationError,
        "no layer has other weights than the base",
        nesskit.to_peft,
        model,
        tmp_path / "a",
        base=copy.deepcopy(model),
    )
    assert not list(tmp_path.iterdir())


class NoLayers(transformers.PreTrainedModel):
    """A model of transformers of norms alone."""

    config_class = transformers.BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.LayerNorm(4)
        self.post_init()


def test_a_model_without_a_layer_that_can_be_adapted_is_refused(tmp_path):
    empty = NoLayers(transformers.BertConfig(**SIZE))
    sentence = "no layer of this NoLayers can be adapted, so it can have no adapter"
    refused(AdaptationError, sentence, nesskit.to_peft, empty, tmp_path / "adapter")
    refused(AdaptationError, sentence, nesskit.from_peft, empty, tmp_path)
    assert not list(tmp_path.iterdir())


def test_parts_of_single_tasks_are_refused(tmp_path):
    encoder = Encoder(open_model(bert, token_batch)[0], layers="none")
    model = TaskModel(encoder, 32, [2, 2])
    layer = "model.encoder.layer.0.attention.self.query"
    model.scaled.keep(0, layer, (torch.eye(32, 2), torch.eye(2)))
    refused(AdaptationError, "single tasks have parts of their own", nesskit.to_peft, model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_updates_of_the_method_lora_are_written_once_its_run_is_over(tmp_path):
    torch.manual_seed(0)
    model = bert()
    plain, encoder, method = copy.deepcopy(model), Encoder(model), make_method("lora")
    learned, batch = TaskModel(encoder, encoder.width, [3, 3]), token_batch(generator())
    method.begin_task(learned, TaskData(two_tasks(token_batch)[0], 0, torch.device("cpu")))
    refused(
        AdaptationError, r"the method LoRA .*: its end_run\(model\) first", nesskit.to_peft, learned, tmp_path / "a"
    )
    for update in method.updates.values():
        nn.init.normal_(update.B, std=0.1)
    method.end_run(learned)
    adapter = nesskit.to_peft(learned, tmp_path / "a", base=plain)
    assert settings_of(adapter)["r"] == method.settings.rank
    torch.testing.assert_close(hidden(loaded_by_peft(plain, adapter), batch), hidden(model, batch), **CLOSE)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    torch.manual_seed(0)
    plain = bert()
    plain.name_or_path = "somebody/bert"
    pefts_own(plain, tmp_path / "adapter")
    here = copy.deepcopy(plain)
    here.name_or_path = "somebody/other"
    before = copy.deepcopy(here.state_dict())
    sentence = r"was made for 'somebody/bert', and this model is 'somebody/other': load that one, or say same_base=True"
    refused(DataError, sentence, nesskit.from_peft, here, tmp_path / "adapter")
    for other in (bert(hidden_size=16), bert(num_hidden_layers=1), bert(num_hidden_layers=3)):
        refused(DataError, "is that of another model: 'base_model", nesskit.from_peft, other, tmp_path / "adapter")
    refused(DataError, "does not fit this model: ", nesskit.from_peft, gpt2(), tmp_path / "adapter")
    assert here.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in here.state_dict().items())
    assert adapted_layers(nesskit.from_peft(here, tmp_path / "adapter", same_base=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["pooler"]}, r"modules_to_save=\['pooler'\]"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]"),
    ],
)
def test_an_adapter_that_is_more_than_low_rank_updates_is_refused(changes, sentence, tmp_path):
    torch.manual_seed(0)
    plain = bert()
    pefts_own(plain, tmp_path, **changes)
    refused(DataError, f"more than low-rank updates, .*: {sentence}$", nesskit.from_peft, plain, tmp_path)
    assert not adapted_layers(plain)


def test_a_setting_of_a_later_peft_is_refused_unless_it_is_off(tmp_path):
    plain = bert()
    pefts_own(plain, tmp_path)
    change_settings(tmp_path, use_tomorrow=None)
    nesskit.from_peft(copy.deepcopy(plain), tmp_path)
    change_settings(tmp_path, use_tomorrow=True)
    refused(DataError, "use_tomorrow=True", nesskit.from_peft, plain, tmp_path)


def test_damaged_folders_are_refused(tmp_path):
    plain = bert()
    refused(DataError, "holds no adapter, since there is no adapter_config", nesskit.from_peft, plain, tmp_path)
    pefts_own(plain, tmp_path)
    weights, text = tmp_path / "adapter_model.safetensors", (tmp_path / "adapter_config.json").read_text()
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(DataError, "does not fit this model", nesskit.from_peft, plain, tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "adapter_config.json").write_text(text[:40])
    refused(DataError, "is no JSON", nesskit.from_peft, plain, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    refused(DataError, "an adapter of the type IA3", nesskit.from_peft, plain, tmp_path)
    assert not adapted_layers(plain)


def test_frozen_and_open_layers_are_refused(tmp_path):
    plain = bert()
    pefts_own(plain, tmp_path)
    frozen = Encoder(copy.deepcopy(plain), layers="feed-forward")
    refused(AdaptationError, r"self\.query', which the adapter changes, is frozen", nesskit.from_peft, frozen, tmp_path)
    assert not adapted_layers(frozen)
    nesskit.from_peft(plain, tmp_path)
    refused(AdaptationError, r"adapted already: nesskit\.merge", nesskit.from_peft, plain, tmp_path)


@pytest.mark.parametrize("package", ["peft", "transformers"])
def test_without_the_packages_the_way_out_is_named(package, monkeypatch, tmp_path):
    model, _ = open_model(bert, token_batch)
    monkeypatch.setitem(sys.modules, package, None)
    for call in (nesskit.to_peft, nesskit.from_peft):
        refused(SettingsError, rf"the package {package} .*pip install 'nesskit\[text\]'", call, model, tmp_path / "a")
    assert not list(tmp_path.iterdir())
