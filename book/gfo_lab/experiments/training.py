"""From a job to trained networks: the same backbone for every method of a seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import gfo
from gfo.core.noise import derive
from gfo.train.fit import fit
from gfo_lab.experiments.job import Job
from gfo_lab.recipe import make_net, recipe


def fitted(
    splits: gfo.data.Splits, job: Job, likelihood: Any = None
) -> tuple[gfo.Attached | gfo.Ensemble, list[pd.DataFrame]]:
    """Train the network of a job, or the members of an ensemble; with one history per member."""
    config = job.config

    def train(seed: int, checkpoint: Path | None) -> tuple[gfo.Attached, pd.DataFrame]:
        net = make_net(splits, job.method, seed, config, likelihood)
        return net, fit(
            net, splits.train, splits.valid, epochs=config["epochs"], batch=config["batch"],
            patience=config["patience"], lr=config["lr"], seed=seed,
            samples=config.get("valid_samples", config["samples"]), device=job.device,
            checkpoint=checkpoint, progress=job.progress, **recipe(config, job.device),
        )  # fmt: skip

    members = gfo.methods.create(job.method, **config["method"]).members
    return train_members(train, members, job.seed, job.checkpoint)


def probabilities(net: gfo.Attached | gfo.Ensemble, x: Tensor, samples: int, **how: Any) -> Tensor:
    """(S, B, K) class probabilities, each under one mask."""
    return net.likelihood.probs(gfo.sample_logits(net, x, samples, **how))


def mean_loss(histories: list[pd.DataFrame], rows: list[pd.Series]) -> dict[str, float]:
    """What training said at one row of each member's history, mean over members, and how long it
    was: "epochs" of all members."""
    found = pd.DataFrame(rows).mean()
    parts = {f"train_{k}": float(found[k]) for k in found.index if k not in ("epoch", "seconds")}
    return {"epochs": sum(map(len, histories))} | parts


def train_members(
    train: Callable[[int, Path | None], tuple[gfo.Attached, Any]],
    members: int,
    seed: int,
    checkpoint: Path | None = None,
) -> tuple[gfo.Attached | gfo.Ensemble, list[Any]]:
    """One network, or an ensemble of several that differ in their seed alone.

    Args:
        train: `train(seed, checkpoint)` gives a trained network and its history.
        members: How many; 1 calls `train` with `seed` and `checkpoint` themselves.
        seed: From which each member derives a seed of its own.
        checkpoint: From which each member derives a file of its own.

    Returns:
        The network or the ensemble, and one history per member.
    """
    if members == 1:
        net, history = train(seed, checkpoint)
        return net, [history]
    seeds = [derive(seed, "member", k) for k in range(members)]
    files = [checkpoint and checkpoint.with_suffix(f".{k}.pt") for k in range(members)]
    nets, histories = zip(*map(train, seeds, files), strict=True)
    return gfo.Ensemble(nets), list(histories)
