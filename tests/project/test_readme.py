"""The README names only what exists, and its tables are those of their sources."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import plausible
import pytest
from matplotlib.image import imread
from projects import REPOSITORY

from matalign import config, paths, towers
from matalign.report import figures, paper

TEXT = (REPOSITORY / "README.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", TEXT) + re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.M | re.S)
LAPTOP = REPOSITORY / "results" / "laptop"
REMAKE = "make it anew: f.write_text(paper.fill(f.read_text(), paths.ROOT / 'results'))"


def test_every_path_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    files = [c for c in CODE if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", c) and ("/" in c or "." in c)]
    assert len(files) > 10
    made = ("results/", ".venv", "data/index/")  # by make, or by whoever builds an atlas of his own
    missing = [f for f in links + files if not f.startswith(made) and not (REPOSITORY / f).exists()]
    assert missing == []


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), flags=re.M))
    named = {t for c in CODE for t in re.findall(r"\bmake (?!PROFILE)([a-z]+)", c)}
    assert {"repro", "check", "help"} <= named <= targets


def test_every_profile_and_stage_named_exists():
    profiles = {p for c in CODE for p in re.findall(r"PROFILE=(\w+)", c)}
    assert {"laptop", "full"} <= profiles
    for profile in profiles:
        config.load("paper", profile)
    stages = [s for c in CODE for s in re.findall(r"python -m matalign\.pipeline\.run (\w+)", c)]
    assert stages == list(config.STAGES)


def test_every_result_file_is_made():
    """The files of the result table exist in a profile's results, where there are any; but for those out of git."""
    named = [c.removeprefix("results/<p>/") for c in CODE if c.startswith("results/<p>/")]
    assert len(named) >= 15
    folders = [f for f in (REPOSITORY / "results").glob("*") if (f / "paper.pdf").exists()]
    if not folders:
        pytest.skip("no profile has been run: no results folder to look into")
    for folder in folders:
        missing = [str(folder / name) for name in named if not (folder / name).exists()]
        command = ["git", "check-ignore", "--no-index", "--", folder, *missing]
        ignored = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
        assert set(missing) <= set(ignored), folder.name


def test_environment_variable_is_the_codes():
    assert "MATALIGN_MIRROR" in TEXT
    assert "MATALIGN_MIRROR" in (REPOSITORY / "src" / "matalign" / "data" / "fetch.py").read_text()


def test_tables_are_those_of_their_sources():
    assert paper.fill(TEXT, LAPTOP.parent) == TEXT, REMAKE


def test_the_modality_shown_is_the_file():
    (shown,) = re.findall(r'^```python\n(""".*?)^```', TEXT, flags=re.M | re.S)
    assert shown == (REPOSITORY / "src" / "matalign" / "encoders" / "composition.py").read_text()
    names = re.search(r"`modalities: &modalities (.*?)` switches", TEXT)[1].split()
    assert set(names) == set(towers.names())


def test_deviations_are_the_papers():
    block = re.search(r"<!-- table: deviations -->\n(.*?)<!-- end -->", TEXT, flags=re.S)[1]
    rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in block.strip().splitlines()]
    assert rows[2:] == paper.deviations().cells


def test_claims_are_those_of_the_laptop_run():
    if not (LAPTOP / "metrics").is_dir():
        pytest.skip("results/laptop is absent: the README has no claims to compare")
    block = re.search(r"<!-- table: claims of laptop -->\n(.*?)<!-- end -->", TEXT, flags=re.S)[1]
    claims = [
        c
        for stage in ("properties", "retrieval", "recommendation", "defects")
        for c in paper.read(LAPTOP / "metrics")[stage]["claims"]
    ]
    lines = block.strip().splitlines()[2:]
    assert len(lines) == len(claims)
    for line, claim in zip(lines, claims, strict=True):
        assert line.rstrip(" |").endswith(claim["verdict"])
        assert f"{abs(claim['value']):,.{1 if claim['unit'] in ('%', '°C') else 3}f}" in line


def test_method_figure_is_the_codes(tmp_path):
    with mpl.rc_context():
        figures.style()
        figures.method().savefig(tmp_path / "method.png", metadata={"Software": None})
    drawn, committed = imread(tmp_path / "method.png"), imread(REPOSITORY / "paper" / "method.png")
    assert drawn.shape == committed.shape
    assert np.abs(drawn - committed).mean() < 1e-3  # letters may differ by a pixel between builds of freetype


def test_paths_agree():
    assert paths.ROOT == REPOSITORY


def test_fill_makes_each_table_between_its_marks(tmp_path):
    folder = tmp_path / "laptop"
    for part in ("metrics", "provenance"):
        (folder / part).mkdir(parents=True)
    metrics = plausible.metrics()
    for stage, values in metrics.items():
        (folder / "metrics" / f"{stage}.json").write_text(json.dumps(values))
    for i, stage in enumerate(config.STAGES):
        made = {"minutes": i + 0.25, "machine": {"cores": 2, "gpus": [], "cpu": "a processor"}}
        if stage == "pretrain":  # run again in no time
            made = {**made, "minutes": 0.01, "computed": made}
        (folder / "provenance" / f"{stage}.json").write_text(json.dumps(made))
    text = "a\n<!-- table: claims of laptop -->\nformerly\n<!-- end -->\nb\n"
    text += "<!-- table: cost of laptop -->\n<!-- end -->\nc\n"
    text += "<!-- table: claims of absent -->\nas it was\n<!-- end -->\n"
    text = "<!-- table: bench -->\n<!-- end -->\n" + text
    assert paper.fill(text, tmp_path).startswith("<!-- table: bench -->\n<!-- end -->\n")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.csv").write_text('what,ratio\n"a thing, timed","1,234"\n')
    (tmp_path / "bench" / "bench.json").write_text("{}")
    filled = paper.fill(text, tmp_path)
    assert "formerly" not in filled
    start = "<!-- table: bench -->\n| what | ratio |\n| --- | --- |\n| a thing, timed | 1,234 |\n<!-- end -->\n"
    start += "a\n<!-- table: claims of laptop -->\n| claim | value | threshold | verdict |\n| --- |"
    assert filled.startswith(start)
    assert filled.count("| PASS |") + filled.count("| FAIL |") == 7
    assert "| defects | 6.2 | 2 | 0 | a processor |" in filled
    assert "| all | 47.5 |  |  |  |" in filled
    assert filled.endswith("<!-- end -->\nc\n<!-- table: claims of absent -->\nas it was\n<!-- end -->\n")
    assert paper.fill(filled, tmp_path) == filled
    assert paper.fill(filled, tmp_path / "absent") == filled


def test_the_tour_prints_what_it_is_said_to(tmp_path, monkeypatch):
    """Its commands, run as they stand there: words and layout the same, numbers within what processors differ by."""
    if not (LAPTOP / "model").is_dir():
        pytest.skip("results/laptop/model is absent: the tour needs the released model")
    script, printed = re.search(r"## Five minutes\n.*?```sh\n(.*?)```\n\n```\n(.*?)```", TEXT, flags=re.S).groups()
    script = script.replace("source .venv/bin/activate\n", "")
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
