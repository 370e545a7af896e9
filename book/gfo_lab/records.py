"""Records: one small JSON file per finished run, written at once, and tables made of them.

A record's identity is (experiment, dataset, method, seed, profile, hash of config), and its file
name spells it: the same identity is skipped on a second run, and a table refuses to mix
configurations.
"""

import contextlib
import fnmatch
import functools
import hashlib
import json
import platform
import re
import subprocess
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import gfo
from gfo_lab.json_files import read_json, write_json

LAB = Path(__file__).resolve().parent
LIBRARY = Path(gfo.__file__).resolve().parent
IN_CLONE = LAB.parent.name == "book" and (LAB.parents[1] / "_toc.yml").exists()
# Installed elsewhere, nothing is written beside the package: records go to the working directory.
RESULTS = (LAB.parent if IN_CLONE else Path.cwd()) / "results"
KEYS = (
    "experiment", "dataset", "method", "seed", "profile", "metrics", "config", "config_hash",
    "device", "torch", "gfo", "commit", "gfo_tree", "dirty", "wall_s", "date",
)  # fmt: skip


OWN = {*KEYS, "lab_tree"}  # what a record says of itself, and no metric may be called
IDENTITY = ("experiment", "dataset", "method", "seed", "profile", "config_hash")


def rounded(value: Any) -> Any:
    """Numbers to six digits behind the point, below a thousandth to four that count, so that
    records stay small; plain JSON types."""

    def few(digits: str) -> float:
        number = float(digits)
        return float(f"{number:.4g}" if 0 < abs(number) < 1e-3 else f"{number:.6f}")

    return json.loads(json.dumps(value, default=np.generic.item), parse_float=few)


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits of the canonical JSON of `config`."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def path_of(
    experiment: str, dataset: str, method: str, seed: int, profile: str, config: dict, out: Any
) -> Path:
    """Where the record of this identity lies."""
    name = f"{dataset}_{method}_s{seed}_{profile}_{config_hash(config)}.json"
    return Path(out) / experiment / name.replace("/", "-")  # of a data set "group/name", say


def write(
    *, config: dict, metrics: dict, device: torch.device, wall_s: float, out: Any = None, **identity
) -> Path:
    """Save one finished run with where it ran and from which source.

    Args:
        config: Everything that defines the run but its seed, plain JSON.
        metrics: What came of it, plain JSON.
        device: Where it ran.
        wall_s: Its wall time in seconds.
        out: Folder of records, `RESULTS` by default.
        **identity: experiment, dataset, method, seed, profile.

    Returns:
        The path of the record.

    Raises:
        ValueError: For a metric with the name of an entry of the record's own.
    """
    if taken := sorted(OWN & set(metrics)):
        raise ValueError(f"a metric is called {taken[0]!r}, as a record's own entry: rename it")
    path = path_of(**identity, config=config, out=out or RESULTS)
    record = identity | {
        "metrics": rounded(metrics), "config": config, "config_hash": config_hash(config),
        "device": device_name(device), "wall_s": round(wall_s, 2),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    } | provenance()  # fmt: skip
    write_json(path, record, indent=1, sort_keys=True)
    return path


def read(experiment: str, out: Path | None = None, **only: Any) -> pd.DataFrame:
    """All records of an experiment, one row each, metrics as columns; `only` keeps rows where a
    column has one value, e.g. profile="full". Empty (no rows) where there are none. ValueError as
    of `read_one`."""
    paths = sorted((Path(out or RESULTS) / experiment).glob("*.json"))
    frame = pd.DataFrame([read_one(path) for path in paths])
    for column, value in only.items():
        frame = frame[frame[column] == value] if len(frame) else frame
    return frame


def by_row(experiment: str, out: Path | None = None, **only: Any) -> pd.DataFrame:
    """As `read`, with the row that a record's config names, if it names one, as its method.

    A row under way is left out, one with fewer seeds than another: so its records are kept as they
    come, and no table compares what chance had finished."""
    found = read(experiment, out, **only)
    if found.empty:
        return found
    found = found.assign(method=found["config"].str.get("row").fillna(found["method"]))
    seeds = found.groupby("method")["seed"].transform("nunique")
    return found[seeds == seeds.max()]


def read_one(path: Path) -> dict[str, Any]:
    """One record, flat. ValueError where it is half a file, lacks an entry, has a metric that is
    called as one, or a config that is not the one it was written with, and where by its folder and
    name it is that of another run: so no two files hold one."""
    record = read_json(path)
    missing = [key for key in KEYS if key not in record] if isinstance(record, dict) else KEYS
    if missing:
        raise ValueError(f"record {path.name} lacks {', '.join(missing)}: not made by gfo_lab")
    wrong = None if isinstance(record["metrics"], dict) else "metrics that are no table"
    if not wrong and (taken := sorted(OWN & set(record["metrics"]))):
        wrong = f"a metric called {taken[0]!r}, as an entry of its own"
    if not wrong and config_hash(record["config"]) != record["config_hash"]:
        wrong = "a config whose hash is not its config_hash"
    if wrong:
        raise ValueError(f"record {path} has {wrong}: it was changed by hand, run it again")
    own = path_of(**{key: record[key] for key in IDENTITY[:-1]}, config=record["config"], out="")
    if own.parts != Path(path).parts[-2:]:
        raise ValueError(f"record {path} holds what belongs into {own}: move it there or delete it")
    return {k: v for k, v in record.items() if k != "metrics"} | record["metrics"]


