"""The parts of `make book`: what runs again, what is staged, what the checks of the pages find."""

import inspect
import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
import yaml
from docutils import nodes, utils
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.ext import napoleon
from sphinx.ext.napoleon import GoogleDocstring

from book.tools import toc
from book.tools.address import set_address
from book.tools.check import check_site
from book.tools.digits import sensible
from book.tools.execute import execute, execute_all, is_kept, records, shared_inputs
from book.tools.fold import SET_UP
from book.tools.sphinx_ext import hold_points, keep_tagged, plain_text
from book.tools.stage import config, dictionary_page, dress, stage, status_page

TEXT = "<h1 id='top'>Title</h1><p>" + "word " * 30 + "</p>"


def site(folder, body: str, head: str = ""):
    """A site of two pages, one of which has `body`."""
    (folder / "a.html").write_text(
        f"<head>{head}</head><body><article>{TEXT}{body}</article></body>"
    )
    (folder / "b.html").write_text(f"<article>{TEXT}</article>")
    (folder / "plot.png").write_bytes(b"")
    return check_site(folder, ["a", "b"])


@pytest.mark.parametrize(
    "body",
    [
        "<a href='b.html#top'>there</a> <a href='#top'>here</a> <a href='b.html'>page</a>",
        "<a href='https://example.org/x'>elsewhere</a> <a href='mailto:a@example.org'>mail</a>",
        "<img src='plot.png' alt='A line that rises.'>",
    ],
)
def test_good_pages_pass(tmp_path, body):
    assert site(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<a href='c.html'>x</a>", "leads nowhere: c.html"),
        ("<a href='../outside.html'>x</a>", "leads nowhere"),
        ("<a href='b.html#nowhere'>x</a>", "no such place: b.html#nowhere"),
        ("<a href='#nowhere'>x</a>", "no such place: #nowhere"),
        ("<img src='gone.png' alt='A line.'>", "leads nowhere: gone.png"),
        ("<img src='plot.png'>", "image without alt text"),
        ("<img src='plot.png' alt=' '>", "image without alt text"),
        ("<img src='plot.png' alt='plot.png'>", "image without alt text"),
        ("<img src='https://example.org/x.png' alt='A line.'>", "<img> loads https"),
        ("<script src='//example.org/x.js'></script>", "<script> loads //example"),
        ("<script>import('https://example.org/x.js')</script>", "<script> loads https"),
        ("<script>fetch('https://example.org/x.json')</script>", "<script> loads https"),
        ("<p style='background: url(https://example.org/x.png)'>x</p>", "<p> loads https"),
        ("<svg><image href='https://example.org/x.png'/></svg>", "<image> loads https"),
        ("<svg><use xlink:href='https://example.org/x.svg#a'/></svg>", "<use> loads https"),
        ("<iframe src='gone.html'></iframe>", "leads nowhere: gone.html"),
        ("<pre><span>Traceback</span> (most recent call last)</pre>", "carries a traceback"),
        ("<div class='output traceback'>x</div>", "carries a traceback"),
        (
            "<div class='cell'>Code of Figure 3<span class='caption-number'>Fig. 4 </span></div>",
            "Code of Figure 3, which is Fig. 4",
        ),
        ("<span class='problematic'>x</span>", "error message of Sphinx"),
    ],
)
def test_bad_pages_are_found(tmp_path, body, problem):
    found = site(tmp_path, body)
    assert found and all(line.startswith("a: ") for line in found)
    assert any(problem in line for line in found)


@pytest.mark.parametrize(
    "head",
    [
        "<link rel='stylesheet' href='https://example.org/x.css'>",
        "<link rel='icon' href='https://example.org/x.ico'>",
        "<link rel='preload' as='font' href='//example.org/x.woff2'>",
        "<style>@import url(https://example.org/x.css);</style>",
        "<style>p { background: url('//example.org/x.png') }</style>",
        "<img srcset='plot.png 1x, https://example.org/x.png 2x' alt='A line.'>",
        "<object data='https://example.org/x.svg'></object>",
        "<video poster='https://example.org/x.png'></video>",
        "<script type='module'>import x from 'https://example.org/x.js'</script>",
    ],
)
def test_whatever_a_page_would_load_is_found(tmp_path, head):
    assert any("loads" in line for line in site(tmp_path, "", head=head))


