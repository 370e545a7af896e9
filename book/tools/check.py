"""Read the built pages as a visitor without a network would, and say what is wrong with them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

FEWEST_WORDS = 20  # a page with fewer is empty
# Relations of a <link> that lead somewhere and load nothing.
POINTERS = {"author", "canonical", "help", "index", "license", "next", "prev", "search"}
IMPORTED = re.compile(
    r"""(?:@import|url\(|from|import|fetch)\s*\(?\s*["']?((?:https?:)?//[^"')\s;]+)"""
)


def check_site(html: Path, pages: list[str]) -> list[str]:
    """All problems of the site in `html`, each as one line; `pages` are those of `_toc.yml`."""
    parse.cache_clear(), anchors.cache_clear()
    html = html.resolve()  # so that no page has two names, and is read twice
    missing = [f"{page}: not built" for page in pages if not (html / f"{page}.html").exists()]
    problems = list(missing)
    for path in sorted(html.rglob("*.html")):
        if "_static" in path.parts:
            continue
        page = path.relative_to(html).with_suffix("").as_posix()
        found = [*external(path), *dead_links(path, html), *images_without_alt(path)]
        found += [*errors(path), *wrong_figures(path)]
        if page in pages:
            found += empty(path)
        problems += [f"{page}: {problem}" for problem in found]
    return problems


@cache
def parse(path: Path) -> BeautifulSoup:
    """The page, read once."""
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def article(path: Path):
    """The part of a page that the book wrote."""
    soup = parse(path)
    return soup.find("article") or soup


def external(path: Path) -> Iterator[str]:
    """Scripts, styles, images, frames and icons that would come from the network."""
    for tag in parse(path).find_all(True):
        found = [tag.get(name, "") for name in ("src", "data", "poster", "xlink:href")]
        found += IMPORTED.findall(tag.get("style", ""))
        found += [part.split()[0] for part in tag.get("srcset", "").split(",") if part.split()]
        if tag.name == "link" and not set(tag.get("rel", [])) & POINTERS:
            found.append(tag.get("href", ""))
        if tag.name in ("image", "use"):  # of an SVG
            found.append(tag.get("href", ""))
        if tag.name in ("style", "script"):
            found += IMPORTED.findall(tag.get_text())
        for address in found:
            if address.startswith(("http:", "https:", "//")):
                yield f"<{tag.name}> loads {address}"


def dead_links(path: Path, html: Path) -> Iterator[str]:
    """Local addresses that lead to no file, or to no such place in the file."""
    for tag in parse(path).find_all(["a", "img", "script", "link", "iframe"]):
        address = tag.get("href") or tag.get("src") or ""
        url = urlsplit(address)
        if not address or url.scheme or url.netloc:
            continue
        target = path.parent / unquote(url.path) if url.path else path
        target = target.resolve()
        if not target.exists() or not target.is_relative_to(html):
            yield f"<{tag.name}> leads nowhere: {address}"
        elif url.fragment and target.suffix == ".html" and not has_anchor(target, url.fragment):
            yield f"no such place: {address}"


def has_anchor(path: Path, fragment: str) -> bool:
    """Whether the page has an element of this name."""
    return unquote(fragment) in anchors(path)


@cache
def anchors(path: Path) -> set[str]:
    """The names of all places in a page that a link may lead to."""
    soup = parse(path)
    return {t["id"] for t in soup.find_all(id=True)} | {a.get("name") for a in soup.find_all("a")}


def images_without_alt(path: Path) -> Iterator[str]:
    """Images that say nothing to who cannot see them."""
    for image in article(path).find_all("img"):
        alt = image.get("alt", "").strip()
        # Docutils falls back on the file's name.
        if not alt or alt.endswith(Path(image.get("src", "")).name):
            yield f"image without alt text: {image.get('src', '')[:60]}"


def wrong_figures(path: Path) -> Iterator[str]:
    """Folded code that names another figure than the one it stands above."""
    for cell in article(path).find_all("div", class_="cell"):
        named = re.search(r"Code of Figure (\d+)", cell.get_text())
        number = cell.find("span", class_="caption-number")
        if named and number and named[1] != number.get_text().split()[-1]:
            yield f"{named[0]}, which is {number.get_text().strip()}"


def errors(path: Path) -> Iterator[str]:
    """Tracebacks of cells and marks that Sphinx leaves where it could not go on."""
    body = article(path)
    if "Traceback (most recent call last)" in body.get_text() or body.find(class_="traceback"):
        yield "carries a traceback"
    if body.find(class_=["system-message", "problematic"]):
        yield "carries an error message of Sphinx"


def empty(path: Path) -> Iterator[str]:
    """Pages with a title and nothing to read."""
    words = len(article(path).get_text().split())
    if words < FEWEST_WORDS:
        yield f"is empty ({words} words)"
