"""Sphinx extension: what the book's plain equations and plain docstrings need to come out right."""

import re

from docutils import nodes

# "name: text" or "one, two: text" at the left margin of a docstring
ARGUMENTS = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): (?=\S)")


def keep_tagged(app, doctree) -> None:
    r"""Hand every equation that carries its own `\tag` to MathJax as it is.

    Sphinx would wrap one with a line break in `split`, where `\tag` is an error.
    """
    for node in doctree.findall(nodes.math_block):
        if r"\tag" in node.astext() and not node.get("nowrap"):
            node["nowrap"] = True
            node.children = [nodes.Text(rf"\[{node.astext().strip()}\]")]


def list_arguments(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring's paragraphs of `name: text` lines into lists of parameters, in place."""
    if lines and lines[0].startswith("Alias for field number"):  # all that namedtuple says
        lines.clear()
    out, listing, after_blank = [], False, False
    for line in lines:
        if (listing or after_blank) and (found := ARGUMENTS.match(line)):
            names = found[1].replace(", ", ",")  # a blank would make the first one a type
            line, listing = f":param {names}: {line[found.end() :]}", True
        elif listing and line and not line.startswith(" "):
            out += [""] if out[-1] else []
            listing = False
        out.append(line)
        after_blank = not line
    lines[:] = out


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-read", keep_tagged)
    app.connect("autodoc-process-docstring", list_arguments)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