def test_what_only_points_elsewhere_is_let_be(tmp_path):
    head = "<link rel='canonical' href='https://example.org/a.html'>"
    assert site(tmp_path, "<script>const home = 'https://example.org'</script>", head) == []


def test_missing_and_empty_pages_are_found(tmp_path):
    (tmp_path / "a.html").write_text("<article><h1>Title</h1></article>")
    problems = check_site(tmp_path, ["a", "gone"])
    assert problems == ["gone: not built", "a: is empty (1 words)"]


def figure_cell(**metadata):
    """A code cell with one image output."""
    image = new_output("display_data", {"image/png": "aGk="})
    return new_code_cell("plot()", outputs=[image], metadata=metadata)


def test_figures_get_caption_name_and_alt():
    figure = {"caption": "What is seen.", "alt": "A line."}
    notebook = new_notebook(cells=[figure_cell(figure=figure), figure_cell(figure=figure)])
    first, second = dress(notebook, "elbo").cells
    assert first.metadata["mystnb"] == {
        "figure": {"caption": "What is seen.", "name": "fig-elbo-1"},
        "image": {"alt": "A line."},
    }
    assert second.metadata["mystnb"]["figure"]["name"] == "fig-elbo-2"


@pytest.mark.parametrize(
    ("source", "caption", "kept"),
    [
        ("plot()", "Bars in grey.", False),
        ("ax.imshow(x)", "Digits.", True),
        ("heat(x)", "The brighter, the likelier.", True),
        ("plot()", "Black: the posterior.", True),
    ],
)
def test_the_dark_theme_swaps_light_and_dark_only_where_they_mean_nothing(source, caption, kept):
    cell = figure_cell(figure={"caption": caption, "alt": "A line."})
    cell.source = source
    image = dress(new_notebook(cells=[cell]), "elbo").cells[0].metadata["mystnb"]["image"]
    assert image.get("classes") == ("as-drawn" if kept else None)


def test_parameters_are_folded_and_citations_linked():
    cells = [
        new_code_cell("profile = 'quick'", metadata={"tags": ["parameters"]}),
        new_markdown_cell("As [Liu et al. (2023)](bibliography.md#liu2023) say."),
    ]
    code, text = dress(new_notebook(cells=cells), "elbo").cells
    assert "hide-input" in code.metadata["tags"]
    assert 'href="bibliography.html#liu2023">Liu et al. (2023)</a>' in text.source


def test_a_page_opens_with_prose_and_then_one_folded_cell_that_sets_up():
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("fetch()", metadata={"tags": ["hide-input"]}),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("import gfo"),
        new_markdown_cell("## First"),
        new_code_cell("seed + 1", outputs=[new_output("execute_result", {"text/plain": "1"})]),
    ]
    page = dress(new_notebook(cells=cells), "elbo").cells
    assert [cell.source for cell in page] == [
        "# Title", "fetch()", "## First", "seed = 0\n\nimport gfo", "seed + 1",
    ]  # fmt: skip
    assert "remove-cell" in page[1].metadata["tags"]
    assert page[3].metadata["mystnb"]["code_prompt_show"] == SET_UP


@pytest.mark.parametrize(
    ("cell", "prompt"),
    [
        (figure_cell(figure={"caption": "Seen.", "alt": "A line."}), "Code of Figure 5"),
        (new_code_cell("assert a\nassert b"), "Checks of this section: 2 hold"),
        (
            new_code_cell("assert a\nif runs:\n    assert b\n    assert c"),
            "Checks of this section: 1 holds, 2 more where they apply",
        ),
        (new_code_cell("def f(x):\n    return x"), "Code of f"),
        (
            new_code_cell(
                "show()",
                outputs=[new_output("execute_result", {"text/html": '<div class="gfo-live">'})],
            ),
            "Code of the live view below",
        ),
    ],
)
def test_a_folded_cell_says_what_it_folds(cell, prompt):
    cell.metadata["tags"] = ["hide-input"]
    dressed = dress(new_notebook(cells=[cell]), "elbo", before=4).cells[0]
    assert dressed.metadata["mystnb"]["code_prompt_show"] == prompt


def test_a_folded_cell_names_the_next_figure_of_its_section():
    def prompt(*between):
        work = new_code_cell("net = train()", metadata={"tags": ["hide-input"]})
        figure = figure_cell(figure={"caption": "Seen.", "alt": "A line."})
        cells = dress(new_notebook(cells=[work, *between, figure]), "elbo", before=4).cells
        return cells[0].metadata["mystnb"]["code_prompt_show"]

    assert prompt() == prompt(new_markdown_cell("Look:")) == "Code behind Figure 5"
    assert prompt(new_markdown_cell("## Another question")) == "Code of the next step"


