"""One run and its record under a claim, and many runs at once through joblib."""

import inspect
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import pandas as pd
import torch
from filelock import FileLock, Timeout

from gfo.core.batch import pick_device
from gfo.data.splits import data_root
from gfo_lab import records
from gfo_lab.experiments.job import EXPERIMENTS, Job
from gfo_lab.json_files import read_json, write_json
from gfo_lab.plugins import bring, optional

ENGINES = ("processes", "dask")
STALE = 3600  # seconds: no file is being written for so long
PATIENCE = 60  # seconds that a scheduler has to answer, and its first worker to come


class How(NamedTuple):
    """What all runs of a sweep share. scratch: checkpoints and claims.
    threads: of torch, None leaves its own setting. imports: modules that file what is run.

    A tuple of plain things, which joblib sends along with each call. A class or other large object
    of its own it would leave on one Dask worker for the others to fetch, and lose with that worker.
    """

    device: str
    root: Path | None
    out: Path
    scratch: Path
    progress: bool
    threads: int | None
    imports: tuple[str, ...] = ()


class Unfinished(NamedTuple):
    """A run without a record. why: in one line; None where another process has claimed it."""

    identity: dict
    why: str | None


class FailedRuns(RuntimeError):
    """Runs of a sweep that failed, a line each, and behind them `waiting`, lines on what could not
    begin; `found` are the records of the others."""

    def __init__(self, failed: Sequence[Unfinished], found: pd.DataFrame, waiting: Sequence = ()):
        lines = [f"{run_name(u.identity)} failed: {u.why}" for u in failed]
        head = [f"{len(lines)} of {len(lines) + len(found)} runs failed; the others are on record"]
        super().__init__("\n".join([*head * (len(lines) > 1), *lines, *dict.fromkeys(waiting)]))
        self.failed, self.found, self.waiting = list(failed), found, list(waiting)

    def __reduce__(self):
        return FailedRuns, (self.failed, self.found, self.waiting)


def run_name(identity: dict) -> str:
    """How messages and files in scratch call a run."""
    return f"{identity['experiment']}_{records.path_of(**identity, out=Path()).stem}"


def in_one_line(error: Exception) -> str:
    """What went wrong; the kind of error where its words alone would not tell."""
    text = " ".join(str(error).split())[:500]
    plain = text and isinstance(error, ValueError | FileNotFoundError)
    return text if plain else f"{type(error).__name__}: {text}"


def scratch_folder(scratch: str | Path | None) -> Path:
    """Where checkpoints and claims lie, outside the results: a folder of the user's own in the
    system's temporary folder unless said otherwise."""
    # users of one machine share /tmp; on Windows the temporary folder is the user's own
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return Path(scratch or Path(tempfile.gettempdir()) / f"gfo-checkpoints{user}").resolve()


def one(identity: dict, how: How, force: bool, wait: bool) -> Unfinished | None:
    """Do one run and write its record, unless it is there. Returns what says why where it fails, or
    where another process has claimed the run and we are not to wait for it, else None.

    The claim is a lock of the operating system: it ends with the process that holds it, however
    that ends, so that a killed run is free for the next comer, who goes on from its checkpoint.
    """
    # the source as it is now, not as it is when the run ends
    records.provenance(), records.source()
    bring(how.imports)
    if how.threads:
        torch.set_num_threads(how.threads)
    path, name = records.path_of(**identity, out=how.out), run_name(identity)
    checkpoint = how.scratch / f"{name}.{origin(how)}.pt"
    checkpoints = f"{checkpoint.stem}.*"  # one per member of an ensemble
    how.scratch.mkdir(parents=True, exist_ok=True)
    try:
        with claimed(how.scratch / f"{name}.lock", -1 if wait else 0):
            remove(path.parent, f".{path.name}.*.tmp")  # of a killed run
            if force:
                remove(how.scratch, checkpoints)
            if force or not path.exists():  # another process may have been faster
                measure(identity, how, checkpoint)
            remove(how.scratch, checkpoints)
    except Timeout:
        return Unfinished(identity, None)
    except Exception as error:  # of one run; the others go on
        return Unfinished(identity, in_one_line(error))
    return None


@contextmanager
def claimed(lock: Path, patience: float) -> Iterator[None]:
    """Inside the block the run of this lock is ours, and what killed ones left half-written of its
    checkpoints is gone. filelock's Timeout where another process has it for longer than that."""
    with FileLock(lock, timeout=patience):
        try:
            remove(lock.parent, f".{lock.stem}.*.tmp")
            yield
        finally:
            lock.unlink(missing_ok=True)


def tidy(how: How, experiment: str) -> None:
    """Remove what killed runs have left: locks that nobody holds, half-written files, and the
    checkpoints of runs on record, which were killed before they had removed them."""
    for lock in how.scratch.glob("*.lock"):
        with suppress(Timeout, OSError):
            if time.time() - lock.stat().st_mtime >= PATIENCE:  # not one that is just being taken
                with claimed(lock, 0):
                    pass
    for kept in how.scratch.glob("*.seconds"):
        # damaged, or of a version that did not say where the record goes: let it be
        with suppress(Timeout, OSError, ValueError, KeyError, TypeError):
            if Path(read_json(kept)["record"]).exists():
                with claimed(kept.with_name(kept.stem.rpartition(".")[0] + ".lock"), 0):
                    remove(how.scratch, f"{kept.stem}.*")
    for folder in (how.scratch, how.out / experiment):
        remove(folder, ".*.tmp", older=STALE)


