"""The settings of every method, by the method's name."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from nesskit import userfiles
from nesskit.errors import SettingsError, UnknownNameError
from nesskit.settings.fields import check_types, require
from nesskit.spectra.filters import Filter, FrobeniusThreshold, HardFilter, InterferenceBudget, SoftFilter


@dataclass(frozen=True)
class MethodSettings:
    """Base of the settings of one method; methods without any use it as it is."""


@dataclass(frozen=True, kw_only=True)
class PrivateSettings(MethodSettings):
    """What every task after the first has for itself, beside its head."""

    private: Literal["scale", "full", "smaller", "adapter", "none"] = "none"
    """In occupied directions: scale, S (k, k) before MᵀW; full, S (k, d_out); in every layer the smaller of the two. Or
    an adapter of low rank; or nothing."""
    directions: int | None = None
    """How many of a layer's occupied directions a task may use, the strongest; None: all. The rank of an adapter."""
    norm: Literal["shared", "private"] = "shared"
    """Whether every task has the affine pairs of BatchNorm and its relatives for itself."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "directions", self.directions is None or self.directions >= 1, "at least 1, or none for all")
        if self.private == "adapter" and self.directions is None:
            raise SettingsError("an adapter has a rank: give it as directions, 8, say")

    def refuse_private_parts(self, why: str) -> None:
        """One sentence if a task is to have something for itself, in a method that knows of no such thing.

        Raises:
            SettingsError: it is.
        """
        if (self.private, self.norm) != ("none", "shared"):
            raise SettingsError(f"{why}: private must be none, and norm shared")


@dataclass(frozen=True)
class NESSSettings(MethodSettings):
    """NESS: ΔW = U V with U frozen in the directions where old inputs are small (paper, Section 3)."""

    filter: Filter = field(default_factory=lambda: FrobeniusThreshold(0.03))
    """Which directions are free, as name:value, for example frobenius:0.03 or nuclear:0.001."""
    memory: Literal["moments", "data"] = "moments"
    """moments: one d × d matrix a layer, no old data kept; data: keep old data, recompute with today's weights."""
    moment_batch_size: int = 256
    """Samples per batch when layer inputs are looked at; matters where BatchNorm uses batch statistics."""
    moment_batches: Literal["of-one-task", "across-tasks"] = "of-one-task"
    """Whether such a batch may begin in one task and end in the next, as in the authors' code, where both are kept."""
    coefficient_decay: float | None = None
    """Weight decay on V, the paper's soft form of Eq. 8; None: the weight_decay of the training."""
    stability: float | None = None
    """ε of Eq. 2. If set, ‖V‖₂ ≤ √ε/σ_j is kept exactly, so that no old output moves by more than √ε per layer."""
    bias: Literal["frozen", "augment"] = "frozen"
    """frozen: biases stay as task 1 left them (paper); augment: a constant input 1 protects them too."""
    layers: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: every Linear and Conv2d of the backbone."""
    protect: Literal["tasks", "reference"] = "tasks"
    """tasks: inputs of earlier tasks; reference: those of the stream's reference too, so that what a pretrained network
    knows is protected before the first task, which learns in a null space as well."""

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.filter, Filter):
            raise SettingsError(f"filter must be a filter such as FrobeniusThreshold(0.03), got {self.filter!r}")
        require(self, "moment_batch_size", self.moment_batch_size >= 1, "at least 1")
        decay, stability = self.coefficient_decay, self.stability
        require(self, "coefficient_decay", decay is None or decay >= 0, "at least 0")
        require(self, "stability", stability is None or stability > 0, "above 0")
        if stability is not None and not isinstance(self.filter, HardFilter):
            raise SettingsError("stability needs a hard filter: a soft one has no last free singular value σ_j")


@dataclass(frozen=True)
class NESSSoftSettings(NESSSettings):
    """NESS with a soft filter: every direction is used, the less the more old inputs have in it."""

    filter: Filter = field(default_factory=lambda: SoftFilter(0.01, "frobenius"))
    """How much each direction is used, as soft:τ:frobenius with τ a share of ‖I‖_F; the smaller, the stricter."""


@dataclass(frozen=True)
class NESSBudgetSettings(NESSSettings):
    """NESS with a budget of interference per layer instead of a single threshold for all."""

    filter: Filter = field(default_factory=InterferenceBudget)
    """Which directions are free, as budget:value; the smaller, the stricter."""


@dataclass(frozen=True, kw_only=True)
class NESSPrivateSettings(PrivateSettings, NESSSettings):
    """NESS with something for each task in the directions that old inputs occupy (our own; its relative is TRGP)."""

    private: Literal["scale", "full", "smaller", "adapter", "none"] = "scale"
    norm: Literal["shared", "private"] = "private"

    def __post_init__(self) -> None:
        NESSSettings.__post_init__(self)
        super().__post_init__()
        if self.moment_batches == "across-tasks":
            raise SettingsError(
                "moment_batches must be of-one-task where tasks have something for themselves: layers see the inputs "
                "of each task through its own parts"
            )


@dataclass(frozen=True)
class FinetuneSettings(MethodSettings):
    """Fine-tuning: train every weight on each task in turn and do nothing against forgetting."""


@dataclass(frozen=True)
class JointSettings(MethodSettings):
    """Joint training: all tasks at once, the ceiling for every method that sees them one after another."""


@dataclass(frozen=True)
class GPMSettings(PrivateSettings):
    """GPM: project the gradient away from the directions that hold most of old inputs' energy (Saha et al. 2021)."""

    threshold: float = 0.97
    """ε_th: the share of Σ σ² of each layer's inputs that is protected after task 1."""
    increment: float = 0.003
    """Added to the threshold with every further task."""
    samples: int = 125
    """Training examples of each task that are looked at."""
    samples_of_layers: tuple[int, ...] = ()
    """How many of them count for each layer, in the order of the layers; empty: all of them for every layer."""
    bases: Literal["paper", "authors"] = "paper"
    """paper: the fewest directions that hold the threshold's share; authors: as their code makes bases, one direction a
    layer less in task 1. For trgp more is different, as its class says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "threshold", 0 < self.threshold <= 1, "in (0, 1]")
        require(self, "increment", self.increment >= 0, "at least 0")
        require(self, "samples", self.samples >= 1, "at least 1")
        within = all(1 <= count <= self.samples for count in self.samples_of_layers)
        require(self, "samples_of_layers", within, f"numbers from 1 to {self.samples}, which is samples")


@dataclass(frozen=True)
class EWCSettings(MethodSettings):
    """EWC: a penalty on moving weights that mattered to old tasks (Kirkpatrick et al. 2017).

    The default λ had the highest accuracy on validation data of permuted-digits (20 % of the training examples, seeds 1
    to 3) among 10, 30, 60 and 100; 300 diverged.
    """

    strength: float = 60.0
    """λ: how much the old tasks count beside the new one. Where lr · λ · F exceeds about 2, plain SGD diverges."""
    form: Literal["separate", "online"] = "separate"
    """separate: one penalty per old task; online: one for all, around the newest weights (Schwarz et al. 2018)."""
    gamma: float = 0.95
    """By which the online form multiplies old importances with every task; 1: it keeps them."""
    samples: int | None = None
    """Training examples of each task that the importances are estimated from; None: all."""
    fisher_batch: int = 16
    """Examples per backward pass of that estimate; the fewer, the less it scatters."""
    fisher: Literal["expected", "empirical"] = "expected"
    """expected: labels drawn from the model's own answers, in evaluation mode; empirical: the true labels in training
    mode, as in the code of Serrà et al. 2018."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "strength", self.strength >= 0, "at least 0")
        require(self, "gamma", 0 <= self.gamma <= 1, "in [0, 1]")
        require(self, "samples", self.samples is None or self.samples >= 1, "at least 1")
        require(self, "fisher_batch", self.fisher_batch >= 1, "at least 1")


