"""The command: what it lists, plans, tabulates, and that its JSON is JSON."""

import json
import math

import pandas as pd
import pytest
import tiny_experiment
import torch
from gfo_lab import bench, cli, costs, records
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.profiles import PROFILES

from gfo.core.registry import DATASETS, METHODS

IMPORT = ["--import", "tiny_experiment"]


def parse(text):
    """Strictly: what Python also calls NaN and Infinity is no JSON."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`command(*args)` runs one; returns what it printed."""
    monkeypatch.setattr(tiny_experiment, "log", str(tmp_path / "log"))
    monkeypatch.setattr(tiny_experiment, "epoch_s", 0.0)
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # checkpoints and claims

    def run(*args):
        assert cli.main(args) == 0
        return capsys.readouterr().out

    return run


def put(seed=0, method="random", profile="quick", wall_s=60.0, **metrics):
    return records.write(
        experiment="tiny", dataset="digits", method=method, seed=seed, profile=profile,
        config={"log": "", "lr": {"masks": 0.1}}, metrics=metrics, wall_s=wall_s,
        device=torch.device("cpu"),
    )  # fmt: skip


def test_list_has_a_line_for_everything_there_is(command):
    put(accuracy=0.5)
    rows = parse(command("list", "--json", *IMPORT))
    named = {(row["kind"], row["name"]) for row in rows}
    for kind, known in {
        "experiment": EXPERIMENTS, "method": METHODS, "data set": DATASETS, "profile": PROFILES,
    }.items():  # fmt: skip
        assert {name for k, name in named if k == kind} == set(known)
    assert all(row["what"] for row in rows)
    (tiny,) = [row for row in rows if row["name"] == "tiny"]
    assert tiny["what"] == "counts to four (1 records)"
    lines = command("list", *IMPORT).splitlines()
    assert len(lines) == len(rows)
    assert lines[0].split()[:2] == [rows[0]["kind"], rows[0]["name"]]


def test_a_dry_run_says_what_is_missing_and_how_long_it_took_and_does_nothing(command, tmp_path):
    for seed in range(4):
        put(seed, wall_s=30 + seed)
    want = ["tiny", "--profile", "quick", "--seed", "0", "1", "2", "--out", str(tmp_path / "out")]
    said = command("run", *want, "--dry-run", "--jobs", "2", *IMPORT).splitlines()
    assert said[0] == f"3 of 3 runs have no record under {tmp_path / 'out'}"
    assert [line.split() for line in said[1:4]] == [
        ["digits", "random", str(seed), "quick"] for seed in range(3)
    ]
    minutes = 3 * 31.5 / 60 / 2
    assert said[4:] == [f"3 like these took {minutes:.1f} min on record, 2 at once"]
    assert parse(command("run", *want, "--dry-run", "--json", *IMPORT)) == [
        {"dataset": "digits", "method": "random", "seed": seed, "profile": "quick"}
        for seed in range(3)
    ]
    assert not (tmp_path / "out").exists() and not list((tmp_path / "log").iterdir())
    unknown = command("run", "tiny", "--profile", "tune", "--dry-run", *IMPORT)
    assert "1 have no like on record" in unknown and "min on record" not in unknown


