"""Is q the posterior? Methods trained on enumerable networks, against every mask."""

import copy
from collections.abc import Sequence
from typing import Any

import joblib
import pandas as pd
import torch

from gfo.audit import exact, toys
from gfo.audit.exact_audit import audit_masks, figures, truth
from gfo.audit.layerwise_optimum import best_layerwise, descend, tempered_fixed_point
from gfo.core.attach import attach
from gfo.core.attached import Attached
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import derive
from gfo.core.objectives import free_objectives
from gfo.methods import GFlowOut, IDGFlowOut, Method, RandomDropout
from gfo.train.fit import modes
from gfo.train.optim import adam

TV, KL = 0.15, 0.02  # an easier net, untrained and at the best layer-wise q, tests nothing
ATTEMPTS = 20
SAMPLING = {"on-policy": dict(temperature=1.0, random=0.0), "paper": {}}
# A unit-wise policy has more to learn and settles at a larger rate.
TRAINING: Any = {"layerwise": dict(steps=1500, lr=0.01), "unitwise": dict(steps=2000, lr=0.02)}
KEYS = ["policy", "objective", "sampling"]


def cases(objectives: str = "default") -> list[tuple[str, str, str, Method]]:
    """What is trained and audited: policy, objective and sampling as its row says, and the method.

    Args:
        objectives: "default" for trajectory balance under both policies and samplings; "all" for
            the other objectives on-policy, and the methods that are held against a posterior, too.

    Raises:
        ValueError: For anything else.
    """
    names = {"default": ["tb"], "all": free_objectives()}.get(objectives)
    if names is None:
        raise ValueError(f"objectives is {objectives!r}, needs to be 'default' or 'all'")
    fixed: Any = dict(prior=0.5, masks=16)
    found: list[tuple[str, str, str, Method]] = [
        (policy, name, sampling, GFlowOut(objective=name, policy=policy, **fixed | how))
        for name in names
        for policy in ("layerwise", "unitwise")
        for sampling, how in SAMPLING.items()
        if name == "tb" or sampling == "on-policy"
    ]
    if objectives == "all":
        found.append(("id-gflowout", "tb", "paper", IDGFlowOut()))
        found.append(("random", "none", "none", RandomDropout()))
    return found


def train_masks(
    net: Attached, x: Any, y: torch.Tensor, *, steps: int = 1500, lr: float = 0.01, seed: int = 0
) -> None:
    """Train the masks of a frozen network on fixed points.

    All points in each step, with Adam and a cosine schedule; log Z learns at 0.03. A method without
    mask parameters is left as it is.

    Args:
        net: The network.
        x: The points.
        y: Their labels.
        steps: How many.
        lr: The rate of the mask networks.
        seed: Of the masks.
    """
    net.likelihood.standardise([y])
    rates = {"masks": lr, "log_z": 0.03}
    groups = [dict(params=p, lr=rates[name]) for name, p in net.method.param_groups().items()]

    def loss(step: int) -> torch.Tensor:
        return net.method.loss(BatchPass(net, x, y, (seed, "audit", step)), len(y)).total

    if groups:
        with modes(net, backbone=False):
            descend(adam(groups), steps, loss)


@torch.random.fork_rng()  # the caller's random state stays his
def trained(method: Method, toy: toys.Toy, *, seed: int = 0, **training) -> Attached:
    """A copy of `method` attached to a copy of the toy's frozen network and trained.

    Args:
        method: As it is made, not attached.
        toy: What it is attached to.
        seed: Of the training.
        **training: steps and lr; its policy's row of `TRAINING` where not given.
    """
    torch.manual_seed(derive(seed, "audit"))
    model, method = copy.deepcopy((toy.model, method))
    net = attach(model, toy.sites, method, toy.x, likelihood=toy.likelihood)
    defaults = TRAINING[getattr(method, "policy", "layerwise")]
    train_masks(net, toy.x, toy.y, seed=seed, **(defaults | training))
    return net


def audit_toy(
    method: Method, *, seed: int = 0, hidden: Sequence[int] = (5, 5), points: int = 40, **training
) -> pd.DataFrame:
    """Train `method` on `toys.toy` and audit it.

    One call per ablation, e.g. audit_toy(GFlowOut(prior=0.5, masks=16, label=False)).

    Args:
        method: As it is made, not attached.
        seed: Of toy and training.
        hidden: Widths of the toy's hidden layers.
        points: How many to look at.
        **training: As in `trained`.

    Returns:
        `audit_masks`, a row per point.
    """
    toy = toys.toy(hidden, points=points, seed=seed)
    return audit_masks(trained(method, toy, seed=seed, **training), toy.x, toy.y)


