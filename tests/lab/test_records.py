"""Records: whole or absent, one a run, never mixed."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from forked import forked, forks, until
from gfo_lab import records
from gfo_lab.cli import main
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.experiments.digits import ROTATION
from gfo_lab.profiles import budget
from gfo_lab.run import data_set, run

ROW = dict(experiment="e", dataset="d", method="m", profile="full", device=torch.device("cpu"))


def put(out, seed=0, config=None, metrics=None):
    metrics = metrics or {"accuracy": 0.5 + seed / 10}
    return records.write(
        **ROW, seed=seed, config=config or {"a": 1}, metrics=metrics, wall_s=1.0, out=out
    )


def test_a_record_names_everything(tmp_path):
    record = json.loads(put(tmp_path).read_text())
    assert set(records.KEYS) <= set(record)
    assert record["metrics"] == {"accuracy": 0.5} and record["torch"] == torch.__version__
    assert record["config_hash"] == records.config_hash({"a": 1}) != records.config_hash({"a": 2})


def test_tables_average_seeds_and_refuse_to_mix_configurations(tmp_path):
    for seed in range(3):
        put(tmp_path, seed)
    table = records.summary(records.read("e", tmp_path, profile="full"), ["accuracy"])
    assert table["n"].item() == 3 and table["accuracy"].item() == pytest.approx(0.6)
    assert table["accuracy_se"].item() == pytest.approx(0.1 / 3**0.5)
    put(tmp_path, 0, {"a": 2})
    with pytest.raises(ValueError, match="m on d .* has 2 configurations"):
        records.summary(records.read("e", tmp_path), ["accuracy"])


def test_tables_refuse_to_mix_our_corruptions_with_published_ones(tmp_path):
    for seed, kind in enumerate(("own", "own", "official")):
        put(tmp_path, seed, metrics={"accuracy": 0.5, "corruptions": kind})
    found = records.read("e", tmp_path, profile="full")
    with pytest.raises(ValueError, match="m on d .* has 2 kinds of corruption"):
        records.summary(found, ["accuracy"])
    assert records.summary(found[found["seed"] < 2], ["accuracy"])["n"].item() == 2


def test_a_mean_says_of_how_many_it_is(tmp_path):
    for seed in range(3):
        put(tmp_path, seed, metrics={"accuracy": 0.5} if seed else {"other": 1.0})
    table = records.summary(records.read("e", tmp_path), ["accuracy"])
    assert table["n"].item() == 2 and table["accuracy"].item() == 0.5


def test_a_package_in_somebody_elses_repository_names_no_commit(monkeypatch):
    monkeypatch.setattr(records, "IN_CLONE", False)
    with pytest.warns(UserWarning, match="no git checkout"):
        found = records.provenance.__wrapped__()
    assert found["commit"] is found["gfo_tree"] is found["dirty"] is None


def test_a_git_that_does_not_answer_is_said(monkeypatch):
    monkeypatch.setattr(records, "_git", lambda *asked: "" if asked[0] == "status" else None)
    with pytest.warns(UserWarning, match="records will not name their source"):
        found = records.provenance.__wrapped__()
    assert found["commit"] is None and found["dirty"] is False


def test_a_name_with_a_slash_is_one_file(tmp_path):
    path = records.write(
        **ROW | {"dataset": "org/name"}, seed=0, config={}, metrics={"a": 1.0}, wall_s=1.0,
        out=tmp_path,
    )  # fmt: skip
    assert path.parent == tmp_path / "e"
    assert records.read("e", tmp_path)["dataset"].item() == "org/name"


def test_no_records_is_an_empty_table(tmp_path):
    found = records.read("nothing", tmp_path, profile="full")
    assert isinstance(found, pd.DataFrame) and found.empty
    assert records.summary(found, ["accuracy"]).empty


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="x.json lacks"):
        records.read("e", tmp_path)


# --- records that are not what they say (faults A14)


def change(path, name=None, **entries):
    """The record at `path` with other entries, in place or under another name."""
    record = json.loads(path.read_text(encoding="utf-8")) | entries
    path.with_name(name or path.name).write_text(json.dumps(record), encoding="utf-8")


def refused(message, call, *args):
    with pytest.raises(ValueError, match=message) as error:
        call(*args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["seed", "method", "config_hash", "device", "wall_s", "lab_tree"])
def test_faults_a14_metrics_never_override_an_entry(name, tmp_path):
    with pytest.raises(ValueError, match=f"a metric is called '{name}'"):
        put(tmp_path, metrics={"accuracy": 0.5, name: 7})
    assert not list(tmp_path.iterdir())
    path = put(tmp_path)
    change(path, metrics={"accuracy": 0.5, name: 7})
    refused(f"{path.name} has a metric called '{name}'", records.read, "e", tmp_path)


def test_faults_a14_the_hash_of_the_config_is_verified(tmp_path):
    path = put(tmp_path)
    change(path, config={"a": 2})
    refused(f"{path.name} has a config whose hash is not", records.read, "e", tmp_path)
    change(path, config={"a": 1}, config_hash="0" * 12)
    refused(f"{path.name} has a config whose hash is not", records.table, "e", tmp_path)


def test_faults_a14_one_run_under_two_names_is_named(tmp_path):
    path = put(tmp_path)
    put(tmp_path, 1)
    change(path, "copy.json")
    refused("copy.json holds what belongs into e/d_m_s0_full_.*json", records.read, "e", tmp_path)
    (tmp_path / "e" / "copy.json").unlink()
    assert len(records.read("e", tmp_path)) == 2
    change(path, experiment="f")
    refused("holds what belongs into f/d_m", records.read, "e", tmp_path)


@pytest.mark.parametrize("entry", [{"seed": 7}, {"method": "other"}, {"profile": "quick"}])
def test_faults_a14_a_record_holds_what_its_name_says(entry, tmp_path):
    path = put(tmp_path)
    change(path, **entry)
    refused(f"{path.name} holds what belongs into e/d_", records.read, "e", tmp_path)


def test_faults_c_whole_numbers_of_numpy_are_metrics(tmp_path):
    put(tmp_path, metrics={"count": np.int64(3), "counts": [np.int32(1)], "all": np.bool_(True)})
    row = records.read("e", tmp_path).iloc[0]
    assert (row["count"], row["counts"], row["all"]) == (3, [1], True)


@pytest.mark.parametrize("content", [b"", b'{"experiment": "e"', b"[1]", b"\xff\xfe", b"[" * 10**5])
def test_faults_d_half_a_record_is_named(content, tmp_path):
    path = put(tmp_path)
    path.write_bytes(content)
    refused(path.name, records.read, "e", tmp_path)


# --- all records as tables


RICH = {
    "accuracy": 0.5, "epochs": 3, "words": "own", "batchnorm": {"tested": {"nll": 1.5}},
    "nll_by_angle": [1.0, 2.0], "outside": {"noise": {"auroc": [0.25, 0.75]}},
    "missing": [], "names": ["a", "b"], "counts": [{"left": 3}], "nothing": None,
}  # fmt: skip


def test_flat_joins_keys_and_leaves_out_what_is_not_there():
    nested = {"a": {"b": {"c": 1}, "d": "x"}, "e": [1, {"f": 2}], "g": None, "h": float("nan")}
    assert records.flat(nested) == {"a.b.c": 1, "a.d": "x", "e": [1, {"f": 2}]}
    assert records.flat({"b": 0, "c": False, "d": ""}, "a.") == {"a.b": 0, "a.c": False, "a.d": ""}


def test_the_table_has_a_row_per_record_and_a_column_per_number(tmp_path):
    put(tmp_path, 0, {"lr": {"masks": 0.1}, "hidden": [3, 2]}, RICH)
    put(tmp_path, 1, {"lr": {"masks": 0.2}, "beta": 2.0}, {"accuracy": 0.75})
    found = records.table("e", tmp_path).set_index("seed")
    assert len(found) == 2 and set(found["experiment"]) == {"e"}
    assert found["config.lr.masks"].to_dict() == {0: 0.1, 1: 0.2}
    assert found["accuracy"].to_dict() == {0: 0.5, 1: 0.75}
    assert found.loc[0, "batchnorm.tested.nll"] == 1.5 and found.loc[0, "words"] == "own"
    assert pd.isna(found.loc[1, "batchnorm.tested.nll"]) and pd.isna(found.loc[0, "config.beta"])
    lists = {"nll_by_angle", "outside.noise.auroc", "missing", "names", "counts", "nothing"}
    assert not lists & set(found)
    assert not any(found[column].map(type).isin([dict, list]).any() for column in found)
    assert set(found.columns) >= {"config_hash", "device", "torch", "commit", "wall_s", "date"}


def test_the_long_table_has_a_row_per_number_of_a_list(tmp_path):
    put(tmp_path, 0, {"hidden": [3, 2]}, RICH)
    put(tmp_path, 1, {"hidden": [3, 2]}, {"accuracy": 0.75, "nll_by_angle": [3.0]})
    found = records.long("e", tmp_path)
    assert list(found) == [
        "experiment", "dataset", "method", "seed", "profile", "config_hash", "metric", "place",
        "value",
    ]  # fmt: skip
    assert found[["seed", "metric", "place", "value"]].values.tolist() == [
        [0, "nll_by_angle", 0, 1.0], [0, "nll_by_angle", 1, 2.0],
        [0, "outside.noise.auroc", 0, 0.25], [0, "outside.noise.auroc", 1, 0.75],
        [1, "nll_by_angle", 0, 3.0],
    ]  # fmt: skip
    assert set(found["config_hash"]) == {records.config_hash({"hidden": [3, 2]})}


def test_both_tables_are_of_one_experiment_or_of_all(tmp_path):
    put(tmp_path, 0, metrics=RICH)
    shutil.copytree(tmp_path / "e", tmp_path / "f")
    for path in (tmp_path / "f").iterdir():
        path.write_text(path.read_text().replace('"experiment": "e"', '"experiment": "f"'))
    assert records.experiments(tmp_path) == ["e", "f"]
    for make in (records.table, records.long):
        assert set(make("f", tmp_path)["experiment"]) == {"f"}
        every = make(out=tmp_path)
        assert set(every["experiment"]) == {"e", "f"}
        assert len(every) == 2 * len(make("f", tmp_path))
        assert make("nothing", tmp_path).empty and make(out=tmp_path / "nowhere").empty


def write_forever(out, seeds, metrics):
    for seed in seeds:
        put(out, seed, metrics=metrics)


@forks
def test_kill_9_in_mid_write_leaves_whole_records_only(tmp_path):
    big = {f"m{i}": float(i) for i in range(20_000)}  # half a megabyte: a kill lands inside
    for attempt in range(8):
        seeds = range(attempt * 1000, attempt * 1000 + 1000)
        with forked(write_forever, tmp_path, seeds, big) as process:
            first = f"*_s{seeds[0]}_*.json"
            until(lambda first=first: list((tmp_path / "e").glob(first)))  # it is under way
            time.sleep(0.007 * attempt)
            process.kill()
    files = sorted((tmp_path / "e").glob("*.json"))
    assert len(files) >= 8
    for path in files:
        assert json.loads(path.read_text())["metrics"] == big
    assert len(records.read("e", tmp_path)) == len(files)  # leftovers of a kill are not read


@forks
def test_two_writers_of_one_record_do_not_corrupt_it(tmp_path):
    metrics = {f"m{i}": float(i) for i in range(2_000)}
    with forked(write_forever, tmp_path, [7] * 30, metrics) as one:
        with forked(write_forever, tmp_path, [7] * 30, metrics) as other:
            pass
    assert one.exitcode == other.exitcode == 0
    (path,) = (tmp_path / "e").iterdir()
    assert json.loads(path.read_text())["metrics"] == metrics


def test_a_row_under_way_is_in_no_table_until_it_has_the_seeds_of_the_others(tmp_path):
    """Rows, not methods: GFlowOut has two, of which one may be complete."""
    rows = {"paper": 3, "recommended": 2}
    for row, seeds in rows.items():
        for seed in range(seeds):
            put(tmp_path, seed, config={"row": row}, metrics={"nll": 1.0})
    found = records.by_row("e", tmp_path)
    assert sorted(found["seed"]) == [0, 1, 2] and {*found["method"]} == {"paper"}
    assert len(records.read("e", tmp_path)) == 5
    put(tmp_path, 2, config={"row": "recommended"}, metrics={"nll": 1.0})
    assert dict(records.by_row("e", tmp_path)["method"].value_counts()) == dict.fromkeys(rows, 3)
    assert records.by_row("e", tmp_path, seed=7).empty


def test_run_skips_what_is_recorded_and_force_redoes_it(tmp_path, monkeypatch):
    calls = []

    def counted(job):
        calls.append(job.method)
        return ROTATION.run(job)

    changed = dict(run=counted, configs=one_epoch(ROTATION.configs))
    monkeypatch.setitem(EXPERIMENTS, "rotation", dataclasses.replace(ROTATION, **changed))
    how = dict(methods=["random", "gflowout"], profile="quick", out=tmp_path, progress=False)
    first = run("rotation", **how)
    assert calls == ["random", "gflowout"] and len(first) == 2
    assert set(records.KEYS) - {"metrics"} <= set(first)
    run("rotation", **how)
    assert len(calls) == 2
    again = run("rotation", force=True, **how)
    assert len(calls) == 4
    columns = ["method", "accuracy", "nll", "nll_rotated"]
    pd.testing.assert_frame_equal(first[columns], again[columns])  # the same seed, the same numbers


def one_epoch(configs):
    return lambda *args: [config | {"epochs": 1} for config in configs(*args)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rotaton"], "did you mean 'rotation'?"),
        (["rotation", "--method", "gflowot"], "did you mean 'gflowout'?"),
        (["rotation", "--profile", "ful"], "did you mean 'full'?"),
        (["rotation", "--dataset", "mnst"], "did you mean 'mnist'?"),
        (["rotation", "--dataset", "icu-synthetic"], "known: mnist, digits"),
        (["easy-vqa", "--dataset", "mnist"], "known: easy-vqa"),
        (["rotation", "--seed", "-1"], "seed is -1, needs to be at least 0, a whole number"),
        (["rotation", "--device", "gpu"], "device 'gpu' is none"),
        (["rotation", "--device", "meta"], "device 'meta' is none"),
        (["masks", "--method", "ensemble"], "ensemble draws no masks"),
        (["masks", "--method", "deterministic"], "deterministic draws no masks"),
        (["adaptation", "--method", "ensemble"], "several networks"),
        (["prior", "--method", "random"], "random has no exponent"),
        (["modes", "--method", "random"], "random is not trained toward two modes: gflowout"),
        (
            ["tune", "--profile", "search", "--dataset", "digits", "--method", "iw-dropout"],
            "iw-dropout has no run under that profile on that data set: deterministic",
        ),
        (["rotation", "--dry-run", "--jobs", "0"], "jobs is 0, needs to be at least 1"),
        (["rotation", "--dry-run", "--scheduler", "x"], "pass engine='dask'"),
        (["rotation", "--dataset", ""], "--dataset is empty"),
        (["ablations", "--method", "random"], "random has no ablations"),
        (
            ["cifar-variations", "--method", "concrete"],
            "unknown method with variations 'concrete'; known: contextual",
        ),
    ],
)
def test_the_command_names_what_is_wrong(args, message, capsys, tmp_path):
    assert main(["run", *args, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_record_is_named_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    args = ["rotation", "--profile", "quick"]
    assert main(["run", *args, "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("experiment", "profile", "dataset"),
    [("rotation", "full", "mnist"), ("rotation", "quick", "digits"), ("cifar", "full", "cifar10"),
     ("cifar", "quick", "digits"), ("icu", "quick", "eicu-demo"), ("audit", "full", "iris")],
)  # fmt: skip
def test_the_usual_data_set_is_the_profiles_or_the_experiments_first(experiment, profile, dataset):
    assert data_set(EXPERIMENTS[experiment], None, budget(profile).dataset) == dataset


def test_a_sweep_returns_its_own_configuration_only(tmp_path, monkeypatch):
    constant = dataclasses.replace(ROTATION, run=lambda job: {"accuracy": 0.5})
    monkeypatch.setitem(EXPERIMENTS, "rotation", constant)
    how = dict(methods=["random"], profile="quick", out=tmp_path, progress=False)
    run("rotation", **how)
    short = dataclasses.replace(constant, configs=one_epoch(ROTATION.configs))
    monkeypatch.setitem(EXPERIMENTS, "rotation", short)
    found = run("rotation", **how)
    assert len(found) == 1 and found["config"].iloc[0]["epochs"] == 1
    assert len(records.read("rotation", tmp_path)) == 2


def test_a_small_number_is_kept_to_four_digits_that_count():
    assert records.rounded({"p": 3.24567e-8, "nll": [0.12345678, -0.000123456]}) == {
        "p": 3.246e-8, "nll": [0.123457, -0.0001235],
    }  # fmt: skip
    assert records.rounded([0.0, float("inf")]) == [0.0, float("inf")]
    kept = records.rounded((1, np.float32(0.1), np.float64(1e300), -1e-300, 0.001, True, None, "a"))
    assert kept == [1, 0.1, 1e300, -1e-300, 0.001, True, None, "a"]
    assert [type(value) for value in kept[:3]] == [int, float, float]
    with pytest.raises(TypeError):
        records.rounded({"probs": np.ones(1)})
