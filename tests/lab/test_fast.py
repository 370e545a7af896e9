"""CIFAR at strength: its network, how settings are chosen, the two measures that decide, queues."""

import dataclasses
import itertools
import shlex
import sys
import tarfile

import pytest
import torch
from gfo_lab import cli, ensembles, records, run
from gfo_lab.experiments import adaptation, cifar, search, training
from gfo_lab.experiments.job import Job
from gfo_lab.fast_net import cifar_fast, whiten
from gfo_lab.recipe import make_net
from gfo_lab.sweep import FailedRuns, How

import gfo
from gfo.evaluate.calibrate import Temperature

TINY = dict(
    model="cifar-fast", widths=[4, 4, 4], rates={"backbone": 0.2}, sizes=[100, 20, 20], clean=30,
    images=10, statistics=64, points=20, epochs=3, batch=250, samples=2,
    settings={"ensemble": {"members": 3}},
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(cifar.SETUPS, "fast", TINY)
    monkeypatch.setitem(cifar.SETUPS, "third", TINY | {"epochs": 1, "images": 0})
    monkeypatch.setitem(cifar.SETUPS, "whole", TINY | {"images": 0})
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    for name in ("laplace", "swag"):  # rows of their own, below
        monkeypatch.delitem(cifar.CELLS["deterministic"], name)


def do(experiment, *methods, seeds=(0,), profile="fast"):
    how = dict(methods=methods, dataset="digits", seeds=seeds, profile=profile, progress=False)
    return run.run(experiment, **how, scratch=records.RESULTS.parent / "scratch")


def test_the_first_layer_whitens_patches_and_training_leaves_it_alone():
    x = torch.randn(200, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0]  # colours that depend
    x[..., 1:] += x[..., :-1].clone()  # and neighbours
    model, sites = cifar_fast(widths=(4, 4, 4))
    layer = model.get_submodule("whitening")
    whiten(model, x)
    answers = layer(x).transpose(0, 1).flatten(1)
    # but for what FLOOR, 5e-4, adds to variances of at least 0.05: 1 % of the smallest
    torch.testing.assert_close(answers[:12].cov(), torch.eye(12), rtol=0, atol=0.01)
    assert torch.equal(answers[12:], -answers[:12])
    net = gfo.attach(model, sites, "random", x[:2])
    assert [site.width for site in net.sites] == [4, 4, 4]  # whole channels
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    gfo.fit(net, (x, torch.arange(200) % 10), epochs=1, device="cpu", progress=False)
    stayed = {name for name, w in model.state_dict().items() if torch.equal(w, before[name])}
    assert stayed == {"whitening.weight"}


def test_a_run_fits_it_on_its_training_images(tiny):
    config = cifar.configuration("digits", "random", "fast")
    job = Job("digits", "random", 0, config)
    splits = job.splits()
    net = make_net(splits, "random", 0, config)
    answers = net.model.get_submodule("whitening")(splits.train[0]).transpose(0, 1).flatten(1)
    # grey images: of twelve axes four have any variance; what FLOOR leaves of it is at most 1
    variance = answers[:12].var(1).sort().values
    assert (variance[:8] < 1e-3).all() and (variance[8:] > 0.5).all() and variance.max() <= 1.001


def test_cells_are_what_they_say():
    recommended = cifar.CELLS["gflowout"]["gflowout-recommended"]
    own = {k: v for k, v in recommended.items() if type(v) is not list}
    assert gfo.GFlowOut(**own).config == gfo.GFlowOut.recommended().config
    paper = cifar.configuration("cifar10", "gflowout", "fast", keep=0.5)["method"]
    assert paper == gfo.GFlowOut(hidden=24).config  # the width of its generators is ours
    for method, own in cifar.CELLS.items():  # the same number of runs for every cell
        found = cifar.cells("cifar10", method, "third")
        if method == "ensemble":  # whose members' search it takes over: nothing of its own to run
            assert not found and own["ensemble"] == cifar.CELLS["deterministic"]["deterministic"]
            continue
        assert len(found) == 4 * len(own)
        assert all(c["epochs"] == c["patience"] == 7 and not c["images"] for c in found)
        assert all(c["data"]["seed"] == 0 for c in found)
        assert len({records.config_hash(c) for c in found}) == len(found)


def test_configurations_on_record_are_still_what_they_were():
    for name in ("cifar", "cifar-variations", "adaptation"):
        found = records.read(name, profile="fast")
        for which, rows in found.groupby(["dataset", "method"]) if len(found) else ():
            now = run.EXPERIMENTS[name].configs(*which, "fast")
            assert set(rows["config_hash"]) <= {records.config_hash(config) for config in now}


def test_validation_chooses_and_without_the_search_nothing_runs(tiny):
    with pytest.raises(ValueError, match="deterministic is not tuned on digits: python -m gfo_lab"):
        do("cifar", "deterministic")
    found = do("cifar", "deterministic", seeds=(10,), profile="third")
    assert len(found) == 4 and (found["epochs"] == 1).all() and "accuracy" not in found
    two = found.nsmallest(2, "valid_nll")["config"]
    with pytest.raises(ValueError, match="deterministic is not tuned on digits: .* whole"):
        do("cifar", "deterministic")
    found = do("cifar", "deterministic", seeds=(10,), profile="whole")
    assert (found["epochs"] == 3).all() and "accuracy" not in found
    assert [config["lr"] for config in found["config"]] == [config["lr"] for config in two]
    best = found.loc[found["valid_nll"].idxmin(), "config"]
    (chosen,) = cifar.cells("digits", "deterministic", "fast")
    assert chosen["lr"] == best["lr"] and chosen["epochs"] == 3 and chosen["images"] == 10
    (many,) = cifar.cells("digits", "ensemble", "fast")  # a member is that network
    assert many["lr"] == best["lr"] and many["method"]["members"] == 3
    assert (chosen["row"], many["row"]) == ("deterministic", "ensemble")


def test_a_short_training_alone_chooses_no_rate(monkeypatch):
    nll = {  # by search: of rate and the learning rate of masks
        "third": {(0.9, 0.001): 4, (0.9, 0.003): 3, (0.98, 0.001): 1, (0.98, 0.003): 2},
        "whole": {(0.9, 0.003): 0.1, (0.98, 0.001): 0.2},  # the longer one likes the heavier rate
    }

    def on_record(configs, metric, experiment, dataset, method, profile):
        at = [(c["method"]["keep"], c["lr"]["masks"]) for c in configs]
        return [nll[profile][point] for point in at]

    monkeypatch.setattr(cifar, "on_record", on_record)
    cell = {"keep": [0.9, 0.98], "masks_lr": [0.001, 0.003]}
    about = "cifar10", "gflowout", cell
    first, second = dict(keep=0.98, masks_lr=0.001), dict(keep=0.9, masks_lr=0.003)
    assert cifar.points(*about, "whole") == [cell | first, cell | second]
    assert cifar.points(*about, "fast") == [cell | second]
    assert not cifar.cells("cifar10", "ensemble", "whole")


def test_seeds_that_are_not_the_searchs_choose_nothing(tmp_path):
    tried = search.configs("digits", "random", "tune")

    def put(config, seed, nll):
        about = dict(experiment="tune", dataset="digits", method="random", profile="tune")
        records.write(**about, seed=seed, config=config, metrics={"tune_nll": nll},
                      device=torch.device("cpu"), wall_s=1.0, out=tmp_path)  # fmt: skip

    for config in tried:
        put(config, 7, 0.1)
    with pytest.raises(ValueError, match="random is not tuned on digits"):
        search.chosen("random", "digits", "full", tmp_path)
    for place, config in enumerate(tried):
        put(config, 0, 1.0 - 0.01 * place)
    put(tried[0], 5, 0.0)
    about = "tune_nll", "tune", "digits", "random", "tune", tmp_path
    want = [1.0 - 0.01 * place for place in range(len(tried))]
    assert search.on_record(tried, *about) == pytest.approx(want)


@pytest.fixture
def chosen(tiny, monkeypatch):
    """The last point of each cell, without a search."""
    falling = lambda configs, *about: list(range(len(configs), 0, -1))  # noqa: E731
    monkeypatch.setattr(cifar, "on_record", falling)


@pytest.mark.slow
def test_a_record_holds_what_tells_methods_apart(chosen):
    found = do("cifar", "gflowout")
    rows = [config["row"] for config in cifar.cells("digits", "gflowout", "fast")]
    assert rows == ["gflowout", "gflowout-recommended"]
    assert {config["row"] for config in found["config"]} == set(rows)
    assert all(len(each) == 5 for each in found["accuracy_by_blur"])
    for columns in (
        ("temperature", "nll_calibrated", "ece_calibrated_rotated", "selective", "outside"),
        ("distance_within", "q_from_p", "correlation_reward", "correlation_data"),
    ):
        assert set(columns) <= set(found)
    shared = do("cifar", "id-gflowout").iloc[0]
    assert "distance_within" in shared and "correlation_reward" not in shared


@pytest.mark.slow
def test_an_ensemble_tells_what_its_members_are_worth(chosen, monkeypatch):
    caught, fitted, by_size = [], training.fitted, cifar.by_size
    keep = lambda *a: caught.append(fitted(*a)[0]) or (caught[0], [])  # noqa: E731
    monkeypatch.setitem(training.WAYS, "none", keep)
    monkeypatch.setattr(cifar, "by_size", lambda *a: caught.append(a[0]) or by_size(*a))
    row = do("cifar", "ensemble").iloc[0]
    ensemble, parts = caught[:2]
    x, y = Job("digits", "", 0, {"data": {"size": 32, "channels": 3}}).splits().tune
    for net, probs in zip(ensemble.nets, parts["tune"][0], strict=True):
        torch.testing.assert_close(gfo.predict(net, x), probs)
    assert torch.equal(parts["tune"][1], y)
    for suffix in ("", "_rotated"):
        for metric in ("accuracy", "nll", "nll_calibrated"):
            curve = row[f"{metric}{suffix}_by_size"]
            assert len(curve) == 3 and curve[2] == pytest.approx(row[metric + suffix], abs=1e-6)
    assert row["nll_by_size"] == sorted(row["nll_by_size"], reverse=True)  # −log is convex


def weights_job(epochs=3, samples=3, **own):
    config = cifar.configuration("digits", "deterministic", "fast", **own)
    return Job("digits", "deterministic", 0, config | {"epochs": epochs, "samples": samples})


def weights_of(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_swag_draws_around_the_iterates_of_its_steady_half(tiny):
    still = weights_job(weights="swag", rate=0.0)
    splits = still.splits()
    half, _ = training.fitted(splits, weights_job(epochs=1))
    nets, histories = training.swag(splits, still)
    assert [len(history) for history in histories] == [1, 2] and len(nets.nets) == 3
    for net in nets.nets:  # no step leads away from where the first half ended
        torch.testing.assert_close(weights_of(net), weights_of(half), rtol=0, atol=1e-6)
    moved = [weights_of(net) for net in training.swag(splits, weights_job(rate=0.1))[0].nets]
    assert not torch.equal(moved[0], moved[1])
    first = half.model.get_submodule("whitening").weight.numel()  # frozen, and first of all
    for weights in moved:
        torch.testing.assert_close(weights[:first], weights_of(half)[:first], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # laplace-torch's
def test_laplace_draws_the_last_layer_alone_the_nearer_the_larger_its_precision(tiny):
    pytest.importorskip("laplace", reason="the extra `laplace` is not installed")
    splits = weights_job().splits()
    plain, _ = training.fitted(splits, weights_job())
    last = sum(p.numel() for p in plain.model.get_submodule("fc").parameters())
    for precision, apart in ((1e-2, True), (1e12, False)):
        nets, _ = training.laplace(splits, weights_job(weights="laplace", precision=precision))
        drawn = torch.stack([weights_of(net) for net in nets.nets]) - weights_of(plain)
        assert (drawn[:, :-last] == 0).all()
        # at 10^12 the standard deviation is 10^-6 at most, and none lies five of them away
        assert (drawn.abs().max() > 0.1) if apart else (drawn.abs().max() < 5e-6)


def test_a_missing_package_is_named_before_the_training(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    monkeypatch.setattr(training, "fitted", lambda *a: pytest.fail("trained"))
    job = weights_job(weights="laplace", precision=1.0)
    with pytest.raises(ValueError, match="^laplace is not installed: pip install -e '"):
        cifar.run(job)


@pytest.mark.slow
def test_rows_of_drawn_weights_are_searched_and_measured_like_others(tiny, monkeypatch):
    cell = {"weights": "swag", "rate": [0.05, 0.1]}
    monkeypatch.setitem(cifar.CELLS, "deterministic", {"swag": cell})
    monkeypatch.setitem(cifar.SETUPS, "third", TINY | {"images": 0})
    for profile in ("third", "whole"):
        found = do("cifar", "deterministic", seeds=(10,), profile=profile)
        assert len(found) == 2 and found["valid_nll"].notna().all()
    row = do("cifar", "deterministic").iloc[0]
    best = found.loc[found["valid_nll"].idxmin(), "config"]
    assert row["config"]["row"] == "swag" and row["config"]["rate"] == best["rate"]
    assert row["epochs"] == 3 and "nll_calibrated" in row and "nll_by_size" not in row


@pytest.fixture(scope="module")
def networks():
    """Predictives of five networks, in part wrong, on images to tune and to test on."""
    gen = torch.Generator().manual_seed(1)
    y = {name: torch.randint(4, (200,), generator=gen) for name in ("tune", "test")}

    found = {}
    for name, labels in y.items():
        right = torch.nn.functional.one_hot(labels, 4)
        logits = 2 * torch.randn(5, 200, 4, generator=gen) + 2 * right
        found[name] = logits.softmax(2), labels
    return found


def test_ensembles_by_size_are_the_mean_over_every_choice(networks):
    found = ensembles.by_size(networks, "test")
    (tune, y_tune), (test, y) = (networks[name] for name in ("tune", "test"))
    for size in (1, 2, 5):
        nll, after = [], []
        for some in itertools.combinations(range(5), size):
            value = Temperature(sum(tune[i] for i in some) / size, y_tune).value
            mean = sum(test[i].double() for i in some) / size
            powered = mean ** (1 / value)
            powered /= powered.sum(1, keepdim=True)
            nll.append(-float(mean.gather(1, y[:, None]).log().mean()))
            after.append(-float(powered.gather(1, y[:, None]).log().mean()))
        # probabilities come in float32, logarithms of which are good to 1e-6
        assert found["nlltest_by_size"][size - 1] == pytest.approx(sum(nll) / len(nll), abs=1e-5)
        after = sum(after) / len(after)
        assert found["nll_calibratedtest_by_size"][size - 1] == pytest.approx(after, abs=1e-5)
    assert ensembles.calibrated(networks, "test")["temperature"] == pytest.approx(value)


def test_what_a_network_is_worth_in_networks():
    curve = [0.5, 0.4, 0.35, 0.36, 0.3]  # of five; four happened to be no better than three
    for nll, worth in ((0.51, "< 1"), (0.5, "1.0"), (0.45, "1.5"), (0.4, "2.0"), (0.39, "2.2"),
                       (0.35, "3.0"), (0.33, "4.5"), (0.3, "5.0"), (0.29, "> 5")):  # fmt: skip
        assert ensembles.equivalent(curve, nll) == worth
    assert ensembles.equivalent([0.5], 0.5) == "1.0"
    assert ensembles.equivalent(curve, float("nan")) == "< 1"


@pytest.mark.parametrize("change", [{"labels": [50, 2000]}, {"images": 0}])
def test_adaptation_refuses_what_it_could_not_measure_before_it_trains(change, monkeypatch):
    monkeypatch.setattr(adaptation, "fitted", lambda *a: pytest.fail("trained"))
    (config,) = adaptation.configs("digits", "random", "quick")
    with pytest.raises(ValueError, match="need test images, and (400|2000) labels to train on"):
        adaptation.run(Job("digits", "random", 0, config | change))


@pytest.fixture
def queue(monkeypatch, tmp_path):
    """A queue of three runs of nothing; what each does lies in `did`."""
    did, clock = [], [0.0]

    def run_one(job):
        did.append((job.dataset, job.method, job.seed))
        clock[0] += 60.0
        if job.seed == 1:
            raise ValueError("too hard")
        return {"accuracy": 0.5}

    task = run.EXPERIMENTS["cifar"]
    short = type(task)("cifar", "", task.datasets, task.methods, lambda *about: [{}], run_one)
    monkeypatch.setitem(run.EXPERIMENTS, "cifar", short)
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    first = dict(experiment="cifar", methods=["random"], seeds=[2, 1])
    entries = [first, dict(first, methods=["concrete"], profile="full", seeds=[0])]
    monkeypatch.setitem(run.QUEUES, "some", entries)
    how = How("cpu", None, tmp_path / "out", tmp_path / "scratch", False, None)
    return did, lambda minutes: run.run_queue(
        "some", minutes, how, profile="quick", dataset="digits", methods=None, seeds=None
    )


def test_a_queue_goes_in_order_and_goes_on(queue, tmp_path, capsys):
    did, go = queue
    with pytest.raises(FailedRuns, match="digits_random_s1_quick.* failed: too hard"):
        go(60)
    assert did == [("digits", "random", 2), ("digits", "random", 1), ("digits", "concrete", 0)]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in said] == ["done, 60 s", "too hard, 60 s", "done, 60 s"]
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        kept = sorted(name for name in archive.getnames() if name.endswith(".json"))
    assert [name.split("_")[1:4] for name in kept] == [
        ["concrete", "s0", "full"], ["random", "s2", "quick"],
    ]  # fmt: skip
    did.clear()
    with pytest.raises(FailedRuns, match="too hard"):
        go(60)
    assert did == [("digits", "random", 1)]  # the others are on record


def test_a_queue_tells_how_many_of_its_runs_failed(queue, monkeypatch):
    did, go = queue
    (first, last) = run.QUEUES["some"]
    monkeypatch.setitem(run.QUEUES, "some", [first, dict(last, seeds=[1])])
    with pytest.raises(FailedRuns, match="^2 of 3 runs failed; the others are on record\n"):
        go(60)
    assert len(did) == 3


@pytest.fixture
def untuned(queue, monkeypatch):
    """The queue, where the second entry asks for a method whose search failed, and for others."""

    def configs(dataset, method, profile):
        if (method, profile) == ("random", "full"):
            raise search.NotTuned("random is not tuned on digits: search first")
        return [{}]

    task = dataclasses.replace(run.EXPERIMENTS["cifar"], configs=configs)
    monkeypatch.setitem(run.EXPERIMENTS, "cifar", task)
    (first, last) = run.QUEUES["some"]
    both = dict(last, methods=["random", "concrete"], seeds=[0, 2])
    monkeypatch.setitem(run.QUEUES, "some", [first, both, dict(last, methods=["gflowout"])])
    return queue


def test_what_waits_for_a_search_that_failed_holds_up_nothing_else(untuned, tmp_path, capsys):
    did, go = untuned
    with pytest.raises(FailedRuns) as told:
        go(60)
    searched = [("digits", "random", 2), ("digits", "random", 1)]
    others = [("digits", "concrete", 0), ("digits", "concrete", 2), ("digits", "gflowout", 0)]
    assert did == searched + others
    failed, waits = str(told.value).splitlines()
    assert waits == "cifar --profile full waits: random is not tuned on digits: search first"
    assert "_random_s1_" in failed and " failed: too hard; again: python -m gfo_lab run " in failed
    again = cli.parser().parse_args(shlex.split(failed.partition("gfo_lab ")[2]))
    asked = again.experiment, again.dataset, again.method, again.seed, again.profile, again.device
    assert asked == ("cifar", "digits", ["random"], [1], "quick", "cpu")
    assert (again.out, again.scratch) == (str(tmp_path / "out"), str(tmp_path / "scratch"))
    capsys.readouterr()
    where = [f"--out={tmp_path / 'out'}", f"--scratch={tmp_path / 'scratch'}", "--device=cpu"]
    assert cli.main(["run", "some", "--dataset=digits", "--profile=quick", *where]) == 1
    assert did[5:] == [("digits", "random", 1)]  # the others are on record
    assert capsys.readouterr().err == f"gfo-lab: {failed}\n{waits}\n"


def test_a_queue_whose_time_is_up_waits_for_nothing(untuned):
    did, go = untuned
    go(1.5)  # the search is not over, and that is no fault
    assert did == [("digits", "random", 2)]


def test_the_archive_holds_records_alone(queue, tmp_path):
    _, go = queue
    (tmp_path / "out" / "cifar").mkdir(parents=True)
    (tmp_path / "out" / "cifar" / ".x.json.1.tmp").write_text("{")  # another process writes it
    go(1)
    with tarfile.open(tmp_path / "out.tar.gz") as archive:
        (name,) = archive.getnames()
    assert name.startswith("cifar/") and name.endswith(".json")


def test_a_queue_without_time_says_so(queue, capsys):
    did, _ = queue
    for minutes in ("0", "-5"):
        assert cli.main(["run", "some", f"--minutes={minutes}"]) == 2 and not did
        told = f"gfo-lab: minutes is {minutes}, needs to be at least 1\n"
        assert capsys.readouterr().err == told


def test_a_queue_begins_nothing_that_would_not_end(queue):
    did, go = queue
    go(2)  # a run takes one minute: one is over, the next would end on the stroke
    assert len(did) == 1
    for minutes, done in ((2.1, 3), (0.5, 4)):  # the first begins whatever it takes
        with pytest.raises(FailedRuns):  # of seed 1
            go(minutes)
        assert len(did) == done


def test_the_command_runs_a_queue(tiny, tmp_path, monkeypatch, capsys):
    entry = dict(experiment="cifar", methods=["deterministic"], seeds=[0], profile="third")
    monkeypatch.setitem(run.QUEUES, "some", [entry])
    how = ["--dataset", "digits", "--device", "cpu", "--scratch", str(tmp_path / "scratch")]
    assert cli.main(["run", "some", "--minutes", "9", "--out", str(tmp_path / "out"), *how]) == 0
    assert capsys.readouterr().out.count(": done, ") == 4
    assert len(list((tmp_path / "out" / "cifar").glob("*.json"))) == 4


@pytest.mark.parametrize("option", [
    "dry-run", "json", "force", "jobs 2", "engine dask", "scheduler tcp://nowhere:1",
])  # fmt: skip
def test_a_queue_refuses_what_it_would_not_heed(queue, capsys, option):
    did, _ = queue
    assert cli.main(["run", "some", *f"--{option}".split()]) == 2 and not did
    said = capsys.readouterr().err
    assert said == f"gfo-lab: some takes no --{option.split()[0]}\n"


@pytest.mark.parametrize("option", ["method vimco", "seed 9"])
def test_a_queue_refuses_what_all_its_entries_say(queue, capsys, option):
    did, _ = queue
    assert cli.main(["run", "some", "--minutes", "1", *f"--{option}".split()]) == 2 and not did
    assert capsys.readouterr().err == f"gfo-lab: some takes no --{option.split()[0]}\n"


def test_minutes_are_refused_where_there_is_no_queue(queue, capsys):
    did, _ = queue
    assert cli.main(["run", "cifar", "--dataset", "digits", "--minutes", "1"]) == 2 and not did
    assert capsys.readouterr().err == "gfo-lab: cifar takes no --minutes\n"


def test_queues_name_what_there_is():
    for entries in run.QUEUES.values():
        for entry in entries:
            task = run.EXPERIMENTS[entry["experiment"]]
            assert set(entry["methods"]) <= {*task.methods, *cifar.CELLS}
            assert entry.get("dataset", "cifar10") in task.datasets
            assert entry.get("profile", "full") in cifar.SETUPS
