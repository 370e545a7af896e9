"""CIFAR under shift: every method on a ResNet-18, and one change at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import gfo
from gfo.core.batch import pick_device
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo.data.corruptions import CORRUPTIONS, SEVERITIES
from gfo.data.published import has_cifar_c
from gfo.evaluate.metrics import evaluate, selective_accuracy
from gfo.evaluate.uncertainty import SCORES, detection
from gfo.train.batchnorm import reestimate
from gfo_lab import declared
from gfo_lab.experiments.digits import COVERAGES, EVERY, rotated
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.training import fitted
from gfo_lab.experiments.variations import Changes, vary, with_configs
from gfo_lab.recipe import AUGMENTS, recipe

ABOUT = declared(__file__)
SETUPS = Registry("profile of the CIFAR experiments", ABOUT["setups"])
SETUPS["long"] = {k: v for k, v in SETUPS["full"].items() if k != "epochs"}  # the budget's 60
SETTINGS: dict[str, dict[str, Any]] = ABOUT["settings"]
SITES = {"mc-improved": "*bn?"}  # behind every convolution; the others mask each block once
OUTSIDE: dict[str, list[str]] = ABOUT["outside"]
VALID_SAMPLES = 5  # masks of the validation that picks the epoch
MEMORY = {"cpu": 16 * 2**20}  # of a folded pass: 256 rows at width 16, which its cache likes


def configuration(dataset: str, method: str, profile: str) -> dict[str, Any]:
    """The config of one method: a one-cycle run of SGD on the backbone and Adam on the masks, so
    that validation picks the best epoch but never stops a run. ValueError where the data set has
    no images of 32×32×3."""
    if dataset not in OUTSIDE:
        raise ValueError(f"no CIFAR experiment on {dataset!r}; known: {', '.join(OUTSIDE)}")
    setup = dict(SETUPS[profile])
    rates, sizes = setup.pop("rates"), setup.pop("sizes")
    digits = dataset == "digits"
    config = base_config(method, profile, **SETTINGS.get(method, {})) | {
        "model": "resnet18", "data": {"size": 32, "channels": 3} if digits else {"sizes": sizes},
        "augment": "none" if digits else "crop-flip", "channels_last": True,
        "optimizer": "sgd", "schedule": "one-cycle", "lr": LEARNING_RATES | rates,
        "valid_samples": VALID_SAMPLES,
    }  # fmt: skip
    config |= setup | ({"sites": SITES[method]} if method in SITES else {})
    return config | {"patience": config["epochs"]}


def run(job: Job) -> dict[str, Any]:
    """Train and measure; accuracies and shares in [0, 1], nll in nats. Test images and their
    changes are the same for every method and seed."""
    splits, config = job.splits(), job.config
    if has_cifar_c(job.dataset, job.root):  # before an hour of training, not behind it
        for name in CORRUPTIONS:
            gfo.data.cifar_c(job.dataset, name, 1, job.root)
    net, histories = fitted(splits, job)
    found = {"epochs": sum(map(len, histories)), "bf16": recipe(config, job.device)["bf16"]}
    found["batchnorm"] = settle(net, splits, job)
    x, y = splits.test
    some = slice(config["images"])
    logits = logits_of(net, x[: config["clean"]], job)
    found |= scores(net, logits, y[: config["clean"]])
    turned = logits_of(net, rotated(splits)[some], job)
    found |= scores(net, turned, y[some], "_rotated")
    found |= corrupted(net, splits, job)
    return found | outside(net, logits[:, some], splits, job)


def logits_of(net: gfo.Attached | gfo.Ensemble, x: Tensor, job: Job) -> Tensor:
    """Logits (S, B, K) under the masks of the test."""
    memory = MEMORY.get(pick_device(job.device).type)
    return gfo.sample_logits(net, x, job.config["samples"], memory=memory)


def measured(net, x: Tensor, y: Tensor, job: Job) -> dict[str, float]:
    """Scores of the mean over masks."""
    return evaluate(net.likelihood.probs(logits_of(net, x, job)).mean(0), y)


def settle(
    net: gfo.Attached | gfo.Ensemble, splits: gfo.data.Splits, job: Job
) -> dict[str, dict[str, float]]:
    """Re-estimate BatchNorm's statistics under test-time masks, and say what that changed: scores
    under the statistics of the training ("trained") and after ("tested"), on the same images."""
    x, y = (part[: job.config["images"]] for part in splits.test)
    images = splits.train[0][: job.config["statistics"]]
    trained = measured(net, x, y, job)
    for member in getattr(net, "nets", [net]):  # of an ensemble
        reestimate(member, images, augment=AUGMENTS[job.config["augment"]], seed=job.seed)
    return {"trained": trained, "tested": measured(net, x, y, job)}


def scores(net, logits: Tensor, y: Tensor, suffix: str = "") -> dict[str, Any]:
    """What a predictive is worth on labelled images; logits (S, B, K)."""
    probs = net.likelihood.probs(logits).mean(0)
    selective = {"selective": selective_accuracy(probs, y, COVERAGES)}
    return {name + suffix: value for name, value in (evaluate(probs, y) | selective).items()}


def corrupted(net, splits: gfo.data.Splits, job: Job) -> dict[str, Any]:
    """Scores by severity, under the official arrays where they lie under root, else our own."""
    official = has_cifar_c(job.dataset, job.root)
    x, y = (part[: job.config["images"]] for part in splits.test)
    raw, found = splits.raw(x), {"corruptions": "official" if official else "own"}
    for name in CORRUPTIONS:
        rows = []
        for severity in SEVERITIES:
            if official:
                changed = gfo.data.cifar_c(job.dataset, name, severity, job.root)[0][: len(x)]
            else:
                changed = gfo.data.corrupt(raw, name, severity)
            rows.append(measured(net, splits.normalised(changed), y, job))
        found |= {f"{key}_by_{name}": [row[key] for row in rows] for key in rows[0]}
    return found


def outside(net, inside: Tensor, splits: gfo.data.Splits, job: Job) -> dict[str, Any]:
    """Every uncertainty score against every set outside; inside: logits (S, n, K) of test images.
    Sets whose files are not there are named in "missing"."""
    found: dict[str, Any] = {"outside": {}, "missing": []}
    for name in OUTSIDE[job.dataset]:
        try:
            x = gfo.data.outside(name, splits, job.config["images"], job.root)
        except FileNotFoundError:
            found["missing"].append(name)
            continue
        logits = logits_of(net, x, job)
        found["outside"][name] = {
            score: detection(f(inside), f(logits)) for score, f in SCORES.items()
        }
    return found


CIFAR = declare("cifar", lambda *about: [configuration(*about)], run, methods=EVERY)

CHANGES: Mapping[str, Changes] = Registry("method with variations", ABOUT["changes"])
FIGURE_5, KEPT, ON_POLICY = CHANGES["gflowout"]  # which has them all


def variants(dataset: str, method: str, profile: str) -> dict[str, dict[str, Any]]:
    """Full configs of all changes of `method` by name. ValueError where it has none."""
    return vary(method, configuration(dataset, method, profile), CHANGES[method])


def recorded(change: str, dataset: str, profile: str, out: Path | None = None) -> pd.DataFrame:
    """The records of one change, as `records.read` gives them, of all methods that have it.
    ValueError where none has."""
    methods = [m for m, own in CHANGES.items() if change in own]
    if not methods:
        known = ", ".join(dict.fromkeys(name for own in CHANGES.values() for name in own))
        raise ValueError(f"no variation {change!r}; known: {known}")
    configs = [variants(dataset, m, profile)[change] for m in methods]
    return with_configs("cifar-variations", configs, out, dataset=dataset, profile=profile)


CIFAR_VARIATIONS = declare(
    "cifar-variations", lambda *about: list(variants(*about).values()), run, methods=CHANGES
)
