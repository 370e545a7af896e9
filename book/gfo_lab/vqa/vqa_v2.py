"""VQA v2 (Goyal et al., 2017) from its official files and bottom-up image features."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gfo.core.noise import generator
from gfo.core.registry import DATASETS
from gfo.data.splits import data_root
from gfo_lab.json_files import read_json
from gfo_lab.vqa.answers import normal, soft_target
from gfo_lab.vqa.questions import VisualQuestions, Words

TOKENS, WIDTH, LONGEST = 100, 2048, 14
HELD_OUT = 0.05  # of the training images
SEEN = 8  # an answer of the vocabulary is given more often than this
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
PARTS = ("train2014", "val2014")


class Rows(Dataset):
    """One part, read from disk row by row: ((image tokens, word numbers), soft targets). Put it
    into a `torch.utils.data.DataLoader` and that into `gfo.fit`."""

    def __init__(self, folder: Path, table: pd.DataFrame, words: Words, answers: list[str]):
        self.folder, self.table = folder, table
        self.words = words.encode(list(table["text"]), LONGEST)
        self.number = {answer: i for i, answer in enumerate(answers)}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        row = self.table.iloc[index]
        image = image_tokens(self.folder / row["part"], row["part"], row["image"])
        return (image, self.words[index]), soft_target(row["answers"], self.number)


@DATASETS.register("vqa-v2")
def vqa_v2(root: str | Path | None = None, seed: int = 0) -> VisualQuestions:
    """Train and valid from train2014, 5 % of whose images (by seed) are held out; test is val2014,
    as in the paper, since the test set's answers are not public. Each is a `Rows`.

    Under root/vqa-v2, by their official names: the questions and annotations of both parts, and
    the folders train2014 and val2014 with one file COCO_…jpg.npz per image, (2048, n) under the key
    x. answer_dict.json is read where it lies there; else the vocabulary is built, as its authors
    did, from the answers in both parts. Words are those of the training questions. Raises
    FileNotFoundError naming each missing file, ValueError for a file that is damaged or lacks
    something.
    """
    folder = data_root(root) / "vqa-v2"
    needed = [folder / name.format(part) for part in PARTS for name in (QUESTIONS, ANNOTATIONS)]
    needed += [folder / part for part in PARTS]
    if missing := [str(path.relative_to(folder)) for path in needed if not path.exists()]:
        raise FileNotFoundError(f"VQA v2 lacks, under {str(folder)!r}: {', '.join(missing)}")
    pool, test = (table_of(folder, part) for part in PARTS)
    answers = vocabulary(folder, pd.concat([pool, test]))
    images = torch.tensor(sorted(pool["image"].unique().tolist()))
    order = torch.randperm(len(images), generator=generator(seed, "vqa-v2", "split"))
    held = pool["image"].isin(images[order[: max(1, round(HELD_OUT * len(images)))]].tolist())
    about = {"train": pool[~held], "valid": pool[held], "test": test}
    about = {name: table.reset_index(drop=True) for name, table in about.items()}
    words = Words.of(about["train"]["text"])
    parts = {name: Rows(folder, table, words, answers) for name, table in about.items()}
    return VisualQuestions("vqa-v2", **parts, answers=answers, words=words, about=about)


def table_of(folder: Path, part: str) -> pd.DataFrame:
    """The questions of a part, a row each: question_id, text, image, kind, answers, usual, part."""
    columns = ["question_id", "image_id", "answer_type", "multiple_choice_answer", "answers"]
    said = entries(folder / ANNOTATIONS.format(part), "annotations", columns)
    path = folder / QUESTIONS.format(part)
    asked = entries(path, "questions", ["question_id", "image_id", "question"])
    table = asked.merge(said, "left", "question_id", suffixes=("", "_said"))
    number = table["question_id"]
    if lost := list(number[table["answers"].isna()]):
        raise ValueError(f"question {lost[0]} of {path.name} has no annotation")
    if odd := list(number[table["image_id"] != table["image_id_said"]]):
        raise ValueError(f"question {odd[0]} is about two images in the files of {part}")
    return pd.DataFrame({
        "question_id": number, "text": table["question"], "image": table["image_id"],
        "kind": table["answer_type"], "part": part,
        "answers": [[answer["answer"] for answer in given] for given in table["answers"]],
        "usual": table["multiple_choice_answer"].map(normal),
    })  # fmt: skip


def entries(path: Path, key: str, columns: list[str]) -> pd.DataFrame:
    """The list under `key` of a JSON file as a table, each entry of which has the columns."""
    content = read_json(path, "download it anew")
    if key not in content:
        raise ValueError(f"{path.name} has no key {key!r}; it has: {', '.join(content)}")
    for entry in content[key]:
        if lost := [column for column in columns if column not in entry]:
            raise ValueError(f"an entry of {path.name} lacks {', '.join(lost)}")
    return pd.DataFrame(content[key], columns=columns)


def vocabulary(folder: Path, tables: pd.DataFrame) -> list[str]:
    """Answers by number: answer_dict.json, else those usual more than 8 times, in the order in
    which they first come."""
    path = folder / "answer_dict.json"
    if path.exists():
        try:
            number, _ = read_json(path)
            return sorted(number, key=number.__getitem__)
        except (ValueError, AttributeError, TypeError):
            said = "answer_dict.json is not a list of two dicts, answer to number and back"
            raise ValueError(f"{said}: delete it, and the vocabulary is built") from None
    found = [answer for answer, count in Counter(tables["usual"]).items() if count > SEEN]
    if not found:
        raise ValueError(f"no answer is given more than {SEEN} times: add an answer_dict.json")
    return found


def image_tokens(folder: Path, part: str, image: int) -> Tensor:
    """The features of an image, (100, 2048): cut, or padded with rows of zeros."""
    path = folder / f"COCO_{part}_{image:012d}.jpg.npz"
    if not path.is_file():
        raise FileNotFoundError(f"VQA v2 lacks the image features {part}/{path.name}")
    try:
        with path.open("rb") as file, np.load(file) as content:  # NumPy leaves a bad one open
            keys = list(content)
            features = content["x"] if "x" in keys else None
    except Exception as error:
        said = f"{part}/{path.name} is damaged ({type(error).__name__})"
        raise ValueError(f"{said}: fetch it anew") from None
    if features is None:
        raise ValueError(f"{part}/{path.name} has no array 'x'; it has: {', '.join(keys)}")
    if features.ndim != 2 or features.shape[0] != WIDTH:
        raise ValueError(f"{part}/{path.name} has shape {features.shape}, needs ({WIDTH}, n)")
    if not np.isfinite(features).all():
        raise ValueError(f"{part}/{path.name} holds NaN or infinity: fetch it anew")
    out = torch.zeros(TOKENS, WIDTH)
    found = torch.from_numpy(features.T[:TOKENS].astype(np.float32))  # (2048, n) -> (n, 2048)
    out[: len(found)] = found
    return out
