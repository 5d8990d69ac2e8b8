import dataclasses
import json
import subprocess
import sys
import typing
from typing import Literal

import numpy as np
import pytest

from nesskit.errors import NesskitError, SettingsError, UnknownNameError
from nesskit.settings import (
    METHOD_SETTINGS,
    MethodSettings,
    NESSSettings,
    NetworkSettings,
    RunSettings,
    TrainingSettings,
    from_dict,
    to_dict,
)
from nesskit.spectra.filters import Filter, InterferenceBudget, NuclearThreshold, SoftFilter

RUN = RunSettings(
    benchmark="permuted-digits",
    method="ness",
    preset="default",
    seed=3,
    validation_share=0.05,
    network=NetworkSettings(),
    training=TrainingSettings(),
    options=NESSSettings(),
)

EXAMPLES = [
    TrainingSettings(epochs=3, optimizer="sam", lr=1e-5, lr_patience=6, sam_tasks="first"),
    NetworkSettings(widths=(64,), bias=True),
    NetworkSettings(widths=()),
    NetworkSettings("encoder", source="a/folder", weights="random", depth=2, layers=("*.query", "whole")),
    NESSSettings(NuclearThreshold(0.001), memory="data", stability=0.5, bias="augment", layers=("fc", "conv.0")),
    NESSSettings(SoftFilter(1, "frobenius"), coefficient_decay=0.0),
    *(kind() for kind in METHOD_SETTINGS.values()),
    MethodSettings(),
]


def through_json(values):
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: type(settings).__name__)
def test_settings_survive_json(settings):
    assert from_dict(type(settings), through_json(to_dict(settings))) == settings


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_run_settings_survive_json(method):
    run = dataclasses.replace(RUN, method=method, options=METHOD_SETTINGS[method](), tasks=2)
    restored = RunSettings.from_dict(through_json(run.to_dict()))
    assert restored == run
    assert restored.hash == run.hash


def test_missing_keys_take_their_defaults():
    assert from_dict(TrainingSettings, {"epochs": 3}) == TrainingSettings(epochs=3)


PARTS = ["network", "training", "options"]


def test_the_hash_ignores_seed_and_preset():
    assert len(RUN.hash) == 10
    assert dataclasses.replace(RUN, seed=4, preset="paper").hash == RUN.hash


