"""ICU mortality: one fit on one hospital split, and the same small search for every method."""

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gfo
from gfo.core.noise import derive
from gfo_lab.experiments import search
from gfo_lab.experiments.job import Job, declare
from gfo_lab.experiments.training import fitted
from gfo_lab.experiments.variations import with_configs
from gfo_lab.icu.cohort import Cohort, Rules, cohort
from gfo_lab.icu.hospitals import MIN_STAYS, by_hospital, draw_parts
from gfo_lab.resumable import one_by_one

LINEAR = [{"C": c} for c in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
FIRST = 100  # tuning splits are numbers 100, 101, …; those that are reported 0, 1, …


def configuration(method: str, point: dict[str, Any], profile: str, **rules: Any) -> dict[str, Any]:
    """Everything that defines a fit but its seed and split."""
    study = {"cohort": asdict(Rules(**rules)), "min_stays": MIN_STAYS}
    if method == "majority":
        return study | {"model": "majority"}
    if method == "logistic":
        return study | {"model": "logistic", "class_weights": "balanced", **point}
    net = {"model": "icu-mlp", "hidden": [64, 64], "class_weights": "balanced"}
    return study | net | search.at_point(method, point, profile)


def space(method: str) -> list[dict[str, Any]]:
    """The eight points of a method, those of the search on MNIST; one for the majority."""
    return {"majority": [{}], "logistic": LINEAR}.get(method) or search.grid(search.SPACES[method])


@functools.lru_cache(maxsize=4)
def study(dataset: str, root: str | Path | None, rules: tuple) -> Cohort:
    """The cohort of a config, read once per process."""
    return cohort(dataset, root, **dict(rules))


def split_of(job: Job, number: int) -> gfo.data.Splits:
    """Split `number` of the config's cohort: the same for every method and seed."""
    made = study(job.dataset, job.root, tuple(sorted(job.config["cohort"].items())))
    return by_hospital(made, draw_parts(made, number), min_stays=job.config["min_stays"])


def balanced(y: Tensor) -> list[float]:
    """Class weights n / (2 n_k): mean 1 over the examples, equal sums for both classes."""
    return (len(y) / (2 * torch.bincount(y, minlength=2))).tolist()


def predictor(splits: gfo.data.Splits, job: Job, number: int) -> Callable[[Tensor], np.ndarray]:
    """Train on one split; returns x (n, V) to the probability of death (n,), as trained, class
    weights included."""
    (x, y), config = splits.train, job.config
    if config["model"] == "majority":
        return lambda x: np.full(len(x), y.double().mean().item())
    if config["model"] == "logistic":
        from sklearn.linear_model import LogisticRegression  # here: a second to load

        model = LogisticRegression(C=config["C"], class_weight="balanced", max_iter=5000)
        model.fit(x.numpy(), y.numpy())
        return lambda x: model.predict_proba(x.numpy())[:, 1]
    one = job._replace(
        seed=derive(job.seed, "split", number), checkpoint=None, progress=False,
        config=config | {"inputs": x.shape[1]},
    )  # fmt: skip
    net, _ = fitted(splits, one, gfo.Categorical(balanced(y)))
    return lambda x: gfo.predict(net, x, config["samples"])[:, 1].cpu().double().numpy()


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """One record per method, which holds its whole grid."""
    grid = [configuration(method, point, profile) for point in space(method)]
    return [{"grid": grid, "splits": 5, "first": FIRST}]


def run(job: Job) -> dict[str, Any]:
    """`tune_nll` holds, for each point of the space, the class-weighted negative log-likelihood
    (nats) of the validation hospitals, mean over splits that are not reported. The test hospitals
    of these splits are not touched; they may test in the reported ones, and the reverse, for all
    methods alike."""
    numbers = range(job.config["first"], job.config["first"] + job.config["splits"])

    def score(config: dict[str, Any]) -> float:
        one = job._replace(config=config)
        return float(np.mean([valid_nll(split_of(one, i), one, i) for i in numbers]))

    grid = job.config["grid"]
    return {"tune_nll": one_by_one(grid, score, job.partial, job.method, job.progress)}


ICU_TUNE = declare("icu-tune", configs, run, methods=("logistic", *search.SPACES))


def valid_nll(splits: gfo.data.Splits, job: Job, number: int) -> float:
    """What early stopping watches too: mean −w_y log of the predictive at y, nats."""
    (x, y), likelihood = splits.valid, gfo.Categorical(balanced(splits.train[1]))
    prob = predictor(splits, job, number)(x)
    both = torch.from_numpy(np.stack([1 - prob, prob], 1))
    return float(likelihood.predictive_nll(both, y).mean())


def chosen(method: str, dataset: str, out: Path | None = None) -> dict[str, Any]:
    """The point of lowest `tune_nll` on record. `search.NotTuned` where that was not run."""
    if method == "majority":
        return {}
    searched = search.SAME_AS.get(method, method)
    found = with_configs(
        "icu-tune", configs(dataset, searched, "full"), out,
        dataset=dataset, method=searched, profile="full", seed=0,
    )  # fmt: skip
    if found.empty:
        cure = f"run icu-tune --dataset {dataset} --seed 0 --method {searched} first"
        raise search.NotTuned(f"{searched} is not tuned on {dataset}: python -m gfo_lab {cure}")
    return search.best_point(method, space(searched), found.iloc[0]["tune_nll"])
