"""`python -m gfo_lab`, also `gfo-lab`: list, run, table, audit and bench."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gfo.audit.trial import KEYS, audit_seeds
from gfo.core.batch import pick_device
from gfo.core.registry import DATASETS, METHODS
from gfo_lab import bench, records, sweep
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.experiments.job import Experiment
from gfo_lab.plugins import bring
from gfo_lab.profiles import PROFILES
from gfo_lab.run import plan, run

NONE: tuple[str, ...] = ()


def show(frame: pd.DataFrame, as_json: bool, **how: Any) -> None:
    """Print a table, or its rows as a JSON list with null for what is not there."""
    if as_json:
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        print(json.dumps(rows, indent=1, default=str))
    else:
        print(frame.to_string(index=False, na_rep="", **how) if len(frame) else "no records")


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().split("\n")[0]


def list_command(a: argparse.Namespace) -> None:
    """What there is: experiments, methods, data sets and profiles, a line each."""
    count = {name: len(list((Path(a.out) / name).glob("*.json"))) for name in EXPERIMENTS}
    rows = [("experiment", n, e.about, count[n]) for n, e in sorted(EXPERIMENTS.items())]
    rows += [("method", name, first_line(METHODS[name]), "") for name in METHODS]
    for name, load in DATASETS.items():
        rows.append(("data set", name, first_line(getattr(load, "func", load)), ""))
    for name, work in PROFILES.items():
        what = f"{work.dataset}, {work.epochs} epochs of {work.batch}, seeds {list(work.seeds)}"
        rows.append(("profile", name, what, ""))
    show(pd.DataFrame(rows, columns=["kind", "name", "what", "records"]), a.json)


def run_command(a: argparse.Namespace) -> None:
    """Run what has no record yet; killed at any moment, the same command goes on."""
    what = dict(methods=a.method, dataset=a.dataset, seeds=a.seed, profile=a.profile, out=a.out)
    if a.dry_run:
        todo = plan(a.experiment, **what)
        print(f"{len(todo.missing)} of {len(todo.grid)} runs have no record under {todo.out}")
        for i in todo.missing:
            print(f"  {i['dataset']} {i['method']} seed {i['seed']} {i['profile']}")
        if todo.missing:
            more = f", and {todo.unknown} whose like is not on record" if todo.unknown else ""
            minutes = todo.seconds / 60 / a.jobs
            print(f"the same runs took {minutes:.1f} min on record, {a.jobs} at once{more}")
        return
    found = run(
        a.experiment, **what, device=a.device, root=a.root, force=a.force, jobs=a.jobs,
        engine=a.engine, scheduler=a.scheduler, scratch=a.scratch, imports=a.imports,
    )  # fmt: skip
    show(final_table(EXPERIMENTS[a.experiment], found), a.json)


def final_table(experiment: Experiment, found: pd.DataFrame) -> pd.DataFrame:
    """Method, seed, the experiment's own columns as far as they are numbers, and wall time."""
    columns = ["method", "seed", *experiment.columns, "wall_s"]
    plain = [c for c in columns if c in found and not found[c].map(type).isin([list, dict]).any()]
    return found[plain]


def table_command(a: argparse.Namespace) -> None:
    """An experiment's records as one table, from files alone."""
    task = EXPERIMENTS[a.experiment]
    found = records.table(a.experiment, a.out)
    for column, values in (
        ("method", a.method), ("seed", a.seed), ("dataset", a.dataset and [a.dataset]),
        ("profile", a.profile and [a.profile]),
    ):  # fmt: skip
        if values and len(found):
            found = found[found[column].isin(values)]
    if a.csv:
        found.to_csv(a.csv, index=False)
        print(f"{len(found)} records, {found.shape[1]} columns: {a.csv}")
        return
    if not a.json and len(found):
        found = found[
            [c for c in ("dataset", "profile", "config_hash") if c in found]
            + list(final_table(task, found))
        ]
    show(found, a.json)


def audit_command(a: argparse.Namespace) -> None:
    """Is q the posterior? Trained on enumerable networks, against every mask."""
    torch.set_num_threads(1)
    seeds = range(5) if a.seed is None else a.seed
    table = audit_seeds(
        seeds, hidden=a.hidden, points=a.points, objectives=a.objectives,
        jobs=max(1, min(a.jobs, len(seeds))),
    )  # fmt: skip
    if a.json:
        show(table, True)
        return
    shown = ["tv", "tv_sd", "kl", "kl_sd", "gap", "log_z_error", "var_log_w", "spearman"]
    show(table[KEYS + shown], False, float_format="{:.4f}".format)
    print(f"sampled noise floor of tv at 10,000 draws: {table['tv_floor'].iloc[0]:.3f}")
    print(f"restarts differ by {table['restarts_spread'].max():.1e} nat")


