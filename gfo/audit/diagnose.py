"""Is q the posterior, where masks cannot be enumerated? What S masks can tell, with its error."""

import math
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import row_slice, rows, tree_map
from gfo.core.checks import check_batch
from gfo.core.files import declared
from gfo.evaluate.masks import log_probs, passes
from gfo.evaluate.stats import pearson

GROUPS = 16  # of masks, left out in turn
READINGS = declared(__file__)


class Draws(NamedTuple):
    """S masks of q, scored, and S of p.

    All (P, S), in nats; P examples, or 1 where one posterior serves the data set.

    Attributes:
        log_q: Of the masks of q.
        log_p: Of the masks of q.
        log_reward: Of the masks of q.
        log_z: A column repeated S times.
        log_w_of_p: log R − log p of masks from p: what log_w would be if p stood for q.
    """

    log_q: Tensor
    log_p: Tensor
    log_reward: Tensor
    log_z: Tensor | None
    log_w_of_p: Tensor


def diagnose(
    net: Attached, x: Any, y: Tensor, samples: int = 256, *, seed: int = 0
) -> pd.DataFrame:
    """Read q from some of its masks: a table, one row per figure, means over x.

    elbo: E_q[log R − log q]; gain: how much more than if p stood for q. bound: log of the mean of
    R/q, between the ELBO and log Σ_z R(z), to which it grows with S (Burda et al., 2016). That sum
    is p(y|x) where R is p(y|x,z) p(z|x), and the readings say so there: not under class weights,
    soft targets, or an exponent other than 1. For ID-GFlowOut it is p(D), D being (x, y).
    prior_bound: the same from masks of p; the higher one where q misses masks that matter, which
    q's own masks cannot show. log_z: what the net learned; log_z_error: mean ``|log Z − bound|``.
    ess: effective share of the S masks under weights R/q, 1 for a perfect q. var_log_w: variance of
    log R − log q under q, nat², 0 for a perfect q; var_prior: the same if p stood for q.
    corr: correlation of log q and log R over q's masks; corr_data: of log q − log p and
    log R − log p, without the part both share. moved: KL(q ‖ p). Nats unless said.

    Args:
        net: A trained network.
        x: A batch; for ID-GFlowOut, whose posterior is the data set's, the training set.
        y: Its labels.
        samples: S, masks per example.
        seed: Of the masks.

    Returns:
        Columns value; error, one standard error for the choice of masks, with the bias of their
        finite number (a jackknife that leaves out one of 16 groups of masks; the choice of examples
        is not in it); flag, whether something is wrong; reading, one line.

    Raises:
        ValueError: For a method that aims at no posterior, fewer than 32 samples, bad x or y.
    """
    x, y = check_batch(net, x, y)
    if net.method.q is None or not net.method.own_posterior:
        raise ValueError(f"{net.method.name} trains no q toward a posterior: nothing to diagnose")
    if samples < 2 * GROUPS:
        raise ValueError(f"samples is {samples}, their error needs at least {2 * GROUPS}")
    draws = _draw(net, x, y, samples, seed)
    values = figures(draws)
    group = torch.arange(samples, device=draws.log_q.device) % GROUPS
    parts = [tree_map(lambda t, g=g: t[:, group != g], draws) for g in range(GROUPS)]
    left = tree_map(lambda *each: torch.stack(each), *map(figures, parts))  # (G, P) each
    found = {name: _jackknife(value, left[name]) for name, value in values.items()}
    # an absolute value near 0 is biased by as much as one example's error
    if "log_z_error" in found:
        one = (GROUPS - 1) ** 0.5 * left["bound"].std(0, correction=0)
        found["log_z_error"] = (found["log_z_error"][0], float(one.mean()))
    table = pd.DataFrame.from_dict(found, orient="index", columns=["value", "error"])
    read = [_read(name, table["value"], table["error"], evidence(net)) for name in found]
    table["flag"], table["reading"] = zip(*read, strict=True)
    return table


def figures(d: Draws) -> dict[str, Tensor]:
    """The figures of `diagnose`, (P,) each, from masks (P, S)."""
    log_w, count = d.log_reward - d.log_q, math.log(d.log_q.shape[1])
    top, squares = log_w.logsumexp(1), (2 * log_w).logsumexp(1)
    elbo, bound = log_w.mean(1), top - count
    found = {"elbo": elbo, "gain": elbo - d.log_w_of_p.mean(1), "bound": bound}
    found["prior_bound"] = d.log_w_of_p.logsumexp(1) - count
    if d.log_z is not None:
        found["log_z"] = d.log_z[:, 0]
        found["log_z_error"] = (d.log_z[:, 0] - bound).abs()
    found |= {"ess": (2 * top - squares - count).exp(), "var_log_w": log_w.var(1)}
    found["var_prior"] = d.log_w_of_p.var(1)
    found["corr"] = pearson(d.log_q, d.log_reward)
    found["corr_data"] = pearson(d.log_q - d.log_p, d.log_reward - d.log_p)
    return found | {"moved": (d.log_q - d.log_p).mean(1)}


def _draw(net: Attached, x: Any, y: Tensor, samples: int, seed: int) -> Draws:
    method, n = net.method, rows(x)

    def scored(source: str) -> tuple[Any, ...]:
        seen = list(passes(net, x, y, source, samples, seed))
        log_q, log_p, log_lik = (t.double() for t in log_probs(seen, n))  # each (B, S)
        return log_q, log_p, method.log_reward(log_lik, log_p, n), seen[0].log_z

    _, log_p, log_reward, _ = scored("p")
    log_q, log_p_of_q, log_reward_of_q, log_z = scored("q")
    log_z = None if log_z is None else log_z.double()[:, None].expand(n, samples)
    draws = Draws(log_q, log_p_of_q, log_reward_of_q, log_z, log_reward - log_p)
    return row_slice(draws, 0, 1) if method.shared else draws


def _jackknife(value: Tensor, left: Tensor) -> tuple[float, float]:
    """(mean over examples, its error) of a figure (P,), given it without each group, (G, P)."""
    mean, means = value.mean(), left.mean(1)
    bias = (GROUPS - 1) * (means.mean() - mean)
    return float(mean), float(((GROUPS - 1) * means.var(correction=0) + bias.square()).sqrt())


def evidence(net: Attached) -> str:
    """What log Σ_z R(z) is: the evidence only where R is the likelihood times the prior."""
    log_lik, log_p = torch.tensor([-1.7]), torch.tensor([-0.6])
    plain = torch.allclose(net.method.log_reward(log_lik, log_p, 1), log_lik + log_p)
    if not (plain and net.likelihood.normalised):
        return "log Σ_z R(z)"
    return "log p(D)" if net.method.shared else "log p(y|x)"


def _read(name: str, value: Any, error: Any, evidence: str) -> tuple[bool, str]:
    """(flag, reading) of one figure. Flags leave three standard errors."""
    v, e = value[name], error[name]
    gap, share = value["bound"] - value["elbo"], value["var_log_w"] / max(value["var_prior"], 1e-12)
    missed = 3 * math.hypot(e, error["bound"]) + 0.02
    wrong = {
        "prior_bound": v - value["bound"] > missed,
        "log_z_error": v > gap + 3 * e + 0.05,
        "var_log_w": share > 0.9 and v > 0.01,
        "gain": v < -3 * e,
    }
    flag, doubt = bool(wrong.get(name)), "" if v > 0.1 else ": do not trust the bound"
    said = READINGS["wrong" if flag else "fine"][name]
    return flag, said.format(evidence=evidence, gap=gap, share=share, value=v, doubt=doubt)
