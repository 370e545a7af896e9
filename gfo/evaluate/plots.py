"""One look for all figures: colour-blind-safe, labelled, sized for the page."""

import zlib

import pandas as pd
from cycler import cycler
from matplotlib import style

from gfo.core.files import declared

# Okabe & Ito (2008): told apart under all common colour-vision deficiencies. Orange and sky blue
# are darker than theirs: a line of any colour has a contrast of 3:1 on white (WCAG 1.4.11).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C08000", "#3596CF", "#000000")
SPARE = ("#8C564B", "#8C8C1A", "#128C99", "#9467BD")  # for methods without a colour of their own
METHODS = declared(__file__)
STYLE = declared(__file__, "style.toml") | {"axes.prop_cycle": cycler(color=PALETTE)}


class Colors(dict):
    """By method; a new one needs no entry, its name tells which of `SPARE`."""

    def __missing__(self, name: str) -> str:
        return SPARE[zlib.crc32(name.encode()) % len(SPARE)]


class Labels(dict):
    """By method; of a new one its name."""

    def __missing__(self, name: str) -> str:
        return name.replace("-", " ").capitalize()


COLORS = Colors({name: color for name, (_, color) in METHODS.items()})
LABELS = Labels({name: label for name, (label, _) in METHODS.items()})


def use_style() -> None:
    """Set the book's defaults of matplotlib's figures and pandas' tables; call once, at the top."""
    style.use(STYLE)
    pd.options.display.precision = 4
