"""Paired differences and the reproduction ledger."""

import numpy as np
import pandas as pd
import pytest
import torch
from gfo_lab import ledger, records
from gfo_lab.experiments import EXPERIMENTS, digits, search
from gfo_lab.experiments.variations import CHANGES, STARTS, names, variants
from gfo_lab.stats import interval, paired_by_seed, shared, spread, why_none
from scipy.stats import ttest_rel


def frame(values: dict[str, list[float]]) -> pd.DataFrame:
    """Records of a metric "m": a list over seeds 0, 1, … a method; None for a seed not run."""
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "m": value}
            for method, column in values.items()
            for seed, value in enumerate(column)
            if value is not None
        ]
    )


def test_shared_keeps_the_seeds_that_all_methods_have_if_there_are_two():
    runs = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    frame = pd.DataFrame(runs, columns=["method", "seed"])
    assert set(shared(frame)["seed"]) == {0, 1} and len(shared(frame)) == 4
    assert shared(frame[frame["seed"] != 1]).empty and shared(frame[:0]).empty
    assert why_none(frame[:0]) == "not run here" and why_none(frame).startswith("5 runs so far")


def test_paired_interval_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=9), rng.normal(0.5, size=9)
    found = paired_by_seed(frame({"random": list(a), "gflowout": list(b)}), "m")
    theirs = ttest_rel(b, a).confidence_interval(0.95)
    row = found.loc["gflowout"]
    assert row["n"] == 9 and row["difference"] == pytest.approx((b - a).mean())
    assert (row["low"], row["high"]) == pytest.approx((theirs.low, theirs.high))
    assert row["half"] == pytest.approx((theirs.high - theirs.low) / 2)


def test_pairing_takes_shared_seeds_only_and_removes_what_seeds_share():
    found = paired_by_seed(
        frame({"random": [1.0, 5.0, 9.0, 2.0], "gflowout": [2.0, 6.0, 10.0, None]}), "m"
    )
    row = found.loc["gflowout"]
    assert row["n"] == 3
    assert (row["low"], row["high"]) == pytest.approx((1.0, 1.0))  # the same gap at each seed


def test_paired_refuses_two_records_of_a_seed_and_lacks_a_reference_quietly():
    twice = pd.concat([frame({"random": [1.0]})] * 2)
    with pytest.raises(ValueError, match="one configuration"):
        paired_by_seed(twice, "m")
    assert paired_by_seed(frame({"gflowout": [1.0, 2.0]}), "m").empty


def test_one_run_has_no_interval():
    assert interval(np.array([3.0])) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    "theirs, low, high, said",
    [
        (20.0, 12.0, 18.0, "reproduced"),
        (20.0, 0.1, 0.4, "not reproduced"),  # the paper's sign, a fiftieth of its size
        (20.0, -0.3, 0.4, "not reproduced"),
        (20.0, -2.0, -1.0, "reversed"),
        (-20.0, -18.0, -12.0, "reproduced"),
        (-20.0, 1.0, 2.0, "reversed"),
        (0.05, -0.1, 0.2, "undecided"),  # cannot tell the paper's difference from none
        (20.0, -np.inf, np.inf, "undecided"),
    ],
)
def test_verdict(theirs, low, high, said):
    assert ledger.verdict(theirs, low, high) == said


def test_level_of_the_reference_row():
    ours = np.array([97.9, 98.0, 98.1])
    assert ledger.level(98.05, ours) == "reproduced"
    assert ledger.level(87.38, ours) == "not reproduced"
    assert ledger.level(87.38, ours[:1]) == "undecided"


def test_a_prediction_interval_covers_a_next_run_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = [ledger.level(rng.normal(), rng.normal(size=5)) == "reproduced" for _ in range(2000)]
    assert np.mean(hits) == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 2000) ** 0.5)


