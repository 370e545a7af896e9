"""What one run of an experiment is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .. import data


class Job(NamedTuple):
    """config: everything that defines the run but its seed, plain JSON. root: where data lie.
    checkpoint: a file from which a stopped run goes on."""

    dataset: str
    method: str
    seed: int
    config: dict[str, Any]
    root: str | Path | None = None
    device: str = "auto"
    checkpoint: Path | None = None
    progress: bool = True

    def splits(self) -> data.Splits:
        """The data set, split by the run's seed; config["data"] holds arguments of its own."""
        how = self.config.get("data", {})
        return data.load(self.dataset, root=self.root, seed=self.seed, **how)
