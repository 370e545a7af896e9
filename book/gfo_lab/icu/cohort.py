"""From eICU tables to a cohort: rules, each counted."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from gfo_lab.icu.drugs import Codes, infused, votes
from gfo_lab.icu.eicu import check_stays, chunks, folder

STATUS = {"Alive": 0, "Expired": 1}
# The rules that, where they are True, count what is left out by default.
COUNTED = "cancelled after_discharge reversed zero_rates fluids home_drugs".split()


@dataclass(frozen=True)
class Rules:
    """Which rows count. A drug counts for a stay if one of its rows passes.

    hours: the window, from admission to the ICU.
    cancelled, after_discharge, reversed, zero_rates, fluids, home_drugs: True counts what is left
        out by default: cancelled orders; orders that start after the stay's end; orders that stop
        before they start (a stop of 0 is a missing one); infusions at rate 0 or "OFF"; infusions
        of carrier fluids only; drugs taken at home (the admissiondrug table).
    recover: give orders without a drug code the code that their name has elsewhere.
    outcome: died in the "unit" or in the "hospital".
    min_hours: shortest stay. first_stay: only the first ICU stay of each patient.
    """

    hours: int = 48
    cancelled: bool = False
    after_discharge: bool = False
    reversed: bool = False
    zero_rates: bool = False
    fluids: bool = False
    home_drugs: bool = False
    recover: bool = True
    outcome: str = "unit"
    min_hours: int = 0
    first_stay: bool = False

    def __post_init__(self):
        if self.outcome not in ("unit", "hospital"):
            raise ValueError(f'outcome is {self.outcome!r}, needs to be "unit" or "hospital"')
        if self.hours <= 0 or self.min_hours < 0:
            raise ValueError(f"hours {self.hours} and min_hours {self.min_hours}: need > 0 and ≥ 0")


class Funnel:
    """Counts, rule by rule, the rows that are left out; chunks of one table add up."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.rows: list[tuple[str, str, str, int, int]] = []  # as `table` has them, chunk by chunk
        self.stays: set[int] = set()  # of the patient table, as it was read

    def read(self, frame: pd.DataFrame, table: str, what: str) -> None:
        """The rows of a table before any rule, all of known stays."""
        check_stays(frame, table, self.stays)
        self.rows.append((table, what, "", 0, len(frame)))

    def drop(self, frame: pd.DataFrame, table: str, rule: str, argument: str, bad) -> pd.DataFrame:
        """`frame` without the rows where `bad`, if the rules' `argument` does not count them."""
        kept = frame if argument in COUNTED and getattr(self.rules, argument) else frame[~bad]
        self.rows.append((table, rule, argument, len(frame) - len(kept), len(kept)))
        return kept

    def table(self) -> pd.DataFrame:
        rows = pd.DataFrame(self.rows, columns=["table", "rule", "argument", "dropped", "left"])
        return rows.groupby(["table", "rule", "argument"], sort=False, as_index=False).sum()


@dataclass(frozen=True)
class Cohort:
    """stays: one row per stay, columns hospital, patient, died (0 or 1), minutes. given: (stays, V)
    bool, whether drug v was given. tokens, labels: the V drugs, as coded and as people read them.
    counts: a table of the rules, what each dropped and what it left."""

    name: str
    rules: Rules
    stays: pd.DataFrame
    given: torch.Tensor
    tokens: list[str]
    labels: list[str]
    counts: pd.DataFrame


def cohort(name: str = "eicu-demo", root: str | Path | None = None, **rules) -> Cohort:
    """The stays and drugs of "eicu-demo" or "eicu" under `Rules(**rules)`.

    root: see `gfo.data.load`. Raises FileNotFoundError for a missing table; ValueError for a
    missing column, a status that is neither Alive nor Expired, and rules that leave no stay.
    """
    where, funnel = folder(name, root), Funnel(rules := Rules(**rules))
    stays = read_stays(where, funnel)
    orders, codes = read_orders(where, funnel, stays)
    given = [read_infusions(where, funnel, stays), read_home_drugs(where, funnel, stays)]
    pairs = pd.concat([orders, *given]).drop_duplicates()
    stays = funnel.drop(stays, "patient", "no drug in the window", "hours",
                        ~stays.index.isin(pairs["stay"]))  # fmt: skip
    if stays.empty:
        raise ValueError(f"no stay of {name} is left under {rules}")
    tokens = sorted(pairs["token"].unique())
    row = stays.index.get_indexer(pairs["stay"])
    column = pd.Index(tokens).get_indexer(pairs["token"])
    multi_hot = torch.zeros(len(stays), len(tokens), dtype=torch.bool)
    multi_hot[torch.tensor(row), torch.tensor(column)] = True
    labels = [codes.label(token) for token in tokens]
    return Cohort(name, rules, stays, multi_hot, tokens, labels, funnel.table())


