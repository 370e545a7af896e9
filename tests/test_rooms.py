"""The rooms of the house: who may import whom, what no package may hide, how large things get."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from book.tools import rooms, toc

HEAVY = ("sklearn", "scipy", "pandas", "matplotlib", "torchvision")


@pytest.mark.parametrize(
    "problems",
    [rooms.circle_problems, rooms.upward_problems, rooms.hiding_problems, rooms.size_problems],
)
def test_the_house_keeps_its_rules(problems):
    assert problems(toc.ROOT) == []


def test_every_module_has_a_room_and_edges_join_different_ones():
    assert {rooms.room(module) for module in rooms.modules(toc.ROOT)} == set(rooms.ROOMS)
    found = rooms.edges(toc.ROOT)
    assert ("gfo.train.fit", "gfo.core.attached") in found["train", "core"]
    assert ("gfo_lab.run", "gfo.core.registry") in found["gfo_lab", "core"]
    assert ("gfo", "gfo.train.fit") in found["gfo", "train"]  # named in a string
    for (a, b), pairs in found.items():
        assert a != b and {(rooms.room(m), rooms.room(n)) for m, n in pairs} == {(a, b)}


@pytest.fixture
def copy(tmp_path):
    """Both packages in a folder of their own."""
    for place in rooms.PACKAGES.values():
        shutil.copytree(
            toc.ROOT / place, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def plant(root, file, text):
    """Add a line to the end of a file that may be new."""
    with (root / file).open("a", encoding="utf-8") as out:
        out.write(f"\n{text}\n")


def one(problems, *files):
    """There is one problem and it names the files."""
    (line,) = problems
    assert all(file in line for file in files), line


LAZILY = "def later():\n    "


@pytest.mark.parametrize("start", ["", LAZILY], ids=["at the top", "in a function"])
def test_a_circle_is_found(copy, start):
    plant(copy, "gfo/core/batch.py", f"{start}from gfo.core.predict import predict as _")
    one(rooms.circle_problems(copy), "gfo/core/batch.py", "gfo/core/predict.py")
    assert rooms.upward_problems(copy) == []


def test_a_circle_over_three_files_and_one_in_the_laboratory_are_found(copy):
    plant(copy, "gfo/data/one.py", "import gfo.data.two")
    plant(copy, "gfo/data/two.py", "from gfo.data import three")
    plant(copy, "gfo/data/three.py", "from . import one")
    plant(copy, "book/gfo_lab/profiles.py", "from gfo_lab.experiments.job import Job as _")
    short, long = rooms.circle_problems(copy)
    assert "gfo_lab/profiles.py" in short and "gfo_lab/experiments/job.py" in short
    assert all(f"gfo/data/{name}.py" in long for name in ("one", "two", "three"))


@pytest.mark.parametrize(
    "line",
    [
        "from gfo.audit.toys import Toy as _",
        "from gfo.audit import toys as _",
        "import gfo.audit.toys as _",
        "from ..audit import toys as _",
        f"{LAZILY}from gfo.audit import toys",
        "import importlib\n_ = lambda: importlib.import_module('gfo.audit.toys')",
    ],
)
def test_an_import_upwards_is_found(copy, line):
    plant(copy, "gfo/models/resnet.py", line)
    one(rooms.upward_problems(copy), "gfo/models/resnet.py", "gfo/audit/toys.py")


def test_a_name_that_a_package_offers_from_upstairs_is_found(copy):
    plant(copy, "gfo/train/__init__.py", 'LATER = {"toy": "gfo.audit.toys"}')
    one(rooms.upward_problems(copy), "gfo/train/__init__.py", "gfo/audit/toys.py")


def test_a_room_cannot_go_in_by_the_front_door(copy):
    plant(copy, "gfo/models/resnet.py", f"{LAZILY}import gfo")
    one(rooms.upward_problems(copy), "gfo/models/resnet.py", "gfo/__init__.py")


@pytest.mark.parametrize("start", ["", LAZILY], ids=["at the top", "in a function"])
@pytest.mark.parametrize("file", ["gfo/audit/trial.py", "gfo/__init__.py"])
def test_the_library_that_imports_the_laboratory_is_found(copy, file, start):
    plant(copy, file, f"{start}from gfo_lab.ledger import verdict as _")
    one(rooms.upward_problems(copy), file, "book/gfo_lab/ledger.py")


def test_an_import_for_the_type_checker_alone_is_free(copy):
    lines = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gfo.audit import toys"
    plant(copy, "gfo/models/resnet.py", lines)
    assert rooms.circle_problems(copy) == rooms.upward_problems(copy) == []
    plant(copy, "gfo/models/resnet.py", "if not 0:\n    from gfo.audit import toys")
    one(rooms.upward_problems(copy), "gfo/models/resnet.py", "gfo/audit/toys.py")


def test_a_folder_that_is_no_room_is_found(copy):
    (copy / "gfo/attic").mkdir()
    plant(copy, "gfo/attic/__init__.py", "from gfo.core.batch import rows")
    (line,) = rooms.upward_problems(copy)
    assert "gfo/attic/__init__.py imports gfo/core/batch.py: attic is no room" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "module"),
    [
        ("gfo/train/__init__.py", "from gfo.train.fit import fit", "gfo/train/fit.py"),
        ("gfo/train/__init__.py", "class optim: pass", "gfo/train/optim.py"),
        (
            "gfo/audit/__init__.py",
            '__getattr__ = lazily(__name__, {"diagnose": "gfo.audit.diagnose"})',
            "gfo/audit/diagnose.py",
        ),
        ("book/gfo_lab/__init__.py", "from gfo_lab.run import run", "book/gfo_lab/run.py"),
        # the front door and a room
        ("gfo/__init__.py", "def audit(): pass", "gfo/audit/__init__.py"),
    ],
)
def test_a_name_that_hides_a_module_is_found(copy, file, line, module):
    plant(copy, file, line)
    one(rooms.hiding_problems(copy), file, module)


def test_what_is_too_long_is_found(copy):
    plant(copy, "gfo/core/long.py", "\n".join(["x = 1"] * (rooms.MODULE_LINES - 1)))
    plant(copy, "gfo/data/long.py", "def f():\n" + "    x = 1\n" * rooms.FUNCTION_LINES)
    before = rooms.size_problems(copy)
    assert any("gfo/data/long.py: f (line 2) has 61 lines" in line for line in before)
    plant(copy, "gfo/core/long.py", "x = 1")
    new = set(rooms.size_problems(copy)) - set(before)
    assert any("gfo/core/long.py has 352 lines, more than 350" in line for line in new)


def test_too_much_code_and_too_many_names_at_the_top_are_found(copy, monkeypatch):
    count = sum(map(rooms.code_lines, (copy / "gfo").rglob("*.py")))
    monkeypatch.setitem(rooms.CODE_LINES, "gfo", count)
    assert not any(line.startswith("gfo has") for line in rooms.size_problems(copy))
    plant(copy, "gfo/core/batch.py", "x = 1")
    (line,) = [line for line in rooms.size_problems(copy) if line.startswith("gfo has")]
    assert line == f"gfo has {count + 1} code lines, more than {count}"
    monkeypatch.setitem(rooms.CODE_LINES, "gfo", count + 1)
    for name in ("a", "b"):
        plant(copy, f"gfo/{name}.py", "")
    assert any("names at its top, more than 8" in line for line in rooms.size_problems(copy))


def test_code_lines_are_no_blanks_comments_and_docstrings(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""One.\n\nTwo."""\n\n# three\nx = """\nno docstring\n"""\n\n\n'
                    'def f():\n    """Four."""\n    return 1  # five\n')  # fmt: skip
    assert rooms.code_lines(file) == 5
    assert rooms.functions(file) == {"f (line 11)": 3}


