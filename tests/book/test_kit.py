"""The contributor's files say the same as the package: versions, bounds, commands, checks."""

import re
import tomllib

import pytest
import yaml
from gfo_lab.cli import COMMANDS
from packaging.requirements import Requirement

import gfo
from book.tools import toc

ROOT = toc.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """Package and version of each line of a file of pins."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_lowest_versions_are_the_lower_bounds():
    lowest = pins(".ci/lowest.txt")
    for text in PROJECT["dependencies"]:
        need = Requirement(text)
        (bound,) = need.specifier
        assert bound.operator == ">=" and need.specifier.contains(lowest[need.name]), text
        asked, tested = (v.split(".") for v in (bound.version, lowest[need.name]))
        assert tested[: len(asked)] == asked, f"{need.name}: {tested} is not {asked}"


def test_pre_commit_runs_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["rev"] for repo in hooks] == ["v" + pins("constraints.txt")["ruff"]]
    assert {hook["id"] for hook in hooks[0]["hooks"]} == {"ruff-check", "ruff-format"}


def test_citation_and_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gfo.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.M)[1] == gfo.__version__
    bib = (ROOT / "book/references.bib").read_text()
    entry = bib[bib.index("@inproceedings{liu2023,") :].split("\n}\n")[0]
    authors = re.search(r"author\s*= \{(.*)\}", entry)[1].split(" and ")
    told = [
        f"{a['family-names']}, {a['given-names']}"
        for a in citation["preferred-citation"]["authors"]
    ]
    assert told == authors


def test_workflow_runs_on_every_supported_python_and_system():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    matrix = jobs["fast"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    systems = {*matrix["os"], *(extra["os"] for extra in matrix["include"])}
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}
    run = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = {line.split()[-1] for line in run if line.startswith("make ")}
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert targets - {".venv/.installed"} <= set(known)


def test_readme_names_every_command():
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^gfo-lab (\w+)", text, re.M)) == set(COMMANDS)


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_the_files_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", (ROOT / page).read_text())
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[\w-]+)?\)", text):
        assert not target or (ROOT / target).exists(), target
