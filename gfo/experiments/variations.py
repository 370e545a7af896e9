"""One change at a time to the tuned methods, at full size: which parts of GFlowOut do any work, its
two controls, and settings of plain dropout that might explain the paper's Random row."""

from __future__ import annotations

from typing import Any

from .. import records
from ..methods import create
from ..registry import EXPERIMENTS
from .rotation import DIGITS, Rotation
from .table1 import Table1

# Name of the change: what differs from the tuned configuration's method. beta is the exponent of
# the likelihood in R; the tuned one is among these, and its run is "as tuned".
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


def variants(
    dataset: str, method: str, profile: str, changes: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Full configs of all changes of `method` by name, those of `CHANGES` unless others are given,
    without those that change nothing."""
    (base,) = Table1.configs(dataset, method, profile)
    found: dict[str, dict[str, Any]] = {}
    for name, change in (changes or CHANGES[method]).items():
        config = base | {"method": create(method, **base["method"] | change).config}
        if config not in found.values():
            found[name] = config
    return found


def names(
    dataset: str, method: str, profile: str, changes: dict[str, dict[str, Any]] | None = None
) -> dict[str, str]:
    """The name of each of `variants` by its configuration's hash, which records carry."""
    found = variants(dataset, method, profile, changes)
    return {records.config_hash(config): name for name, config in found.items()}


@EXPERIMENTS.register("variations")
class Variations:
    """One record a change and seed, measured as the rotation experiment does: scores on clean and
    rotated test images, nats moved a site."""

    datasets = DIGITS
    methods = tuple(CHANGES)
    run = staticmethod(Rotation.run)

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        if method not in CHANGES:
            raise ValueError(f"no variations of {method}: add its changes to CHANGES in {__name__}")
        return list(variants(dataset, method, profile).values())


@EXPERIMENTS.register("starts")
class Starts:
    """The tuned GFlowOut from the keep-probability that plain dropout chose, under the paper's
    training policy and on-policy, measured as the rows of `table1` are."""

    datasets = DIGITS
    methods = ("gflowout",)
    run = staticmethod(Table1.run)

    @staticmethod
    def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
        if method not in Starts.methods:
            raise ValueError(f"{method} has no start of its own to move: only gflowout has")
        return list(variants(dataset, method, profile, STARTS).values())
