"""Splits of a cohort by hospital: no hospital and no patient on both sides."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gfo.core.noise import generator
from gfo.core.registry import DATASETS
from gfo.data.splits import Splits
from gfo_lab.icu.cohort import Cohort, cohort

PARTS = ("train", "valid", "test")
SHARES = {"test": 0.25, "valid": 0.15}  # of the hospitals; the rest trains
MIN_STAYS = 5  # training stays that a drug needs to be an input


def draw_parts(cohort: Cohort, seed: int) -> dict[str, list[int]]:
    """Each hospital in one part, by a permutation drawn from `seed`."""
    known = np.unique(cohort.stays["hospital"])
    order = known[torch.randperm(len(known), generator=generator(seed, "hospitals")).numpy()]
    sizes = {part: max(1, round(share * len(known))) for part, share in SHARES.items()}
    cuts = np.split(order, np.cumsum(list(sizes.values())))
    return {part: cut.tolist() for part, cut in zip((*sizes, "train"), cuts, strict=True)}


def rows_of(cohort: Cohort, parts: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Rows of the cohort in each part. Patients seen in test leave train and valid, those seen in
    valid leave train.

    Raises ValueError for a hospital that is in two parts or not in the cohort, for outcomes other
    than 0 and 1, and for a part without a death or without a survivor.
    """
    stays = cohort.stays
    if odd := sorted(set(stays["died"]) - {0, 1}):
        raise ValueError(f"died holds {odd[0]!r}: needs to be 0 or 1")
    if set(parts) != set(PARTS):
        raise ValueError(f"parts are {', '.join(parts)}: need train, valid and test")
    where: dict[int, str] = {}
    for part, hospitals in parts.items():
        for hospital in hospitals:
            if where.setdefault(hospital, part) != part:
                raise ValueError(f"hospital {hospital} is in {where[hospital]} and in {part}")
    if unknown := sorted(set(where) - set(stays["hospital"])):
        raise ValueError(f"hospital {unknown[0]} has no stay in this cohort")
    part_of, seen, found = stays["hospital"].map(where), set(), {}
    for part in reversed(PARTS):
        mine = (part_of == part) & ~stays["patient"].isin(seen)
        seen |= set(stays["patient"][mine])
        found[part] = np.flatnonzero(mine)
        deaths = int(stays["died"].to_numpy()[found[part]].sum())
        if deaths in (0, len(found[part])):
            said = f"{part} has {deaths} deaths in {len(found[part])} stays"
            raise ValueError(f"{said}: choose another split")
    return found


def by_hospital(
    cohort: Cohort, parts: Mapping[str, Sequence[int]], *, min_stays: int = MIN_STAYS
) -> Splits:
    """x (n, V) is 1 where the drug was given, y whether the patient died. The V drugs are those of
    `min_stays` training stays or more. `tune` is `valid`: deaths are too rare to spare a part.
    Raises as `rows_of`, and where no drug is that common."""
    rows = rows_of(cohort, parts)
    common = cohort.given[rows["train"]].sum(0) >= min_stays
    if not common.any():
        raise ValueError(f"no drug was given in {min_stays} training stays: lower min_stays")
    died = torch.tensor(cohort.stays["died"].to_numpy())
    x = cohort.given[:, common].float()
    train, valid, test = ((x[rows[part]], died[rows[part]]) for part in PARTS)
    zero, one = torch.zeros(1, x.shape[1]), torch.ones(1, x.shape[1])
    return Splits(cohort.name, train, valid, valid, test, zero, one, classes=2)


def load(name: str, root: str | Path | None = None, seed: int = 0) -> Splits:
    """The default cohort of a data set, its hospitals split by `seed`."""
    made = cohort(name, root)
    return by_hospital(made, draw_parts(made, seed))


for _name in ("eicu-demo", "eicu", "icu-synthetic"):
    DATASETS[_name] = partial(load, _name)
