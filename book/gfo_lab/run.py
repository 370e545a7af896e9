"""Run what an experiment lacks, save each finished run at once."""

import shutil
import time
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import pandas as pd
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm.auto import tqdm

from gfo.core.batch import pick_device
from gfo.core.checks import check_whole
from gfo.core.files import write_atomically
from gfo.core.registry import DATASETS, Registry
from gfo.methods import create
from gfo.train.checkpoint import check_writable
from gfo_lab import declared, records
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.experiments.job import Experiment
from gfo_lab.plugins import bring
from gfo_lab.profiles import budget
from gfo_lab.sweep import ENGINES, FailedRuns, How, Unfinished, one, run_name, scratch_folder

from gfo_lab.sweep import spread, tidy  # isort: skip

QUEUES = Registry("queue", declared(__file__, "queues.toml"))


class Plan(NamedTuple):
    """What a call of `run` would do. grid: the identity of every run. missing: those without a
    record. seconds: what the missing ones took on record elsewhere, as far as known. unknown: runs
    whose like is not on record."""

    grid: list[dict]
    out: Path
    missing: list[dict]
    seconds: float
    unknown: int


def run(
    experiment: str, *, methods: Sequence[str] | None = None, dataset: str | None = None,
    seeds: Sequence[int] | None = None, profile: str = "full", device: str = "auto",
    root: str | Path | None = None, out: str | Path | None = None, force: bool = False,
    progress: bool = True, jobs: int = 1, engine: str = "processes", scheduler: str | None = None,
    scratch: str | Path | None = None, imports: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """Run each (method, seed) of an experiment that has no record yet; return all their records.

    All names are checked before any work starts. A stopped run goes on from its last epoch when
    called again with the same source, `root` and `out`. Several calls side by side, here or on
    machines that see the same `out` and `scratch`, share the work and return when all is done.

    Args:
        experiment, methods, dataset, seeds, profile: What to run; by default what the experiment
            and its profile name.
        device, root, out, scratch: Where to compute, where data lie, where records go
            (`records.RESULTS`), and the folder of checkpoints and claims (the temporary one).
        force: Redo recorded runs from their beginning.
        progress: Show bars.
        jobs: Processes at once, one torch thread each; 1 runs here, with torch's own threads.
        engine: "processes" of this machine, or "dask": the workers at the address `scheduler`, or
            without one `jobs` workers on this machine.
        imports: Modules to import first, in every worker too: see `plugins`.

    Raises:
        ValueError: For a name that is not known, or a combination that makes no sense.
        FailedRuns: At the end, where runs failed; it names each, with the reason, and holds the
            records of the others.
    """
    pick_device(device)
    check_engine(jobs, engine, scheduler)
    bring(imports)
    todo = plan(experiment, methods, dataset, seeds, profile, out)
    many = engine == "dask" or jobs > 1
    how = How(
        device, Path(root).resolve() if root else None, todo.out, scratch_folder(scratch),
        progress and not many, 1 if many else None, tuple(imports),
    )  # fmt: skip
    writable(todo.out / experiment), writable(how.scratch)
    tidy(how, experiment)
    work = partial(rounds, how=how, crew=(jobs, engine, scheduler), progress=progress)
    # First what nobody has claimed; then wait for the others, and take over what they leave.
    first = work(todo.grid if force else todo.missing, force=force, wait=False)
    failed, claimed = [run for run in first if run.why], [run for run in first if not run.why]
    tried = [run.identity for run in first]
    left = [i for i in without_record(todo.grid, todo.out) if i not in tried]
    left += [run.identity for run in claimed]
    return recorded(todo, failed + work(left, force=False, wait=True))


def run_queue(queue: str, minutes: float, how: How, **asked: Any) -> None:
    """Do the runs of a queue, in the order of queues.toml, that have no record yet; say of each how
    it ended.

    Each is saved when it is finished, and all records put into an archive beside their folder. None
    begins once less time is left than the longest has taken so far. Two commands side by side share
    a queue; the same command goes on.

    Args:
        queue: Its name.
        minutes: How long.
        how: Where to compute, where data lie and where records go.
        asked: methods, dataset, seeds and profile, for what an entry leaves open.

    Raises:
        FailedRuns: At the end, where runs failed; it names each, with the reason.
    """
    started, longest, ended = time.monotonic(), 0.0, []
    pack = partial(shutil.make_archive, format="gztar", root_dir=how.out)
    for entry in takewhile(lambda _: time.monotonic() - started < 60 * minutes, QUEUES[queue]):
        writable(how.out / entry["experiment"])
        for identity in plan(**asked | entry, out=how.out).missing:
            begun = time.monotonic()
            if begun - started + longest < 60 * minutes:
                lost = one(identity, how, False, False)
                longest = max(longest, took := time.monotonic() - begun)
                ended.append(lost)
                why = lost.why or "another process has it" if lost else "done"
                print(f"{run_name(identity)}: {why}, {took:.0f} s", flush=True)
                # whole, though another process on this queue may be writing it too
                write_atomically(f"{how.out}.tar.gz", lambda p: shutil.move(pack(str(p)), p))
    if failed := [lost for lost in ended if lost and lost.why]:
        raise FailedRuns(failed, pd.DataFrame(index=range(ended.count(None))))


def rounds(
    runs: list[dict], *, how: How, crew: tuple, progress: bool, force: bool, wait: bool
) -> list[Unfinished]:
    """Do `runs` on a `crew`, as `spread` takes it; those that came to no record."""
    if not runs:
        return []
    done = spread([joblib.delayed(one)(run, how, force, wait) for run in runs], *crew)
    label = f"{runs[0]['experiment']} on {runs[0]['dataset']}"
    label += ", waiting for other processes" * wait
    try:
        return [run for run in tqdm(done, label, len(runs), disable=not progress) if run]
    except TerminatedWorkerError:
        said = "a worker process was killed, or ran out of memory: finished runs are saved"
        raise ValueError(f"{said}, the same command goes on") from None


def recorded(todo: Plan, failed: list[Unfinished]) -> pd.DataFrame:
    """The records of all runs; FailedRuns where some failed, or their records cannot be read."""
    rows, tried = [], [run.identity for run in failed]
    for identity in (each for each in todo.grid if each not in tried):
        path = records.path_of(**identity, out=todo.out)
        try:
            rows.append(records.read_one(path))
        except (ValueError, OSError) as error:
            failed.append(Unfinished(identity, str(error)))
    if failed:
        raise FailedRuns(failed, pd.DataFrame(rows))
    return pd.DataFrame(rows)


def plan(
    experiment: str, methods: Sequence[str] | None = None, dataset: str | None = None,
    seeds: Sequence[int] | None = None, profile: str = "full", out: str | Path | None = None,
) -> Plan:  # fmt: skip
    """What `run` would do with the same arguments; nothing is run or written.

    Raises:
        ValueError: For a name that is not known, or a combination that makes no sense.
    """
    task, work = EXPERIMENTS[experiment], budget(profile)
    named, methods = bool(methods), [*dict.fromkeys(methods or task.methods)]  # twice is once
    seeds = work.seeds if seeds is None else [check_whole("seed", s) for s in dict.fromkeys(seeds)]
    dataset = data_set(task, dataset, work.dataset)
    for method in methods:
        if method not in task.baselines:
            create(method)
    out = Path(out or records.RESULTS).resolve()
    what = dict(experiment=experiment, dataset=dataset, profile=profile)
    own = {m: task.configs(dataset, m, profile) for m in methods}  # once: some read records
    if idle := [m for m in methods if not own[m] and named]:
        raise ValueError(f"{idle[0]} {task.without}: {', '.join(task.methods)}")
    grid = [what | dict(method=m, seed=s, config=c) for s in seeds for m in methods for c in own[m]]
    missing = without_record(grid, out)
    try:
        known = records.read(experiment, dataset=dataset, profile=profile)
    except ValueError:  # a damaged record elsewhere costs no more than the estimate
        known = pd.DataFrame()
    wall = known.groupby("method")["wall_s"].mean().to_dict() if len(known) else {}
    seconds = [wall[i["method"]] for i in missing if i["method"] in wall]
    return Plan(grid, out, missing, sum(seconds), len(missing) - len(seconds))


def without_record(grid: list[dict], out: Path) -> list[dict]:
    """The identities of `grid` that have no record under `out`."""
    return [identity for identity in grid if not records.path_of(**identity, out=out).exists()]


def writable(out: Path) -> None:
    """Make the folder where it is missing; ValueError where no record could be written there."""
    check_writable(out / "record.json", "file")


def data_set(task: Experiment, asked: str | None, usual: str) -> str:
    """The data set of a run: `asked` for, or the profile's `usual` one or what is made of it, or
    the first that the experiment knows. ValueError for one that it does not know."""
    made = (name for name in task.datasets if name.startswith(usual))
    name = asked or next(made, task.datasets[0])
    if name not in task.datasets:
        DATASETS[name]  # an unknown one has a nearest match
        raise ValueError(f"no such experiment on {name!r}; known: {', '.join(task.datasets)}")
    return name


def check_engine(jobs: int, engine: str, scheduler: str | None) -> None:
    """ValueError for a way of running that there is not."""
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, needs to be at least 1")
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, needs to be one of {', '.join(ENGINES)}")
    if scheduler and engine != "dask":
        raise ValueError("a scheduler was named: pass engine='dask' (--engine dask) with it")
