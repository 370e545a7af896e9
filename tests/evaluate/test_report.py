"""The report against formulas, under every likelihood that comes with gfo."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import shake, toy_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gfo
from gfo.evaluate import plots
from gfo.evaluate.calibrate import Temperature
from gfo.evaluate.report import SETTINGS
from gfo.evaluate.uncertainty import SCORES, detection

N = 40


class PerPixel(nn.Module):
    """Logits (B, 3, 2, 2) from six numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 12)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))).unflatten(1, (3, 2, 2))


def case(name):
    """(net, x, y, other x) under a likelihood, untrained but with masks that matter."""
    torch.manual_seed(0)
    x, out = torch.randn(N, 6), {"gaussian": 4, "gaussian, learned": 2}.get(name, 3)
    y = torch.randint(3, (N,))
    model, sites = (PerPixel(), ["first"]) if name == "pixels" else toy_model(classes=out)
    likelihood = {
        "coins": gfo.Bernoulli(), "degrees": gfo.SoftTargets(), "gaussian": gfo.Gaussian(),
        "gaussian, learned": gfo.Gaussian(sd="learned"),
        "weights": gfo.Categorical(weights=[1.0, 2.0, 3.0]),
    }.get(name)  # fmt: skip
    if name in ("coins", "degrees"):
        y = torch.rand(N, 3) if name == "degrees" else torch.randint(2, (N, 3)).float()
    elif "gaussian" in name:
        y = torch.randn(N, 2)
    elif name == "pixels":
        y = torch.randint(3, (N, 2, 2))
        y[:9, 0] = -100
    how = {} if likelihood is None else {"likelihood": likelihood}
    return shake(gfo.attach(model, sites, "gflowout", x[:2], **how)), x, y, 3 * x + 1


LABELS = ("labels", "weights", "pixels", "coins")
NUMBERS = ("degrees", "gaussian", "gaussian, learned")


def answers(net, x, y, scale=None):
    """(N, K) probabilities and (N,) labels of answers, in NumPy, written out per likelihood."""
    p = gfo.predict(net, x)
    p = (p if scale is None else scale(p)).double().numpy()
    if y.is_floating_point():
        p, t = p.reshape(-1), y.numpy().reshape(-1).astype(int)
        return np.stack([1 - p, p], 1), t
    if p.ndim == 4:
        p, t = p.transpose(0, 2, 3, 1).reshape(-1, 3), y.numpy().reshape(-1)
        return p[t >= 0], t[t >= 0]
    return p, y.numpy()


def by_hand(p, t):
    """The measures of answers, in the order of the settings."""
    confidence, hit = p.max(1), p.argmax(1) == t
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs(confidence[bins == b].sum() - hit[bins == b].sum()) for b in range(15)) / len(t)
    surest = hit[np.argsort(-confidence, kind="stable")]
    kept = [surest[: round(c * len(t))].mean() for c in (0.5, 0.8)]
    brier = ((p - np.eye(p.shape[1])[t]) ** 2).sum(1).mean()
    nll = -np.log(p[np.arange(len(t)), t]).mean()
    return [hit.mean(), nll, brier, ece, *kept]


