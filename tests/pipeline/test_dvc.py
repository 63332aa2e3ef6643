"""DVC's own commands answer in a fresh clone; what we write of the lock is what DVC writes."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from projects import PROFILE, REPOSITORY, Project, finished, make, ran

from matalign.pipeline import repro

FIGURES = [plot for plot in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["plots"] if isinstance(plot, str)]


def dvc(project, *args):
    ended = project.command(sys.executable, "-m", "dvc", *args)
    assert ended.returncode == 0, ended.stdout
    assert "failed" not in ended.stdout, ended.stdout
    return ended.stdout


def start_repro(folder: Path, instead: str) -> subprocess.Popen:
    """`make repro` with a DVC that runs something else."""
    (fake := folder / "fake" / "dvc").mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(instead)
    code = """import os, pathlib
from matalign import paths
from matalign.pipeline import repro
os.environ["PYTHONPATH"] = os.path.abspath("fake")
paths.ROOT = pathlib.Path(os.getcwd())
repro.main()"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_dvc_ends_with_the_command_that_started_it(tmp_path):
    """Killed alone, its group left alive."""
    with start_repro(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)") as started:
        waiting = psutil.Process(int(started.stdout.readline()))
        started.kill()
    waiting.wait(timeout=60)
    assert not waiting.is_running()


def test_a_killed_dvc_is_told_in_one_line(tmp_path):
    with start_repro(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)") as started:
        _, told = started.communicate()
    assert (started.returncode, told) == (1, b"error: DVC was killed: SIGKILL; the same command goes on from there\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Project:
    """A fresh clone of this working tree with the committed results that dvc.yaml declares."""
    project = make(tmp_path_factory.mktemp("dvc") / "project")
    for name in ("results/claims", "results/training", *FIGURES):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(REPOSITORY / name, project.root / name)
    for command in (["add", "."], ["commit", "-q", "-m", "results"]):
        assert project.command("git", *command).returncode == 0
    return project.clone(project.root.parent / "clone")


def test_metrics_and_plots_of_committed_profiles_are_shown(clone):
    (shown,) = json.loads(dvc(clone, "metrics", "show", "--json")).values()
    claims = {name.split("/")[-1]: value["data"] for name, value in shown["data"].items()}
    assert {"laptop.json", "full_cpu.json", "ablations.json"} <= set(claims)
    with open(REPOSITORY / "results" / "laptop" / "tables" / "claims.csv") as file:
        for row in csv.DictReader(file):
            assert f"{claims['laptop.json'][row['stage']][row['claim']]:.6g}" == row["value"]
    dvc(clone, "plots", "show", "--out", "plots")
    page = (clone.root / "plots" / "index.html").read_text()
    assert '"loss_val"' in page
    assert {f"workspace_{name.replace('/', '_')}" for name in FIGURES} == {
        file.name for file in (clone.root / "plots" / "static").iterdir()
    }


def test_what_a_run_changed_is_shown(clone):
    file = clone.root / "results" / "claims" / "laptop.json"
    claims, params = json.loads(file.read_text()), (clone.root / "params.yaml").read_text()
    name, value = next(iter(claims["defects"].items()))
    claims["defects"][name] = value + 0.25
    file.write_text(json.dumps(claims))
    (changed,) = json.loads(dvc(clone, "metrics", "diff", "--json")).values()
    assert changed == {f"defects.{name}": {"old": value, "new": value + 0.25, "diff": value + 0.25 - value}}
    (clone.root / "params.yaml").write_text(params.replace("\nversions:\n  curate: 1\n", "\nversions:\n  curate: 7\n"))
    assert json.loads(dvc(clone, "params", "diff", "--json")) == {
        "params.yaml": {"versions.curate": {"old": 1, "new": 7, "diff": 6}}
    }


def test_an_experiment_runs_with_its_parameter(tmp_path):
    project = finished().project.copy(tmp_path / "project")
    output = dvc(project, "exp", "run", "-S", f"{PROFILE}.atlas.iterations=50", f"atlas@{PROFILE}")
    assert ran(output) == [f"atlas@{PROFILE}"]
    assert yaml.safe_load((project.root / "params.yaml").read_text())[PROFILE]["atlas"] == {"iterations": 50}
    assert project.provenance("atlas")["parameters"]["iterations"] == 50
    repro.switch("laptop", project.root / "params.yaml")  # whatever layout DVC has given the file


def test_parameters_have_no_anchored_map():
    """DVC would set nothing, or another section too, and end with 0: findings/dvc_set_param_anchor.sh."""

    def anchored(text):
        events = yaml.parse(text)
        return [e.anchor for e in events if isinstance(e, yaml.CollectionStartEvent) and e.anchor]

    assert anchored((REPOSITORY / "params.yaml").read_text()) == []
    assert anchored("base: &base\n  lr: 1\nother: *base\n") == ["base"]
    assert (REPOSITORY / "findings" / "dvc_set_param_anchor.sh").exists()


def test_a_lock_split_and_merged_comes_back_byte_for_byte(tmp_path):
    written = finished().project.root / repro.LOCK  # by DVC
    stages = repro.stages_of(written)
    assert len(stages) > 10
    whole, aside, kept = (tmp_path / name for name in ("whole", "aside", "kept"))
    half = list(stages)[: len(stages) // 2]
    repro.write(aside, {name: stages[name] for name in half})
    repro.write(kept, {name: entry for name, entry in stages.items() if name not in half})
    repro.write(whole, repro.stages_of(aside) | repro.stages_of(kept))
    assert whole.read_bytes() == written.read_bytes()
    fetched = REPOSITORY / "data" / "dvc.lock"  # long lines and quotes
    repro.write(tmp_path / "fetched", repro.stages_of(fetched))
    assert (tmp_path / "fetched").read_bytes() == fetched.read_bytes()
