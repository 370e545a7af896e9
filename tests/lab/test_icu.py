"""The eICU loader, the rules of its cohort, splits by hospital, and the experiment on them."""

import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from gfo_lab.experiments import icu, icu_tune
from gfo_lab.icu import drugs, synthetic
from gfo_lab.icu.cohort import Rules, cohort
from gfo_lab.icu.hospitals import by_hospital, draw_parts, rows_of
from gfo_lab.run import run

import gfo

PATIENTS = """patientunitstayid,patienthealthsystemstayid,hospitalid,hospitaldischargeyear,\
hospitaldischargestatus,unitvisitnumber,unitdischargeoffset,unitdischargestatus,uniquepid
1,1,10,2014,Alive,1,4000,Alive,a
2,2,10,2015,Expired,1,2000,Alive,a
3,3,11,2014,Expired,1,300,Expired,b
4,4,11,2014,,1,300,,c
5,5,12,2014,Alive,1,2000,Alive,d
"""
# One row for every rule; the comment says which one drops it.
ORDERS = [
    # stay, order, start, stop, cancelled, name, code
    (1, 0, 10, 100, "No", "5 ML VIAL : HEPARIN SODIUM 5000 UNIT/ML IJ SOLN", 7),
    (1, 0, 10, 0, "No", "", 8),  # stays: a stop of 0 is missing, a blank name has a code
    (1, 0, 10, 100, "No", "heparin 1000 unit inj", ""),  # stays: the name votes for 7
    (1, 0, 10, 100, "No", "Zzz 5 mg", ""),  # stays, under its own name
    (1, 0, 10, 100, "Yes", "aspirin", 9),  # cancelled
    (1, 2880, 10, 3000, "No", "aspirin", 9),  # ordered after 48 h
    (1, 0, 2880, 3000, "No", "aspirin", 9),  # starts after 48 h
    (1, -50, -40, -5, "No", "aspirin", 9),  # stopped before admission
    (3, 0, 301, 400, "No", "aspirin", 9),  # starts after discharge (at 300)
    (1, 0, 50, 40, "No", "aspirin", 9),  # stops before it starts
    (1, 0, 10, 100, "No", "", ""),  # neither code nor name
    (2, 0, 300, 310, "No", "aspirin", 9),  # stays
    (3, 0, 300, 310, "No", "aspirin", 9),  # stays: starts with the discharge, not after
    (4, 0, 10, 100, "No", "aspirin", 9),  # the outcome of stay 4 is unknown
]
INFUSIONS = [
    (1, 0, "Norepinephrine (mcg/min)", "4"),
    (1, 2880, "Propofol (ml/hr)", "4"),  # outside
    (1, -1, "Propofol (ml/hr)", "4"),  # outside
    (1, 5, "Propofol (ml/hr)", "0"),  # rate 0
    (1, 5, "Propofol (ml/hr)", "OFF"),  # rate 0
    (1, 5, "D5 1/2 NS (ml/hr)", "50"),  # fluid
    (3, 5, "Volume (mL) Sodium Bicarb  (ml/hr)", ""),  # a rate that nobody wrote down is not 0
]
DROPPED = {
    "outcome unknown": 1, "cancelled": 1, "ordered after 48 h": 1, "starts after 48 h": 1,
    "stopped before admission": 1, "starts after discharge": 1, "stops before it starts": 1,
    "neither code nor name": 1, "not in 0–48 h": 2, "rate 0": 2, "carrier fluid only": 1,
    "taken at home": 1, "no drug in the window": 1,
}  # fmt: skip


@pytest.fixture
def tables(tmp_path):
    """A folder as the full release writes it: mixed-case names, packed or not."""
    where = tmp_path / "eicu-demo"
    where.mkdir()
    with gzip.open(where / "patient.csv.gz", "wt") as file:
        file.write(PATIENTS)
    columns = "patientunitstayid drugorderoffset drugstartoffset drugstopoffset"
    columns += " drugordercancelled drugname drughiclseqno"
    pd.DataFrame(ORDERS, columns=columns.split()).to_csv(where / "medication.csv.gz", index=False)
    columns = ["patientunitstayid", "infusionoffset", "drugname", "drugrate"]
    pd.DataFrame(INFUSIONS, columns=columns).to_csv(where / "infusionDrug.csv", index=False)
    home = {"patientunitstayid": [5], "drugname": ["WARFARIN   "], "drughiclseqno": [0]}
    pd.DataFrame(home).to_csv(where / "admissionDrug.csv.gz", index=False)
    return where


def drugs_of(made, stay):
    row = made.given[list(made.stays.index).index(stay)]
    return {made.tokens[int(v)] for v in row.nonzero().flatten()}


