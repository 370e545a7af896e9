"""Questions about images: words to numbers, and the parts of such a data set."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gfo.core.noise import generator

Pair = tuple[Tensor, Tensor]  # image tokens (n, T, D), 0 where padded; word numbers (n, T')
UNKNOWN = 1  # 0 is padding
DROPPED = re.compile(r"[.,'!?\"()*#:;]")


@dataclass(frozen=True)
class VisualQuestions:
    """train, valid and test: ((image tokens, words), y), or a `Dataset` of such rows where they are
    too many to hold.

    y: labels (n,), or soft targets (n, classes). answers: by number. about: for each part a table
    with one row per question: text, image (its number; questions of one image are not independent),
    kind.
    """

    name: str
    train: tuple[Pair, Tensor] | Dataset
    valid: tuple[Pair, Tensor] | Dataset
    test: tuple[Pair, Tensor] | Dataset
    answers: list[str]
    words: "Words"
    about: dict[str, pd.DataFrame]

    @property
    def classes(self) -> int:
        return len(self.answers)


def tokens_of(text: str) -> list[str]:
    """The words of a question: lower case, punctuation dropped, hyphens and slashes part words."""
    return DROPPED.sub("", re.sub(r"[-/]", " ", text.lower())).split()


class Words:
    """A vocabulary: words to numbers from 2 on; 0 is padding and 1 stands for unknown words."""

    def __init__(self, words: Iterable[str]):
        self.number = {word: i for i, word in enumerate(words, UNKNOWN + 1)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """All words of some questions, in alphabetical order."""
        return cls(sorted({word for text in texts for word in tokens_of(text)}))

    def __len__(self) -> int:
        return len(self.number) + UNKNOWN + 1

    def encode(self, texts: Sequence[str], longest: int) -> Tensor:
        """(n, longest) word numbers; longer questions are cut. Unknown words become 1, with one
        warning that counts them. ValueError for a question without words."""
        out = torch.zeros(len(texts), longest, dtype=torch.long)
        unknown: list[str] = []
        for row, text in enumerate(texts):
            words = tokens_of(text)[:longest]
            if not words:
                raise ValueError(f"question {row} is empty ({text!r}): give it a word, or drop it")
            unknown += [word for word in words if word not in self.number]
            numbers = [self.number.get(word, UNKNOWN) for word in words]
            out[row, : len(words)] = torch.tensor(numbers)
        if unknown:
            said = f"{len(unknown)} words of these questions are not in the vocabulary and count"
            warnings.warn(f"{said} as unknown, {unknown[0]!r} first", stacklevel=2)
        return out


def numbers_of(answers: Sequence[str], known: Sequence[str]) -> Tensor:
    """(n,) answers as places in `known`; ValueError naming the first that is not there."""
    found = pd.Index(known).get_indexer(pd.Index(answers))  # -1 where it is not there
    if (found < 0).any():
        row = int(found.argmin())
        said = f"answer {row}, {answers[row]!r}"
        raise ValueError(f"{said}, is none of the {len(known)} of the vocabulary")
    return torch.from_numpy(found)


def add_noise(image: Tensor, sigma: float, which: Sequence[int] | Tensor) -> Tensor:
    """Image tokens (n, T, D) plus sigma times normal noise, one draw per image: `which` (n,) names
    the image of each row. The draw is the same at every sigma; padding stays padding."""
    _, index = torch.as_tensor(which).unique(return_inverse=True)
    shape = (int(index.max()) + 1, *image.shape[1:])
    noise = torch.randn(shape, generator=generator(0, "feature noise"))[index]  # (n, T, D)
    return torch.where((image != 0).any(-1, keepdim=True), image + sigma * noise, image)
