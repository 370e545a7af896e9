"""The reproduction ledger: every number of the paper's tables beside ours, from records alone."""

import re
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy

from gfo.evaluate.plots import COLORS, LABELS
from gfo_lab import declared, records
from gfo_lab.stats import holm, paired_by_seed

PAPER = records.LAB / "paper_tables"
PROFILES = ("full", "strong", "fast", "narrow")  # the first with records of a setting speaks
SMALLER = PROFILES[2:]  # networks than the paper's


class Table(NamedTuple):
    """One of the paper's tables, as `ledger.toml` has it.

    setting: its column that names data. reference: the row that differences are taken to. scale:
    ours times this is in its unit. repeats: runs behind each of its means, 1 where it does not say.
    experiments: by setting, where our records lie (experiment, or absent where we have none,
    dataset, and profiles that speak if not `PROFILES`) and which text of "deviations" says what
    differs. metrics: its columns, as ours; a dot leads into a metric that is a dict."""

    file: str
    reference: str
    scale: float
    repeats: int
    experiments: dict[str, dict[str, str]]
    metrics: dict[str, str]
    setting: str | None = None


ABOUT = declared(__file__)
METHODS = ABOUT["methods"]  # the paper's names of ours; its "Random" and "MC Dropout" are one
TABLES = {name: Table(**entries) for name, entries in ABOUT["tables"].items()}


def paper(table: str, folder: Path = PAPER) -> pd.DataFrame:
    """The paper's numbers of one table, long: setting, method, metric, paper, and paper_se, its
    standard error where it prints one."""
    about = TABLES[table]
    wide = pd.read_csv(folder / f"{about.file}.csv")
    wide["setting"] = wide[about.setting] if about.setting else next(iter(about.experiments))
    wide = wide[wide["setting"].isin(about.experiments)]
    se = wide.reindex(columns=[f"{metric}_se" for metric in about.metrics]).melt()["value"]
    long = wide.melt(["setting", "method"], [*about.metrics], "metric", "paper")
    return long.assign(paper_se=se)


def verdict(theirs: float, low: float, high: float) -> str:
    """What our paired interval [low, high] says of the paper's difference `theirs`, half of which
    is the measure on either side of zero. A wider interval never says more.

    "reproduced": zero lies outside, on the paper's side, where the middle of the interval reaches
    half of the paper's difference. "larger": all of it lies there beyond twice the paper's
    difference. "reversed": zero lies outside, on the other side, where the middle reaches half of
    the paper's difference. "not reproduced": half of the paper's difference, on its side, lies
    outside, above the interval. "undecided": all else, half of the paper's difference inside.

    The interval holds its ends. An end that is not known is infinite: of a bound from one side
    alone, the other, and the known one stands for the middle; of a single run, both. A paper's
    difference of 0 has no side: "undecided" where zero lies inside, else "not reproduced".
    """
    half = abs(theirs) / 2
    low, high = (low, high) if theirs > 0 else (-high, -low)  # the paper's side is up
    middle = np.mean([end for end in (low, high) if np.isfinite(end)] or [0.0])
    if low > 0 and middle >= half > 0:
        return "larger" if low > 4 * half else "reproduced"
    if high < 0 and middle <= -half < 0:
        return "reversed"
    return "not reproduced" if high < half or low > half == 0 else "undecided"


def level(theirs: float, se: float, repeats: int, ours: float, own: float, n: int) -> str:
    """Of the reference row, which has no difference: whether the paper's mean and ours could be
    means of the same, by a 95 % t interval of their difference with n − 1 degrees of freedom.

    Args:
        theirs: The paper's mean.
        se: Its standard error; NaN where the paper prints none, then its runs are taken to scatter
            as ours do.
        repeats: How many runs it is a mean of.
        ours: Our mean.
        own: Its standard error.
        n: Of our runs; fewer than two decide nothing.
    """
    if n < 2:
        return "undecided"
    se = own * np.sqrt(n / repeats) if np.isnan(se) else se
    near = abs(theirs - ours) <= scipy.stats.t.ppf(0.975, n - 1) * np.hypot(own, se)
    return "reproduced" if near else "not reproduced"


