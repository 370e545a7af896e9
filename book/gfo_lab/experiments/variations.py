"""One change at a time: which parts of GFlowOut do any work, its controls, and settings of plain
dropout that might explain the paper's Random row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gfo_lab import records
from gfo_lab.experiments.digits import DIGITS, run_rotation, run_table1, tuned_configs
from gfo_lab.experiments.job import Experiment, method_config, register

Changes = Mapping[str, dict[str, Any]]  # name of the change: what differs, see `vary`

# What differs from the tuned configuration's method. beta is the exponent of the likelihood in R;
# the tuned one is among these, and its run is "as tuned".
GFLOWOUT: dict[str, dict[str, Any]] = {
    "as tuned": {},
    "q without y": dict(label=False),
    "q, p without earlier masks": dict(earlier=False),
    "prior fixed at 0.5": dict(prior=0.5),
    "no tempering, no random masks": dict(temperature=1.0, random=0.0),
    "kept units rescaled": dict(rescale=True),
    "likelihood exponent 0.1": dict(beta=0.1),
    "likelihood exponent 1": dict(beta=1.0),
    "likelihood exponent 10": dict(beta=10.0),
    "likelihood exponent 100": dict(beta=100.0),
    "VarGrad, two masks a step": dict(objective="vargrad", masks=2),
    "unit-wise policy": dict(policy="unitwise"),
}
CONTROLS = ("VarGrad, two masks a step", "unit-wise policy")
# The paper's Random row (87.38 % clean, 43.96 % rotated) is far below plain dropout: six settings.
RANDOM: dict[str, dict[str, Any]] = {
    "keep 0.5": dict(keep=0.5),
    "keep 0.5, kept units rescaled": dict(keep=0.5, rescale=True),
    "keep 0.2": dict(keep=0.2),
    "keep 0.1": dict(keep=0.1),
    "keep 0.05": dict(keep=0.05),
    "keep 0.1, kept units rescaled": dict(keep=0.1, rescale=True),
}
CHANGES = {"gflowout": GFLOWOUT, "random": RANDOM}
# The search moved the rate of plain dropout, which chose 0.8, but not where q and p start: 0.5.
STARTS: dict[str, dict[str, Any]] = {
    "from 0.8": dict(keep=0.8),
    "from 0.8, on-policy": dict(keep=0.8, temperature=1.0, random=0.0),
}


def vary(method: str, base: dict[str, Any], changes: Changes) -> dict[str, dict[str, Any]]:
    """Full configs of all `changes` of a method by name, without those that change nothing more
    than an earlier one. A change replaces entries of the base config; those of its "method" are
    the method's own arguments."""
    found: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        own = method_config(method, **base["method"] | change.get("method", {}))
        config = base | change | {"method": own}
        if config not in found.values():
            found[name] = config
    return found


def changes_of(method: str, known: Mapping[str, Changes], where: str) -> Changes:
    """The changes of a method; ValueError where it has none."""
    if method not in known:
        raise ValueError(f"no variations of {method}: add its changes to CHANGES in {where}")
    return known[method]


def variants(
    dataset: str, method: str, profile: str, changes: Changes | None = None
) -> dict[str, dict[str, Any]]:
    """`vary` of the tuned configuration: changes of the method's arguments, those of `CHANGES`
    unless others are given."""
    (base,) = tuned_configs(dataset, method, profile)
    changes = changes or changes_of(method, CHANGES, __name__)
    return vary(method, base, {name: {"method": own} for name, own in changes.items()})


def names(
    dataset: str, method: str, profile: str, changes: Changes | None = None
) -> dict[str, str]:
    """The name of each of `variants` by its configuration's hash, which records carry."""
    found = variants(dataset, method, profile, changes)
    return {records.config_hash(config): name for name, config in found.items()}


def with_configs(
    experiment: str, configs: list[dict[str, Any]], out: Path | None = None, **only: Any
) -> pd.DataFrame:
    """The records of an experiment that ran one of `configs`, as `records.read` gives them."""
    every = records.read(experiment, out, **only)
    hashes = {records.config_hash(config) for config in configs}
    return every[every["config_hash"].isin(hashes)] if len(every) else every


def variation_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """One configuration per change."""
    return list(variants(dataset, method, profile).values())


def start_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """GFlowOut from the keep-probability that plain dropout chose."""
    if method != "gflowout":
        raise ValueError(f"{method} has no start of its own to move: only gflowout has")
    return list(variants(dataset, method, profile, STARTS).values())


VARIATIONS = register(
    Experiment(
        name="variations",
        about="one change at a time to the tuned GFlowOut and plain dropout, measured as `rotation`",
        datasets=DIGITS,
        methods=tuple(CHANGES),
        configs=variation_configs,
        run=run_rotation,
        columns=("accuracy", "accuracy_rotated", "nll", "ece"),
    )
)
VARIED_STARTS = register(
    Experiment(
        name="starts",
        about="the tuned GFlowOut from plain dropout's rate, tempered or not, measured as `table1`",
        datasets=DIGITS,
        methods=("gflowout",),
        configs=start_configs,
        run=run_table1,
        columns=("accuracy", "accuracy_rotated", "nll", "ece"),
    )
)
