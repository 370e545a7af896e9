"""One run and its record under a claim, and many runs at once through joblib."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import joblib
import torch
from filelock import FileLock, Timeout

from gfo.core.batch import pick_device
from gfo.data.splits import data_root
from gfo_lab import records
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.experiments.job import Job
from gfo_lab.plugins import bring

ENGINES = ("processes", "dask")
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


def scratch_folder(scratch: str | Path | None) -> Path:
    """Where checkpoints and claims lie, outside the results: a folder of the user's own in the
    system's temporary folder unless said otherwise."""
    # users of one machine share /tmp; on Windows the temporary folder is the user's own
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return Path(scratch or Path(tempfile.gettempdir()) / f"gfo-checkpoints{user}").resolve()


def one(identity: dict, how: How, force: bool, wait: bool) -> dict | None:
    """Do one run and write its record, unless it is there. Returns the identity where another
    process has claimed the run and we are not to wait for it, else None.

    The claim is a lock of the operating system: it ends with the process that holds it, however
    that ends, so that a killed run is free for the next comer, who goes on from its checkpoint.
    """
    # the source as it is now, not as it is when the run ends
    records.provenance(), records.source()
    bring(how.imports)
    if how.threads:
        torch.set_num_threads(how.threads)
    path = records.path_of(**identity, out=how.out)
    name = f"{identity['experiment']}_{path.stem}"
    checkpoint = how.scratch / f"{name}.{origin(how)}.pt"
    how.scratch.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(how.scratch / f"{name}.lock", timeout=-1 if wait else 0) as lock:
            if force:
                clear(checkpoint)
            if force or not path.exists():  # another process may have been faster
                measure(identity, how, checkpoint)
            clear(checkpoint)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        return identity
    return None


def origin(how: How) -> str:
    """What the identity of a run does not say and a checkpoint must not mix: where data lie, where
    the record goes, and the source, as 12 hex digits."""
    where = {"root": str(data_root(how.root)), "out": str(how.out)}
    return records.config_hash(where | {"source": records.source()})


def clear(checkpoint: Path) -> None:
    """Remove a run's checkpoints, one per member of an ensemble."""
    for left in checkpoint.parent.glob(f"{checkpoint.stem}.*"):
        left.unlink()


def measure(identity: dict, how: How, checkpoint: Path) -> None:
    """Run, and save the record at once."""
    what = (identity[k] for k in ("dataset", "method", "seed", "config"))
    started = time.perf_counter()
    metrics = EXPERIMENTS[identity["experiment"]].run(
        Job(*what, how.root, how.device, checkpoint, how.progress)
    )
    wall = time.perf_counter() - started
    device = pick_device(how.device)
    records.write(**identity, metrics=metrics, device=device, wall_s=wall, out=how.out)


def spread(calls: Sequence, jobs: int, engine: str, scheduler: str | None) -> Iterator:
    """The results of `joblib.delayed` calls as they come: here, one after the other, or on
    processes of this machine, or on the workers of a Dask cluster."""
    with backend(jobs, engine, scheduler):
        jobs = -1 if engine == "dask" else jobs  # all the cluster's workers
        yield from joblib.Parallel(
            jobs, batch_size=1, pre_dispatch="all", return_as="generator_unordered"
        )(calls)


@contextmanager
def backend(jobs: int, engine: str, scheduler: str | None) -> Iterator[None]:
    """joblib's backend for `engine` inside the block. Without a `scheduler` Dask gets a cluster on
    this machine, `jobs` workers of one thread. ValueError where there is no Dask, no answer, no
    worker, or a worker with several threads: torch's random state belongs to the process."""
    if engine == "processes":
        yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("engine 'dask' needs Dask: pip install -e '.[cluster]'") from None
    local = dict(n_workers=jobs, threads_per_worker=1, dashboard_address=":0")
    try:
        client = Client(scheduler, timeout=PATIENCE) if scheduler else Client(**local)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(f"no Dask scheduler at {scheduler!r}: {error}") from None
    with client:
        start = f"dask worker {client.scheduler.address} --nthreads 1"
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise ValueError(f"the scheduler has no worker; start some: {start}") from None
        if threaded := [address for address, n in client.nthreads().items() if n > 1]:
            raise ValueError(f"worker {threaded[0]} has several threads; start it by: {start}")
        with joblib.parallel_config("dask", client=client):
            yield
