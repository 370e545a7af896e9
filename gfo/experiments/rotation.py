"""Clean and rotated digits: the MNIST rows of the paper's Table 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from .. import data, models
from ..attach import Attached, attach
from ..data import Splits
from ..ensemble import Ensemble, train_members
from ..fit import LEARNING_RATES, fit
from ..mask_stats import moved
from ..methods import create
from ..metrics import evaluate
from ..noise import derive, generator
from ..predict import sample_logits
from ..profiles import budget
from ..recipe import recipe
from ..registry import EXPERIMENTS
from .job import Job

DIGITS = ("mnist", "digits")  # images of 28×28


@EXPERIMENTS.register("rotation")
class Rotation:
    """784-300-100 MLP; test images rotated by one fixed draw of uniform angles, before
    normalisation. Early stopping on validation; 20 masks; test data touched once, at the end."""

    datasets = DIGITS
    methods = ("random", "gflowout", "gflowout-literal", "id-gflowout")

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        """Everything that defines a run but its seed; plain JSON. One configuration here."""
        work = budget(profile)
        config = {
            "model": "mlp", "hidden": [300, 100], "method": create(method).config,
            "epochs": work.epochs, "patience": work.patience, "batch": work.batch,
            "samples": work.samples, "lr": LEARNING_RATES, "optimizer": "adam",
        }  # fmt: skip
        return [config]

    @staticmethod
    def run(job: Job) -> dict[str, Any]:
        """Train one network, or the members of an ensemble; accuracies in [0, 1], nll in nats."""
        splits = job.splits()
        net, histories = fitted(splits, job)
        return measure(net, splits, job.config["samples"], histories)


def fitted(
    splits: Splits, job: Job, likelihood: Any = None
) -> tuple[Attached | Ensemble, list[pd.DataFrame]]:
    """Train the network of a job, or the members of an ensemble; with a history a member."""
    config = job.config

    def train(seed: int, checkpoint: Path | None) -> tuple[Attached, pd.DataFrame]:
        net = make_net(splits, job.method, seed, config, likelihood)
        return net, fit(
            net, splits.train, splits.valid, epochs=config["epochs"], batch=config["batch"],
            patience=config["patience"], lr=config["lr"], seed=seed,
            samples=config.get("valid_samples", config["samples"]), device=job.device,
            checkpoint=checkpoint, progress=job.progress, **recipe(config, job.device),
        )  # fmt: skip

    members = create(job.method, **config["method"]).members
    return train_members(train, members, job.seed, job.checkpoint)


def make_net(
    splits: Splits, method: str, seed: int, config: dict, likelihood: Any = None
) -> Attached:
    """A fresh network; the backbone's first weights depend on the seed alone, not on the method."""
    torch.manual_seed(derive(seed, "init"))
    model, sites = models.build(config["model"], classes=splits.classes, **models.arguments(config))
    if config.get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    sites, made = config.get("sites", sites), create(method, **config["method"])
    return attach(model, sites, made, splits.train[0][:2], likelihood=likelihood)


def rotated(splits: Splits) -> Tensor:
    """The test images, each turned by its own angle: uniform on 0–360°, the same draw for every
    method and seed."""
    x = splits.test[0]
    angles = 360 * torch.rand(len(x), generator=generator(0, "rotation"))
    return splits.shifted(x, lambda raw: data.rotate(raw, angles))


def measure(
    net: Attached | Ensemble, splits: Splits, samples: int, histories: list[pd.DataFrame]
) -> dict[str, Any]:
    """Scores on clean and rotated test images, nats moved, and where training stopped."""
    x, y = splits.test
    found: dict[str, Any] = {}
    for suffix, images in (("", x), ("_rotated", rotated(splits))):
        probs = net.likelihood.probs(sample_logits(net, images, samples))
        scores = evaluate(probs.mean(0), y)
        scores["accuracy_one_mask"] = evaluate(probs[0], y)["accuracy"]
        found |= {name + suffix: value for name, value in scores.items()}
    if isinstance(net, Attached):
        found |= moved(net, x[:1000], y[:1000])
    best = pd.DataFrame([h.loc[h["valid_nll"].idxmin()] for h in histories]).mean()
    found["epochs"] = sum(map(len, histories))  # of all members
    found["best_epoch"] = round(best["epoch"])
    return found | {
        f"train_{k}": float(best[k]) for k in best.index if k not in ("epoch", "seconds")
    }
