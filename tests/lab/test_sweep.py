"""Many runs at once: each done exactly once, none lost, whoever is killed."""

import dataclasses
import json
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import tiny_experiment
from filelock import FileLock
from forked import FORK, forked, forks, until
from gfo_lab import records, sweep
from gfo_lab.cli import main
from gfo_lab.experiments import EXPERIMENTS
from gfo_lab.run import plan, run
from gfo_lab.sweep import FailedRuns
from tiny_experiment import EPOCHS

pytestmark = forks


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(log, how): an empty log and what `run` is called with."""
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setattr(tiny_experiment, "log", str(log))
    how = dict(
        profile="quick", out=tmp_path / "out", scratch=tmp_path / "scratch", progress=False,
        imports=("tiny_experiment",),
    )  # fmt: skip
    return log, how


def whole(how, seeds):
    """Every record is there and right."""
    found = records.read("tiny", how["out"])
    assert sorted(found["seed"]) == list(seeds)
    for seed, trace in zip(found["seed"], found["trace"], strict=True):
        assert trace == [seed * 10 + epoch for epoch in range(EPOCHS)]
    return found


def starts(log):
    """How often each (seed, epoch) was begun."""
    names = [path.name.rsplit("_", 1)[0] for path in log.iterdir()]
    return {name: names.count(name) for name in names}


def side_by_side(barrier, how, seeds):
    real = tiny_experiment.run

    def run_once_both_are_here(job):
        if not barrier.broken and run_once_both_are_here.first:
            run_once_both_are_here.first = False
            barrier.wait(20)
        return real(job)

    run_once_both_are_here.first = True
    EXPERIMENTS["tiny"] = dataclasses.replace(tiny_experiment.TINY, run=run_once_both_are_here)
    assert sorted(run("tiny", seeds=seeds, **how)["seed"]) == list(seeds)


def test_two_commands_side_by_side_share_the_work(folders):
    log, how = folders
    seeds, barrier = range(12), FORK.Barrier(2)
    with forked(side_by_side, barrier, how, seeds) as one:
        with forked(side_by_side, barrier, how, seeds) as other:
            pass
    assert one.exitcode == other.exitcode == 0  # each returned all twelve records
    found = whole(how, seeds)
    assert found["pid"].nunique() == 2
    assert set(starts(log).values()) == {1} and len(starts(log)) == 12 * EPOCHS


def test_killed_at_twenty_random_points_no_finished_record_is_lost(folders):
    log, how = folders
    seeds, rng, seen = range(10), random.Random(0), {}
    for _ in range(20):
        with forked(run, "tiny", seeds=seeds, **how) as process:
            # From before the first epoch to two or three runs on.
            time.sleep(rng.uniform(0.0, 0.06))
            process.kill()
        now = {path: path.read_bytes() for path in (how["out"] / "tiny").glob("*.json")}
        assert all(now[path] == content for path, content in seen.items())
        for content in now.values():
            json.loads(content)
        seen = now
    run("tiny", seeds=seeds, **how)
    found = {path: path.read_bytes() for path in (how["out"] / "tiny").glob("*.json")}
    assert all(found[path] == content for path, content in seen.items())  # none was done again
    whole(how, seeds)
    # A kill costs at most the epoch under way and one that was not yet in the checkpoint.
    assert sum(starts(log).values()) <= 10 * EPOCHS + 20


def test_a_claimed_run_is_waited_for_and_taken_over_when_its_process_dies(folders, monkeypatch):
    log, how = folders
    monkeypatch.setattr(tiny_experiment, "epoch_s", 0.3)
    with forked(run, "tiny", seeds=[0], **how) as other:
        until(lambda: list(log.glob("s0_e1_*")))
        threading.Timer(0.1, other.kill).start()  # in its second epoch, while we wait
        (pid,) = run("tiny", seeds=[0], **how)["pid"]
    whole(how, [0])
    assert pid == os.getpid() and starts(log) == {"s0_e0": 1, "s0_e1": 2, "s0_e2": 1, "s0_e3": 1}


def test_force_redoes_a_run_that_another_process_has_claimed(folders, monkeypatch):
    log, how = folders
    run("tiny", seeds=[0], **how)
    monkeypatch.setattr(tiny_experiment, "epoch_s", 0.3)
    with forked(run, "tiny", seeds=[0], force=True, **how) as other:
        until(lambda: starts(log).get("s0_e1", 0) >= 2)
        (found,) = run("tiny", seeds=[0], force=True, **how)["pid"]  # waits for the other's record
    assert found == other.pid
    assert starts(log)["s0_e3"] == 2  # redone once, by whoever claimed it


@pytest.mark.parametrize("change", ["root", "directory", "out", "force", "source", "threads"])
def test_a_checkpoint_of_other_data_source_or_results_is_left_alone(folders, change, monkeypatch):
    log, how = folders

    def stop(seconds):
        if len(list(log.iterdir())) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run("tiny", seeds=[0], **how)
    assert starts(log) == {"s0_e0": 1, "s0_e1": 1, "s0_e2": 1}
    more = {"root": {"root": log}, "out": {"out": how["out"] / "other"}, "force": {"force": True}}
    if change == "source":
        monkeypatch.setattr("gfo_lab.sweep.records.source", lambda: "0" * 12)
    if change == "directory":  # whose ./data is another one
        monkeypatch.chdir(log)
    if change == "threads":  # they change the last digits of what images are normalised by
        monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    run("tiny", seeds=[0], **how | more.get(change, {}))
    assert starts(log)["s0_e0"] == 2


def spoiled(job):
    """Seed 1 fails, seed 2 comes out as NaN."""
    if job.seed == 1:
        raise RuntimeError("Input contains NaN.\nSecond line.")
    return tiny_experiment.run(job) | ({"nll": float("nan")} if job.seed == 2 else {})


def test_faults_a9_a_failed_run_is_named_and_the_others_go_on(folders, monkeypatch, capsys):
    _, how = folders
    monkeypatch.setitem(EXPERIMENTS, "tiny", dataclasses.replace(tiny_experiment.TINY, run=spoiled))
    with pytest.raises(FailedRuns) as told:
        run("tiny", seeds=range(4), **how)
    lines = str(told.value).splitlines()
    assert lines[0].startswith("2 of 4 runs failed") and len(lines) == 3
    assert "_s1_" in lines[1] and "RuntimeError: Input contains NaN. Second line." in lines[1]
    assert "_s2_" in lines[2] and "nll came out as no finite number" in lines[2]
    assert sorted(told.value.found["seed"]) == [0, 3]
    whole(how, [0, 3])
    more = [f"--{name}={how[name]}" for name in ("out", "scratch")]
    args = ["run", "tiny", "--profile", "quick", "--seed", "0", "1", *more]
    assert main(args) == 1
    told = capsys.readouterr()
    assert "random" in told.out and told.err.count("_s1_") == 1 == told.err.count("failed:")


def test_faults_d_a_damaged_record_or_checkpoint_stops_its_own_run_only(folders):
    _, how = folders
    run("tiny", seeds=[0], **how)
    (path,) = (how["out"] / "tiny").glob("*_s0_*")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FailedRuns, match=path.name) as told:
        run("tiny", seeds=range(3), **how)
    assert sorted(told.value.found["seed"]) == [1, 2] and "damaged" in str(told.value)


def test_faults_d_leftovers_of_killed_runs_are_removed(folders):
    _, how = folders
    how["scratch"].mkdir()
    for name in ("rotation_x_s0_full_a.lock", ".rotation_x_s0_full_a.0f.pt.12.tmp"):
        (how["scratch"] / name).write_bytes(b"")
        os.utime(how["scratch"] / name, (0, 0))
    run("tiny", seeds=[0], **how)
    (record,) = (how["out"] / "tiny").iterdir()
    (record.parent / f".{record.name}.12.tmp").write_bytes(b"")
    run("tiny", seeds=[0], force=True, **how)
    assert list(how["scratch"].iterdir()) == [] and list(record.parent.iterdir()) == [record]


def test_faults_d_the_wall_time_is_that_of_all_attempts(folders, monkeypatch):
    log, how = folders
    monkeypatch.setattr(tiny_experiment, "epoch_s", 0.3)
    with forked(run, "tiny", seeds=[0], **how) as process:
        until(lambda: list(log.glob("s0_e3_*")))
        process.kill()
    (wall,) = run("tiny", seeds=[0], **how)["wall_s"]
    assert 1.1 < wall < 5  # three epochs before the kill, one after


def stopped(folders, monkeypatch):
    """A run of seed 0, stopped in its third epoch; returns what else lies beside its checkpoint."""
    log, how = folders

    def stop(seconds):
        if len(list(log.iterdir())) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            run("tiny", seeds=[0], **how)
    (kept,) = how["scratch"].glob("*.seconds")
    return kept


@pytest.mark.parametrize("content", [
    b"", b"{", b"3", b"{}", b'{"before": "x", "begun": 0}', b'{"before": 1, "begun": null}', None,
])  # fmt: skip
def test_a_damaged_wall_time_is_said_and_the_run_goes_on(content, folders, monkeypatch):
    log, how = folders
    kept = stopped(folders, monkeypatch)
    kept.unlink() if content is None else kept.write_bytes(content)
    with pytest.warns(UserWarning, match=r"\.seconds' is damaged or gone: wall_s") as told:
        (wall,) = run("tiny", seeds=[0], **how)["wall_s"]
    assert wall < 60 and "\n" not in str(told[0].message)
    whole(how, [0])
    assert starts(log) == {"s0_e0": 1, "s0_e1": 1, "s0_e2": 2, "s0_e3": 1}
    assert list(how["scratch"].iterdir()) == []


def test_what_a_kill_behind_the_record_leaves_is_removed(folders, monkeypatch):
    _, how = folders
    write = records.write

    def killed_after(**record):
        write(**record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "write", killed_after)
        with pytest.raises(KeyboardInterrupt):
            run("tiny", seeds=[0], **how)
    found = whole(how, [0])
    assert {path.suffix for path in how["scratch"].iterdir()} == {".pt", ".seconds"}
    for damaged in ("{", '{"before": 0}'):  # of another run, in whatever state
        (how["scratch"] / "tiny_x_s0_full_a.0f.seconds").write_text(damaged)
        run("tiny", seeds=[1], **how)  # whatever is run next
        (left,) = how["scratch"].iterdir()
        assert left.name == "tiny_x_s0_full_a.0f.seconds"
    assert found.equals(records.read("tiny", how["out"]).iloc[:1])


def test_checkpoints_beside_a_record_are_let_be_while_they_are_in_use(folders):
    _, how = folders
    run("tiny", seeds=[0], **how)
    kept = how["scratch"] / "tiny_x_s0_full_a.0f.seconds"
    (record,) = (how["out"] / "tiny").iterdir()
    kept.write_text(json.dumps({"before": 0, "begun": 0, "record": str(record)}))
    with FileLock(how["scratch"] / "tiny_x_s0_full_a.lock"):  # somebody redoes it
        run("tiny", seeds=[1], **how)
        assert kept.exists()
    run("tiny", seeds=[2], **how)
    assert not kept.exists()


def test_a_disk_that_is_full_behind_the_record_fails_nothing(folders, monkeypatch):
    _, how = folders
    write = sweep.write_json

    def full(path, content):
        if "ended" in content:
            raise ValueError("cannot be written to (No space left on device)")
        write(path, content)

    monkeypatch.setattr(sweep, "write_json", full)
    assert len(run("tiny", seeds=[0], **how)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_processes(folders, jobs):
    log, how = folders
    found = run("tiny", seeds=range(4), jobs=jobs, **how)
    assert len(found) == 4 and (os.getpid() in set(found["pid"])) == (jobs == 1)
    whole(how, range(4))
    run("tiny", seeds=range(4), jobs=jobs, **how)
    assert set(starts(log).values()) == {1}
    assert list(how["scratch"].iterdir()) == []  # neither checkpoints nor claims are left


@pytest.mark.slow
def test_dask_worker_killed_in_mid_run(folders, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra 'cluster' (Dask)")
    log, how = folders
    monkeypatch.setattr(tiny_experiment, "epoch_s", 0.15)
    killed = []

    def kill_first_worker():
        begun = until(lambda: sorted(log.glob("*_e1_*")))
        killed.append(int(begun[0].read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_first_worker, daemon=True)
    killer.start()
    run("tiny", seeds=range(4), engine="dask", jobs=2, **how)
    killer.join(1)
    found = whole(how, range(4))
    assert killed and os.getpid() not in set(found["pid"])
    begun = starts(log)
    assert len(begun) == 4 * EPOCHS
    # Its run went on from the checkpoint: only the epoch under way was begun twice.
    assert sum(begun.values()) == len(begun) + 1


def test_dask_clusters_that_would_not_do(folders, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster' (Dask)")
    _, how = folders
    monkeypatch.setattr("gfo_lab.sweep.PATIENCE", 0.5)
    local = dict(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50)
    with distributed.LocalCluster(**local) as cluster:
        dask = how | dict(engine="dask", scheduler=cluster.scheduler_address)
        with pytest.raises(ValueError, match="no worker; start some: dask worker .* --nthreads 1"):
            run("tiny", **dask)
    with distributed.LocalCluster(**local | dict(n_workers=1, threads_per_worker=2)) as cluster:
        with pytest.raises(ValueError, match="several threads"):
            run("tiny", **dask | dict(scheduler=cluster.scheduler_address))
    with pytest.raises(ValueError, match="no Dask scheduler at 'tcp://127.0.0.1:1'"):
        run("tiny", **dask | dict(scheduler="tcp://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jobs", "0"], "jobs is 0"),
        (["--engine", "dsk"], "processes, dask"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--engine dask"),
    ],
)
def test_a_way_of_running_that_there_is_not(args, message, capsys, tmp_path):
    assert main(["run", "rotation", "--profile", "quick", "--out", str(tmp_path), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_asked_for_twice_is_run_once(tmp_path):
    grid = plan("rotation", ["random", "random"], seeds=np.array([0, 0, 5]), out=tmp_path).grid
    assert [(one["method"], one["seed"]) for one in grid] == [("random", 0), ("random", 5)]
    assert all(type(one["seed"]) is int for one in grid)
    with pytest.raises(ValueError, match="seed is 1.5"):
        plan("rotation", ["random"], seeds=[1.5], out=tmp_path)
