"""Mortality in hospitals that were not trained on: the stand-in for the paper's Table 4."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import gfo
from gfo.evaluate import metrics
from gfo.evaluate.plots import LABELS
from gfo_lab import records
from gfo_lab.experiments import icu_tune as tuning
from gfo_lab.experiments.digits import EVERY
from gfo_lab.experiments.job import Job, declare
from gfo_lab.icu import rare
from gfo_lab.resumable import one_by_one

COHORTS = ({}, {"min_hours": 24})  # all stays; those of a day and more
SPLITS = {"full": 20}
METHODS = ("majority", "logistic", *EVERY)


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Under the settings that the search on other splits chose (full profile), or the methods' own
    arguments (others): one configuration per cohort."""
    full = profile == "full"
    untuned = {"logistic": {"C": 0.03}}
    point = tuning.chosen(method, dataset) if full else untuned.get(method, {})
    cohorts = COHORTS if full else COHORTS[:1]
    return [
        tuning.configuration(method, point, profile, **rules) | {"splits": SPLITS.get(profile, 3)}
        for rules in cohorts
    ]


def run(job: Job) -> dict[str, Any]:
    """Scores by split (see `measure`), a list with one number per split; "counts" is the cohort's
    table of rules. Test hospitals are scored once, at the end."""

    def one(number: int) -> dict[str, Any]:
        splits = tuning.split_of(job, number)
        return sizes(splits) | measure(splits, tuning.predictor(splits, job, number), job)

    rows = one_by_one(range(job.config["splits"]), one, job.partial, job.method, job.progress)
    found: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    if job.method == "majority":  # once is enough
        made = tuning.study(job.dataset, job.root, tuple(sorted(job.config["cohort"].items())))
        found["counts"] = made.counts.to_dict("records")
        found["cohort"] = {f"{k}s": made.stays[k].nunique() for k in ("patient", "hospital")}
        found["cohort"] |= {"stays": len(made.stays), "drugs": len(made.tokens)}
        found["cohort"]["deaths"] = int(made.stays["died"].sum())
    return found


ICU = declare("icu", configs, run, methods=METHODS)


def recorded(dataset: str, min_hours: int = 0, out: Path | None = None) -> pd.DataFrame:
    """The full-profile records of one cohort; no rows where there are none."""
    found = records.read("icu", out, dataset=dataset, profile="full")
    hours = [config["cohort"]["min_hours"] for config in found.get("config", [])]
    return found[[h == min_hours for h in hours]] if len(found) else found


def means(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Means over splits and seeds of list-valued `columns`, one row per method in the order of
    `METHODS`; "seeds" says how many there are."""
    rows = {}
    for method in METHODS:
        own = frame[frame["method"] == method] if len(frame) else frame
        if len(own):
            rows[LABELS[method]] = {c: np.mean(own[c].tolist()) for c in columns}
            rows[LABELS[method]]["seeds"] = str(len(own))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seeds", *columns])


def sizes(splits: gfo.data.Splits) -> dict[str, int]:
    """Stays and deaths by part, and the drugs that are inputs."""
    found = {"inputs": splits.train[0].shape[1]}
    for part in ("train", "valid", "test"):
        y = getattr(splits, part)[1]
        found |= {f"{part}_stays": len(y), f"{part}_deaths": int(y.sum())}
    return found


def measure(splits: gfo.data.Splits, predict, job: Job) -> dict[str, float]:
    """On the test hospitals. Plain names: decisions at threshold 0.5; "_valid": at the threshold of
    highest macro F1 on the validation hospitals. nll (nats), brier and ece of the probabilities as
    trained, and "_freed" from the class weights."""
    (x_valid, y_valid), (x, y) = splits.valid, splits.test
    p, truth = predict(x), y.numpy()
    threshold = rare.best_threshold(predict(x_valid), y_valid.numpy())
    at_valid = rare.decisions(p, truth, threshold)
    found = rare.ranking(p, truth) | rare.decisions(p, truth) | {"threshold_valid": threshold}
    found |= {f"{name}_valid": value for name, value in at_valid.items()}
    weights = tuning.balanced(splits.train[1]) if job.config.get("class_weights") else (1.0, 1.0)
    for suffix, q in (("", p), ("_freed", rare.without_weights(p, weights))):
        scores = metrics.evaluate(torch.from_numpy(np.stack([1 - q, q], 1)), y)
        found |= {f"{name}{suffix}": scores[name] for name in ("nll", "brier", "ece")}
    return found