@dataclass(frozen=True)
class AGEMSettings(MethodSettings):
    """A-GEM: no step may raise the loss on remembered examples of old tasks (Chaudhry et al. 2019).

    The defaults did best on validation data of permuted-digits (20 % of the training examples, seeds 1 to 3) among 50,
    100 and 200 examples with batches of 64, and 200 with batches of 256.
    """

    samples: int = 200
    """Training examples of each task that are kept."""
    reference_batch: int = 256
    """Examples drawn from the memory of all old tasks for every step."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "samples", self.samples >= 1, "at least 1")
        require(self, "reference_batch", self.reference_batch >= 1, "at least 1")


@dataclass(frozen=True)
class OWMSettings(MethodSettings):
    """OWM: project the gradient away from the mean inputs of old batches, by a recursion (Zeng et al. 2019).

    The defaults had the highest accuracy among those that forget at most one point, on validation data of
    permuted-digits (20 % of the training examples, seeds 1 to 3): of α = 0.03, 0.1 and 0.3 with batches of 8, 0.5 with
    batches of 1, 0.01 with batches of 64.
    """

    alpha: float = 0.1
    """α of a task's first batch, the energy that halves an old direction's weight; the smaller, the stricter."""
    alpha_decay: float = 1.0
    """α of a task's last batch is this times that of the first."""
    batch: int = 8
    """Examples whose mean is taken; 1 protects every single input, as a second moment does."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "alpha", self.alpha > 0, "above 0")
        require(self, "alpha_decay", self.alpha_decay > 0, "above 0")
        require(self, "batch", self.batch >= 1, "at least 1")


@dataclass(frozen=True)
class SGPSettings(GPMSettings):
    """SGP: GPM with a direction protected by as much as it matters (Saha and Roy 2023)."""

    threshold: float = 0.985
    increment: float = 0.002
    alpha: float = 10.0
    """α: the larger, the closer to 1 are all importances, and SGP to GPM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", self.alpha >= 0, "at least 0")


