"""The built pages in a real browser that reaches no network: formulas and widgets are drawn, and
nothing lies outside of the page, on a screen of 1280 px, on a phone of 390 px and in print."""

import os
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from book.tools import toc

HTML = toc.ROOT / "_build/html"
OVERFLOW = Path(__file__).with_name("overflow.js").read_text(encoding="utf-8")
SIZES = {"screen": (1280, "screen"), "phone": (390, "screen"), "A4": (718, "print")}
AXE = Path(os.environ.get("AXE", toc.ROOT / "_build/axe/node_modules/axe-core/axe.min.js"))
DRAWN = """({
  formulas: document.querySelectorAll("mjx-container").length,
  unread: document.querySelectorAll("mjx-merror").length,
  // An unknown macro is no error to MathJax: it shows the name in red.
  red: [...document.querySelectorAll("mjx-mtext")].filter(e => e.style.color === "red").length,
  widgets: document.querySelectorAll(".jupyter-widgets").length,
})"""
# What is not ours to mend: the markup of MathJax and of ipywidgets, and the theme around the page.
EXEMPT = ["mjx-container", ".jupyter-widgets"]
EXEMPT += [".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article"]
SERIOUS = """axe.run({exclude: %s}, {resultTypes: ["violations"]}).then(all => all.violations
  .filter(rule => ["serious", "critical"].includes(rule.impact))
  // docutils' list of citations holds no items by name
  .filter(rule => rule.id !== "aria-required-children" || !document.querySelector(".citation-list"))
  .map(rule => rule.id + ": " + rule.nodes.map(node => node.target.join(" ")).slice(0, 3)))"""
# What is folded counts too, and axe must not look while a colour is still on its way.
UNFOLD = """document.querySelectorAll("details").forEach(one => { one.open = true; });
  document.head.insertAdjacentHTML("beforeend",
    "<style>*, *::before, *::after { transition: none !important; animation: none !important; }"
    + "</style>");
  new Promise(done => setTimeout(done, 100))"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One chromium for all pages."""
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(params=toc.pages(), ids=lambda page: page.rpartition("/")[2])
def path(request):
    """Each built page."""
    path = HTML / f"{request.param}.html"
    if not path.exists():
        pytest.skip("the page is not built: run `make book`")
    return path


def overflow(browser, size: str) -> list[str]:
    """What lies outside of the page that is open."""
    browser.resize(*SIZES[size])
    return [f"{size}: {problem}" for problem in browser.run(OVERFLOW)]


def test_page_is_drawn_and_fits(browser, path):
    source = path.read_text(encoding="utf-8")
    browser.resize(*SIZES["screen"])
    browser.open(path.as_uri())
    if "application/vnd.jupyter.widget-view+json" in source:
        browser.wait("document.querySelector('.jupyter-widgets')")
    drawn = browser.run(DRAWN)
    assert drawn["formulas"] >= len(re.findall(r'class="(?:amsmath )?math notranslate', source))
    assert drawn["unread"] == 0, "MathJax could not read a formula"
    assert drawn["red"] == 0, "MathJax does not know a macro"
    assert [problem for size in SIZES for problem in overflow(browser, size)] == []


@pytest.mark.parametrize(
    ("size", "planted"),
    [
        ("screen", "<div class='highlight'><pre>" + "x" * 120 + "</pre></div>"),
        ("phone", "<p style='white-space: nowrap'>" + "wide " * 20 + "</p>"),
        ("phone", "<div style='overflow: auto'><p style='width: 500px'>cut</p></div>"),
    ],
)
def test_what_is_too_wide_is_found(browser, size, planted):
    path = HTML / "book/bibliography.html"
    if not path.exists():
        pytest.skip("the page is not built: run `make book`")
    browser.open(path.as_uri())
    assert overflow(browser, size) == []
    browser.run(f'document.querySelector("article").insertAdjacentHTML("beforeend", "{planted}")')
    assert len(overflow(browser, size)) >= 1


def test_a_dark_page_is_printed_on_light_paper(browser):
    path = HTML / "book/bibliography.html"
    if not path.exists():
        pytest.skip("the page is not built: run `make book`")
    browser.resize(1280, "screen", "dark")
    browser.open(path.as_uri())
    seen = []
    for width, media in ((1280, "screen"), (718, "print"), (1280, "screen")):
        browser.resize(width, media, "dark")
        seen.append(browser.run("document.documentElement.dataset.theme"))
    assert seen == ["dark", "light", "dark"]


@pytest.mark.skipif(
    not AXE.exists(), reason="no axe-core: npm install --prefix _build/axe axe-core@4.14"
)
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(browser, path, scheme):
    """No serious violation by axe-core's rules, but for those of the theme and of MathJax."""
    browser.resize(*SIZES["screen"], scheme)
    browser.open(path.as_uri())
    browser.run(UNFOLD)
    browser.run(AXE.read_text(encoding="utf-8"))
    found = browser.run(SERIOUS % EXEMPT)
    assert found == []
