"""Sphinx extension: what the book's plain equations and plain docstrings need to come out right."""

import re

from docutils import nodes

LITERAL_OR_BAR = re.compile(r"(`+[^`]*`+)|\|")
OPENING, CLOSING = re.compile(r"[(\[“‘]+$"), re.compile(r"^[.,:;!?)\]’”…]+")


def keep_tagged(app, doctree) -> None:
    r"""Hand every equation that carries its own `\tag` to MathJax as it is.

    Sphinx would wrap one with a line break in `split`, where `\tag` is an error.
    """
    for node in doctree.findall(nodes.math_block):
        if r"\tag" in node.astext() and not node.get("nowrap"):
            node["nowrap"] = True
            node.children = [nodes.Text(rf"\[{node.astext().strip()}\]")]


def hold_points(app, doctree) -> None:
    """Keep the points around an inline formula on its line: a browser breaks even there."""
    for node in list(doctree.findall(nodes.math)):
        held, at = [node.deepcopy()], node.parent.index(node)
        for step, points in ((1, CLOSING), (-1, OPENING)):
            beside = node.parent[at + step] if 0 <= at + step < len(node.parent) else None
            found = points.search(beside) if isinstance(beside, nodes.Text) else None
            if found:
                held.insert(len(held) if step > 0 else 0, nodes.Text(found[0]))
                node.parent.replace(beside, nodes.Text(points.sub("", beside)))
        if len(held) > 1:
            node.replace_self(nodes.inline("", "", *held, classes=["held"]))


def plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Read a docstring as it is meant: a bar is an absolute value, no substitution. And what
    `namedtuple` says of a field, its number, is nothing to read."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    lines[:] = [LITERAL_OR_BAR.sub(lambda found: found[1] or r"\|", line) for line in lines]


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-read", keep_tagged)
    app.connect("doctree-read", hold_points)
    app.connect("autodoc-process-docstring", plain_text)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
