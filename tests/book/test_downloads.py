"""The tables that a page offers are those of the records it reads, and hold them all."""

import json

import pandas as pd
import pytest
from gfo_lab import records
from gfo_lab.experiments import halves
from nbformat.v4 import new_code_cell, new_notebook

from book.tools.downloads import SHARED, experiments_read, offer

KNOWN = ["adaptation", "audit", "cifar", "cifar-variations", "icu", "icu-tune", "ladder", "passes"]
KNOWN += ["table1", "tune"]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from gfo_lab import records\nrecords.read('table1', profile='full')", ["table1"]),
        ("from gfo_lab.records import read as take, table\ntable('audit')", ["audit"]),
        ("from gfo_lab.experiments import icu\nicu.recorded('eicu-demo')", ["icu"]),
        ("from gfo_lab.experiments.icu import recorded\nrecorded('eicu-demo')", ["icu"]),
        ("from gfo_lab.experiments.icu import recorded as found\nfound('eicu-demo')", ["icu"]),
        ("from gfo_lab import records as r\nr.by_row('cifar', profile='fast')", ["cifar"]),
        ("from gfo_lab.experiments import search\nsearch.chosen('random')", ["tune"]),
        ("from gfo_lab.experiments import halves\nhalves.read('passes')", ["ladder", "passes"]),
        ("def mine(name):\n    return records.read(name)\nmine('adaptation')", ["adaptation"]),
        ("from gfo_lab import ledger\nledger.entries('Table 3')", ["cifar"]),
        ("from gfo_lab import ledger\nledger.entries(name)", ["cifar", "icu", "table1"]),
        ("from gfo_lab import ledger\nledger.paper('Table 1')", []),
        ("for folder in records.RESULTS.iterdir():\n    pass", KNOWN),
        ("records.experiments()", KNOWN),
        ("records.read('nothing on file')\nprint('audit')\nopen('audit').read()", []),
    ],
)
def test_what_a_chapter_reads_is_told_from_its_code(code, found):
    assert experiments_read([code], KNOWN) == found


def test_a_cell_that_is_no_python_is_passed_over():
    assert experiments_read(["%%writefile x.py\nx = 1", "records.read('audit')"], KNOWN) == [
        "audit"
    ]


@pytest.fixture
def results(tmp_path):
    """Two records of one experiment and one of another."""
    record = dict.fromkeys(records.KEYS, "x") | {"config": {"lr": 0.1}, "experiment": "audit"}
    record["config_hash"] = records.config_hash(record["config"])

    def file(experiment: str, seed: int, metrics: dict) -> None:
        own = record | {"experiment": experiment, "seed": seed, "metrics": metrics}
        identity = {key: own[key] for key in records.IDENTITY[:-1]}
        path = records.path_of(**identity, config=own["config"], out=tmp_path / "results")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own), encoding="utf-8")

    for seed, series in enumerate([[1.0, 2.0], [3.0, 4.0]]):
        file("audit", seed, {"kl": seed, "by": series})
    file("tune", 0, {"tune_nll": 1.0})
    return tmp_path / "results"


def test_a_page_gets_its_tables_and_links_to_them(results, tmp_path):
    notebook = new_notebook(cells=[new_code_cell("records.read('audit'); records.read('tune')")])
    assert offer(notebook, results, tmp_path) == ["audit", "tune"]
    text = notebook.cells[-1].source
    assert "[audit.csv](tables/audit.csv), [audit-long.csv](tables/audit-long.csv), " in text
    assert "[tune.csv](tables/tune.csv). " in text, "no list, no long table"
    table = pd.read_csv(tmp_path / "tables/audit.csv")
    assert list(table["kl"]) == [0, 1] and list(table["config.lr"]) == [0.1, 0.1]
    long = pd.read_csv(tmp_path / "tables/audit-long.csv")
    assert list(long["value"]) == [1, 2, 3, 4]


def test_a_page_without_records_stays_as_it_is(results, tmp_path):
    notebook = new_notebook(cells=[new_code_cell("1 + 1")])
    assert offer(notebook, results, tmp_path) == [] and len(notebook.cells) == 1
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("name", halves.CELLS)
def test_what_other_experiments_ran_is_offered_too(name):
    ran = records.read(name)
    for dataset, profile in {*zip(ran["dataset"], ran["profile"], strict=True)} if len(ran) else ():
        found = halves.read(name, dataset, profile)
        assert {*found.get("experiment", ())} <= {name, *SHARED.get(name, ())}
