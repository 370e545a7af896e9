"""How uncertain a prediction is, and how well that tells inside from outside.

Every score reads the logits of S masks, (S, B, K) as `gfo.sample_logits` gives them, and returns
(B,): larger means more uncertain.
"""

import math
from functools import partial

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from gfo.core.registry import Registry

AVERAGES = Registry("average")
SCORES = Registry("uncertainty score")

# Over which quantity S masks are averaged before (or, "scores", after) the score of one logit
# vector is taken: (S, B, K) and that score to (B,).
AVERAGES["scores"] = lambda logits, score: score(logits).mean(0)
AVERAGES["logits"] = lambda logits, score: score(logits.mean(0))
AVERAGES["evidence"] = lambda logits, score: score(logits.logsumexp(0) - math.log(len(logits)))


def dempster_shafer(logits: Tensor, average: str = "scores") -> Tensor:
    """K / (K + Σ_k exp(logit_k)), in (0, 1).

    Sensoy et al., 2018; this form: J. Liu et al., 2020. The paper does not say what it averages
    over its 20 masks. For one mask the averages agree, and rank as `energy` does.

    Args:
        logits: (S, B, K).
        average: "scores", the mean of the masks' scores; "logits", the score of the mean logits;
            "evidence", the score of the mean of exp(logit).

    Returns:
        (B,).
    """
    return AVERAGES[average](
        logits.float(), lambda a: torch.sigmoid(math.log(a.shape[-1]) - a.logsumexp(-1))
    )


def energy(logits: Tensor, average: str = "scores") -> Tensor:
    """−log Σ_k exp(logit_k) (W. Liu et al., 2020), averaged like `dempster_shafer`."""
    return AVERAGES[average](logits.float(), lambda a: -a.logsumexp(-1))


def max_probability(logits: Tensor) -> Tensor:
    """1 − the largest probability of the mask-averaged predictive (Hendrycks & Gimpel, 2017)."""
    return 1 - logits.float().softmax(-1).mean(0).amax(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the mask-averaged predictive, in nats."""
    return _entropy(logits.float().softmax(-1).mean(0))


def mutual_information(logits: Tensor) -> Tensor:
    """Entropy of the mean less the mean entropy, in nats: what the masks disagree about.

    0 for one mask, and for a network without dropout.
    """
    probs = logits.float().softmax(-1)
    return (_entropy(probs.mean(0)) - _entropy(probs).mean(0)).clamp_min(0)


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


for _average in AVERAGES:
    SCORES[f"dempster-shafer, {_average}"] = partial(dempster_shafer, average=_average)
SCORES["energy"] = energy
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
    if not len(inside) or not len(outside):
        raise ValueError("detection needs at least one score inside and one outside")
    scores = torch.cat([inside, outside]).double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or inf: look at the logits they come from")
    is_outside = np.arange(len(scores)) >= len(inside)
    return {
        "auroc": float(roc_auc_score(is_outside, scores)),
        "aupr_out": float(average_precision_score(is_outside, scores)),
        "aupr_in": float(average_precision_score(~is_outside, -scores)),
        "fpr95": fpr_at(scores[~is_outside], scores[is_outside], 0.95),
        "prevalence": float(is_outside.mean()),
    }


def fpr_at(inside: np.ndarray, outside: np.ndarray, pass_rate: float) -> float:
    """Share of `outside` that passes as inside.

    That is, lies at or below the lowest threshold that at least `pass_rate` of `inside` is at or
    below.
    """
    threshold = np.sort(inside)[math.ceil(pass_rate * len(inside)) - 1]
    return float((outside <= threshold).mean())
