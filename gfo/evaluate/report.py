"""One call that says how good a network's predictive is: a table and a figure."""

from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from gfo.core import attached, batch, bernoulli, files, gaussian, likelihood, predictive
from gfo.evaluate import calibrate, metrics, plots, uncertainty

SETTINGS = files.declared(__file__)


class Report(NamedTuple):
    """What `gfo.report` returns.

    Attributes:
        table: A row per measure: its "value", with `scale` also "scaled", its "unit", and under
            "note" why a measure has no meaning here, where its value is NaN.
        curves: Across, up and, of answers, half the length of a bar, by what the legend says.
    """

    table: pd.DataFrame
    curves: dict[str, tuple]

    def figure(self) -> Figure:
        """The reliability diagram.

        Of answers that are right or wrong by 15 bins of confidence. Their bars are ± 1/√n, within
        which the share of n independent answers lies in 95 of 100 cases or more; those of one
        example are not independent. Of normal y: how many targets lie below each quantile of the
        mixture over masks. Of anything else only the diagonal.
        """
        with plt.style.context(plots.STYLE):
            fig, ax = plt.subplots(figsize=(4.4, 4))
            ax.plot((0, 1), (0, 1), "k:", label="perfectly reliable")
            for name, curve in self.curves.items():
                ax.errorbar(*curve, label=name, marker="o", markersize=3)
            ends = (-0.02, 1.02)  # bars of bins with few answers reach further
            ax.set(xlabel="predicted probability", ylabel="observed share", xlim=ends, ylim=ends)
            ax.legend()
        plt.close(fig)  # or a notebook would show it twice
        return fig


def report(
    net: attached.Attached, x: Any, y: Any, outside: Any = None, *,
    scale: calibrate.Temperature | None = None, samples: int = 20, seed: int = 0,
) -> Report:  # fmt: skip
    """Say how good the predictive over masks is, under the network's own likelihood.

    Of labels, one per row or per position, and of yes or no: accuracy, NLL, Brier score, expected
    calibration error and the accuracy of the surest, each answer counting alike. Of real numbers
    and of degrees: the RMSE of the mean. Of all: the NLL of an example, jointly for what its y
    holds (`Predictive.log_prob`), and the predictive variance, summed over y (of classes one-hot:
    1 − Σ p²). Where there are probabilities: entropy and mutual information.

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch or a loader: see `gfo.sample_logits`.
        y: Its labels, a tensor or an array, beside a loader too.
        outside: Other inputs: with them every score of `gfo.evaluate.uncertainty.SCORES`, and the
            variance, is measured on telling them from x (`gfo.evaluate.uncertainty.detection`).
        scale: A temperature fitted on other data: the measures of answers are also given after it.
        samples: Masks per example.
        seed: Of the masks.

    Raises:
        ValueError: On bad x, y or outside, for a loader that shuffles, and for `scale` where no
            answer is right or wrong.
    """
    dist = predictive.predictive(net, x, samples, seed=seed)
    like, outputs = dist.parts[0]
    y = torch.as_tensor(batch.as_tensors(y)).to(outputs.device)
    y = y.float() if y.is_floating_point() else y
    like.check(y, outputs.shape[1], tuple(outputs.shape[2:]))
    soft = isinstance(like, bernoulli.SoftTargets)
    if scale or isinstance(like, likelihood.Categorical | bernoulli.Bernoulli) and not soft:
        columns, curves = _of_answers(dist.mean, y, scale)  # which refuse others
    else:
        columns, curves = _of_numbers(dist, y)
    values, (near, why) = columns["value"], _scores(dist)
    values["NLL"] = -float(dist.mixture(y).mean())
    values |= {name: why.get(name) or float(near[name].mean()) for name in SETTINGS["means"]}
    if outside is not None:
        far, _ = _scores(predictive.predictive(net, outside, samples, seed=seed))
        for name in (*near, *why):
            found = uncertainty.detection(near[name], far[name]) if name in near else {}
            values[f"AUROC, {name}"] = found.get("auroc", why.get(name))
            values[f"FPR95, {name}"] = found.get("fpr95", why.get(name))
    table = pd.DataFrame(columns).apply(pd.to_numeric, errors="coerce")  # a reason is no number
    unit = [SETTINGS["units"][name.split(",")[0]] for name in values]
    note = [value if isinstance(value, str) else "" for value in values.values()]
    return Report(table.assign(unit=unit, note=note), curves)


def _of_answers(mean: Tensor, y: Tensor, scale: Any) -> tuple[dict, dict]:
    """Columns and curves of answers that are right or wrong, as predicted and scaled."""
    columns, curves = {}, {}
    for view, p in ({"value": mean} | ({"scaled": scale(mean)} if scale else {})).items():
        kept = metrics.selective_accuracy(p, y, SETTINGS["kept"])
        numbers = [*metrics.evaluate(p, y).values(), *kept]
        columns[view] = dict(zip(SETTINGS["answers"], numbers, strict=True))
        r, n = metrics.reliability(p, y), int((y != -100).sum())
        bars = [(n * share) ** -0.5 for share in r["share"]]
        curves[view.replace("value", "as predicted")] = r["confidence"], r["accuracy"], bars
    columns["value"]["RMSE"] = "y names classes, between which there is no distance"
    return columns, curves


def _of_numbers(dist: predictive.Predictive, y: Tensor) -> tuple[dict, dict]:
    """The same of real numbers and of degrees."""
    like, each = dist.parts[0][0], list[Any](dist.components)
    why = f"no answer is right or wrong under {like}"
    values: dict[str, Any] = dict.fromkeys(SETTINGS["answers"], why)
    values["RMSE"] = float((dist.mean - y).square().mean().sqrt())
    if not isinstance(like, gaussian.Gaussian):
        return {"value": values}, {}
    cdf = torch.stack([one.base_dist.cdf(y) for one in each]).mean(0)
    below = [float((cdf <= level).float().mean()) for level in SETTINGS["levels"]]
    return {"value": values}, {"mixture over masks": (SETTINGS["levels"], below)}


def _scores(dist: predictive.Predictive) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Scores of uncertainty, each (B,), and why others have no meaning here."""
    outputs = torch.cat([outputs for _, outputs in dist.parts])
    found, why = {"variance": dist.variance.flatten(1).sum(1)}, {}
    for name, score in uncertainty.SCORES.items():
        try:
            found[name] = score(outputs, dist.parts[0][0])
        except ValueError as error:
            why[name] = str(error)
    return found, why
