r"""The table of symbols is kept: each occurs where it says, and what it rules out occurs nowhere.

`book/symbols.md` is the one source: its tables are read here.
"""

import re
from pathlib import Path

import nbformat
import pytest

from book.tools import toc

PAGE = (toc.ROOT / "book/symbols.md").read_text(encoding="utf-8")
LEARN = [Path(page).name for page, part in toc.parts().items() if part == "Learn"]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
# One token each, so that P_B holds no B, \mathcal{D} no D and TB no T.
WORD = r"\\(?:text|operatorname|mathrm)\s*\{[^}]*\}|TB"
TOKEN = re.compile(WORD + r"|P_[FB]|\\math(?:cal|bb|bf)\s*\{?[A-Za-z]\}?|\\[A-Za-z]+|[^\s{}\\]")
LAYOUT = re.compile(
    r"\\(?:tag|begin|end) ?\{[^}]*\}|\\(?:[Bb]igg?[lr]?|left|right)(?![A-Za-z])|\\[,;!: ]"
)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its head."""
    part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for line in part[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def tokens(formula: str) -> list[str]:
    r"""Letters, commands and signs; braces, spaces and sizes of brackets do not matter."""
    plain = LAYOUT.sub(" ", formula)
    return [re.sub(r"[{} ]", "", token) for token in TOKEN.findall(plain)]


def formulas(name: str) -> list[list[str]]:
    """The formulas of a chapter's prose, each as tokens."""
    cells = nbformat.read(toc.ROOT / f"book/{name}.ipynb", as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return [tokens(a or b) for a, b in MATHS.findall(FENCE.sub("", text))]


def holds(found: list[list[str]], symbol: str) -> bool:
    """Whether a symbol, itself a formula, stands in one of these."""
    want = tokens(symbol)
    return any(
        one[k : k + len(want)] == want for one in found for k in range(len(one) - len(want) + 1)
    )


SYMBOLS = [(row[0].strip("$"), *row[1:]) for row in rows("Symbols")]
RULED_OUT = [(row[0].strip("`"), *row[1:]) for row in rows("Ruled out")]
IN = {name: formulas(name) for name in LEARN}


@pytest.mark.parametrize(("symbol", "where"), [(row[0], row[-1]) for row in SYMBOLS])
def test_a_symbol_is_first_used_where_the_table_says(symbol, where):
    first = re.search(r"\((\w+)\.ipynb\)", where)[1]
    assert next((name for name in LEARN if holds(IN[name], symbol)), None) == first


@pytest.mark.parametrize("name", LEARN)
def test_what_is_ruled_out_is_in_no_chapter_of_learn(name):
    found = [symbol for symbol, *_ in RULED_OUT if holds(IN[name], symbol)]
    assert found == []


def test_no_symbol_is_explained_twice_or_ruled_out():
    names = [tuple(tokens(row[0])) for row in SYMBOLS]
    assert len(set(names)) == len(names) > 30
    for symbol, *_ in RULED_OUT:
        assert tuple(tokens(symbol)) not in names


@pytest.mark.parametrize(
    ("formula", "symbol"),
    [
        (r"\mathcal{B}(\mathcal{D}; \theta)", r"\mathcal{B}"),
        (r"\mathcal  B", r"\mathcal{B}"),
        (r"B\big(\mathcal{D}; \theta', \phi'\big)", r"B(\mathcal{D}"),
        (r"B(D; \theta', \phi') = 0", "D"),
        (r"\frac1M \sum_j p(y \mid x, z_j)", r"\frac{1}{M}"),
        (r"\frac{1}{M}", r"\frac{1}{M}"),
        (r"p(z \mid D)", "D"),
        (r"\sum_{t=1}^{T}", "^T"),
    ],
)
def test_a_planted_use_is_found(formula, symbol):
    assert symbol in [row[0] for row in RULED_OUT]
    assert holds([tokens(formula)], symbol)


@pytest.mark.parametrize(
    ("formula", "symbol"),
    [
        (r"Z \prod P_F = R \prod P_B(\mathcal{D})", r"B(\mathcal{D}"),
        (r"\mathcal{L}_{TB}", "^T"),
        (r"p(z \mid \mathcal{D})", "D"),
        (r"\prod_{j=1}^{M} \frac{1}{S}", r"\frac{1}{M}"),
        (r"p_{\text{prior}}(y)", r"p_{\text{pred}}"),
    ],
)
def test_a_right_use_is_let_be(formula, symbol):
    assert not holds([tokens(formula)], symbol)


def test_shapes_are_those_of_docstrings():
    text = "\n".join(p.read_text(encoding="utf-8") for p in (toc.ROOT / "gfo").rglob("*.py"))
    for shape, *_ in rows("Shapes in docstrings"):
        assert shape.strip("`") in text, shape


def test_the_glossary_is_in_order_and_says_each_in_one_sentence():
    part = PAGE.split("## Glossary\n")[1]
    entries = re.findall(r"^\*\*(.+?)\*\*: (.+)$", part, re.MULTILINE)
    names = [name.lower() for name, _ in entries]
    assert names == sorted(names) and 20 <= len(names) <= 30
    for name, said in entries:
        assert said.endswith(".") and not re.search(r"\. [A-Z]", said), name