@pytest.mark.parametrize("name", LABELS)
def test_answers_are_measured_by_the_formulas(name):
    net, x, y, _ = case(name)
    table = gfo.report(net, x, y).table
    want = by_hand(*answers(net, x, y))
    np.testing.assert_allclose(table["value"][SETTINGS["answers"]].tolist(), want, atol=1e-6)
    assert math.isnan(table["value"]["RMSE"]) and "no distance" in table["note"]["RMSE"]
    if name in ("labels", "weights"):  # of one answer per example the two are one
        assert table["value"]["NLL"] == pytest.approx(table["value"]["NLL per answer"], abs=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_measured_by_the_formulas_and_the_rest_is_refused_aloud(name):
    net, x, y, _ = case(name)
    table = gfo.report(net, x, y).table
    want = (gfo.predict(net, x) - y).double().square().mean().sqrt()
    assert table["value"]["RMSE"] == pytest.approx(float(want), abs=1e-6)
    assert table["value"][SETTINGS["answers"]].isna().all()
    assert table["note"][SETTINGS["answers"]].str.contains("no answer is right or wrong").all()
    assert table["value"][["entropy", "mutual information"]].isna().all() == (name != "degrees")


@pytest.mark.parametrize("name", (*LABELS, *NUMBERS))
def test_every_row_has_a_number_or_a_reason_and_those_of_examples_agree(name):
    net, x, y, far = case(name)
    report = gfo.report(net, x, y, far)
    table, dist = report.table, gfo.predictive(net, x)
    assert ((table["note"] != "") == table["value"].isna()).all()
    assert table["unit"].notna().all() and not table["note"].str.contains("\n").any()
    value = table["value"]
    assert value["NLL"] == pytest.approx(-float(dist.log_prob(y).mean()))
    assert value["variance"] == pytest.approx(float(dist.variance.flatten(1).sum(1).mean()))
    outputs, outside = gfo.sample_logits(net, x), gfo.sample_logits(net, far)
    assert set(value.index) >= {f"{key}, {s}" for s in SCORES for key in ("AUROC", "FPR95")}
    for score, f in SCORES.items():
        if f"AUROC, {score}" in value.dropna():
            near = f(outputs, net.likelihood)
            found = detection(near, f(outside, net.likelihood))
            assert value[f"AUROC, {score}"] == found["auroc"]
            assert value[f"FPR95, {score}"] == found["fpr95"]
            if score in value:
                assert value[score] == pytest.approx(float(near.mean()))
    scores = {"labels": 7, "weights": 7, "pixels": 3, "coins": 3, "degrees": 3}.get(name, 0)
    assert value.filter(like="AUROC").notna().sum() == scores + 1  # and the variance
    assert len(gfo.report(net, x, y).table) == 11  # without outside, nothing of it


@pytest.mark.parametrize("name", LABELS)
def test_a_temperature_adds_a_column_and_a_curve(name):
    net, x, y, _ = case(name)
    scale = Temperature(gfo.predict(net, x), y)
    report = gfo.report(net, x, y, scale=scale)
    want = by_hand(*answers(net, x, y, scale))
    scaled = report.table["scaled"][SETTINGS["answers"]]
    np.testing.assert_allclose(scaled.tolist(), want, atol=1e-6)
    value = report.table["value"]["NLL per answer"]
    assert value - scaled["NLL per answer"] == pytest.approx(scale.gain, abs=1e-6)
    pd.testing.assert_series_equal(report.table["value"], gfo.report(net, x, y).table["value"])
    assert list(report.curves) == ["as predicted", "scaled"]
    for (p, t), curve in zip(
        (answers(net, x, y), answers(net, x, y, scale)), report.curves.values(), strict=True
    ):
        bins = np.minimum((p.max(1) * 15).astype(int), 14)
        hit = p.argmax(1) == t
        want = [(p.max(1)[bins == b].mean(), hit[bins == b].mean(), (bins == b).sum() ** -0.5)
                for b in np.unique(bins)]  # fmt: skip
        np.testing.assert_allclose(np.transpose(curve), want, atol=1e-6)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_temperature_is_refused_where_no_answer_is_right_or_wrong(name):
    net, x, y, _ = case(name)
    with pytest.raises(ValueError, match="no class probabilities"):
        gfo.report(net, x, y, scale=Temperature(torch.eye(3), torch.arange(3)))


@pytest.mark.parametrize("name", ["gaussian", "gaussian, learned"])
def test_quantiles_of_normal_y_are_those_of_the_mixture(name):
    """A quantile found by bisection from the mixture's cdf, instead of the cdf at y."""
    net, x, y, _ = case(name)
    levels, below = gfo.report(net, x, y).curves["mixture over masks"]
    normals = [one.base_dist for one in gfo.predictive(net, x).components]
    for level, share in list(zip(levels, below, strict=True))[::6]:
        low, high = torch.full((N, 2), -50.0).double(), torch.full((N, 2), 50.0).double()
        for _ in range(60):
            middle = (low + high) / 2
            under = torch.stack([d.cdf(middle) for d in normals]).mean(0) < level
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        assert share == pytest.approx(float((y <= low).double().mean()))


@pytest.mark.parametrize("name", ["labels", "pixels", "degrees", "gaussian"])
def test_the_figure_draws_the_curves(name):
    net, x, y, _ = case(name)
    report = gfo.report(net, x, y)
    figure = report.figure()
    (ax,) = figure.axes
    assert ax.get_xlabel() == "predicted probability" and ax.get_ylabel() == "observed share"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["perfectly reliable", *report.curves]
    for container, curve in zip(ax.containers, report.curves.values(), strict=True):
        np.testing.assert_allclose(container.lines[0].get_xydata().T, curve[:2])
    assert len(report.curves) == (name != "degrees")


def test_arrays_loaders_and_ensembles_are_reported_like_tensors():
    net, x, y, far = case("labels")
    want = gfo.report(net, x, y, far).table
    pd.testing.assert_frame_equal(gfo.report(net, x.numpy(), y.numpy(), far.numpy()).table, want)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=N)
    pd.testing.assert_frame_equal(gfo.report(net, loader, y, far).table, want)
    both = gfo.Ensemble([net, case("labels")[0]])
    found = gfo.report(both, x, y, samples=10).table["value"]
    probs = gfo.predict(both, x, 10)
    assert found["NLL"] == pytest.approx(-float(probs[torch.arange(N), y].log().mean()), abs=1e-6)


def test_y_is_checked_once_and_the_figure_sets_nothing_of_tables(monkeypatch):
    net, x, y, _ = case("labels")
    seen, check = [], type(net.likelihood).check
    monkeypatch.setattr(type(net.likelihood), "check", lambda *a: seen.append(a) or check(*a))
    report = gfo.report(net, x, y)
    assert len(seen) == 1
    monkeypatch.setattr(plots, "use_style", None)
    assert report.figure().get_dpi() == plots.STYLE["figure.dpi"]


def test_bad_y_is_named():
    net, x, y, _ = case("labels")
    for bad, message in ((y + 3, "labels run"), (y[:5], "one label per row"), (y.float(), "int64")):
        with pytest.raises(ValueError, match=message) as caught:
            gfo.report(net, x, bad)
        assert "\n" not in str(caught.value)


def test_a_loader_that_shuffles_is_refused_beside_labels_in_order():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    net = gfo.attach(*toy_model(), "random", x[:2])
    both = TensorDataset(x, y)
    told = gfo.report(net, DataLoader(both, 8), y).table
    pd.testing.assert_frame_equal(told, gfo.report(net, x, y).table)
    with pytest.raises(ValueError, match="shuffle=False"):
        gfo.report(net, DataLoader(both, 8, shuffle=True), y)
