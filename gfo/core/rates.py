"""Learning rates by group of parameters."""

from collections.abc import Mapping

LEARNING_RATES = {"backbone": 1e-3, "masks": 1e-3, "log_z": 1e-2}


def learning_rates(lr: Mapping[str, float] | None) -> dict[str, float]:
    """The rate of each group, the default where `lr` does not name it.

    Raises:
        ValueError: Where `lr` is no mapping, or names a group that there is not.
    """
    if not isinstance(lr, Mapping | None):
        raise ValueError(f"lr is {lr!r}, needs a rate by group: lr={{'backbone': {lr!r}}}, say")
    unknown = set(lr or {}) - set(LEARNING_RATES)
    if unknown:
        raise ValueError(f"lr names {sorted(unknown)}; the groups are {sorted(LEARNING_RATES)}")
    return LEARNING_RATES | {name: float(rate) for name, rate in (lr or {}).items()}