def experiments(out: Path | None = None) -> list[str]:
    """Names of the experiments that have records."""
    return sorted({path.parent.name for path in Path(out or RESULTS).glob("*/*.json")})


def table(experiment: str | None = None, out: Path | None = None) -> pd.DataFrame:
    """All records of one experiment, or of all: one row per record, with its identity, what it ran
    on, its configuration flattened ("config.lr.masks"; lists as JSON) and every metric that is a
    number or a word ("batchnorm.tested.nll"); `long` has those that are lists."""
    rows = flat_records(experiment, out)
    for row in rows:
        for key in [key for key, value in row.items() if isinstance(value, list)]:
            value = row.pop(key)
            row |= {key: json.dumps(value)} if key.startswith("config.") else {}
    return pd.DataFrame(rows)


def long(experiment: str | None = None, out: Path | None = None) -> pd.DataFrame:
    """Metrics that are lists of numbers: one row per record, metric and place in the list (from 0
    on), with columns experiment, dataset, method, seed, profile, config_hash, metric, place,
    value."""
    rows = [
        [record[key] for key in IDENTITY] + [metric, place, value]
        for record in flat_records(experiment, out)
        for metric, values in record.items()
        if isinstance(values, list) and not metric.startswith("config.")
        for place, value in enumerate(values)
        if isinstance(value, int | float)
    ]
    return pd.DataFrame(rows, columns=[*IDENTITY, "metric", "place", "value"])


def flat_records(experiment: str | None, out: Path | None) -> list[dict[str, Any]]:
    """The records of one experiment, or of all, each `flat`."""
    names = [experiment] if experiment else experiments(out)
    return [flat(record) for name in names for record in read(name, out).to_dict("records")]


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; what a row of a table lacks is left out."""
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) or not pd.isna(value):
            found[f"{prefix}{key}"] = value
    return found


def summary(frame: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Mean, standard error and n over seeds, one row a (dataset, profile, method).

    Raises ValueError where one such cell mixes configurations, or corruptions of one's own with
    published ones.
    """
    if frame.empty:
        return frame
    cells = frame.groupby(["dataset", "profile", "method"])
    for name, what in (("config_hash", "configurations"), ("corruptions", "kinds of corruption")):
        counts = cells[name].nunique() if name in frame else pd.Series(dtype=int)
        for (data, profile, m), n in counts[counts > 1].items():
            raise ValueError(f"{m} on {data} ({profile}) has {n} {what}, tables mix none: keep one")
    columns = {"n": cells[metrics].count().min(axis=1)}  # records of other experiments lack some
    for metric in metrics:
        columns |= {metric: cells[metric].mean(), f"{metric}_se": cells[metric].sem()}
    return pd.DataFrame(columns).reset_index()


def device_name(device: torch.device) -> str:
    """The name of the processor that did the work."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    text = about.read_text(encoding="utf-8") if about.exists() else ""
    found = re.search(r"^model name\s*: *(.*)$", text, re.M)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"CPU: {name}, {torch.get_num_threads()} thread(s)"


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions, commit, the git trees of both packages and whether they had uncommitted changes, as
    they were when first asked: a sweep asks at its start."""
    status = _git("status", "--porcelain", "--", str(LIBRARY), str(LAB))
    trees = {"commit": "HEAD", "gfo_tree": "HEAD:gfo", "lab_tree": "HEAD:book/gfo_lab"}
    told = {name: _git("rev-parse", tree) for name, tree in trees.items()}
    if None in (status, *told.values()):
        warnings.warn("no git checkout or answer: records will not name their source", stacklevel=2)
    dirty = None if status is None else bool(status)
    return {"torch": torch.__version__, "gfo": gfo.__version__, **told, "dirty": dirty}


@functools.cache
def source() -> str:
    """12 hex digits of all files of both packages, as they were when first asked: commits do not
    tell one uncommitted change from another."""
    kinds = (".py", ".toml", ".csv")
    files = [p for top in (LIBRARY, LAB) for p in sorted(top.rglob("*")) if p.suffix in kinds]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _git(*args: str) -> str | None:
    how: dict[str, Any] = dict(cwd=LAB, text=True, timeout=20, stderr=subprocess.DEVNULL)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # installed inside somebody's own repository, we are not of its commit
        return subprocess.check_output(["git", *args], **how).strip() if IN_CLONE else None


def meaning(column: str) -> tuple[str, str]:
    """(unit, meaning) of a column of `table` or `long`, or of a metric in it, from dictionary.csv:
    of the patterns that match, the most specific. ValueError where none does."""
    known = pd.read_csv(LAB / "dictionary.csv", keep_default_na=False)
    fits = known[[fnmatch.fnmatchcase(column, pattern) for pattern in known["pattern"]]]
    if fits.empty:
        raise ValueError(f"no meaning of {column!r}: add a line to {LAB.name}/dictionary.csv")
    best = fits.loc[fits["pattern"].str.replace("*", "").str.len().idxmax()]
    return best["unit"], best["meaning"]
