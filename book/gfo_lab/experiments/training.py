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
            net, splits.train, splits.valid, patience=config["patience"],
            samples=config.get("valid_samples", config["samples"]),
            **job.how_to_fit(seed, checkpoint), **recipe(config, job.device),
        )  # fmt: skip

    return train_members(train, job)


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
    train: Callable[[int, Path | None], tuple[gfo.Attached, Any]], job: Job
) -> tuple[gfo.Attached | gfo.Ensemble, list[Any]]:
    """One network, or an ensemble of several that differ in their seed alone.

    Args:
        train: `train(seed, checkpoint)` gives a trained network and its history. A single one gets
            the job's own; each member of an ensemble gets a seed and a file derived from them.
        job: Its method says how many members there are.

    Returns:
        The network or the ensemble, and one history per member.
    """
    members, file = gfo.methods.create(job.method, **job.config["method"]).members, job.checkpoint
    if members == 1:
        net, history = train(job.seed, file)
        return net, [history]
    seeds = [derive(job.seed, "member", k) for k in range(members)]
    files = [file and file.with_suffix(f".{k}.pt") for k in range(members)]
    nets, histories = zip(*map(train, seeds, files), strict=True)
    return gfo.Ensemble(nets), list(histories)
