"""How much work each profile does, as chapters and commands read it from profiles.toml."""

from dataclasses import dataclass

from gfo.core.registry import Registry
from gfo_lab import declared


@dataclass(frozen=True)
class Budget:
    """One profile, as profiles.toml has it and says."""

    dataset: str
    epochs: int
    patience: int
    batch: int
    samples: int
    seeds: list[int]
    toy_steps: int


PROFILES = Registry("profile", {name: Budget(**work) for name, work in declared(__file__).items()})


def budget(profile: str) -> Budget:
    """The budget of `profile`; ValueError with the nearest match for an unknown one."""
    return PROFILES[profile]
