"""One look for all figures: colour-blind-safe, labelled, sized for the page."""

from __future__ import annotations

import matplotlib as mpl
from cycler import cycler

# Okabe & Ito (2008): told apart under all common colour-vision deficiencies.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = {
    "random": "#000000",
    "gflowout": "#0072B2",
    "gflowout-literal": "#56B4E9",
    "id-gflowout": "#D55E00",
}
LABELS = {
    "random": "Random dropout",
    "gflowout": "GFlowOut",
    "gflowout-literal": "GFlowOut (literal)",
    "id-gflowout": "ID-GFlowOut",
}


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
