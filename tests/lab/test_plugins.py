"""What lies outside the clone: methods and experiments of one's own, and records."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from gfo_lab import cli, plugins, records
from gfo_lab.experiments import EXPERIMENTS

from book.tools import rooms, toc
from gfo.core.registry import METHODS

MYMETHOD = '''
"""A method and a tiny experiment, in one file."""

import dataclasses
import os

from gfo_lab.experiments import digits
from gfo_lab.experiments.job import register

import gfo
from gfo.core.registry import METHODS


@METHODS.register("half-kept")
class HalfKept(gfo.RandomDropout):
    """Plain dropout under another name."""

    name = "half-kept"


def configs(dataset, method, profile):
    (config,) = digits.default_configs(dataset, method, profile)
    return [config | {"epochs": 1, "hidden": [8, 8]}]


def run(job):
    net, _ = digits.fitted(job.splits(), job)
    return {"accuracy": 0.5, "class": type(net.method).__name__, "pid": os.getpid()}


register(
    dataclasses.replace(
        digits.ROTATION, name="mine", about="one epoch", methods=("half-kept",),
        configs=configs, run=run,
    )
)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory outside the clone; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules), set(EXPERIMENTS), set(METHODS)
    importlib.invalidate_caches()
    yield tmp_path
    for table, known in zip((sys.modules, EXPERIMENTS, METHODS), before, strict=True):
        for name in set(table) - known:
            del table[name]


def test_a_module_of_the_working_directory_is_imported(here):
    (here / "mymethod.py").write_text(MYMETHOD)
    plugins.bring(["mymethod"])
    assert METHODS["half-kept"](keep=0.9).config["keep"] == 0.9
    assert EXPERIMENTS["mine"].methods == ("half-kept",)
    plugins.bring(["mymethod"])  # twice is once


@pytest.mark.parametrize("name", ["mymethd", "no.such.module"])
def test_an_unknown_module_gets_one_line(here, name, capsys):
    assert cli.main(["list", "--import", name]) == 2
    error = capsys.readouterr().err
    assert f"cannot import '{name}'" in error and "run where it lies" in error
    assert error.count("\n") == 1


def test_a_module_with_a_mistake_is_named(here, capsys):
    (here / "mistaken.py").write_text("def method(:\n")
    assert cli.main(["list", "--import", "mistaken"]) == 2
    error = capsys.readouterr().err
    assert "cannot import 'mistaken' (SyntaxError" in error and error.count("\n") == 1


def test_a_module_that_lacks_another_says_which(here, capsys):
    (here / "mymethod.py").write_text("import not_installed_anywhere")
    assert cli.main(["list", "--import", "mymethod"]) == 2
    error = capsys.readouterr().err
    assert "cannot import 'mymethod' (ModuleNotFoundError: No module named" in error
    assert "not_installed_anywhere" in error


def test_what_an_installed_package_announces_comes_without_being_named(here, monkeypatch):
    (here / "announced.py").write_text(MYMETHOD)
    monkeypatch.syspath_prepend(here)

    def entry_points(group):
        return [SimpleNamespace(value="announced")] if group == plugins.GROUP else []

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    plugins.bring()
    assert "half-kept" in METHODS


def gfo_lab(*args, cwd, **env):
    """What the command prints in a process of its own."""
    command = [sys.executable, "-m", "gfo_lab", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_method_of_ones_own_runs_on_several_workers(tmp_path):
    (tmp_path / "mymethod.py").write_text(MYMETHOD)
    args = ["run", "mine", "--profile", "quick", "--seed", "0", "1", "--jobs", "2", "--json"]
    args += ["--out", "out", "--scratch", "scratch", "--import", "mymethod"]
    done = gfo_lab(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["seed"] for row in json.loads(done.stdout)] == [0, 1]
    found = records.read("mine", tmp_path / "out")
    assert list(found["class"]) == ["HalfKept"] * 2 and set(found["method"]) == {"half-kept"}
    assert found["pid"].nunique() == 2
    assert not any((tmp_path / "scratch").iterdir())
    # without the module nobody knows the experiment
    done = gfo_lab(*args[:-2], cwd=tmp_path)
    assert done.returncode == 2 and "unknown experiment 'mine'" in done.stderr


def test_records_of_a_clone_lie_in_the_book():
    assert records.IN_CLONE and toc.ROOT / "book" / "results" == records.RESULTS


@pytest.mark.slow
@pytest.mark.parametrize("place", ["", "book"])
def test_installed_elsewhere_records_go_to_the_working_directory(tmp_path, place):
    site, cwd = tmp_path / "site", tmp_path / "cwd"
    cwd.mkdir()
    lab = site / place
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(toc.ROOT / rooms.PACKAGES["gfo"], site / "gfo", ignore=ignore)
    shutil.copytree(toc.ROOT / rooms.PACKAGES["gfo_lab"], lab / "gfo_lab", ignore=ignore)
    ask = (
        "import json, gfo, gfo_lab, gfo_lab.records as r; from gfo_lab.cli import main; "
        "print(json.dumps([str(r.RESULTS), gfo.__file__, gfo_lab.__file__])); main(['list'])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (site, lab)))}
    command = [sys.executable, "-c", ask]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    first, *listed = done.stdout.splitlines()
    results, library, laboratory = json.loads(first)
    assert library.startswith(str(site)) and laboratory.startswith(str(lab))
    assert results == str(cwd.resolve() / "results") and not any(cwd.iterdir())
    assert any("rotation" in line and "(0 records)" in line for line in listed)