def test_a_dry_run_says_what_force_would_overwrite_and_does_nothing(command, tmp_path):
    what = ["tiny", "--profile", "quick", "--out", str(tmp_path / "out"), *IMPORT, "--seed"]
    command("run", *what, "0")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = command("run", *what, "0", "1", "--dry-run", "--force").splitlines()
    assert said[0] == f"1 of 2 runs have no record under {tmp_path / 'out'}"
    assert [line.split() for line in said[1:3]] == [
        ["digits", "random", "0", "quick", "overwritten"],
        ["digits", "random", "1", "quick", "new"],
    ]
    assert said[3:] == ["2 have no like on record: how long they take is not known"]
    rows = parse(command("run", *what, "0", "1", "--dry-run", "--force", "--json"))
    assert [(row["seed"], row["record"]) for row in rows] == [(0, "overwritten"), (1, "new")]
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_table_of_no_experiment_names_the_choices(command, capsys):
    assert cli.main(["table", "bench"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gfo-lab: unknown experiment 'bench'; known: ablations, adaptation, ")
    assert said.count("\n") == 1


def test_a_run_and_its_table(command, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    what = ["tiny", "--profile", "quick", "--seed", "0", "1", *out, *IMPORT]
    rows = parse(command("run", *what, "--json"))
    assert [(row["method"], row["seed"], row["accuracy"]) for row in rows] == [
        ("random", 0, 0.5), ("random", 1, 0.5),
    ]  # fmt: skip
    assert "0 of 2 runs have no record" in command("run", *what, "--dry-run")
    assert parse(command("run", *what, "--dry-run", "--json")) == []
    table = command("table", "tiny", *out).splitlines()
    assert table[0].split() == [
        "dataset", "profile", "config_hash", "method", "seed", "accuracy", "wall_s",
    ]  # fmt: skip
    assert len(table) == 3
    assert command("table", "tiny", "--out", str(tmp_path / "none")) == "no records\n"
    assert parse(command("table", "tiny", "--out", str(tmp_path / "none"), "--json")) == []


def test_the_table_as_csv_has_every_column_and_keeps_what_was_asked_for(command, tmp_path):
    for seed in range(3):
        put(seed, accuracy=seed / 4, batchnorm={"tested": {"nll": 1.5}}, nll_by_angle=[1.0, 2.0])
    put(0, method="concrete", accuracy=0.75)
    put(0, profile="full", accuracy=1.0)
    file = tmp_path / "tiny.csv"
    asked = ["--method", "random", "--seed", "1", "2", "--profile", "quick", "--dataset", "digits"]
    said = command("table", "tiny", *asked, "--csv", str(file))
    found = pd.read_csv(file)
    assert said == f"2 records, {found.shape[1]} columns: {file}\n"
    assert list(found["seed"]) == [1, 2] and list(found["accuracy"]) == [0.25, 0.5]
    assert list(found["batchnorm.tested.nll"]) == [1.5, 1.5]
    assert list(found["config.lr.masks"]) == [0.1, 0.1]
    assert {"device", "torch", "commit", "wall_s", "date"} <= set(found)
    assert "nll_by_angle" not in found  # lists are in `records.long`
    whole = parse(command("table", "tiny", "--json"))
    assert len(whole) == 5 and whole[0].keys() >= {"config.lr.masks", "batchnorm.tested.nll"}
    (alone,) = [row for row in whole if row["method"] == "concrete"]
    assert alone["batchnorm.tested.nll"] is None


@pytest.mark.parametrize("asked", ["method randm", "profile ful", "seed 7", "dataset mnist"])
def test_a_table_names_what_no_record_has(command, capsys, asked):
    put(0)
    assert cli.main(["table", "tiny", *f"--{asked}".split()]) == 2
    option, value = asked.split()
    said = capsys.readouterr().err
    assert said.startswith(f"gfo-lab: no record of tiny has {option} ") and value in said


def test_seeds_in_two_places_are_all_asked_for(command):
    for seed in range(3):
        put(seed)
    rows = parse(command("table", "tiny", "--seed", "0", "--seed", "2", "--json"))
    assert [row["seed"] for row in rows] == [0, 2]


def test_modules_asked_for_twice_are_both_imported():
    a = cli.parser().parse_args(["list", "--import", "one", "--import", "two", "three"])
    assert a.imports == ["one", "two", "three"]
    assert cli.parser().parse_args(["list"]).imports == []


@pytest.mark.parametrize(("args", "said"), [
    (["bench", "--model", "mlp", "resnet"], "unknown model 'resnet'; did you mean"),
    (["audit", "--points", "200"], "at most 150 points"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is(args, said, monkeypatch, capsys):
    monkeypatch.setattr(bench, "compare", lambda *_, **__: pytest.fail("measured first"))
    assert cli.main(args) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_number_is_null_in_json(command):
    put(0, accuracy=math.inf, nll=math.nan)
    put(1, accuracy=0.5, nll=-math.inf)
    rows = parse(command("table", "tiny", "--json"))
    assert [(row["accuracy"], row["nll"]) for row in rows] == [(None, None), (0.5, None)]


def test_audit_and_bench_print_json_too(command, monkeypatch):
    table = pd.DataFrame({"policy": ["q"], "seeds": [2], "tv": [0.25], "floor": [math.nan]})
    monkeypatch.setattr(cli, "audit_seeds", lambda *a, **k: table)
    assert parse(command("audit", "--json")) == [
        {"policy": "q", "seeds": 2, "tv": 0.25, "floor": None}
    ]
    table = pd.DataFrame({"model": ["mlp"], "step_ratio": [1.5], "step_high": [math.inf]})
    monkeypatch.setattr(bench, "compare", lambda *a, **k: table)
    rows = parse(command("bench", "--json", "--model", "mlp", "resnet18"))
    assert rows == [{"model": "mlp", "step_ratio": 1.5, "step_high": None}] * 2
    assert set(costs.CASES) >= {"mlp", "resnet18"}


def options():
    """For each subcommand its options: their spellings and the argparse action."""
    (each,) = [a for a in cli.parser()._actions if hasattr(a, "choices") and a.choices]
    for name, parser in each.choices.items():
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                yield name, action


def test_every_option_has_one_spelling_one_kind_and_a_meaning():
    spelled, kinds = {}, {}
    for _, action in options():
        spelled.setdefault(action.dest, set()).update(action.option_strings)
        kinds.setdefault(action.dest, set()).add((type(action), action.nargs, action.type))
    assert {dest: names for dest, names in spelled.items() if len(names) != 1} == {}
    assert {dest: found for dest, found in kinds.items() if len(found) != 1} == {}
    names = [name for (name,) in spelled.values()]
    assert len(set(names)) == len(names)
    assert len({name.rstrip("s") for name in names}) == len(names)  # no --seed beside a --seeds
    assert all(name.startswith("--") and name.islower() for name in names)


def test_every_subcommand_gives_json_and_every_option_comes_in_the_same_words():
    found = {}
    for name, action in options():
        found.setdefault(name, {})[action.dest] = action.help
    assert set(found) == set(cli.COMMANDS) == {"list", "run", "table", "audit", "bench"}
    assert all("json" in own for own in found.values())
    told = {}
    for own in found.values():
        for dest, text in own.items():
            assert told.setdefault(dest, text) == text, dest


def test_python_m_gfo_lab_is_the_command(monkeypatch):
    import runpy
    import sys

    monkeypatch.setattr(sys, "argv", ["gfo-lab", "run", "rotaton"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("gfo_lab", run_name="__main__")
    assert ended.value.code == 2


def test_a_stopped_run_says_how_to_go_on(command, monkeypatch, capsys):
    def stop(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", stop)
    assert cli.main(["run", "tiny", *IMPORT]) == 130
    assert "the same command goes on" in capsys.readouterr().err
