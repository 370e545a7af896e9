"""What every notebook of the book promises: plain, small, without outputs, figures described."""

import re

import nbformat
import pytest

from book.tools import address, toc

NOTEBOOKS = sorted((toc.ROOT / "book").glob("*.ipynb"))
MYST = re.compile(r"^\s*(`{3,}|:{3,})\{\w|\{[\w:-]+\}`|^\([\w-]+\)=$", re.MULTILINE)
# At the left margin only: a function that draws is defined in one cell and called in another.
DRAWS = re.compile(
    r"^(?=\S).*?(?:plt\.(?:subplots|figure|imshow|plot)|plots\.(?!use_style)\w+)\(", re.MULTILINE
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)
# A place kept for a text, or code that went into one: this happened.
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|ALT)\b|TEXT|^\s*(?:assert|import) ", re.MULTILINE)
LONGEST_CELL = 40
WIDEST_CODE = 79  # columns: what a page of 1280 pixels shows


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    """Each notebook in turn."""
    return request.param


@pytest.fixture
def notebook(path):
    """Its content, valid by the format's schema."""
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    return content


def code_cells(notebook):
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    """The Markdown without its code blocks."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return FENCE.sub("", "\n\n".join(texts))


def wide_lines(shown: list[str]) -> list[str]:
    """Lines of code that a page would cut or scroll."""
    return [line for code in shown for line in code.splitlines() if len(line) > WIDEST_CODE]


def test_every_notebook_is_a_page_and_every_page_is_there():
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= set(toc.pages())
    assert toc.missing() == []


def test_kernel_is_the_plain_one(notebook):
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert "widgets" not in notebook.metadata


def test_one_parameters_cell_that_defaults_to_the_quick_profile(notebook):
    found = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    assert len(found) == 1
    assert re.search(r"""^profile = ["']quick["']""", found[0].source, re.MULTILINE)


def test_first_cell_fetches_this_package_and_no_other(notebook):
    assert code_cells(notebook)[0].source == address.install_cell()


def test_plain_markdown_that_any_viewer_shows(notebook):
    assert MYST.findall("\n".join(c.source for c in notebook.cells if c.cell_type != "code")) == []


def test_no_text_is_unfinished(notebook):
    described = [cell.metadata["figure"] for cell in notebook.cells if "figure" in cell.metadata]
    texts = [prose(notebook), *(t for about in described for t in about.values())]
    assert [found for text in texts for found in UNFINISHED.findall(text)] == []


def test_equations_are_numbered_by_tag_only(notebook):
    text = prose(notebook)
    assert r"\label{" not in text and r"\eqref{" not in text
    # Unstarred environments would number themselves, past the paper's numbers.
    assert re.findall(r"\\begin\{(?:equation|align|gather|multline)\}", text) == []


def test_one_title_and_no_headings_inside_hidden_solutions(notebook):
    text = prose(notebook)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert not any(re.search(r"^#+ ", block, re.MULTILINE) for block in DETAILS.findall(text))
    assert text.count("<details>") == text.count("</details>") == len(DETAILS.findall(text))


def test_cells_are_short(notebook):
    longest = max(len(cell.source.splitlines()) for cell in code_cells(notebook))
    assert longest <= LONGEST_CELL


def test_code_fits_the_page(notebook):
    fenced = "\n\n".join(c.source for c in notebook.cells if c.cell_type != "code")
    assert wide_lines([c.source for c in code_cells(notebook)] + FENCE.findall(fenced)) == []


@pytest.mark.parametrize("page", sorted((toc.ROOT / "book").glob("*.md")), ids=lambda p: p.stem)
def test_code_of_a_plain_page_fits_it_too(page):
    assert wide_lines(FENCE.findall(page.read_text(encoding="utf-8"))) == []


def test_figures_have_caption_and_alt_text(notebook):
    for cell in code_cells(notebook):
        figure = cell.metadata.get("figure")
        if figure is None:
            assert not DRAWS.search(cell.source), f"a figure without caption:\n{cell.source}"
        else:
            assert figure["caption"].strip() and len(figure["alt"].split()) >= 3


def test_citations_are_in_the_bibliography(notebook):
    keys = set(re.findall(r"^@\w+\{(.+),$", (toc.ROOT / "book/references.bib").read_text(), re.M))
    assert set(re.findall(r"bibliography\.md#([\w-]+)", prose(notebook))) <= keys
