"""What learned masks do: how far they moved, what their probability follows, what they buy."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, rows, to_device
from gfo.core.bernoulli import Bernoulli
from gfo.core.checks import check_batch, check_counts, check_finite
from gfo.core.masked_pass import Pass, drawn_pass, without_gradient
from gfo.core.noise import derive, generator
from gfo.core.objectives import fixed_at, kl_bernoulli
from gfo.core.predict import sample, sample_logits
from gfo.core.predictive import Predictive
from gfo.evaluate.stats import pearson
from gfo.methods.base import check_keep


def passes(net: Attached, x: Any, y: Tensor, source: str, samples: int, seed: int):
    """Masked passes on one batch, in which both policies are scored.

    Args:
        net: The network.
        x: The batch.
        y: Its labels; what a pass saw comes back to their device.
        source: What draws the prefixes: "q", "p" or "test".
        samples: How many passes.
        seed: Of the masks.

    Raises:
        ValueError: On bad x or y, samples < 1, and where the network answers NaN.
    """
    check_counts(samples=samples)
    x, y = check_batch(net, x, y)
    back = y.device
    x, y = to_device((x, y), device_of(net))
    for index in range(samples):
        out = drawn_pass(net, x, y, source, seed, "masks", index)
        if source == "test":  # that pass runs the leading policy only and leaves y unread
            out = without_gradient(net, x, y, masks=out.masks)
        check_finite(net, out.logits, out.log_q, out.log_p, out.log_z, out.log_lik)
        yield Pass(*to_device(list(out), back))


def log_probs(seen: Sequence[Pass], n: int) -> list[Tensor]:
    """log q, log p and log-likelihood of S passes over n examples, each (n, S), in nats."""
    names = ("log_q", "log_p", "log_lik")
    return [torch.stack([getattr(out, name).expand(n) for out in seen], 1) for name in names]


def by_site(seen: Iterable[Pass], name: str, n: int = -1) -> list[Tensor]:
    """What S passes have under `name`, of each site (S, n, …); one row stands for all n."""
    sites = zip(*(getattr(out, name) for out in seen), strict=True)
    return [torch.stack(each).expand(-1, n, *each[0].shape[1:]) for each in sites]


def policy_divergences(
    net: Attached, x: Any, y: Tensor, *, keep: float = 0.5, samples: int = 5, seed: int = 0
) -> dict[str, list[float]]:
    """How far q and p are from independent Bernoulli(keep) masks and from each other.

    Each layer's divergence is in closed form, averaged over prefixes drawn from its left argument.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        keep: Of the Bernoulli.
        samples: How many prefixes.
        seed: Of the prefixes.

    Returns:
        Per site, mean nats per example. "p_moved" KL(p ‖ Bernoulli), "q_moved" KL(q ‖ Bernoulli),
        "q_from_p" KL(q ‖ p). Entries that a method has no policy for are left out.

    Raises:
        ValueError: On bad x, y or samples, and for a `keep` that is not between 0 and 1.
    """
    found: dict[str, list[float]] = {}
    check_keep(keep)

    def mean(pairs) -> list[float]:
        by_pass = [[float(kl_bernoulli(a, b).mean()) for a, b in layers] for layers in pairs]
        return torch.tensor(by_pass).mean(0).tolist()

    if net.method.p is not None and net.method.test == "p":
        seen = list(passes(net, x, y, "test", samples, seed))
        found["p_moved"] = mean([[(p, fixed_at(keep, p)) for p in out.p_logits] for out in seen])
    if net.method.q is not None:
        seen = list(passes(net, x, y, "q", samples, seed))
        found["q_moved"] = mean([[(q, fixed_at(keep, q)) for q in out.q_logits] for out in seen])
        found["q_from_p"] = mean(zip(out.q_logits, out.p_logits, strict=True) for out in seen)
    return found


def keep_probabilities(
    net: Attached, x: Any, y: Tensor, *, samples: int = 5, seed: int = 0
) -> dict[str, list[Tensor]]:
    """Keep-probability of every mask bit for every example, averaged over sampled prefixes.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        samples: How many prefixes.
        seed: Of the prefixes.

    Returns:
        Where the method has them, "q" (prefixes and probabilities from q, label given) and "p"
        (probabilities from p, prefixes from whichever of the two tests), one tensor per site, (B,
        C) or (B, T, C).
    """
    found = {}
    for name, source in (("q", "q"), ("p", "test")):
        if getattr(net.method, name) is not None:
            seen = passes(net, x, y, source, samples, seed)
            found[name] = [a.sigmoid().mean(0) for a in by_site(seen, f"{name}_logits", len(y))]
    return found


def correlations(
    net: Attached, x: Any, y: Tensor, *, masks: int = 100, permutations: int = 999, seed: int = 0
) -> dict[str, float]:
    """Correlation over masks drawn from q (labels given), example by example.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        masks: How many per example.
        permutations: Of the test.
        seed: Of the masks and permutations.

    Returns:
        Empty for a method without q. "reward" is of log q(z|x,y) with log R(z), the paper's A.2.
        Both hold log p(z|x), so they agree even where nothing was learned from the data. "data" is
        of log q − log p with log p(y|x,z), what is left. Each with its mean over examples, their
        standard deviation, and the share of examples whose one-sided permutation p-value is at most
        0.05. That share is to be read beside the mean: two unrelated functions of the same bits
        correlate in single examples, either way, so a q that learned nothing passes for more than
        one in twenty.
    """
    if net.method.q is None:
        return {}
    seen = list(passes(net, x, y, "q", masks, seed))
    log_q, log_p, log_lik = (t.cpu() for t in log_probs(seen, len(y)))
    log_reward = net.method.log_reward(log_lik, log_p, len(y))
    if net.method.shared:  # one posterior for the data set
        log_q, log_p, log_reward = log_q[:1], log_p[:1], log_reward[:1]
        log_lik = log_lik.mean(0, keepdim=True)
    found: dict[str, float] = {"correlation_masks": masks}
    for name, a, b in (("reward", log_q, log_reward), ("data", log_q - log_p, log_lik)):
        r, p = pearson(a, b), permutation_p(a, b, permutations, seed)
        found[f"correlation_{name}"] = float(r.mean())
        found[f"correlation_{name}_sd"] = float(r.std()) if len(r) > 1 else 0.0
        found[f"correlation_{name}_significant"] = float((p <= 0.05).float().mean())
    return found


def permutation_p(a: Tensor, b: Tensor, permutations: int, seed: int) -> Tensor:
    """One-sided permutation p-value of pearson(a, b) > 0 for each row.

    (1 + the number of shuffles with at least that correlation) / (1 + permutations).

    Args:
        a: (P, n).
        b: (P, n).
        permutations: How many shuffles.
        seed: Of the shuffles.

    Returns:
        (P,).
    """
    observed, count = pearson(a, b), torch.ones(len(a))
    gen = generator(seed, "permutations")
    for _ in range(permutations):
        shuffled = pearson(a[:, torch.randperm(a.shape[1], generator=gen)], b)
        count += shuffled >= observed - 1e-6  # rounding must not break a tie
    return count / (permutations + 1)


def distances(net: Attached, x: Any, labels: Tensor, *, samples: int = 20, seed: int = 0) -> dict:
    """Manhattan distance between the mean masks of pairs of inputs, in mask bits.

    Args:
        net: The network.
        x: A batch.
        labels: A class for each input, (B,), whether or not the network predicts it.
        samples: Test-time masks per mean.
        seed: Of the masks.

    Returns:
        Means over pairs of one class ("within") and of two ("between"), and under "chance" what
        masks with one keep-probability per bit for all inputs would show by sampling.

    Raises:
        ValueError: On bad x, samples < 1, labels of another shape, and where the network answers
            NaN.
    """
    check_counts(samples=samples)
    if labels.shape != (rows(x),) or labels.is_floating_point():
        got = f"{tuple(labels.shape)} of {labels.dtype}"
        raise ValueError(f"distances compares labels, ({rows(x)},) of integers, not {got}")
    draws = [sample(net, x, seed=derive(seed, "masks", k)) for k in range(samples)]
    mean = torch.cat([torch.stack(z).mean(0).flatten(1) for z in zip(*draws, strict=True)], 1).cpu()
    labels, apart = labels.cpu(), ~torch.eye(len(labels), dtype=torch.bool)
    same, found = labels[:, None] == labels, {}
    chance = torch.rand(samples, *mean.shape, generator=generator(seed, "chance")) < mean.mean(0)
    for name, m in (("", mean), ("chance_", mean if net.method.shared else chance.float().mean(0))):
        distance = torch.cdist(m, m, p=1)
        found[f"distance_{name}within"] = float(distance[same & apart].mean())
        found[f"distance_{name}between"] = float(distance[~same].mean())
    return found


def predictive_nll(net: Attached, x: Any, y: Tensor, *, samples: int = 20, seed: int = 0) -> dict:
    """Negative log-likelihood of the predictive over masks of several kinds.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        samples: Masks per example.
        seed: Of the masks.

    Returns:
        Nats per example. Masks are from "p" (or the test-time policy), from "q" given the true
        label, from p of another example ("shuffled"), and fair coins ("uniform"). "q" knows the
        answer, so it says how much a label tells about masks.
    """
    sources = {"p": "test"} | ({} if net.method.q is None else {"q": "q"})
    seen = {name: passes(net, x, y, source, samples, seed) for name, source in sources.items()}
    sets = {name: by_site(each, "masks", len(y)) for name, each in seen.items()}
    other = torch.randperm(len(y), generator=generator(seed, "other"))
    sets["shuffled"] = [z[:, other] for z in sets["p"]]
    gen = generator(seed, "uniform")
    sets["uniform"] = [torch.rand(z.shape, generator=gen).round() for z in sets["p"]]
    found = {}
    for name, masks in sets.items():
        outputs = sample_logits(net, x, masks=masks).double()
        found[f"nll_{name}"] = -float(Predictive([(net.likelihood, outputs)]).log_prob(y).mean())
    return found


def layer_dependence(net: Attached, x: Any, y: Tensor, *, samples: int = 50, seed: int = 0) -> list:
    """How much the masks of each later site tell of the earlier ones' effect.

    Σ_i I(z_{l,i}; z_{<l} | x) under the test-time policy, estimated from `samples` prefixes (which
    loses about one part in `samples`); an upper bound on the dependence between layers. Zero for
    independent layers. A unit-wise policy's dependence inside a layer counts too.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        samples: How many prefixes.
        seed: Of the prefixes.

    Returns:
        Nats per example, a number for each site but the first.

    Raises:
        ValueError: For a method without a policy.
    """
    name = net.method.test
    if getattr(net.method, name) is None:
        raise ValueError(f"{net.method.name} has no distribution over masks: no dependence to see")
    coin, found = Bernoulli().entropy, []
    for logits in by_site(passes(net, x, y, "test", samples, seed), f"{name}_logits")[1:]:
        keep = logits.sigmoid().double()
        found.append(float(coin(keep.mean(0)).mean() - coin(keep.flatten(0, 1)).mean()))
    return found
