"""`python -m gfo.bench`: what a method costs, as ratios to plain dropout on the same backbone.

Plain dropout is an ordinary torch loop on a model with `nn.Dropout` modules, so that our own
overhead is in the ratio. Both sides have the same optimiser, fused where torch has it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import binom
from tqdm.auto import tqdm

from . import records
from .costs import CASES, SAMPLES, Setting, counts, sides, where_time_goes
from .fit import pick_device
from .registry import METHODS

PAIRS = 15
SECONDS = 0.1  # a timing repeats what is shorter until it lasts about this long


def seconds(call: Callable[[int], None], repeats: int, device: torch.device) -> float:
    """Wall time of one of `repeats`, the device's queue emptied before and after."""
    wait = getattr(torch, device.type).synchronize
    wait()
    started = time.perf_counter()
    call(repeats)
    wait()
    return (time.perf_counter() - started) / repeats


def interleaved(
    calls: dict[str, Callable[[int], None]],
    pairs: int,
    device: torch.device,
    least: float = SECONDS,
    bar: tqdm | None = None,
) -> pd.DataFrame:
    """Seconds that each call takes, a row a round: in each of `pairs` rounds all are timed in turn,
    from another start each time, so that what slows the machine for a while slows all of them."""
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
    ordered, n = sorted(values), len(values)
    rank = int(binom.ppf((1 - level) / 2, n, 0.5))
    if not rank:
        need = math.ceil(1 - math.log2(1 - level))  # the widest misses with 2 · 2^(−n)
        raise ValueError(f"{n} values have no {level:.0%} interval of their median: need {need}")
    return float(pd.Series(ordered).median()), ordered[rank - 1], ordered[n - rank]


def compare(
    model: str = "mlp",
    methods: Sequence[str] | None = None,
    *,
    pairs: int = PAIRS,
    batch: int | None = None,
    device: str = "auto",
    least: float = SECONDS,
    progress: bool = True,
    **gpu: bool,
) -> pd.DataFrame:
    """What each method costs on `model`, a row a method, "plain" first.

    step_ratio, predict_ratio: median over `pairs` rounds of a method's time by plain dropout's in
    the same round, for a training step and for a prediction from 20 masks; `_low` and `_high` are
    order statistics that hold the true median with probability 0.95 or more. step_ms, predict_ms:
    medians. step_flops, predict_flops: operations of matrix products and convolutions, counted.
    saved_mb: what a step keeps for its backward passes. weights, mask_weights: numbers trained.
    least: seconds that one timing lasts, by repeating what is shorter.
    gpu: bf16, channels_last, compile. ValueError for these where torch sees no GPU.
    """
    methods = list(METHODS if methods is None else methods)
    CASES[model], [METHODS[name] for name in methods]
    if batch is not None and batch < 2:  # BatchNorm trains on no less
        raise ValueError(f"batch is {batch}, needs to be at least 2")
    at = pick_device(device)
    if any(gpu.values()) and at.type == "cpu":
        raise ValueError("bf16, channels-last and compile are measured on a GPU, and there is none")
    median_interval([1.0] * pairs)  # enough of them
    setting = Setting(at, batch or CASES[model].batch, **gpu)
    with tqdm(total=2 * pairs, desc=f"{model}", disable=not progress) as bar:
        with torch.random.fork_rng():
            found = sides(model, methods, setting)
            step = interleaved({n: s.steps for n, s in found.items()}, pairs, at, least, bar)
            calls = {n: s.predictions for n, s in found.items()}
            guess = interleaved(calls, pairs, at, least, bar)
            if setting.compile:  # operators are counted one by one
                found = sides(model, methods, setting._replace(compile=False))
            counted = {name: counts(side) for name, side in found.items()}
    about = dict(model=model, batch=setting.batch, pairs=pairs, device=records.device_name(at))
    return pd.DataFrame(
        about | {"method": n} | times("step", step, n) | times("predict", guess, n) | counted[n]
        for n in found
    )


def times(what: str, table: pd.DataFrame, name: str) -> dict[str, float]:
    """The columns of one method's timings."""
    ratio, low, high = median_interval(table[name] / table["plain"])
    columns = {"ratio": ratio, "low": low, "high": high, "ms": 1e3 * table[name].median()}
    return {f"{what}_{key}": value for key, value in columns.items()}


