"""What a network knows already is protected before the first task, and what is kept of it is measured."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from small_tasks import CLASSES, WIDTH, model, stream, training

from nesskit import Examples, FrobeniusThreshold, Limits, NESSSettings, Task, TaskModel, TaskStream, fit, load_run
from nesskit.errors import DataError, RunFolderError, SettingsError
from nesskit.methods import make_method
from nesskit.methods.ness import NESS
from nesskit.report.tables import comparison_table
from nesskit.runs.comparison import Comparison
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.runs.record import Run
from nesskit.settings import NESSPrivateSettings, NetworkSettings
from nesskit.spectra.moment import Moment
from nesskit.streams.base import Normalisation
from nesskit.streams.checksums import data_checksums

SHORT = training(epochs=3)


def neutral(count, seed):
    """Inputs of no task, in 4 of 16 directions, the same for every seed."""
    mixing = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(100))
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) @ mixing


REFERENCE, HELD_OUT = neutral(40, 1), neutral(12, 2)


def known(tasks=3, **options):
    return replace(stream(tasks, **options), reference=REFERENCE, held_out=HELD_OUT)


def protecting(**options):
    return NESS(NESSSettings(**{"filter": FrobeniusThreshold(1e-6), "protect": "reference", **options}))


@torch.no_grad()
def features(network, x):
    return copy.deepcopy(network.backbone).double().eval()(x.double()).numpy()


# The stream ----------------------------------------------------------------------------------------------------------


def test_a_part_of_a_stream_knows_the_same():
    part = known().first(2)
    assert part.reference is REFERENCE
    assert part.held_out is HELD_OUT


def test_arrays_and_dicts_are_taken_as_inputs_of_tasks_are():
    assert isinstance(replace(stream(), reference=REFERENCE.numpy()).reference, torch.Tensor)
    tokens = {"input_ids": torch.arange(8).view(4, 2), "attention_mask": torch.ones(4, 2, dtype=torch.int64)}
    examples = Examples(tokens, torch.zeros(4, dtype=torch.int64))
    made = TaskStream("tokens", [Task("a", ("x",), examples, examples, examples)], reference=tokens)
    assert list(made.reference) == list(tokens)


@pytest.mark.parametrize("part", ["reference", "held_out"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.randn(5, WIDTH + 1), r"inputs: shape \(17,\) differs from \(16,\) in training"),
        (torch.full((5, WIDTH), math.nan), "inputs: the inputs hold NaN"),
        (torch.randn(0, WIDTH), "there must be at least"),
        (torch.tensor(3.0), "there must be at least"),
        ([Examples(torch.randn(5, WIDTH), torch.zeros(3))], "inputs must be a tensor, an array or a dict of them"),
        ({}, "inputs: a dict of inputs is empty"),
    ],
)
def test_what_is_no_input_is_refused(part, given, sentence):
    with pytest.raises(DataError, match=rf"^stream 'small tasks', {part} .*{sentence}") as caught:
        replace(stream(), **{part: given})
    assert "\n" not in str(caught.value)


def test_two_inputs_have_no_order_to_keep():
    with pytest.raises(DataError, match="held_out inputs: there must be at least 3"):
        replace(stream(), held_out=HELD_OUT[:2])


def test_other_inputs_of_no_task_are_other_data():
    plain, full = data_checksums(stream()), data_checksums(known())
    assert full.keys() - plain.keys() == {"reference", "held out"}
    other = data_checksums(replace(known(), held_out=HELD_OUT + 1))
    assert {name for name in full if full[name] != other[name]} == {"held out"}


# What is protected ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["moments", "data"])
def test_what_the_network_made_of_the_reference_stays(memory):
    """Inputs in the span of the reference have the features that they had before the first task; else they have not."""
    ways = {"protected": protecting(memory=memory), "free": NESS(NESSSettings(FrobeniusThreshold(1e-6), memory=memory))}
    moved = {}
    for name, method in ways.items():
        network = model()
        before = features(network, REFERENCE)
        fit(network, known(), method, SHORT)
        moved[name] = np.abs(features(network, REFERENCE) - before).max() / np.abs(before).max()
    assert moved["protected"] < 1e-4
    assert moved["free"] > 0.1


def test_the_first_task_learns_in_the_null_space_of_the_reference():
    """ΔW of the first layer, after one task: zero on the reference, by numpy's own null space, and not zero at all."""
    network = model(1)
    W = network.backbone[0].weight.detach().double().numpy().copy()
    run = fit(network, known(1), protecting(), SHORT)
    change = network.backbone[0].weight.detach().double().numpy() - W
    _, singular, rows = np.linalg.svd(REFERENCE.double().numpy())
    occupied = rows[: (singular > 1e-4).sum()]
    assert len(occupied) == 4
    assert np.abs(change @ occupied.T).max() < 1e-5
    assert np.abs(change).max() > 1e-2
    profile = run.profiles[0]
    assert (profile.task, profile.rank) == (0, WIDTH - 4)


