"""The files that describe the environment agree with each other and with no machine."""

import re
import subprocess
import tomllib

import pytest
import yaml

from book.tools import toc

ROOT = toc.ROOT
# Written so that this file does not contain what it looks for.
MACHINE = re.compile(r"(?<![\w.])/(work|root|opt|home)/\w|file:/{2}/\w")
REGISTRIES = [
    ".".join(name) for name in (["pypi", "org"], ["pythonhosted", "org"], ["npmjs", "org"])
]
BINARY = {".png", ".woff", ".woff2", ".gz"}


def name_of(requirement: str) -> str:
    """The package a requirement names, spelled as registries compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins() -> dict[str, str]:
    """Each line of constraints.txt, by package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name_of(line): line for line in lines if line and not line.startswith("#")}


def test_constraints_are_exact_and_work_on_any_machine():
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins().values())


def test_constraints_hold_every_direct_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    assert {name_of(requirement) for requirement in direct} <= set(pins())


def test_conda_environment_pins_nothing_itself():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in environment
    (pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[book,test]"]


def test_no_file_names_this_machine_or_a_registry():
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if "vendor" in path.parts or path.suffix in BINARY or not path.is_file():
            continue
        text = path.read_text()
        if MACHINE.search(text) or any(host in text for host in REGISTRIES):
            found.append(name)
    assert found == []
