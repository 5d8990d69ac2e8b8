"""Nothing of one run is left for the next: in the method, in the model. And the model alone answers like the run."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from small_tasks import EVERY, learn, model, stream, strict, task, training

import nesskit
from nesskit import FrobeniusThreshold, Limits, Method, TaskStream, fit
from nesskit.errors import AdaptationError
from nesskit.methods import METHODS, make_method
from nesskit.runs.events import EpochFinished
from nesskit.runs.folder import RunFolder
from nesskit.settings import NESSSettings, TRGPSettings

SHORT = training(epochs=3)


def same_weights(one, other):
    return all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())


def stop_in(number, epoch=1):
    """A listener that presses Ctrl-C in task ``number``."""

    def listen(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (number, epoch):
            raise KeyboardInterrupt

    return listen


# Methods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_second_run_with_the_same_method_is_as_the_first(name):
    method = make_method(name)
    first, first_model, _ = learn(method, settings=SHORT)
    learn(method, tasks=TaskStream("another", [task(8), task(9)]), settings=SHORT)  # something else in between
    second, second_model, _ = learn(method, settings=SHORT)
    assert first.history == second.history
    assert np.array_equal(first.accuracy, second.accuracy, equal_nan=True)
    assert same_weights(first_model, second_model)
    assert first.memory == second.memory


@pytest.mark.parametrize("name", EVERY)
def test_a_run_after_one_that_was_interrupted_is_as_a_first(name):
    method = make_method(name)
    fit(model(), stream(), method, SHORT, listeners=[stop_in(2)])
    after, _, _ = learn(method, settings=SHORT)
    first, _, _ = learn(make_method(name), settings=SHORT)
    assert after.history == first.history


class Counting(Method):
    """A user's own: with an argument of its own, state that comes up on the way, and a begin_run without super()."""

    name = "counting"

    def __init__(self, settings=None, start=0):
        super().__init__(settings)
        self.seen = [start]

    def begin_run(self, training):
        self.epochs = training.epochs

    def end_task(self, model, data):
        self.seen.append(data.index)
        self.twice = getattr(self, "twice", 0) + 2
        return ()


def test_a_users_own_method_forgets_by_default():
    method = Counting(start=7)
    method.verbose = True  # set by hand, no state of a run
    for _ in range(2):
        fit(model(), stream(), method, SHORT)
        assert method.seen == [7, 0, 1, 2]
        assert method.twice == 6
        assert method.epochs == 3
        assert method.verbose


def test_settings_changed_by_hand_outlive_a_reset():
    method = make_method("gpm")
    fit(model(), stream(1), method, SHORT)
    method.settings = METHODS["gpm"].settings_type(threshold=0.5)
    method.begin_run(SHORT)
    assert method.settings.threshold == 0.5
    assert method.bases == {}


def test_a_method_can_be_copied_and_still_forgets():
    method = Counting(start=3)
    fit(model(), stream(), method, SHORT)
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other.seen == [3, 0, 1, 2]
        fit(model(), stream(), other, SHORT)
        assert other.seen == [3, 0, 1, 2]


# Models -------------------------------------------------------------------------------------------------------------


def when_task_2_has_begun(do):
    """A listener; in joint training task 2 is part of the only stage."""

    def listen(event):
        if isinstance(event, EpochFinished) and event.task >= 1 and event.epoch == 1:
            do()

    return listen


def press(error):
    raise error


@pytest.mark.parametrize("way", ["keyboard", "request", "error"])
@pytest.mark.parametrize("name", EVERY)
def test_a_model_is_an_ordinary_one_however_fit_is_left(name, way, tmp_path):
    learned, method = model(), strict(name) if name == "ness" else make_method(name)
    keys = learned.state_dict().keys()
    if way == "error":
        with pytest.raises(ZeroDivisionError):
            fit(learned, stream(), method, SHORT, listeners=[when_task_2_has_begun(lambda: 1 / 0)])
    elif way == "keyboard":
        fit(learned, stream(), method, SHORT, listeners=[when_task_2_has_begun(lambda: press(KeyboardInterrupt()))])
    else:
        request = when_task_2_has_begun(RunFolder(tmp_path).request_stop)
        assert fit(learned, stream(), method, SHORT, folder=tmp_path, listeners=[request]).status == "stopped"
    assert not nesskit.adapted_layers(learned)
    assert not any(hasattr(module, "_freeze") for module in learned.modules())
    assert learned.state_dict().keys() == keys
    assert all(parameter.requires_grad for parameter in learned.parameters())
    x = stream()[0].test.x
    torch.testing.assert_close(learned.eval()(x, 1), method.predict(learned, x, 1))
    run, _, _ = learn("finetune", learned, settings=SHORT)  # and it can be trained again, all of it
    assert run.finished


