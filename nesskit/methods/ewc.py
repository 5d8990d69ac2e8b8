"""EWC: elastic weight consolidation (Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS
2017), and its online form (Schwarz et al., Progress & Compress, ICML 2018).

No subspace: directions are the *weights* themselves, one by one; each has an importance, the diagonal of the Fisher
information; it is enforced by a *penalty*; remembered are importances and the weights that they belong to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation.capture import evaluating
from nesskit.methods.base import Method
from nesskit.methods.subspace import keep_running_statistics, sample
from nesskit.networks.task_model import TaskModel
from nesskit.settings import EWCSettings
from nesskit.spectra.precision import at_least_float32
from nesskit.streams.base import normalise
from nesskit.streams.batches import Batch, TaskData, pieces
from nesskit.streams.fields import Inputs


class EWC(Method):
    """Every task after the first pays λ/2 Σ_i F_i (θ_i - θ*_i)² for moving the backbone's weights θ (Eq. 3).

    Kirkpatrick et al. add one such penalty per old task. A sum of parabolas is a parabola: Σ_t F_t (θ - θ_t)² is
    F (θ - c)² with F = Σ_t F_t and c = Σ_t F_t θ_t / F, up to a constant that no gradient sees. So two tensors of the
    size of the weights are enough for any number of tasks. The online form forgets the old anchors (c is where the last
    task ended) and lets old importances fade: F ← γ F + F_t.

    With ``fisher="empirical"`` importances are those of the code of Serrà et al. 2018, whose figures for EWC are the
    ones that others quote: squares of a batch's gradient for its true labels, with dropout at work. Once a task is
    learned these gradients are small, and its weights protected less. There heads have importances, too, which changes
    nothing: no later task moves the head of an old one.

    Attributes:
        importance: name of a backbone's parameter → F, in its shape.
        anchors: name → c.
    """

    name = "ewc"
    settings_type = EWCSettings
    replayable = True
    settings: EWCSettings

    def __init__(self, settings: EWCSettings | None = None) -> None:
        super().__init__(settings)
        self.importance: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    def train_mode(self, model: TaskModel) -> None:
        """Training mode; after task 1 without running averages, on which no penalty can act."""
        super().train_mode(model)
        if self.importance:
            keep_running_statistics(model.backbone)

    def loss(self, model: TaskModel, batch: Batch) -> Tensor:
        """Cross-entropy and the penalty."""
        return super().loss(model, batch) + self.penalty(model)

    def penalty(self, model: TaskModel) -> Tensor:
        """λ/2 Σ_i F_i (θ_i - c_i)², a scalar; 0 during task 1."""
        parameters = dict(model.backbone.named_parameters())
        moved = [(F * (parameters[n] - self.anchors[n]).square()).sum() for n, F in self.importance.items()]
        return self.settings.strength / 2 * torch.stack(moved).sum() if moved else torch.zeros(())

    def end_task(self, model: TaskModel, data: TaskData) -> Sequence[Any]:
        """Add the task's Fisher information to the importances."""
        settings, (x, y) = self.settings, (data.train.x, data.train.y)
        if settings.samples is not None:
            rows = sample(torch.arange(len(y), device=y.device), settings.samples)
            x, y = x[rows], y[rows]
        inputs = pieces(x, settings.fisher_batch, data.company)
        labels = pieces(y, settings.fisher_batch, data.company)
        batches = (normalise(part, data.normalisation) for part in inputs)
        new = fisher_diagonal(model, data.index, batches, labels if settings.fisher == "empirical" else None)
        parameters = dict(model.backbone.named_parameters())
        for name, importance in new.items():
            self._remember(name, importance, parameters[name].detach())
        return ()

    def _remember(self, name: str, new: Tensor, weights: Tensor) -> None:
        """Merge the parabola of the task just learned, ``new`` (θ - ``weights``)², into the one that is kept."""
        if self.settings.form == "online" or name not in self.importance:
            old = self.importance.get(name, torch.zeros_like(new))
            self.importance[name] = self.settings.gamma * old + new
            self.anchors[name] = weights.clone()
            return
        self.importance[name] = self.importance[name] + new
        share = torch.where(new > 0, new / self.importance[name], 0.0)  # 0 where no task cares: any anchor will do
        self.anchors[name] = self.anchors[name] + share * (weights - self.anchors[name])

    def state_dict(self) -> dict[str, Any]:
        """Importances and anchors."""
        return {"importance": dict(self.importance), "anchors": dict(self.anchors)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore them."""
        parameters = dict(model.backbone.named_parameters())
        self.importance = {name: F.to(parameters[name].device) for name, F in state["importance"].items()}
        self.anchors = {name: anchor.to(parameters[name].device) for name, anchor in state["anchors"].items()}

    def memory_report(self) -> dict[str, int]:
        """Bytes of both."""
        return {
            "importance": sum(F.nbytes for F in self.importance.values()),
            "anchors": sum(anchor.nbytes for anchor in self.anchors.values()),
        }


def fisher_diagonal(
    model: TaskModel, task: int, batches: Iterable[Inputs], labels: Iterable[Tensor] | None = None
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of the backbone's parameters, F_i = E[(∂ log p(y | x) / ∂θ_i)²].

    y is drawn from the model's own answers. Scores of such labels have mean zero and are independent, so the square of
    a batch's summed score is an unbiased estimate of the sum of their squares: one backward pass a batch, and exact in
    the mean also where BatchNorm ties the answers of a batch together. (With the true labels neither would hold.)

    Args:
        model: in whatever mode; looked at in evaluation mode.
        task: whose head answers.
        batches: normalised inputs (n, …). The smaller they are, the less the estimate scatters.
        labels: the true ones of each batch, (n,), for the empirical Fisher: taken instead of drawn ones, in training
            mode, except that running averages stay as they are.

    Returns:
        Name → F in the parameter's shape, a mean over examples; of what the user froze none is needed.
    """
    parameters = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    if not parameters:
        return {}
    total = {name: torch.zeros_like(p, dtype=at_least_float32(p)) for name, p in parameters.items()}
    count = 0
    with evaluating(model):
        if labels is not None:
            model.train()
            keep_running_statistics(model.backbone)
        for x, known in zip(batches, itertools.repeat(None) if labels is None else labels, strict=False):
            logits = model(x, task)
            y = Categorical(logits=logits.detach()).sample() if known is None else known
            log_likelihood = -F.cross_entropy(logits, y, reduction="sum")
            scores = torch.autograd.grad(log_likelihood, list(parameters.values()), materialize_grads=True)
            for name, score in zip(parameters, scores, strict=True):
                total[name] += score.to(total[name]).square()
            count += len(x)
    return {name: value / count for name, value in total.items()}
