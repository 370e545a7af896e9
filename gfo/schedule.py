"""Learning-rate schedules over a whole run, stepped once a training step."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from .registry import Registry

# schedule(optimizer, steps): a torch scheduler for a run of so many steps
Schedule = Callable[[Optimizer, int], LRScheduler]

SCHEDULES = Registry("schedule")


@SCHEDULES.register("one-cycle")
def one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Up from a twenty-fifth of each group's rate over 30 % of the run, then down to nearly zero
    along a cosine (Smith & Topin, 2018). Momentum stays."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    # one to spare: torch's scheduler looks one step ahead
    return OneCycleLR(optimizer, peaks, total_steps=max(steps, 2) + 1, cycle_momentum=False)


def make(
    schedule: str | Schedule | None, optimizers: dict[str, Optimizer], steps: int
) -> dict[str, LRScheduler]:
    """One scheduler an optimiser; none without a schedule. ValueError for an unknown name."""
    if schedule is None:
        return {}
    build = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    return {name: build(optimizer, steps) for name, optimizer in optimizers.items()}


def count(train, n: int, batch: int) -> int:
    """Training steps an epoch, for (x, y) tensors of n rows or an iterable of batches."""
    if not isinstance(train, tuple):
        return sum(1 for _ in train)
    odd_row = batch > 1 and n % batch == 1  # `fit` leaves out a last batch of one row
    return max(1, math.ceil(n / batch) - odd_row)
