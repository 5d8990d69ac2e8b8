"""Presets against the settings that the paper and its authors' code state, and what is said about other settings."""

import pytest
import torch

from nesskit import BENCHMARKS, FrobeniusThreshold, NuclearThreshold, TaskStream, build_model, configure
from nesskit.errors import SettingsError, UnknownNameError
from nesskit.experiments.remarks import is_reduced, remarks
from nesskit.methods import GPM
from nesskit.methods.subspace import protected_weights
from nesskit.runs.record import EpochRecord, Run
from nesskit.settings import METHOD_SETTINGS, RunSettings
from nesskit.streams.base import Examples, Task

# epochs, lr SGDm, lr SAM, decay, lr factor, patience, minimum, ε₁, validation share
PAPER = {
    "split-cifar100": (200, 0.005, 0.05, 1e-4, 1 / 2, 6, 1e-5, 0.001, 0.05),
    "five-datasets": (200, 0.05, 0.1, 5e-5, 1 / 3, 5, 1e-3, 0.001, 0.05),
    "split-miniimagenet": (100, 0.01, 0.1, 1e-5, 1 / 3, 5, 1e-3, 0.0005, 0.02),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_presets_are_what_the_authors_ran(name):
    epochs, lr, sam_lr, decay, factor, patience, minimum, eps, share = PAPER[name]
    sgdm, sam = (configure(name, preset=preset) for preset in ("paper-sgdm", "paper-sam"))
    for settings in (sgdm, sam):
        training = settings.training
        assert (training.epochs, training.batch_size, training.weight_decay) == (epochs, 64, decay)
        assert (training.lr_factor, training.lr_patience, training.lr_minimum) == (factor, patience, minimum)
        assert settings.options.filter == NuclearThreshold(eps)
        assert settings.options.memory == "data"
        assert settings.validation_share == share
        assert settings.network.norm == "batch"
    assert (sgdm.training.optimizer, sgdm.training.lr, sgdm.training.momentum) == ("sgd", lr, 0.9)
    assert (sam.training.optimizer, sam.training.lr, sam.training.momentum) == ("sam", sam_lr, 0)
    assert (sam.training.sam_tasks, sam.training.sam_rho) == ("first", 0.05)


# epochs, lr, lr factor, patience, minimum; threshold, increment (PAPER: NESS's Table 1, its folder baselines/)
BASELINES = {
    ("split-cifar100", "gpm"): (200, 0.01, 1 / 2, 6, 1e-5, 0.97, 0.003),
    ("split-cifar100", "sgp"): (200, 0.05, 1 / 2, 6, 5e-5, 0.97, 0.003),
    ("split-cifar100", "trgp"): (200, 0.01, 1 / 2, 6, 1e-5, 0.97, 0.003),
    ("split-cifar100", "dfgp"): (200, 0.01, 1 / 2, 6, 1e-5, 0.95, 0.0),
    ("five-datasets", "gpm"): (100, 0.1, 1 / 3, 5, 1e-3, 0.965, 0.0),
    ("five-datasets", "sgp"): (200, 0.1, 1 / 3, 5, 1e-3, 0.97, 0.003),
    ("five-datasets", "trgp"): (200, 0.1, 1 / 3, 5, 1e-3, 0.965, 0.0),
    ("five-datasets", "dfgp"): (100, 0.1, 1 / 3, 5, 1e-3, 0.95, 0.0),
    ("split-miniimagenet", "gpm"): (100, 0.1, 1 / 3, 5, 1e-3, 0.965, 0.003),
    ("split-miniimagenet", "sgp"): (100, 0.1, 1 / 3, 5, 1e-3, 0.97, 0.003),
    ("split-miniimagenet", "trgp"): (200, 0.1, 1 / 3, 5, 1e-3, 0.985, 0.0),
    ("split-miniimagenet", "dfgp"): (100, 0.1, 1 / 3, 5, 1e-3, 0.97, 0.0),
}


@pytest.mark.parametrize(("name", "method"), BASELINES)
def test_the_published_presets_are_what_stands_behind_the_table(name, method):
    *training, threshold, increment = BASELINES[name, method]
    settings = configure(name, method, "published")
    t, options = settings.training, settings.options
    assert [t.epochs, t.lr, t.lr_factor, t.lr_patience, t.lr_minimum] == training
    assert (t.optimizer, t.momentum, t.weight_decay, t.batch_size) == ("sgd", 0, 0, 64)
    assert (options.threshold, options.increment, options.bases) == (threshold, increment, "authors")
    assert settings.validation_share == PAPER[name][8]


@pytest.mark.parametrize(("name", "layers", "most"), [("split-cifar100", 5, 125), ("five-datasets", 20, 100)])
def test_every_layer_of_the_published_networks_has_its_number_of_images(name, layers, most):
    """24, 100, 100, 125, 125 on AlexNet; on ResNet18 8 × 10, 3 × 50, 6 × 100, shortcuts as what they lead around."""
    settings = configure(name, "gpm", "published")
    images = Examples(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    model = build_model(TaskStream("images", [Task("task", ("a", "b"), images, images, images)]), settings.network)
    GPM(settings.options).check(model)
    counts = dict(zip(protected_weights(model), settings.options.samples_of_layers, strict=True))
    assert (len(counts), max(counts.values()), settings.options.samples) == (layers, most, most)
    if layers == 5:
        assert list(counts.values()) == [24, 100, 100, 125, 125]
        return
    shortcuts = {layer: count for layer, count in counts.items() if "shortcut" in layer}
    assert [counts[layer] for layer in counts if layer not in shortcuts] == [10] * 8 + [50] * 3 + [100] * 6
    for layer, count in shortcuts.items():
        assert count == counts[layer.replace("shortcut.0", "conv1")]


@pytest.mark.parametrize("name", PAPER)
def test_ewc_is_published_with_the_fisher_of_its_code(name):
    options = configure(name, "ewc", "published").options
    assert (options.fisher, options.fisher_batch, options.form, options.gamma) == ("empirical", 20, "online", 1)


@pytest.mark.parametrize("name", PAPER)
def test_the_text_preset_has_the_rule_of_the_text(name):
    settings = configure(name, preset="text")
    assert settings.options.filter == FrobeniusThreshold(PAPER[name][7])
    assert settings.options.memory == "moments"


def test_the_command_without_a_preset_is_the_paper_with_sgdm():
    assert configure("split-cifar100", seed=1) == configure("split-cifar100", preset="paper-sgdm", seed=1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_preset_survives_json(name):
    for preset in BENCHMARKS[name].presets:
        for method in METHOD_SETTINGS:
            settings = configure(name, method, preset)
            assert RunSettings.from_dict(settings.to_dict()) == settings


def test_changes_go_where_their_field_is():
    changed = configure(
        "split-digits", epochs=3, filter=FrobeniusThreshold(0.5), network_bias=True, validation_share=0.1
    )
    assert changed.training.epochs == 3
    assert changed.options.filter == FrobeniusThreshold(0.5)
    assert changed.network.bias
    assert changed.validation_share == 0.1


def test_changes_that_belong_together_come_in_any_order():
    first, then = {"private": "adapter"}, {"directions": 8}
    options = configure("split-digits", "ness-private", **first, **then).options
    assert (options.private, options.directions) == ("adapter", 8)
    assert configure("split-digits", "ness-private", **then, **first).options == options


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"benchmark": "split-cifar10"}, UnknownNameError, "did you mean 'split-cifar100'"),
        ({"benchmark": "split-digits", "epoch": 3}, UnknownNameError, "did you mean 'epochs'"),
        ({"benchmark": "split-digits", "epochs": 0}, SettingsError, "epochs must be at least 1"),
        ({"benchmark": "split-digits", "seed": -1}, SettingsError, "seed must be at least 0"),
        ({"benchmark": "split-digits", "method": "ewcc"}, UnknownNameError, "unknown method 'ewcc'"),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        configure(**arguments)


def finished(**changes):
    run = Run.new(configure("split-cifar100", **changes).to_dict(), {}, {}, [f"task {t}" for t in range(10)])
    run.status = "finished"
    run.history = [EpochRecord(0, 0, 1.0, None, None, 0.1)]
    return run


def test_a_whole_run_with_its_presets_settings_needs_no_remark():
    assert remarks(finished()) == []
    assert remarks(finished(seed=37, preset="paper-sam")) == []


def test_a_record_that_knows_no_later_setting_is_what_its_defaults_are():
    """Older runs of GPM looked at all images in every layer, and counted directions as the paper does."""
    older = finished(method="gpm", preset="published", bases="paper", samples_of_layers=())
    del older.config["options"]["bases"], older.config["options"]["samples_of_layers"]
    said = remarks(older)
    assert said == ["samples_of_layers = [] (preset: [24, 100, 100, 125, 125])", "bases = paper (preset: authors)"]
    assert not is_reduced(older)


def test_fewer_epochs_or_tasks_are_a_reduction_and_other_changes_are_named():
    assert remarks(finished(epochs=3)) == ["reduced, epochs = 3 (preset: 200)"]
    assert remarks(finished(memory="moments")) == ["memory = moments (preset: data)"]
    assert is_reduced(finished(epochs=3))
    assert not is_reduced(finished(memory="moments"))
    stopped = finished()
    stopped.status, stopped.status_reason = "stopped", "stopped after 5 tasks, as asked"
    assert remarks(stopped) == ["stopped: after 5 tasks, as asked: 0 of 10 tasks learned"]
    assert is_reduced(stopped)