def loaded_by(statement):
    ask = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_gfo_loads_no_library_that_can_wait():
    loaded = loaded_by("import gfo")
    assert "torch" in loaded and [name for name in HEAVY if name in loaded] == []


def test_what_every_chapter_imports_leaves_scikit_learn_and_scipy_stats_for_later():
    # a second of each chapter's time, and most chapters use neither
    loaded = loaded_by("import gfo.evaluate.plots, gfo_lab.experiments")
    assert "pandas" in loaded and {"sklearn", "scipy.stats"}.isdisjoint(loaded)


def test_a_package_that_cannot_be_imported_is_named(copy):
    plant(copy, "gfo/core/noise.py", "import nowhere_at_all")
    with pytest.raises(ImportError, match="No module named 'nowhere_at_all'"):
        rooms.hiding_problems(copy)


def test_the_command_prints_sizes_edges_and_circles(monkeypatch, capsys, copy):
    monkeypatch.setattr(toc, "ROOT", copy)
    for name in ("FUNCTION_LINES", "MODULE_LINES"):
        monkeypatch.setattr(rooms, name, 10_000)
    monkeypatch.setattr(rooms, "CODE_LINES", dict.fromkeys(rooms.PACKAGES, 10_000))
    monkeypatch.setattr(rooms, "hidden", lambda root: set())  # another test imports everything
    assert rooms.main() == 0
    said = capsys.readouterr().out
    assert all(f"\n{room} " in said for room in rooms.ROOMS) and said.endswith("\n0 circles\n")
    assert re.search(r"^  train: .*core \d+", said, re.MULTILINE)
    plant(copy, "gfo/core/batch.py", f"{LAZILY}import gfo.audit.toys")
    assert rooms.main() == 1
    said = capsys.readouterr().out
    assert "gfo/core/batch.py imports gfo/audit/toys.py: audit comes after core" in said
