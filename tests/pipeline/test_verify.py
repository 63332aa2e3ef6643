"""A stage re-run from raw data agrees with what is kept; whatever was tampered with is found and named."""

import json
import platform
import sys

import pytest
from projects import PROFILE, Project, finished

from matalign import cache
from matalign.pipeline import provenance, repro, verify

REPORT = verify.REPORT


@pytest.fixture
def copy(tmp_path) -> Project:
    """The finished project with its lock where `make repro` keeps that of a profile outside git."""
    project = finished().project.copy(tmp_path / "project")
    repro.write(project.root / repro.ASIDE, repro.stages_of(project.root / repro.LOCK))
    (project.root / repro.LOCK).unlink()
    return project


def verified(project, *args):
    """Exit code, what was printed, and the report."""
    ended = project.command(sys.executable, "-m", "matalign.pipeline.verify", "--profile", PROFILE, *args)
    file = project.results / REPORT
    return ended.returncode, ended.stdout, file.read_text() if file.exists() else ""


def change(file, edit):
    value = json.loads(file.read_text())
    edit(value)
    cache.write_json(file, value)


def test_what_was_computed_here_agrees_from_raw_data_on(copy):
    before = copy.files()
    code, output, report = verified(copy, "--stage", "curate")
    assert code == 0, output[-3000:]
    assert report.startswith(f"# `curate` of `{PROFILE}`: agrees\n")
    assert "the same: all must be equal" in report
    assert "| bytes of curate | none |" in report
    assert "| loaded from this machine | nothing |" in report
    for secret in (str(copy.root), str(copy.root.parent), "/tmp/", platform.node()):
        assert secret not in report
    del (now := copy.files())[f"results/{PROFILE}/{REPORT}"]
    assert now == before


def test_what_was_tampered_with_is_found(copy):
    """A number, by someone who corrects the lock as well; the history of a result; a model's weights; a parameter."""
    kept = copy.results / "metrics" / "curate.json"
    change(kept, lambda made: made["counts"].update(materials=25))
    stages = repro.stages_of(copy.root / repro.ASIDE)
    (out,) = (o for o in stages[f"curate@{PROFILE}"]["outs"] if o["path"].endswith("metrics/curate.json"))
    out["md5"], out["size"] = copy.command("md5sum", str(kept)).stdout.split()[0], kept.stat().st_size
    repro.write(copy.root / repro.ASIDE, stages)
    records = copy.results / "provenance"
    change(records / "retrieval.json", lambda made: made["git"].update(sha="0" * 40))
    change(records / "defects.json", lambda made: made["parameters"].update(epochs=99))
    change(records / "release.json", lambda made: made["git"].update(code="0" * 40))
    weights = copy.results / "model" / "predictors.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    code, output, report = verified(copy, "--stage", "curate")
    assert code == 1
    for line in (
        "counts.materials: 25 kept, 24 made",
        f"results/{PROFILE}/metrics/curate.json: other bytes",
        f"retrieval: computed by commit {'0' * 12}, which is not in the history",
        "defects: provenance has other parameters than params.yaml",
        "release: computed by other code than that of commit",
        "model/predictors.safetensors: other bytes than config.json names",
        f"release@{PROFILE}: results/{PROFILE}/model is not as in the lock",
    ):
        assert line in output, line
        assert f"- {line}" in report, line


@pytest.mark.slow
def test_the_paper_is_made_from_the_metrics_that_are_here(copy):
    code, output, report = verified(copy, "--stage", "paper")
    assert code == 0, output[-3000:]
    assert "| bytes of paper | none |" in report
    assert f"data/curated/{PROFILE}" in report  # said to be loaded


@pytest.mark.slow
def test_without_history_it_says_so_in_a_line(copy, tmp_path):
    (copy.root / "results" / "note").write_text("a second commit\n")
    for command in (["add", "-f", "."], ["commit", "-q", "-m", "second"]):
        assert copy.command("git", *command).returncode == 0
    shallow = tmp_path / "shallow"
    assert copy.command("git", "clone", "-q", "--depth", "1", f"file://{copy.root}", str(shallow)).returncode == 0
    code, output, _ = verified(Project(shallow))
    assert (code, output.count("\n")) == (1, 1)
    assert "git fetch --unshallow" in output
    (copy.root / ".git").rename(copy.root / "no_git")
    code, output, _ = verified(copy)
    assert (code, output) == (1, "error: results are compared with the history, which is not here: clone with git\n")


def test_numbers_of_another_machine_are_held_to_the_table():
    row = {"metric": "MAE", "value": 0.100, "p": 0.03, "n": 7, "verdict": "PASS"}

    def found(exact=False, **changes):
        return list(verify.differences({"results": [row]}, {"results": [row | changes]}, exact=exact))

    assert found(value=0.1049, p=0.9) == []  # 5 % of an MAE; a p-value is one draw
    assert found(value=0.1051) == ["results[0].value: 0.1 kept, 0.1051 made, 0 + 5 % allowed"]
    assert found(n=8) == ["results[0].n: 7 kept, 8 made"]
    assert found(verdict="FAIL") == ["results[0].verdict: 'PASS' kept, 'FAIL' made"]
    assert found(value=float("nan")) != []
    assert found(more=1) == ["results[0]: dict of 5 kept, dict of 6 made"]
    assert found(exact=True, value=0.1000001) == ["results[0].value: 0.1 kept, 0.1000001 made"]
    assert len(found(exact=True, p=0.9)) == 1


def test_what_git_leaves_out_is_known_where_it_is_not_there():
    """On a bare clone: `dvc status` calls it deleted, and it is no difference."""
    assert provenance.ignores("results/nowhere/pretrained")
    assert provenance.ignores("results/nowhere/features")
    assert not provenance.ignores("results/nowhere/metrics")
