"""Optimisers and schedules of `fit`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from gfo.core.attached import Attached
from gfo.core.batch import device_of
from gfo.core.checks import check_functions
from gfo.core.registry import Registry

Make = Callable[[str, list], Optimizer]  # make(group, parameters)


def optimizers_of(
    net: Attached, lr: Mapping[str, float] | None = None, backbone: bool = True,
    make: Make | None = None, graph: bool = False,
) -> dict[str, Optimizer]:  # fmt: skip
    """One Adam for the groups of `net.param_groups()`, or what `make` makes for each of them.

    Where a CUDA graph shall hold its steps, rates are tensors, which schedulers write to: a graph
    would keep a number for good. On a CPU there is none.

    Raises:
        ValueError: Where a CUDA graph shall hold what cannot be captured, and for a `make` that
            takes other arguments.
    """
    if graph and not net.method.steady:
        raise ValueError(f"graph=True: {net.method.name}'s steps differ by number, e_steps=1")
    groups, graph = net.param_groups(lr, backbone), graph and device_of(net).type == "cuda"
    if make is None:
        if graph:
            groups = [g | {"lr": torch.tensor(g["lr"], device=device_of(net))} for g in groups]
        return {"adam": adam(groups, capturable=graph)}
    try:
        made = {group["name"]: make(group["name"], group["params"]) for group in groups}
    except TypeError as error:  # of torch.optim.SGD itself, say
        raise ValueError(f"optimizer is {make!r}, not f(group, parameters): {error}") from None
    if graph and not all(each.defaults.get("capturable") for each in made.values()):
        raise ValueError("graph=True needs optimizers made with capturable=True, as torch's Adam")
    return made


def adam(params: list, lr: float = 1e-3, capturable: bool = False) -> Optimizer:
    """Adam, fused into one kernel where this torch has it for the parameters' device."""
    how: dict[str, Any] = dict(lr=lr, capturable=capturable)
    try:
        return torch.optim.Adam(params, fused=True, **how)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(params, **how)


# schedule(optimizer, steps): a torch scheduler for a run of so many steps
Schedule = Callable[[Optimizer, int], LRScheduler]


def one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Up to each group's rate, then down to nearly zero (Smith & Topin, 2018).

    Up from a twenty-fifth of it over 30 % of the run, then down along a cosine. Momentum stays.
    """
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    # one to spare: torch's scheduler looks one step ahead
    return OneCycleLR(optimizer, peaks, total_steps=max(steps, 2) + 1, cycle_momentum=False)


SCHEDULES = Registry("schedule", {"one-cycle": one_cycle})


def make_schedulers(
    schedule: str | Schedule | None, optimizers: dict[str, Optimizer], steps: int
) -> dict[str, LRScheduler]:
    """One scheduler per optimiser; none without a schedule.

    Raises:
        ValueError: For an unknown name, and what cannot be called.
    """
    make = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    check_functions(schedule=make)
    return {name: make(each, steps) for name, each in optimizers.items()} if make else {}
