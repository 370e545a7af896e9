"""CIFAR under shift: every method on a fast network or a ResNet-18, and one change at a time."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import gfo
from gfo.core.batch import pick_device
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo.data.corruptions import CORRUPTIONS, SEVERITIES
from gfo.data.published import has_cifar_c
from gfo.evaluate import masks
from gfo.evaluate.metrics import evaluate, selective_accuracy
from gfo.evaluate.uncertainty import SCORES, detection
from gfo.train.batchnorm import reestimate
from gfo_lab import declared
from gfo_lab.ensembles import by_size, calibrated
from gfo_lab.experiments.digits import COVERAGES, EVERY, rotated
from gfo_lab.experiments.halves import grid
from gfo_lab.experiments.job import Job, base_config, declare
from gfo_lab.experiments.search import GROUPS, SAME_AS, on_record
from gfo_lab.experiments.training import WAYS
from gfo_lab.experiments.variations import Changes, vary
from gfo_lab.recipe import AUGMENTS, recipe

ABOUT = declared(__file__)
SEARCHES = ("third", "whole")  # behind `fast`
SETUPS = Registry("profile of the CIFAR experiments", ABOUT["setups"])
SETUPS |= {name: SETUPS["fast"] | ABOUT[name] for name in SEARCHES}
SETTINGS: dict[str, dict[str, Any]] = ABOUT["settings"]
SITES = {"mc-improved": "*bn?"}  # behind every convolution; the others mask each block once
OUTSIDE: dict[str, list[str]] = ABOUT["outside"]
CELLS: dict[str, dict[str, Any]] = ABOUT["cells"]
MEMORY = {"cpu": 16 * 2**20}  # of a folded pass: 256 rows at width 16, which its cache likes


def configuration(dataset: str, method: str, profile: str, **own: Any) -> dict[str, Any]:
    """The config of one method: a one-cycle run of SGD on the backbone and Adam on the masks, so
    that validation picks the best epoch but never stops a run. `own` are arguments of the method,
    learning rates, "lr" and "masks_lr", what the "row" is called, or "weights" and their setting,
    see `WAYS`. ValueError where the data set has no images of 32×32×3."""
    if dataset not in OUTSIDE:
        raise ValueError(f"no CIFAR experiment on {dataset!r}; known: {', '.join(OUTSIDE)}")
    setup = dict(SETUPS[profile])
    rates, sizes, data = dict(setup.pop("rates")), setup.pop("sizes"), setup.pop("data", {})
    rates |= {group: own.pop(name) for group, name in GROUPS.items() if name in own}
    setup |= {k: own.pop(k) for k in ("row", "weights", "precision", "rate") if k in own}
    own = SETTINGS.get(method, {}) | setup.pop("settings", {}).get(method, {}) | own
    digits = dataset == "digits"
    config = base_config(method, profile, **own) | {
        "data": ({"size": 32, "channels": 3} if digits else {"sizes": sizes}) | data,
        "augment": "none" if digits else "crop-flip", "channels_last": True, "model": "resnet18",
        "optimizer": "sgd", "schedule": "one-cycle", "lr": LEARNING_RATES | rates,
        "valid_samples": 5,  # masks of the validation that picks the epoch
    }  # fmt: skip
    config |= setup | ({"sites": SITES[method]} if method in SITES else {})
    return config | {"patience": config["epochs"]}


def cells(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """The configs of a method: under the searches and "fast" one per `points` of each of its rows,
    under other profiles one. ValueError where an earlier search is not complete."""
    if profile not in (*SEARCHES, "fast"):
        return [configuration(dataset, method, profile)]
    same, last = SAME_AS.get(method, method), profile == "fast"
    return [
        configuration(dataset, method, profile, **point, **({"row": row} if last else {}))
        for row, cell in CELLS.get(method, {}).items()
        if last or method == same  # the others have no search of their own
        for point in points(dataset, same, cell, profile)
    ]


def points(dataset: str, method: str, cell: dict[str, Any], profile: str) -> list[dict[str, Any]]:
    """The points of a row's `cell`: all under "third", two under "whole", the better under "fast".

    The two are the best of each of the two best values of the cell's first axis: a short training
    likes lighter rates than a long one does, and shall choose none alone. The best has the least
    validation NLL in the search before, on CIFAR-10 or digits.
    """
    if profile == "third":
        return list(grid({"": cell}).values())
    before, on = SEARCHES[profile == "fast"], dataset.replace("100", "10")
    tried = points(dataset, method, cell, before)
    configs = [configuration(on, method, before, **point) for point in tried]
    nll = on_record(configs, "valid_nll", "cifar", on, method, before)
    order = [tried[i] for i in sorted(range(len(tried)), key=nll.__getitem__)]
    axis = next(name for name, values in cell.items() if isinstance(values, list))
    best = {point[axis]: point for point in reversed(order)}  # of each value the best
    return sorted(best.values(), key=order.index)[: 1 if profile == "fast" else 2]


def run(job: Job) -> dict[str, Any]:
    """Train and measure; accuracies and shares in [0, 1], nll in nats. Test images and their
    changes are the same for every method and seed."""
    splits, config = job.splits(), job.config
    for name in CORRUPTIONS:  # what they read is missed before an hour of training, not behind it
        changed(splits.raw(splits.test[0][:1]), name, 1, job)
    net, histories = WAYS[config.get("weights", "none")](splits, job)
    found = {"epochs": sum(map(len, histories)), "bf16": recipe(config, job.device)["bf16"]}
    if not config["images"]:  # a search, which tests nothing
        reestimated(net, splits, job)
        return found | {"valid_nll": measured(net, *splits.valid, job)["nll"]}
    found["batchnorm"] = settle(net, splits, job)
    x, y = splits.test
    some = slice(config["images"])
    logits = logits_of(net, x[: config["clean"]], job)
    seen = {"": (logits, y[: config["clean"]])}
    seen["_rotated"] = logits_of(net, rotated(splits)[some], job), y[some]
    seen["tune"] = logits_of(net, splits.tune[0], job), splits.tune[1]
    fold, probs = (-1, len(getattr(net, "nets", [net]))), net.likelihood.probs
    # members of an ensemble take turns
    parts = {k: (probs(a).unflatten(0, fold).mean(0), y) for k, (a, y) in seen.items()}
    for name in ("", "_rotated"):
        found |= scores(net, *seen[name], name) | calibrated(parts, name)
        found |= by_size(parts, name) if job.method == "ensemble" else {}
    found |= masks_of(net, splits, job) | corrupted(net, splits, job)
    return found | outside(net, logits[:, some], splits, job)


def masks_of(net, splits: gfo.data.Splits, job: Job) -> dict[str, Any]:
    """How masks of the first `points` test images differ and, where q reads the label, what its
    log-probability follows. One posterior for all images would have to be asked about all."""
    x, y = (part[: job.config.get("points", 0)] for part in splits.test)
    if not len(y) or not isinstance(net, gfo.Attached):
        return {}
    found = masks.distances(net, x, y) | masks.policy_divergences(net, x, y)
    return found if net.method.shared else found | masks.correlations(net, x, y)


def logits_of(net: gfo.Attached | gfo.Ensemble, x: Tensor, job: Job) -> Tensor:
    """Logits (S, B, K) under the masks of the test."""
    memory = MEMORY.get(pick_device(job.device).type)
    return gfo.sample_logits(net, x, job.config["samples"], memory=memory)


def measured(net, x: Tensor, y: Tensor, job: Job) -> dict[str, float]:
    """Scores of the mean over masks."""
    return evaluate(net.likelihood.probs(logits_of(net, x, job)).mean(0), y)


def settle(net, splits: gfo.data.Splits, job: Job) -> dict[str, dict[str, float]]:
    """Re-estimate BatchNorm's statistics under test-time masks, and say what that changed: scores
    under the statistics of the training ("trained") and after ("tested"), on the same images."""
    x, y = (part[: job.config["images"]] for part in splits.test)
    trained = measured(net, x, y, job)
    return {"trained": trained, "tested": measured(reestimated(net, splits, job), x, y, job)}


def reestimated(net, splits: gfo.data.Splits, job: Job):
    """The network or ensemble, its BatchNorm statistics now those of test-time masks."""
    images = splits.train[0][: job.config["statistics"]]
    for member in getattr(net, "nets", [net]):  # of an ensemble
        reestimate(member, images, augment=AUGMENTS[job.config["augment"]], seed=job.seed)
    return net


def scores(net, logits: Tensor, y: Tensor, suffix: str = "") -> dict[str, Any]:
    """What a predictive is worth on labelled images; logits (S, B, K)."""
    probs = net.likelihood.probs(logits).mean(0)
    selective = {"selective": selective_accuracy(probs, y, COVERAGES)}
    return {name + suffix: value for name, value in (evaluate(probs, y) | selective).items()}


def corrupted(net, splits: gfo.data.Splits, job: Job) -> dict[str, Any]:
    """Scores by severity under each of the corruptions, and which those were."""
    x, y = (part[: job.config["images"]] for part in splits.test)
    official = has_cifar_c(job.dataset, job.root)
    raw, found = splits.raw(x), {"corruptions": "official" if official else "own"}
    for name in (*CORRUPTIONS, "blur"):
        shifted = (splits.normalised(changed(raw, name, s, job)) for s in SEVERITIES)
        rows = [measured(net, images, y, job) for images in shifted]
        found |= {f"{key}_by_{name}": [row[key] for row in rows] for key in rows[0]}
    return found


def changed(raw: Tensor, name: str, severity: int, job: Job) -> Tensor:
    """The first test images `raw` under a corruption: the official arrays where they lie under
    root, else our own; the blur is always our own, of CIFAR-10-C's widths, edges reflected."""
    if name == "blur":
        from torchvision.transforms.functional import gaussian_blur  # takes two seconds

        return gaussian_blur(raw, [9, 9], [ABOUT["blur"][severity - 1]] * 2)
    if has_cifar_c(job.dataset, job.root):
        return gfo.data.cifar_c(job.dataset, name, severity, job.root)[0][: len(raw)]
    return gfo.data.corrupt(raw, name, severity)


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
        found["outside"][name] = {k: detection(f(inside), f(logits)) for k, f in SCORES.items()}
    return found


CIFAR = declare("cifar", cells, run, methods=EVERY)

CHANGES: Mapping[str, Changes] = Registry("method with variations", ABOUT["changes"])


def variants(dataset: str, method: str, profile: str) -> dict[str, dict[str, Any]]:
    """Full configs of all changes of `method` by name. ValueError where it has none."""
    return vary(method, configuration(dataset, method, profile), CHANGES[method])


CIFAR_VARIATIONS = declare(
    "cifar-variations", lambda *about: list(variants(*about).values()), run, methods=CHANGES
)
