"""A table of rules: what each one left out, in order."""

from __future__ import annotations

import pandas as pd


class Funnel:
    """Counts, rule by rule, the rows that are left out; chunks of one table add up."""

    def __init__(self):
        self.rows: dict[tuple[str, str, str], list[int]] = {}

    def count(self, table: str, rule: str, argument: str, dropped: int, left: int) -> None:
        entry = self.rows.setdefault((table, rule, argument), [0, 0])
        entry[0] += int(dropped)
        entry[1] += int(left)

    def drop(self, frame: pd.DataFrame, table: str, rule: str, argument: str, bad) -> pd.DataFrame:
        """`frame` without the rows where `bad`, which None says is not asked for."""
        if bad is None:
            self.count(table, rule, argument, 0, len(frame))
            return frame
        self.count(table, rule, argument, bad.sum(), (~bad).sum())
        return frame[~bad]

    def table(self) -> pd.DataFrame:
        columns = ["table", "rule", "argument", "dropped", "left"]
        return pd.DataFrame([[*key, *value] for key, value in self.rows.items()], columns=columns)
