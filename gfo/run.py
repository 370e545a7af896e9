"""`python -m gfo.run EXPERIMENT`: run what is missing, save each finished run at once."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from . import records
from .experiments import EXPERIMENTS
from .experiments.job import Job
from .fit import pick_device
from .methods import create
from .profiles import budget
from .registry import DATASETS


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
) -> pd.DataFrame:
    """Run each (method, seed) of an experiment that has no record yet; return all their records.

    All names are checked before any work starts. A run that is stopped goes on from its last epoch
    when called again. `out` is book/results by default. `force` redoes recorded runs.
    """
    task, work = EXPERIMENTS[experiment], budget(profile)
    methods, seeds = list(methods or task.methods), list(work.seeds if seeds is None else seeds)
    dataset = dataset or work.dataset
    plain = getattr(task, "baselines", ())  # rows of an experiment that are no dropout methods
    DATASETS[dataset], [create(m) for m in methods if m not in plain], pick_device(device)
    out = Path(out or records.RESULTS)
    records.provenance()
    grid = [
        dict(experiment=experiment, dataset=dataset, method=m, seed=s, profile=profile, config=c)
        for s in seeds
        for m in methods
        for c in task.configs(dataset, m, profile)
    ]
    todo = [i for i in grid if force or not records.path_of(**i, out=out).exists()]
    for identity in tqdm(todo, desc=f"{experiment} on {dataset}", disable=not progress):
        one(task, identity, device, root, out, progress)
    found = records.read(experiment, out, dataset=dataset, profile=profile)
    return found[found["method"].isin(methods) & found["seed"].isin(seeds)]


def one(task, identity: dict, device: str, root, out: Path, progress: bool) -> Path:
    """One run and its record; a checkpoint outside the results folder lets it resume."""
    name = records.path_of(**identity, out=Path()).with_suffix(".pt").name
    checkpoint = (
        Path(tempfile.gettempdir()) / "gfo-checkpoints" / f"{identity['experiment']}_{name}"
    )
    started = time.perf_counter()
    what = (identity[k] for k in ("dataset", "method", "seed", "config"))
    metrics = task.run(Job(*what, root, device, checkpoint, progress))
    wall = time.perf_counter() - started
    path = records.write(
        **identity, metrics=metrics, device=pick_device(device), wall_s=wall, out=out
    )
    for left in checkpoint.parent.glob(f"{checkpoint.stem}.*"):  # one a member of an ensemble
        left.unlink()
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gfo.run", description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--method", nargs="+", help="default: all the experiment names")
    parser.add_argument("--dataset", help="default: the profile's")
    parser.add_argument("--seed", nargs="+", type=int, help="default: the profile's")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--root", help="where data lie; default: $GFO_DATA, else ./data")
    parser.add_argument("--out", help="where records go; default: book/results")
    parser.add_argument("--force", action="store_true", help="redo recorded runs")
    a = parser.parse_args(argv)
    try:
        found = run(
            a.experiment, methods=a.method, dataset=a.dataset, seeds=a.seed, profile=a.profile,
            device=a.device, root=a.root, out=a.out, force=a.force,
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
    print(found[[c for c in columns if c in found]].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
