"""Optimisers and schedules of `fit`."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from gfo.core.attached import Attached
from gfo.core.registry import Registry


def optimizers_of(
    net: Attached, backbone: bool, make: Callable[[str, list], Optimizer]
) -> dict[str, Optimizer]:
    """What `make` makes for each group of `net.param_groups()`."""
    groups = net.param_groups(backbone=backbone)
    return {group["name"]: make(group["name"], group["params"]) for group in groups}


def adam(params: list, lr: float) -> Optimizer:
    """Adam, fused into one kernel where this torch has it for the parameters' device."""
    try:
        return torch.optim.Adam(params, lr=lr, fused=True)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(params, lr=lr)


# schedule(optimizer, steps): a torch scheduler for a run of so many steps
Schedule = Callable[[Optimizer, int], LRScheduler]


def one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Up to each group's rate, then down to nearly zero (Smith & Topin, 2018).

    Up from a twenty-fifth of it over 30 % of the run, then down along a cosine. Momentum stays.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    # one to spare: torch's scheduler looks one step ahead
    return OneCycleLR(optimizer, peaks, total_steps=max(steps, 2) + 1, cycle_momentum=False)


SCHEDULES = Registry("schedule", {"one-cycle": one_cycle})


def make_schedulers(
    schedule: str | Schedule | None, optimizers: dict[str, Optimizer], steps: int
) -> dict[str, LRScheduler]:
    """One scheduler per optimiser; none without a schedule.

    Raises:
        ValueError: For an unknown name.
    """
    make = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    return {name: make(each, steps) for name, each in optimizers.items()} if make else {}
