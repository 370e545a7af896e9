"""The CIFAR experiments on digits, in miniature: what they record, and that nothing is lost."""

import json

import pytest
import torch
from gfo_lab import records
from gfo_lab.experiments import adaptation, cifar, prior, training
from gfo_lab.experiments.job import Job
from gfo_lab.recipe import recipe
from gfo_lab.run import run

import gfo
from gfo.core.registry import METHODS
from gfo.evaluate import uncertainty

TINY = dict(
    width=2, blocks=[1], rates={"backbone": 0.1}, sizes=[100, 20, 20], clean=20, images=10,
    statistics=64, epochs=1, batch=250, samples=2,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cifar.SETUPS, "quick", TINY)


def test_every_method_has_a_configuration_of_plain_json_and_profiles_differ():
    assert set(cifar.CIFAR.methods) <= set(METHODS)
    for method in METHODS:
        hashes = set()
        for dataset in cifar.OUTSIDE:
            for profile in ("quick", "narrow", "full"):
                config = cifar.configuration(dataset, method, profile)
                assert json.loads(json.dumps(config)) == config
                assert config["patience"] == config["epochs"]  # a cycle is never cut short
                hashes.add(records.config_hash(config))
        assert len(hashes) == 6  # both CIFARs share theirs
    assert cifar.configuration("cifar10", "mc-improved", "narrow")["sites"] == "*bn?"
    for bad, message in (
        (("mnist", "random", "quick"), "no CIFAR experiment on 'mnist'"),
        (("digits", "random", "tune"), "unknown profile of the CIFAR experiments"),
    ):
        with pytest.raises(ValueError, match=message):
            cifar.configuration(*bad)


def test_a_variation_changes_what_it_names_and_nothing_else():
    for method, changes in cifar.CHANGES.items():
        base = cifar.configuration("cifar10", method, "narrow")
        found = cifar.variants("cifar10", method, "narrow")
        assert set(found) == set(changes)
        for config in found.values():
            assert json.loads(json.dumps(config)) == config
            differing = {k for k in base | config if base.get(k) != config.get(k)}
            assert len(differing) == 1
    figure_5 = cifar.variants("cifar10", "gflowout", "narrow")["BatchNorm–Conv–BatchNorm–Conv"]
    splits = gfo.data.load("digits", size=32, channels=3)
    net = training.make_net(splits, "gflowout", 0, figure_5 | {"width": 2})
    assert all(site.name.endswith("conv2") for site in net.sites) and len(net.sites) == 8
    kept = cifar.variants("cifar10", "random", "narrow")["keep 0.9"]
    assert kept["method"] == gfo.methods.create("random", keep=0.9).config


def test_a_record_says_what_was_changed(tiny, tmp_path):
    how = dict(methods=["random"], profile="quick", out=tmp_path, progress=False, seeds=[0])
    found = run("cifar-variations", **how)["config"]
    assert {(config["method"]["keep"], config.get("order")) for config in found} == {
        (0.5, "bn-conv"), (0.9, None)
    }  # fmt: skip


@pytest.mark.parametrize("method", ["gflowout", "ensemble"])
def test_the_record_holds_every_shift(method, tiny, tmp_path):
    found = run("cifar", methods=[method], profile="quick", out=tmp_path, progress=False)
    row = found.iloc[0]
    assert 0 <= row["accuracy"] <= 1 and row["epochs"] == (3 if method == "ensemble" else 1)
    for name in ("gaussian_noise", "snow", "frost"):
        assert len(row[f"accuracy_by_{name}"]) == len(row[f"nll_by_{name}"]) == 5
    assert row["corruptions"] == "own" and row["missing"] == []
    assert set(row["outside"]) == {"photos", "noise"}
    scores = row["outside"]["noise"]
    assert set(scores) == set(uncertainty.SCORES) and scores["entropy"]["prevalence"] == 0.5
    assert set(row["batchnorm"]) == {"trained", "tested"}
    again = run("cifar", methods=[method], profile="quick", out=tmp_path, progress=False)
    assert again.equals(found)  # nothing ran twice


def test_validation_stops_the_training_and_batchnorm_sees_no_test_image(tiny, monkeypatch):
    config = cifar.CIFAR.configs("digits", "gflowout", "quick")[0]
    job = Job("digits", "gflowout", 0, config, progress=False)
    splits, seen = job.splits(), []
    fit, reestimate = training.fit, cifar.reestimate

    def watched_fit(net, train, valid, **how):
        seen.append((train, valid))
        return fit(net, train, valid, **how)

    def watched_reestimate(net, x, **how):
        seen.append(x)
        return reestimate(net, x, **how)

    monkeypatch.setattr(training, "fit", watched_fit)
    monkeypatch.setattr(cifar, "reestimate", watched_reestimate)
    net, _ = training.fitted(splits, job)
    cifar.settle(net, splits, job)
    (train, valid), images = seen
    for part, kept in ((train, splits.train), (valid, splits.valid)):
        assert all(torch.equal(a, b) for a, b in zip(part, kept, strict=True))
    assert torch.equal(images, splits.train[0][: len(images)])


