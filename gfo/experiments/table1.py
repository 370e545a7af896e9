"""Table 1's MNIST rows and beyond, for every method under its tuned configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import data, uncertainty
from ..data import Splits
from ..metrics import evaluate, reliability, selective_accuracy
from ..noise import generator
from ..predict import sample_logits
from ..registry import EXPERIMENTS
from .job import Job
from .rotation import DIGITS, Rotation, fitted, rotated
from .tune import chosen

ANGLES = tuple(range(0, 360, 15))  # 24 of them
ANGLE_IMAGES = 2000
NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)  # standard deviation in units of the pixel range
MASKS = (1, 2, 5, 10, 20, 50)
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@EXPERIMENTS.register("table1")
class Table1:
    """Clean and rotated scores, scores and uncertainty by angle and by severity of Gaussian pixel
    noise, selective accuracy, scores by number of masks, reliability. One configuration a method:
    the tuned one under the full profile, the default one under the others."""

    datasets = DIGITS
    methods = (
        "deterministic", "random", "mc-improved", "concrete", "contextual", "ensemble", "gflowout",
        "gflowout-literal", "id-gflowout",
    )  # fmt: skip

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        if profile == "full":
            return [chosen(method, dataset, profile)]
        return Rotation.configs(dataset, method, profile)

    @staticmethod
    def run(job: Job) -> dict[str, Any]:
        """Train and measure; accuracies and shares in [0, 1], nll in nats, 20 masks if not said."""
        splits = job.splits()
        net, histories = fitted(splits, job)
        found = shifts(net, splits, job.config["samples"]) | by_masks(net, splits)
        return found | {"epochs": sum(map(len, histories))}


def probabilities(net, x: Tensor, samples: int) -> Tensor:
    """(S, B, K) class probabilities under single masks."""
    return net.likelihood.probs(sample_logits(net, x, samples))


def shifts(net, splits: Splits, samples: int) -> dict[str, Any]:
    """Scores on clean and rotated images, and by angle and noise."""
    x, y = splits.test
    found: dict[str, Any] = {}
    for suffix, images in (("", x), ("_rotated", rotated(splits))):
        single = probabilities(net, images, samples)
        probs = single.mean(0)
        one = {f"{k}_one_mask": v for k, v in evaluate(single[0], y).items()}
        found |= {k + suffix: v for k, v in (evaluate(probs, y) | one).items()}
        found["selective" + suffix] = selective_accuracy(probs, y, COVERAGES)
        found["reliability" + suffix] = reliability(probs, y)
    for name, severities, change in (
        ("angle", ANGLES, lambda raw, angle: data.rotate(raw, float(angle))),
        ("noise", NOISE, add_noise),
    ):
        count = ANGLE_IMAGES if name == "angle" else len(y)
        scores = []
        for severity in severities:
            images = splits.shifted(x[:count], lambda raw, s=severity, f=change: f(raw, s))
            logits = sample_logits(net, images, samples)  # (S, B, K)
            probs = net.likelihood.probs(logits).mean(0)
            doubt = {
                "entropy": float(uncertainty.entropy(logits).mean()),
                "mutual_information": float(uncertainty.mutual_information(logits).mean()),
            }
            scores.append(evaluate(probs, y[:count]) | doubt)
        for metric in ("accuracy", "nll", "entropy", "mutual_information"):
            found[f"{metric}_by_{name}"] = [s[metric] for s in scores]
    return found


def add_noise(raw: Tensor, sigma: float) -> Tensor:
    """Gaussian pixel noise, the same draw for every method and severity, clipped to [0, 1]."""
    noise = torch.randn(raw.shape, generator=generator(0, "pixel noise"))
    return (raw + sigma * noise).clamp(0, 1)


def by_masks(net, splits: Splits) -> dict[str, list[float]]:
    """Clean scores against the number of averaged masks."""
    x, y = splits.test
    single = probabilities(net, x, max(MASKS))
    scores = [evaluate(single[:count].mean(0), y) for count in MASKS]
    return {f"{m}_by_masks": [s[m] for s in scores] for m in ("accuracy", "nll")}
