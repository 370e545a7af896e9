"""Where do the masks go? (q, p) epoch by epoch, without early stopping, over learning rates of the
mask networks and likelihood exponents."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gfo.core.files import read_json, write_json
from gfo.core.rates import LEARNING_RATES
from gfo.evaluate.masks import policy_divergences
from gfo.train.fit import fit, predictive_nll
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.search import MLP
from gfo_lab.recipe import make_net

GRID = [(rate, beta) for beta in (1.0, 10.0) for rate in (1e-3, 3e-3, 1e-2)]
EPOCHS = 20  # twelve runs of a learning curve, not of a final score
POINTS = 500  # validation images on which nats are measured


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The grid of rates and exponents."""
    if method not in PRIOR.methods:
        raise ValueError(f"{method} has no exponent of the likelihood: {', '.join(PRIOR.methods)}")
    grid = []
    for rate, beta in GRID:
        config = MLP | base_config(method, profile, beta=beta)
        config |= {"lr": LEARNING_RATES | {"masks": rate}, "epochs": min(EPOCHS, config["epochs"])}
        # no early stopping, and one optimiser: neither is part of what defines the run
        grid.append({k: v for k, v in config.items() if k not in ("patience", "optimizer")})
    return grid


def run(job: Job) -> dict[str, Any]:
    """Train one epoch at a time, measuring after each; nats. What was measured lies beside the
    checkpoint, so that a stopped run goes on from both."""
    splits, seed, config = job.splits(), job.seed, job.config
    net = make_net(splits, job.method, seed, config)
    x, y = (part[:POINTS] for part in splits.valid)
    series: dict[str, list[float]] = {"p_moved": [], "q_from_p": [], "valid_nll": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = job.checkpoint or Path(folder) / "run.pt"
        measured = job.partial or checkpoint.with_suffix(".json")
        if measured.exists():
            series = read_json(measured)

        def trained(epochs: int) -> pd.DataFrame:
            """The history up to there; what the checkpoint holds is not trained again."""
            return fit(
                net, splits.train, epochs=epochs, batch=config["batch"], lr=config["lr"],
                seed=seed, device=job.device, checkpoint=checkpoint, progress=job.progress,
            )  # fmt: skip

        for epoch in range(len(series["p_moved"]) + 1, config["epochs"] + 1):
            trained(epoch)
            nats = policy_divergences(net, x, y, samples=2, seed=seed)
            series["p_moved"].append(float(np.sum(nats["p_moved"])))
            series["q_from_p"].append(float(np.sum(nats["q_from_p"])))
            series["valid_nll"].append(predictive_nll(net, splits.valid, config["samples"]))
            write_json(measured, series)
        history = trained(config["epochs"])
    series |= {"tb": list(history["tb"]), "nll": list(history["nll"])}
    return {name: [round(v, 6) for v in values] for name, values in series.items()}


PRIOR = declare("prior", configs, run)
