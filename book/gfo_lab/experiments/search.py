"""The same small search for every method: eight configurations, the same budget, chosen by negative
log-likelihood on data for tuning. Test data are never touched."""

from itertools import product
from pathlib import Path
from typing import Any

from gfo.core.rates import LEARNING_RATES
from gfo.train.fit import predictive_nll
from gfo_lab import declared, records
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.training import fitted

MLP = {"model": "mlp", "hidden": [300, 100]}  # the paper's on MNIST
SPACES: dict[str, dict[str, list]] = declared(__file__)
SAME_AS = {"ensemble": "deterministic"}  # a member is that network
GROUPS = {"backbone": "lr", "masks": "masks_lr"}  # of `fit`, by their name in a search space


def space(method: str) -> list[dict[str, Any]]:
    """The eight points of a method's search space."""
    if method not in SPACES:
        raise ValueError(f"{method} has no search space: add a line to SPACES in {__name__}")
    axes = SPACES[method]
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def at_point(method: str, point: dict[str, Any], profile: str) -> dict[str, Any]:
    """What every config of one point of a method's space holds, under the budget of `profile`."""
    own = {k: v for k, v in point.items() if k not in GROUPS.values()}
    rates = {group: point[name] for group, name in GROUPS.items() if name in point}
    return base_config(method, profile, **own) | {"lr": LEARNING_RATES | rates}


def best_point(method: str, points: list[dict[str, Any]], nll: list[float]) -> dict[str, Any]:
    """The point of lowest `nll`; an ensemble takes over its members' learning rate alone."""
    best = points[min(range(len(points)), key=nll.__getitem__)]
    return {"lr": best["lr"]} if method in SAME_AS else best


def configuration(method: str, point: dict[str, Any], profile: str) -> dict[str, Any]:
    """The full config of one point of a method's space on images of digits."""
    return MLP | at_point(method, point, profile)


def chosen(method: str, dataset: str, profile: str, out: Path | None = None) -> dict[str, Any]:
    """The config, under the budget of `profile`, of the point with the lowest tuning NLL on record.

    Raises ValueError where the search is not complete.
    """
    searched = SAME_AS.get(method, method)
    found = records.read("tune", out, dataset=dataset, method=searched, profile="tune")
    # the mean over seeds, where the search was run on several
    by_hash = {} if found.empty else found.groupby("config_hash")["tune_nll"].mean().to_dict()
    points = space(searched)
    hashes = [records.config_hash(configuration(searched, point, "tune")) for point in points]
    if not set(hashes) <= set(by_hash):
        raise ValueError(
            f"{searched} is not tuned on {dataset}: python -m gfo_lab run tune --profile tune "
            f"--dataset {dataset} --method {searched} first, into {records.RESULTS}"
        )
    best = best_point(method, points, [by_hash[digest] for digest in hashes])
    return configuration(method, best, profile)


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """One configuration per point."""
    return [configuration(method, point, profile) for point in space(method)]


def run(job: Job) -> dict[str, Any]:
    """Train, and score on the tuning split; `tune_nll` in nats decides."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    nll = predictive_nll(net, splits.tune, job.config["samples"])
    return {"tune_nll": round(nll, 6), "epochs": sum(map(len, histories))}


TUNE = declare("tune", configs, run, methods=SPACES)