def test_cells_of_checks_are_folded_and_teaching_is_not():
    cells = [new_code_cell("assert a\nassert b"), new_code_cell("a = f()\nb = g()\nassert a")]
    checks, teaching = dress(new_notebook(cells=cells), "elbo").cells
    assert "hide-input" in checks.metadata["tags"]
    assert "tags" not in teaching.metadata


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("101.4733 ± 12.6291", "101 ± 13"),
        ("+0.6642 ± 0.1174", "+0.66 ± 0.12"),
        ("-0.06837 ± 0.00412", "-0.0684 ± 0.0041"),
        ("97.96 ± 0.04", "97.96 ± 0.04"),  # one digit is what was written
        ("1.000 ± 0.000", "1.000 ± 0.000"),
    ],
)
def test_a_table_shows_two_digits_of_a_half_interval(written, shown):
    assert sensible(f"<td>{written}</td>") == f"<td>{shown}</td>"


def test_a_table_shows_whole_counts_and_leaves_other_columns():
    head = "<thead><tr><th></th><th>n</th><th>TV</th></tr></thead>"
    row = "<tr><th>a</th><td>{}</td><td>0.00</td></tr>"
    table = f"<table>{head}<tbody>{row}</tbody></table>"
    assert sensible(table.format("3.00")) == table.format("3")


def test_progress_bars_go_and_sliders_stay():
    view = "application/vnd.jupyter.widget-view+json"
    names = {"bar": "FloatProgressModel", "slider": "IntSliderModel"}
    state = {key: {"model_name": name, "state": {}} for key, name in names.items()}
    for box in ("bar", "slider"):
        children = [f"IPY_MODEL_{box}"]
        state[f"{box}-box"] = {"model_name": "HBoxModel", "state": {"children": children}}
    shown = ["bar-box", "slider-box", "closed"]
    outputs = [new_output("display_data", {view: {"model_id": key}}) for key in shown]
    notebook = new_notebook(cells=[new_code_cell("fit()", outputs=outputs)])
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    bars = deepcopy(notebook)
    left = dress(notebook, "elbo").cells[0].outputs
    assert [output.data[view]["model_id"] for output in left] == ["slider-box"]
    assert "widgets" in notebook.metadata
    del bars.cells[0].outputs[1]
    assert "widgets" not in dress(bars, "elbo").metadata  # such a page loads no widget scripts


def test_no_chapter_needs_the_scripts_of_widgets():
    """3.7 MB a page; what moves on a page is `gfo_lab.live`."""
    for path in toc.chapters():
        assert "import ipywidgets" not in path.read_text(encoding="utf-8"), path.stem
        code = (c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        assert not any("from ipywidgets" in source for source in code), path.stem


@pytest.mark.parametrize(("url", "buttons"), [("", False), ("https://example.org/o/r", True)])
def test_one_address_brings_the_colab_buttons(url, buttons):
    settings = yaml.safe_load((toc.ROOT / "_config.yml").read_text())
    settings["repository"]["url"] = url
    staged = yaml.safe_load(config(yaml.safe_dump(settings)))
    assert ("launch_buttons" in staged) == buttons


def test_the_address_reaches_the_first_cell_which_fetches_the_package(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").write_text((toc.ROOT / "_config.yml").read_text())
    (tmp_path / "book").mkdir()
    chapter = tmp_path / "book" / "a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import os"), new_code_cell("1")]), chapter)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [])
    clone, ran = tmp_path / "gflowout", []

    def pretend(command, check):
        ran.append(command)
        if command[0] == "git":
            clone.mkdir()
            shutil.copy(toc.ROOT / "pyproject.toml", clone)

    monkeypatch.setattr("subprocess.run", pretend)

    def first_cell():
        return nbformat.read(chapter, 4).cells[0].source

    set_address("", tmp_path)
    with pytest.raises(ModuleNotFoundError, match="pip install -e"):
        exec(first_cell(), {})
    assert ran == []
    set_address("https://example.org/o/r", tmp_path)
    exec(first_cell(), {})
    assert ran[0][-2:] == ["https://example.org/o/r", str(clone)]
    assert ran[1][2:4] == ["pip", "install"]
    names = {name.split(">=")[0].split("==")[0] for name in ran[1]}
    assert {"torch", "pandas", "easy-vqa", "ipywidgets"} <= names
    assert sys.path == [str(clone), str(clone / "book")]
    set_address("https://example.org/p", tmp_path)
    assert "example.org/p" in first_cell() and nbformat.read(chapter, 4).cells[1].source == "1"
    text = (tmp_path / "_config.yml").read_text()
    (tmp_path / "_config.yml").write_text(text.replace('"', "'"))
    with pytest.raises(ValueError, match="_config.yml has no line"):  # as no such line is replaced
        set_address("https://example.org/q", tmp_path)
    assert "example.org/p" in first_cell()


