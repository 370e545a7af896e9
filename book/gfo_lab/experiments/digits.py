"""Digits, clean and turned: one trained network, and five ways to look at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gfo import data
from gfo.audit.diagnose import diagnose
from gfo.core.attached import Attached
from gfo.core.ensemble import Ensemble
from gfo.core.noise import generator
from gfo.core.predict import sample_logits
from gfo.data import Splits
from gfo.evaluate import uncertainty
from gfo.evaluate.masks import (
    correlations,
    distances,
    layer_dependence,
    policy_divergences,
    predictive_nll,
)
from gfo.evaluate.metrics import evaluate, reliability, selective_accuracy
from gfo.methods import create
from gfo_lab.experiments import search
from gfo_lab.experiments.job import Experiment, Job, base_config, register
from gfo_lab.experiments.training import fitted, mean_loss, probabilities, scored

DIGITS = ("mnist", "digits")  # images of 28×28
ANGLES = tuple(map(float, range(0, 360, 15)))  # 24 of them
ANGLE_IMAGES = 2000
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)  # standard deviation in units of the pixel range
MASKS = (1, 2, 5, 10, 20, 50)
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POINTS = 500  # test images that the diagnostics of `masks` look at
MASKED = ("random", "gflowout", "gflowout-literal", "id-gflowout")
EVERY = (
    "deterministic", "random", "mc-improved", "concrete", "contextual", "ensemble", "gflowout",
    "gflowout-literal", "id-gflowout",
)  # fmt: skip


def default_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The 784-300-100 MLP under the method's defaults: one configuration."""
    return [search.MLP | base_config(method, profile)]


def rotated(splits: Splits) -> Tensor:
    """The test images, each turned by its own angle: uniform on 0–360°, the same draw for every
    method and seed."""
    x = splits.test[0]
    angles = 360 * torch.rand(len(x), generator=generator(0, "rotation"))
    return splits.shifted(x, lambda raw: data.rotate(raw, angles))


def add_noise(raw: Tensor, sigma: float) -> Tensor:
    """Gaussian pixel noise, the same draw for every method and severity, clipped to [0, 1]."""
    noise = torch.randn(raw.shape, generator=generator(0, "pixel noise"))
    return (raw + sigma * noise).clamp(0, 1)


def run_rotation(job: Job) -> dict[str, Any]:
    """Train one network, or the members of an ensemble. Scores on clean and rotated test images,
    nats moved, and where training stopped; accuracies in [0, 1], nll in nats."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    x, y = splits.test
    found: dict[str, Any] = {}
    for suffix, images in (("", x), ("_rotated", rotated(splits))):
        scores = scored(probabilities(net, images, job.config["samples"]), y)
        kept = {k: v for k, v in scores.items() if k == "accuracy_one_mask" or "one_mask" not in k}
        found |= {name + suffix: value for name, value in kept.items()}
    if isinstance(net, Attached):
        found |= policy_divergences(net, x[:1000], y[:1000])
    best = [h.loc[h["valid_nll"].idxmin()] for h in histories]
    found["best_epoch"] = round(pd.DataFrame(best).mean()["epoch"])
    return found | mean_loss(histories, best)


ROTATION = register(
    Experiment(
        name="rotation",
        about="MLP under each method's defaults; test images turned by uniform angles",
        datasets=DIGITS,
        methods=MASKED,
        configs=default_configs,
        run=run_rotation,
        columns=("accuracy", "accuracy_rotated", "nll", "nll_rotated", "ece"),
    )
)


def tuned_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The tuned configuration under the full profile, the default one under the others."""
    if profile == "full":
        return [search.chosen(method, dataset, profile)]
    return default_configs(dataset, method, profile)