def test_faults_a14_a_device_is_no_markdown(tmp_path, monkeypatch):
    odd = "x86_64 *fast* [a](b) <script>, `c` | d\n# e"
    monkeypatch.setattr(records, "device_name", lambda device: odd)
    records.write(
        experiment="table1", dataset="mnist", method="random", seed=0, profile="full",
        config={"a": 1}, metrics={"accuracy": 0.5}, device=torch.device("cpu"), wall_s=1.0,
        out=tmp_path,
    )  # fmt: skip
    (said,) = set(ledger.entries("Table 1", tmp_path)["device"].dropna())
    assert said == (r"x86\_64 \*fast\* \[a\](b) \<script\>, \`c\` \| d \# e")
    usual = "CPU: Intel(R) Xeon(R) Processor @ 2.80GHz, 1 thread(s)"
    assert ledger.in_markdown(usual) == usual


@pytest.mark.parametrize("table", ledger.TABLES)
def test_every_number_of_the_paper_is_in_the_ledger_once(table, tmp_path):
    about = ledger.TABLES[table]
    wide = pd.read_csv(ledger.PAPER / f"{about.file}.csv")
    numbers = wide.drop(columns=[c for c in wide if c.endswith("_se")]).select_dtypes("number")
    rows = ledger.entries(table, tmp_path)  # no records
    assert sorted(rows["paper"]) == sorted(numbers.to_numpy().ravel())
    assert (rows["verdict"] == "not run here").all() and (rows["n"] == 0).all()
    assert rows["deviations"].str.len().gt(0).all()


def test_entries_on_records(tmp_path):
    scores = {
        "random": [0.97, 0.98, 0.99],
        "gflowout": [0.969, 0.979, 0.9892],  # a tenth of a point below, at each seed
        "concrete": [0.50, 0.98],
        "mc-improved": [0.98, 0.99, 0.97],
    }
    for method, values in scores.items():
        for seed, value in enumerate(values):
            records.write(
                experiment="table1", dataset="mnist", method=method, seed=seed, profile="full",
                config={"method": method}, metrics={"accuracy": value}, wall_s=1.0, out=tmp_path,
                device=torch.device("cpu"),
            )  # fmt: skip
    rows = ledger.entries("Table 1", tmp_path)
    rows = rows[(rows["setting"] == "MNIST") & (rows["metric"] == "accuracy")]
    rows = rows.set_index("ours_method")
    assert rows["ours"]["random"] == pytest.approx(98.0)
    assert rows["se"]["random"] == pytest.approx(3**-0.5)
    assert rows["verdict"]["random"] == "not reproduced"  # the paper's 87.38
    assert rows["difference"]["gflowout"] == pytest.approx(np.mean([-0.1, -0.1, -0.08]))
    assert rows["paper_difference"]["gflowout"] == pytest.approx(96.75 - 87.38)
    assert rows["verdict"]["gflowout"] == "reversed"
    assert rows["verdict"]["concrete"] == "undecided" and rows["n"]["concrete"] == 2
    assert rows["verdict"]["contextual"] == "not run here"
    assert rows["verdict"]["mc-improved"] == "not in the paper"
    assert np.isnan(rows["paper"]["mc-improved"])


def test_a_number_inside_a_dict_and_a_reduced_run_are_found_and_named(tmp_path):
    score = {"dempster-shafer, scores": {"auroc": 0.8, "aupr_out": 0.7}}
    for seed, outside in enumerate(({"svhn": score}, {"svhn": score}, {})):
        records.write(
            experiment="cifar", dataset="cifar10", method="random", seed=seed, profile="reduced",
            config={}, metrics={"outside": outside}, wall_s=1.0, out=tmp_path,
            device=torch.device("cpu"),
        )  # fmt: skip
    rows = ledger.entries("Table 3", tmp_path)
    row = rows[(rows["setting"] == "CIFAR-10") & (rows["ours_method"] == "random")]
    assert list(row["ours"]) == [0.8, 0.7] and (row["n"] == 2).all()
    assert (row["verdict"] == "not reproduced (reduced)").all()  # 0.882 and 0.869, two equal runs


