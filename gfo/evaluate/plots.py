"""One look for all figures: colour-blind-safe, labelled, sized for the page."""

import zlib
from collections.abc import Callable

import matplotlib as mpl
from cycler import cycler


class Named(dict):
    """A dict that makes an entry up for a name it lacks, so that a new method needs none."""

    def __init__(self, known: dict[str, str], otherwise: Callable[[str], str]):
        super().__init__(known)
        self.otherwise = otherwise

    def __missing__(self, name: str) -> str:
        return self.otherwise(name)


# Okabe & Ito (2008): told apart under all common colour-vision deficiencies.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SPARE = ("#8C564B", "#BCBD22", "#17BECF", "#9467BD")  # for methods without a colour of their own
COLORS = Named(
    {
        "deterministic": "#7F7F7F",
        "random": "#000000",
        "mc-improved": "#E69F00",
        "concrete": "#009E73",
        "contextual": "#CC79A7",
        "ensemble": "#882255",
        "gflowout": "#0072B2",
        "gflowout-literal": "#56B4E9",
        "id-gflowout": "#D55E00",
    },
    lambda name: SPARE[zlib.crc32(name.encode()) % len(SPARE)],
)
LABELS = Named(
    {
        "deterministic": "No dropout",
        "random": "Random dropout",
        "mc-improved": "MC dropout, improved",
        "concrete": "Concrete dropout",
        "contextual": "Contextual dropout",
        "ensemble": "Deep ensemble",
        "gflowout": "GFlowOut",
        "gflowout-literal": "GFlowOut (literal)",
        "id-gflowout": "ID-GFlowOut",
    },
    lambda name: name.replace("-", " ").capitalize(),
)


def use_style() -> None:
    """Set matplotlib's defaults for the book; call once at the top of a chapter."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "legend.frameon": False,
            "savefig.bbox": "tight",
        }
    )
