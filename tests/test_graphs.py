"""Steps that are recorded once and replayed: on the CPU with a tape of operations, on a GPU with CUDA graphs.

The tape keeps a graph's contract: whatever a step does other than with tensors (a count, a decision, a number that it
looked at) happens once, when it is recorded, and a replay does the same operations on the same memory.
"""

import copy

import pytest
import torch
from small_tasks import model, stream, training
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nesskit import Method, NetworkSettings, build_model, fit, load_stream
from nesskit.errors import TrainingError
from nesskit.methods import METHODS, make_method
from nesskit.training import graphs, trainer
from nesskit.training.graphs import EAGER_STEPS, GraphWarning, Recorded, ReplayedSteps
from nesskit.training.steps import Steps

REPLAYABLE = [name for name, method in METHODS.items() if method.replayable]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


class Tape(TorchDispatchMode):
    """Every operation on tensors, with the memory that it read and wrote."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        result = operation(*arguments, **(named or {}))
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise TrainingError("a number was looked at")
        self.operations.append((operation, arguments, named or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for operation, arguments, named, before in self.operations:
            results = tree_leaves(operation(*arguments, **named))
            for old, new in zip(tree_leaves(before), results, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedSteps(ReplayedSteps):
    """Records a step by taking it, then takes everything back."""

    replayed = 0

    def _take_eagerly(self, data, rows, watched):
        Steps.take(self, data, rows)

    def _record(self, data, rows):
        learned = [p for group in self.optimizer.param_groups for p in group["params"]]
        momenta = [s["momentum_buffer"] for s in self.optimizer.state.values() if s.get("momentum_buffer") is not None]
        loop = self.step.__self__
        averages = loop.average.averages if loop.average else ()
        remembered = [leaf for leaf in tree_leaves(loop.method.state_dict()) if isinstance(leaf, torch.Tensor)]
        own = {id(tensor): tensor for tensor in (*learned, *momenta, *loop.model.buffers(), *remembered)}  # each once
        state = [self.total, *own.values(), *averages]
        before, noise = [tensor.detach().clone() for tensor in state], torch.get_rng_state()
        with Tape() as tape:
            Steps.take(self, data, rows)
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(noise)
        return Recorded(tape, rows)

    def take(self, data, rows):
        super().take(data, rows)
        type(self).replayed += (data.index, len(rows)) in self.recorded


def learn(monkeypatch, taped, learned, tasks, method, settings):
    """The run and the weights that it ends with."""

    class Own(TapedSteps):
        replayed = 0

    def make(step, replayable, optimizer, device):
        assert replayable
        return (Own if taped else Steps)(step, optimizer, device)

    monkeypatch.setattr(trainer, "make_steps", make)
    run = fit(learned, tasks, method, settings, seed=1)
    if taped:
        assert Own.replayed > 20
    return run, learned.state_dict()


def assert_equal(one, two):
    assert one[0].history == two[0].history
    for name, value in one[1].items():
        assert torch.equal(value, two[1][name]), name


@pytest.mark.parametrize("name", REPLAYABLE)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="sgd"),
        pytest.param({"optimizer": "sam", "weight_decay": 1e-3}, id="sam and decay", marks=pytest.mark.every),
    ],
)
def test_what_a_method_calls_replayable_is(monkeypatch, name, settings):
    """Its recorded step does on every other batch, also a smaller last one, what the step itself does."""
    tasks = stream(2, count=92)  # five batches of 16 and one of 12
    one, two = (
        learn(monkeypatch, taped, model(2), tasks, make_method(name), training(epochs=4, **settings))
        for taped in (False, True)
    )
    assert_equal(one, two)


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.0},
        {"lr_plan": "cosine"},
        {"ema_decay": 0.9, "label_smoothing": 0.1},
        {"lr_patience": 1, "lr_factor": 0.3, "precision": "bfloat16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, None])
def test_so_it_is_with_every_setting_of_the_training(monkeypatch, changes, norm):
    tasks = stream(2, count=92, valid=12)
    learned = model(2, norm=norm)
    learned.backbone.append(nn.Dropout(0.3))
    one, two = (
        learn(monkeypatch, taped, copy.deepcopy(learned), tasks, make_method("ness"), training(epochs=4, **changes))
        for taped in (False, True)
    )
    assert_equal(one, two)


def test_the_tape_finds_a_step_that_counts_in_python(monkeypatch):
    """A test of the test: such a method must not pass for replayable."""

    class Counting(Method):
        name, replayable, steps = "counting", True, 0

        def loss(self, model, batch):
            self.steps += 1
            return super().loss(model, batch) / self.steps

    tasks = stream(1, count=80)
    one, two = (learn(monkeypatch, taped, model(1), tasks, Counting(), training(epochs=8)) for taped in (False, True))
    assert one[0].history != two[0].history


def test_the_tape_finds_a_step_that_looks_at_a_number(monkeypatch):
    class Looking(Method):
        name, replayable = "looking", True

        def loss(self, model, batch):
            loss = super().loss(model, batch)
            return loss if float(loss.detach()) > 1 else loss / 2

    with pytest.raises(TrainingError, match="looked at"):
        learn(monkeypatch, True, model(1), stream(1, count=80), Looking(), training())


def test_a_class_says_for_itself_whether_its_steps_can_be_replayed():
    class Own(METHODS["ness"]):
        def loss(self, model, batch):
            return super().loss(model, batch)

    class Sure(Own):
        replayable = True

    assert METHODS["ness"].replayable
    assert not Own.replayable
    assert Sure.replayable
    assert {"a-gem", "dfgp", "adam-nscl"} == METHODS.keys() - REPLAYABLE


def test_on_a_cpu_every_step_is_taken_as_it_comes():
    assert type(steps_for(torch.optim.SGD, "cpu")) is Steps


def steps_for(optimizer, device="cuda", replayable=True):
    parameters = [nn.Parameter(torch.ones(2))]
    return graphs.make_steps(lambda batch: batch, replayable, optimizer(parameters, lr=0.1), torch.device(device))


@needs_cuda
class TestOnAGPU:
    """CUDA graphs themselves."""

    def test_which_steps_are_replayed(self, monkeypatch):
        assert isinstance(steps_for(torch.optim.SGD), ReplayedSteps)
        assert type(steps_for(torch.optim.Adam)) is Steps
        assert type(steps_for(torch.optim.SGD, replayable=False)) is Steps
        monkeypatch.setenv(graphs.SWITCH, "off")
        assert type(steps_for(torch.optim.SGD)) is Steps

    @pytest.mark.parametrize("name", REPLAYABLE)
    @pytest.mark.parametrize("optimizer", ["sgd", "sam"])
    def test_the_numbers_are_those_of_single_operations(self, monkeypatch, name, optimizer):
        tasks = load_stream("permuted-digits", seed=0, validation_share=0.1).first(2)
        settings = training(epochs=3, optimizer=optimizer, batch_size=64, lr_patience=1)
        network = NetworkSettings(widths=(64, 64))
        runs = []
        for switch in ("off", "on"):
            monkeypatch.setenv(graphs.SWITCH, switch)
            learned = build_model(tasks, network)
            learned.backbone.layers.insert(1, nn.Dropout(0.2))
            run = fit(learned, tasks, name, settings, seed=1, device="cuda")
            runs.append([(epoch.train_loss, epoch.valid_loss) for epoch in run.history])
        assert torch.tensor(runs[0]) == pytest.approx(torch.tensor(runs[1]), rel=1e-4)

    def test_a_step_that_waits_for_the_gpu_is_taken_as_it_comes(self):
        class Looking(Method):
            name, replayable = "looking", True

            def loss(self, model, batch):
                loss = super().loss(model, batch)
                return loss if float(loss.detach()) > 1 else loss / 2

        with pytest.warns(GraphWarning, match="waits for the GPU"):
            run = fit(model(1).cuda(), stream(1), Looking(), training(epochs=EAGER_STEPS), device="cuda")
        assert run.finished

    def test_a_step_that_cannot_be_recorded_names_the_way_out(self, monkeypatch):
        def refuse(*_, **__):
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", refuse)
        with pytest.raises(TrainingError, match=f"not permitted.*{graphs.SWITCH}=off in the environment goes on"):
            fit(model(1).cuda(), stream(1), "finetune", training(epochs=EAGER_STEPS), device="cuda")
