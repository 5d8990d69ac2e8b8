"""Hyperparameters that other methods were published with, on the benchmarks of the paper; each with its source.

Like the presets that are made from them, this loads no torch.
"""

from __future__ import annotations

from typing import Any

from nesskit.settings import (
    AdamNSCLSettings,
    AGEMSettings,
    DFGPSettings,
    EWCSettings,
    FSDGPMSettings,
    GPMSettings,
    HATSettings,
    MethodSettings,
    OWMSettings,
    SGPSettings,
    TrainingSettings,
    TRGPSettings,
)
from nesskit.spectra.filters import SmallestMultiple

Published = dict[str, tuple[TrainingSettings, MethodSettings]]  # by the method's name


def falling_rate(
    epochs: int, lr: float, factor: float, patience: int, minimum: float, **others: Any
) -> TrainingSettings:
    """The training of these benchmarks: its learning rate falls while the validation loss does not.

    The rate is multiplied by ``factor`` after ``patience`` epochs without a lower loss, and a task ends when it would
    fall under ``minimum``. Evaluations are in batches of 64, drawn anew each time; ``others`` are further fields of the
    settings.
    """
    return TrainingSettings(
        epochs=epochs,
        lr=lr,
        lr_factor=factor,
        lr_patience=patience,
        lr_minimum=minimum,
        evaluation_batch_size=64,
        evaluation_order="reshuffled",
        **others,
    )


# Of how many images the code of Saha et al. makes the basis of each layer, and that it keeps one direction a layer less
# in task 1. What builds on GPM (SGP, TRGP, DFGP) took both over. ResNet18 has a number for each 3 × 3 convolution, 10
# (× 8), 50 (× 3) and 100 (× 6), and a shortcut has that of the convolution beside it.
BASES_OF_ALEXNET: dict[str, Any] = {
    "samples": 125,
    "samples_of_layers": (24, 100, 100, 125, 125),
    "bases": "authors",
}
BASES_OF_RESNET18: dict[str, Any] = {
    "samples": 100,
    "samples_of_layers": (*[10] * 9, *[50] * 4, *[100] * 7),
    "bases": "authors",
}


def _sgd(epochs: int, lr: float, factor: float, patience: int, minimum: float) -> TrainingSettings:
    """Plain SGD with a falling learning rate."""
    return falling_rate(epochs, lr, factor, patience, minimum, momentum=0.0)


def _adam_nscl(lr: float, batch_size: int) -> tuple[TrainingSettings, MethodSettings]:
    """Wang et al. 2021, authors' code (adamnscl_without_avg.sh): Adam, 80 epochs, a = 10 for a split into 10 tasks.

    There the rate falls after 30 and 60 epochs, is 5e-5 after task 1 and 1e-3 for heads, and U Uᵀ is divided by its
    norm. Here it falls by half when the validation loss does not, and is the same for all weights. That script takes
    the covariance of all inputs; the other one of the present code, of means, is ``batch=32``.
    """
    training = falling_rate(80, lr, 1 / 2, 6, 1e-6, optimizer="adam", batch_size=batch_size, weight_decay=5e-5)
    return training, AdamNSCLSettings(SmallestMultiple(10))


def _ewc(epochs: int, tasks: int) -> tuple[TrainingSettings, MethodSettings]:
    """Serrà et al. 2018 (HAT), authors' code (approaches/ewc.py), as Kirkpatrick et al. have no such benchmark.

    SGD from lr 0.05, divided by 3, patience 5, down to 1e-4; λ = 5000, found by a grid, times the *mean* of the tasks'
    importances around the newest weights. These are squared means over batches of 20 (utils.py) for the true labels in
    training mode, so a 20th of ours, which are squared sums; and ours add up over the tasks. Hence 5000/20 over the
    number of tasks, in the online form without fading: equal once all tasks are learned, milder before. They clip
    gradients at a norm of 100, we do not.
    """
    importances: dict[str, Any] = {"form": "online", "gamma": 1.0, "fisher": "empirical", "fisher_batch": 20}
    return _sgd(epochs, 0.05, 1 / 3, 5, 1e-4), EWCSettings(5000 / 20 / tasks, **importances)