def test_the_reference_is_normalised_as_the_first_task_is():
    normalisation = Normalisation((0.2,), (0.5,))
    x = torch.randint(0, 256, (6, 1, 3, 3), dtype=torch.uint8)
    examples = Examples(x, torch.zeros(6, dtype=torch.int64))
    made = TaskStream("images", [Task("a", ("x",), examples, examples, examples, normalisation)], reference=x[:4])
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 5))
    method = protecting()
    method.begin_stream(TaskModel(backbone, 5, [1]), made)
    inputs = (x[:4].double().numpy().reshape(4, 9) / 255 - 0.2) / 0.5
    np.testing.assert_allclose(method.moments["1"].matrix.numpy(), inputs.T @ inputs, rtol=1e-5)


@pytest.mark.parametrize("name", ["ness-soft", "ness-budget", "ness-private"])
def test_what_derives_from_ness_protects_it_too(name):
    network = model(2)
    method = make_method(name)
    method.settings = replace(method.settings, protect="reference")
    run = fit(network, known(2), method, SHORT)
    assert {profile.task for profile in run.profiles} == {0, 1}
    if name == "ness-private":
        assert network.private.numbers_of(0) > 0
    assert run.trained_numbers[0] > 40 * CLASSES  # more than the head


@pytest.mark.parametrize("memory", ["moments", "data"])
def test_private_parts_of_tasks_have_no_part_in_the_reference(memory):
    """With data kept, the reference is seen anew through the shared weights, which keep it: the features are as before.

    A task's own parts would change them.
    """
    network = model(2)
    before = features(network, REFERENCE)
    settings = NESSPrivateSettings(filter=FrobeniusThreshold(1e-6), protect="reference", memory=memory)
    fit(network, known(2), make_method("ness-private", settings), SHORT)
    np.testing.assert_allclose(features(network, REFERENCE), before, atol=1e-4 * np.abs(before).max())
    with torch.no_grad():
        own = network.eval().task_features(REFERENCE, 0).numpy()
    assert np.abs(own - before).max() > 1e-2 * np.abs(before).max()


def test_a_budget_counts_the_reference_as_a_task(monkeypatch):
    seen = []
    monkeypatch.setattr("nesskit.methods.ness.Probe", lambda *_, tasks: seen.append(tasks))
    monkeypatch.setattr("nesskit.spectra.filters.InterferenceBudget.weights", lambda *_: torch.ones(WIDTH))
    method = make_method("ness-budget")
    method.settings = replace(method.settings, protect="reference", layers=("0",))
    fit(model(2), known(2), method, SHORT)
    assert seen == [1, 2]


def test_without_a_reference_nothing_begins(tmp_path):
    network = model()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(DataError, match=r"protect = reference needs inputs .* stream 'small tasks' has none") as caught:
        fit(network, stream(), protecting(), SHORT, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_shared_head_is_refused():
    from nesskit import build_model

    network = build_model(known(), NetworkSettings("mlp", widths=(8, 8)), 0, True)
    with pytest.raises(SettingsError, match="a shared head is a part of it that knows nothing yet"):
        fit(network, known(), protecting(), training(head="shared"))


def test_one_object_serves_two_runs_alike():
    method, networks = protecting(), [model(2), model(2)]
    for network in networks:
        fit(network, known(2), method, SHORT)
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, networks[1].state_dict()[name])


# What is measured ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune", "ness", "joint", "lora", "hat"])
def test_kept_similarity_is_that_of_scipy_after_every_task(name):
    network = model()
    states = [features(network, HELD_OUT)]

    def listen(event):
        if isinstance(event, TaskFinished):
            states.append(features(network, HELD_OUT))

    run = fit(network, known(), name, SHORT, listeners=[listen])
    first, *later = (1 - pdist(state, "cosine") for state in states)
    assert run.kept_similarity == pytest.approx([spearmanr(first, state).statistic for state in later], abs=1e-3)
    assert len(run.kept_similarity) == len(run.trained_numbers) == (1 if name == "joint" else 3)


def test_a_backbone_that_never_learns_keeps_everything():
    run = fit(model(), known(), "frozen", SHORT)
    assert run.kept_similarity == pytest.approx([1, 1, 1])
    assert run.trained_numbers == [40 * CLASSES] * 3


def test_what_is_protected_is_kept():
    kept = [fit(model(), known(), method, SHORT).kept_similarity for method in ("finetune", protecting())]
    assert max(kept[0]) < 0.99
    assert min(kept[1]) == pytest.approx(1, abs=1e-4)


def test_measuring_changes_nothing():
    with_, without = model(), model()
    fit(with_, known(), "ness", SHORT)
    run = fit(without, stream(), "ness", SHORT)
    assert run.kept_similarity == []
    for name, tensor in with_.state_dict().items():
        assert torch.equal(tensor, without.state_dict()[name])


