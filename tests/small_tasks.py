"""Tiny tasks whose old inputs leave directions free exactly, for tests of what methods protect."""

import copy

import torch
from torch import nn

from nesskit import Examples, FrobeniusThreshold, NESSSettings, Task, TaskModel, TaskStream, TrainingSettings, fit
from nesskit.methods import METHODS, make_method
from nesskit.runs.events import TaskFinished
from nesskit.settings import METHOD_SETTINGS, AdamNSCLSettings, OWMSettings

WIDTH, CLASSES = 16, 3
EVERY = list(METHODS)
STANDING = {"frozen": (), "lora": ("weight",), "o-lora": ("weight",)}  # what of adapted layers learns, all else stands


def task(number, count=48, inputs=None, valid=0):
    """Random labels for inputs that fill 5 of 16 directions, other ones in every task."""
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(count, 5, generator=draw) @ torch.randn(5, WIDTH, generator=draw)
    x = x if inputs is None else inputs(x)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    return Task(
        f"task {number}",
        ("a", "b", "c"),
        Examples(x, y),
        Examples(x[:valid], y[:valid]),
        Examples(x[:20], y[:20]),
    )


def stream(tasks=3, **options):
    return TaskStream("small tasks", [task(number, **options) for number in range(tasks)])


def model(tasks=3, seed=3, activation=nn.ReLU, norm=None):
    """Hidden layers wide enough that their old inputs leave directions free, too."""
    torch.manual_seed(seed)
    norms = [] if norm is None else [norm(64)]
    backbone = nn.Sequential(nn.Linear(WIDTH, 64), *norms, activation(), nn.Linear(64, 40), activation())
    return TaskModel(backbone, 40, [CLASSES] * tasks)


def strict(name):
    """A method that protects every old input it sees, as far as the method can."""
    if name.startswith("ness"):
        return make_method("ness", NESSSettings(FrobeniusThreshold(1e-6)))
    if name == "adam-nscl":
        return make_method(name, AdamNSCLSettings(FrobeniusThreshold(1e-6)))
    if name == "owm":
        return make_method(name, OWMSettings(alpha=1e-6, batch=1))
    return make_method(name, METHOD_SETTINGS[name](threshold=1 - 1e-9, increment=0.0, samples=1000))


def training(**changes):
    return TrainingSettings(**{"epochs": 4, "lr": 0.05, "batch_size": 16, **changes})


def keeping_first(learned):
    """A listener that keeps the model as it stands when task 1 is learned."""

    def listen(event):
        if isinstance(event, TaskFinished) and event.task == 0:
            listen.model = copy.deepcopy(learned)

    return listen


@torch.no_grad()
def moved(learned, before, tasks):
    """max |f_new(x) - f_old(x)| over inputs of task 1, as a share of the largest old output; computed in float64."""
    new, old = (copy.deepcopy(m).double().eval()(tasks[0].train.x, 0) for m in (learned, before))
    return float((new - old).abs().max() / old.abs().max())


@torch.no_grad()
def moved_features(learned, before, tasks):
    """The same of the backbone's features, for methods whose old heads go on learning."""
    new, old = (copy.deepcopy(m.backbone).double().eval()(tasks[0].train.x.double()) for m in (learned, before))
    return float((new - old).abs().max() / old.abs().max())


def learn(method, learned=None, tasks=None, **options):
    """Fit; the run, the model, and the model as it was after task 1."""
    tasks = stream() if tasks is None else tasks
    learned = model(len(tasks)) if learned is None else learned
    listen = keeping_first(learned)
    run = fit(learned, tasks, method, options.pop("settings", None) or training(), listeners=[listen], **options)
    return run, learned, getattr(listen, "model", None)
