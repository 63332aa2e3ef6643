"""The pipeline as a whole, on the `tiny` profile: what runs again and what does not, killed runs, the check routes."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import yaml
from project import PROFILE, REPOSITORY, Project, finished, make, ran

from matalign import check, config, run, scratch

DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
STAGES = [f"{stage}@{PROFILE}" for stage in config.STAGES]
pytestmark = pytest.mark.timeout(1800)  # a run of all stages takes two minutes, and more on a busy machine


@pytest.fixture(scope="module")
def whole() -> Project:
    return finished().project


@pytest.fixture
def copy(whole, tmp_path) -> Project:
    return whole.copy(tmp_path / "project")


@pytest.mark.parametrize("stage", config.STAGES)
def test_a_stage_depends_on_the_modules_its_notebook_imports(stage):
    notebook = nbformat.read(REPOSITORY / "notebooks" / f"{run.NAMES[stage]}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    modules = sorted(name for name in scratch.imported(code) if scratch.module_file(name))
    assert modules
    files = scratch.import_closure(*modules)
    # of a subpackage the folder, so that a file more or less needs no word here
    expected = {str((f if f.parent == scratch.SOURCE else f.parent).relative_to(REPOSITORY)) for f in files}
    written = [dep for dep in DVC[stage]["do"]["deps"] if dep.startswith("src")]
    assert sorted(written) == sorted(expected)


def test_the_paper_depends_on_all_its_sources():
    tracked = check.git("ls-files", "--cached", "--others", "--exclude-standard", "--", "paper").split()
    assert sorted(tracked) == sorted(dep for dep in DVC["paper"]["do"]["deps"] if dep.startswith("paper/"))


def test_no_shell_stays_between_dvc_and_a_stage():
    commands = [DVC["source"]["cmd"], *(DVC[stage]["do"]["cmd"] for stage in config.STAGES)]
    assert all(command.startswith("exec ") and "\n" not in command for command in commands)


def test_expensive_outputs_are_cached_and_small_ones_left_to_git():
    for stage in config.STAGES:
        for out in DVC[stage]["do"]["outs"]:
            cached = isinstance(out, str)
            assert cached == (out in ("data/curated/${key}", "results/${key}/pretrained"))


def test_a_run_makes_everything_in_minutes(whole):
    run_once = finished()
    assert ran(run_once.output) == ["source", *STAGES]
    names = set(whole.files())
    for stage, name in run.NAMES.items():
        assert f"results/{PROFILE}/notebooks/{name}.html" in names
        assert (whole.results / "provenance" / f"{stage}.json").exists()
    assert f"results/{PROFILE}/paper.pdf" in names
    # most of it is six kernels' imports; on a machine busy with other things the processor's time is the fair measure
    assert min(run_once.wall_s, run_once.cpu_s) <= 300, (run_once.wall_s, run_once.cpu_s)


def test_a_second_run_does_nothing(whole):
    start = time.monotonic()
    output = whole.repro()
    assert ran(output) == []
    assert "up to date" in output
    assert time.monotonic() - start <= 5 * max(1, os.getloadavg()[0] / os.cpu_count())


def test_no_other_profile_and_no_download_was_touched(whole):
    assert [f.name for f in (whole.root / "results").iterdir()] == [PROFILE]
    assert not (whole.root / "data" / "raw").exists()


def test_saving_notebooks_in_jupyterlab_runs_no_stage_again(copy):
    for name in run.NAMES.values():
        file = copy.root / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(file, as_version=4)
        notebook.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
        for cell in notebook.cells:
            cell.id = f"{random.Random(cell.id).getrandbits(32):08x}"
            cell.metadata |= {"editable": True, "slideshow": {"slide_type": ""}}
            if cell.cell_type == "code":
                cell.execution_count = 7
                cell.outputs = [nbformat.v4.new_output("stream", text="shown in the browser\n")]
        nbformat.write(notebook, file)
    assert ran(copy.repro()) == ["source"]


def test_figures_are_no_part_of_what_a_fit_depends_on():
    calls = [re.findall(r"scratch\.code_digest\(\"(.*?)\"\)", f.read_text()) for f in scratch.SOURCE.rglob("*.py")]
    modules = {module for found in calls for module in found}
    assert {"train", "fits", "predictors", "retrieval", "defects"} <= modules
    for module in modules:
        assert "figures.py" not in [f.name for f in scratch.import_closure(module)], module


def test_a_colour_retrains_nothing(copy, whole):
    # the first colour that figures.py names, and the drawings follow
    file = copy.root / "src" / "matalign" / "figures.py"
    text = file.read_text()
    colour = next(word for word in text.replace("'", '"').split('"') if len(word) == 7 and word[0] == "#")
    file.write_text(text.replace(colour, "#123456"))
    fitting = ["pretrain", "properties"]  # the others' turn would take as long again
    assert ran(copy.repro("-s", *(f"{stage}@{PROFILE}" for stage in [*fitting, "paper"]))) == [
        f"{stage}@{PROFILE}" for stage in [*fitting, "paper"]
    ]
    for stage in fitting:
        fits = copy.provenance(stage)["fits"].values()
        assert sum(fit["loaded"] for fit in fits) > 0
        assert sum(fit["computed"] for fit in fits) == 0
    before, after = whole.files(), copy.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert any("/figures/" in name for name in changed)
    assert not any("/metrics/" in name or "/pretrained/" in name or "/curated/" in name for name in changed)


def test_the_first_run_computes_the_fits(whole):
    for stage in ("pretrain", "properties", "release", "retrieval", "defects", "ablations"):
        fits = whole.provenance(stage)["fits"].values()
        assert sum(fit["computed"] for fit in fits) > 0, stage


def test_a_parameter_runs_what_depends_on_it_and_nothing_else(copy):
    copy.edit("params.yaml", "    max_materials: 24\n", "    max_materials: 23\n")
    curated = [stage for stage in STAGES if stage != f"recommendation@{PROFILE}"]  # that one reads the sources itself
    assert ran(copy.repro("--dry", "--force-downstream")) == curated
    copy.edit("params.yaml", "    max_materials: 23\n", "    max_materials: 24\n")
    params = (copy.root / "params.yaml").read_text()
    head, tiny = params.split("\ntiny:\n")
    (copy.root / "params.yaml").write_text(head + "\ntiny:\n" + tiny.replace("bootstrap: 20", "bootstrap: 21"))
    assert ran(copy.repro("--dry", "--force-downstream")) == [
        f"{s}@tiny"
        for s in ("properties", "release", "retrieval", "recommendation", "defects", "ablations", "atlas", "paper")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_killed_runs_leave_nothing_running_and_end_with_the_same_files(whole, tmp_path):
    project = whole.clone(tmp_path / "project")
    for stage, process in {"curate": "ipykernel_launcher", "pretrain": "matalign.train"}.items():
        for kill in (os.kill, os.killpg):  # dvc alone, then all that Ctrl-C would reach
            repro = project.start_repro()
            wait_for(project, stage, process, repro)
            kill(repro.pid, signal.SIGKILL)
            repro.wait()
            deadline = time.monotonic() + 10
            while (left := project.processes()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert left == []
            assert not (project.results / "metrics" / f"{stage}.json").exists()
    project.repro(f"pretrain@{PROFILE}")
    again, once = project.files(), whole.files()
    assert any("/pretrained/" in name for name in again)
    assert again == {name: once[name] for name in again}


def wait_for(project: Project, stage: str, process: str, repro: subprocess.Popen) -> None:
    """Wait until the named stage is at work: a process of it runs, and three cells of its notebook are done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert repro.poll() is None, f"dvc repro ended before {process} was seen in {stage}"
        lines = [" ".join(command_line(found)) for found in project.processes()]
        cells = "".join(f.read_text() for f in project.root.glob(f".scratch/run/*/{run.NAMES[stage]}.executed.ipynb"))
        if any(process in line for line in lines) and cells.count('"status": "completed"') >= 3:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{process} was not seen in {stage}")


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_check_of_a_bare_clone_rebuilds_the_paper_from_committed_metrics(copy, tmp_path):
    kept = [str(copy.results / name) for name in check.COMPARED]
    for command in (["add", "-f", *kept], ["add", "dvc.lock"], ["commit", "-q", "-m", "results"]):
        assert copy.command("git", *command).returncode == 0
    checked = copy.clone(tmp_path / "clone").matalign_run("--check", PROFILE)
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert "identical to git's" in checked.stdout
    assert ran(checked.stdout) == ["source", f"paper@{PROFILE}"]


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("value", ["'the same'", "str(time.time())"])
def test_check_compares_what_a_stage_makes_again(tmp_path, committed, value):
    project = make(tmp_path / "project")
    folder = f"results/{PROFILE}"
    script = f"""import time, pathlib
for name in ("metrics/a.json", "tables/a.csv", "figures/a.png", "paper.pdf"):
    file = pathlib.Path("{folder}", name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text({value} if name == "tables/a.csv" else name)
"""
    (project.root / "stage.py").write_text(script)
    outs = [{f"{folder}/{name}": {"cache": False}} for name in ("tables", "figures", "paper.pdf")]
    paper = {"foreach": "${profiles}", "do": {"cmd": "exec python stage.py", "outs": outs}}
    (project.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"source": {"cmd": "true"}, "paper": paper}}))
    project.repro()
    if committed:
        assert project.command("git", "add", "-f", ".").returncode == 0
        assert project.command("git", "commit", "-q", "-m", "results").returncode == 0
    checked = project.matalign_run("--check", PROFILE)
    if "time" in value:
        assert checked.returncode != 0
        assert f"error: {folder} does not repeat: tables/a.csv\n" in checked.stdout
    else:
        assert checked.returncode == 0, checked.stdout
        assert ("identical to git's" if committed else "identical in a second run") in checked.stdout