def test_the_numbers_that_learn_are_counted():
    """Task 1 trains all; later ones V (r, d_out), or ΔW where most is free, and their head."""
    everything = sum(parameter.numel() for parameter in model().backbone.parameters()) + 40 * CLASSES
    assert fit(model(), known(), "finetune", SHORT).trained_numbers == [everything] * 3
    settings = training(epochs=1, optimizer="adam", lr=1e-3)  # with which every layer learns V
    run = fit(model(), known(), NESS(NESSSettings(FrobeniusThreshold(1e-6))), settings)
    ranks = {(profile.task, profile.layer): profile.rank for profile in run.profiles}
    later = [ranks[task, "0"] * 64 + ranks[task, "2"] * 40 + 40 * CLASSES for task in (1, 2)]
    assert run.trained_numbers == [everything, *later]
    assert fit(model(), known(), protecting(), settings).trained_numbers[0] < everything


# On disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moments", "data", "ness-private"])
@pytest.mark.parametrize("where", ["in task 1", "after task 1", "in task 2"])
def test_a_run_goes_on_as_if_it_had_never_been_stopped(name, where, tmp_path):
    def method():
        if name == "ness-private":
            settings = NESSPrivateSettings(filter=FrobeniusThreshold(0.02), protect="reference", memory="data")
            return make_method(name, settings)
        return protecting(memory=name)

    def interrupt(event):
        epoch = isinstance(event, EpochFinished) and event.epoch == 1 and where == f"in task {event.task + 1}"
        if epoch or (isinstance(event, TaskFinished) and where == f"after task {event.task + 1}"):
            raise KeyboardInterrupt

    whole, resumed = model(), model()
    expected = fit(whole, known(), method(), SHORT)
    every = Limits(checkpoint_epochs=1)
    stopped = fit(resumed, known(), method(), SHORT, folder=tmp_path, listeners=[interrupt], limits=every)
    assert stopped.interrupted
    found = fit(resumed, known(), method(), SHORT, folder=tmp_path)
    assert found.finished
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert found.kept_similarity == expected.kept_similarity
    assert found.trained_numbers == expected.trained_numbers
    np.testing.assert_array_equal(found.accuracy, expected.accuracy)


def test_a_record_has_it_and_older_ones_do_without(tmp_path):
    run = fit(model(), known(), "finetune", SHORT, folder=tmp_path)
    loaded = load_run(tmp_path)
    assert loaded.kept_similarity == run.kept_similarity
    assert loaded.trained_numbers == run.trained_numbers
    assert run.summary()["kept_similarity"] == run.kept_similarity
    older = {key: value for key, value in run.to_dict().items() if key not in ("kept_similarity", "trained_numbers")}
    assert Run.from_dict(older).kept_similarity == []
    run.kept_similarity[1] = math.nan  # of features that are all alike
    again = Run.from_dict(json.loads(json.dumps(run.to_dict(), allow_nan=False)))
    assert [math.isnan(kept) for kept in again.kept_similarity] == [False, True, False]


@pytest.mark.parametrize(
    "change", [{"kept_similarity": [2.0]}, {"kept_similarity": [0.5] * 4}, {"trained_numbers": [-1]}]
)
def test_a_record_that_says_nonsense_is_refused(change, tmp_path):
    fit(model(), known(), "finetune", SHORT, folder=tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunFolderError, match=f"'{next(iter(change))}' must be"):
        load_run(tmp_path)


# In tables -----------------------------------------------------------------------------------------------------------


def compared(tasks):
    return Comparison.of([fit(model(), tasks, name, SHORT) for name in ("finetune", "ness")])


def test_tables_have_what_was_measured():
    comparison = compared(known())
    header, rows = comparison.table()
    row = dict(zip(header, rows[0], strict=True))
    run = comparison.runs[0]
    assert row["kept similarity"] == f"{run.kept_similarity[-1]:.2f}"
    assert row["trained numbers a task"] == f"{sum(run.trained_numbers) / 3:,.0f}"
    page = comparison_table(comparison)
    assert dict(zip(page.header, page.rows[0], strict=True))["kept similarity"] == row["kept similarity"]
    assert "Spearman" in page.caption
    assert comparison.records()[0]["kept_similarity"] == run.kept_similarity[-1]


def test_tables_without_such_a_run_are_as_they_were():
    header, rows = compared(stream()).table()
    assert not {"kept similarity", "trained numbers a task"} & set(header)
    assert {len(row) for row in rows} == {len(header)}


def test_moments_of_the_reference_are_counted_as_memory():
    run = fit(model(1), known(1), protecting(memory="data"), SHORT)
    assert run.memory["old data"] == REFERENCE.nbytes + known(1)[0].train.x.nbytes
    assert fit(model(1), known(1), protecting(), SHORT).memory["moments"] == Moment(WIDTH).nbytes + Moment(64).nbytes