def test_what_was_learned_until_the_interrupt_is_in_the_model():
    learned, seen = model(), []

    def listen(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (1, 1):
            with torch.no_grad():
                seen.append(learned.eval()(stream()[1].test.x, 1))
            raise KeyboardInterrupt

    fit(learned, stream(), strict("ness"), SHORT, listeners=[listen])
    with torch.no_grad():
        torch.testing.assert_close(learned.eval()(stream()[1].test.x, 1), seen[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("again", ["same model", "fresh model"])
@pytest.mark.parametrize("name", EVERY)
def test_an_interrupted_run_goes_on_with_the_same_or_a_fresh_model(name, again, tmp_path):
    whole, whole_model, _ = learn(make_method(name), settings=SHORT)
    interrupted = model()
    task_to_stop = 2 if name == "joint" else 1
    options = {"listeners": [stop_in(task_to_stop)], "limits": Limits(checkpoint_epochs=1)}
    method = make_method(name)
    assert fit(interrupted, stream(), method, SHORT, folder=tmp_path, **options).interrupted
    learned = interrupted if again == "same model" else model()
    method = method if again == "same model" else make_method(name)
    resumed = fit(learned, stream(), method, SHORT, folder=tmp_path)
    assert resumed.finished
    assert resumed.folder == tmp_path
    assert resumed.history == whole.history
    assert np.array_equal(resumed.accuracy, whole.accuracy, equal_nan=True)
    assert same_weights(whole_model, learned)


@pytest.mark.parametrize("name", ["finetune", "ness"])
def test_a_model_that_is_adapted_already_is_refused_by_name(name):
    learned = model()
    space = nesskit.collect_moments(learned.backbone, [stream()[0].train.x], ["0"])["0"].spectrum()
    nesskit.adapt(learned.backbone, {"0": space.directions[:, 8:]})
    with pytest.raises(AdaptationError, match=r"still adapted \(backbone\.0\): nesskit\.merge\(model\) first"):
        fit(learned, stream(), name, SHORT)
    nesskit.merge(learned)
    assert fit(learned, stream(), name, SHORT).finished


# What is returned answers like the run ------------------------------------------------------------------------------


def accuracies(learned, tasks):
    """The last row of the accuracy matrix, from the model alone."""
    learned.eval()
    with torch.no_grad():
        hits = [learned(t.normalise(t.test.x), number).argmax(1) == t.test.y for number, t in enumerate(tasks)]
    return [100 * float(hit.double().mean()) for hit in hits]


@pytest.mark.parametrize("name", EVERY)
def test_the_model_alone_answers_as_the_run_reports(name):
    method = make_method(name, TRGPSettings(trust=0.0)) if name == "trgp" else make_method(name)
    run, learned, _ = learn(method, settings=training(epochs=15))
    assert accuracies(learned, stream()) == pytest.approx(list(run.accuracy[-1]))


def trained_trgp():
    run, learned, _ = learn(make_method("trgp", TRGPSettings(trust=0.0)), settings=training(epochs=15))
    assert learned.scaled.places
    return run, learned


def test_copies_of_the_model_and_its_state_answer_so_too():
    run, learned = trained_trgp()
    stream_of_bytes = io.BytesIO()
    torch.save(learned.state_dict(), stream_of_bytes)
    stream_of_bytes.seek(0)
    loaded = model(seed=99)
    loaded.load_state_dict(torch.load(stream_of_bytes, weights_only=True))
    x = stream()[1].test.x
    for other in (copy.deepcopy(learned), pickle.loads(pickle.dumps(learned)), loaded):
        assert accuracies(other, stream()) == pytest.approx(list(run.accuracy[-1]))
        assert torch.equal(other(x, 1), learned(x, 1))
    torch.testing.assert_close(copy.deepcopy(learned).double()(x, 1).float(), learned(x, 1), atol=1e-5, rtol=1e-5)


def test_the_weight_of_a_task_is_the_published_one():
    """W + Σ_j W B_j (Q_j - 1) B_jᵀ in numpy, through the whole network."""
    _, learned = trained_trgp()
    x, numpy = stream()[2].test.x, {key: t.double().numpy() for key, t in learned.state_dict().items()}
    hidden = x.double().numpy()
    for layer in ("0", "2"):
        W = numpy[f"backbone.{layer}.weight"]
        change = np.zeros_like(W)
        for number, (owner, name) in enumerate(learned.scaled.places):
            if (owner, name) == (2, layer):
                B, Q = (learned.scaled.get_buffer(f"{kind}{number}").double().numpy() for kind in ("basis", "scale"))
                change += W @ B @ (Q - np.eye(len(Q))) @ B.T
        hidden = np.maximum(hidden @ (W + change).T + numpy[f"backbone.{layer}.bias"], 0)
    np.testing.assert_allclose(learned(x, 2).detach().numpy(), hidden @ numpy["heads.2.weight"].T, atol=1e-4)


def test_a_state_without_scaled_or_private_weights_still_loads():
    learned = model()
    state = {key: tensor for key, tensor in learned.state_dict().items() if "extra" not in key}
    assert len(state) == len(learned.state_dict()) - 4
    model(seed=5).load_state_dict(state)


def test_the_next_run_starts_from_the_weights_as_they_are():
    """What a run let single tasks use is none of the next one's."""
    _, learned = trained_trgp()
    plain = model()
    plain.load_state_dict({k: t for k, t in learned.state_dict().items() if "extra" not in k})
    runs = [learn("finetune", start, settings=SHORT)[0] for start in (learned, plain)]
    assert runs[0].history == runs[1].history
    assert not learned.scaled.places


def test_ness_with_other_settings_forgets_its_spaces():
    method = make_method("ness", NESSSettings(FrobeniusThreshold(0.05)))
    fit(model(), stream(), method, SHORT, listeners=[stop_in(1)])
    assert method.spaces
    method.begin_run(SHORT)
    assert not method.spaces
    assert not method.moments
