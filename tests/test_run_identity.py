"""A run on disk is gone on with by its own data, network and first weights, and never by another one's."""

import json

import numpy as np
import pytest
import torch
from small_tasks import learn, model, stream, task, training
from torch import nn

import nesskit
from nesskit import Examples, Limits, Normalisation, Task, TaskModel, TaskStream, fit
from nesskit.errors import RunFolderError
from nesskit.networks.checksums import network_checksum, weights_checksum
from nesskit.runs.events import RunStopped
from nesskit.runs.folder import load_run
from nesskit.runs.record import Run
from nesskit.streams.checksums import data_checksums
from nesskit.training.fit import OtherRunWarning

SHORT = training(epochs=3)
ONE_TASK = Limits(tasks=1)


def mirrored(x):
    return -3 * x


OTHERS = {
    "other data": lambda: (model(), stream(inputs=mirrored)),
    "another network": lambda: (model(activation=nn.Tanh), stream()),
    "other initial weights": lambda: (model(seed=4), stream()),
}


def files(folder):
    """Every file in ``folder`` itself → its content; locks aside."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["ness", "finetune", "trgp"])
def test_beside_a_finished_run_another_one_has_a_folder_of_its_own(name, what, tmp_path):
    first = fit(model(), stream(), name, SHORT, folder=tmp_path)
    before = files(tmp_path)
    right, right_model, _ = learn(name, *OTHERS[what](), settings=SHORT)
    learned, tasks = OTHERS[what]()
    with pytest.warns(OtherRunWarning, match=f"holds a finished run with {what}.*this run lies in .*run-") as caught:
        run = fit(learned, tasks, name, SHORT, folder=tmp_path)
    assert str(tmp_path) in str(caught[0].message)
    assert run.folder.parent == tmp_path
    assert str(run.folder) in str(caught[0].message)
    assert run.history == right.history
    assert np.array_equal(run.accuracy, right.accuracy, equal_nan=True)
    assert all(torch.equal(t, learned.state_dict()[key]) for key, t in right_model.state_dict().items())
    assert files(tmp_path) == before  # the first run is as it was
    again = fit(model(), stream(), name, SHORT, folder=tmp_path)
    assert again.folder == tmp_path
    assert again.history == first.history


def test_that_run_is_found_again_and_gone_on_with(tmp_path):
    fit(model(), stream(), "ness", SHORT, folder=tmp_path)
    other = model(seed=4)
    with pytest.warns(OtherRunWarning):
        stopped = fit(other, stream(), "ness", SHORT, folder=tmp_path, limits=ONE_TASK)
    right, right_model, _ = learn("ness", model(seed=4), settings=SHORT)
    for learned in (other, model(seed=4)):  # the model that was trained, and then one that is made anew
        with pytest.warns(OtherRunWarning):
            run = fit(learned, stream(), "ness", SHORT, folder=tmp_path)
        assert run.folder == stopped.folder
        assert run.history == right.history
        assert all(torch.equal(t, learned.state_dict()[key]) for key, t in right_model.state_dict().items())
    assert len(list(tmp_path.glob("run-*"))) == 1


@pytest.mark.parametrize("what", OTHERS)
def test_an_unfinished_run_is_not_mixed_with_another(what, tmp_path):
    fit(model(), stream(), "ness", SHORT, folder=tmp_path, limits=ONE_TASK)
    before = files(tmp_path)
    learned, tasks = OTHERS[what]()
    weights, heard = weights_checksum(learned), []
    with pytest.warns(OtherRunWarning, match=f"holds an unfinished run with {what}, which was left untouched"):
        run = fit(learned, tasks, "ness", SHORT, folder=tmp_path, listeners=[heard.append])
    assert run.status == "stopped"
    assert what in run.status_reason
    assert np.isnan(run.accuracy).all()
    assert run.folder is None
    assert [type(event) for event in heard] == [RunStopped]
    assert weights_checksum(learned) == weights
    assert files(tmp_path) == before
    whole, _, _ = learn("ness", settings=SHORT)
    assert fit(model(), stream(), "ness", SHORT, folder=tmp_path).history == whole.history


def test_a_finished_run_is_returned_to_the_model_that_was_trained(tmp_path):
    learned = model()
    first = fit(learned, stream(), "ness", SHORT, folder=tmp_path)
    weights = weights_checksum(learned)
    second = fit(learned, stream(), "ness", SHORT, folder=tmp_path)
    assert second.history == first.history
    assert weights_checksum(learned) == weights
    assert not list(tmp_path.glob("run-*"))


def test_other_settings_are_refused_as_ever(tmp_path):
    fit(model(), stream(), "ness", SHORT, folder=tmp_path)
    with pytest.raises(RunFolderError, match="holds a run with other settings"):
        fit(model(), stream(), "ness", training(epochs=4), folder=tmp_path)


@pytest.mark.parametrize("limits", [None, ONE_TASK], ids=["finished", "unfinished"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_caller_who_names_the_run_has_chosen_its_folder(what, limits, tmp_path):
    config = {"benchmark": "mine", "method": "ness", "seed": 0, "training": {"epochs": 3}}
    fit(model(), stream(), "ness", SHORT, folder=tmp_path, config=config, limits=limits)
    before = files(tmp_path)
    learned, tasks = OTHERS[what]()
    with pytest.raises(RunFolderError, match=f"holds a run with {what}. It was left untouched"):
        fit(learned, tasks, "ness", SHORT, folder=tmp_path, config=config)
    assert files(tmp_path) == before
    assert not nesskit.adapted_layers(learned)


@pytest.mark.parametrize(
    "value", [7, [], {"architecture": "f"}, {"architecture": 1, "first_weights": "f"}, {"other": "f"}]
)
def test_a_record_with_something_else_in_place_of_the_network_is_damaged(value, tmp_path):
    fit(model(), stream(), "ness", SHORT, folder=tmp_path, limits=ONE_TASK)
    record = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**record, "network": value}))
    with pytest.raises(RunFolderError, match="'network' must be checksums of a network and of its weights"):
        load_run(tmp_path)


def test_a_run_of_an_older_nesskit_goes_on(tmp_path):
    """Its record knows neither data nor network."""
    fit(model(), stream(), "ness", SHORT, folder=tmp_path, limits=ONE_TASK)
    record = json.loads((tmp_path / "record.json").read_text())
    del record["network"]
    record["data"] = {}
    (tmp_path / "record.json").write_text(json.dumps(record))
    whole, _, _ = learn("ness", settings=SHORT)
    assert fit(model(), stream(), "ness", SHORT, folder=tmp_path).history == whole.history


def test_the_record_says_what_the_run_is(tmp_path):
    learned = model()
    first = weights_checksum(learned)
    fit(learned, stream(), "ness", SHORT, folder=tmp_path)
    run = load_run(tmp_path)
    assert run.network == {
        "architecture": network_checksum(model()),
        "first_weights": first,
        "last_weights": weights_checksum(learned),
    }
    assert list(run.data) == ["task 1 (task 0)", "task 2 (task 1)", "task 3 (task 2)"]
    assert all(len(value) == 64 for value in run.data.values())
    assert Run.from_dict(run.to_dict()).network == run.network


# What the checksums see ---------------------------------------------------------------------------------------------


def changed(part, number=0):
    """Task 0 with one value of one part changed."""
    whole = task(0, valid=5)
    parts = {name: Examples(*(t.clone() for t in getattr(whole, name))) for name in ("train", "valid", "test")}
    if part[1] == "x":
        parts[part[0]].x[number, 0] += 1e-6
    else:
        parts[part[0]].y[number] = (parts[part[0]].y[number] + 1) % 3
    return Task(whole.name, whole.classes, **parts)


def test_data_is_known_by_every_value_and_by_what_it_means():
    whole = task(0, valid=5)
    parts = whole.train, whole.valid, whole.test
    others = [changed((name, value)) for name in ("train", "valid", "test") for value in "xy"]
    others += [
        Task(whole.name, ("c", "b", "a"), *parts),
        Task(whole.name, whole.classes, *parts, Normalisation((0.5,), (1.0,))),
    ]
    sums = [tuple(data_checksums(TaskStream("s", [t])).values()) for t in (whole, task(0, valid=5), *others)]
    assert sums[0] == sums[1]
    assert len(set(sums)) == 1 + len(others)
    assert data_checksums(TaskStream("s", [whole], {"source": "f" * 64})) == {"source": "f" * 64}


def test_labels_moved_between_parts_are_other_data():
    x, y = torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64)
    streams = [
        TaskStream("s", [Task("t", ("a",), Examples(x[:n], y[:n]), Examples(x[n:5], y[n:5]), Examples(x[5:], y[5:]))])
        for n in (3, 4)
    ]
    assert data_checksums(streams[0]) != data_checksums(streams[1])


class Own(nn.Module):
    """A user's network that does in forward what no printed form shows."""

    def __init__(self, activation):
        super().__init__()
        self.layer, self.activation = nn.Linear(4, 4), activation

    def forward(self, x):
        return self.activation(self.layer(x))