@dataclass(frozen=True)
class TRGPSettings(GPMSettings):
    """TRGP: GPM with the weights of related old tasks reused through scale matrices (Lin et al. 2022)."""

    threshold: float = 0.98
    trust: float = 0.5
    """ε₁: a layer trusts the old tasks whose input directions hold at least this share of its gradient's norm."""
    reuse: int = 2
    """Of how many old tasks a layer reuses the weights, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_private_parts("trgp has scale matrices of its own kind")
        require(self, "trust", 0 <= self.trust <= 1, "in [0, 1]")
        require(self, "reuse", self.reuse >= 0, "at least 0")


@dataclass(frozen=True)
class DFGPSettings(GPMSettings):
    """DFGP: GPM with a gradient that looks for flat minima, on mixed data too (Yang et al. 2023)."""

    threshold: float = 0.98
    mixup_weight: float = 0.01
    """Weight of the mixed data's loss beside that of the data."""
    mixup_alpha: float = 20.0
    """Images are mixed with shares from Beta(α, α): 1 is uniform, the larger the closer to one half."""
    rho: float = 0.05
    """ρ: how far the weights are moved uphill, as in sam."""
    data_rho: float = 0.05
    """ρ': how far the shares of a batch are moved uphill."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "mixup_weight", self.mixup_weight >= 0, "at least 0")
        require(self, "mixup_alpha", self.mixup_alpha > 0, "above 0")
        require(self, "rho", self.rho >= 0, "at least 0")
        require(self, "data_rho", self.data_rho >= 0, "at least 0")


@dataclass(frozen=True)
class FSDGPMSettings(GPMSettings):
    """FS-DGPM: GPM that flattens the loss along what it protects, with replay (Deng et al. 2021).

    Of the defaults η₁ was chosen on validation data of permuted-digits (20 % of the training examples), where among
    0.001, 0.01, 0.05, 0.1, 0.2 and 0.5 it had the highest accuracy on seed 1, and more than 0.05 on seeds 1 to 3; the
    others are the publication's.
    """

    samples: int = 125
    """Examples of the memory, of whatever task, that are looked at when a task is learned."""
    memory: int = 1000
    """Training examples of all tasks together that are kept, each task's share falling as more come."""
    ascent_rate: float = 0.2
    """η₁: how far the weights are moved uphill, twice a step; it falls as the learning rate does."""
    importance: Literal["learned", "fixed"] = "learned"
    """learned: importances follow their gradient, as in the text; fixed: they do not, as in the authors' code."""
    importance_rate: float = 0.01
    """η₂: the learning rate of the importances; it falls as the learning rate does."""
    clip: float = 2.0
    """Largest entry of the gradient that the weights are moved by, and largest norm of the one that is followed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_private_parts("fs-dgpm looks at examples of all tasks together, through the shared weights")
        if self.samples_of_layers:
            raise SettingsError("fs-dgpm looks at the same examples in every layer: samples_of_layers must be empty")
        require(self, "memory", self.memory >= 1, "at least 1")
        require(self, "ascent_rate", self.ascent_rate >= 0, "at least 0")
        require(self, "importance_rate", self.importance_rate >= 0, "at least 0")
        require(self, "clip", self.clip > 0, "above 0")


@dataclass(frozen=True)
class AdamNSCLSettings(MethodSettings):
    """Adam-NSCL: project Adam's update into the null space of the old inputs' covariance (Wang et al. 2021)."""

    filter: Filter = field(default_factory=lambda: FrobeniusThreshold(0.03))
    """Which directions are free; the publication's rule is smallest:a with a = 10 or 30."""
    batch: int = 1
    """Examples whose mean is taken; 1: every input by itself, as published. The authors' present code takes the mean of
    each training batch, of 16 or 32 examples."""

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.filter, Filter):
            raise SettingsError(f"filter must be a filter such as SmallestMultiple(10), got {self.filter!r}")
        require(self, "batch", self.batch >= 1, "at least 1")


