"""Run what an experiment lacks, save each finished run at once."""

import shlex
import tarfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain, takewhile
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
from gfo_lab.experiments.job import EXPERIMENTS, Experiment
from gfo_lab.experiments.search import NotTuned
from gfo_lab.plugins import bring
from gfo_lab.profiles import budget
from gfo_lab.sweep import ENGINES, FailedRuns, How, Unfinished, one, run_name, scratch_folder

from gfo_lab.sweep import spread, tidy  # isort: skip

QUEUES = Registry("queue", declared(__file__, "queues.toml"))


class Plan(NamedTuple):
    """What a call of `run` would do. grid: the identity of every run. missing: those without a
    record, all under `force`. seconds: what the missing ones took on record elsewhere, as far as
    known. unknown: runs whose like is not on record."""

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
    todo = plan(experiment, methods, dataset, seeds, profile, out, force)
    many = engine == "dask" or jobs > 1
    folders = Path(root).resolve() if root else None, todo.out, scratch_folder(scratch)
    how = How(device, *folders, progress and not many, 1 if many else None, tuple(imports))
    writable(todo.out / experiment), writable(how.scratch)
    tidy(how, experiment)
    work = partial(rounds, how=how, crew=(jobs, engine, scheduler), progress=progress)
    # First what nobody has claimed; then wait for the others, and take over what they leave.
    first = work(todo.missing, force=force, wait=False)
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
    a queue; the same command goes on. What fails, or waits for a search that has, holds up nothing
    else.

    Args:
        queue: Its name.
        minutes: How long.
        how: Where to compute, where data lie and where records go.
        asked: methods, dataset, seeds and profile, for what an entry leaves open.

    Raises:
        FailedRuns: At the end, where runs failed, or wait for a search; it names each, with the
            reason and the command that does it again.
    """
    started, longest, ended, waiting = time.monotonic(), 0.0, [], []

    def in_time(_: Any) -> bool:
        return time.monotonic() - started + longest < 60 * minutes

    for entry in takewhile(in_time, QUEUES[queue]):
        writable(how.out / entry["experiment"])
        tidy(how, entry["experiment"])
        runs, untuned = ready(how.out, **asked | entry)
        waiting += untuned
        for identity in takewhile(in_time, runs):
            begun = time.monotonic()
            lost = one(identity, how, False, False)
            longest = max(longest, took := time.monotonic() - begun)
            ended.append(lost)
            why = lost.why or "another process has it" if lost else "done"
            print(f"{run_name(identity)}: {why}, {took:.0f} s", flush=True)
            write_atomically(f"{how.out}.tar.gz", partial(pack, how.out))
    failed = [lost._replace(why=again(lost, how)) for lost in ended if lost and lost.why]
    if failed or waiting:
        raise FailedRuns(failed, pd.DataFrame(index=range(ended.count(None))), waiting)


def ready(
    out: Path, methods: Sequence[str] | None = None, **what: Any
) -> tuple[list[dict], list[str]]:
    """The runs of a queue's entry that have no record, and a line for each of its methods that has
    to wait, since the search that chooses its configuration is not complete."""
    try:
        return plan(methods=methods, out=out, **what).missing, []
    except NotTuned as error:
        names = methods or EXPERIMENTS[what["experiment"]].methods
        if len(names) == 1:
            return [], [f"{what['experiment']} --profile {what['profile']} waits: {error}"]
    each = [ready(out, [name], **what) for name in names]
    runs, lines = (list(chain(*part)) for part in zip(*each, strict=True))
    return sorted(runs, key=lambda run: run["seed"]), lines


def again(lost: Unfinished, how: How) -> str:
    """Why a run failed, and the command that does it again, from its checkpoint on."""
    told = {name: lost.identity[name] for name in ("dataset", "method", "seed", "profile")}
    told |= {name: getattr(how, name) for name in ("device", "root", "out", "scratch")}
    words = [f"--{name}={value}" for name, value in told.items() if value is not None]
    words += ["--import", *how.imports] if how.imports else []
    command = shlex.join(["python", "-m", "gfo_lab", "run", lost.identity["experiment"], *words])
    return f"{lost.why}; again: {command}"


def pack(out: Path, archive: Path) -> None:
    """Put all records under `out` into a .tar.gz: nothing else, since what another process has not
    finished to write may vanish meanwhile."""
    with tarfile.open(archive, "w:gz") as file:
        for path in sorted(out.glob("*/*.json")):
            file.add(path, path.relative_to(out))


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
        try:
            rows.append(records.read_one(records.path_of(**identity, out=todo.out)))
        except (ValueError, OSError) as error:
            failed.append(Unfinished(identity, str(error)))
    if failed:
        raise FailedRuns(failed, pd.DataFrame(rows))
    return pd.DataFrame(rows)


def plan(
    experiment: str, methods: Sequence[str] | None = None, dataset: str | None = None,
    seeds: Sequence[int] | None = None, profile: str = "full", out: str | Path | None = None,
    force: bool = False,
) -> Plan:  # fmt: skip
    """What `run` would do with the same arguments; nothing is run or written.

    Raises:
        ValueError: For a name that is not known, or a combination that makes no sense; `NotTuned`,
            which is one, where a search that chooses a configuration is not complete.
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
    missing = grid if force else without_record(grid, out)
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
    check_whole("jobs", jobs, 1)
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, needs to be one of {', '.join(ENGINES)}")
    if scheduler and engine != "dask":
        raise ValueError("a scheduler was named: pass engine='dask' (--engine dask) with it")