def test_check_needs_something_to_compare_with(tmp_path):
    checked = make(tmp_path / "project").matalign_run("--check", PROFILE)
    assert checked.returncode != 0
    assert "results/tiny is not there; run it first: make repro PROFILE=tiny" in checked.stdout


def test_a_wrong_parameter_stops_the_first_stage_within_seconds(copy):
    copy.edit("params.yaml", "    max_materials: 24\n", "    max_materials: 23\n")
    params = copy.root / "params.yaml"
    params.write_text(params.read_text().replace("    embed_dim: 16\n", "    embed_dims: 16\n"))
    start = time.monotonic()
    stopped = copy.command(sys.executable, "-m", "dvc", "repro")
    assert stopped.returncode != 0
    assert (
        "error: params.yaml: tiny.pretrain: unknown parameter 'embed_dims'; the nearest valid one is 'embed_dim'"
        in (stopped.stdout)
    )
    assert time.monotonic() - start < 15


def test_sources_of_data_are_stages_of_their_own():
    fetch = yaml.safe_load((REPOSITORY / "data" / "dvc.yaml").read_text())["stages"]
    assert fetch
    assert not set(fetch) & set(DVC)
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in fetch["fetch"]["do"]["outs"]]
    assert outs == ["raw/${key}"]


def test_real_data_pulls_the_sources_in(whole, tmp_path):
    project = make(tmp_path / "project")
    assert project.matalign_run("--switch", "laptop").returncode == 0
    graph = project.command(sys.executable, "-m", "dvc", "dag", "--dot", "curate@laptop")
    assert graph.returncode == 0, graph.stdout
    assert "data/dvc.yaml:" in graph.stdout
    graph = whole.command(sys.executable, "-m", "dvc", "dag", "--dot", f"paper@{PROFILE}")
    assert "data/dvc.yaml:" not in graph.stdout
