"""What imports what, and how large it is, read from the sources: `python -m book.tools.rooms`.

A root is a folder that holds `gfo` and `book/gfo_lab`. The library's rooms stand in `ROOMS`, and
each may import those that are named before it. Imports inside functions count, those for a type
checker alone do not.
"""

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from book.tools import toc

# `gfo` is the library's own front door, gfo/__init__.py; the laboratory is one room.
ROOMS = ("core", "methods", "models", "data", "train", "evaluate", "audit", "gfo", "gfo_lab")
PACKAGES = {"gfo": Path("gfo"), "gfo_lab": Path("book/gfo_lab")}
MODULE_LINES, FUNCTION_LINES = 350, 60
CODE_LINES = {"gfo": 4800, "gfo_lab": 3200}
TOP_NAMES = 8

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of both packages and its file; a package stands for its `__init__.py`."""
    found = {}
    for package, place in PACKAGES.items():
        for path in sorted((root / place).rglob("*.py")):
            parts = path.relative_to(root / place).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The room of a module: "core" of gfo.core.batch, "gfo" of gfo itself."""
    top, _, rest = module.partition(".")
    return rest.split(".")[0] if top == "gfo" and rest else top


def imports(root: Path) -> Graph:
    """Which modules of both packages each module imports itself, lazily or not.

    `from gfo.core import batch` is an import of gfo.core.batch, `from gfo.data import load` one of
    gfo.data, and so is the name of a module in a string of an `__init__.py`, which imports it when
    asked (`gfo.core.lazy`). That a module needs its own packages is no edge.
    """
    known = modules(root)
    return {
        name: {nearest(target, known) for target in targets(path, name)} - {""}
        for name, path in known.items()
    }


def nearest(target: str, known: dict[str, Path]) -> str:
    """The module that a dotted name is or lies in; "" where it is none of ours."""
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def targets(path: Path, module: str) -> Iterator[str]:
    """The dotted names that a file imports."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join([*(above if node.level else []), *([node.module] * bool(node.module))])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.args[0]
            if called == "import_module" and isinstance(name, ast.Constant):
                yield str(name.value)
        elif isinstance(node, ast.Constant) and path.name == "__init__.py":
            name = str(node.value)
            if name.startswith("gfo") and all(map(str.isidentifier, name.split("."))):
                yield name


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, without what stands under `if TYPE_CHECKING`."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for node in child.orelse:
                yield from running(node)
        else:
            yield from running(child)


def edges(root: Path = toc.ROOT) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """For every two different rooms (a, b) where a imports b: which module imports which."""
    found = defaultdict(list)
    for a, targets in imports(root).items():
        for b in sorted(targets):
            if room(a) != room(b):
                found[room(a), room(b)].append((a, b))
    return dict(found)


def circles(root: Path) -> list[list[str]]:
    """One circle, the shortest, for every knot of modules that import each other in the end."""
    graph = imports(root)
    ways = sorted(filter(None, (way_back(graph, start) for start in graph)), key=len)
    found: list[list[str]] = []
    for way in ways:
        knot = reached(graph, way[0])
        if not any(way[0] in reached(graph, other[0]) and other[0] in knot for other in found):
            found.append(way)
    return found


def way_back(graph: Graph, start: str) -> list[str]:
    """The modules of the shortest circle through `start`; none where there is no circle."""
    ways, seen = [[start]], set()
    for way in ways:  # which grows meanwhile
        if start in graph[way[-1]]:
            return way
        for step in sorted(graph[way[-1]] - seen):
            seen.add(step)
            ways.append([*way, step])
    return []


def reached(graph: Graph, start: str) -> set[str]:
    """All modules that `start` imports in the end."""
    found, left = set(), [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


def file_of(root: Path, module: str) -> str:
    """A module's file as a message names it."""
    return modules(root)[module].relative_to(root).as_posix()


def circle_problems(root: Path) -> list[str]:
    """One line per circle of imports."""
    return [
        "circle: " + " imports ".join(file_of(root, m) for m in (*way, way[0]))
        for way in circles(root)
    ]


def upward_problems(root: Path) -> list[str]:
    """One line per import of a room that is named after one's own, or of one that is no room. The
    laboratory is the last room, so that the library cannot import it."""
    found = []
    for (a, b), pairs in edges(root).items():
        unknown = [name for name in (a, b) if name not in ROOMS]
        if unknown or ROOMS.index(a) < ROOMS.index(b):
            why = f"{unknown[0]} is no room" if unknown else f"{b} comes after {a}"
            found += [f"{file_of(root, m)} imports {file_of(root, n)}: {why}" for m, n in pairs]
    return found


