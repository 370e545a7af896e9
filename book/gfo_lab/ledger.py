"""The reproduction ledger: every number of the paper's tables beside ours, from records alone."""

import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from gfo.evaluate.plots import LABELS
from gfo_lab import declared, records
from gfo_lab.stats import interval, paired_by_seed

PAPER = records.LAB / "paper_tables"
PROFILES = ("full", "reduced")  # the first that has records of a row speaks for it


class Table(NamedTuple):
    """One of the paper's tables, as `ledger.toml` has it.

    setting: its column that names data. reference: the row that differences are taken to. scale:
    ours times this is in its unit. experiments: by setting, where our records lie (experiment, or
    absent where we have none, and dataset) and which text of "deviations" says what differs.
    metrics: its columns, as ours; a slash leads into a metric that is a dict."""

    file: str
    reference: str
    scale: float
    experiments: dict[str, dict[str, str]]
    metrics: dict[str, str]
    setting: str | None = None


ABOUT = declared(__file__)
METHODS = ABOUT["methods"]  # the paper's names of ours; its "Random" and "MC Dropout" are one
TABLES = {name: Table(**entries) for name, entries in ABOUT["tables"].items()}


def paper(table: str, folder: Path = PAPER) -> pd.DataFrame:
    """The paper's numbers of one table, long: setting, method, metric, paper."""
    about = TABLES[table]
    wide = pd.read_csv(folder / f"{about.file}.csv")
    wide["setting"] = wide[about.setting] if about.setting else next(iter(about.experiments))
    return wide.melt(["setting", "method"], list(about.metrics), "metric", "paper")


def verdict(theirs: float, low: float, high: float) -> str:
    """What our paired interval [low, high] says of the paper's difference `theirs`.

    "reproduced": zero lies outside, on the paper's side, and the interval reaches half of the
    paper's difference. "reversed": zero lies outside, on the other side. "undecided": the interval
    holds both zero and the paper's difference. "not reproduced": all else.
    """
    sign = -1 if theirs < 0 else 1
    low, high = sorted((sign * low, sign * high))
    if high < 0:
        return "reversed"
    if low > 0:
        return "reproduced" if high >= abs(theirs) / 2 else "not reproduced"
    return "undecided" if high >= abs(theirs) else "not reproduced"


def level(theirs: float, ours: np.ndarray) -> str:
    """Of the reference row, which has no difference: whether the paper's number could be one more
    run of ours (95 % prediction interval)."""
    low, high = interval(ours)
    centre, wider = (low + high) / 2, np.sqrt(len(ours) + 1)
    if len(ours) < 2:
        return "undecided"
    near = abs(theirs - centre) <= wider * (high - low) / 2
    return "reproduced" if near else "not reproduced"


def entries(table: str, out: Path | None = None) -> pd.DataFrame:
    """One row per number of the paper's `table`, and below them the methods that only we ran:

    setting, metric, method, paper; ours, se, n, profile, device (as Markdown); paper_difference,
    difference, low, high to the reference row; verdict; deviations. Units are the paper's. A row
    without records has n = 0 and the verdict "not run here"; one from reduced runs says so in its
    verdict.
    """
    about = TABLES[table]
    theirs = paper(table)
    theirs["ours_method"] = theirs["method"].map(METHODS)
    blocks = []
    for setting, metric in product(about.experiments, about.metrics):
        block = theirs[(theirs["setting"] == setting) & (theirs["metric"] == metric)]
        ours = about.experiments[setting]
        column = about.metrics[metric] + ours.get("suffix", "")
        found = speaking(ours.get("experiment"), ours["dataset"], column, out)
        extra = [m for m in found["method"].unique() if m not in set(block["ours_method"])]
        more = pd.DataFrame({"setting": setting, "metric": metric, "ours_method": extra})
        block = pd.concat([block, more], ignore_index=True)
        block["deviations"] = ABOUT["deviations"][ours["deviations"]]
        block = block.join(scores(block, found, about, metric), on="ours_method")
        blocks.append(block)
    rows = pd.concat(blocks, ignore_index=True)
    rows["n"] = rows["n"].fillna(0).astype(int)
    rows["verdict"] = rows["verdict"].fillna("not run here")
    return rows


