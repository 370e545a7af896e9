"""What an experiment is, and what one run of it is asked to do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gfo
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo_lab import declared
from gfo_lab.profiles import budget

ABOUT = declared(__file__, "experiments.toml")
EXPERIMENTS = Registry("experiment")


class Job(NamedTuple):
    """One run. config: everything that defines it but its seed, plain JSON. root: where data lie.
    checkpoint: a file from which a stopped run goes on."""

    dataset: str
    method: str
    seed: int
    config: dict[str, Any]
    root: str | Path | None = None
    device: str = "auto"
    checkpoint: Path | None = None
    progress: bool = True

    @property
    def partial(self) -> Path | None:
        """A file beside the checkpoint for what a stopped run has already measured."""
        return self.checkpoint and self.checkpoint.with_suffix(".json")

    def splits(self) -> Any:
        """The data set, split by the run's seed; config["data"] holds arguments of its own, among
        them "seed" where all runs share one split."""
        how = {"seed": self.seed} | self.config.get("data", {})
        return gfo.data.load(self.dataset, root=self.root, **how)

    def how_to_fit(self, seed: int, checkpoint: Path | None, **own: Any) -> dict[str, Any]:
        """Keywords of `fit`: the config's budget and rates, or those that are given, and where it
        runs."""
        budget = {key: self.config[key] for key in ("epochs", "batch", "lr")} | own
        here = dict(device=self.device, checkpoint=checkpoint, progress=self.progress)
        return budget | here | {"seed": seed}


@dataclass(frozen=True)
class Experiment:
    """A declaration: what is run, on what, and what comes of it.

    Args:
        name: Of the experiment, of its folder of records, and of the command's argument.
        about: One line for `python -m gfo_lab list`.
        datasets: Those it knows, the usual one first.
        methods: Those that run unless others are named.
        configs: `f(dataset, method, profile)`: everything that defines each run but its seed, as
            plain JSON; none for a method that has no place here.
        run: `f(job)`: one run; returns its metrics, plain JSON.
        baselines: Rows that are no dropout methods.
        columns: Metrics that the command's final table shows, those that there are.
        without: What is wrong with a method that `configs` has nothing for.
    """

    name: str
    about: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    configs: Callable[[str, str, str], list[dict[str, Any]]]
    run: Callable[[Job], dict[str, Any]]
    baselines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("accuracy", "accuracy_rotated", "nll", "nll_rotated", "ece")
    without: str = "has no run under that profile on that data set"


def register(experiment: Experiment) -> Experiment:
    """File the experiment under its name, for the command, for sweeps and for tests."""
    EXPERIMENTS[experiment.name] = experiment
    return experiment


def declare(name: str, configs: Callable, run: Callable, **own: Any) -> Experiment:
    """Register an experiment of `experiments.toml`; `own` are entries that a module works out."""
    about = ABOUT[name] | own
    lists = {key: tuple(value) for key, value in about.items() if not isinstance(value, str)}
    return register(Experiment(name, configs=configs, run=run, **about | lists))


def method_config(method: str, **own: Any) -> dict[str, Any]:
    """The arguments of a method, `own` ones and its defaults, as a config holds them."""
    return gfo.methods.create(method, **own).config


def base_config(method: str, profile: str, **own: Any) -> dict[str, Any]:
    """What every config of a trained network holds, under the budget of a profile; `own` are
    arguments of the method."""
    work = budget(profile)
    return {
        "method": method_config(method, **own), "epochs": work.epochs, "patience": work.patience,
        "batch": work.batch, "samples": work.samples, "lr": LEARNING_RATES, "optimizer": "adam",
    }  # fmt: skip
