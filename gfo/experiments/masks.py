"""What the masks of a full-size network do (the paper's A.2, Figure 6): the models of the
rotation experiment, trained again from the same seed, and looked at."""

from __future__ import annotations

from typing import Any

import torch

from ..diagnose import diagnose
from ..mask_analysis import correlations, distances, layer_dependence, predictive_nll
from ..mask_stats import moved
from ..methods import create
from ..noise import generator
from ..registry import EXPERIMENTS
from .job import Job
from .rotation import DIGITS, Rotation, fitted, rotated

POINTS = 500  # test images that the diagnostics look at


@EXPERIMENTS.register("masks")
class Masks:
    """Correlation of probability and reward, distances between masks, nats moved and what they
    buy, importance-weighted bounds; on the first 500 test images, labels known."""

    datasets = DIGITS
    methods = ("random", "gflowout", "gflowout-literal", "id-gflowout")

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        if not create(method).stochastic:
            raise ValueError(f"{method} draws no masks: there is nothing to look at")
        return Rotation.configs(dataset, method, profile)

    @staticmethod
    def run(job: Job) -> dict[str, Any]:
        """Train as `rotation` does, then measure. Entries are means over points, or a list a site;
        nats where not said."""
        splits, seed = job.splits(), job.seed
        net, _ = fitted(splits, job)
        x, y = (part[:POINTS] for part in splits.test)
        turned = rotated(splits)[:POINTS]
        noise = torch.randn(x.shape, generator=generator(seed, "pixel noise"))
        noisy = splits.shifted(x, lambda raw: (raw + 0.5 * noise).clamp(0, 1))
        shifts = {"clean": x, "rotated": turned, "noisy": noisy}
        found: dict[str, Any] = {"points": len(y), **moved(net, x, y)}
        for name, images in shifts.items():
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