def other_values(settings, name):
    """Valid values of a field beside the one it has; none if it has only one."""
    value, hint = getattr(settings, name), typing.get_type_hints(type(settings))[name]
    if typing.get_origin(hint) is Literal:
        return [choice for choice in typing.get_args(hint) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [f"{value} of another kind"]
    if isinstance(value, tuple):
        return [("another",) if typing.get_args(hint)[0] is str else (7,)]
    if isinstance(value, int) or int in typing.get_args(hint):
        return [(value or 0) + 1]
    return [InterferenceBudget(0.1)] if hint is Filter else [(value or 1) / 2]


def one_field_changed(settings):
    for field in dataclasses.fields(settings):
        for value in other_values(settings, field.name):
            yield dataclasses.replace(settings, **{field.name: value})


def test_the_hash_changes_with_anything_else():
    changed = [
        *(dataclasses.replace(RUN, **{part: new}) for part in PARTS for new in one_field_changed(getattr(RUN, part))),
        dataclasses.replace(RUN, benchmark="split-digits"),
        dataclasses.replace(RUN, validation_share=0.1),
        dataclasses.replace(RUN, tasks=5),
        dataclasses.replace(RUN, split="authors"),
        dataclasses.replace(RUN, method="joint"),
    ]
    assert len({RUN.hash, *(run.hash for run in changed)}) == 1 + len(changed) > 25
    covered = {*PARTS, "benchmark", "validation_share", "split", "tasks", "method", "seed", "preset"}
    assert covered == {field.name for field in dataclasses.fields(RunSettings)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (TrainingSettings(weight_decay=0, lr=1), TrainingSettings(weight_decay=0.0, lr=1.0)),
        (TrainingSettings(epochs=np.int64(7), lr=np.float32(0.5)), TrainingSettings(epochs=7, lr=0.5)),
        (NetworkSettings(widths=[64]), NetworkSettings(widths=(64,))),
        (NESSSettings(SoftFilter(1)), NESSSettings(SoftFilter(1.0))),
    ],
    ids=["whole floats", "numpy", "list", "filter"],
)
def test_equal_settings_have_equal_hashes_however_they_were_written(ours, theirs):
    part = {TrainingSettings: "training", NetworkSettings: "network", NESSSettings: "options"}[type(ours)]
    first, second = (dataclasses.replace(RUN, **{part: settings}) for settings in (ours, theirs))
    assert first == second
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.hash == second.hash


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((TrainingSettings, field, 0) for field in ("epochs", "batch_size", "evaluation_batch_size", "lr", "sam_rho")),
        *(
            (TrainingSettings, field, -1)
            for field in ("epochs", "weight_decay", "lr_patience", "lr_minimum", "momentum")
        ),
        *((TrainingSettings, field, float("nan")) for field in ("lr", "weight_decay", "lr_factor", "sam_rho")),
        *((TrainingSettings, field, float("inf")) for field in ("lr", "weight_decay", "sam_rho")),
        *((TrainingSettings, field, "3") for field in ("epochs", "lr")),
        (TrainingSettings, "epochs", 2.5),
        (TrainingSettings, "momentum", 1),
        (TrainingSettings, "lr_factor", 1),
        (NetworkSettings, "widths", (64, 0)),
        (NetworkSettings, "bias", "no"),
        (NESSSettings, "coefficient_decay", -1),
        (NESSSettings, "stability", 0),
        (NESSSettings, "filter", "frobenius:0.03"),
        (NESSSettings, "layers", "fc"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_field(kind, field, value):
    with pytest.raises(SettingsError, match=f"^{field} must be [^\n]+, got [^\n]+$"):
        kind(**{field: value})


@pytest.mark.parametrize(
    ("kind", "field", "value", "nearest"),
    [
        (TrainingSettings, "optimizer", "sdg", "sgd"),
        (TrainingSettings, "sam_tasks", "firsts", "first"),
        (NetworkSettings, "name", "mpl", "mlp"),
        (NESSSettings, "memory", "moment", "moments"),
        (NESSSettings, "bias", "augmented", "augment"),
    ],
)
def test_an_unknown_choice_names_the_field_and_suggests_the_nearest(kind, field, value, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown {field} '{value}': did you mean '{nearest}'"):
        kind(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("seed", -1), ("validation_share", 1), ("validation_share", -0.1), ("tasks", 0)]
)
def test_a_bad_value_of_a_run_names_the_field(field, value):
    with pytest.raises(SettingsError, match=f"^{field} must be"):
        dataclasses.replace(RUN, **{field: value})


def test_patience_needs_validation():
    with pytest.raises(SettingsError, match="set validation_share above 0, or lr_patience to 0"):
        dataclasses.replace(RUN, validation_share=0, training=TrainingSettings(lr_patience=5))


def test_stability_needs_a_hard_filter():
    with pytest.raises(SettingsError, match="stability needs a hard filter"):
        NESSSettings(SoftFilter(0.1), stability=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting of TrainingSettings 'epoch': did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_bad_plain_values_are_explained(values, message):
    with pytest.raises(NesskitError, match=message):
        from_dict(TrainingSettings, values)


def test_bad_filters_in_plain_values_are_explained():
    with pytest.raises(NesskitError, match="did you mean 'nuclear'"):
        from_dict(NESSSettings, {"filter": "nukular:0.1"})


def test_settings_and_filters_are_imported_without_torch():
    code = "import sys, nesskit, nesskit.settings, nesskit.spectra.filters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