def test_every_rule_drops_what_it_says(tables):
    made = cohort("eicu-demo", tables.parent)
    assert made.counts.set_index("rule")["dropped"].loc[list(DROPPED)].to_dict() == DROPPED
    assert list(made.stays.index) == [1, 2, 3] and list(made.stays["died"]) == [0, 0, 1]
    assert drugs_of(made, 1) == {"hicl 7", "hicl 8", "name zzz", "infusion norepinephrine"}
    assert drugs_of(made, 2) == {"hicl 9"}
    assert drugs_of(made, 3) == {"hicl 9", "infusion bicarb"}
    assert made.labels[made.tokens.index("hicl 7")] == "heparin"
    assert made.labels[made.tokens.index("infusion bicarb")] == "bicarb (infusion)"
    assert cohort("eicu-demo", tables).tokens == made.tokens  # the folder itself will do


@pytest.mark.parametrize(
    ("rules", "stay", "token"),
    [
        ({"cancelled": True}, 1, "hicl 9"),
        ({"reversed": True}, 1, "hicl 9"),
        ({"zero_rates": True}, 1, "infusion propofol"),
        ({"fluids": True}, 1, "infusion fluid"),
        ({"hours": 72}, 1, "hicl 9"),
        ({"home_drugs": True}, 5, "home warfarin"),
    ],
)
def test_what_a_rule_leaves_out_it_can_let_in(tables, rules, stay, token):
    assert token in drugs_of(cohort("eicu-demo", tables, **rules), stay)


def write_sums(where):
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}\n" for path in where.iterdir()
    ]
    (where / "SHA256SUMS.txt").write_text("".join(lines), encoding="utf-8")


def test_faults_a13_a_table_is_held_against_the_sums_beside_it(tables, monkeypatch):
    write_sums(tables)
    cohort("eicu-demo", tables)
    half = "".join(PATIENTS.splitlines(True)[:4])
    with gzip.open(tables / "patient.csv.gz", "wt") as file:
        file.write(half)
    for name in ("patient.csv.gz", "infusionDrug.csv"):
        with pytest.raises(FileNotFoundError, match=f"{name}' is not the published") as told:
            cohort("eicu-demo", tables)
        assert "\n" not in str(told.value)
        with gzip.open(tables / "patient.csv.gz", "wt") as file:
            file.write(PATIENTS)
        write_sums(tables)
        with (tables / "infusionDrug.csv").open("a", encoding="utf-8") as file:
            file.write("1,0,Norepinephrine,4\n")
    monkeypatch.setenv("GFO_UNCHECKED", "1")
    with pytest.warns(UserWarning, match="SHA256"):
        cohort("eicu-demo", tables)


def test_faults_a13_dropped_patients_are_missed_without_sums_too(tables):
    with gzip.open(tables / "patient.csv.gz", "wt") as file:
        file.write("".join(PATIENTS.splitlines(True)[:4]))
    with pytest.raises(FileNotFoundError, match="patient lacks stay 4, which medication has"):
        cohort("eicu-demo", tables)
    with gzip.open(tables / "patient.csv.gz", "wt") as file:
        file.write(PATIENTS + PATIENTS.splitlines(True)[1])
    with pytest.raises(ValueError, match="patient has stay 1 twice"):
        cohort("eicu-demo", tables)


def test_faults_a13_two_files_for_one_table_are_named(tables):
    (tables / "Patient.csv").write_text(PATIENTS, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="holds Patient.csv and patient.csv.gz for one"):
        cohort("eicu-demo", tables)


def test_further_rules(tables):
    late = cohort("eicu-demo", tables, after_discharge=True).counts.set_index("rule")
    assert late["dropped"]["starts after discharge"] == 0
    made = cohort("eicu-demo", tables, recover=False)
    assert drugs_of(made, 1) == {"hicl 7", "hicl 8", "infusion norepinephrine"}
    assert list(cohort("eicu-demo", tables, outcome="hospital").stays["died"]) == [0, 1, 1]
    assert list(cohort("eicu-demo", tables, min_hours=24).stays.index) == [1, 2]
    assert list(cohort("eicu-demo", tables, first_stay=True).stays.index) == [1, 3]


def test_a_second_stay_is_no_first_one_because_the_first_has_no_outcome(tables):
    with gzip.open(tables / "patient.csv.gz", "wt") as file:  # stays 1 and 2 are of patient a
        file.write(PATIENTS.replace("4000,Alive,a", "4000,,a"))
    assert list(cohort("eicu-demo", tables, first_stay=True).stays.index) == [3]


