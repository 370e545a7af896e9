"""Questions about pictures: MCAN on easy-VQA, clean and under feature noise; what the paper's
Table 2 asks of VQA v2."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

import gfo
from gfo.core.noise import derive
from gfo.core.rates import LEARNING_RATES
from gfo.data.splits import data_root
from gfo.evaluate import masks, metrics
from gfo.train.fit import fit
from gfo_lab.experiments import vqa_v2
from gfo_lab.experiments.digits import EVERY
from gfo_lab.experiments.job import Job, declare, method_config
from gfo_lab.experiments.training import mean_loss, train_members
from gfo_lab.records import config_hash
from gfo_lab.stats import clustered_error
from gfo_lab.vqa.questions import VisualQuestions, add_noise

NOISE = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # standard deviations of a feature
DROP = 0.75  # noisy accuracy over clean in the paper's Table 2, each of its four rows within 0.02
# The smallest of NOISE at which `valid_accuracy_by_noise` of the warm start of seed 0 falls to DROP
# of its clean value; validation questions only. One for all seeds, whose own choice is recorded.
SIGMA = 5.0
MODEL = dict(model="mcan", layers=2, width=64, heads=4)
WARM = dict(keep=0.9, lr=1e-3, batch=128, target=0.97, most=15)
# questions: of the training part; None for all. images: of the test part; sweep: for each noise.
FULL = dict(questions=None, images=1000, sweep=300, epochs=2, samples=20, warm=WARM)
TINY = dict(questions=640, images=20, sweep=10, epochs=1, samples=4, warm=WARM | dict(most=1))


def configs(dataset: str, method: str, profile: str) -> list[dict[str, Any]]:
    """Settings are the defaults of each method, not tuned."""
    if dataset == "vqa-v2":
        return [vqa_v2.configuration(method, profile)]
    own = vqa_v2.consumers(method, MODEL)
    config = MODEL | {"method": method_config(method, **own), "batch": 64, "sigma": SIGMA}
    config["lr"] = LEARNING_RATES | {"backbone": 5e-4}
    return [config | (FULL if profile == "full" else TINY)]


def run(job: Job) -> dict[str, Any]:
    """Every method goes on from one network trained under dropout 0.1 until it answers yes/no
    questions, the same for all methods of a seed (each member of an ensemble has its own): without
    that, runs of equal length differ by when they leave the language prior.

    Accuracies and shares in [0, 1], nats, noise in standard deviations of a feature; image_se:
    standard errors for the choice of test images, whose questions are dependent; _noisy: at the
    configuration's sigma."""
    if job.dataset == "vqa-v2":
        return vqa_v2.run(job)
    splits, config = job.splits(), job.config

    def make(seed: int) -> gfo.Attached:
        method = gfo.methods.create(job.method, **config["method"])
        start = warm_start(splits, job, seed)
        torch.manual_seed(derive(seed, "masks"))
        return gfo.attach(*start, method, first(splits.train, 2)[0])

    net, histories = train_members(make, job, first(splits.train, config["questions"]))
    found = warm_figures(splits, job) | measure(net, splits, config)
    found |= mean_loss(histories, [h.iloc[-1] for h in histories])
    seconds = sum(float(h["seconds"].sum()) for h in histories)
    return found | {"epochs": config["epochs"], "train_s": seconds}


EASY_VQA = declare("easy-vqa", configs, run, methods=EVERY)


def first(part: tuple, count: int | None) -> tuple:
    (image, words), y = part
    return (image[:count], words[:count]), y[:count]


def warm_start(splits: VisualQuestions, job: Job, seed: int) -> tuple[nn.Module, list[str]]:
    """The network that all methods of a seed start from, and its sites: trained once, kept beside
    the data. Epochs go on until validation accuracy reaches the target, or to the most allowed."""
    config, warm = job.config, job.config["warm"]
    key = config_hash({k: config[k] for k in ("warm", "questions", *MODEL)})
    folder = data_root(job.root) / "easy-vqa"
    path = folder / f"warm-{key}-split-{job.seed}-seed-{seed}.pt"
    torch.manual_seed(derive(seed, "init"))
    model, sites = vqa_v2.build(splits, config)
    folder.mkdir(parents=True, exist_ok=True)
    progress = path.with_suffix(".run.pt")
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            progress.unlink(missing_ok=True)  # of a kill between the two
            return gfo.load(path, model).detach(), sites
        plain = gfo.methods.create("random", keep=warm["keep"])
        net = gfo.attach(model, sites, plain, first(splits.train, 2)[0])
        some = first(splits.train, config["questions"])
        how = dict(batch=warm["batch"], lr={"backbone": warm["lr"]})
        for epochs in range(1, warm["most"] + 1):
            fit(net, some, **job.how_to_fit(seed, progress, epochs=epochs, **how))
            if job.checkpoint:  # this job's time, though the work lies beside the data
                job.checkpoint.with_suffix(".warm").touch()
            if masks_off(net.model, splits.valid) >= warm["target"]:
                break
        gfo.save(net.cpu(), path)
        progress.unlink()
        return net.detach(), sites