def stern_toy(hidden: Sequence[int], points: int, seed: int) -> tuple[toys.Toy, list[dict]]:
    """A toy that is no easy test, and rows of what needs no training.

    Nets that are too easy a test (`TV`, `KL`) are refused and the next one is trained.

    Raises:
        ValueError: When all `ATTEMPTS` are.
    """
    for refused in range(ATTEMPTS):
        toy = toys.toy(hidden, points=points, seed=seed + 1000 * refused)
        net = attach(copy.deepcopy(toy.model), toy.sites, RandomDropout(), toy.x)
        uniform, log_reward, _ = truth(net, toy.x, toy.y)
        start = figures(uniform, log_reward, torch.zeros(points))  # log Z starts at 0
        untrained = row("untrained", "none", "none", start)
        if untrained["tv"] < TV:
            continue
        log_q, spread = best_layerwise(log_reward, hidden, seed=seed)
        best = row("best_layerwise", "kl", "exact", figures(log_q, log_reward, None))
        if best["kl"] < KL:
            continue
        log_q, log_z = tempered_fixed_point(log_reward, hidden)
        fixed = row("layerwise_fixed_point", "tb", "paper", figures(log_q, log_reward, log_z))
        untrained["nets_refused"], best["restarts_spread"] = refused, spread
        return toy, [untrained, best, fixed]
    easy = f"untrained TV below {TV} or best layer-wise KL below {KL} nat in all {ATTEMPTS}"
    raise ValueError(f"nets of {hidden} units are too easy a test: {easy}; more units or points")


def row(policy: str, objective: str, sampling: str, table: pd.DataFrame) -> dict:
    """One row of the audit: figures as their mean over points, and `_worst` the worst point's."""
    least = ("spearman", "pearson", "spearman_sampled", "spearman_floor")
    worst = {k: t.min() if k in least else t.max() for k, t in table.items()}
    about = dict(policy=policy, objective=objective, sampling=sampling)
    return about | table.mean().to_dict() | {f"{k}_worst": v for k, v in worst.items()}


def one_seed(seed: int, hidden: Sequence[int], points: int, objectives: str) -> list[dict]:
    """The rows of one seed. floor: what a layer-wise policy could reach under its sampling."""
    toy, rows = stern_toy(hidden, points, seed)
    best, fixed = rows[1]["kl"], rows[2]["kl"]
    rows[2]["floor"] = best
    for policy, objective, sampling, method in cases(objectives):
        net = trained(method, toy, seed=seed)
        rows.append(row(policy, objective, sampling, audit_masks(net, toy.x, toy.y)))
        if policy == "layerwise":
            rows[-1]["floor"] = fixed if sampling == "paper" else best
    return rows


def audit_seeds(
    seeds: Sequence[int] = range(5), *, hidden: Sequence[int] = (5, 5), points: int = 40,
    objectives: str = "default", jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """The audit of every case over several seeds.

    Args:
        seeds: One toy each.
        hidden: Widths of the toy's hidden layers.
        points: How many to look at.
        objectives: See `cases`.
        jobs: Processes, a seed each.

    Returns:
        One row per policy, objective and sampling; each figure's mean over seeds, and its standard
        deviation over seeds under `_sd` (NaN for one seed). Figures are those of `audit_masks`, and
        floor, KL of the best layer-wise q or, under the paper's sampling, of that objective's own
        fixed point; gap, kl / floor − 1. The fixed point's own gap is its excess over the best.

    Raises:
        ValueError: For no seed, no point or more than iris has, unknown objectives, above 16 mask
            bits, and where no toy of a seed is hard enough to be a test.
    """
    cases(objectives)
    if not seeds or min(points, *hidden) < 1 or points > 150:
        said = f"{len(seeds)} seeds and {points} points: at least one of each"
        raise ValueError(f"{said}, at most 150 points, and a unit in each layer")
    exact.all_masks(hidden := tuple(hidden))
    work = [joblib.delayed(one_seed)(s, hidden, points, objectives) for s in dict.fromkeys(seeds)]
    done: Any = joblib.Parallel(jobs)(work)
    groups: Any = pd.DataFrame([r for rows in done for r in rows]).groupby(KEYS, sort=False)
    table = groups.mean().join(groups.std().add_suffix("_sd"))
    table["gap"] = table["kl"] / table["floor"] - 1
    return table.assign(seeds=len({*seeds}), points=points).reset_index()
