"""`python -m gfo_lab`, also `gfo-lab`: list, run, table, audit and bench."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gfo.audit.trial import KEYS, audit_seeds
from gfo.core.batch import pick_device
from gfo.core.checks import check_whole
from gfo.core.registry import DATASETS, METHODS
from gfo_lab import bench, declared, records
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.plugins import bring
from gfo_lab.profiles import PROFILES
from gfo_lab.run import QUEUES, check_engine, plan, run, run_queue, without_record, writable
from gfo_lab.sweep import FailedRuns, How, scratch_folder


def show(frame: pd.DataFrame, as_json: bool, **how: Any) -> None:
    """Print a table, or its rows as a JSON list with null for what is not there, or not finite."""
    if as_json:
        there = frame.notna() & ~frame.isin([float("inf"), -float("inf")])  # JSON has none
        rows = frame.astype(object).where(there, None).to_dict("records")
        print(json.dumps(rows, indent=1, default=str))
    else:
        print(frame.to_string(index=False, na_rep="", **how) if len(frame) else "no records")


def first_line(thing: Any) -> str:
    """The first line of a function's or class's docstring, of a partial's function too."""
    return (getattr(thing, "func", thing).__doc__ or "").strip().split("\n")[0]


def list_command(a: argparse.Namespace) -> None:
    """What there is: experiments and their records, methods, data sets and profiles."""
    rows = []
    for name, experiment in sorted(EXPERIMENTS.items()):
        count = len(list((a.out / name).glob("*.json")))
        rows.append(("experiment", name, f"{experiment.about} ({count} records)"))
    for kind, known in (("method", METHODS), ("data set", DATASETS)):
        rows += [(kind, name, first_line(thing)) for name, thing in known.items()]
    for name, work in PROFILES.items():
        what = f"{work.dataset}, {work.epochs} epochs of {work.batch}, seeds {list(work.seeds)}"
        rows.append(("profile", name, what))
    if a.json:
        return show(pd.DataFrame(rows, columns=["kind", "name", "what"]), True)
    for kind, name, what in rows:
        print(f"{kind:<11}{name:<18}{what}")


def run_command(a: argparse.Namespace) -> None:
    """Run what has no record yet; killed at any moment, the same command goes on."""
    what = dict(methods=a.method, dataset=a.dataset, seeds=a.seed, profile=a.profile, out=a.out)
    usual = vars(parser().parse_args(["run", a.experiment]))
    idle = {"minutes"}
    if queue := QUEUES.get(a.experiment):  # what all its entries say themselves is not asked for
        own = {name.removesuffix("s") for name in set.intersection(*map(set, queue))}
        idle = {*"dry_run jobs json force engine scheduler".split(), *own}
    if given := [option for option in sorted(idle) if vars(a)[option] != usual[option]]:
        raise ValueError(f"{a.experiment} takes no --{given[0].replace('_', '-')}")
    if a.minutes <= 0:
        raise ValueError(f"minutes is {a.minutes}, needs to be at least 1")
    if a.experiment in QUEUES:
        folders = a.root and Path(a.root).resolve(), what.pop("out").resolve()
        how = How(a.device, *folders, scratch_folder(a.scratch), True, None, tuple(a.imports))
        return run_queue(a.experiment, a.minutes, how, **what)
    if not a.dry_run:
        how = dict(device=a.device, root=a.root, force=a.force, jobs=a.jobs, engine=a.engine,
                   scheduler=a.scheduler, scratch=a.scratch, imports=a.imports)  # fmt: skip
        try:
            found = run(a.experiment, **what, **how)
        except FailedRuns as error:
            show(final_table(EXPERIMENTS[a.experiment].columns, error.found), a.json)
            raise
        return show(final_table(EXPERIMENTS[a.experiment].columns, found), a.json)
    check_engine(a.jobs, a.engine, a.scheduler)
    todo = plan(a.experiment, **what, force=a.force)
    left = pd.DataFrame(todo.missing, columns=["dataset", "method", "seed", "profile"])
    new = without_record(todo.grid, todo.out) if a.force else todo.missing
    if a.force:
        left["record"] = ["new" if run in new else "overwritten" for run in todo.missing]
    if a.json:
        return show(left, True)
    print(f"{len(new)} of {len(todo.grid)} runs have no record under {todo.out}")
    if todo.missing:
        print(left.to_string(index=False, header=False))
        if known := len(todo.missing) - todo.unknown:
            minutes = todo.seconds / 60 / a.jobs
            print(f"{known} like these took {minutes:.1f} min on record, {a.jobs} at once")
        if todo.unknown:
            print(f"{todo.unknown} have no like on record: how long they take is not known")


def final_table(columns: Sequence[str], found: pd.DataFrame) -> pd.DataFrame:
    """Method, seed, an experiment's own `columns` as far as they are numbers, and wall time."""
    columns = ["method", "seed", *columns, "wall_s"]
    plain = [c for c in columns if c in found and not found[c].map(type).isin([list, dict]).any()]
    return found[plain]


