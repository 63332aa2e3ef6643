"""README and docs name only what exists, their tables are those of their sources, and what they show runs."""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from projects import REPOSITORY

import matalign
from matalign import config, paths, towers
from matalign.pipeline import provenance

README = REPOSITORY / "README.md"
PAGES = {file.name: file.read_text() for file in (README, *sorted((REPOSITORY / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
CODE = re.findall(r"`([^`\n]+)`", TEXT) + re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.M | re.S)
LAPTOP = REPOSITORY / "results" / "laptop"


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 8192


def test_every_path_exists():
    files = [c for c in CODE if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", c) and ("/" in c or "." in c)]
    assert len(files) > 30
    made = ("results/", ".venv", "data/index/", "data/curated/")  # by make, or by whoever builds an atlas of his own
    rooms = ("", "src/matalign")
    missing = [f for f in files if not f.startswith(made) and not any((REPOSITORY / r / f).exists() for r in rooms)]
    missing = [f for f in missing if not any((folder / f).exists() for folder in (LAPTOP, REPOSITORY / "results"))]
    assert all(hasattr(matalign, name.removeprefix("matalign.")) for name in missing), missing
    for name, text in PAGES.items():
        folder = REPOSITORY / ("docs" if name != "README.md" else "")
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert [link for link in links if not (folder / link).exists()] == [], name


def test_the_map_names_every_room():
    rows = re.findall(r"^\| `(\w+)/` \|", README.read_text(), flags=re.M)
    package = REPOSITORY / "src" / "matalign"
    assert sorted(rows) == sorted(f.parent.name for f in package.glob("*/__init__.py"))


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    named = {t for c in CODE for t in re.findall(r"\bmake (?!PROFILE)([a-z-]+)", c)}
    assert {"repro", "test", "check", "help"} <= named <= targets


def test_the_two_commands_install_what_they_need():
    for target in ("repro", "test"):
        assert f"\n{target}: $(STAMP) " in (REPOSITORY / "Makefile").read_text()


def test_bytecode_is_kept_where_the_callers_image_says_otherwise():
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run(["make", "--eval", "shown: ; @env", "shown"], cwd=REPOSITORY, env=env, capture_output=True)
    assert b"VIRTUAL_ENV=" in made.stdout
    assert b"PYTHONDONTWRITEBYTECODE" not in made.stdout


def test_every_profile_and_stage_named_exists():
    profiles = {p for c in CODE for p in re.findall(r"PROFILE=(\w+)", c)}
    assert {"laptop", "full"} <= profiles
    for profile in profiles:
        config.load("paper", profile)
    stages = [s for c in CODE for s in re.findall(r"python -m matalign\.pipeline\.run (\w+)", c)]
    assert set(stages) >= set(config.STAGES)


def test_every_function_named_in_python_exists():
    """What the snippets import, and the functions of it that they call."""
    snippets = re.findall(r"^```py(?:thon)?\n(.*?)^```", TEXT, flags=re.M | re.S) + [
        c for c in CODE if "python -c" in c
    ]
    found = 0
    for text in snippets:
        for package, names in re.findall(r"from (matalign[\w.]*) import ([\w, ]+)", text):
            for name in names.split(", "):
                module = importlib.import_module(package)
                module = getattr(module, name, None) or importlib.import_module(f"{package}.{name}")
                for called in re.findall(rf"\b{name}\.(\w+)\(", TEXT):
                    assert hasattr(module, called), f"{package}.{name}.{called}"
                    found += 1
    assert found > 5


def test_every_result_file_is_made():
    """The files of the result table exist in a profile's results, where there are any; but for those out of git."""
    named = [c.removeprefix("results/<p>/") for c in CODE if c.startswith("results/<p>/")]
    assert len(named) >= 15
    folders = [f for f in (REPOSITORY / "results").glob("*") if (f / "paper.pdf").exists()]
    assert folders
    for folder in folders:
        missing = [str(folder / name) for name in named if not (folder / name).exists()]
        command = ["git", "check-ignore", "--no-index", "--", folder, *missing]
        ignored = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
        assert set(missing) <= set(ignored), folder.name


@pytest.mark.parametrize("profile", ["ablations", "full_cpu", "laptop"])
def test_the_readme_of_committed_results_links_what_git_holds(profile):
    folder = f"results/{profile}"
    links = re.findall(r"\]\(([^)]+)\)", (REPOSITORY / folder / "README.md").read_text())
    assert {"tables", "metrics", "provenance"} <= set(links)
    for link in links:
        assert provenance.git("ls-files", f"{folder}/{link}"), link


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"MATALIGN_\w+", TEXT))))
def test_environment_variables_are_the_codes(variable):
    assert any(variable in file.read_text() for file in (REPOSITORY / "src").rglob("*.py"))


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("scale.md", "results/bench/bench.csv"),
        ("scale.md", "results/bench/scale.csv"),
        ("scale.md", "results/bench/large.csv"),
        ("reproducibility.md", "paper/deviations.csv"),
    ],
)
def test_tables_are_those_of_their_sources(page, source):
    rows = list(csv.reader((REPOSITORY / source).read_text().splitlines()))
    assert len(rows) > 4
    lines = PAGES[page].splitlines()
    for row in rows:
        assert "| " + " | ".join(row) + " |" in lines


