"""What is told twice is told alike: the version, the pins and the lock, what a check runs."""

from __future__ import annotations

import re
import tomllib
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from harness.cli import app
from tests.imports import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = ROOT / "uv.lock"
FREE = {"numpy"}
"""vLLM's mistral-common wants another than constraints.txt pins, and a lock serves all extras."""


@pytest.fixture(scope="module")
def locked() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in tomllib.loads(LOCK.read_text())["package"]}


def test_one_version() -> None:
    told = CliRunner().invoke(app, ["--version"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    said = {told.output.strip(), citation["version"], newest.group(1)}
    assert said == {PROJECT["version"]}, "pyproject.toml's version counts; then `make setup`"


def test_the_lock_is_of_what_is_asked(locked: dict[str, dict[str, Any]]) -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [(Requirement(one), "") for one in PROJECT["dependencies"]]
    asked += [(Requirement(one), extra) for extra, ones in extras.items() for one in ones]
    told = {
        (one["name"], one.get("specifier", ""), one.get("marker", ""))
        for one in locked["selm-harness"]["metadata"]["requires-dist"]
    }
    wanted = {
        (canonicalize_name(one.name), one.specifier, f"extra == '{extra}'" if extra else "")
        for one, extra in asked
    }
    as_set = {
        (name, Requirement(f"x{specifier}").specifier, mark) for name, specifier, mark in told
    }
    assert as_set == wanted, "run `make lock`"


def test_the_lock_holds_what_constraints_pin(locked: dict[str, dict[str, Any]]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert pins.keys() >= FREE
    for name, version in pins.items():
        if name not in FREE:
            assert locked[name]["version"] == version, "run `make lock`"
