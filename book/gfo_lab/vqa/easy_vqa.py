"""easy-VQA (Zhou, 2019): 48,248 questions about one coloured shape per image, from its wheel."""

from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gfo.core.files import write_atomically
from gfo.core.noise import generator
from gfo.core.registry import DATASETS
from gfo.data.splits import data_root
from gfo_lab.json_files import read_json
from gfo_lab.vqa import stem
from gfo_lab.vqa.questions import VisualQuestions, Words, numbers_of

HELD_OUT = 400  # of 4,000 training images
LONGEST = 9
SHAPES = ("circle", "rectangle", "triangle")


@DATASETS.register("easy-vqa")
def easy_vqa(root: str | Path | None = None, seed: int = 0) -> VisualQuestions:
    """38,575 questions about 4,000 images, 400 of which (by seed) are held out to validate, and
    9,673 questions about 1,000 images to test; 13 answers.

    An image is 16 tokens of 64 features of a stem that was taught shape and colour (see
    `gfo_lab.vqa.stem`), from the answers to training questions that ask for them. They are computed
    once for a seed, in seconds, and kept under `root`. Raises FileNotFoundError where the package
    `easy-vqa` is not installed or lacks a file, ValueError where the kept features are damaged.
    """
    folder = wheel()
    answers = (folder / "answers.txt").read_text(encoding="utf-8").split()
    pool, test = questions(folder / "train"), questions(folder / "test")
    count = pool["image"].max() + 1
    order = torch.randperm(count, generator=generator(seed, "easy-vqa", "split"))
    held = pool["image"].isin(order[:HELD_OUT].tolist())
    about = {"train": pool[~held], "valid": pool[held], "test": test}
    about = {name: part.reset_index(drop=True) for name, part in about.items()}
    words = Words.of(about["train"]["text"])
    kept = data_root(root) / "easy-vqa" / f"features-1-seed-{seed}.pt"
    if not kept.exists():
        tokens = make_features(folder, about, order[HELD_OUT:], count, seed)
        write_atomically(kept, lambda path: torch.save(tokens, path))
    tokens = read_features(kept, count + test["image"].max() + 1, order[HELD_OUT:])
    parts = {}
    for name, table in about.items():
        at = torch.tensor(table["image"].tolist()) + (count if name == "test" else 0)
        x = (tokens[at], words.encode(list(table["text"]), LONGEST))
        parts[name] = (x, numbers_of(list(table["answer"]), answers))
    return VisualQuestions("easy-vqa", **parts, answers=answers, words=words, about=about)


def wheel() -> Path:
    """The data of the installed package, found without importing it: the wheel brings a top-level
    package `test` along, which nobody should run into."""
    try:
        return Path(metadata.distribution("easy-vqa").locate_file("easy_vqa/data"))
    except metadata.PackageNotFoundError:
        cure = "pip install easy-vqa==1.0, a wheel of 3 MB"
        raise FileNotFoundError(f"easy-VQA is not installed: {cure}") from None


def questions(folder: Path) -> pd.DataFrame:
    """The questions of a part: text, answer, image, kind."""
    path = folder / "questions.json"
    if not path.is_file():
        raise FileNotFoundError(f"easy-VQA lacks {path.parent.name}/{path.name}: install it anew")
    rows = read_json(path, "install easy-vqa anew")
    table = pd.DataFrame(rows, columns=["text", "answer", "image"])
    kind = table["answer"].map({"yes": "yes/no", "no": "yes/no"} | dict.fromkeys(SHAPES, "shape"))
    return table.assign(kind=kind.fillna("colour"))


def picture(folder: Path, part: str, number: int) -> np.ndarray:
    """One image, (64, 64, 3) of 0…255."""
    from PIL import Image

    path = folder / part / "images" / f"{number}.png"
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except OSError:
        said = f"easy-VQA's image {part}/images/{number}.png is missing or damaged"
        raise FileNotFoundError(f"{said}: install it anew") from None


def make_features(
    folder: Path, about: dict[str, pd.DataFrame], train: Tensor, count: int, seed: int
) -> Tensor:
    """Tokens of all training images, then of all test images, (5000, 16, 64)."""
    named = [("train", i) for i in range(count)]
    named += [("test", i) for i in range(about["test"]["image"].max() + 1)]
    stack = np.stack([picture(folder, *name) for name in named])
    images = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255  # (n, 64, 64, 3) -> NCHW
    labels = {}
    for kind in ("shape", "colour"):
        asked = about["train"][about["train"]["kind"] == kind]
        labels[kind] = torch.full((len(images),), -1)
        names = sorted(asked["answer"].unique())
        labels[kind][asked["image"].tolist()] = numbers_of(list(asked["answer"]), names)
    return stem.features(images, train, labels, seed)


def read_features(path: Path, count: int, train: Tensor) -> Tensor:
    """Kept features, or ValueError where they are damaged, not those of `count` images, or not
    standardised over the images `train`."""
    try:
        tokens = torch.load(path, weights_only=True)
    except Exception as error:
        said = f"{str(path)!r} is damaged ({type(error).__name__})"
        raise ValueError(f"{said}: delete it, it is made anew") from None
    if not isinstance(tokens, Tensor) or tokens.shape != (count, 16, 64):
        raise ValueError(f"{str(path)!r} does not hold {count} × 16 × 64 features: delete it")
    sd, mean = torch.std_mean(tokens[train].flatten(0, 1), 0)  # (64,)
    wrong = None if tokens.isfinite().all() else "NaN"
    if not wrong and (mean.abs().max() > 0.1 or not 0.9 < sd.max() < 1.1):
        wrong = "features that are not standardised"
    if wrong:
        raise ValueError(f"{str(path)!r} holds {wrong}: delete it, it is made anew")
    return tokens
