"""Changes to the CIFAR experiment: the block of the paper's Figure 5, and methods that start from a
rate that keeps more, which shows how much of a comparison there is one of rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from .. import records
from ..methods import create
from ..registry import EXPERIMENTS
from .cifar import Cifar, configuration

FIGURE_5 = "BatchNorm–Conv–BatchNorm–Conv"
KEPT = "keep 0.9"
ON_POLICY = "keep 0.9, on-policy"  # the paper's q~ pulls a rate toward one half in training
# Name of the change: what differs from the configuration of the CIFAR experiment; entries of
# "method" are those of the method's own config.
ORDER: dict[str, dict[str, Any]] = {FIGURE_5: {"order": "bn-conv"}}
MORE: dict[str, dict[str, Any]] = {KEPT: {"method": {"keep": 0.9}}}
EXACTLY: dict[str, dict[str, Any]] = {
    ON_POLICY: {"method": {"keep": 0.9, "temperature": 1.0, "random": 0.0}}
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "random": ORDER | MORE,
    "deterministic": ORDER,
    "contextual": MORE,
    "gflowout": ORDER | MORE | EXACTLY,
}


def variants(dataset: str, method: str, profile: str) -> dict[str, dict[str, Any]]:
    """Full configs of all changes of `method` by name. ValueError where it has none."""
    if method not in CHANGES:
        raise ValueError(f"no variations of {method}: add its changes to CHANGES in {__name__}")
    base, found = configuration(dataset, method, profile), {}
    for name, change in CHANGES[method].items():
        own = base["method"] | change.get("method", {})
        found[name] = base | change | {"method": create(method, **own).config}
    return found


def recorded(change: str, dataset: str, profile: str, out: Path | None = None) -> pd.DataFrame:
    """The records of one change, as `records.read` gives them, of all methods that have it.
    ValueError where none has."""
    methods = [m for m, own in CHANGES.items() if change in own]
    if not methods:
        known = ", ".join(dict.fromkeys(name for own in CHANGES.values() for name in own))
        raise ValueError(f"no variation {change!r}; known: {known}")
    every = records.read("cifar-variations", out, dataset=dataset, profile=profile)
    configs = (variants(dataset, m, profile)[change] for m in methods)
    hashes = {records.config_hash(config) for config in configs}
    return every[every["config_hash"].isin(hashes)] if len(every) else every


@EXPERIMENTS.register("cifar-variations")
class CifarVariations:
    """One record a change and seed, measured as the CIFAR experiment does."""

    datasets = Cifar.datasets
    methods = tuple(CHANGES)
    run = staticmethod(Cifar.run)

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        return list(variants(dataset, method, profile).values())