def test_equations_with_a_number_of_their_own_reach_mathjax_unwrapped():
    document = utils.new_document("page")
    plain, tagged = r"a \\ b", r"a \\ b \tag{5}"
    document += [nodes.math_block(text, text, nowrap=False) for text in (plain, tagged)]
    keep_tagged(None, document)
    untouched, kept = document.children
    assert (untouched.astext(), untouched["nowrap"]) == (plain, False)
    assert (kept.astext(), kept["nowrap"]) == (rf"\[{tagged}\]", True)


def test_a_formula_stays_on_one_line_with_the_points_around_it():
    document = utils.new_document("page")
    document += nodes.paragraph("", "")
    x, y, z = (nodes.math(name, name) for name in "xyz")
    for part in (nodes.Text("For each ("), x, nodes.Text("), of "), y, nodes.Text(" and "), z):
        document[0] += part
    hold_points(None, document)
    assert document.astext() == "For each (x), of y and z"
    (held,) = document.findall(nodes.inline)
    assert held.astext() == "(x)," and held["classes"] == ["held"]
    assert [node.astext() for node in document.findall(nodes.math)] == ["x", "y", "z"]


def test_google_docstrings_become_lists_of_parameters():
    """As the book's configuration has them: napoleon, then our own extension."""
    settings = yaml.safe_load((toc.ROOT / "_config.yml").read_text())["sphinx"]
    extensions = settings["extra_extensions"]
    assert extensions[-2:] == ["sphinx.ext.napoleon", "book.tools.sphinx_ext"]
    own = {k: v for k, v in settings["config"].items() if k.startswith("napoleon_")}
    text = """First line.

    Args:
        a, b: The sides, at most |c|,
            in nats.

    Raises:
        ValueError: For `a|b`.
    """
    lines = GoogleDocstring(inspect.cleandoc(text), napoleon.Config(**own)).lines()
    plain_text(None, "function", "f", None, None, lines)
    assert lines[:2] == ["First line.", ""]
    (field,) = [i for i, line in enumerate(lines) if line.startswith(":param a")]
    assert lines[field].endswith(r"The sides, at most \|c\|,")
    assert ":raises ValueError: For `a|b`." in lines


def test_a_docstring_that_says_only_a_fields_number_is_dropped():
    lines = ["Alias for field number 0"]
    plain_text(None, "attribute", "f", None, None, lines)
    assert lines == []


@pytest.fixture
def tree(tmp_path):
    """A book of one good and one failing chapter."""
    for folder in ("gfo", "book/gfo_lab", "book/tools", "book/results", "book/assets"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("constraints.txt", "gfo/x.py", "book/tools/rooms.py", "book/tools/toc.py"):
        (tmp_path / file).write_text("")
    for stem, code in {"good": "print(40 + 2)", "bad": "1 / 0"}.items():
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / f"book/{stem}.ipynb")
    return tmp_path


def test_chapters_run_again_only_when_something_changed(tree, capsys):
    good, bad, kept = tree / "book/good.ipynb", tree / "book/bad.ipynb", tree / "kept"
    assert execute_all([good, bad], tree, kept) == ["bad"]
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert "42" in (kept / "good.ipynb").read_text()
    record = json.loads((kept / "good.json").read_text())
    assert record["chapter"] == "good" and record["seconds"] > 0 and record["cpus"] >= 1
    assert not (kept / "bad.json").exists()

    assert execute_all([good], tree, kept) == []
    assert capsys.readouterr().out == ""
    for source in ("gfo/x.py", "book/gfo_lab/x.py"):
        (tree / source).write_text("x = 1")
        assert execute_all([good], tree, kept) == []
        assert "1 to run" in capsys.readouterr().out