def test_sets_that_are_not_there_are_named_and_the_rest_runs(monkeypatch):
    def gone(root, n, gen):
        raise FileNotFoundError("SVHN is not complete")

    monkeypatch.setitem(gfo.data.ood.OUTSIDE, "photos", gone)
    splits = gfo.data.load("digits", size=32, channels=3)
    model, sites = gfo.models.resnet18(width=2, blocks=(1,))
    net = gfo.attach(model, sites, "random", splits.train[0][:2])
    job = Job("digits", "random", 0, {"images": 8, "samples": 2})
    found = cifar.outside(net, torch.randn(2, 8, 10), splits, job)
    assert found["missing"] == ["photos"] and set(found["outside"]) == {"noise"}


def test_adaptation_starts_from_the_noisy_network_or_from_nothing(tiny, tmp_path, monkeypatch):
    config = adaptation.ADAPTATION.configs("digits", "random", "quick")[0]
    config |= {"labels": [50, 100], "clean_epochs": 1, "epochs": 1}
    job = Job("digits", "random", 0, config, checkpoint=tmp_path / "a" / "run.pt", progress=False)
    starts, fit, labels = [], adaptation.fit, job.splits().train[1]

    def watched(net, data, *args, **kwargs):
        starts.append((net.model.fc.weight.detach().clone(), len(data[1]), kwargs["lr"]))
        assert torch.equal(data[1], labels[: len(data[1])])  # the true ones
        return fit(net, data, *args, **kwargs)

    monkeypatch.setattr(adaptation, "fit", watched)
    found = adaptation.ADAPTATION.run(job)
    assert [n for _, n, _ in starts] == [50, 100, 50, 100]
    assert torch.equal(starts[0][0], starts[1][0])  # both go on from the one noisy network
    assert not torch.equal(starts[2][0], starts[0][0])
    assert starts[0][2]["backbone"] == pytest.approx(0.1 * starts[2][2]["backbone"])
    assert found["wrong_labels"] == pytest.approx(0.27, abs=0.04)  # 300 drawn, 9 in 10 wrong
    assert all(len(found[start]["accuracy"]) == 2 for start in ("again", "scratch"))
    # killed in the last training and called again: the finished ones are read back
    calls = iter(range(10))

    def dies(*args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    other = job._replace(checkpoint=tmp_path / "b" / "run.pt")
    with monkeypatch.context() as patch:
        patch.setattr(adaptation, "fit", dies)
        with pytest.raises(KeyboardInterrupt):
            adaptation.ADAPTATION.run(other)
    files = {path.name: path.stat().st_mtime_ns for path in other.checkpoint.parent.iterdir()}
    assert len(files) == 4  # the noisy network, two sizes from it, one from nothing
    assert adaptation.ADAPTATION.run(other) == found
    after = {path.name: path.stat().st_mtime_ns for path in other.checkpoint.parent.iterdir()}
    assert all(after[name] == then for name, then in files.items()) and len(after) == 5


def test_label_noise_is_the_same_for_every_method_and_spares_the_test():
    splits = gfo.data.load("digits", size=32, channels=3)
    a, b, c = (adaptation.with_noise(splits, 0.3, seed) for seed in (0, 0, 1))
    assert torch.equal(a.train[1], b.train[1]) and not torch.equal(a.train[1], c.train[1])
    assert a.test is splits.test and torch.equal(a.train[0], splits.train[0])
    assert 0.2 < float((a.valid[1] != splits.valid[1]).double().mean()) < 0.35


@pytest.mark.parametrize("native", [True, False])
def test_runs_compute_in_bfloat16_only_where_the_processor_does(monkeypatch, native):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    config = cifar.configuration("cifar10", "random", "narrow")
    assert config["bf16"] and recipe(config, "cpu")["bf16"] is native
    assert recipe({}, "cpu")["bf16"] is False


@pytest.mark.parametrize("name", ["policy_divergences", "predictive_nll"])
def test_the_prior_experiment_goes_on_where_it_was_stopped(name, tmp_path, monkeypatch):
    config = prior.PRIOR.configs("digits", "gflowout", "quick")[0] | {"epochs": 3, "hidden": [8, 8]}
    job = Job("digits", "gflowout", 0, config, progress=False)
    unbroken = prior.PRIOR.run(job)
    real, calls = getattr(prior, name), []

    def second_time_killed(*args, **how):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(prior, name, second_time_killed)
    job = job._replace(checkpoint=tmp_path / "run.pt")
    with pytest.raises(KeyboardInterrupt):
        prior.PRIOR.run(job)
    assert len(calls) == 2
    assert prior.PRIOR.run(job) == unbroken
    assert len(calls) == 4  # epoch 1 was not measured again
