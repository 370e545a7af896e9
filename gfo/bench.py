"""`python -m gfo.bench`: what a method costs, as ratios to plain dropout on the same backbone.

Plain dropout is an ordinary torch loop on a model with `nn.Dropout` modules, so that our own
overhead is in the ratio. Both sides have the same optimiser, fused where torch has it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from . import models, records
from .attach import attach, trace, untouched
from .ensemble import Ensemble
from .fit import LEARNING_RATES, adam, one_epoch, pick_device
from .masked_pass import masked_pass
from .methods import create
from .noise import generator
from .predict import predict
from .registry import METHODS, Registry

SAMPLES = 20
PAIRS = 15
SECONDS = 0.1  # a timing repeats what is shorter until it lasts about this long
EXAMPLES = 50_000  # the size of the training set that losses are told
# What a step spends its time on. An operator belongs to the first group with a word of its name.
GROUPS = {
    "convolutions": ("conv",),
    "matrix products": ("addmm", "::mm", "bmm"),
    "normalisation": ("batch_norm", "layer_norm", "BatchNorm", "LayerNorm"),
    "optimiser": ("Optimizer", "adam", "foreach"),
    "random numbers": ("uniform", "bernoulli"),
    "sigmoid, softplus": ("sigmoid", "softplus"),
}


class Case(NamedTuple):
    """A backbone as it is measured. shape: of one example. config: a method's own arguments."""

    build: Callable[[], tuple[nn.Module, Sequence[str]]]
    shape: tuple[int, ...]
    batch: int
    config: dict[str, dict[str, Any]]


CASES = Registry("model")
CASES["mlp"] = Case(models.mlp, (1, 28, 28), 128, {})
CASES["resnet18"] = Case(models.resnet18, (3, 32, 32), 32, {})


class Setting(NamedTuple):
    """How all sides of a comparison run. The last three are for GPUs."""

    device: torch.device
    batch: int
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False

    def move(self, thing: Any) -> Any:
        """A model or input on the device, in its memory format."""
        if self.channels_last and (isinstance(thing, nn.Module) or thing.dim() == 4):
            return thing.to(self.device, memory_format=torch.channels_last)
        return thing.to(self.device)

    def cast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class Side(NamedTuple):
    """One side of a comparison. steps(k): k training steps. predict(): (B, K) probabilities, the
    mean over `SAMPLES` masks. weights: how many numbers backbones and mask networks hold."""

    steps: Callable[[int], None]
    predict: Callable[[], Tensor]
    weights: tuple[int, int]

    def predictions(self, count: int) -> None:
        """Predict `count` times."""
        for _ in range(count):
            self.predict()