def _agem(epochs: int, classes: int) -> tuple[TrainingSettings, MethodSettings]:
    """Chaudhry et al. 2019, authors' code (replicate_results_iclr19.sh, conv_split_cifar.py), their Split CIFAR.

    SGD with lr 0.03, 13 examples of each class kept, 256 drawn for every step. They see every example once, in batches
    of 10 and 20 tasks of 5 classes; here each task is trained as by the others, the rate halved with patience 6.
    """
    return _sgd(epochs, 0.03, 1 / 2, 6, 1e-5), AGEMSettings(13 * classes, 256)


def _owm() -> tuple[TrainingSettings, MethodSettings]:
    """Zeng et al. 2019, authors' code (OWM_CNN), their CIFAR-10 in 5 tasks: nothing is published for these benchmarks.

    SGD with lr 0.02 and momentum 0.9, 25 epochs in batches of 64, α from 1 down to 1e-5 times that (their
    convolutions; their last layers stop at 1e-4, 1e-2 and 1e-1). There the projectors grow in every epoch of a task,
    and α falls over all of them; here, as in the text, when the task is learned.
    """
    training = TrainingSettings(epochs=25, lr=0.02, momentum=0.9, evaluation_batch_size=64)
    return training, OWMSettings(alpha=1.0, alpha_decay=1e-5, batch=64)


def _hat() -> tuple[TrainingSettings, MethodSettings]:
    """Serrà et al. 2018, authors' code (run.py, approaches/hat.py), for all their data sets: s_max = 400, c = 0.75.

    SGD from lr 0.05, divided by 3, patience 5, down to 1e-4, 200 epochs in batches of 64. Their network has biases and
    no BatchNorm.
    """
    return _sgd(200, 0.05, 1 / 3, 5, 1e-4), HATSettings(sparsity=0.75, s_max=400)


def _fs_dgpm() -> tuple[TrainingSettings, MethodSettings]:
    """Deng et al. 2021, authors' code (run_experiments.sh): 1000 images kept, 125 looked at, importances fixed.

    SGD with lr 0.01 and momentum 0.9, at most 50 epochs. Their network has one BatchNorm, behind the second
    convolution, with running averages; ours one behind each layer, with statistics of the batch.
    """
    options = FSDGPMSettings(0.97, 0.003, 125, memory=1000, ascent_rate=0.001, importance_rate=0.01, importance="fixed")
    return falling_rate(50, 0.01, 1 / 2, 6, 1e-5), options


# Saha et al. 2021 train GPM like the first two; what builds on it is trained alike where its authors say nothing else.
# "baselines/" is the folder of the code of NESS whose scripts made the table of published results.
GPM_ON_CIFAR100 = _sgd(200, 0.01, 1 / 2, 6, 1e-5)
GPM_ON_FIVE_DATASETS = _sgd(100, 0.1, 1 / 3, 5, 1e-3)
GPM_ON_MINIIMAGENET = _sgd(100, 0.1, 1 / 3, 5, 1e-3)

