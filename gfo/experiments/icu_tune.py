"""ICU mortality: one fit on one hospital split, and the same small search for every method."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from .. import records
from ..data import Splits, icu_synthetic
from ..data.cohort import Cohort, Rules, cohort
from ..data.hospitals import MIN_STAYS, by_hospital, draw_parts
from ..files import write_atomically
from ..fit import LEARNING_RATES
from ..likelihood import Categorical
from ..methods import create
from ..noise import derive
from ..predict import predict
from ..profiles import budget
from ..registry import EXPERIMENTS
from . import tune
from .job import Job
from .rotation import fitted

WARDS = ("eicu-demo", "eicu", icu_synthetic.NAME)
BASELINES = ("majority", "logistic")
LOGISTIC = [{"C": c} for c in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
FIRST = 100  # tuning splits are numbers 100, 101, …; those that are reported 0, 1, …
GROUPS = {"backbone": "lr", "masks": "masks_lr"}  # of `fit`, by their name in a search space


def configuration(method: str, point: dict[str, Any], profile: str, **rules: Any) -> dict[str, Any]:
    """Everything that defines a fit but its seed and split."""
    study = {"cohort": asdict(Rules(**rules)), "min_stays": MIN_STAYS}
    if method == "majority":
        return study | {"model": "majority"}
    if method == "logistic":
        return study | {"model": "logistic", "class_weights": "balanced", **point}
    own = {k: v for k, v in point.items() if k not in ("lr", "masks_lr")}
    work, rates = budget(profile), {k: point[v] for k, v in GROUPS.items() if v in point}
    return study | {
        "model": "icu-mlp", "hidden": [64, 64], "class_weights": "balanced",
        "method": create(method, **own).config, "epochs": work.epochs, "patience": work.patience,
        "batch": work.batch, "samples": work.samples, "lr": LEARNING_RATES | rates,
        "optimizer": "adam",
    }  # fmt: skip


def space(method: str) -> list[dict[str, Any]]:
    """The eight points of a method, those of the search on MNIST; one for the majority."""
    return {"majority": [{}], "logistic": LOGISTIC}.get(method) or tune.space(method)


@functools.lru_cache(maxsize=4)
def study(dataset: str, root: str | Path | None, rules: tuple) -> Cohort:
    """The cohort of a config, read once a process."""
    return cohort(dataset, root, **dict(rules))


def split_of(job: Job, number: int) -> Splits:
    """Split `number` of the config's cohort: the same for every method and seed."""
    made = study(job.dataset, job.root, tuple(sorted(job.config["cohort"].items())))
    return by_hospital(made, draw_parts(made, number), min_stays=job.config["min_stays"])


def balanced(y: Tensor) -> list[float]:
    """Class weights n / (2 n_k): mean 1 over the examples, equal sums for both classes."""
    return (len(y) / (2 * torch.bincount(y, minlength=2))).tolist()


def predictor(splits: Splits, job: Job, number: int) -> Callable[[Tensor], np.ndarray]:
    """Train on one split; returns x (n, V) to the probability of death (n,), as trained, class
    weights included."""
    (x, y), config = splits.train, job.config
    if config["model"] == "majority":
        return lambda x: np.full(len(x), y.double().mean().item())
    if config["model"] == "logistic":
        model = LogisticRegression(C=config["C"], class_weight="balanced", max_iter=5000)
        model.fit(x.numpy(), y.numpy())
        return lambda x: model.predict_proba(x.numpy())[:, 1]
    one = job._replace(
        seed=derive(job.seed, "split", number), checkpoint=None, progress=False,
        config=config | {"inputs": x.shape[1]},
    )  # fmt: skip
    net, _ = fitted(splits, one, Categorical(balanced(y)))
    return lambda x: predict(net, x, config["samples"])[:, 1].cpu().double().numpy()


def one_by_one(job: Job, items: Sequence, work: Callable[[Any], Any]) -> list:
    """[work(item) for item in items], with a bar. Each result (plain JSON) is kept at once beside
    the job's checkpoint, so that a stopped run goes on with the item that it stopped in."""
    file = job.checkpoint and job.checkpoint.with_suffix(".json")
    done = json.loads(file.read_text()) if file and file.exists() else []
    left = items[len(done) :]
    bar = tqdm(left, job.method, len(items), False, initial=len(done), disable=not job.progress)
    for item in bar:
        done.append(work(item))
        if file:
            text = json.dumps(done)
            write_atomically(file, lambda temporary, text=text: temporary.write_text(text))
    return done


def weighted_nll(prob: np.ndarray, y: Tensor, weights: list[float]) -> float:
    """What early stopping watches too: mean −w_y log of the predictive at y, nats."""
    p = torch.from_numpy(np.stack([1 - prob, prob], 1))
    return float(Categorical(weights).predictive_nll(p, y).mean())


@EXPERIMENTS.register("icu-tune")
class IcuTune:
    """One record a method: `tune_nll` holds, for each point of its space, the class-weighted
    negative log-likelihood (nats) of the validation hospitals, mean over splits that are not
    reported. The test hospitals of these splits are not touched; they may test in the reported
    ones, and the reverse, for all methods alike."""

    datasets = WARDS
    baselines = ("logistic",)
    methods = (*baselines, *tune.SPACES)

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        grid = [configuration(method, point, profile) for point in space(method)]
        return [{"grid": grid, "splits": 5, "first": FIRST}]

    @staticmethod
    def run(job: Job) -> dict[str, Any]:
        numbers = range(job.config["first"], job.config["first"] + job.config["splits"])

        def score(config: dict[str, Any]) -> float:
            one = job._replace(config=config)
            return float(np.mean([valid_nll(split_of(one, i), one, i) for i in numbers]))

        return {"tune_nll": one_by_one(job, job.config["grid"], score)}


def valid_nll(splits: Splits, job: Job, number: int) -> float:
    x, y = splits.valid
    return weighted_nll(predictor(splits, job, number)(x), y, balanced(splits.train[1]))


def chosen(method: str, dataset: str, out: Path | None = None) -> dict[str, Any]:
    """The point of lowest `tune_nll` on record. ValueError where the search was not run."""
    searched = tune.SAME_AS.get(method, method)
    if method == "majority":
        return {}
    found = records.read("icu-tune", out, dataset=dataset, method=searched, profile="full")
    (config,) = IcuTune.configs(dataset, searched, "full")
    digest = records.config_hash(config)
    found = found if found.empty else found[found["config_hash"] == digest]
    if found.empty:
        raise ValueError(
            f"{searched} is not tuned on {dataset}: python -m gfo.run icu-tune --dataset {dataset} "
            f"--seed 0 --method {searched} first"
        )
    best = space(searched)[int(np.argmin(found.iloc[0]["tune_nll"]))]
    return best if searched == method else {"lr": best["lr"]}
