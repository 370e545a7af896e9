"""Is q the posterior? One trained toy net a record, held against all its masks: every objective,
policy and method ("audit"), one change at a time to the paper's method and to the net
("ablations"), and a posterior of two modes ("modes")."""

import functools
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from gfo.audit import exact, modes, toys, trial
from gfo.audit.exact_audit import figures, truth
from gfo.audit.layerwise_optimum import best_layerwise, tempered_fixed_point
from gfo.core.objectives import free_objectives
from gfo.core.policies import POLICIES
from gfo.evaluate.masks import policy_divergences
from gfo.methods import create
from gfo_lab import declared
from gfo_lab.experiments.digits import EVERY
from gfo_lab.experiments.job import Job, declare

BASE = dict(prior=0.5, masks=16)  # of GFlowOut; the rest is the paper's
ON_POLICY = dict(temperature=1.0, random=0.0)
UNITWISE = dict(policy="unitwise", **ON_POLICY)

MAIN = [dict(objective=o, policy=p, **ON_POLICY) for o, p in product(free_objectives(), POLICIES)]
MAIN += [dict(policy=p) for p in POLICIES]  # the paper's objective and sampling

SWEEP = [dict(temperature=t, random=r) for t, r in product((1.0, 2.0, 4.0), (0.0, 0.1, 0.3))]


def ablation(method: str = "gflowout", **own: Any) -> tuple[str, dict[str, Any]]:
    """A method and its arguments that differ from BASE."""
    return method, {key: None if value == "learned" else value for key, value in own.items()}


ABLATIONS = {name: ablation(**change) for name, change in declared(__file__).items()}
LABELLED = ({}, dict(label=False), UNITWISE, UNITWISE | dict(label=False))
WIDTHS = [(4, 4), (5, 5), (6, 6), (8, 8)]
DEPTHS = [(12,), (6, 6), (4, 4, 4), (16,), (8, 8), (4, 4, 4, 4)]
# A factorised q under reverse KL, which is standard variational inference; then with exploration.
MEAN_FIELD = dict(objective="reverse-kl", activation="none", earlier=False, **ON_POLICY)
MODES = [MEAN_FIELD, *MAIN]
MODES += [dict(objective=o, policy=p) for o, p in product(("vargrad", "subtb"), POLICIES)]