class Doubled(Own):
    def forward(self, x):
        return 2 * self.activation(self.layer(x))


def network(backbone):
    torch.manual_seed(0)
    return TaskModel(backbone, 4, [2])


def test_a_network_is_known_by_what_it_computes():
    doubled = type("Own", (Own,), {"forward": Doubled.forward, "__module__": Own.__module__})
    networks = [
        network(Own(torch.relu)),
        network(Own(torch.tanh)),
        network(Own(lambda x: x)),
        network(Own(lambda x: x * x)),
        network(doubled(torch.relu)),
        network(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        network(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1))),
        network(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2))),
    ]
    sums = [network_checksum(each) for each in networks]
    assert len(set(sums)) == len(sums)
    assert network_checksum(network(Own(torch.relu))) == sums[0]


def test_a_network_is_the_same_wherever_it_lies_in_memory_and_whatever_its_weights():
    class Printed(nn.Module):
        def extra_repr(self):
            return repr(object())  # <object object at 0x7f…>

        def forward(self, x):
            return x

    one, other = network(nn.Sequential(nn.Linear(4, 4), Printed())), network(nn.Sequential(nn.Linear(4, 4), Printed()))
    with torch.no_grad():
        other.backbone[0].weight.zero_()
    assert network_checksum(one) == network_checksum(other)
    assert network_checksum(one.eval()) == network_checksum(other)
    assert weights_checksum(one) != weights_checksum(other)


def test_weights_are_known_by_value_name_and_type():
    def normed():
        torch.manual_seed(0)
        return network(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))

    one = normed()
    sums = [weights_checksum(one), weights_checksum(normed().double())]
    assert weights_checksum(normed()) == sums[0]
    one.backbone[1].running_mean[0] = 1e-3
    sums.append(weights_checksum(one))
    with torch.no_grad():
        one.backbone[0].weight[0, 0] += 1e-6
    sums.append(weights_checksum(one))
    assert len(set(sums)) == 4
