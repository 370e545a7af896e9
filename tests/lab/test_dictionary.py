"""The data dictionary: every column of the tables on file has one meaning, and nothing else has."""

import fnmatch

import pandas as pd
import pytest
from gfo_lab import records
from gfo_lab.experiments import adaptation

DICTIONARY = pd.read_csv(records.LAB / "dictionary.csv", keep_default_na=False)
SCORES = ("accuracy", "nll", "brier", "ece")


@pytest.fixture(scope="module")
def columns():
    """All columns of both tables, the metrics of the long one, and what new records say too: of
    `table1`, under a blur what they say of rotations; of `adaptation` and the narrow ResNet, of
    which none is on file, all that they say."""
    long = records.long()
    found = {*records.table(), *long, *long["metric"], *records.KEYS[:5], *records.provenance()}
    turned = {*records.table("table1"), *records.long("table1")["metric"]}
    narrow = adaptation.configs("cifar10", "gflowout", "narrow")[0] | {"order": "bn-conv"}
    found |= {*records.flat({"config": narrow})} - {"config.labels"}  # a list, and no column
    found |= {f"{start}.{score}" for start in ("noisy", *adaptation.GENTLY) for score in SCORES}
    found |= {"noisy.selective", "wrong_labels"}
    return found | {c.replace("_rotated", "_blurred") for c in turned}


def test_every_column_on_file_has_exactly_one_pattern(columns):
    fits = {c: [p for p in DICTIONARY["pattern"] if fnmatch.fnmatchcase(c, p)] for c in columns}
    assert len(columns) > 400
    assert {column: found for column, found in fits.items() if len(found) != 1} == {}


def test_every_pattern_describes_a_column_on_file(columns):
    unused = [p for p in DICTIONARY["pattern"] if not fnmatch.filter(columns, p)]
    assert unused == [] and not DICTIONARY["pattern"].duplicated().any()


def test_every_line_says_something():
    assert list(DICTIONARY) == ["pattern", "unit", "meaning"]
    assert (DICTIONARY["meaning"].str.len() > 10).all()


def test_the_most_specific_pattern_speaks_for_a_column(tmp_path, monkeypatch):
    (tmp_path / "dictionary.csv").write_text("pattern,unit,meaning\na_*,1,x\na_b_*,nat,y\n*,2,z\n")
    monkeypatch.setattr(records, "LAB", tmp_path)
    assert records.meaning("a_b_c") == ("nat", "y")
    assert records.meaning("a_c") == ("1", "x")
    assert records.meaning("c") == ("2", "z")


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match="no meaning of 'nonsense': add a line to"):
        records.meaning("nonsense")
