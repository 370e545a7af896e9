"""From a job to trained networks: the same backbone for every method of a seed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor, contiguous_format
from torch.utils.data import DataLoader, TensorDataset

import gfo
from gfo.core.noise import derive, generator
from gfo.core.registry import Registry
from gfo.train.fit import fit
from gfo_lab.experiments.job import Job
from gfo_lab.plugins import optional
from gfo_lab.recipe import make_net, recipe


def fitted(
    splits: gfo.data.Splits, job: Job, likelihood: Any = None
) -> tuple[gfo.Attached | gfo.Ensemble, list[pd.DataFrame]]:
    """Train the network of a job, or the members of an ensemble; with one history per member."""
    config = job.config
    make = partial(make_net, splits, job.method, config=config, likelihood=likelihood)
    how = recipe(config, job.device) | {"patience": config["patience"]}
    how["samples"] = config.get("valid_samples", config["samples"])
    return train_members(make, job, splits.train, splits.valid, **how)


def laplace(splits: gfo.data.Splits, job: Job) -> tuple[gfo.Ensemble, list[pd.DataFrame]]:
    """As `fitted`, then a network per mask of the test, its last layer drawn from laplace-torch's
    posterior under the config's "precision" of the prior. ValueError, before the training, where
    that is not installed."""
    package = optional("laplace", "laplace")
    net, histories = fitted(splits, job)
    net.to(memory_format=contiguous_format)  # the package flattens no other
    how = {"prior_precision": job.config["precision"]}
    posterior = package.Laplace(net, "classification", "last_layer", "full", **how)
    posterior.fit(DataLoader(TensorDataset(*splits.train), 500))
    weights = posterior.sample(job.config["samples"], generator(job.seed, "laplace"))
    return gfo.Ensemble([gfo.train.with_weights(net, w, "model.fc") for w in weights]), histories


def swag(splits: gfo.data.Splits, job: Job) -> tuple[gfo.Ensemble, list[pd.DataFrame]]:
    """As `fitted` for half of the epochs. The others, at the config's constant "rate", end in an
    iterate each, and `gfo.train.Swag` draws a network per mask of the test. A stopped run does that
    half again, since no checkpoint holds iterates."""
    config, half = job.config, job.config["epochs"] // 2
    net, histories = fitted(splits, job._replace(config=config | {"epochs": half}))
    posterior, rates = gfo.train.Swag(net), {"lr": config["lr"] | {"backbone": config["rate"]}}
    how = job.how_to_fit(derive(job.seed, "swag"), None, epochs=config["epochs"] - half, **rates)
    how |= recipe(config | rates | {"schedule": None}, job.device)
    histories.append(fit(net, splits.train, on_epoch=posterior.collect, **how))
    # not `posterior.ensemble`: `cifar` takes BatchNorm's statistics anew, for every row alike
    weights = [posterior.draw(job.seed, k) for k in range(config["samples"])]
    return gfo.Ensemble([gfo.train.with_weights(net, w) for w in weights]), histories


# How a config's "weights" asks for networks: the trained ones, or drawn around one.
WAYS = Registry("posterior over weights", {"none": fitted, "laplace": laplace, "swag": swag})


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
    make: Callable[[int], gfo.Attached], job: Job, *data: Any, **how: Any
) -> tuple[gfo.Attached | gfo.Ensemble, list[pd.DataFrame]]:
    """One trained network, or an ensemble of several that differ in their seed alone.

    Args:
        make: `make(seed)` gives a fresh network. A single one gets the job's own seed, and its
            checkpoint; each member of an ensemble gets a seed and a file derived from them.
        job: Its method says how many members there are, its config how to fit them.
        *data: To train on, and to validate on, as `gfo.fit` takes them.
        **how: Further arguments of `gfo.fit`.

    Returns:
        The network or the ensemble, and one history per member.
    """
    members, file = gfo.methods.create(job.method, **job.config["method"]).members, job.checkpoint
    seeds, files = [job.seed], [file]
    if members > 1:
        seeds = [derive(job.seed, "member", k) for k in range(members)]
        files = [file and file.with_suffix(f".{k}.pt") for k in range(members)]
    nets, histories = [], []
    for seed, checkpoint in zip(seeds, files, strict=True):
        nets.append(make(seed))
        histories.append(fit(nets[-1], *data, **job.how_to_fit(seed, checkpoint), **how))
    return gfo.Ensemble(nets) if members > 1 else nets[0], histories