def test_counts_add_up_over_chunks(tables, monkeypatch):
    whole = cohort("eicu-demo", tables)
    monkeypatch.setattr("gfo_lab.icu.eicu.CHUNK", 3)
    parts = cohort("eicu-demo", tables)
    pd.testing.assert_frame_equal(parts.counts, whole.counts)
    assert torch.equal(parts.given, whole.given) and parts.tokens == whole.tokens


def test_names_in_all_their_dress():
    names = {
        "3 ML VIAL : INSULIN REGULAR HUMAN 100 UNIT/ML IJ SOLN": "insulin regular human",
        "20 ML  -  LIDOCAINE HCL 1 % IJ SOLN": "lidocaine",
        "potassium chloride 20 meq": "potassium chloride", "Lasix": "lasix", None: "", "5 %": "",
    }  # fmt: skip
    assert list(drugs.phrase(pd.Series(list(names)))) == list(names.values())
    names = {
        "1/2NS (ml/hr)": "", "Volume (mL) Magnesium  (ml/hr)": "magnesium",
        "0.9NS w/20meq KCL (ml/hr)": "kcl", "Normal Saline with Sodium Bicarb": "bicarb",
    }  # fmt: skip
    assert list(drugs.infused(pd.Series(list(names)))) == list(names.values())


def test_a_name_gets_a_code_only_from_a_majority():
    orders = pd.DataFrame({"drugname": ["saline"] * 4 + ["heparin"] * 3,
                           "drughiclseqno": [1, 1, 2, 2, 3, 3, 4]})  # fmt: skip
    codes = drugs.Codes(drugs.votes(orders))
    blank = pd.DataFrame({"drugname": ["saline 1 ml", "heparin inj"], "drughiclseqno": np.nan})
    assert list(codes.tokens(blank)) == ["name saline", "hicl 3"]


