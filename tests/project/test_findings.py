"""Findings about other libraries are runnable, pinned and listed, and the tests they name exist. None is run here."""

import os
import re

import pytest
from projects import REPOSITORY

FOLDER = REPOSITORY / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_is_runnable_and_pinned_and_says_what_it_is(script):
    text = script.read_text()
    comment = re.match(r"#!/bin/sh\n((?:# .*\n)+)\nset -eu\n", text)[1]
    keys = ["Finding", "Expected", "Seen", "Versions", "Matters", "matalign"]
    assert re.findall(r"^# (\w+):", comment, flags=re.M) == keys
    (packages,) = re.findall(r'^packages="(.+)"$', text, flags=re.M)
    pins = [re.fullmatch(r"([\w.-]+)==([\d.]+)", package).groups() for package in packages.split()]
    versions = ", ".join(f"{name} {version}" for name, version in pins)
    assert f"# Versions: {versions}\n" in comment.replace("\n#   ", " ")
    assert not re.search(r"index-url|://(?!example\.org)|import matalign", text)
    assert os.access(script, os.X_OK)


def test_the_table_lists_every_finding():
    listed = re.findall(r"^\| \[`(.+)`\]\((.+)\) \|", (FOLDER / "README.md").read_text(), flags=re.M)
    assert listed == [(script.name, script.name) for script in SCRIPTS]


def test_the_tests_and_modules_that_findings_name_exist():
    for script in SCRIPTS:
        path = None
        for file, test in re.findall(r"((?:tests|src)/[\w/]+(?:\.py)?)|::(test_\w+)", script.read_text()):
            path = REPOSITORY / file if file else path
            assert path.exists(), script.name
            assert not test or f"def {test}(" in path.read_text(), (script.name, test)
