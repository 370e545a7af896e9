"""The built pages in a real browser that reaches no network: formulas and widgets must be drawn."""

import re
import shutil
import subprocess

import pytest

from book.tools import toc

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HTML = toc.ROOT / "_build/html"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=10000",
    "--dump-dom",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.mark.parametrize("page", toc.pages(), ids=lambda page: page.rpartition("/")[2])
def test_page_shows_its_formulas_and_widgets(page, tmp_path):
    path = HTML / f"{page}.html"
    if not path.exists():
        pytest.skip("the page is not built: run `make book`")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    source = path.read_text()
    formulas = len(re.findall(r'class="(?:amsmath )?math notranslate', source))
    assert dom.count("<mjx-container") >= formulas
    assert "<mjx-merror" not in dom, "MathJax could not read a formula"
    # An unknown macro is no error to MathJax: it shows the name in red.
    assert re.findall(r"<mjx-mtext[^>]*color: red[^>]*>.{0,80}", dom) == []
    if "application/vnd.jupyter.widget-view+json" in source:
        assert re.search(r'class="[^"]*jupyter-widgets', dom), "a widget is not drawn"