@dataclass(frozen=True)
class HATSettings(MethodSettings):
    """HAT: each task learns which units it uses, and holds them for good (Serrà et al. 2018)."""

    sparsity: float = 0.75
    """c: what a task pays for using units that no earlier one uses, so that some are left for later ones."""
    s_max: float = 400.0
    """The steepest that gates σ(s e) become, and are tested with; the larger, the closer they are to 0 and 1."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "sparsity", self.sparsity >= 0, "at least 0")
        require(self, "s_max", self.s_max >= 1, "at least 1")


@dataclass(frozen=True)
class FrozenSettings(MethodSettings):
    """Frozen backbone: what it knew before the first task is all it ever knows, and only heads learn."""


@dataclass(frozen=True)
class LoRASettings(MethodSettings):
    """LoRA: one update of low rank, (α/r) B A, learns all tasks in turn beside weights that stand still (Hu 2021)."""

    rank: int = 8
    """r, of each layer's update; less where a layer has fewer inputs or outputs."""
    alpha: float = 8.0
    """α: the update is scaled by α/r, so that another r asks for no other learning rate."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "rank", self.rank >= 1, "at least 1")
        require(self, "alpha", self.alpha > 0, "above 0")


@dataclass(frozen=True)
class OLoRASettings(LoRASettings):
    """O-LoRA: an update of low rank for every task, with A orthogonal to those of earlier tasks (Wang et al. 2023)."""

    strength: float = 0.5
    """λ: how much Σ ‖A_i A_tᵀ‖² over earlier tasks i, and all layers, counts beside the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "strength", self.strength >= 0, "at least 0")


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "ness": NESSSettings,
    "ness-soft": NESSSoftSettings,
    "ness-budget": NESSBudgetSettings,
    "ness-private": NESSPrivateSettings,
    "finetune": FinetuneSettings,
    "joint": JointSettings,
    "gpm": GPMSettings,
    "ewc": EWCSettings,
    "a-gem": AGEMSettings,
    "owm": OWMSettings,
    "sgp": SGPSettings,
    "trgp": TRGPSettings,
    "dfgp": DFGPSettings,
    "fs-dgpm": FSDGPMSettings,
    "adam-nscl": AdamNSCLSettings,
    "hat": HATSettings,
    "frozen": FrozenSettings,
    "lora": LoRASettings,
    "o-lora": OLoRASettings,
}


def settings_type(method: str) -> type[MethodSettings]:
    """The settings of the method of that name, or of a user's own method, ``path.py:Name``.

    Raises:
        UnknownNameError: no method of that name; says which is nearest.
        UserFileError: the user's file is missing, fails to import or holds no such method.
    """
    reference = userfiles.parse_reference(method)
    if reference:
        found: type[MethodSettings] = load_method(reference).settings_type
        return found
    if method not in METHOD_SETTINGS:
        raise UnknownNameError("method", method, METHOD_SETTINGS)
    return METHOD_SETTINGS[method]


def load_method(reference: userfiles.Reference) -> Any:
    """A user's class of methods, which then goes by the name under which it was found."""

    def fits(found: Any) -> bool:
        settings = getattr(found, "settings_type", None)
        # Method itself is of a higher floor, and needs torch: the user's file has imported it if it is used.
        bases = {f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())}
        return "nesskit.methods.base.Method" in bases and isinstance(settings, type) and is_dataclass(settings)

    method = userfiles.load(reference, "method: it must be a class derived from nesskit.Method", fits)
    method.name = str(reference)
    return method