def table_command(a: argparse.Namespace) -> None:
    """An experiment's records as one table, from files alone."""
    task, found = EXPERIMENTS[a.experiment], records.table(a.experiment, a.out)
    for column in ("method", "seed", "dataset", "profile"):
        asked = [value] if isinstance(value := getattr(a, column), str) else value or []
        if lost := [value for value in asked if value not in {*found.get(column, ())}]:
            raise ValueError(f"no record of {a.experiment} has {column} {lost[0]!r}")
        found = found[found[column].isin(asked)] if asked else found
    if a.csv:
        found.to_csv(a.csv, index=False)
        print(f"{len(found)} records, {found.shape[1]} columns: {a.csv}")
    elif a.json or not len(found):
        show(found, a.json)
    else:
        about = found[["dataset", "profile", "config_hash"]]
        show(pd.concat([about, final_table(task.columns, found)], axis=1), False)


def audit_command(a: argparse.Namespace) -> None:
    """Is q the posterior? Trained on enumerable networks, against every mask."""
    torch.set_num_threads(1)
    seeds = range(5) if a.seed is None else a.seed
    how = dict(hidden=a.hidden, points=a.points, objectives=a.objectives)
    table = audit_seeds(seeds, jobs=min(check_whole("jobs", a.jobs, 1), len(seeds)), **how)
    if a.json:
        return show(table, True)
    shown = ["tv", "tv_sd", "kl", "kl_sd", "gap", "log_z_error", "var_log_w", "spearman"]
    show(table[KEYS + shown], False, float_format="{:.4f}".format)
    print(f"sampled noise floor of tv at 10,000 draws: {table['tv_floor'].iloc[0]:.3f}")
    print(f"restarts differ by {table['restarts_spread'].max():.1e} nat")


def bench_command(a: argparse.Namespace) -> None:
    """What a method costs, as ratios to plain dropout."""
    gpu = {k: True for k in ("bf16", "channels_last", "compile", "graph") if getattr(a, k)}
    if len(seeds := a.seed or [0]) > 1:
        raise ValueError(f"bench measures one process, not {len(seeds)}: give one seed")
    alone = dict(model=DEFAULTS["bench"]["model"], method=None, batch=None)
    if idle := [name for name, usual in alone.items() if a.growth and getattr(a, name) != usual]:
        raise ValueError(f"--growth has sizes of its own: leave out --{idle[0]}")
    process = check_whole("seed", seeds[0])
    records.provenance(), [bench.CASES[model] for model in a.model]  # before any time is lost
    if a.threads is not None:
        torch.set_num_threads(check_whole("threads", a.threads, 1))
    if a.save:
        writable(a.out / ("growth" if a.growth else "bench"))
    tables, how = [], dict(pairs=a.pairs, batch=a.batch, device=a.device, **gpu)
    for model in a.model[:1] if a.growth else a.model:
        started = time.perf_counter()
        table = bench.growth(**how) if a.growth else bench.compare(model, a.method, **how)
        tables.append(table)
        if a.save:
            bench.save(table, a.device, a.out, time.perf_counter() - started, process, **gpu)
    if a.json:
        show(pd.concat(tables), True)
    for table in [] if a.json else tables:
        print("{model}, {device}".format(**table.iloc[0]))
        show(bench.readable(table), False)
        print(bench.ABOUT["notes"] + ("" if bench.RIVALS else bench.ABOUT["no_rival"]))


ABOUT = declared(__file__)
COMMANDS = {
    "list": list_command, "run": run_command, "table": table_command, "audit": audit_command,
    "bench": bench_command,
}  # fmt: skip
DEFAULTS = ABOUT["defaults"] | {"bench": dict(model=list(bench.CASES), pairs=bench.PAIRS)}


def parser() -> argparse.ArgumentParser:
    """The command line of all five."""
    top = argparse.ArgumentParser(prog="gfo-lab", description=__doc__)
    each = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, call in COMMANDS.items():
        one = each.add_parser(name, help=first_line(call), description=first_line(call))
        if name in ("run", "table"):
            one.add_argument("experiment")
        for option in ABOUT["commands"][name].split():
            how = ABOUT["options"][option]
            kind = {"type": int} if "type" in how else {}  # the only one that TOML names
            one.add_argument(f"--{option}", **how | kind)
        one.set_defaults(call=call, **DEFAULTS.get(name, {}))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input is told in one line, with exit status 2; failed runs are listed
    at the end, with exit status 1."""
    a = parser().parse_args(argv)
    try:
        if empty := [name for name, value in vars(a).items() if value == ""]:
            raise ValueError(f"--{empty[0]} is empty: name something, or leave it out")
        bring(getattr(a, "imports", ()))
        pick_device(getattr(a, "device", "auto"))
        a.out = Path(getattr(a, "out", None) or records.RESULTS)
        a.call(a)
        return 0
    except FailedRuns as error:
        said, status = str(error), 1
    except (ValueError, OSError, ImportError) as error:
        said, status = str(error), 2
    except KeyboardInterrupt:
        said, status = "stopped; finished runs are saved: the same command goes on", 130
    print(f"gfo-lab: {said}", file=sys.stderr)
    return status