def plain(case: Case, x: Tensor, y: Tensor, setting: Setting) -> Side:
    """Dropout 0.5 as torch has it behind each site, whole channels of feature maps, in an ordinary
    training loop; `SAMPLES` passes one after the other predict."""
    torch.manual_seed(0)
    model, sites = case.build()
    outputs = dict(trace(model, x[:2].cpu())[1])
    for name in sites:
        dropout = nn.Dropout2d() if outputs[name].dim() == 4 else nn.Dropout()
        parent, _, child = name.rpartition(".")
        masked = nn.Sequential(model.get_submodule(name), dropout)
        setattr(model.get_submodule(parent), child, masked)
    setting.move(model).train()
    optimizer = adam(list(model.parameters()), LEARNING_RATES["backbone"])
    forward = torch.compile(model) if setting.compile else model

    def steps(count: int) -> None:
        total = torch.zeros((), device=x.device)
        for _ in range(count):
            with setting.cast():
                loss = F.cross_entropy(forward(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()

    @torch.no_grad()
    def answer() -> Tensor:
        with untouched(model), setting.cast():
            for module in model.modules():
                module.training = isinstance(module, nn.Dropout | nn.Dropout2d)
            return sum(forward(x).float().softmax(-1) for _ in range(SAMPLES)) / SAMPLES

    return Side(steps, answer, (_numbers(model.parameters()), 0))


def ours(name: str, case: Case, x: Tensor, y: Tensor, setting: Setting) -> Side:
    """A method as `gfo.fit` trains it and `gfo.predict` asks it; an ensemble in all its members."""
    torch.manual_seed(0)
    config = case.config.get(name, {})
    nets = []
    for _ in range(create(name, **config).members):
        model, sites = case.build()
        nets.append(setting.move(attach(model, sites, create(name, **config), x[:2].cpu())).train())
    groups = [{"backbone": [*n.model.parameters()]} | n.method.param_groups() for n in nets]
    moving = [
        {"optimizers": {k: adam(p, LEARNING_RATES[k]) for k, p in g.items()}, "schedulers": {}}
        for g in groups
    ]
    run_pass = torch.compile(masked_pass) if setting.compile else masked_pass
    whole = Ensemble(nets) if len(nets) > 1 else nets[0]

    def steps(count: int) -> None:
        for net, moves in zip(nets, moving, strict=True):
            with setting.cast():
                one_epoch(net, [(x, y)] * count, moves, run_pass, None, EXAMPLES, (0, 0))

    def answer() -> Tensor:
        with setting.cast():
            return predict(whole, x, SAMPLES)

    backbone = sum(_numbers(net.model.parameters()) for net in nets)
    return Side(steps, answer, (backbone, _numbers(whole.parameters()) - backbone))


def _numbers(parameters: Iterator[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def sides(model: str, methods: Sequence[str], setting: Setting) -> dict[str, Side]:
    """ "plain" and each method on the same random batch, warmed up."""
    case = CASES[model]
    gen = generator(0, "bench")
    x = setting.move(torch.randn(setting.batch, *case.shape, generator=gen))
    y = setting.move(torch.randint(10, (setting.batch,), generator=gen))
    found = {"plain": plain(case, x, y, setting)}
    found |= {name: ours(name, case, x, y, setting) for name in methods}
    for side in found.values():
        side.steps(2)
        side.predict()
    return found


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


def counts(side: Side) -> dict[str, float]:
    """What does not depend on the machine: operations, bytes kept for backward, weights."""
    kept = {}  # the storages themselves, so that none is freed and its address seen twice

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step_flops = flops(lambda: side.steps(1))
    saved = sum(storage.nbytes() for storage in kept.values()) / 2**20
    weights, mask_weights = side.weights
    return {
        "step_flops": step_flops, "predict_flops": flops(side.predict), "saved_mb": saved,
        "weights": weights, "mask_weights": mask_weights,
    }  # fmt: skip


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call, backward too."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def where_time_goes(side: Side, steps: int = 9) -> pd.DataFrame:
    """A training step by kind of operator, from torch's profiler: ms, in the quickest of `steps`
    steps for each kind, and number of operators. The profiler's own cost is in the ms, a little an
    operator."""
    activity = torch.profiler.ProfilerActivity
    wanted = [activity.CPU] + [activity.CUDA] * torch.cuda.is_available()
    seen = []
    for _ in range(steps):
        with torch.profiler.profile(activities=wanted) as profile:
            side.steps(1)
        parts = {name: [0.0, 0] for name in (*GROUPS, "all else")}
        for event in profile.key_averages():
            spent = max(event.self_cpu_time_total, event.self_device_time_total)
            for column, value in enumerate((spent / 1e3, event.count)):
                parts[_group(event.key)][column] += value
        seen.append(pd.DataFrame(parts, index=["ms", "operators"]).T)
    least = pd.concat(seen).groupby(level=0, sort=False).min()
    return least.rename_axis("part").astype({"operators": int})


def _group(operator: str) -> str:
    for name, words in GROUPS.items():
        if any(word in operator for word in words):
            return name
    return "all else"


def save(table: pd.DataFrame, device: str, out: Path | None, wall_s: float, **gpu: bool) -> None:
    """Write each row as a record of the experiment "bench"; what was measured is its config."""
    at = pick_device(device)
    how = {"device": at.type, "threads": torch.get_num_threads(), "samples": SAMPLES, **gpu}
    for row in table.drop(columns="device").to_dict("records"):
        config = {key: row.pop(key) for key in ("model", "batch", "pairs")} | how
        shape = "x".join(map(str, CASES[config["model"]].shape))
        records.write(
            experiment="bench", dataset=f"noise-{shape}", method=row.pop("method"), seed=0,
            profile="full", config=config, metrics=row, device=at, wall_s=wall_s, out=out,
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
    parser.add_argument("--out", type=Path, help="where records go; default: book/results")
    for option in ("bf16", "channels-last", "compile"):
        parser.add_argument(f"--{option}", action="store_true", help="on a GPU only")
    a = parser.parse_args(argv)
    gpu = {k: True for k in ("bf16", "channels_last", "compile") if getattr(a, k)}
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        tables = []
        for model in a.model:
            started = time.perf_counter()
            how = dict(pairs=a.pairs, batch=a.batch, device=a.device)
            tables.append(compare(model, a.method, **how, **gpu))
            if a.save:
                save(tables[-1], a.device, a.out, time.perf_counter() - started, **gpu)
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
