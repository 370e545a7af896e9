"""Pages keep to the lengths that the book promises, and the count is right."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book.tools import lengths, toc

TOC = """
format: jb-book
root: book/front
parts:
  - caption: Learn
    chapters:
      - file: book/short
  - caption: Reference
    chapters:
      - file: book/table
"""


@pytest.fixture
def book(tmp_path):
    """A book of three pages; `write(name, cells)` writes one."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "book/table.md").write_text("four words of prose\n```\nno word\n```\n")

    def write(name, *cells):
        nbformat.write(new_notebook(cells=list(cells)), tmp_path / f"book/{name}.ipynb")
        return tmp_path

    write("front", new_markdown_cell("one two"))
    return write


def test_fences_folded_cells_and_blank_lines_do_not_count(book):
    hidden = new_code_cell("a = 1\nb = 2", metadata={"tags": ["hide-input"]})
    text = new_markdown_cell("three words here\n```python\nprint('no')\n```")
    checks = new_code_cell("assert a == 1\nassert b == 2")
    root = book("short", text, hidden, checks, new_code_cell("c = 3\n\n# why\nd = 4"))
    expected = {"front": ("Front", 2, 0), "short": ("Learn", 3, 3), "table": ("Reference", 4, 0)}
    assert lengths.table(root) == expected
    assert lengths.problems(root) == []


def test_a_page_one_word_or_line_too_long_is_named(book):
    words, lines = lengths.LIMITS["Learn"]
    fits = new_markdown_cell("word " * words), new_code_cell("x\n" * lines)
    assert lengths.problems(book("short", *fits)) == []
    root = book("short", *fits, new_markdown_cell("more"), new_code_cell("y"))
    first, second = lengths.problems(root)
    assert first == f"short: {words + 1} words, at most {words} on a page of Learn"
    assert second.startswith(f"short: {lines + 1} visible lines")


def test_the_whole_book_has_a_limit(book):
    root = book("front", new_markdown_cell("word " * lengths.WORDS))
    book("short", new_markdown_cell("one"))
    assert lengths.problems(root) == [f"the book: {lengths.WORDS + 5} words, at most 36000"]


@pytest.mark.parametrize("part", lengths.LIMITS)
def test_pages_keep_to_the_limits_of_their_part(part):
    pages = {name: found for name, found in lengths.table(toc.ROOT).items() if found[0] == part}
    assert pages
    assert [line for line in lengths.problems(toc.ROOT) if line.split(":")[0] in pages] == []
