"""One member of a deep ensemble."""

from __future__ import annotations

from ..registry import METHODS
from .deterministic import Deterministic


@METHODS.register("ensemble")
class EnsembleMember(Deterministic):
    """A deep ensemble (Lakshminarayanan et al., 2017, without adversarial training), seen from one
    member: a deterministic network. An experiment trains `members` of them, each from a seed of its
    own, and joins them in a `gfo.Ensemble`: see `gfo.ensemble.train_members`."""

    name = "ensemble"

    def __init__(self, *, members: int = 5):
        if members < 1:
            raise ValueError(f"members is {members}, needs to be at least 1")
        super().__init__()
        self.members = self.config["members"] = members
