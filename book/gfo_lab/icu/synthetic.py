"""INVENTED intensive-care tables in eICU's format, for the built book and the tests. No number that
comes out of them says anything about patients."""

import functools
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

NAME = "icu-synthetic"
# Name, share of stays that get it, what one unit of severity adds to its log-odds.
DRUGS = pd.read_csv(Path(__file__).with_suffix(".csv"))
OTHERS = 30  # drugs that say nothing, as `names_of` names them
TAILS = ("", " inj", " 10 mg po tabs", " 5 mg/ml iv soln")


@functools.cache
def folder(stays: int = 900, hospitals: int = 30, seed: int = 0) -> Path:
    """A temporary folder with the four tables; made once per process."""
    kept = tempfile.TemporaryDirectory(prefix="icu-synthetic-")
    _KEPT.append(kept)
    return write(Path(kept.name), stays, hospitals, seed)


_KEPT: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def write(where: Path, stays: int, hospitals: int, seed: int) -> Path:
    """Write patient, medication, infusiondrug and admissiondrug. Each stay has a severity that
    drives death and drugs; each hospital has drugs it likes. Rows of every kind that the rules of
    `gfo_lab.icu.cohort` drop are among them."""
    rng = np.random.default_rng(seed)
    severity, hospital = rng.normal(size=stays), rng.integers(hospitals, size=stays)
    died = rng.random(stays) < 1 / (1 + np.exp(3.6 - 1.6 * severity))
    stay = 1000 + np.arange(stays)
    minutes = rng.exponential(3000, stays).astype(int) + 120
    status = np.where(died, "Expired", "Alive").astype(object)
    status[:3] = np.nan
    person = np.where(stay % 10 < 2, stay - stay % 10, stay)  # of ten stays two are one patient's
    patient = {
        "patientunitstayid": stay, "uniquepid": np.char.add("p", person.astype(str)),
        "hospitalid": 50 + hospital, "hospitaldischargeyear": 2014 + stay % 2,
        "patienthealthsystemstayid": stay, "unitvisitnumber": 1, "unitdischargeoffset": minutes,
        "unitdischargestatus": status, "hospitaldischargestatus": status,
    }  # fmt: skip
    pairs = given(rng, severity, hospital, hospitals)
    for name, table in (
        ("patient", pd.DataFrame(patient)),
        ("medication", orders(rng, stay[pairs[0]], pairs[1])),
        ("infusiondrug", infusions(rng, stay[pairs[0]], pairs[1])),
        ("admissiondrug", home(rng, stay)),
    ):
        table.to_csv(where / f"{name}.csv.gz", index=False)
    return where


def given(rng, severity, hospital, hospitals) -> tuple[np.ndarray, np.ndarray]:
    """(stay, drug) pairs."""
    share = np.array([*DRUGS["share"]] + [0.1] * OTHERS)
    slope = np.array([*DRUGS["slope"]] + [0.0] * OTHERS)
    habit = rng.normal(scale=0.7, size=(hospitals, len(share)))
    log_odds = np.log(share / (1 - share)) + slope * severity[:, None] + habit[hospital]
    return np.nonzero(rng.random(log_odds.shape) < 1 / (1 + np.exp(-log_odds)))


def names_of(drug: np.ndarray) -> np.ndarray:
    known = [*DRUGS["name"], *(f"drug {a}{b}" for a, b in product("abc", "abcdefghij"))]
    return np.array(known, dtype=object)[drug]


def orders(rng, stay: np.ndarray, drug: np.ndarray) -> pd.DataFrame:
    n = len(stay)
    start = rng.integers(-200, 5000, n)
    stop = start + rng.integers(-300, 3000, n)
    name = names_of(drug) + np.array(TAILS, dtype=object)[rng.integers(len(TAILS), size=n)]
    return pd.DataFrame({
        "patientunitstayid": stay, "drugorderoffset": start - 30, "drugstartoffset": start,
        "drugstopoffset": np.where(rng.random(n) < 0.05, 0, stop),
        "drugordercancelled": np.where(rng.random(n) < 0.04, "Yes", "No"),
        "drugname": np.where(rng.random(n) < 0.4, np.nan, name),
        "drughiclseqno": np.where(rng.random(n) < 0.06, np.nan, 2000 + drug),
    })  # fmt: skip


def infusions(rng, stay: np.ndarray, drug: np.ndarray) -> pd.DataFrame:
    some = np.flatnonzero((drug < 5) & (drug != 4))  # those that run
    name = np.char.add(names_of(drug[some]).astype(str), " (ml/hr)")
    name[rng.random(len(some)) < 0.1] = "NS (ml/hr)"
    return pd.DataFrame({
        "patientunitstayid": stay[some], "infusionoffset": rng.integers(-100, 4000, len(some)),
        "drugname": name, "drugrate": np.where(rng.random(len(some)) < 0.08, "0", "12.5"),
    })  # fmt: skip


def home(rng, stay: np.ndarray) -> pd.DataFrame:
    drug = rng.integers(len(DRUGS), size=len(stay))
    table = {"patientunitstayid": stay, "drugname": names_of(drug), "drughiclseqno": 2000 + drug}
    return pd.DataFrame(table)
