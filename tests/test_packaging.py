"""What is told twice is told alike: the version, the pins and the lock, what a check runs."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

from harness.cli import app
from tests.imports import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FREE = {"numpy"}
"""vLLM's mistral-common wants another than constraints.txt pins, and both locks are of one."""
EXTRAS = {"cpu": ("gguf", "ray"), "gpu": ("gguf", "ray", "gpu")}
Locked = dict[str, Version]


@pytest.fixture(params=sorted(EXTRAS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def text(variant: str) -> str:
    return (ROOT / f"requirements-{variant}.lock").read_text()


@pytest.fixture
def locked(text: str) -> Locked:
    found = re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,_-]+\])?==(\S+)", text, re.M)
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_one_version() -> None:
    told = CliRunner().invoke(app, ["--version"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    said = {told.output.strip(), citation["version"], newest.group(1)}
    assert said == {PROJECT["version"]}, "pyproject.toml's version counts; then `make setup`"


def test_the_lock_is_of_what_is_asked(variant: str, locked: Locked) -> None:
    asked = list(PROJECT["dependencies"])
    asked += [one for extra in EXTRAS[variant] for one in PROJECT["optional-dependencies"][extra]]
    for wanted in map(Requirement, asked):
        name = canonicalize_name(wanted.name)
        if (variant, name) != ("cpu", "torch"):
            assert locked[name] in wanted.specifier, f"{wanted}: run `make lock`"
    assert ("torch" in locked) == (variant == "gpu"), "its CPU build is on another index"


def test_the_lock_holds_what_constraints_pin(locked: Locked) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    held = pins.keys() & locked.keys()
    assert held >= {"transformers", "trl", "lm-eval", "alpaca-eval", "fschat"}
    for name in held - FREE:
        assert locked[name] == Version(pins[name]), f"{name}: run `make lock`"


def test_every_locked_package_has_its_hashes_and_no_address(text: str) -> None:
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    assert all(re.search(r"^\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", e, re.S) for e in entries)
    assert "://" not in text


def test_the_workflow_runs_the_check_and_the_check_runs_targets_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    run = re.findall(r"^step make (.+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert "test-slow" in run and set(run) <= set(targets)
