"""Two measures that decide (Ashukha et al., 2020, "Pitfalls of In-Domain Uncertainty Estimation"):
the NLL after one temperature, and how many plain networks averaged are as good.

A temperature is fitted to an ensemble as to any other predictive: on the log of the average.
"""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from torch import Tensor

from gfo.evaluate.calibrate import Temperature
from gfo.evaluate.metrics import evaluate

Parts = dict[str, tuple[Tensor, Tensor]]  # by name: each member's (M, n, K), labels (n,)


def calibrated(parts: Parts, name: str, members: Sequence[int] | slice = slice(None)) -> dict:
    """Scores of an average over members, as it is and after a temperature.

    Args:
        parts: Probabilities of each member on sets of images, and their labels; those under "tune"
            fit the temperature, and nothing else should have seen them.
        name: The set that is scored.
        members: Which are averaged.

    Returns:
        "temperature", and what `gfo.evaluate.metrics.evaluate` gives (nll: nats per image), its
        names followed by `name`; all but the accuracy also after the temperature, their names
        followed by "_calibrated" and `name`.
    """
    probs, y = parts[name][0][members].mean(0), parts[name][1]
    scale = Temperature(parts["tune"][0][members].mean(0), parts["tune"][1])
    both = {"": evaluate(probs, y), "_calibrated": evaluate(scale(probs), y)}
    del both["_calibrated"]["accuracy"]  # a temperature moves no answer
    found = {f"{k}{after}{name}": v for after, row in both.items() for k, v in row.items()}
    return found | {"temperature": scale.value}


def by_size(parts: Parts, name: str) -> dict[str, list[float]]:
    """`calibrated` of ensembles of 1 to all of the members, one place per size: the mean over all
    ways to choose so many."""
    count = len(parts[name][0])
    every = [combinations(range(count), size) for size in range(1, count + 1)]
    rows = [pd.DataFrame([calibrated(parts, name, list(s)) for s in some]).mean() for some in every]
    return {f"{key}_by_size": values.tolist() for key, values in pd.DataFrame(rows).items()}


def equivalent(curve: Sequence[float], nll: float) -> str:
    """The deep-ensemble equivalent: the smallest number of plain networks, between sizes on a line,
    whose calibrated NLL is at most `nll`.

    Args:
        curve: Calibrated NLL of ensembles of 1, 2, … networks, as `by_size` gives it.
        nll: Calibrated NLL of what is asked about, on the same images.

    Returns:
        It with one decimal; "< 1" for what is worse than one network, "> 10" for what is better
        than all sizes of a curve of ten.
    """
    if not nll <= curve[0]:  # NaN neither
        return "< 1"
    size = next((i for i, value in enumerate(curve) if value <= nll), None)
    if size is None:
        return f"> {len(curve)}"
    short = (nll - curve[size]) / (curve[size - 1] - curve[size]) if size else 0.0
    return f"{size + 1 - short:.1f}"
