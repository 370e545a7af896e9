"""The eICU Collaborative Research Database (Pollard et al., 2018) and its open demo, as tables."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.errors import EmptyDataError, ParserError
from tqdm.auto import tqdm

from gfo.data.splits import check_file, data_root, refuse
from gfo_lab import declared
from gfo_lab.icu import synthetic

# Table: its columns that are read, each of "text" or of a "number".
COLUMNS = declared(__file__, "columns.toml")
CHUNK = 1_000_000  # rows: the full release's medication table has seven million


def folder(name: str, root: str | Path | None = None) -> Path:
    """Where the tables of "eicu-demo" or "eicu" lie: root/name, or root itself. Those of
    "icu-synthetic" are written on the spot."""
    if name == synthetic.NAME:
        return synthetic.folder()
    root = data_root(root)
    return root / name if (root / name).is_dir() else root


def chunks(where: Path, table: str) -> Iterator[pd.DataFrame]:
    """The table's columns, `CHUNK` rows at a time. Raises FileNotFoundError where the table is
    missing, there twice, or not the one in the SHA256SUMS beside it; ValueError where it lacks a
    column, holds text for numbers or is damaged; all name it.
    """
    path, columns = find(where, table), list(COLUMNS[table])
    check_sums(path)
    try:
        known = pd.read_csv(path, nrows=0).columns
        if missing := [name for name in columns if name not in known]:
            raise ValueError(f"{path.name} lacks the column {', '.join(missing)}")
        types = {name: str for name in columns if COLUMNS[table][name] == "text"}
        reader = pd.read_csv(path, usecols=columns, dtype=types, chunksize=CHUNK)
        for part in tqdm(reader, desc=f"reading {path.name}", unit="chunk", leave=False, delay=3):
            for name in columns:
                if name not in types and len(part) and not is_numeric_dtype(part[name]):
                    said = f"{path.name}: column {name} holds text"
                    raise ValueError(f"{said}, needs to hold numbers")
            yield part
    except (EOFError, OSError, zlib.error, ParserError, EmptyDataError, UnicodeError) as error:
        raise ValueError(f"{path.name} is damaged ({error}): fetch it again") from None


def find(where: Path, table: str) -> Path:
    """The file of a table, whatever the case of its name, packed or not."""
    wanted = (f"{table}.csv.gz", f"{table}.csv")
    found = [path for path in sorted(where.glob("*")) if path.name.lower() in wanted]
    if not found:
        cure = "set GFO_DATA or root to a folder that holds eicu-demo/ or eicu/"
        cure += " (physionet.org, the demo is open)"
        raise FileNotFoundError(f"no {table}.csv.gz or {table}.csv in {str(where)!r}: {cure}")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise FileNotFoundError(f"{str(where)!r} holds {names} for one table: delete all but one")
    return found[0]


def check_sums(path: Path) -> None:
    """FileNotFoundError where a SHA256SUMS beside a table says that it should be another."""
    for sums in sorted(path.parent.glob("SHA256SUMS*")):
        for line in sums.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.strip().partition(" ")
            if Path(name.strip().lstrip("*")).name.lower() == path.name.lower():
                check_file(path, digest.lower(), f"fetch it again, {sums.name} has another")


def check_stays(part: pd.DataFrame, table: str, stays: set) -> None:
    """FileNotFoundError where rows are of stays that the patient table does not have."""
    lost = part.loc[~part["patientunitstayid"].isin(stays), "patientunitstayid"]
    if len(lost):
        refuse(f"patient lacks stay {lost.iloc[0]}, which {table} has ({len(lost)} such rows): a "
               "table is cut short or of another release, fetch both again")  # fmt: skip
