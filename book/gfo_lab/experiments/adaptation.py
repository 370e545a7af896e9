"""Learning again from clean labels: Figure 2, bottom (the paper's A.1.4).

A network is trained while 30 % of the labels are random, then trained on with a few clean ones; a
fresh network sees those alone. Both get the same epochs and the same recipe.
"""

import copy
import dataclasses
from typing import Any

from torch import Tensor

import gfo
from gfo.core.noise import derive, generator
from gfo.train.fit import fit
from gfo_lab.experiments.cifar import cells, logits_of, reestimated, scores
from gfo_lab.experiments.job import Job, declare
from gfo_lab.experiments.training import fitted
from gfo_lab.recipe import AUGMENTS, make_net, recipe

NOISE = 0.3  # share of labels drawn anew
EPOCHS = 5  # on the clean ones
# Share of the backbone's peak learning rate: a trained network is moved more gently.
GENTLY = {"again": 0.1, "scratch": 1.0}


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Those of `cifar`, with what the second training adds. ValueError for several networks."""
    if gfo.methods.create(method).members > 1:
        raise ValueError(f"{method} is several networks: adapt one")
    own: dict[str, Any] = {"labels": [1000, 2000, 4000, 8000]}
    if profile == "quick":  # noisy labels are learnt more slowly
        own = {"labels": [100, 400], "epochs": 12, "patience": 12}
    own |= {"noise": NOISE, "clean_epochs": EPOCHS, "gently": GENTLY}
    return [config | own for config in cells(dataset, method, profile)]


def run(job: Job) -> dict[str, Any]:
    """Train on noisy labels, then on clean ones; accuracies in [0, 1], nll in nats, on clean test
    images. "again" and "scratch" hold a list over numbers of clean labels."""
    splits, config = job.splits(), job.config
    if not config["images"] or max(config["labels"]) > len(splits.train[1]):
        raise ValueError(f"need test images, and {max(config['labels'])} labels to train on")
    noisy = with_noise(splits, config["noise"], job.seed)
    net, _ = fitted(noisy, job)
    wrong = (noisy.train[1] != splits.train[1]).double().mean()
    found = {"wrong_labels": float(wrong), "bf16": recipe(config, job.device)["bf16"]}
    # under statistics of test-time masks, as those that learn again: these gain more than that
    found["noisy"] = tested(reestimated(copy.deepcopy(net), splits, job), splits, job)
    for start in GENTLY:
        nets = (learn(net, start, count, splits, job) for count in config["labels"])
        rows = [tested(each, splits, job) for each in nets]
        found[start] = {key: [row[key] for row in rows] for key in rows[0]}
    return found


ADAPTATION = declare("adaptation", configs, run)


def with_noise(splits: gfo.data.Splits, share: float, seed: int) -> gfo.data.Splits:
    """The splits with `share` of the training and of the validation labels drawn anew: whoever
    trains on noisy labels has no clean ones to stop by. Fixed by the seed, for every method."""

    def noisy(part: tuple[Tensor, Tensor], name: str) -> tuple[Tensor, Tensor]:
        x, y = part
        return x, gfo.data.random_labels(y, splits.classes, share, generator(seed, "labels", name))

    train, valid = noisy(splits.train, "train"), noisy(splits.valid, "valid")
    return dataclasses.replace(splits, train=train, valid=valid)


def learn(
    noisy: gfo.Attached, start: str, count: int, splits: gfo.data.Splits, job: Job
) -> gfo.Attached:
    """Train on the first `count` training images under their true labels, from the noisy network
    ("again") or from fresh weights ("scratch"). The last weights stay: a validation set would be
    clean labels too."""
    config, seed = job.config, derive(job.seed, start, count)
    net = copy.deepcopy(noisy) if start == "again" else make_net(splits, job.method, seed, config)
    rate = config["gently"][start] * config["lr"]["backbone"]
    job = job._replace(config=config | {"lr": config["lr"] | {"backbone": rate}})
    some = tuple(part[:count] for part in splits.train)
    checkpoint = job.checkpoint and job.checkpoint.with_suffix(f".{start}{count}.pt")
    how = job.how_to_fit(seed, checkpoint, epochs=config["clean_epochs"])
    fit(net, some, **how, **recipe(job.config, job.device))
    gfo.train.reestimate(net, some[0], augment=AUGMENTS[config["augment"]], seed=seed)
    return net


def tested(net: gfo.Attached, splits: gfo.data.Splits, job: Job) -> dict[str, Any]:
    """Scores on the clean test images."""
    x, y = (part[: job.config["images"]] for part in splits.test)
    return scores(net, logits_of(net, x, job), y)