def configuration(
    method: str, own: dict[str, Any], *, hidden: Sequence[int] = (5, 5), points: int = 40,
    labels: str = "own", refuse_easy: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """labels: "own", or "all" to ask each point for every class in turn. refuse_easy: take the
    first net that is a test, as `python -m gfo_lab audit` does."""
    made = create(method, **own)
    training = trial.TRAINING[getattr(made, "policy", "layerwise")]
    net = dict(units=list(hidden), points=points, labels=labels, refuse_easy=refuse_easy)
    return net | {"method": made.config} | training


@functools.lru_cache(maxsize=4)
def network(hidden: tuple[int, ...], points: int, seed: int, labels: str, stern: bool) -> toys.Toy:
    """The toy of a configuration, trained once per process."""
    make = trial.stern_toy if stern else lambda h, p, s: (toys.toy(h, points=p, seed=s),)
    toy = make(hidden, points, seed)[0]
    if labels == "own":
        return toy
    return toy._replace(x=toy.x.repeat(3, 1), y=torch.arange(3).repeat_interleave(points))


def run(job: Job) -> dict[str, Any]:
    """Figures of `gfo.audit_masks` as means over points, `kl_worst` the worst point's; start_,
    best_ and fixed_: tv and kl against the same target of fair coins, of the best layer-wise q,
    and of the layer-wise fixed point of a tempered training policy. Nats moved, summed over
    sites."""
    config, seed = job.config, job.seed
    hidden = tuple(config["units"])
    toy = network(hidden, config["points"], seed, config["labels"], config["refuse_easy"])
    how = dict(steps=config["steps"], lr=config["lr"])
    net = trial.trained(create(job.method, **config["method"]), toy, seed=seed, **how)
    log_q, log_reward, log_z = truth(net, toy.x, toy.y)
    table = figures(log_q, log_reward, log_z)
    found = table.mean().to_dict() | {"kl_worst": table["kl"].max()}
    coins = torch.full_like(log_reward, -sum(hidden) * torch.tensor(2.0).log())
    floors = {"start": coins, "best": best_layerwise(log_reward, hidden, restarts=2)[0]}
    tempered = {k: config["method"].get(k, v) for k, v in ON_POLICY.items()}
    if net.method.own_posterior and tempered != ON_POLICY:
        floors["fixed"] = tempered_fixed_point(log_reward, hidden, **tempered)[0]
    log_posterior = log_reward.log_softmax(1)
    for name, log_prob in floors.items():
        found[f"{name}_tv"] = exact.total_variation(log_prob, log_posterior).mean()
        found[f"{name}_kl"] = exact.kl(log_prob, log_posterior).mean()
    moved = policy_divergences(net, toy.x, toy.y, samples=20, seed=seed)
    found |= {name: sum(by_site) for name, by_site in moved.items()}
    return {name: float(value) for name, value in found.items()}


def audit_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """GFlowOut under every objective and policy; any other method as it is."""
    grid = [BASE | own for own in MAIN] if method == "gflowout" else [{}]
    return [configuration(method, own) for own in grid]


def ablation_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Temperature and random masks; the parts of the method; labels that are not the point's own;
    width and depth, on nets as they come."""
    grid = [configuration(m, BASE | own) for m, own in ABLATIONS.values() if m == method]
    if method == "gflowout":
        grid += [configuration(method, BASE | own) for own in SWEEP]
        every = dict(points=20, labels="all")
        grid += [configuration(method, BASE | own, **every) for own in LABELLED]
        for hidden, own in product(dict.fromkeys(WIDTHS + DEPTHS), (ON_POLICY, UNITWISE)):
            size = dict(hidden=hidden, points=20, refuse_easy=False)
            grid.append(configuration(method, BASE | own, **size))
    return list({str(config): config for config in grid}.values())


def mode_configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Every policy, objective and sampling on two layers of 6; by trajectory balance, a layer-wise
    q on three layers of 4 and a unit-wise one for four times the steps."""
    cells = [((6, 6), 1, own) for own in MODES]
    cells += [((4, 4, 4), 1, own) for own in (ON_POLICY, {})]
    cells += [((6, 6), 4, own) for own in (UNITWISE, dict(policy="unitwise"))]
    grid = []
    for units, longer, own in cells if method in MODE.methods else ():
        config = configuration(method, BASE | own, hidden=units)
        config["steps"] *= longer
        grid.append({name: config[name] for name in ("units", "method", "steps", "lr")})
    return grid


def run_modes(job: Job) -> dict[str, float]:
    """Nats at y = 1, where there are two modes, and the mass on each of them and outside; `kl_one`,
    mean over y = 0 and y = 2, where there is one."""
    toy = modes.two_ways(job.config["units"])
    how = dict(steps=job.config["steps"], lr=job.config["lr"])
    method = create(job.method, **job.config["method"])
    log_q, log_reward, _ = truth(trial.trained(method, toy, seed=job.seed, **how), toy.x, toy.y)
    log_post = log_reward.log_softmax(1)
    kl, back = exact.kl(log_q, log_post).tolist(), exact.kl(log_post, log_q).tolist()
    neither, *two, both = modes.shares(log_q, job.config["units"])[1].tolist()
    found = {"kl_two": kl[1], "kl_reverse_two": back[1], "kl_one": (kl[0] + kl[2]) / 2}
    mass = {"greater": max(two), "lesser": min(two), "neither": neither, "both": both}
    return found | {f"mode_{name}": value for name, value in mass.items()}


STOCHASTIC = [name for name in EVERY if create(name).stochastic]
AUDIT = declare("audit", audit_configs, run, methods=STOCHASTIC)
ABLATION = declare("ablations", ablation_configs, run)
MODE = declare("modes", mode_configs, run_modes)
