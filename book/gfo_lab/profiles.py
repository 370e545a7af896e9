"""How much work each profile does: the one table that chapters and commands read budgets from."""

from dataclasses import dataclass

from gfo.core.registry import Registry


@dataclass(frozen=True)
class Budget:
    """dataset: what runs unless said otherwise. epochs, patience, batch: of `fit`. samples: masks a
    prediction averages. seeds: repetitions. toy_steps: optimiser steps on enumerable networks."""

    dataset: str
    epochs: int
    patience: int
    batch: int
    samples: int
    seeds: tuple[int, ...]
    toy_steps: int


PROFILES = Registry("profile")
# quick: the built book and the tests, seconds a chapter on one core. colab: minutes, real MNIST.
# full: the paper's protocol; its runs are recorded under book/results.
PROFILES["quick"] = Budget("digits", 25, 6, 64, 20, (0,), 1000)
PROFILES["colab"] = Budget("mnist", 8, 6, 128, 20, (0,), 4000)
# tune: a third of the epochs, equal for all methods (see experiments/search.py).
PROFILES["tune"] = Budget("mnist", 12, 4, 128, 20, (0,), 0)
# reduced: CIFAR on a CPU, smaller than the paper's (experiments/cifar.py); never mixed with full.
PROFILES["reduced"] = Budget("cifar10", 7, 7, 128, 20, (0, 1, 2), 4000)
# long: CIFAR with three times the epochs of its full profile, a row of no table.
PROFILES["long"] = Budget("cifar10", 60, 60, 512, 20, (0,), 4000)
PROFILES["full"] = Budget("mnist", 40, 6, 128, 20, (0, 1, 2), 4000)


def budget(profile: str) -> Budget:
    """The budget of `profile`; ValueError with the nearest match for an unknown one."""
    return PROFILES[profile]