PUBLISHED: dict[str, Published] = {
    "split-cifar100": {
        # Saha et al. 2021, Section 5 and Appendix: lr 0.01, ε_th from 0.97 in steps of 0.003, 125 examples.
        "gpm": (GPM_ON_CIFAR100, GPMSettings(0.97, 0.003, **BASES_OF_ALEXNET)),
        # Saha and Roy 2023, authors' code (main_sgp_cifar100.py): lr 0.05 down to 5e-5, α 10, thresholds as GPM.
        "sgp": (_sgd(200, 0.05, 1 / 2, 6, 5e-5), SGPSettings(0.97, 0.003, **BASES_OF_ALEXNET, alpha=10)),
        # Lin et al. 2022, authors' code (main_cifar100.py): as GPM, ε₁ 0.5, two tasks reused.
        "trgp": (GPM_ON_CIFAR100, TRGPSettings(0.97, 0.003, **BASES_OF_ALEXNET, trust=0.5, reuse=2)),
        # Yang et al. 2023, authors' code (main_dfgp_cifar100.py): threshold 0.95 for every task, Beta(20, 20). Its
        # loop over other thresholds sets a variable that nobody reads. Of the two weights in the table of published
        # results, 0.05 has the higher accuracy.
        "dfgp": (
            GPM_ON_CIFAR100,
            DFGPSettings(0.95, 0.0, **BASES_OF_ALEXNET, mixup_weight=0.05, mixup_alpha=20),
        ),
        "fs-dgpm": _fs_dgpm(),
        "adam-nscl": _adam_nscl(1e-4, 32),
        "ewc": _ewc(200, 10),
        "a-gem": _agem(200, 10),
        "owm": _owm(),
        "hat": _hat(),
    },
    "five-datasets": {
        # The same: lr 0.1, ε_th 0.965 for every task, 100 examples.
        "gpm": (GPM_ON_FIVE_DATASETS, GPMSettings(0.965, 0.0, **BASES_OF_RESNET18)),
        # Not in its authors' released code; baselines/main_sgp_fivedataset.py: 200 epochs, ε_th from 0.97 in steps of
        # 0.003, and α of CIFAR-100.
        "sgp": (_sgd(200, 0.1, 1 / 3, 5, 1e-3), SGPSettings(0.97, 0.003, **BASES_OF_RESNET18, alpha=10)),
        # Lin et al. 2022, baselines/TRGP/main_five_dataset.py: 200 epochs, ε_th 0.965 for every task, ε₁ as CIFAR-100.
        "trgp": (
            _sgd(200, 0.1, 1 / 3, 5, 1e-3),
            TRGPSettings(0.965, 0.0, **BASES_OF_RESNET18, trust=0.5, reuse=2),
        ),
        # Yang et al. 2023, authors' code (main_dfgp_fivedataset.py): threshold 0.95, Beta(1, 1).
        # Weight 0.01, the better of the two.
        "dfgp": (
            GPM_ON_FIVE_DATASETS,
            DFGPSettings(0.95, 0.0, **BASES_OF_RESNET18, mixup_weight=0.01, mixup_alpha=1),
        ),
        # Not in the publication; as for CIFAR-100 in 10 tasks.
        "adam-nscl": _adam_nscl(1e-4, 32),
        "ewc": _ewc(100, 5),
        "a-gem": _agem(100, 10),
        "owm": _owm(),
        "hat": _hat(),
    },
    "split-miniimagenet": {
        # baselines/main_gpm_miniimagenet.py: lr 0.1 divided by 3, ε_th from 0.965 in steps of 0.003, 100 examples.
        # (Saha et al. 2021 have the rate halved with patience 6 down to 1e-5, and 0.985 in steps of 0.0003.)
        "gpm": (GPM_ON_MINIIMAGENET, GPMSettings(0.965, 0.003, **BASES_OF_RESNET18)),
        # Not in its authors' released code; baselines/main_sgp_miniimagenet.py: the thresholds and α of 5-Datasets.
        "sgp": (GPM_ON_MINIIMAGENET, SGPSettings(0.97, 0.003, **BASES_OF_RESNET18, alpha=10)),
        # Lin et al. 2022, authors' code and baselines/TRGP/main_mini_dataset.py: 200 epochs, ε_th 0.985 for every task;
        # ε₁ as CIFAR-100.
        "trgp": (
            _sgd(200, 0.1, 1 / 3, 5, 1e-3),
            TRGPSettings(0.985, 0.0, **BASES_OF_RESNET18, trust=0.5, reuse=2),
        ),
        # Yang et al. 2023, authors' code and log (main_dfgp_miniimagenet.py): threshold 0.97,
        # Beta(20, 20), weight 0.01.
        "dfgp": (
            GPM_ON_MINIIMAGENET,
            DFGPSettings(0.97, 0.0, **BASES_OF_RESNET18, mixup_weight=0.01, mixup_alpha=20),
        ),
        # Not in the publication, which has TinyImageNet: lr 5e-5 in batches of 16.
        "adam-nscl": _adam_nscl(5e-5, 16),
        "ewc": _ewc(100, 20),
        "a-gem": _agem(100, 5),
        "owm": _owm(),
        "hat": _hat(),
    },
}
