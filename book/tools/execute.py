"""Execute the chapters, two at a time, and keep each one until something it depends on changes."""

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELL_TIMEOUT = 300  # seconds
ANSI = re.compile(r"\x1b\[[0-9;]*m")
WARNING = re.compile(r"^.*?(\w*Warning: .*)$", re.MULTILINE)

# Chapters run in their own kernels, which inherit this: one thread each, no progress bars on pages.
# Python looks for cycles of garbage after each 700 new objects, a tenth of a chapter's time: less
# often will do. The line leaves no name behind for a chapter to use.
KERNEL_START = "__import__('gc').set_threshold(100_000, 50, 100)"
KERNEL_ENV = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "JUPYTER_PREFER_ENV_PATH": "1"}


def shared_inputs(root: Path) -> str:
    """Hash of all that every chapter may read: both packages, records, tables, versions, and the
    one tool that a chapter imports, with what that imports."""
    digest = hashlib.sha256(f"{platform.python_version()} {version('torch')}".encode())
    for folder in ("gfo", "book/gfo_lab", "book/results"):
        hash_tree(root / folder, digest)
    for file in ("constraints.txt", "book/tools/rooms.py", "book/tools/toc.py"):
        digest.update((root / file).read_bytes())
    return digest.hexdigest()


def hash_tree(folder: Path, digest) -> None:
    """Feed the names and bytes of all files below `folder`, but no caches and hidden files."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
            digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")


def execute_all(notebooks: list[Path], root: Path, kept: Path, jobs: int = 2) -> list[str]:
    """Bring `kept` up to date, telling of each chapter as it ends; returns what failed."""
    kept.mkdir(parents=True, exist_ok=True)
    os.environ.update(KERNEL_ENV)
    shared = shared_inputs(root)
    keys = {nb: hashlib.sha256(shared.encode() + nb.read_bytes()).hexdigest() for nb in notebooks}
    stale = [nb for nb in notebooks if not is_kept(nb, keys[nb], kept)]
    if stale:
        print(f"{len(notebooks) - len(stale)} chapters unchanged, {len(stale)} to run", flush=True)
    failed = []
    # Threads, not processes: the kernels are processes already, and one parent can see to it that
    # two kernels never pick the same port.
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(execute, nb, keys[nb], kept): nb for nb in stale}
        for done, future in enumerate(as_completed(futures), 1):
            stem, report = futures[future].stem, f"[{done}/{len(stale)}] {futures[future].stem:<24}"
            try:
                record = future.result()
            except Exception as error:  # whatever went wrong, the other chapters go on
                failed.append(stem)
                print(f"{report} FAILED\n{last_lines(error)}", flush=True)
            else:
                print(f"{report} {record['seconds']:6.1f} s", *record["warnings"], sep="\n    ")
    return failed


def is_kept(notebook: Path, key: str, kept: Path) -> bool:
    """Whether an executed copy made from the same inputs lies in `kept`."""
    try:
        record = json.loads((kept / f"{notebook.stem}.json").read_text(encoding="utf-8"))
        return record["key"] == key and (kept / f"{notebook.stem}.ipynb").exists()
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: run it again
        return False


def execute(path: Path, key: str, kept: Path) -> dict:
    """Run one chapter in its own folder; keep the executed copy and a record beside it."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        # a kernel warns at every start that its messages are not encrypted
        extra_arguments=[f"--IPKernelApp.exec_lines={KERNEL_START}", "--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    started, clock = datetime.now(UTC), time.perf_counter()
    client.execute()
    record = {
        "chapter": path.stem,
        "started": started.isoformat(timespec="minutes"),
        "seconds": round(time.perf_counter() - clock, 1),
        **machine(),
        "warnings": sorted(set(warnings(notebook))),
        "key": key,
    }
    # The record goes first and comes last: without it the copy does not count as kept.
    (kept / f"{path.stem}.json").unlink(missing_ok=True)
    put(kept / f"{path.stem}.ipynb", nbformat.writes(notebook) + "\n")
    put(kept / f"{path.stem}.json", json.dumps(record, indent=1) + "\n")
    return record


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8. `gfo.core.files` does too, but its import takes
    seconds."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def machine() -> dict:
    """Where the chapters run."""
    import torch  # here, since it takes seconds and an unchanged book does not need it

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(
            r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")
        )
        cpu = found[1] if found else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {
        "device": device,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def warnings(notebook) -> Iterator[str]:
    """The warnings in a notebook's stderr, which the pages leave out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                yield from WARNING.findall(output["text"])


def last_lines(error: Exception, count: int = 15) -> str:
    """The end of a chapter's traceback, without colours."""
    text = ANSI.sub("", f"{type(error).__name__}: {error}").strip()
    return "\n".join(f"    {line}" for line in text.splitlines()[-count:])


def records(notebooks: list[Path], kept: Path) -> list[dict]:
    """The records of the chapters, in reading order."""
    return [json.loads((kept / f"{nb.stem}.json").read_text(encoding="utf-8")) for nb in notebooks]