def speaking(experiment: str | None, dataset: str, metric: str, out: Path | None) -> pd.DataFrame:
    """The records that speak for a row, with `metric` as column "value"."""
    column, *keys = metric.split("/")
    for profile in PROFILES if experiment else ():
        found = records.read(experiment, out, dataset=dataset, profile=profile)
        # of the two cohorts of the ICU experiment the paper's is that of all stays
        cohorts = [config.get("cohort", {}) for config in found.get("config", [])]
        found = found[[cohort.get("min_hours", 0) == 0 for cohort in cohorts]]
        if len(found) and column in found:
            values = found[column]
            for key in keys:
                values = values.map(lambda v, k=key: v.get(k) if isinstance(v, dict) else None)
            values = values.map(lambda v: None if v is None else np.mean(v))  # of a run's splits
            if values.notna().any():
                return found.assign(value=values)[values.notna()]
    return pd.DataFrame(columns=["method", "seed", "value", "profile", "device", "config_hash"])


def scores(block: pd.DataFrame, found: pd.DataFrame, about: Table, metric: str) -> pd.DataFrame:
    """Ours for one setting and metric, one row per method of ours."""
    theirs = block.dropna(subset="paper").set_index("ours_method")["paper"]
    reference = METHODS[about.reference]
    values = found.assign(value=about.scale * found["value"].astype(float))
    gaps = paired_by_seed(values, "value", reference)
    rows = {}
    for method, group in values.groupby("method"):
        if group["config_hash"].nunique() > 1:
            raise ValueError(
                f"{method} has records of {group['config_hash'].nunique()} configurations for one "
                "row of the ledger: keep one"
            )
        value = group["value"].to_numpy()
        row = {"ours": value.mean(), "n": len(value), "profile": group["profile"].iloc[0]}
        row["se"] = value.std(ddof=1) / np.sqrt(len(value)) if len(value) > 1 else np.nan
        row["device"] = in_markdown(", ".join(sorted(group["device"].unique())))
        if method in gaps.index:
            row |= gaps.loc[method, ["difference", "low", "high"]].to_dict()
        if method not in theirs:
            row["verdict"] = "not in the paper"
        elif method == reference:
            row["verdict"] = level(theirs[method], value)
        elif reference in theirs and method in gaps.index:
            row["paper_difference"] = theirs[method] - theirs[reference]
            row["verdict"] = verdict(row["paper_difference"], row["low"], row["high"])
        if row["profile"] == "reduced" and "verdict" in row:
            row["verdict"] += " (reduced)"
        rows[method] = row
    columns = ["ours", "se", "n", "profile", "device", "paper_difference", "difference", "low",
               "high", "verdict"]  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def in_markdown(text: str) -> str:
    """`text` as a page shows it letter for letter: nothing in it is a mark of Markdown or HTML."""
    return re.sub(r"[\\`*_\[\]<>|#&$~]", r"\\\g<0>", " ".join(text.split()))


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """`entries` as a table for a page: numbers with ± standard error and n, differences to the
    reference row with their interval."""
    digits = 2 if rows["paper"].max() > 1 else 3

    def number(value: float, sign: str = "") -> str:
        return "—" if pd.isna(value) else f"{value:{sign}.{digits}f}"

    def ours(row) -> str:
        spread = "" if pd.isna(row["se"]) else f" ± {number(row['se'])}"
        return f"{number(row['ours'])}{spread} ({row['n']})" if row["n"] else "—"

    def gap(row) -> str:
        if pd.isna(row["difference"]):
            return "—"
        if np.isinf(row["low"]):
            return number(row["difference"], "+")
        low, high = (number(row[end], "+") for end in ("low", "high"))
        return f"{number(row['difference'], '+')} [{low}, {high}]"

    method = rows["method"].fillna(rows["ours_method"].map(lambda name: LABELS[name]))
    return pd.DataFrame(
        {
            "data": rows["setting"],
            "number": rows["metric"].str.replace("_", " "),
            "method": method,
            "paper": rows["paper"].map(number),
            "ours ± SE (n)": rows.apply(ours, axis=1),
            "verdict": rows["verdict"],
            "paper, difference": rows["paper_difference"].map(lambda v: number(v, "+")),
            "ours, difference [95 %]": rows.apply(gap, axis=1),
            "profile": rows["profile"].fillna("—"),
        }
    )
