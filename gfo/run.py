"""`python -m gfo.run EXPERIMENT`: run what is missing, save each finished run at once."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from tqdm.auto import tqdm

from . import records
from .experiments import EXPERIMENTS
from .fit import pick_device
from .methods import create
from .profiles import budget
from .registry import DATASETS
from .sweep import ENGINES, How, one, scratch_folder, spread


def run(
    experiment: str,
    *,
    methods: Sequence[str] | None = None,
    dataset: str | None = None,
    seeds: Sequence[int] | None = None,
    profile: str = "full",
    device: str = "auto",
    root: str | Path | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    jobs: int = 1,
    engine: str = "processes",
    scheduler: str | None = None,
    scratch: str | Path | None = None,
) -> pd.DataFrame:
    """Run each (method, seed) of an experiment that has no record yet; return all their records.

    All names are checked before any work starts. A run that is stopped goes on from its last epoch
    when called again with the same source, `root` and `out`. Several calls side by side, here or on
    machines that see the same `out` and `scratch`, share the work: each run is claimed by one of
    them, and each call returns when all are done. `out` is book/results by default. `force` redoes
    recorded runs from their beginning.

    jobs: runs at once, each a process with one torch thread; 1 runs here, with torch's own threads.
    engine: "processes" of this machine, or "dask": the workers at the address `scheduler`, or
        without one `jobs` workers on this machine.
    scratch: folder of checkpoints and claims; the system's temporary folder by default.
    """
    task, work = EXPERIMENTS[experiment], budget(profile)
    methods, seeds = list(methods or task.methods), list(work.seeds if seeds is None else seeds)
    dataset = data_set(task, dataset, work.dataset)
    plain = getattr(task, "baselines", ())  # rows of an experiment that are no dropout methods
    [create(m) for m in methods if m not in plain], pick_device(device)
    if wrong := [s for s in seeds if s < 0]:
        raise ValueError(f"seed {wrong[0]}: seeds are whole numbers from 0 on")
    check_engine(jobs, engine, scheduler)
    out = writable(Path(out or records.RESULTS).resolve())
    grid = [
        dict(experiment=experiment, dataset=dataset, method=m, seed=s, profile=profile, config=c)
        for s in seeds
        for m in methods
        for c in task.configs(dataset, m, profile)
    ]

    def missing() -> list[dict]:
        return [i for i in grid if not records.path_of(**i, out=out).exists()]

    many = engine == "dask" or jobs > 1
    how = How(
        task, device, Path(root).resolve() if root else None, out, scratch_folder(scratch),
        progress and not many, 1 if many else None,
    )  # fmt: skip
    todo = grid if force else missing()
    # First what nobody has claimed; then wait for the others, and take over what they leave.
    for what, wait in (("", False), (", waiting for other processes", True)):
        if todo:
            calls = [joblib.delayed(one)(i, how, force and not wait, wait) for i in todo]
            done = spread(calls, jobs, engine, scheduler)
            label = f"{experiment} on {dataset}{what}"
            claimed = [
                i for i in tqdm(done, desc=label, total=len(todo), disable=not progress) if i
            ]
            todo = [i for i in missing() if i not in claimed] + claimed
    rows = [records.read_one(records.path_of(**identity, out=out)) for identity in grid]
    return pd.DataFrame(rows)


def writable(out: Path) -> Path:
    """The folder, made where it is missing; ValueError where no record could be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise ValueError(f"out={str(out)!r} cannot be written to: {error.strerror}") from None


def data_set(task: Any, asked: str | None, usual: str) -> str:
    """The data set of a run: `asked` for, or the profile's `usual` one, or the first that the
    experiment knows. ValueError for one that it does not know."""
    known = getattr(task, "datasets", None) or tuple(DATASETS)
    name = asked or (usual if usual in known else known[0])
    if name not in known:
        DATASETS[name]  # an unknown one has a nearest match
        raise ValueError(f"no such experiment on {name!r}; known: {', '.join(known)}")
    return name


def check_engine(jobs: int, engine: str, scheduler: str | None) -> None:
    """ValueError for a way of running that there is not."""
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, needs to be at least 1")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, needs to be one of {', '.join(ENGINES)}")
    if scheduler and engine != "dask":
        raise ValueError("a scheduler was named: pass engine='dask' (--engine dask) with it")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gfo.run", description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--method", nargs="+", help="default: all the experiment names")
    parser.add_argument("--dataset", help="default: the profile's, or the experiment's first")
    parser.add_argument("--seed", nargs="+", type=int, help="default: the profile's")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--root", help="where data lie; default: $GFO_DATA, else ./data")
    parser.add_argument("--out", help="where records go; default: book/results")
    parser.add_argument("--force", action="store_true", help="redo recorded runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--engine", default="processes", help=f"one of {', '.join(ENGINES)}")
    parser.add_argument("--scheduler", help="address of a Dask scheduler, tcp://HOST:8786")
    parser.add_argument("--scratch", help="checkpoints and claims; default: the temporary folder")
    a = parser.parse_args(argv)
    try:
        found = run(
            a.experiment, methods=a.method, dataset=a.dataset, seeds=a.seed, profile=a.profile,
            device=a.device, root=a.root, out=a.out, force=a.force,
            jobs=a.jobs, engine=a.engine, scheduler=a.scheduler, scratch=a.scratch,
        )  # fmt: skip
    except (ValueError, FileNotFoundError) as error:
        print(f"gfo.run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "gfo.run: stopped; finished runs are saved, the same command goes on", file=sys.stderr
        )
        return 130
    columns = ["method", "seed", "accuracy", "accuracy_rotated", "nll", "ece", "epochs", "wall_s"]
    plain = [c for c in columns if c in found and not found[c].map(type).eq(list).any()]
    print(found[plain].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
