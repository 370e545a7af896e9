"""The experiments on halves of digits: their cells, what they measure, what no pilot sees."""

import json

import pytest
import torch
import torch.nn.functional as F
from gfo_lab import records
from gfo_lab.experiments import halves
from gfo_lab.experiments.job import Job
from gfo_lab.run import plan, run

import gfo

SMALL = dict(
    hidden=[8, 6], images=30, counts=[1, 20, 40], proposals=10, choose=5, valid_samples=2,
    epochs=1, batch=250,
)  # fmt: skip
PAIRS = [(name, method) for name in halves.CELLS for method in halves.CELLS[name]]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(halves.SETUPS, "quick", SMALL)


@pytest.mark.parametrize(("experiment", "method"), PAIRS)
def test_cells_are_plain_json_all_different_and_whole(experiment, method):
    for profile in halves.SETUPS:
        for dataset in halves.INPUTS:
            found = halves.named(experiment, dataset, method, profile)
            assert json.loads(json.dumps(found)) == found
            assert len({records.config_hash(config) for config in found.values()}) == len(found)
            for config in found.values():
                assert config["patience"] == config["epochs"]
                assert 20 in config["counts"] and ("sizes" in config.get("data", {})) == (
                    profile != "quick" and dataset.startswith("mnist")
                )


def test_every_method_of_the_pilot_gets_the_same_number_of_runs():
    """GFlowOut that many for each objective; and nothing of the test part is in a config."""
    for method in halves.CELLS["halves"]:
        found = halves.named("halves", "mnist-halves", method, "reduced")
        assert len(found) == (12 if method == "gflowout" else 4)
        assert all(config["images"] == 0 for config in found.values())


def test_a_cell_that_two_experiments_name_is_run_once_and_read_by_both(small, tmp_path):
    how = dict(dataset="digits-halves", profile="quick", out=tmp_path)
    grids = {name: plan(name, **how).grid for name in halves.CELLS if name != "inverse"}
    keys = [(i["method"], records.config_hash(i["config"])) for g in grids.values() for i in g]
    assert len(set(keys)) == len(keys)
    cell = halves.named("policy", "digits-halves", "gflowout", "quick")["on-policy"]
    assert cell not in [identity["config"] for identity in grids["policy"]]
    assert halves.read("policy", "digits-halves", "quick", tmp_path).empty
    (other,) = [i for i in grids["ladder"] if i["config"] == cell]
    written = {k: v for k, v in other.items() if k != "config"}
    records.write(
        **written, config=cell, metrics={"nll": 1.0}, device=torch.device("cpu"), wall_s=1.0,
        out=tmp_path,
    )  # fmt: skip
    for name, called in (("policy", "on-policy"), ("ladder", "and the label (q)")):
        (row,) = halves.read(name, "digits-halves", "quick", tmp_path).to_dict("records")
        assert (row["cell"], row["nll"]) == (called, 1.0)


def test_every_cell_of_the_inverse_problem_is_run():
    """Some are cells of other experiments too, which never see this data set."""
    for method in halves.CELLS["inverse"]:
        named = halves.named("inverse", "inverse", method, "reduced")
        assert len(halves.configs("inverse", "inverse", method, "reduced")) == len(named)


@pytest.mark.parametrize(
    ("profile", "dataset"),
    [("quick", "digits-halves"), ("reduced", "mnist-halves"), ("full", "mnist-halves")],
)
def test_the_usual_data_set_is_what_is_made_of_the_profiles(profile, dataset):
    assert {identity["dataset"] for identity in plan("ladder", profile=profile).grid} == {dataset}


@pytest.mark.parametrize("dataset", ["digits-halves", "digits"])
def test_a_record_holds_every_figure_of_bits_and_of_labels(dataset, small, tmp_path):
    found = run(
        "drift", dataset=dataset, profile="quick", out=tmp_path, progress=False, device="cpu"
    )
    assert len(found) == 3  # the unpulled one is another experiment's
    for row in found.to_dict("records"):
        assert row["nll_curve"][-1] == row["nll"] and row["nll_curve"][1] == row["nll_20"]
        assert 1 <= row["ess"] <= 10 and row["passes"] == 4 and row["step_ms"] > 0
        assert row["best_epoch"] == row["epochs"] == 1


def test_the_pilot_looks_at_validation_images_only(small, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("the test part was measured")

    monkeypatch.setattr(halves, "tested", refuse)
    found = run(
        "halves", methods=["random"], profile="quick", out=tmp_path, progress=False, device="cpu"
    )
    assert len(found) == 4 and found["valid_nll"].notna().all() and "nll" not in found


def test_without_masks_the_nll_is_the_cross_entropy_summed_over_bits(small):
    config = halves.configuration("digits-halves", "deterministic", "quick", {})
    job = Job("digits-halves", "deterministic", 0, config, device="cpu", progress=False)
    seen = []
    tested = halves.tested

    def watched(net, *args):
        seen.append(net)
        return tested(net, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halves, "tested", watched)
        found = halves.run(job)
    x, y = (part[:30] for part in job.splits().test)
    with torch.no_grad():
        each = F.binary_cross_entropy_with_logits(seen[0](x), y, reduction="none").sum(1)
    assert found["nll"] == found["nll_20"] == pytest.approx(each.mean().item(), rel=1e-6)
    assert found["nll_sd"] == pytest.approx(each.std().item(), rel=1e-5)
    assert found["passes"] == 1 and "nll_is" not in found


@pytest.mark.parametrize(
    ("method", "own", "passes"),
    [
        ("random", dict(masks=3), 3),
        ("vimco", dict(masks=5), 5),
        ("contextual", {}, 3),  # a true pass and a pseudo-pass per site
        ("gflowout", dict(objective="arm"), 3),
        ("gflowout", dict(theta="q", anneal=2), 2),
    ],
)
def test_passes_count_what_a_step_runs_and_leave_no_trace(method, own, passes):
    model, sites = gfo.models.mlp(6, 3, (5, 4))
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    net = gfo.attach(model, sites, gfo.methods.create(method, **own), x)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert halves.passes(net, x, y) == passes
    assert halves.step_ms(net, x, y) > 0
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not net.model._forward_hooks


def test_a_method_without_cells_is_named():
    with pytest.raises(ValueError, match="mc-improved has no cell of drift: gflowout"):
        plan("drift", ["mc-improved"], "mnist-halves", profile="quick")


def test_the_classes_of_half_digits_are_those_of_the_digits_they_were_cut_from():
    """`looked_at` pairs the two by their place in the test part."""
    for seed in (0, 3):
        halved, whole = (
            gfo.data.load(name, seed=seed, **own).test
            for name, own in (("digits-halves", {}), ("digits", {"size": 8}))
        )
        job = Job("digits-halves", "gflowout", seed, {})
        labels = job._replace(dataset="digits").splits().test[1]
        assert torch.equal(labels, whole[1])
        ink = (whole[0] - whole[0].min() > (whole[0].max() - whole[0].min()) * 0.499).flatten(1)
        assert torch.equal(ink.float(), torch.cat(halved, 1))


def test_diversity_measures_what_its_helpers_do(small, tmp_path):
    (record, other) = (
        run("diversity", dataset="digits-halves", profile="quick", seeds=[0], out=tmp_path,
            scratch=tmp_path / "s", progress=False)
        .to_dict("records")
    )  # fmt: skip
    assert "nll" not in record and record["correlation_masks"] == 256
    assert {"distance_within", "distance_chance_between"} <= set(other)
    assert record["passes"] == 4 and other["passes"] == 1
