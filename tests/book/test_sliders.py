"""The sliders of the built pages move in a real browser that reaches no network and no kernel."""

import json
import re
import subprocess

import pytest
from browser import CHROMIUM, FLAGS
from test_browser import HTML

from book.tools import toc

DUMP = ["--virtual-time-budget=10000", "--dump-dom"]
# What a reader with a keyboard does: one press of an arrow key a slider. The frame is the picture
# that is shown; its bytes are compared, since a new address may hold the old picture.
SCRIPT = """
<script>
(async () => {
  const sleep = ms => new Promise(done => setTimeout(done, ms));
  const handles = () => [...document.querySelectorAll(".jupyter-widgets .noUi-handle")];
  const frames = async () => {
    const shown = [...document.querySelectorAll("img.jupyter-widgets")]
      .filter(img => img.offsetParent !== null);
    const texts = await Promise.all(shown.map(async img => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
      canvas.getContext("2d").drawImage(img, 0, 0);
      return canvas.toDataURL();
    }));
    return texts.join(" ");
  };
  for (let i = 0; i < 50 && !handles().length; i++) await sleep(100);
  await sleep(1000);
  const found = {sliders: handles().length, start: (await frames()).length, moved: []};
  for (const handle of handles()) {
    const before = await frames();
    const was = handle.getAttribute("aria-valuenow");
    handle.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    await sleep(500);
    found.moved.push({
      value: handle.getAttribute("aria-valuenow") !== was, frame: await frames() !== before,
    });
  }
  const out = document.createElement("pre");
  out.id = "what-the-sliders-did";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
})();
</script>
</body>
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

PAGES = [path.stem for path in toc.chapters() if "IntSlider(" in path.read_text()]


@pytest.fixture(params=PAGES)
def page(request):
    """The source of each built page with sliders."""
    path = HTML / f"book/{request.param}.html"
    if not path.exists():
        pytest.skip("the page is not built: run `make book`")
    return path.read_text()


def slide(source: str, profile) -> dict:
    """What the script found in the page after its arrow keys. The copy lies beside the page, whose
    scripts and styles it needs."""
    path = HTML / f"book/{profile.name}.sliders-test.html"
    path.write_text(source.replace("</body>", SCRIPT))
    command = [CHROMIUM, *FLAGS, *DUMP, f"--user-data-dir={profile}", path.as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        path.unlink()
    return json.loads(re.search(r'id="what-the-sliders-did">(.*?)</pre>', done.stdout)[1])


def test_each_slider_changes_the_frame_without_network_and_kernel(page, tmp_path):
    found = slide(page, tmp_path)
    assert found["sliders"] >= 1 and found["start"] > 100
    assert found["moved"] == [{"value": True, "frame": True}] * found["sliders"]


def test_sliders_without_links_are_found_out(page, tmp_path):
    """The test above fails where it should: the slider moves, the frame does not."""
    broken = page.replace('"LinkModel"', '"LayoutModel"')
    assert broken != page
    found = slide(broken, tmp_path)
    assert found["moved"] == [{"value": True, "frame": False}] * found["sliders"]
