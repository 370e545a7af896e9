"""Fold away what a reader need not see at first, and say on each fold what it folds."""

import ast
import re

from nbformat import NotebookNode

from book.tools.downloads import statements

SET_UP = "Set-up: parameters and imports"
SHOWN = {"display_data", "execute_result"}  # outputs that become a figure or a table
HEADING = re.compile(r"^#+ ", re.MULTILINE)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def settle(notebook: NotebookNode) -> None:
    """Let a page open with what it says: the cells that set up move down to the first other code.

    The first cell, which fetches this package, is for who runs the notebook and leaves the page.
    The parameters and the imports behind them become one folded cell.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ends = [k for k, cell in enumerate(code) if "parameters" in tags(cell)]
    if not ends or ends[0] + 1 == len(code):
        return
    count = ends[0] + 1 + imports_only(code[ends[0] + 1])
    first, *rest = code[:count]
    if rest:
        first.metadata["tags"] = [*tags(first), "remove-cell"]
    merged = rest[0] if rest else first
    merged.source = "\n\n".join(cell.source for cell in rest or [first])
    merged.outputs = [output for cell in rest or [first] for output in cell.outputs]
    merged.metadata["tags"] = ["parameters", "hide-input"]
    moved = {id(cell) for cell in rest or [first]}
    left = [cell for cell in notebook.cells if id(cell) not in moved]
    at = next((k for k, c in enumerate(left) if count < len(code) and c is code[count]), len(left))
    notebook.cells = [*left[:at], merged, *left[at:]]


def imports_only(cell: NotebookNode) -> bool:
    """Whether a cell begins with imports and shows nothing: it prepares what comes."""
    body = statements(cell.source)
    starts = bool(body) and isinstance(body[0], ast.Import | ast.ImportFrom)
    return starts and not cell.outputs and "figure" not in cell.metadata


def fold(cell: NotebookNode, figure: int | None) -> None:
    """Fold a cell of checks, and write on a folded cell what it holds.

    Args:
        cell: a code cell, executed.
        figure: the number under the figure that it draws, or else under the next of its section,
            which it prepares, if there is one.
    """
    folded = only_checks(cell) or {"parameters", "install"} & set(tags(cell))
    if folded and "hide-input" not in tags(cell):
        cell.metadata["tags"] = [*tags(cell), "hide-input"]
    if "hide-input" in tags(cell):
        prompt = label(cell, figure)
        options = cell.metadata.setdefault("mystnb", {})
        options |= {"code_prompt_show": prompt, "code_prompt_hide": prompt}


def leads_to_figure(cells: list[NotebookNode]) -> bool:
    """Whether a figure is drawn in some cells before the next section begins."""
    for cell in cells:
        if cell.cell_type == "markdown" and HEADING.search(cell.source):
            return False
        if cell.cell_type == "code" and drawn(cell):
            return True
    return False


def label(cell: NotebookNode, figure: int | None) -> str:
    """What a folded cell holds, in a few words."""
    body = statements(cell.source)
    if "parameters" in tags(cell):
        return SET_UP
    if drawn(cell):
        return f"Code of Figure {figure}"
    checks = sum(count_checks(body))
    if checks and not shown(cell) and 3 * checks >= size(body):
        return told(body)
    data = [output.data for output in shown(cell)]
    if any(WIDGET_VIEW in one for one in data):
        return "Code of the sliders below"
    if any('class="gfo-live"' in "".join(one.get("text/html", "")) for one in data):
        return "Code of the live view below"
    if any("<table" in "".join(one.get("text/html", "")) for one in data):
        return "Code of the table below"
    names = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    if names and not cell.outputs:
        return "Code of " + ", ".join(names)
    if cell.outputs:
        return "Code of the lines below"
    if figure:
        return f"Code behind Figure {figure}"
    return told(body) if checks else "Code of the next step"


def told(body: list[ast.stmt]) -> str:
    """How many checks some statements make."""
    plain, guarded = count_checks(body)
    held = [f"{plain} {'holds' if plain == 1 else 'hold'}"] if plain else []
    if guarded:  # whether these ran depends on the profile and the records that there are
        held.append(f"{guarded}{' more' if plain else ''} where they apply")
    return "Checks of this section: " + ", ".join(held)


def only_checks(cell: NotebookNode) -> bool:
    """Whether a cell does nothing but assert: two times or more, and with little beside it."""
    body = statements(cell.source)
    plain, guarded = count_checks(body)
    return plain + guarded >= max(2, size(body) / 2) and not cell.outputs


def size(body: list[ast.stmt]) -> int:
    """How many statements these are, those inside of others counted."""
    return sum(isinstance(n, ast.stmt) for part in body for n in ast.walk(part))


def count_checks(body: list[ast.stmt]) -> tuple[int, int]:
    """The asserts in some statements: outside and inside of conditions."""
    everywhere = sum(isinstance(n, ast.Assert) for part in body for n in ast.walk(part))
    conditions = [n for part in body for n in ast.walk(part) if isinstance(n, ast.If)]
    guarded = {id(n) for c in conditions for n in ast.walk(c) if isinstance(n, ast.Assert)}
    return everywhere - len(guarded), len(guarded)


def drawn(cell: NotebookNode) -> int:
    """How many numbered figures the page makes of a cell."""
    return len(shown(cell)) if "figure" in cell.metadata else 0


def shown(cell: NotebookNode) -> list:
    """A cell's outputs that are more than printed lines."""
    return [output for output in cell.outputs if output.output_type in SHOWN]


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return cell.metadata.get("tags", [])