def save(
    table: pd.DataFrame, device: str, out: Path | None, wall_s: float, process: int, **gpu: bool
) -> None:
    """Write each row as a record of the experiment "bench"; what was measured is its config, the
    number of the process its seed."""
    at = pick_device(device)
    how = {"device": at.type, "threads": torch.get_num_threads(), "samples": SAMPLES, **gpu}
    for row in table.drop(columns="device").to_dict("records"):
        config = {key: row.pop(key) for key in ("model", "batch", "pairs")} | how
        shape = "x".join(map(str, CASES[config["model"]].shape))
        records.write(
            experiment="bench", dataset=f"noise-{shape}", method=row.pop("method"),
            seed=process, profile="full", config=config, metrics=row, device=at, wall_s=wall_s,
            out=out,
        )  # fmt: skip


def show(table: pd.DataFrame) -> None:
    """Print ratios with their intervals, and what was counted."""
    shown = pd.DataFrame({"method": table["method"]})
    for what in ("step", "predict"):
        parts = (table[f"{what}_{key}"].map("{:.2f}".format) for key in ("ratio", "low", "high"))
        ratio, low, high = parts
        shown[f"{what} / plain"] = ratio + " [" + low + ", " + high + "]"
        shown[f"{what}, ms"] = table[f"{what}_ms"].map("{:.2f}".format)
        flop = table[f"{what}_flops"] / table[f"{what}_flops"].iloc[0]
        shown[f"{what} flop"] = flop.map("{:.2f}".format)
    shown["saved, MiB"] = table["saved_mb"].map("{:.1f}".format)
    shown["mask weights"] = table["mask_weights"]
    first = table.iloc[0]
    print(f"{first['model']}, batch {first['batch']}, {first['device']}")
    print(shown.to_string(index=False))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gfo.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="a list of objects, one a row")
    parser.add_argument("--model", nargs="+", default=list(CASES))
    parser.add_argument("--method", nargs="+", help="default: all")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="rounds of timings")
    parser.add_argument("--batch", type=int, help="default: 128 for the MLP, 32 for the ResNet")
    parser.add_argument("--threads", type=int, help="torch's CPU threads; default: its own choice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", action="store_true", help="also show where a step's time goes")
    parser.add_argument("--save", action="store_true", help="write records")
    # The interval of one process does not hold what differs between processes: some hundredths of
    # a ratio for the ResNet-18 on a CPU (chapter What it costs).
    parser.add_argument("--process", type=int, default=0, help="number of this process, on record")
    parser.add_argument("--out", type=Path, help="where records go; default: book/results")
    for option in ("bf16", "channels-last", "compile"):
        parser.add_argument(f"--{option}", action="store_true", help="on a GPU only")
    a = parser.parse_args(argv)
    gpu = {k: True for k in ("bf16", "channels_last", "compile") if getattr(a, k)}
    try:
        if a.threads is not None:
            if a.threads < 1:
                raise ValueError(f"threads is {a.threads}, needs to be at least 1")
            torch.set_num_threads(a.threads)
        if a.process < 0:
            raise ValueError(f"process is {a.process}, needs to be at least 0")
        tables = []
        for model in a.model:
            started = time.perf_counter()
            how = dict(pairs=a.pairs, batch=a.batch, device=a.device)
            tables.append(compare(model, a.method, **how, **gpu))
            if a.save:
                save(tables[-1], a.device, a.out, time.perf_counter() - started, a.process, **gpu)
    except ValueError as error:
        print(f"gfo.bench: {error}", file=sys.stderr)
        return 2
    if a.json:
        print(json.dumps(pd.concat(tables).to_dict("records"), indent=1))
    else:
        for table in tables:
            show(table)
    if a.parts:
        for model in a.model:
            setting = Setting(pick_device(a.device), a.batch or CASES[model].batch, **gpu)
            for name, side in sides(model, a.method or list(METHODS), setting).items():
                print(f"\n{model}, a step of {name}\n{where_time_goes(side).round(3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
