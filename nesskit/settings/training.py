"""How tasks are trained, and which network learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nesskit.settings.fields import check_types, require


@dataclass(frozen=True)
class TrainingSettings:
    """How every task is trained, whatever the method."""

    epochs: int = 30
    """Epochs per task, at most."""
    batch_size: int = 64
    """Samples per training step."""
    optimizer: Literal["sgd", "adam", "sam"] = "sgd"
    """sgd has momentum; sam is sharpness-aware minimisation around sgd."""
    lr: float = 0.05
    """Learning rate at the start of every task."""
    momentum: float = 0.9
    """Momentum of sgd and of sgd inside sam; adam ignores it."""
    weight_decay: float = 0.0
    """λ: pulls weights to zero in task 1, afterwards the coefficients V and the head."""
    lr_plan: Literal["patience", "cosine"] = "patience"
    """patience: it falls when the validation loss does not; cosine: from lr to lr_minimum over all epochs of a task."""
    lr_factor: float = 0.5
    """The learning rate is multiplied by this when the validation loss has not improved for lr_patience epochs."""
    lr_patience: int = 0
    """Epochs without a lower validation loss before the learning rate falls; 0: it never falls."""
    lr_minimum: float = 0.0
    """A task ends early when the learning rate would fall under this; a cosine ends here with the last epoch."""
    label_smoothing: float = 0.0
    """The share of each label that is spread over all classes of its task, in training only."""
    ema_decay: float = 0.0
    """β of w̄ ← β w̄ + (1 - β) w after every step, the average that is validated and kept; 0: the weights themselves."""
    kept_weights: Literal["lowest-loss", "highest-accuracy", "last"] = "lowest-loss"
    """Which weights a task is left with: those of an epoch, judged on validation data if there is any, or the last."""
    sam_rho: float = 0.05
    """Radius of the neighbourhood that sam looks at."""
    sam_tasks: Literal["all", "first"] = "all"
    """Tasks that sam trains; with first, the later ones take plain sgd steps (as the authors' code does)."""
    evaluation_order: Literal["fixed", "reshuffled"] = "fixed"
    """Whether the batches of an evaluation are always the same or drawn anew each time; matters as their size does."""
    evaluation_batch_size: int = 256
    """Samples per batch of an evaluation; matters for accuracies where BatchNorm uses batch statistics."""
    head: Literal["task", "shared", "means"] = "task"
    """Who answers: a head a task, chosen by the task's name; one over all classes seen; or the nearest class mean."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the training steps; bfloat16 is mixed precision (weights and moments stay float32 and float64)."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "epochs", self.epochs >= 1, "at least 1")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        require(self, "evaluation_batch_size", self.evaluation_batch_size >= 1, "at least 1")
        require(self, "lr", self.lr > 0, "above 0")
        require(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        require(self, "lr_factor", 0 < self.lr_factor < 1, "between 0 and 1")
        require(self, "lr_patience", self.lr_patience >= 0, "at least 0")
        require(self, "lr_minimum", self.lr_minimum >= 0, "at least 0")
        if self.lr_plan == "cosine":
            require(self, "lr_minimum", self.lr_minimum <= self.lr, f"at most lr = {self.lr:g}, where a cosine begins")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        require(self, "ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)")
        require(self, "sam_rho", self.sam_rho > 0, "above 0")

    @property
    def needs_validation(self) -> str:
        """The name of the setting that cannot do without validation data; empty if none is of that kind."""
        if self.lr_plan == "patience" and self.lr_patience:
            return "lr_patience"
        return "kept_weights" if self.kept_weights == "highest-accuracy" else ""


@dataclass(frozen=True)
class NetworkSettings:
    """Which network learns; every task gets a linear head of its own on top."""

    name: Literal["mlp", "alexnet", "resnet18", "convnet", "encoder"] = "mlp"
    """Architecture of the backbone that all tasks share; encoder is a transformer for sentences."""
    widths: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers (mlp), or of the convolutions and, last, the linear layer (convnet)."""
    bias: bool = False
    """Whether the layers have biases (mlp only)."""
    norm: Literal["batch", "running"] = "batch"
    """BatchNorm's statistics at test time: of the batch (paper), or running averages that NESS stops after task 1."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution (resnet18 only): 1 for images of 32 × 32, 2 for 84 × 84."""
    source: str = "minilm"
    """Which transformer (encoder only): minilm, a folder of save_pretrained, or a name that from_pretrained takes."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """What the transformer knows at first (encoder only): what it was trained for, or nothing, drawn from the seed."""
    depth: int | None = None
    """How many of the transformer's blocks are there (encoder only), from the first on; None: all of them."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """Features of a sentence (encoder only): the mean of its tokens, the first, or the last one (for decoders)."""
    layers: tuple[str, ...] = ("blocks",)
    """Layers that learn (encoder only): blocks, attention, feed-forward, whole, none, or names such as *.layer.5.*."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "widths", all(1 <= width <= 2**20 for width in self.widths), "at least 1 each, below a million")
        require(self, "source", bool(self.source.strip()), "minilm, a folder or a name")
        require(self, "depth", self.depth is None or self.depth >= 1, "at least 1")
        require(self, "layers", all(isinstance(name, str) and name for name in self.layers), "names of layers")
        require(self, "layers", bool(self.layers), "blocks, none, or names of layers")