def entries(table: str, out: Path | None = None, reference: str | None = None) -> pd.DataFrame:
    """One row per number of the paper's `table`, and below them the methods that only we ran:

    setting, metric, method, paper, paper_se; ours, se, n, profile, device (as Markdown);
    paper_difference, difference, low, high (95 %) to the reference row; holm_low and holm_high, the
    interval that the verdict reads, over all of the paper's differences in the table, run or not
    (`gfo_lab.stats.holm`); verdict; deviations. Units are the paper's. A row without records has
    n = 0 and the verdict "not run here"; one from a network smaller than the paper's says so in
    its verdict.

    Args:
        table: A key of `TABLES`.
        out: Folder of records.
        reference: Another row of the paper than the table's own to take differences to.
    """
    about = TABLES[table]
    first = METHODS[reference or about.reference]
    theirs = paper(table).assign(ours_method=lambda long: long["method"].map(METHODS))
    blocks = []
    cells = product(about.experiments.items(), about.metrics.items())
    for (setting, ours), (metric, column) in cells:
        block = theirs[(theirs["setting"] == setting) & (theirs["metric"] == metric)]
        base = block.loc[block["ours_method"] == first, "paper"].max()
        gaps = (block["paper"] - base).where(block["ours_method"] != first)
        block = block.assign(paper_difference=gaps)
        found = scores(speaking(ours, column + ours.get("suffix", ""), out), about.scale, first)
        extra = found.index.difference(block["ours_method"], sort=False)
        more = pd.DataFrame({"setting": setting, "metric": metric, "ours_method": extra})
        block = pd.concat([block, more], ignore_index=True).join(found, on="ours_method")
        blocks.append(block.assign(deviations=ABOUT["deviations"][ours["deviations"]]))
    rows = pd.concat(blocks, ignore_index=True)
    claims = rows[rows["paper_difference"].notna()].drop(columns="n")
    several = claims[claims["pairs"] > 1].rename(columns={"pairs": "n"})
    wider = holm(several, planned=len(claims))[["low", "high"]]
    rows = rows.join(wider.add_prefix("holm_")).fillna({"n": 0}).astype({"n": int})
    rows["verdict"] = [word(row, about.repeats) for row in rows.itertuples()]
    return rows


def word(row: Any, repeats: int) -> str:
    """The verdict on one row of `entries`."""
    if not row.n:
        return "not run here"
    said = verdict(row.paper_difference, row.holm_low, row.holm_high)
    if pd.isna(row.paper):
        said = "not in the paper"
    elif pd.isna(row.paper_difference):  # of the reference row
        both = row.paper, row.paper_se, repeats, row.ours, row.se, row.n
        said = "not comparable" if row.profile in SMALLER else level(*both)
    return said + " (smaller)" * (row.profile in SMALLER)


def speaking(ours: dict[str, Any], metric: str, out: Path | None) -> pd.DataFrame:
    """The records that speak for a row, with `metric` as column "value"."""
    for profile in ours.get("profiles", PROFILES) if "experiment" in ours else ():
        found = records.by_row(ours["experiment"], out, dataset=ours["dataset"], profile=profile)
        rows = [
            row | {"value": np.mean(row[metric])}  # a run's splits count as one
            for row in map(records.flat, found.to_dict("records"))
            # of the two cohorts of the ICU experiment the paper's is that of all stays
            if metric in row and not row.get("config.cohort.min_hours")
        ]
        if rows:
            return pd.DataFrame(rows)
    return pd.DataFrame(columns=["method", "seed", "value", "profile", "device", "config_hash"])


def scores(found: pd.DataFrame, scale: float, reference: str) -> pd.DataFrame:
    """Ours for one setting and metric, one row per method of ours; ValueError where one has records
    of several configurations."""
    found = found.assign(value=scale * found["value"].astype(float))
    table = records.summary(found, ["value"]).set_index("method")
    table = table.rename(columns={"value": "ours", "value_se": "se"})
    devices = found.groupby("method")["device"].agg(lambda d: in_markdown(", ".join(sorted({*d}))))
    gaps = paired_by_seed(found, "value", reference).rename(columns={"n": "pairs"})
    return table.reindex(columns=["ours", "se", "n", "profile"]).join([devices, gaps])


def in_markdown(text: str) -> str:
    """`text` as a page shows it letter for letter: nothing in it is a mark of Markdown or HTML."""
    return re.sub(r"[\\`*_\[\]<>|#&$~]", r"\\\g<0>", " ".join(text.split()))


def label(name: str) -> str:
    """What a page calls one of our methods, or one of its rows where it has several."""
    return ABOUT["rows"].get(name, [LABELS[name]])[0]


def color(name: str) -> str:
    """In which colour it is drawn."""
    return ABOUT["rows"].get(name, [COLORS[name]])[-1]
