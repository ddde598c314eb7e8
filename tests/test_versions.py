"""The lowest versions that are tested are those that are declared, and the tiers run what exists."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def pinned(name):
    """Package → version of a file of constraints."""
    return dict(line.split("==") for line in (ROOT / name).read_text().split())


def declared(requirements):
    """Package → lower bound; each has one, and nothing else is asked."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", r) for r in requirements]
    assert all(found), requirements
    return dict(m.groups() for m in found)


def test_lowest_constraints_are_the_declared_bounds():
    extras = PROJECT["optional-dependencies"]
    assert pinned("constraints-lowest.txt") == declared(PROJECT["dependencies"] + extras["test"])


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_hold_the_bounds(file):
    def numbers(version):
        return [int(x) for x in version.split(".")]

    versions = pinned(file)
    for name, bound in declared(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]).items():
        assert numbers(versions[name]) >= numbers(bound), name


def test_installed_metadata_is_that_of_the_source():
    """An editable installation keeps what was declared when it was made."""
    installed = [r for r in metadata.requires("qernel") if "extra" not in r]
    assert declared(installed) == declared(PROJECT["dependencies"]), "pip install --editable . again"


def test_tier_is_of_files_that_exist():
    names = re.findall(r"[a-z_]+\.py", re.search(r"^TIER := ((?:.*\\\n)*.*)$", MAKEFILE, re.M)[1])
    assert len(names) >= 10
    for name in names:
        assert (ROOT / "tests" / f"test_{name}").exists(), name


def test_ci_calls_targets_that_exist():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = re.findall(r"target: ([\w-]+)", text) + re.search(r"target: \[(.*)\]", text)[1].split(", ")
    assert set(targets) == {"lint", "test", "weekly", "test-newest"}
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target
