"""The easy-VQA experiment on a small made-up data set."""

import numpy as np
import pandas as pd
import pytest
import torch
from gfo_lab import sweep
from gfo_lab.experiments import easy_vqa as task
from gfo_lab.experiments.job import Job
from gfo_lab.stats import clustered_error
from gfo_lab.vqa.questions import VisualQuestions, Words

ANSWERS = ["yes", "no", "red", "blue"]


@pytest.fixture
def splits(monkeypatch):
    """Twenty images with three questions each, in each part."""
    words = Words.of(["is it red", "what colour"])
    gen = torch.Generator().manual_seed(0)
    tokens = torch.randn(60, 16, 64, generator=gen)
    red = torch.arange(20) % 2 == 0
    rows = [
        (text, answer, image, kind)
        for image in range(20)
        for text, answer, kind in (
            ("is it red", "yes" if red[image] else "no", "yes/no"),
            ("what colour", "red" if red[image] else "blue", "colour"),
            ("is it blue", "no" if red[image] else "yes", "yes/no"),
        )
    ]
    table = pd.DataFrame(rows, columns=["text", "answer", "image", "kind"])
    with pytest.warns(UserWarning, match="'blue'"):
        numbers = words.encode(list(table["text"]), 4)
    y = torch.tensor([ANSWERS.index(a) for a in table["answer"]])
    parts = {
        name: ((tokens[20 * k + torch.tensor(table["image"].tolist())], numbers), y)
        for k, name in enumerate(("train", "valid", "test"))
    }
    about = dict.fromkeys(parts, table)
    made = VisualQuestions("easy-vqa", **parts, answers=ANSWERS, words=words, about=about)
    monkeypatch.setattr(Job, "splits", lambda job: made)
    return made


def job(method, root, seed=0):
    config = task.EASY_VQA.configs("easy-vqa", method, "quick")[0]
    return Job("easy-vqa", method, seed, config, root, "cpu", None, False)


@pytest.mark.parametrize("method", ["gflowout", "concrete", "ensemble"])
def test_a_run_measures_what_its_record_promises(splits, method, tmp_path):
    found = task.EASY_VQA.run(job(method, tmp_path))
    for tail in ("", "_noisy"):
        right = [int(digit, 36) for digit in found[f"right_by_image{tail}"]]
        assert len(right) == 20 and sum(right) == round(60 * found[f"accuracy{tail}"])
        kinds = [found[f"accuracy_{kind}{tail}"] for kind in ("yes_no", "colour")]
        assert found[f"accuracy{tail}"] == pytest.approx((2 * kinds[0] + kinds[1]) / 3)
        assert 0 <= found[f"accuracy_image_se{tail}"] < 0.2
    assert len(found["accuracy_by_noise"]) == len(found["noise"]) == 7
    starts = list((tmp_path / "easy-vqa").glob("warm-*.pt"))
    assert len(starts) == (6 if method == "ensemble" else 1)  # each member has one of its own


def test_all_methods_of_a_seed_start_from_one_network_that_is_trained_once(
    splits, tmp_path, monkeypatch
):
    first, _ = task.warm_start(splits, job("random", tmp_path), 0)
    other, _ = task.warm_start(splits, job("random", tmp_path), 1)
    monkeypatch.setattr(task, "fit", None)  # nobody may train it again
    again, sites = task.warm_start(splits, job("gflowout", tmp_path), 0)
    assert len(sites) == 10 and not any(m._forward_hooks for m in again.modules())
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.out.weight, other.out.weight)


def test_the_time_of_a_killed_warm_start_is_kept_and_nothing_else_is_left(
    splits, tmp_path, monkeypatch
):
    asked, fit = job("random", tmp_path), task.fit
    warm = asked.config["warm"] | {"most": 2, "target": 2.0}
    how = sweep.How("cpu", tmp_path, tmp_path / "out", tmp_path / "scratch", False, None)
    identity = dict(experiment="easy-vqa", dataset="easy-vqa", method="random", seed=0,
                    profile="quick", config=asked.config | {"warm": warm})  # fmt: skip
    checkpoint = tmp_path / "scratch" / "run.pt"

    def killed_in_the_second_epoch(*args, epochs, **more):
        if epochs == 2:
            raise KeyboardInterrupt
        fit(*args, epochs=epochs, **more)

    with monkeypatch.context() as patch:
        patch.setattr(task, "fit", killed_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            sweep.measure(identity, how, checkpoint)
    assert sweep.seconds_before(checkpoint, checkpoint.with_suffix(".seconds")) > 0
    again = asked._replace(config=identity["config"], checkpoint=checkpoint)
    task.warm_start(splits, again, 0)
    (start,) = (tmp_path / "easy-vqa").glob("warm-*.pt")
    start.with_suffix(".run.pt").write_bytes(b"")  # of a kill before it was removed
    task.warm_start(splits, again, 0)
    assert list((tmp_path / "easy-vqa").glob("*.pt")) == [start]


def test_the_blind_answer_is_that_of_the_wording(splits):
    found = task.blind(splits)  # every wording has two answers, ten times each
    assert found == {"all": 0.5, "yes/no": 0.5, "colour": 0.5}


def test_clustered_error_of_equal_groups_is_that_of_their_means():
    rng = np.random.default_rng(0)
    means = rng.random(30)
    values = means.repeat(7)
    want = means.std(ddof=1) / 30**0.5
    assert clustered_error(values, np.arange(30).repeat(7)) == pytest.approx(want)
    nobody = np.where(np.arange(210) < 7, np.nan, np.arange(30).repeat(7))  # a group like others
    assert clustered_error(values, nobody) == pytest.approx(want)
    alone = clustered_error(values, np.arange(210))
    assert alone == pytest.approx(values.std(ddof=1) / 210**0.5)
    assert np.isnan(clustered_error(values, np.zeros(210)))
