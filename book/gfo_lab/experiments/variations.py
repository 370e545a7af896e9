"""One change at a time: which parts of GFlowOut do any work, its controls, and settings of plain
dropout that might explain the paper's Random row."""

from pathlib import Path
from typing import Any

import pandas as pd

from gfo.core.registry import Registry
from gfo_lab import declared, records
from gfo_lab.experiments.digits import run_rotation, run_table1, tuned_configs
from gfo_lab.experiments.job import declare, method_config

Changes = dict[str, dict[str, Any]]  # name of the change: what differs, see `vary`

ABOUT = declared(__file__)
CHANGES = Registry("method with variations", ABOUT["changes"])
STARTS: Changes = ABOUT["starts"]
CONTROLS = ("VarGrad, two masks per step", "unit-wise policy")


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


def variants(
    dataset: str, method: str, profile: str, changes: Changes | None = None
) -> dict[str, dict[str, Any]]:
    """`vary` of the tuned configuration: changes of the method's arguments, those of `CHANGES`
    unless others are given."""
    (base,) = tuned_configs(dataset, method, profile)
    changes = changes or CHANGES[method]
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


def start_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """GFlowOut, of which alone it is asked, from the keep-probability that plain dropout chose."""
    own = variants(dataset, method, profile, STARTS) if method == "gflowout" else {}
    return list(own.values())


VARIATIONS = declare(
    "variations", lambda *about: list(variants(*about).values()), run_rotation, methods=CHANGES
)
VARIED_STARTS = declare("starts", start_configs, run_table1)