def read_stays(where: Path, funnel: Funnel) -> pd.DataFrame:
    """One row per stay in the order of their ids."""
    rules = funnel.rules
    table = pd.concat(chunks(where, "patient")).sort_values("patientunitstayid")
    status = table[f"{rules.outcome}dischargestatus"]
    status = status.where(status.fillna("").str.strip() != "")
    if odd := sorted(set(status.dropna()) - set(STATUS)):
        said = f"{rules.outcome}dischargestatus holds {odd[0]!r}"
        raise ValueError(f"{said}: needs to be Alive, Expired or blank")
    if twice := list(table["patientunitstayid"][table.duplicated("patientunitstayid")]):
        raise ValueError(f"patient has stay {twice[0]} twice: fetch the table again")
    funnel.stays = set(table["patientunitstayid"])
    funnel.read(table, "patient", "stays read")
    table = table.assign(died=status.map(STATUS))
    order = ["hospitaldischargeyear", "patienthealthsystemstayid", "unitvisitnumber"]
    again = table.sort_values(order).duplicated("uniquepid")  # of all stays, as they were
    table = funnel.drop(table, "patient", "outcome unknown", "outcome", table["died"].isna())
    again = again.reindex(table.index) & rules.first_stay
    table = funnel.drop(table, "patient", "not the patient's first stay", "first_stay", again)
    short = table["unitdischargeoffset"] < 60 * rules.min_hours
    table = funnel.drop(table, "patient", f"shorter than {rules.min_hours} h", "min_hours", short)
    names = {"patientunitstayid": "stay", "hospitalid": "hospital", "uniquepid": "patient",
             "unitdischargeoffset": "minutes"}  # fmt: skip
    found = table.rename(columns=names).set_index("stay").astype({"died": int})
    return found.filter(["hospital", "patient", "died", "minutes"])


def read_orders(where: Path, funnel: Funnel, stays: pd.DataFrame) -> tuple[pd.DataFrame, Codes]:
    """(stay, token) pairs of the medication table, and what the names in it say."""
    kept, counted = [], []
    for part in chunks(where, "medication"):
        counted.append(votes(part))
        kept.append(in_window(part, funnel, stays))
    codes, rows = Codes(pd.concat(counted)), pd.concat(kept)
    rows = rows.assign(token=codes.tokens(rows, funnel.rules.recover))
    rows = funnel.drop(rows, "medication", "neither code nor name", "recover", rows["token"] == "")
    return pairs_of(rows, stays), codes


def in_window(part: pd.DataFrame, funnel: Funnel, stays: pd.DataFrame) -> pd.DataFrame:
    """Orders of one chunk that were given in the window."""
    end = 60 * (hours := funnel.rules.hours)
    start, stop = part["drugstartoffset"], part["drugstopoffset"]
    leaves = part["patientunitstayid"].map(stays["minutes"])
    funnel.read(part, "medication", "orders read")
    called_off = part["drugordercancelled"].str.strip().str.lower() == "yes"
    for rule, argument, bad in (
        ("cancelled", "cancelled", called_off),
        (f"ordered after {hours} h", "hours", ~(part["drugorderoffset"] < end)),
        (f"starts after {hours} h", "hours", ~(start < end)),
        ("stopped before admission", "hours", stop < 0),
        ("starts after discharge", "after_discharge", start > leaves),
        ("stops before it starts", "reversed", (stop < start) & (stop != 0)),
    ):
        part = funnel.drop(part, "medication", rule, argument, bad.reindex(part.index))
    return part


def read_infusions(where: Path, funnel: Funnel, stays: pd.DataFrame) -> pd.DataFrame:
    """(stay, token) pairs of the infusiondrug table."""
    kept, hours = [], funnel.rules.hours
    for part in chunks(where, "infusiondrug"):
        funnel.read(part, "infusiondrug", "rows read")
        outside = ~part["infusionoffset"].between(0, 60 * hours, inclusive="left")
        part = funnel.drop(part, "infusiondrug", f"not in 0–{hours} h", "hours", outside)
        off = part["drugrate"].str.strip().str.lower() == "off"
        still = off | (pd.to_numeric(part["drugrate"], errors="coerce") == 0)
        part = funnel.drop(part, "infusiondrug", "rate 0", "zero_rates", still)
        word = infused(part["drugname"])
        part = part.assign(token="infusion " + word.where(word != "", "fluid"))
        kept.append(funnel.drop(part, "infusiondrug", "carrier fluid only", "fluids", word == ""))
    return pairs_of(pd.concat(kept), stays)


def read_home_drugs(where: Path, funnel: Funnel, stays: pd.DataFrame) -> pd.DataFrame:
    """(stay, token) pairs of the admissiondrug table, if they are asked for."""
    rows = pd.concat(chunks(where, "admissiondrug"))
    funnel.read(rows, "admissiondrug", "rows read")
    code = rows["drughiclseqno"].fillna(0).astype(int)  # 0 where there is none
    name = rows["drugname"].str.strip().str.lower()
    rows = rows.assign(token="home " + code.astype(str).where(code != 0, name))
    home = pd.Series(True, rows.index)
    return pairs_of(funnel.drop(rows, "admissiondrug", "taken at home", "home_drugs", home), stays)


def pairs_of(rows: pd.DataFrame, stays: pd.DataFrame) -> pd.DataFrame:
    """Distinct (stay, token) of the stays that are in the study."""
    rows = rows.rename(columns={"patientunitstayid": "stay"})[["stay", "token"]].drop_duplicates()
    return rows[rows["stay"].isin(stays.index)]
