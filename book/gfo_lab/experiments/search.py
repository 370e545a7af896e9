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
    tried = [configuration(searched, point, "tune") for point in space(searched)]
    nll = on_record(tried, "tune_nll", "tune", dataset, searched, "tune", out)
    return configuration(method, best_point(method, space(searched), nll), profile)


def on_record(configs: list[dict], metric: str, experiment: str, *which: Any) -> list[float]:
    """What a search found under each config, the mean over its seeds; which: dataset, method and
    profile, and the folder of records. ValueError where the search is not complete."""
    dataset, method, profile, *out = which
    found = records.read(experiment, *out, dataset=dataset, method=method, profile=profile)
    by_hash = {} if found.empty else found.groupby("config_hash")[metric].mean().to_dict()
    hashes = [records.config_hash(config) for config in configs]
    if not set(hashes) <= set(by_hash):
        raise ValueError(
            f"{method} is not tuned on {dataset}: python -m gfo_lab run {experiment} --profile "
            f"{profile} --dataset {dataset} --method {method} first, into {records.RESULTS}"
        )
    return [by_hash[digest] for digest in hashes]


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