def run_table1(job: Job) -> dict[str, Any]:
    """Train and measure; accuracies and shares in [0, 1], nll in nats, 20 masks if not said."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    found = shifts(net, splits, job.config["samples"]) | by_masks(net, splits)
    return found | {"epochs": sum(map(len, histories))}


def shifts(net: Attached | Ensemble, splits: Splits, samples: int) -> dict[str, Any]:
    """Scores on clean and rotated images, and by angle and noise."""
    x, y = splits.test
    found: dict[str, Any] = {}
    for suffix, images in (("", x), ("_rotated", rotated(splits))):
        single = probabilities(net, images, samples)
        found |= {k + suffix: v for k, v in scored(single, y).items()}
        found["selective" + suffix] = selective_accuracy(single.mean(0), y, COVERAGES)
        found["reliability" + suffix] = reliability(single.mean(0), y)
    found |= by_severity(net, splits, "angle", ANGLES, data.rotate, samples, ANGLE_IMAGES)
    return found | by_severity(net, splits, "noise", NOISE, add_noise, samples, len(y))


def by_severity(
    net: Attached | Ensemble,
    splits: Splits,
    name: str,
    severities: tuple[float, ...],
    change: Callable[[Tensor, float], Tensor],
    samples: int,
    count: int,
) -> dict[str, list[float]]:
    """Scores and doubt on the first `count` test images under each severity of a change."""
    x, y = (part[:count] for part in splits.test)
    rows = []
    for severity in severities:
        images = splits.shifted(x, lambda raw, s=severity: change(raw, s))
        logits = sample_logits(net, images, samples)  # (S, B, K)
        doubt = {
            "entropy": float(uncertainty.entropy(logits).mean()),
            "mutual_information": float(uncertainty.mutual_information(logits).mean()),
        }
        rows.append(evaluate(net.likelihood.probs(logits).mean(0), y) | doubt)
    metrics = ("accuracy", "nll", "entropy", "mutual_information")
    return {f"{metric}_by_{name}": [row[metric] for row in rows] for metric in metrics}


def by_masks(net: Attached | Ensemble, splits: Splits) -> dict[str, list[float]]:
    """Clean scores against the number of averaged masks."""
    x, y = splits.test
    single = probabilities(net, x, max(MASKS))
    scores = [evaluate(single[:count].mean(0), y) for count in MASKS]
    return {f"{m}_by_masks": [s[m] for s in scores] for m in ("accuracy", "nll")}


TABLE1 = register(
    Experiment(
        name="table1",
        about="Table 1's MNIST rows and beyond: every method tuned; angles, noise, reliability",
        datasets=DIGITS,
        methods=EVERY,
        configs=tuned_configs,
        run=run_table1,
        columns=("accuracy", "accuracy_rotated", "nll", "nll_rotated", "ece"),
    )
)


def masked_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """As `rotation`; ValueError for a method that draws no masks."""
    if not create(method).stochastic:
        raise ValueError(f"{method} draws no masks: there is nothing to look at")
    return default_configs(dataset, method, profile)


def run_masks(job: Job) -> dict[str, Any]:
    """Train as `rotation` does, then look at the masks of the first 500 test images, labels known:
    means over points, or a list over sites; nats where not said."""
    splits, seed = job.splits(), job.seed
    net, _ = fitted(splits, job)
    x, y = (part[:POINTS] for part in splits.test)
    noise = torch.randn(x.shape, generator=generator(seed, "pixel noise"))
    noisy = splits.shifted(x, lambda raw: (raw + 0.5 * noise).clamp(0, 1))
    found: dict[str, Any] = {"points": len(y), **policy_divergences(net, x, y)}
    for name, images in {"clean": x, "rotated": rotated(splits)[:POINTS], "noisy": noisy}.items():
        for measure in (distances, predictive_nll):
            figures = measure(net, images, y, seed=seed)
            found |= {f"{key}_{name}": value for key, value in figures.items()}
    found["dependence"] = layer_dependence(net, x, y, seed=seed)
    if net.method.q is not None:
        # one posterior for the data set is that of the data it was trained on
        look, masks = (splits.train, 32) if net.method.shared else ((x, y), 256)
        found |= correlations(net, *look, masks=masks, seed=seed)
        table = diagnose(net, *look, samples=masks)[["value", "error", "flag"]]
        found["diagnose"] = table.T.to_dict()
    return found


MASKS_LOOKED_AT = register(
    Experiment(
        name="masks",
        about="what the masks of `rotation`'s networks do: A.2, Figure 6, nats, bounds",
        datasets=DIGITS,
        methods=MASKED,
        configs=masked_configs,
        run=run_masks,
        columns=("nll_p_clean", "nll_q_clean", "correlation_data"),
    )
)
