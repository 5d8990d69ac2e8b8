"""Hyperparameters that other methods were published with, on the benchmarks of the paper; each with its source.

Like the presets that are made from them, this loads no torch.
"""

from __future__ import annotations

from nesskit.settings import GPMSettings, MethodSettings, TrainingSettings

Published = dict[str, tuple[TrainingSettings, MethodSettings]]  # by the method's name


def _sgd(epochs: int, lr: float, factor: float, patience: int, minimum: float) -> TrainingSettings:
    """Plain SGD in batches of 64 with a learning rate that falls when the validation loss does not."""
    return TrainingSettings(
        epochs=epochs,
        lr=lr,
        momentum=0.0,
        lr_factor=factor,
        lr_patience=patience,
        lr_minimum=minimum,
        evaluation_batch_size=64,
    )


PUBLISHED: dict[str, Published] = {
    "split-cifar100": {
        # Saha et al. 2021, Section 5 and Appendix: lr 0.01, ε_th from 0.97 in steps of 0.003, 125 examples.
        "gpm": (_sgd(200, 0.01, 1 / 2, 6, 1e-5), GPMSettings(0.97, 0.003, 125)),
    },
    "five-datasets": {
        # The same: lr 0.1, ε_th 0.965 for every task, 100 examples.
        "gpm": (_sgd(100, 0.1, 1 / 3, 5, 1e-3), GPMSettings(0.965, 0.0, 100)),
    },
    "split-miniimagenet": {
        # The same: lr 0.1, ε_th from 0.985 in steps of 0.0003, 100 examples.
        "gpm": (_sgd(100, 0.1, 1 / 2, 6, 1e-5), GPMSettings(0.985, 0.0003, 100)),
    },
}
