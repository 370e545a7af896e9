"""Records: whole or absent, one a run, never mixed."""

import json
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
import torch
from gfo_lab import records
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.experiments.digits import Rotation
from gfo_lab.profiles import budget
from gfo_lab.run import data_set, main, run

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
    said = records.told(records.read("e", tmp_path, profile="full"), {"accuracy": "clean"})
    assert said.loc["m"].to_dict() == {"n": 3, "clean": "0.6000 ± 0.0577"}
    put(tmp_path, 0, {"a": 2})
    with pytest.raises(ValueError, match="m on d .* has 2 configurations"):
        records.summary(records.read("e", tmp_path), ["accuracy"])


def test_no_records_is_an_empty_table(tmp_path):
    found = records.read("nothing", tmp_path, profile="full")
    assert isinstance(found, pd.DataFrame) and found.empty
    assert records.summary(found, ["accuracy"]).empty


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="x.json lacks"):
        records.read("e", tmp_path)


def write_forever(out, seeds, metrics):
    for seed in seeds:
        put(out, seed, metrics=metrics)


def test_kill_9_in_mid_write_leaves_whole_records_only(tmp_path):
    big = {f"m{i}": float(i) for i in range(20_000)}  # half a megabyte: a kill lands inside
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        seeds = range(attempt * 1000, attempt * 1000 + 1000)
        process = context.Process(target=write_forever, args=(tmp_path, seeds, big))
        process.start()
        while not list((tmp_path / "e").glob(f"*_s{seeds[0]}_*.json")):  # it is under way
            time.sleep(0.01)
        time.sleep(0.007 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    files = sorted((tmp_path / "e").glob("*.json"))
    assert len(files) >= 8
    for path in files:
        assert json.loads(path.read_text())["metrics"] == big
    assert len(records.read("e", tmp_path)) == len(files)  # leftovers of a kill are not read


def test_two_writers_of_one_record_do_not_corrupt_it(tmp_path):
    context = multiprocessing.get_context("fork")
    metrics = {f"m{i}": float(i) for i in range(2_000)}
    writers = [
        context.Process(target=write_forever, args=(tmp_path, [7] * 30, metrics)) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    (path,) = (tmp_path / "e").iterdir()
    assert json.loads(path.read_text())["metrics"] == metrics


def test_run_skips_what_is_recorded_and_force_redoes_it(tmp_path, monkeypatch):
    calls = []
    real = Rotation.run

    def counted(job):
        calls.append(job.method)
        return real(job)

    monkeypatch.setattr(Rotation, "run", staticmethod(counted))
    monkeypatch.setattr(Rotation, "configs", staticmethod(one_epoch(Rotation.configs)))
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
        (["rotation", "--seed", "-1"], "seed -1: seeds are whole numbers"),
        (["rotation", "--device", "gpu"], "device 'gpu' is none"),
        (["masks", "--method", "ensemble"], "ensemble draws no masks"),
        (["masks", "--method", "deterministic"], "deterministic draws no masks"),
        (["adaptation", "--method", "ensemble"], "several networks"),
        (["prior", "--method", "random"], "random has no exponent"),
        (["ablations", "--method", "random"], "no ablations of random"),
        (["cifar-variations", "--method", "concrete"], "no variations of concrete"),
    ],
)
def test_the_command_names_what_is_wrong(args, message, capsys, tmp_path):
    assert main([*args, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_record_is_named_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["rotation", "--profile", "quick", "--out", str(tmp_path / "file" / "out")]) == 2
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
    monkeypatch.setattr(Rotation, "run", staticmethod(lambda job: {"accuracy": 0.5}))
    how = dict(methods=["random"], profile="quick", out=tmp_path, progress=False)
    run("rotation", **how)
    monkeypatch.setattr(Rotation, "configs", staticmethod(one_epoch(Rotation.configs)))
    found = run("rotation", **how)
    assert len(found) == 1 and found["config"].iloc[0]["epochs"] == 1
    assert len(records.read("rotation", tmp_path)) == 2
