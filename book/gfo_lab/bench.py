"""`python -m gfo_lab bench`: what a method costs, as ratios to plain dropout on the same backbone.

Plain dropout is an ordinary torch loop on a model with `nn.Dropout` modules, so that our own
overhead is in the ratio. Both sides have the same optimiser, fused where torch has it.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import scipy
import torch
from tqdm.auto import tqdm

from gfo.core.batch import pick_device
from gfo.core.registry import METHODS
from gfo.models import mlp
from gfo_lab import costs, declared, records
from gfo_lab.costs import CASES, RIVALS, SAMPLES, Case, Setting, sides
from gfo_lab.experiments.digits import EVERY

ABOUT: dict[str, Any] = declared(__file__)
PAIRS = 15
SECONDS = 0.1  # a timing repeats what is shorter until it lasts about this long


def seconds(call: Callable[[int], None], repeats: int, device: torch.device) -> float:
    """Wall time of one of `repeats`, the device's queue emptied before and after."""
    wait = getattr(torch, device.type).synchronize
    wait(device)
    started = time.perf_counter()
    call(repeats)
    wait(device)
    return (time.perf_counter() - started) / repeats


def interleaved(
    calls: dict[str, Callable[[int], None]], pairs: int, device: torch.device,
    least: float = SECONDS, bar: tqdm | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Seconds that each call takes, one row per round: in each of `pairs` rounds all are timed in
    turn, from another start each time, so that what slows the machine for a while slows all."""
    once = {name: seconds(call, 1, device) for name, call in calls.items()}
    repeats = {name: max(1, round(least / once[name])) for name in calls}
    names, rounds = list(calls), []
    for i in range(pairs):
        turn = names[i % len(names) :] + names[: i % len(names)]
        rounds.append({n: seconds(calls[n], repeats[n], device) for n in turn})
        if bar is not None:
            bar.update()
    return pd.DataFrame(rounds)[names]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): the order statistics between which the median lies with at least this
    probability, whatever the distribution (ranks 4 and 12 of 15). ValueError for too few values."""
    low, high = scipy.stats.quantile_test(values).confidence_interval(level)
    if not (math.isfinite(low) and math.isfinite(high)):
        need = math.ceil(1 - math.log2(1 - level))  # the widest misses with 2 · 2^(−n)
        said = f"{len(values)} values have no {level:.0%} interval of their median"
        raise ValueError(f"{said}: need {need}")
    return float(pd.Series(values).median()), float(low), float(high)


def compare(
    model: str = "mlp", methods: Sequence[str] | None = None, *, pairs: int = PAIRS,
    batch: int | None = None, device: str = "auto", least: float = SECONDS, progress: bool = True,
    case: Case | None = None, samples: int = SAMPLES, **gpu: bool,
) -> pd.DataFrame:  # fmt: skip
    """What each method costs on `model`, one row per method, "plain" first.

    methods: those of the book's tables and `RIVALS` by default; any other by name.

    step_ratio, predict_ratio: median over `pairs` rounds of a method's time by plain dropout's in
    the same round, for a training step and for a prediction from `samples` masks; `_low` and
    `_high` are order statistics that hold the true median with probability 0.95 or more. step_ms,
    predict_ms: medians, with such an interval of their own. step_flops, predict_flops: operations
    of matrix products and convolutions, counted; step_floor, predict_floor: by plain dropout's.
    step_peak_mb, predict_peak_mb: the most memory held at once. weights, mask_weights: numbers
    trained.
    least: seconds that one timing lasts, by repeating what is shorter.
    case: the backbone, where it is not `CASES[model]`.
    gpu: bf16, channels_last, compile, graph. ValueError for these where torch sees no GPU.
    """
    methods = [*EVERY, *RIVALS] if methods is None else list(methods)
    case, _ = case or CASES[model], [METHODS[name] for name in methods if name not in RIVALS]
    if batch is not None and batch < 2:  # BatchNorm trains on no less
        raise ValueError(f"batch is {batch}, needs to be at least 2")
    at = pick_device(device)
    if any(gpu.values()) and at.type == "cpu":
        raise ValueError(f"{', '.join(gpu)}: measured on a GPU, and there is none")
    median_interval([1.0] * pairs)  # enough of them
    setting = Setting(at, batch or case.batch, samples=samples, **gpu)
    with tqdm(total=2 * pairs, desc=f"{model}", disable=not progress) as bar:
        with torch.random.fork_rng():
            found = sides(case, methods, setting)
            step = interleaved({n: s.steps for n, s in found.items()}, pairs, at, least, bar)
            calls = {n: lambda k, s=s: [s.predict() for _ in range(k)] for n, s in found.items()}
            guess = interleaved(calls, pairs, at, least, bar)
            if setting.compile or setting.graph:  # operators are counted one by one
                found = sides(case, methods, setting._replace(compile=False, graph=False))
            counted = {name: costs.counts(side) for name, side in found.items()}
    about = dict(model=model, batch=setting.batch, pairs=pairs, device=records.device_name(at))
    timed = {n: times("step", step, n) | times("predict", guess, n) for n in found}
    table = pd.DataFrame(about | {"method": n} | timed[n] | counted[n] for n in found)
    floors = table[["step_flops", "predict_flops"]] / table.loc[0, ["step_flops", "predict_flops"]]
    return table.join(floors.set_axis(["step_floor", "predict_floor"], axis=1))


def growth(**how: Any) -> pd.DataFrame:
    """What grows how: `compare` on an MLP, one of its sizes changed at a time, as bench.toml lists
    them; how: pairs, device, least. One more column per size: width of the hidden layers, depth,
    their number and that of sites, batch, masks per example and step (plain dropout has one), and
    samples, the masks of a prediction."""
    tables, plan = [], ABOUT["growth"]
    for change in tqdm(plan["along"], desc="growth"):
        size = plan["base"] | change
        build = partial(mlp, hidden=(size["width"],) * size["depth"])
        config = {name: {"masks": size["masks"]} for name in plan["methods"]}
        case = Case(build, CASES["mlp"].shape, size["batch"], config)
        how |= dict(case=case, batch=None, samples=size["samples"], progress=False)
        tables.append(compare("mlp", plan["methods"], **how).assign(**size))
    return pd.concat(tables, ignore_index=True)


def times(what: str, table: pd.DataFrame, name: str) -> dict[str, float]:
    """The columns of one method's timings."""
    ratio, own = median_interval(table[name] / table["plain"]), median_interval(1e3 * table[name])
    keys = ("ratio", "low", "high", "ms", "ms_low", "ms_high")
    return {f"{what}_{key}": value for key, value in zip(keys, ratio + own, strict=True)}


def save(
    table: pd.DataFrame, device: str, out: Path | None, wall_s: float, process: int, **gpu: bool
) -> None:
    """Write each row as a record of the experiment "bench", or "growth" where it has sizes; what
    was measured is its config, the number of the process its seed."""
    at = pick_device(device)
    how = {"device": at.type, "threads": torch.get_num_threads(), "samples": SAMPLES, **gpu}
    keys = {"model", "batch", "pairs", *ABOUT["growth"]["base"]}
    for row in table.drop(columns="device").to_dict("records"):
        config = how | {key: row.pop(key) for key in keys & set(row)}
        shape = "x".join(map(str, CASES[config["model"]].shape))
        records.write(
            experiment="growth" if "width" in table else "bench", dataset=f"noise-{shape}",
            method=row.pop("method"), seed=process, profile="full", config=config, metrics=row,
            device=at, wall_s=wall_s, out=out,
        )  # fmt: skip


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Ratios with their intervals, and what was counted, as text; below what `compare` found, the
    authors' released code, as timed on another machine."""
    about, columns = [*ABOUT["growth"]["base"], "method"], ABOUT["columns"].items()
    told = [{k: form.format(**row) for k, form in columns} for row in table.to_dict("records")]
    shown = table.filter(about).join(pd.DataFrame(told)).astype(str)
    theirs = {} if "width" in table else ABOUT["released"].get(table["model"].iloc[0], {})
    for what, (ms, plain) in theirs.items():
        row = {"method": "released code (*)", what: f"{ms / plain:.2f}", f"{what}, ms": f"{ms:.2f}"}
        shown.loc[len(table), [*row]] = [*row.values()]
    return shown
