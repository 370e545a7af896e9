"""The same small search for every method: eight configurations, the same budget, chosen by negative
log-likelihood on data for tuning. Test data are never touched, but for those of other seeds on
digits, which each seed splits anew: a toy.

The first search, one seed of 12 epochs, is that of profile "tune"; `SPACES` holds its axes. The
second, three seeds at full length, is that of profile "search" and goes by the rows of a table:
`ROWS` holds their axes by profile. A method may have several rows; a config says of which it is.
"""

from itertools import chain, product
from pathlib import Path
from typing import Any

from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo.train.fit import predictive_nll
from gfo_lab import declared, records
from gfo_lab.experiments.job import Job, base_config, declare, method_config
from gfo_lab.experiments.training import fitted
from gfo_lab.profiles import budget

MLP = {"model": "mlp", "hidden": [300, 100]}  # the paper's on MNIST
ABOUT = declared(__file__)
SPACES: dict[str, dict[str, list]] = Registry("method of the search", ABOUT["spaces"])
ROWS: dict[str, dict[str, dict[str, list]]] = ABOUT["rows"]
SAME_AS = {"ensemble": "deterministic"}  # a member is that network
TUNED = "tune_nll", "tune"
GROUPS = {"backbone": "lr", "masks": "masks_lr"}  # of `fit`, by their name in a search space


class NotTuned(ValueError):
    """The search that a configuration is chosen by is not complete on record."""


def grid(axes: dict[str, list]) -> list[dict[str, Any]]:
    """All points of a space."""
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
    """The config, under the budget of `profile`, of the first search's best point; `NotTuned` as of
    `on_record`."""
    searched = SAME_AS.get(method, method)
    tried = configs(dataset, searched, "tune")
    nll = on_record(tried, *TUNED, dataset, searched, "tune", out)
    return configuration(method, best_point(method, grid(SPACES[searched]), nll), profile)


def on_record(configs: list[dict], metric: str, experiment: str, *which: Any) -> list[float]:
    """What a search found under each config, the mean over its seeds; which: dataset, method and
    profile, and the folder of records.

    Raises `NotTuned` where the search is not complete: a config lacks a seed of its profile.
    """
    dataset, method, profile, *out = which
    found = records.read(experiment, *out, dataset=dataset, method=method, profile=profile)
    found = found[found["seed"].isin(budget(profile).seeds)] if len(found) else found
    runs = dict(list(found.groupby("config_hash")[metric])) if len(found) else {}
    seeds = [runs.get(records.config_hash(config), []) for config in configs]
    if min(map(len, seeds)) < len(budget(profile).seeds):
        cure = f"{experiment} --profile {profile} --dataset {dataset} --method {method} first"
        cure = f"python -m gfo_lab run {cure}, into {records.RESULTS}"
        raise NotTuned(f"{method} is not tuned on {dataset}: {cure}")
    return [sum(each) / len(each) for each in seeds]


def row_configs(method: str, rows: str) -> dict[str, list[dict[str, Any]]]:
    """The configs of each row of a method in `ROWS[rows]`, one per point, under the budget of the
    profile `rows` and with what else it asks for; none where the method has no row."""
    also = ABOUT["also"].get(rows, {})
    return {
        row: [configuration(method, point, rows) | also | {"row": row} for point in grid(axes)]
        for row, axes in ROWS[rows].items()
        if ABOUT["methods"].get(row, row) == method
    }


def tuned(dataset: str, method: str, profile: str, out: Path | None = None) -> list[dict[str, Any]]:
    """Each row of a method at the best point of the second search, under that search's budget,
    which is that of `profile` too; ValueError as of `on_record`. An ensemble is a row of its own.
    """
    own = {"row": method, "method": method_config(method)} if method in SAME_AS else {}
    method = SAME_AS.get(method, method)
    return [
        best_point(method, tried, on_record(tried, *TUNED, dataset, method, "search", out)) | own
        for tried in row_configs(method, "search").values()
    ]


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """One configuration per point, of every row where the profile has rows."""
    if profile in ROWS:
        return list(chain(*row_configs(method, profile).values()))
    return [configuration(method, point, profile) for point in grid(SPACES[method])]


def run(job: Job) -> dict[str, Any]:
    """Train, and score on the tuning split; `tune_nll` in nats decides."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    nll = predictive_nll(net, splits.tune, job.config["samples"])
    return {"tune_nll": round(nll, 6), "epochs": sum(map(len, histories))}


TUNE = declare("tune", configs, run, methods=SPACES)
