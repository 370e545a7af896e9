"""Digits, clean and turned: one trained network, and five ways to look at it."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

import gfo
from gfo.core.noise import generator
from gfo.data.transforms import add_noise, rotated
from gfo.evaluate import masks, metrics, uncertainty
from gfo_lab.experiments import search
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.training import fitted, mean_loss, probabilities

ANGLES = tuple(map(float, range(0, 360, 15)))  # 24 of them
ANGLE_IMAGES = 2000
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)  # standard deviation in units of the pixel range
MASKS = (1, 2, 5, 10, 20, 50)
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
POINTS = 500  # test images that the diagnostics of `masks` look at


def default_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The 784-300-100 MLP under the method's defaults: one configuration."""
    return [search.MLP | base_config(method, profile)]


def run_rotation(job: Job) -> dict[str, Any]:
    """Train one network, or the members of an ensemble. Scores on clean and rotated test images,
    nats moved, and where training stopped; accuracies in [0, 1], nll in nats."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    x, y = splits.test
    found: dict[str, Any] = {}
    for suffix, images in (("", x), ("_rotated", rotated(splits))):
        scores = metrics.scored(probabilities(net, images, job.config["samples"]), y)
        kept = {k: v for k, v in scores.items() if k == "accuracy_one_mask" or "one_mask" not in k}
        found |= {name + suffix: value for name, value in kept.items()}
    if isinstance(net, gfo.Attached):
        found |= masks.policy_divergences(net, x[:1000], y[:1000])
    best = [h.loc[h["valid_nll"].idxmin()] for h in histories]
    found["best_epoch"] = round(pd.DataFrame(best).mean()["epoch"])
    return found | mean_loss(histories, best)


ROTATION = declare("rotation", default_configs, run_rotation)


def tuned_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The configurations that the searches chose under the full and the strong profile, those that
    are declared under the released one, the default one under the others."""
    if profile == "full":
        return [search.chosen(method, dataset, profile)]
    by_rows = {"strong": search.tuned, "released": search.configs}
    return by_rows.get(profile, default_configs)(dataset, method, profile)


def run_table1(job: Job) -> dict[str, Any]:
    """Train and measure; accuracies and shares in [0, 1], nll in nats, 20 masks if not said."""
    splits = job.splits()
    net, histories = fitted(splits, job)
    found = shifts(net, splits, job.config["samples"]) | by_masks(net, splits)
    return found | {"epochs": sum(map(len, histories))}


def blurred(splits: gfo.data.Splits) -> torch.Tensor:
    """The test images under the released code's Gaussian blur of September 2022: a window of 5
    pixels across and 9 down, σ = 5 pixels both ways, edges mirrored."""
    from torchvision.transforms.functional import gaussian_blur  # takes two seconds: not above

    return splits.shifted(splits.test[0], lambda raw: gaussian_blur(raw, [5, 9], [5.0, 5.0]))


def shifts(net: gfo.Attached | gfo.Ensemble, splits: gfo.data.Splits, samples: int) -> dict:
    """Scores on clean, rotated and blurred images, and with doubt by angle and by noise."""
    x, y = splits.test
    found: dict[str, Any] = {}
    doubts = {name: getattr(uncertainty, name) for name in ("entropy", "mutual_information")}

    def by_severity(name: str, severities: tuple, change: Callable, count: int = len(y)) -> None:
        rows = []
        for severity in severities:
            images = splits.shifted(x[:count], lambda raw, s=severity: change(raw, s))
            logits = gfo.sample_logits(net, images, samples)  # (S, B, K)
            doubt = {name: float(score(logits).mean()) for name, score in doubts.items()}
            rows.append(metrics.evaluate(net.likelihood.probs(logits).mean(0), y[:count]) | doubt)
        for metric in ("accuracy", "nll", *doubts):
            found[f"{metric}_by_{name}"] = [row[metric] for row in rows]

    for suffix, images in (("", x), ("_rotated", rotated(splits)), ("_blurred", blurred(splits))):
        single = probabilities(net, images, samples)
        found |= {k + suffix: v for k, v in metrics.scored(single, y).items()}
        found["selective" + suffix] = metrics.selective_accuracy(single.mean(0), y, COVERAGES)
        found["reliability" + suffix] = metrics.reliability(single.mean(0), y)
    by_severity("angle", ANGLES, gfo.data.rotate, ANGLE_IMAGES)
    by_severity("noise", NOISE, add_noise)
    return found


def by_masks(net: gfo.Attached | gfo.Ensemble, splits: gfo.data.Splits) -> dict[str, list[float]]:
    """Clean scores against the number of averaged masks."""
    x, y = splits.test
    single = probabilities(net, x, max(MASKS))
    scores = [metrics.evaluate(single[:count].mean(0), y) for count in MASKS]
    return {f"{m}_by_masks": [s[m] for s in scores] for m in ("accuracy", "nll")}


TABLE1 = declare("table1", tuned_configs, run_table1)
EVERY = TABLE1.methods


def masked_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """As `rotation`; none for a method that draws no masks."""
    draws = gfo.methods.create(method).stochastic
    return default_configs(dataset, method, profile) if draws else []


def run_masks(job: Job) -> dict[str, Any]:
    """Train as `rotation` does, then look at the masks of the first 500 test images, labels known:
    means over points, or a list over sites; nats where not said."""
    splits, seed = job.splits(), job.seed
    net, _ = fitted(splits, job)
    x, y = (part[:POINTS] for part in splits.test)
    noise = torch.randn(x.shape, generator=generator(seed, "pixel noise"))
    noisy = splits.shifted(x, lambda raw: (raw + 0.5 * noise).clamp(0, 1))
    found: dict[str, Any] = {"points": len(y), **masks.policy_divergences(net, x, y)}
    for name, images in {"clean": x, "rotated": rotated(splits)[:POINTS], "noisy": noisy}.items():
        for measure in (masks.distances, masks.predictive_nll):
            figures = measure(net, images, y, seed=seed)
            found |= {f"{key}_{name}": value for key, value in figures.items()}
    found["dependence"] = masks.layer_dependence(net, x, y, seed=seed)
    if net.method.q is not None:
        # one posterior for the data set is that of the data it was trained on
        look, count = (splits.train, 32) if net.method.shared else ((x, y), 256)
        found |= masks.correlations(net, *look, masks=count, seed=seed)
        table = gfo.diagnose(net, *look, samples=count)[["value", "error", "flag"]]
        found["diagnose"] = table.T.to_dict()
    return found


MASKS_LOOKED_AT = declare("masks", masked_configs, run_masks)