def test_trials_are_those_of_the_bench():
    found = json.loads((REPOSITORY / "results" / "bench" / "bench.json").read_text())["energy"]
    for trial in found["trials"]:
        assert f"| validation | {trial['mae_val_eV_atom']:.4f} | {trial['core_minutes']:.1f} |" in PAGES["scale.md"]
    error = found["final"]["mae_test_eV_atom"]
    assert f"| test | {error['value']:.4f} [{error['low']:.4f}, {error['high']:.4f}] |" in PAGES["scale.md"]


def test_reading_is_that_of_the_bench():
    rows = json.loads((REPOSITORY / "results" / "bench" / "large.json").read_text())["rows"]
    for row in (row for row in rows if row["what"] == "reading"):
        assert f"{row['MB']:.2g} MB in {row['ms']:.2g} ms" in PAGES["scale.md"]


def test_every_modality_is_named():
    names = re.search(r"`modalities: &modalities (.*?)` switches", TEXT)[1].split()
    assert set(names) == set(towers.names())


def test_the_finding_is_that_of_the_laptop_run():
    """Each row of the small table: claim, value, interval, threshold, unit and verdict of the run's own table."""
    with open(LAPTOP / "tables" / "claims.csv") as file:
        claims = {row["claim"]: row for row in csv.DictReader(file)}
    rows = re.findall(r"^\| (.*) \| (\S+) \[(\S+), (\S+)\] ?(.*?) \| (\S+) ?(.*?) \| (PASS|FAIL) \|$", TEXT, flags=re.M)
    rows = [row for row in rows if row[0] in claims]
    assert len(rows) == 6
    for name, *numbers, unit, threshold, same, verdict in rows:
        claim = claims[name]
        digits = 1 if unit == "%" else 3
        expected = [f"{float(claim[key]):.{digits}f}".replace("-", "−") for key in ("value", "low", "high")]
        assert numbers == expected, name
        assert (unit, float(threshold), verdict) == (claim["unit"], float(claim["threshold"]), claim["verdict"]), name
        assert same == unit


def test_the_error_of_the_whole_set_is_that_of_its_run():
    claims = json.loads((REPOSITORY / "results" / "full_cpu" / "tables" / "claims.json").read_text())
    error = next(c["value"] for c in claims if c["claim"] == "E_f MAE below 0.1 eV/atom, random split")
    assert f"one on all 38,097 crystals (random split, E_f {error:.3f} eV/atom)" in PAGES["README.md"]


def test_paths_agree():
    assert paths.ROOT == REPOSITORY


def test_the_tour_prints_what_it_is_said_to(tmp_path):
    """Its commands, run as they stand there: words and layout the same, numbers within what processors differ by."""
    tour = r"^source .venv/bin/activate\n(.*?)```\n\n```\n(.*?)```"
    script, printed = re.search(tour, README.read_text(), flags=re.S | re.M).groups()
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said, expected = ended.stdout.split(), printed.split()
    assert len(said) == len(expected)
    for got, told in zip(said, expected, strict=True):
        got, told = got.strip("[],"), told.strip("[],")
        if re.fullmatch(r"-?[\d.]+", told):
            assert float(got) == pytest.approx(float(told), rel=0.02, abs=0.002)
        else:
            assert got == told