@torch.no_grad()
def masks_off(model: nn.Module, part: tuple, sigma: float = 0.0, which: Any = None) -> float:
    """Accuracy of the bare model on a part, in one pass; `which` image each question is about."""
    (image, words), y = part
    image = add_noise(image, sigma, which) if sigma else image
    device = next(model.parameters()).device
    right = [
        (model(a.to(device), b.to(device)).argmax(1).cpu() == c).float()
        for a, b, c in zip(image.split(512), words.split(512), y.split(512), strict=True)
    ]
    return float(torch.cat(right).mean())


def warm_figures(splits: VisualQuestions, job: Job) -> dict[str, Any]:
    """Validation accuracy of the seed's warm start by noise, from which sigma was chosen."""
    model, _ = warm_start(splits, job, job.seed)
    which = splits.about["valid"]["image"].tolist()
    accuracy = [masks_off(model, splits.valid, sigma, which) for sigma in NOISE]
    return {"valid_accuracy_by_noise": accuracy, "chosen_sigma": choose_sigma(accuracy)}


def choose_sigma(accuracy: list[float]) -> float | None:
    """The smallest noise of NOISE that takes accuracy to DROP of its clean value, if one does."""
    return next((s for s, a in zip(NOISE, accuracy, strict=True) if a <= DROP * accuracy[0]), None)


def measure(
    net: gfo.Attached | gfo.Ensemble, splits: VisualQuestions, config: dict
) -> dict[str, Any]:
    """Scores on test questions, clean and noisy, overall and by kind; on fewer images by noise."""
    found: dict[str, Any] = {}
    for suffix, sigma in (("", 0.0), ("_noisy", config["sigma"])):
        probs, y, table = asked(net, splits, sigma, config["images"], config["samples"])
        found |= {name + suffix: value for name, value in scores(probs, y, table).items()}
    found["noise"] = list(NOISE)
    sweep = [asked(net, splits, s, config["sweep"], config["samples"]) for s in NOISE]
    for metric in ("accuracy", "nll"):
        found[f"{metric}_by_noise"] = [metrics.evaluate(p, y)[metric] for p, y, _ in sweep]
    if isinstance(net, gfo.Attached):
        found |= masks.policy_divergences(net, *first(splits.test, 300))
    return found


def asked(
    net, splits: VisualQuestions, sigma: float, images: int, samples: int
) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """The predictive of the questions about the first so many test images, their answers, and the
    table that says what they are."""
    table = splits.about["test"]
    table = table[table["image"] < images]
    rows = torch.tensor(table.index.tolist())
    (image, words), y = splits.test
    x = add_noise(image[rows], sigma, table["image"].tolist()), words[rows]
    return gfo.predict(net, x, samples), y[rows], table.reset_index(drop=True)


def scores(probs: Tensor, y: Tensor, table: pd.DataFrame) -> dict[str, Any]:
    """evaluate's, accuracy by kind of question, and right answers per image as base-36 digits."""
    right = (probs.argmax(1) == y).double().numpy()
    image = table["image"].to_numpy()
    found: dict[str, Any] = metrics.evaluate(probs, y)
    for kind in ("all", *table["kind"].unique()):
        rows = slice(None) if kind == "all" else (table["kind"] == kind).to_numpy()
        tail = "" if kind == "all" else "_" + kind.replace("/", "_")
        found[f"accuracy{tail}"] = float(right[rows].mean())
        found[f"accuracy{tail}_image_se"] = clustered_error(right[rows], image[rows])
    by_image = np.bincount(image, right).astype(int)
    return found | {"right_by_image": "".join(np.base_repr(n, 36) for n in by_image)}


def blind(splits: VisualQuestions, part: str = "test") -> dict[str, float]:
    """Accuracy, on a part, of the most frequent training answer to the same question, image
    unseen."""
    train, asked = splits.about["train"], splits.about[part]
    usual = train.groupby("text")["answer"].agg(lambda answers: answers.mode()[0])
    right = asked["text"].map(usual) == asked["answer"]
    return {"all": right.mean()} | right.groupby(asked["kind"]).mean().to_dict()
