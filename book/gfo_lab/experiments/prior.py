"""Where do the masks go? (q, p) epoch by epoch, without early stopping, over learning rates of the
mask networks and likelihood exponents."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gfo.core.rates import LEARNING_RATES
from gfo.evaluate.masks import policy_divergences
from gfo.train.fit import fit, predictive_nll
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.search import MLP
from gfo_lab.recipe import make_net
from gfo_lab.resumable import one_by_one

GRID = [(rate, beta) for beta in (1.0, 10.0) for rate in (1e-3, 3e-3, 1e-2)]
EPOCHS = 20  # twelve runs of a learning curve, not of a final score
POINTS = 500  # validation images on which nats are measured


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The grid of rates and exponents; none for a method without an exponent."""
    grid = []
    for rate, beta in GRID if method in PRIOR.methods else ():
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
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = job.checkpoint or Path(folder) / "run.pt"

        def trained(epochs: int) -> pd.DataFrame:
            """The history up to there; what the checkpoint holds is not trained again."""
            return fit(net, splits.train, **job.how_to_fit(seed, checkpoint, epochs=epochs))

        def measured(epochs: int) -> dict[str, float]:
            trained(epochs)
            nats = policy_divergences(net, x, y, samples=2, seed=seed)
            moved = {name: float(np.sum(nats[name])) for name in ("p_moved", "q_from_p")}
            return moved | {"valid_nll": predictive_nll(net, splits.valid, config["samples"])}

        epochs = range(1, config["epochs"] + 1)
        rows = one_by_one(epochs, measured, job.partial, job.method, progress=False)
        history = trained(config["epochs"])
    series = {name: [row[name] for row in rows] for name in rows[0]}
    series |= {"tb": list(history["tb"]), "nll": list(history["nll"])}
    return {name: [round(v, 6) for v in values] for name, values in series.items()}


PRIOR = declare("prior", configs, run)
