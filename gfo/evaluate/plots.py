"""One look for all figures: colour-blind-safe, labelled, sized for the page."""

import zlib
from collections.abc import Callable

import matplotlib as mpl
import pandas as pd

from gfo.core.files import declared


class Named(dict):
    """A dict that makes an entry up for a name it lacks, so that a new method needs none."""

    def __init__(self, known: dict[str, str], otherwise: Callable[[str], str]):
        super().__init__(known)
        self.otherwise = otherwise

    def __missing__(self, name: str) -> str:
        return self.otherwise(name)


# Okabe & Ito (2008): told apart under all common colour-vision deficiencies. Orange and sky blue
# are darker than theirs: a line of any colour has a contrast of 3:1 on white (WCAG 1.4.11).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C08000", "#3596CF", "#000000")
SPARE = ("#8C564B", "#8C8C1A", "#128C99", "#9467BD")  # for methods without a colour of their own
METHODS = declared(__file__)
COLORS = Named(
    {name: color for name, (_, color) in METHODS.items()},
    lambda name: SPARE[zlib.crc32(name.encode()) % len(SPARE)],
)
LABELS = Named(
    {name: label for name, (label, _) in METHODS.items()},
    lambda name: name.replace("-", " ").capitalize(),
)
STYLE = declared(__file__, "style.toml") | {"axes.prop_cycle": mpl.cycler(color=PALETTE)}


def use_style() -> None:
    """Set the book's defaults of matplotlib's figures and pandas' tables; call once, at the top."""
    mpl.rcParams.update(STYLE)
    pd.options.display.precision = 4
