"""Learning rates by group of parameters."""

from collections.abc import Mapping

LEARNING_RATES = {"backbone": 1e-3, "masks": 1e-3, "log_z": 1e-2}


def learning_rates(lr: Mapping[str, float] | None) -> dict[str, float]:
    """The rate of each group, the default where `lr` does not name it.

    Raises:
        ValueError: Where `lr` is no mapping, names a group that there is not, or a rate that is
            negative or not finite.
    """
    if not isinstance(lr, Mapping | None):
        raise ValueError(f"lr is {lr!r}, needs a rate by group: lr={{'backbone': {lr!r}}}, say")
    if unknown := set(lr or {}) - set(LEARNING_RATES):
        raise ValueError(f"lr names {sorted(unknown)}; the groups are {sorted(LEARNING_RATES)}")
    rates = LEARNING_RATES | {name: float(rate) for name, rate in (lr or {}).items()}
    if not all(0 <= rate < float("inf") for rate in rates.values()):
        raise ValueError(f"lr is {lr}: rates are finite, from 0 on")
    return rates