def remove(folder: Path, pattern: str, older: float = -math.inf) -> None:
    """Remove the files of a pattern that nobody has written to for `older` seconds."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process may have been faster
            if time.time() - path.stat().st_mtime >= older:
                path.unlink()


def origin(how: How) -> str:
    """What the identity of a run does not say and a checkpoint must not mix: where data lie, where
    the record goes, what computes with how many threads, and the source, as 12 hex digits."""
    where = {"root": str(data_root(how.root).resolve()), "out": str(how.out)}
    where["device"] = records.device_name(pick_device(how.device))
    plugins = [inspect.getsource(import_module(name)) for name in how.imports]
    return records.config_hash(where | {"source": [records.source(), *plugins]})


def measure(identity: dict, how: How, checkpoint: Path) -> None:
    """Run, and save the record at once. Its wall time is that of all attempts it goes on from: kept
    beside the checkpoint, of a killed one up to what it last wrote."""
    what = (identity[k] for k in ("dataset", "method", "seed", "config"))
    job = Job(*what, how.root, how.device, checkpoint, how.progress)
    kept, record = checkpoint.with_suffix(".seconds"), records.path_of(**identity, out=how.out)
    before, started = seconds_before(checkpoint, kept), time.perf_counter()
    about = {"before": before, "begun": time.time(), "record": str(record)}
    write_json(kept, about)
    try:
        metrics = records.rounded(EXPERIMENTS[identity["experiment"]].run(job))
        if lost := not_finite(metrics):
            raise ValueError(f"{', '.join(lost[:3])} came out as no finite number: nothing saved")
        ran = dict(device=pick_device(how.device), wall_s=before + time.perf_counter() - started)
        records.write(**identity, metrics=metrics, **ran, out=how.out)
    finally:
        with suppress(ValueError):  # of a full disk: what the run says matters more
            write_json(kept, about | {"ended": time.time()})


def seconds_before(checkpoint: Path, kept: Path) -> float:
    """Wall time of the earlier attempts whose work a checkpoint holds; 0, with a warning, where the
    file that kept it is damaged or gone."""
    saved = [p for p in checkpoint.parent.glob(f"{checkpoint.stem}.*") if p != kept]
    if not saved:
        return 0.0
    try:
        about = read_json(kept)
        ended = about.get("ended", max(path.stat().st_mtime for path in saved))
        return about["before"] + max(0.0, ended - about["begun"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        said = f"{str(kept)!r} is damaged or gone: wall_s will count from the checkpoint on"
        warnings.warn(said, stacklevel=2)
        return 0.0


def not_finite(value: Any, name: str = "") -> list[str]:
    """Names of the metrics that are NaN or infinite, or hold such a number."""
    if isinstance(value, dict):
        return [lost for k, v in value.items() for lost in not_finite(v, f"{name}.{k}".strip("."))]
    if isinstance(value, list):
        return sorted({lost for part in value for lost in not_finite(part, name)})
    return [name] if isinstance(value, float) and not math.isfinite(value) else []


def spread(calls: Sequence, jobs: int, engine: str, scheduler: str | None) -> Iterator:
    """The results of `joblib.delayed` calls as they come: here, one after the other, or on
    processes of this machine, or on the workers of a Dask cluster."""
    how: dict[str, Any] = dict(batch_size=1, pre_dispatch="all", return_as="generator_unordered")
    with backend(jobs, engine, scheduler):
        # of a cluster all workers
        yield from joblib.Parallel(-1 if engine == "dask" else jobs, **how)(calls)


@contextmanager
def backend(jobs: int, engine: str, scheduler: str | None) -> Iterator[None]:
    """joblib's backend for `engine` inside the block. Without a `scheduler` Dask gets a cluster on
    this machine, `jobs` workers of one thread. ValueError where there is no Dask, no answer, no
    worker, or a worker with several threads: torch's random state belongs to the process."""
    if engine == "processes":
        yield
        return
    dask = optional("distributed", "cluster")
    local = dict(n_workers=jobs, threads_per_worker=1, dashboard_address=":0")
    try:
        client = dask.Client(scheduler, timeout=PATIENCE) if scheduler else dask.Client(**local)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"no Dask scheduler at {scheduler!r}: {error}") from None
    with client:
        start = f"dask worker {client.scheduler.address} --nthreads 1"
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=PATIENCE)
        if not (workers := client.nthreads()):
            raise ValueError(f"the scheduler has no worker; start some: {start}")
        if threaded := [address for address, threads in workers.items() if threads > 1]:
            raise ValueError(f"worker {threaded[0]} has several threads; start it by: {start}")
        with joblib.parallel_config("dask", client=client):
            yield