def test_bad_tables_are_named(tables):
    def complains(match, kind=ValueError):
        with pytest.raises(kind, match=match) as error:
            cohort("eicu-demo", tables)
        assert "\n" not in str(error.value)

    whole = (tables / "medication.csv.gz").read_bytes()
    pd.read_csv(tables / "medication.csv.gz").drop(columns="drugstopoffset").to_csv(
        tables / "medication.csv.gz", index=False
    )
    complains("medication.csv.gz lacks the column drugstopoffset")
    (tables / "medication.csv.gz").write_bytes(
        gzip.compress(gzip.decompress(whole) + b"1,n/k,0,0,No,x,1\n")
    )
    complains("medication.csv.gz: column drugorderoffset holds text")
    (tables / "medication.csv.gz").write_bytes(gzip.compress(b""))
    complains("medication.csv.gz is damaged")
    head = gzip.decompress(whole).split(b"\n")[0] + b"\n"
    (tables / "medication.csv.gz").write_bytes(gzip.compress(head))
    kept = set(cohort("eicu-demo", tables).tokens)  # no order: infusions alone
    assert kept and all(token.startswith("infusion ") for token in kept)
    (tables / "medication.csv.gz").write_bytes(whole[: len(whole) // 2])
    complains("medication.csv.gz is damaged")
    (tables / "medication.csv.gz").unlink()
    complains("no medication.csv.gz or medication.csv in", FileNotFoundError)
    with gzip.open(tables / "patient.csv.gz", "wt") as file:
        file.write(PATIENTS.replace("Expired,b", "Transferred,b"))
    complains("unitdischargestatus holds 'Transferred'")


@pytest.mark.parametrize(
    ("rules", "match"),
    [({"outcome": "ward"}, "ward"), ({"hours": 0}, "hours 0"), ({"min_hours": 99}, "no stay")],
)
def test_bad_rules_are_named(tables, rules, match):
    with pytest.raises(ValueError, match=match):
        cohort("eicu-demo", tables, **rules)


@pytest.fixture(scope="module")
def made():
    return cohort(synthetic.NAME)


def test_no_hospital_and_no_patient_on_both_sides(made):
    for seed in range(5):
        parts = draw_parts(made, seed)
        rows = rows_of(made, parts)
        stays = {part: made.stays.iloc[index] for part, index in rows.items()}
        assert [len(parts[part]) for part in ("train", "valid", "test")] == [18, 4, 8]  # of 30
        for column in ("hospital", "patient"):
            values = [set(frame[column]) for frame in stays.values()]
            assert sum(map(len, values)) == len(set.union(*values))
        kept = sum(map(len, rows.values()))
        assert 0.9 * len(made.stays) < kept < len(made.stays)  # some stays had to go
    assert draw_parts(made, 1) == draw_parts(made, 1) != draw_parts(made, 2)


def test_inputs_are_drugs_that_are_common_in_training(made):
    parts = draw_parts(made, 1)
    splits = by_hospital(made, parts, min_stays=40)
    assert (splits.train[0].sum(0) >= 40).all()
    rows = rows_of(made, parts)["train"]
    assert splits.train[0].shape[1] == int((made.given[rows].sum(0) >= 40).sum())
    assert set(splits.test[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(splits.test[1], gfo.data.load(synthetic.NAME, seed=1).test[1])


def test_bad_splits_are_named(made):
    parts = draw_parts(made, 1)
    twice = parts | {"test": [*parts["test"], parts["train"][0]]}
    quiet = [h for h, frame in made.stays.groupby("hospital") if not frame["died"].any()]
    some = [h for h in quiet if h not in parts["test"]][:1] or quiet[:1]
    rest = [h for h in parts["train"] + parts["valid"] if h not in some]
    odd = made.stays.assign(died=2)
    for wrong, match in (
        (twice, rf"hospital {parts['train'][0]} is in \w+ and in \w+"),
        (parts | {"test": [999]}, "hospital 999 has no stay"),
        ({"train": [1]}, "need train, valid and test"),
        ({"train": rest, "valid": some, "test": parts["test"]}, "valid has 0 deaths in"),
    ):
        with pytest.raises(ValueError, match=match):
            rows_of(made, wrong)
    with pytest.raises(ValueError, match="died holds 2: needs to be 0 or 1"):
        rows_of(replace(made, stays=odd), parts)
    with pytest.raises(ValueError, match="lower min_stays"):
        by_hospital(made, parts, min_stays=10_000)


def test_the_icu_mlp_has_three_layers_and_masks_behind_both_hidden_ones():
    model, sites = gfo.models.build("icu-mlp", inputs=30)
    x = torch.zeros(2, 30)
    net = gfo.attach(model, sites, "gflowout", x)
    assert [s.width for s in net.sites] == [64, 64] and model(x).shape == (2, 2)
    assert sum(isinstance(m, torch.nn.Linear) for m in model.modules()) == 3


def test_rules_are_plain_and_read_back():
    assert Rules(**icu_tune.configuration("random", {}, "quick")["cohort"]) == Rules()


def test_the_experiment_runs_resumes_and_its_records_hold_every_split(tmp_path):
    """Majority and logistic stand beside the methods; a second run finds all records."""
    how = dict(dataset=synthetic.NAME, profile="quick", out=tmp_path, progress=False)
    names = ["majority", "logistic", "random"]
    found = run("icu", methods=names, **how).set_index("method")
    assert found["test_deaths"].map(len).eq(3).all()
    for column in ("test_stays", "test_deaths", "train_deaths"):  # paired: the same splits
        assert found[column].map(str).nunique() == 1
    assert found.loc["majority", "auroc"] == [0.5] * 3
    assert found.loc["majority", "recall_macro"] == [0.5] * 3
    assert found.loc["majority", "counts"][0]["left"] == 900
    # the invented signal is strong: chance is 0.5, seven seeds of both were above 0.6
    assert np.mean(found.loc["logistic", "auroc"]) > 0.6
    # freed from the class weights, the mean probability is near the death rate again
    freed, raw = (np.mean(found.loc["logistic", f"ece{s}"]) for s in ("_freed", ""))
    assert freed < 0.08 < raw
    table = icu.means(found.reset_index(), ["auroc", "recall_macro"])
    assert list(table.index) == ["Majority", "Logistic", "Random dropout"]
    assert table.loc["Majority"].tolist() == ["1", 0.5, 0.5]
    assert icu.recorded(synthetic.NAME, out=tmp_path).empty  # a quick record is none
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    run("icu", methods=names, **how)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == files


def test_nobody_runs_untuned_under_the_full_profile(tmp_path, monkeypatch):
    monkeypatch.setattr("gfo_lab.records.RESULTS", tmp_path)
    message = "random is not tuned on icu-synthetic: python -m gfo_lab run"
    with pytest.raises(ValueError, match=message):
        run("icu", methods=["random"], dataset=synthetic.NAME, out=tmp_path)
    assert len(icu_tune.space("logistic")) == len(icu_tune.space("gflowout")) == 8
    point = {"lr": 2e-3, "masks_lr": 1e-2, "keep": 0.8}
    config = icu_tune.configuration("contextual", point, "full")
    assert config["lr"] == {"backbone": 2e-3, "masks": 1e-2, "log_z": 1e-2}
    assert config["method"]["keep"] == 0.8
