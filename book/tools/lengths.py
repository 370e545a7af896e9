"""How long the pages are: words, and lines of code that a reader sees unasked.

Run as `python -m book.tools.lengths`.
"""

import re
import sys
from pathlib import Path

import nbformat

from book.tools import fold, toc

# Of one page: words of prose, visible lines of code. Other parts have no limit of their own.
LIMITS = {"Learn": (1600, 120), "Findings": (700, 120)}
UNITS = ("words", "visible lines of code")
WORDS = 36_000  # of the book
HIDDEN = {"hide-input", "hide-cell", "remove-cell", "remove-input", "parameters", "install"}


def length(page: Path) -> tuple[int, int]:
    """Words of prose outside fenced code, and visible lines of code, blank ones not counted.

    Args:
        page: a notebook, or a page in Markdown.
    """
    if page.suffix == ".md":
        return words(page.read_text(encoding="utf-8")), 0
    cells = nbformat.read(page, 4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = [cell.source for cell in cells if cell.cell_type == "code" and not folded(cell)]
    return words(text), sum(bool(line.strip()) for source in shown for line in source.splitlines())


def folded(cell: nbformat.NotebookNode) -> bool:
    """Whether the built page folds or leaves out a code cell's source."""
    silent = fold.only_checks(cell) and "print(" not in cell.source
    return silent or bool(HIDDEN & set(cell.metadata.get("tags", [])))


def words(text: str) -> int:
    """Words of Markdown, fenced code left out; a formula counts as what its spaces make of it."""
    return len(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())


def table(root: Path = toc.ROOT) -> dict[str, tuple[str, int, int]]:
    """Part, words and visible lines of each written page, by its name, in reading order."""
    found = {}
    for name, part in toc.parts(root).items():
        for page in (root / f"{name}.ipynb", root / f"{name}.md"):
            if page.exists():
                found[page.stem] = (part, *length(page))
    return found


def problems(root: Path = toc.ROOT) -> list[str]:
    """A line per limit that is exceeded."""
    pages, found = table(root), []
    for name, (part, count, lines) in pages.items():
        for value, most, what in zip((count, lines), LIMITS.get(part, ()), UNITS, strict=False):
            if value > most:
                found.append(f"{name}: {value} {what}, at most {most} on a page of {part}")
    whole = sum(count for _, count, _ in pages.values())
    return found + [f"the book: {whole} words, at most {WORDS}"] * (whole > WORDS)


def main() -> int:
    """Print the table and what exceeds its limit; 1 if anything does."""
    pages = table()
    for name, (part, count, lines) in pages.items():
        print(f"{part:10} {name:28} {count:6} words {lines:5} visible lines of code")
    print(f"{sum(count for _, count, _ in pages.values()):46} words in all, at most {WORDS}")
    found = problems()
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
