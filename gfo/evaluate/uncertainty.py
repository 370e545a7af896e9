"""How uncertain a prediction is, and how well that tells inside from outside.

Every score reads the outputs of S masks, (S, B, K) as `gfo.sample_logits` gives them, and what they
mean, `net.likelihood` (the default is `Categorical()`): `SCORES[name](outputs, net.likelihood)`. It
returns (B,): larger means more uncertain. A score that has no meaning there is refused.
"""

import math

import numpy as np
import torch
from torch import Tensor

from gfo.core.likelihood import Categorical, Likelihood
from gfo.core.predictive import Predictive
from gfo.core.registry import Registry

AVERAGES = Registry("average")
SCORES = Registry("uncertainty score")

# Over which quantity S masks are averaged before (or, "scores", after) the score of one logit
# vector is taken: (S, B, K) and that score to (B,).
AVERAGES["scores"] = lambda logits, score: score(logits).mean(0)
AVERAGES["logits"] = lambda logits, score: score(logits.mean(0))
AVERAGES["evidence"] = lambda logits, score: score(logits.logsumexp(0) - math.log(len(logits)))


def dempster_shafer(
    logits: Tensor, average: str = "scores", likelihood: Likelihood | None = None
) -> Tensor:
    """K / (K + Σ_k exp(logit_k)), in (0, 1).

    Sensoy et al., 2018; this form: J. Liu et al., 2020. The paper does not say what it averages
    over its 20 masks. For one mask the averages agree, and rank as `energy` does.

    Args:
        logits: (S, B, K).
        average: "scores", the mean of the masks' scores; "logits", the score of the mean logits;
            "evidence", the score of the mean of exp(logit).
        likelihood: Of the network; None for `Categorical()`.

    Returns:
        (B,).

    Raises:
        ValueError: For outputs that are not the logits of one label per row.
    """
    check_classes(logits, likelihood, "dempster-shafer")
    return AVERAGES[average](
        logits.float(), lambda a: torch.sigmoid(math.log(a.shape[-1]) - a.logsumexp(-1))
    )


def energy(logits: Tensor, average: str = "scores", likelihood: Likelihood | None = None) -> Tensor:
    """−log Σ_k exp(logit_k) (W. Liu et al., 2020), averaged and refused like `dempster_shafer`."""
    check_classes(logits, likelihood, "energy")
    return AVERAGES[average](logits.float(), lambda a: -a.logsumexp(-1))


def check_classes(logits: Tensor, likelihood: Likelihood | None, score: str) -> None:
    """ValueError unless they are the logits (S, B, K) of one label per row."""
    if not isinstance(likelihood, Categorical | None) or logits.dim() != 3:
        got = f"shape {tuple(logits.shape)} under {likelihood or Categorical()}"
        raise ValueError(f"{score} is a score of class logits (S, B, K), outputs have {got}")


def max_probability(outputs: Tensor, likelihood: Likelihood | None = None) -> Tensor:
    """1 − the largest probability of the mask-averaged predictive (Hendrycks & Gimpel, 2017).

    Of several answers per row: 1 − the predictive probability that all the likelier ones are right.
    """
    likelihood = likelihood or Categorical()
    mean = likelihood.mean(outputs)
    answer = likelihood.answer(mean)
    if isinstance(likelihood, Categorical) and mean.dim() == 2:
        return 1 - mean.amax(1)
    return 1 - Predictive([(likelihood, outputs)]).log_prob(answer).exp()


def entropy(outputs: Tensor, likelihood: Likelihood | None = None) -> Tensor:
    """Entropy of the mask-averaged predictive, in nats; summed over the answers of a row.

    Of several answers per row that is an upper bound on the entropy of their joint distribution.
    """
    likelihood = likelihood or Categorical()
    return likelihood.entropy(likelihood.mean(outputs))


def mutual_information(outputs: Tensor, likelihood: Likelihood | None = None) -> Tensor:
    """Entropy of the mean less the mean entropy, in nats: what the masks disagree about.

    0 for one mask, and for a network without dropout. Summed over the answers of a row.
    """
    likelihood = likelihood or Categorical()
    each = likelihood.entropy(likelihood.expected(outputs.flatten(0, 1)))  # (S·B,)
    each = each.unflatten(0, outputs.shape[:2]).mean(0)
    return (likelihood.entropy(likelihood.mean(outputs)) - each).clamp_min(0)


for _average in AVERAGES:
    SCORES[f"dempster-shafer, {_average}"] = lambda logits, likelihood=None, average=_average: (
        dempster_shafer(logits, average, likelihood)
    )
SCORES["energy"] = lambda logits, likelihood=None: energy(logits, "scores", likelihood)
SCORES["maximum probability"] = max_probability
SCORES["entropy"] = entropy
SCORES["mutual information"] = mutual_information


def detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well a score separates inside from outside; all numbers in [0, 1].

    Args:
        inside: (n,).
        outside: (m,).

    Returns:
        "auroc", the probability that an outside input scores higher than an inside one, ties half.
        "aupr_out", average precision where outside is the positive class and high scores are
        positive; its level for a coin is "prevalence" = m / (n + m). "aupr_in", the same with
        inside as the positive class and low scores; a coin has 1 − prevalence. "fpr95", the share
        of outside inputs that pass as inside at the threshold that lets 95 % of the inside ones
        pass.

    Raises:
        ValueError: Where either is empty or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # here: a second to load

    if not len(inside) or not len(outside):
        raise ValueError("detection needs at least one score inside and one outside")
    scores = torch.cat([inside.flatten(), outside.flatten()]).double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or inf: look at the logits they come from")
    is_outside = np.arange(len(scores)) >= len(inside)
    # the lowest that at least 95 % of the inside scores are at or below
    threshold = np.sort(scores[~is_outside])[math.ceil(0.95 * len(inside)) - 1]
    return {
        "auroc": float(roc_auc_score(is_outside, scores)),
        "aupr_out": float(average_precision_score(is_outside, scores)),
        "aupr_in": float(average_precision_score(~is_outside, -scores)),
        "fpr95": float((scores[is_outside] <= threshold).mean()),
        "prevalence": float(is_outside.mean()),
    }
