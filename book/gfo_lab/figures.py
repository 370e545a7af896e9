"""Figures that several pages draw: what runs found, a row per way of training."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from gfo.evaluate.plots import COLORS
from gfo_lab.stats import interval


def strips(ax: Axes, frame: pd.DataFrame, order: Sequence[str], value: str) -> None:
    """A row for each of `order`, from above: a circle per run, a bar for the 95 % t interval of
    their mean where there are two or more, both in the colour of the row's method.

    Args:
        ax: Where to draw.
        frame: Records, as `gfo_lab.records.read` gives them, with the row of each as `cell`.
        order: What the rows are called.
        value: The column that is drawn.
    """
    for place, name in enumerate(order):
        found = frame[frame["cell"] == name]
        color = COLORS[found["method"].iloc[0]]
        if len(found) > 1:
            ax.plot(interval(found[value].to_numpy(float)), [place] * 2, lw=2, color=color)
        ax.plot(found[value], [place] * len(found), "o", ms=6, mfc="none", color=color)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.grid(axis="x", lw=0.5, color="0.85")