def test_configurations_are_not_averaged(tmp_path):
    for seed in range(2):
        records.write(
            experiment="table1", dataset="mnist", method="random", seed=seed, profile="full",
            config={"lr": seed}, metrics={"accuracy": 0.9}, wall_s=1.0, out=tmp_path,
            device=torch.device("cpu"),
        )  # fmt: skip
    with pytest.raises(ValueError, match="random has records of 2 configurations"):
        ledger.entries("Table 1", tmp_path)


def test_records_of_the_icu_are_means_over_splits_of_the_cohort_of_all_stays(tmp_path):
    for hours, scores in ((0, [0.5, 0.7]), (24, [0.1, 0.1])):
        records.write(
            experiment="icu", dataset="eicu", method="random", seed=0, profile="full",
            config={"cohort": {"min_hours": hours}}, metrics={"f1_macro": scores}, wall_s=1.0,
            out=tmp_path, device=torch.device("cpu"),
        )  # fmt: skip
    rows = ledger.entries("Table 4", tmp_path)
    row = rows[(rows["ours_method"] == "random") & (rows["metric"] == "f1_macro")]
    assert list(row["ours"]) == [pytest.approx(0.6)]


def test_the_search_is_decided_by_its_mean_over_seeds(tmp_path):
    points = search.space("random")
    with pytest.raises(ValueError, match="--dataset digits --method random"):
        search.chosen("random", "digits", "full", tmp_path)
    for seed, best in enumerate((3, 3, 5)):
        for i, point in enumerate(points):
            records.write(
                experiment="tune", dataset="digits", method="random", seed=seed, profile="tune",
                config=search.configuration("random", point, "tune"), wall_s=1.0, out=tmp_path,
                metrics={"tune_nll": float(i != best)}, device=torch.device("cpu"),
            )  # fmt: skip
    found = search.chosen("random", "digits", "full", tmp_path)
    assert found == search.configuration("random", points[3], "full")


@pytest.mark.parametrize("method", CHANGES)
def test_a_variation_changes_what_it_says_and_nothing_else(method):
    found = variants("digits", method, "quick")
    base = next(iter(found.values()))
    for name, config in found.items():
        change = CHANGES[method][name]
        kept = {k: v for k, v in config.items() if k != "method"}
        assert kept == {k: v for k, v in base.items() if k != "method"}
        assert config["method"] == base["method"] | change
    missing = set(CHANGES[method]) - set(found)
    for name in missing:  # left out: it is what the configuration already is
        assert CHANGES[method][name].items() <= base["method"].items()


def test_the_moved_starts_differ_from_the_tuned_run_in_nothing_else():
    (base,) = digits.TABLE1.configs("digits", "gflowout", "quick")
    for name, config in variants("digits", "gflowout", "quick", STARTS).items():
        assert config == base | {"method": base["method"] | STARTS[name]}
        found = names("digits", "gflowout", "quick", STARTS)
        assert found[records.config_hash(config)] == name
    with pytest.raises(ValueError, match="random has no start of its own"):
        EXPERIMENTS["starts"].configs("digits", "random", "quick")


def test_spread_is_half_the_interval_of_what_is_there():
    values = [1.0, 2.0, np.nan, 4.0]
    mean, half = spread(values)
    low, high = interval(np.array([1.0, 2.0, 4.0]))
    assert mean == pytest.approx(7 / 3) and (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(spread([np.nan])).all() and spread([3.0]) == (3.0, np.inf)


def test_faults_d_the_papers_tables_lie_in_the_package():
    """Elsewhere than in a clone, *Questions about pictures* did not find them."""
    assert ledger.PAPER.is_relative_to(records.LAB)
    for table in ledger.TABLES:
        assert len(ledger.paper(table))
