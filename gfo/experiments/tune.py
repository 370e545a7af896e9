"""The same small search for every method: eight configurations, one seed, the same budget, chosen
by negative log-likelihood on the tuning split. Test data are never touched."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from .. import records
from ..fit import LEARNING_RATES, predictive_nll
from ..methods import create
from ..profiles import budget
from ..registry import EXPERIMENTS
from .job import Job
from .rotation import DIGITS, fitted

# Learning rate of the backbone, the rate or prior, and the method's own knob.
RATES = (1e-3, 2e-3)
GFLOWOUT = {"lr": RATES, "masks_lr": (1e-3, 1e-2), "beta": (1.0, 10.0)}
SPACES: dict[str, dict[str, tuple]] = {
    "deterministic": {"lr": (2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 3e-3)},
    "random": {"lr": RATES, "keep": (0.5, 0.7, 0.8, 0.9)},
    "mc-improved": {"lr": RATES, "keep": (0.8, 0.9), "repeats": (2, 4)},
    "concrete": {"lr": RATES, "keep": (0.5, 0.9), "temperature": (0.1, 0.5)},
    "contextual": {"lr": RATES, "masks_lr": (1e-3, 1e-2), "keep": (0.5, 0.8)},
    "gflowout": GFLOWOUT,
    "gflowout-literal": GFLOWOUT,
    "id-gflowout": {"lr": RATES, "masks_lr": (1e-3, 1e-2), "keep": (0.5, 0.8)},
}
SAME_AS = {"ensemble": "deterministic"}  # a member is that network


def configuration(method: str, point: dict[str, Any], profile: str) -> dict[str, Any]:
    """The full config of one point of a method's space under the budget of `profile`."""
    work = budget(profile)
    own = {k: v for k, v in point.items() if k not in ("lr", "masks_lr")}
    rates = {"backbone": point["lr"], "masks": point.get("masks_lr", LEARNING_RATES["masks"])}
    return {
        "model": "mlp", "hidden": [300, 100], "method": create(method, **own).config,
        "epochs": work.epochs, "patience": work.patience, "batch": work.batch,
        "samples": work.samples, "lr": LEARNING_RATES | rates, "optimizer": "adam",
    }  # fmt: skip


def space(method: str) -> list[dict[str, Any]]:
    """The eight points of a method's search space."""
    if method not in SPACES:
        raise ValueError(f"{method} has no search space: add a line to SPACES in {__name__}")
    axes = SPACES[method]
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def chosen(method: str, dataset: str, profile: str, out: Path | None = None) -> dict[str, Any]:
    """The config, under the budget of `profile`, of the point with the lowest tuning NLL on record.

    Raises ValueError where the search is not complete.
    """
    searched = SAME_AS.get(method, method)
    found = records.read("tune", out, dataset=dataset, method=searched, profile="tune")
    # the mean over seeds, where the search was run on several
    by_hash = {} if found.empty else found.groupby("config_hash")["tune_nll"].mean().to_dict()
    scores = []
    for point in space(searched):
        digest = records.config_hash(configuration(searched, point, "tune"))
        if digest not in by_hash:
            raise ValueError(
                f"{searched} is not tuned on {dataset}: python -m gfo.run tune --profile tune "
                f"--dataset {dataset} --method {searched} first, into book/results"
            )
        scores.append((by_hash[digest], point))
    best = min(scores, key=lambda pair: pair[0])[1]
    own = best if searched == method else {"lr": best["lr"]}
    return configuration(method, own, profile)


@EXPERIMENTS.register("tune")
class Tune:
    """One record a configuration; `tune_nll` in nats decides."""

    datasets = DIGITS
    methods = tuple(SPACES)

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        return [configuration(method, point, profile) for point in space(method)]

    @staticmethod
    def run(job: Job) -> dict[str, Any]:
        """Train, and score on the tuning split."""
        splits = job.splits()
        net, histories = fitted(splits, job)
        nll = predictive_nll(net, splits.tune, job.config["samples"])
        return {"tune_nll": round(nll, 6), "epochs": sum(map(len, histories))}