# Run in a fresh interpreter: for each package and submodule, does the package give the submodule?
ASK = """
import importlib, json, sys
hidden = []
for package, names in json.loads(sys.argv[1]).items():
    module = importlib.import_module(package)
    lazy = vars(module).get("__getattr__")
    for name in names:
        found = [vars(module)[name]] if name in vars(module) else []
        try:
            found += [lazy(name)] if lazy else []
        except AttributeError:
            pass
        submodule = importlib.import_module(f"{package}.{name}")
        found.append(getattr(module, name))
        hidden += [[package, name]] * any(thing is not submodule for thing in found)
print(json.dumps(hidden))
"""


def hidden(root: Path) -> set[tuple[str, str]]:
    """(package, name) where a package has another thing under the name of its submodule: now, when
    asked for it lazily, once the submodule is imported, or by what its source says."""
    known, inside = modules(root), defaultdict(list)
    for module in known:
        package, _, name = module.rpartition(".")
        if package and name != "__main__":
            inside[package].append(name)
    paths = [str(root), str(root / "book"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(inside)], cwd=root, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    if done.returncode:
        raise ImportError(f"a package cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    found = {(package, name) for package, name in json.loads(done.stdout)}
    for package, names in inside.items():
        found |= {(package, name) for name in bound(known[package], package) & set(names)}
    return found


def bound(path: Path, package: str) -> set[str]:
    """The names that a package's source gives to anything but its own submodules of those names."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom) and (node.module != package or node.level):
            own = node.level == 1 and not node.module
            found |= {alias.asname or alias.name for alias in node.names} if not own else set()
        elif isinstance(node, ast.Assign):
            found |= {name.id for name in node.targets if isinstance(name, ast.Name)}
    return found


def hiding_problems(root: Path) -> list[str]:
    """One line per submodule that its package hides."""
    return [
        f"{file_of(root, package)} hides {file_of(root, f'{package}.{name}')}: "
        f"{package}.{name} is another thing"
        for package, name in sorted(hidden(root))
    ]


def code_lines(path: Path) -> int:
    """Lines of a file that are no blank, no comment and no docstring."""
    text, said = path.read_text(encoding="utf-8"), set()
    for node in ast.walk(ast.parse(text)):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node):
            said |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    plain = (line.strip() for i, line in enumerate(text.split("\n"), 1) if i not in said)
    return sum(bool(line) and not line.startswith("#") for line in plain)


def functions(path: Path) -> dict[str, int]:
    """Lines of each function of a file with its docstring, by name and line."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def size_problems(root: Path) -> list[str]:
    """One line per module, function or package that is longer than agreed, and one where the top of
    the library has too many names."""
    found = []
    total = dict.fromkeys(PACKAGES, 0)
    for name, path in modules(root).items():
        where = path.relative_to(root).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        total[name.split(".")[0]] += code_lines(path)
        if lines > MODULE_LINES:
            found.append(f"{where} has {lines} lines, more than {MODULE_LINES}")
        for function, length in functions(path).items():
            if length > FUNCTION_LINES:
                found.append(f"{where}: {function} has {length} lines, more than {FUNCTION_LINES}")
    for package, lines in total.items():
        if lines > CODE_LINES[package]:
            place = PACKAGES[package].as_posix()
            found.append(f"{place} has {lines} code lines, more than {CODE_LINES[package]}")
    usual = {"__init__.py", "py.typed", "__pycache__"}
    names = sorted(path.name for path in (root / PACKAGES["gfo"]).iterdir())
    if len(names := [name for name in names if name not in usual]) > TOP_NAMES:
        found.append(f"gfo has {len(names)} names at its top, more than {TOP_NAMES}: {names}")
    return found


def report(root: Path) -> str:
    """Sizes by room, imports between rooms, and the number of circles."""
    size: dict[str, list[list[int]]] = defaultdict(list)
    for name, path in modules(root).items():
        own = [1, len(path.read_text(encoding="utf-8").splitlines()), code_lines(path)]
        size[room(name)].append(own)
        size[f"{name.split('.')[0]} in all"].append(own)
    told = [f"{'room':<16}{'modules':>8}{'lines':>8}{'code':>8}"]
    for key in sorted(size, key=lambda key: (*ROOMS, *size).index(key)):
        told.append(f"{key:<16}" + "".join(f"{sum(n):>8}" for n in zip(*size[key], strict=True)))
    told += ["", "imports between rooms"]
    between = edges(root)
    for a in dict.fromkeys(a for a, _ in between):
        counts = [f"{b} {len(pairs)}" for (c, b), pairs in between.items() if c == a]
        told.append(f"  {a}: {', '.join(counts)}")
    return "\n".join([*told, "", f"{len(circles(root))} circles"])


def main() -> int:
    """Print the report and every broken rule; 1 where there is one."""
    print(report(toc.ROOT))
    checks = (circle_problems, upward_problems, hiding_problems, size_problems)
    problems = [line for check in checks for line in check(toc.ROOT)]
    for line in problems:
        print(line)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
