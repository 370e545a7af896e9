"""What a posterior over masks is for: the lower half of a digit from its upper half, where one
input has many right outputs, beside the digit's label, where it has one."""

import timeit
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import gfo
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo.evaluate import marginal, masks
from gfo.train.fit import predictive_nll
from gfo_lab import declared, records
from gfo_lab.experiments import search
from gfo_lab.experiments.job import Experiment, Job, base_config, register
from gfo_lab.experiments.training import fitted

ABOUT = declared(__file__)
SETUPS = Registry("profile of the experiments on halves", ABOUT["setups"])
CELLS: dict[str, dict[str, dict[str, dict[str, Any]]]] = ABOUT["cells"]
INPUTS = {"mnist-halves": 392, "digits-halves": 32, "mnist": 784, "digits": 784, "inverse": 1}


def grid(cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Cells with an axis (a list) as one cell per value, which its name then says."""
    found = {}
    for name, cell in cells.items():
        for point in search.grid({k: v for k, v in cell.items() if isinstance(v, list)}):
            found[", ".join([name, *(f"{k} {v}" for k, v in point.items())])] = cell | point
    return found


def configuration(dataset: str, method: str, profile: str, cell: dict[str, Any]) -> dict[str, Any]:
    """The full config of one cell of a method."""
    setup, known = dict(SETUPS[profile]), ABOUT["base"].get(method, {})
    own = known | cell
    rates = {group: own.pop(name) for group, name in search.GROUPS.items() if name in own}
    if not dataset.startswith("mnist"):  # of the others there are few
        setup.pop("data", None)
    config = base_config(method, profile, **own) | setup
    config |= {"model": "mlp", "inputs": INPUTS[dataset], "lr": LEARNING_RATES}
    config |= ABOUT["data"].get(dataset, {})
    # equal passes: no run is cut short
    return config | {"lr": config["lr"] | rates, "patience": config["epochs"]}


def named(experiment: str, dataset: str, method: str, profile: str) -> dict[str, dict[str, Any]]:
    """The configs of one experiment's cells by name, with what the experiment has of its own."""
    cells = grid(CELLS[experiment].get(method, {}))
    found = {name: configuration(dataset, method, profile, cell) for name, cell in cells.items()}
    return {name: config | ABOUT["own"].get(experiment, {}) for name, config in found.items()}


def configs(experiment: str, dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Those of its cells that no earlier experiment runs; `read` finds all of them."""
    # the inverse problem has one experiment, which runs what others would
    earlier = [] if dataset == "inverse" else list(CELLS)[: list(CELLS).index(experiment)]
    cells = [named(e, dataset, method, profile) for e in earlier if method in CELLS[e]]
    done = [config for each in cells for config in each.values()]
    return [c for c in named(experiment, dataset, method, profile).values() if c not in done]


def read(experiment: str, dataset: str, profile: str, out: Path | None = None) -> pd.DataFrame:
    """The records of an experiment's cells, whichever experiment ran them, each with the name of
    its `cell`."""
    names = {
        (method, records.config_hash(config)): name
        for method in CELLS[experiment]
        for name, config in named(experiment, dataset, method, profile).items()
    }
    frame = pd.concat(records.read(e, out, dataset=dataset, profile=profile) for e in CELLS)
    rows = [names.get((row["method"], row["config_hash"])) for _, row in frame.iterrows()]
    frame = frame.assign(cell=rows).dropna(subset="cell")
    return frame.drop_duplicates(["cell", "seed"]) if len(frame) else frame


def run(job: Job) -> dict[str, Any]:
    """Train and measure; nats per image. Choices read `valid_nll`, the test part is looked at once,
    and not at all where the config has no `images`."""
    splits, config = job.splits(), job.config
    bits, count = splits.train[1].is_floating_point(), config["images"]
    likelihood = gfo.Gaussian() if job.dataset == "inverse" else gfo.Bernoulli() if bits else None
    net, (history,) = fitted(splits, job, likelihood)
    assert isinstance(net, gfo.Attached)  # no experiment here is of an ensemble
    found = {
        "valid_nll": predictive_nll(net, splits.valid, config["choose"], seed=1),
        "best_epoch": int(history.loc[history["valid_nll"].idxmin(), "epoch"]),
        "epochs": len(history), "train_s": float(history["seconds"].sum()),
    }  # fmt: skip
    x, y = (part[: config["batch"]] for part in splits.train)
    found |= {"passes": passes(net, x, y), "step_ms": step_ms(net, x, y)}
    if "look" in config:
        return found | looked_at(net, *(t[: config["look"]] for t in splits.test), job)
    return found | (tested(net, *(t[:count] for t in splits.test), config) if count else {})


def looked_at(net: gfo.Attached, x: Tensor, y: Tensor, job: Job) -> dict[str, Any]:
    """What the masks say of half digits: the paper's A.2 by 256 masks of q per image, and Figure 6
    by the digits' classes, which no network has seen."""
    whole = job._replace(dataset=job.dataset.removesuffix("-halves")).splits()
    apart = masks.distances(net, x, whole.test[1][: len(y)], seed=job.seed)
    return apart | masks.correlations(net, x, y, masks=256, seed=job.seed)


def tested(net: gfo.Attached, x: Tensor, y: Tensor, config: dict[str, Any]) -> dict[str, Any]:
    """Nats per test image, by masks of p and, where q reads y, by masks of q; and per site the nats
    by which the masks of 500 of them have moved."""
    curve = -marginal.log_predictive_curve(net, x, y, config["counts"])  # (S, n)
    mean = curve.mean(1).tolist()
    found = {"nll": mean[-1], "nll_20": mean[config["counts"].index(20)], "nll_curve": mean}
    found |= {"nll_sd": float(curve[-1].std())} | masks.policy_divergences(net, x[:500], y[:500])
    if net.method.q is not None and net.method.reads_label:
        weighed = marginal.importance_log_predictive(net, x, y, config["proposals"])
        found |= {"nll_is": -float(weighed.log_prob.mean()), "ess": float(weighed.ess.mean())}
    return found


def passes(net: gfo.Attached, x: Tensor, y: Tensor) -> float:
    """Passes of the backbone per example in one training step, forward ones included."""
    rows: list[int] = []
    hook = net.model.register_forward_hook(lambda _, given, out: rows.append(len(given[0])))
    with torch.no_grad():
        net.eval().loss(x, y, n=len(y))
    hook.remove()
    return sum(rows) / len(y)


def step_ms(net: gfo.Attached, x: Tensor, y: Tensor) -> float:
    """Median time of loss and gradient of one batch, of 20, in milliseconds."""
    times = timeit.repeat(lambda: net.loss(x, y, n=len(y)).total.backward(), number=1, repeat=20)
    net.zero_grad(set_to_none=True)
    return 1000 * float(pd.Series(times).median())


for _name, _what in ABOUT["about"].items():
    register(Experiment(
        _name, _what, methods=tuple(CELLS[_name]),
        datasets=tuple(name for name in INPUTS if (name == "inverse") == (_name == "inverse")),
        configs=partial(configs, _name), run=run, without=f"has no cell of {_name}",
        columns=("valid_nll", "nll", "nll_20", "nll_is", "passes", "step_ms"),
    ))  # fmt: skip