def test_what_the_tool_of_a_chapter_imports_runs_it_again(tree):
    before = shared_inputs(tree)
    (tree / "book/tools/toc.py").write_text("x = 1")
    assert shared_inputs(tree) != before


@pytest.mark.parametrize("content", ["", '{"key": "a', "[]", "{}", '{"key": "another"}'])
def test_a_damaged_record_of_a_chapter_runs_it_again(content, tmp_path):
    chapter, record = tmp_path / "a.ipynb", tmp_path / "a.json"
    chapter.write_text("{}")
    record.write_text('{"key": "k"}')
    assert is_kept(chapter, "k", tmp_path)
    record.write_text(content)
    assert not is_kept(chapter, "k", tmp_path)
    record.write_text('{"key": "k"}')
    chapter.unlink()
    assert not is_kept(chapter, "k", tmp_path)


def test_a_full_disk_leaves_no_half_record_of_a_chapter(tree, monkeypatch):
    kept, write_text = tree / "kept", Path.write_text
    kept.mkdir()

    class Client:
        def __init__(self, *args, **how):
            pass

        def execute(self):
            pass

    def full(self, text, **how):
        write_text(self, text[:9], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("book.tools.execute.NotebookClient", Client)
    monkeypatch.setattr("book.tools.execute.machine", dict)
    execute(tree / "book/good.ipynb", "k", kept)
    assert is_kept(tree / "book/good.ipynb", "k", kept)
    whole = (kept / "good.ipynb").read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        execute(tree / "book/good.ipynb", "k", kept)
    assert (kept / "good.ipynb").read_bytes() == whole and not (kept / "good.json").exists()


def test_kernels_look_for_garbage_less_often_and_find_no_name_they_did_not_make(tree):
    code = "assert 'gc' not in globals()\nimport gc\nassert gc.get_threshold()[0] > 1e4"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), tree / "book/asks.ipynb")
    assert execute_all([tree / "book/asks.ipynb"], tree, tree / "kept") == []


def test_pages_that_are_not_there_are_named(tree):
    chapters = "[{file: book/gone}, {file: book/status}]"
    (tree / "_toc.yml").write_text(f"root: book/good\nparts: [{{chapters: {chapters}}}]\n")
    assert toc.missing(tree) == ["book/gone"]
    assert toc.chapters(tree) == [tree / "book/good.ipynb"]


def test_staged_tree_has_the_executed_copies_and_the_status(tree):
    (tree / "_toc.yml").write_text("root: book/good\nparts: [{chapters: [{file: book/status}]}]\n")
    (tree / "_config.yml").write_text("repository: {url: ''}")
    (tree / "book/references.bib").write_text("")
    (tree / "book/llms.txt").write_text("# A map")
    assert execute_all([tree / "book/good.ipynb"], tree, tree / "kept") == []
    stage(tree, tree / "kept", records([tree / "book/good.ipynb"], tree / "kept"), tree / "src")
    assert "42" in (tree / "src/book/good.ipynb").read_text()
    assert "(good.ipynb)" in (tree / "src/book/status.md").read_text()
    assert (tree / "src/llms.txt").read_text() == "# A map"


def test_status_page_tells_when_how_long_and_on_what():
    record = {"chapter": "elbo", "started": "2026-01-02T03:04+00:00", "seconds": 12.3}
    record |= {"device": "a CPU", "cpus": 2, "torch": "2.13.0", "python": "3.11.2"}
    row = "| [](elbo.ipynb) | 2026-01-02 03:04 | 12 | a CPU (2 CPUs) | 2.13.0 | 3.11.2 |"
    assert row in status_page([record])


def test_dictionary_page_has_every_line_and_keeps_bars_out_of_the_table(tmp_path):
    source = tmp_path / "dictionary.csv"
    lines = ["seed,,Of the run", "config.lr,1,A rate", 'x_*,nat,"Mean |a − b|, per example"']
    source.write_text("\n".join(["pattern,unit,meaning", *lines]) + "\n", encoding="utf-8")
    page = dictionary_page(source).splitlines()
    rows = [line for line in page if line.startswith(("| `", "## "))]
    assert [row for row in rows if row.startswith("| ")] == [
        "| `seed` |  | Of the run |",
        "| `config.lr` | 1 | A rate |",
        r"| `x_*` | nat | Mean \|a − b\|, per example |",
    ]
    assert [i for i, row in enumerate(rows) if row.startswith("#")] == [0, 2, 4]
    assert page[0] == "# Data dictionary"
