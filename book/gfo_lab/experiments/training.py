"""From a job to trained networks: the same backbone for every method of a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gfo import models
from gfo.core.attach import attach
from gfo.core.attached import Attached
from gfo.core.ensemble import Ensemble
from gfo.core.noise import derive
from gfo.core.predict import sample_logits
from gfo.data import Splits
from gfo.evaluate.metrics import evaluate
from gfo.methods import create
from gfo.train.fit import fit
from gfo.train.recipe import recipe
from gfo_lab.experiments.job import Job


def train_members(
    train: Callable[[int, Path | None], tuple[Attached, pd.DataFrame]],
    members: int,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[Attached | Ensemble, list[pd.DataFrame]]:
    """One run of an experiment: `train(seed, checkpoint) -> (net, history)` itself, or an ensemble
    of `members` of them, each with a seed and a checkpoint of its own. Returns net and histories.
    """
    if members == 1:
        net, history = train(seed, checkpoint)
        return net, [history]
    seeds = [derive(seed, "member", k) for k in range(members)]
    files = [checkpoint and checkpoint.with_suffix(f".{k}.pt") for k in range(members)]
    nets, histories = zip(*map(train, seeds, files), strict=True)
    return Ensemble(nets), list(histories)


def fitted(
    splits: Splits, job: Job, likelihood: Any = None
) -> tuple[Attached | Ensemble, list[pd.DataFrame]]:
    """Train the network of a job, or the members of an ensemble; with one history per member."""
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
    splits: Splits, method: str, seed: int, config: dict[str, Any], likelihood: Any = None
) -> Attached:
    """A fresh network; the backbone's first weights depend on the seed alone, not on the method."""
    torch.manual_seed(derive(seed, "init"))
    model, sites = models.build(config["model"], classes=splits.classes, **models.arguments(config))
    if config.get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    sites, made = config.get("sites", sites), create(method, **config["method"])
    return attach(model, sites, made, splits.train[0][:2], likelihood=likelihood)


def probabilities(net: Attached | Ensemble, x: Tensor, samples: int, **how: Any) -> Tensor:
    """(S, B, K) class probabilities, each under one mask."""
    return net.likelihood.probs(sample_logits(net, x, samples, **how))


def scored(single: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of the mean of `single` (S, B, K), and of its first mask alone under "_one_mask"."""
    one = {f"{name}_one_mask": value for name, value in evaluate(single[0], y).items()}
    return evaluate(single.mean(0), y) | one


def mean_loss(histories: list[pd.DataFrame], rows: list[pd.Series]) -> dict[str, float]:
    """What training said at one row of each member's history, mean over members, and how long it
    was: "epochs" of all members."""
    found = pd.DataFrame(rows).mean()
    parts = {f"train_{k}": float(found[k]) for k in found.index if k not in ("epoch", "seconds")}
    return {"epochs": sum(map(len, histories))} | parts
