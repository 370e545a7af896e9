"""Answers to VQA v2 as people give them: normal form, soft targets, leave-one-out accuracy
(Antol et al., 2015; Goyal et al., 2017)."""

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from gfo_lab import declared

MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = {"a", "an", "the"}
WORDS = declared(__file__, "words.toml")
NUMBERS = WORDS["numbers"]
CONTRACTED = {word.replace("'", ""): word for word in WORDS["contracted"].split()}


def without_marks(text: str) -> str:
    """Punctuation dropped where a space is beside it or a comma groups digits, else a space; full
    stops dropped but before a digit."""
    out, grouped = text, re.search(r"\d,\d", text)
    for mark in MARKS:
        beside = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside or grouped else " ")
    return re.sub(r"\.(?!\d)", "", out)


def normal(text: str) -> str:
    """Lower case, no punctuation, numbers as digits, no articles, apostrophes back."""
    words = without_marks(" ".join(text.lower().split())).split()
    words = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTED.get(word, word) for word in words if word not in ARTICLES)


def soft_target(answers: Sequence[str], number: dict[str, int]) -> Tensor:
    """(K,): 0, .3, .6, .9 or 1 for an answer that 0, 1, 2, 3 or more of the people gave; answers
    outside the vocabulary are left out."""
    target = torch.zeros(len(number))
    for answer, count in Counter(map(normal, answers)).items():
        if answer in number:
            target[number[answer]] = min(1.0, 0.3 * count)
    return target


def leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """min(1, matches / 3) among the others, averaged over which of the people is left out. People
    who agree are taken at their word; else their punctuation is dropped."""
    given = [" ".join(answer.lower().split()) for answer in answers]
    if len(set(given)) > 1:
        given = [without_marks(answer) for answer in given]  # blanks and all, as published
    matches = [answer == normal(prediction) for answer in given]
    found = sum(matches)
    return sum(min(1.0, (found - match) / 3) for match in matches) / len(matches)


def accuracy(predictions: Sequence[str], about: pd.DataFrame) -> dict[str, float]:
    """Mean leave-one-out accuracy in [0, 1], overall ("all") and by kind of answer; `about` has
    one row per question, with columns answers and kind."""
    if len(predictions) != len(about):
        raise ValueError(f"{len(predictions)} predictions for {len(about)} questions")
    pairs = zip(predictions, about["answers"], strict=True)
    each = pd.Series([leave_one_out(*pair) for pair in pairs], index=about.index)
    return {"all": each.mean()} | each.groupby(about["kind"]).mean().to_dict()
