"""VQA v2 itself, for those who have its files: what the paper's Table 2 asks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gfo
from gfo.core.noise import derive, generator
from gfo.core.rates import LEARNING_RATES
from gfo.models.coattention import producers
from gfo_lab.experiments.job import Job, base_config
from gfo_lab.experiments.training import mean_loss, train_members
from gfo_lab.vqa.answers import accuracy
from gfo_lab.vqa.questions import VisualQuestions

# The network of Yu et al. (2019) in its small size, with its epochs. sigma: of the noise on image
# features; the paper does not give its own.
SIZES = dict(model="mcan", features=2048, layers=6, width=512, heads=8, embedding=300)
TINY = dict(layers=1, width=8, heads=2, embedding=6, epochs=1, batch=8, samples=2)
BATCH = 256  # questions of one prediction


def configuration(method: str, profile: str) -> dict[str, Any]:
    """Every method under its defaults; not tuned. Without early stopping: all epochs run."""
    sizes = SIZES | (TINY if profile == "quick" else dict(epochs=13, batch=64))
    config = base_config(method, profile, **consumers(method, sizes)) | sizes | {"sigma": 1.0}
    return config | {"lr": LEARNING_RATES | {"backbone": 1e-4}}


def consumers(method: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """What concrete dropout is told of an MCAN, as argument of the method: who reads each site."""
    if method != "concrete":
        return {}
    return {"consumers": producers(gfo.models.mcan(**gfo.models.arguments(sizes))[0])}


def build(splits: VisualQuestions, config: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """The network of a config for the words and answers of a data set, and its sites."""
    sizes = dict(words=len(splits.words), classes=splits.classes)
    return gfo.models.build(config["model"], **gfo.models.arguments(config) | sizes)


def run(job: Job) -> dict[str, Any]:
    """Leave-one-out accuracy in [0, 1] of val2014, overall and by kind, clean and "_noisy"; nll of
    the soft targets in nats per question."""
    splits, config = job.splits(), job.config

    def make(seed: int) -> gfo.Attached:
        torch.manual_seed(derive(seed, "init"))
        model, sites = build(splits, config)
        method = gfo.methods.create(job.method, **config["method"])
        (x, _) = next(iter(DataLoader(splits.train, 2)))
        return gfo.attach(model, sites, method, x, likelihood=gfo.SoftTargets())

    # `fit` seeds the loader's generator anew each epoch
    batches = DataLoader(splits.train, config["batch"], True, generator=torch.Generator())
    net, histories = train_members(make, job, batches)
    found = mean_loss(histories, [h.iloc[-1] for h in histories])
    for suffix, sigma in (("", 0.0), ("_noisy", config["sigma"])):
        scores = tested(net, splits, sigma, config["samples"])
        found |= {name + suffix: value for name, value in scores.items()}
    return found


def tested(
    net: gfo.Attached | gfo.Ensemble, splits: VisualQuestions, sigma: float, samples: int
) -> dict[str, float]:
    """Scores of the test questions under feature noise, block by block."""
    about, said, total = splits.about["test"], [], 0.0
    for block, ((image, words), y) in enumerate(DataLoader(splits.test, BATCH)):
        which = about["image"].iloc[block * BATCH : block * BATCH + len(y)]
        probs = gfo.predict(net, (noisy(image, sigma, which.tolist()), words), samples)
        total += float(net.likelihood.predictive_nll(probs, y).sum())
        said += [splits.answers[number] for number in probs.argmax(1).tolist()]
    each = {f"accuracy_{k.replace('/', '_')}": v for k, v in accuracy(said, about).items()}
    return {"accuracy": each["accuracy_all"], "nll": total / len(about)} | each


def noisy(image: Tensor, sigma: float, which: list[int]) -> Tensor:
    """Image tokens (n, T, D) plus sigma times normal noise, the same for all questions about one
    image, whatever block they are in; padding stays padding."""
    noise = [torch.randn(image.shape[1:], generator=generator(0, "noise", i)) for i in which]
    there = (image != 0).any(-1, keepdim=True)
    return torch.where(there, image + sigma * torch.stack(noise), image)