def bench_command(a: argparse.Namespace) -> None:
    """What a method costs, as ratios to plain dropout."""
    gpu = {k: True for k in ("bf16", "channels_last", "compile") if getattr(a, k)}
    (process,) = a.seed or [0]
    if a.threads is not None:
        if a.threads < 1:
            raise ValueError(f"threads is {a.threads}, needs to be at least 1")
        torch.set_num_threads(a.threads)
    if process < 0:
        raise ValueError(f"seed is {process}, needs to be at least 0")
    tables = []
    for model in a.model:
        started = time.perf_counter()
        how = dict(pairs=a.pairs, batch=a.batch, device=a.device)
        tables.append(bench.compare(model, a.method, **how, **gpu))
        if a.save:
            wall = time.perf_counter() - started
            bench.save(tables[-1], a.device, a.out, wall, process, **gpu)
    if a.json:
        show(pd.concat(tables), True)
    for table in [] if a.json else tables:
        first = table.iloc[0]
        print(f"{first['model']}, batch {first['batch']}, {first['device']}")
        show(bench.readable(table), False)
    for model in a.model if a.parts else ():
        for name, time_by_part in bench.parts(model, a.method, a.batch, a.device, **gpu):
            print(f"\n{model}, a step of {name}\n{time_by_part.round(3)}")


# One spelling of each option, wherever it is taken.
OPTIONS: dict[str, dict[str, Any]] = {
    "--method": dict(nargs="+", help="default: all that the experiment names"),
    "--dataset": dict(help="default: the profile's, or the experiment's first"),
    "--seed": dict(nargs="+", type=int, help="default: the profile's"),
    "--profile": dict(help="how much work: see `list`; default: full"),
    "--device": dict(default="auto", help="auto, cpu, cuda, cuda:1, …"),
    "--jobs": dict(type=int, default=1, help="processes at once, one thread each"),
    "--json": dict(action="store_true", help="a list of objects, one per row"),
    "--out": dict(help="folder of records; default: book/results of a clone, else ./results"),
    "--root": dict(help="where data lie; default: $GFO_DATA, else ./data"),
    "--import": dict(
        nargs="+", default=[], dest="imports", metavar="MODULE",
        help="modules that file a method, model, data set or experiment of their own",
    ),
}  # fmt: skip
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], Sequence[str]]] = {
    "list": (list_command, ("--json", "--out", "--import")),
    "run": (run_command, tuple(OPTIONS)),
    "table": (
        table_command,
        ("--method", "--dataset", "--seed", "--profile", "--json", "--out", "--import"),
    ),
    "audit": (audit_command, ("--seed", "--jobs", "--json")),
    "bench": (bench_command, ("--method", "--seed", "--device", "--json", "--out", "--import")),
}


def parser() -> argparse.ArgumentParser:
    """The command line of all five."""
    top = argparse.ArgumentParser(prog="gfo-lab", description=__doc__)
    each = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name, (call, options) in COMMANDS.items():
        made[name] = each.add_parser(name, help=first_line(call), description=first_line(call))
        made[name].set_defaults(call=call)
        if name in ("run", "table"):
            made[name].add_argument("experiment")
        for option in options:
            made[name].add_argument(option, **OPTIONS[option])
    made["run"].set_defaults(profile="full")
    add = made["run"].add_argument
    add("--dry-run", action="store_true", help="say what is missing and how long it took elsewhere")
    add("--force", action="store_true", help="redo recorded runs")
    add("--engine", default="processes", help=f"one of {', '.join(sweep.ENGINES)}")
    add("--scheduler", help="address of a Dask scheduler, tcp://HOST:8786")
    add("--scratch", help="checkpoints and claims; default: the temporary folder")
    made["table"].add_argument("--csv", help="write all columns into this file instead")
    made["audit"].set_defaults(jobs=2)
    add = made["audit"].add_argument
    add("--hidden", type=int, nargs="+", default=[5, 5], help="units of the hidden layers")
    add("--points", type=int, default=40, help="training examples looked at")
    add("--objectives", default="default", choices=["default", "all"])
    add = made["bench"].add_argument
    add("--model", nargs="+", default=list(bench.CASES))
    add("--pairs", type=int, default=bench.PAIRS, help="rounds of timings")
    add("--batch", type=int, help="default: 128 for the MLP, 32 for the ResNet")
    add("--threads", type=int, help="torch's CPU threads; default: its own choice")
    add("--parts", action="store_true", help="also show where a step's time goes")
    # The interval of one process does not hold what differs between processes: `--seed` is the
    # number of this one, on record.
    add("--save", action="store_true", help="write records; --seed numbers this process")
    for option in ("bf16", "channels-last", "compile"):
        add(f"--{option}", action="store_true", help="on a GPU only")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input is told in one line, with exit status 2."""
    a = parser().parse_args(argv)
    try:
        bring(getattr(a, "imports", NONE))
        pick_device(getattr(a, "device", "auto"))
        a.out = Path(getattr(a, "out", None) or records.RESULTS)
        a.call(a)
    except (ValueError, FileNotFoundError) as error:
        print(f"gfo-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gfo-lab: stopped; finished runs are saved, the same command goes on", file=sys.stderr
        )
        return 130
    return 0
