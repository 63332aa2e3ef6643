import dataclasses
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from projects import REPOSITORY

from matalign import cache, config, paths
from matalign.pipeline import provenance, run

BODY = """import sys
from matalign import cache, config, paths
cfg = config.load("paper", profile)
print("before")
print("a bar", file=sys.stderr)
cache.memo("fit", {"seed": cfg.seed}, lambda: {"x": 1})
print(cfg.title)"""

PRINTED = "print(cfg.title)"


def cells(body=BODY, *, parameters='profile = "sample"'):
    """A notebook of the paper stage."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell("# Words"), tagged, new_code_cell(body)])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project around this repository's params.yaml: a function that writes its paper notebook."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setenv("MATALIGN_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params.yaml")
    for name in ("MATALIGN_FITS", "OMP_NUM_THREADS", *run.ENVIRONMENT):  # run sets them: put back afterwards
        monkeypatch.setenv(name, "")
        del os.environ[name]
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "notebooks").mkdir()

    def write(notebook):
        nbformat.write(notebook, paths.NOTEBOOKS / "06_paper.ipynb")
        return paths.NOTEBOOKS / "06_paper.ipynb"

    return write


def test_two_runs_give_the_same_bytes_whatever_the_editor_left(project, tmp_path, capfd):
    file = project(cells())
    run.run("paper", "laptop")
    assert "a bar" in capfd.readouterr().err  # progress is seen as it comes
    made = tmp_path / "results" / "laptop"
    first = {f.name: f.read_bytes() for f in (made / "notebooks").iterdir()}
    fits = json.loads((made / "provenance" / "paper.json").read_text())["fits"]
    assert (fits["fit"]["computed"], fits["fit"]["loaded"]) == (1, 0)

    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        cell.id, cell.metadata["editable"] = f"x{cell.id}", True
    notebook.cells[-1].outputs = [new_output("stream", text="from JupyterLab")]
    project(notebook)
    run.run("paper", "laptop")
    assert {f.name: f.read_bytes() for f in (made / "notebooks").iterdir()} == first
    record = json.loads((made / "provenance" / "paper.json").read_text())
    assert (record["fits"]["fit"]["computed"], record["fits"]["fit"]["loaded"]) == (0, 1)
    assert record["parameters"]["profile"] == "laptop"

    assert set(first) == {"06_paper.ipynb"}
    executed = nbformat.reads(first["06_paper.ipynb"].decode(), as_version=4)
    assert not set(executed.metadata) & {"papermill"}
    assert all(set(cell.metadata) <= {"tags"} for cell in executed.cells)
    (stream,) = executed.cells[-1].outputs
    assert stream.text == f"before\n{config.load('paper', 'laptop').title}\n"


def test_memory_of_large_arrays_is_kept_for_the_next(project, tmp_path):
    body = BODY.replace(PRINTED, "import resource, numpy\nasked = []\nfor _ in range(20):\n")
    body += "    numpy.ones(1 << 23); asked.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    body += "print(asked[-1] - asked[1])"
    project(cells(body))
    run.run("paper", "sample")
    executed = nbformat.read(tmp_path / "results" / "sample" / "notebooks" / "06_paper.ipynb", as_version=4)
    assert int(executed.cells[-1].outputs[0].text.split()[-1]) < 100  # pages, of 2 MiB at most, asked of the system


def test_a_failing_cell_stops_the_stage_and_shows_its_traceback(project, tmp_path):
    project(cells(body="rows = {}\nrows['mp-1']"))
    with pytest.raises(RuntimeError, match=r"06_paper\.ipynb failed(?s:.*)KeyError: 'mp-1'"):
        run.run("paper", "sample")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "body",
    [
        'raise ImportError("libtorch_cpu.so: failed to map segment from shared object")',
        'raise RuntimeError("training ended with exit code 1\\nDefaultCPUAllocator: can\'t allocate memory")',
        "import numpy\nnumpy.zeros(1 << 50)",
        # what is kept leaves nothing for the formatting of the error
        """import resource, pathlib
used = pathlib.Path("/proc/self/statm").read_text().split()[0]
resource.setrlimit(resource.RLIMIT_AS, ((int(used) + 25) * resource.getpagesize(),) * 2)
kept = []
while True:
    kept.append(bytearray(10_000))""",
    ],
    ids=["import", "allocator", "array", "nothing-left"],
)
def test_short_memory_is_told_in_one_line(project, body):
    """What libraries raise where `ulimit -v` leaves them too little: seen in tests/campaign.py."""
    project(cells(body=body))
    with pytest.raises(
        RuntimeError, match=r"06_paper\.ipynb failed.*: memory is short: .*(segment|allocate|MemoryError$)"
    ) as raised:
        run.run("paper", "sample")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("parameters", ['profile = "sample"\nseed = 1', 'profil = "sample"', ""])
def test_another_parameter_than_the_profile_stops_the_stage(project, parameters):
    project(cells(parameters=parameters))
    with pytest.raises(ValueError, match=r"06_paper\.ipynb: a notebook has the one parameter 'profile', got \["):
        run.run("paper", "sample")


def test_a_typing_error_in_any_stage_stops_all(project):
    project(cells())
    text = paths.PARAMS.read_text()
    paths.PARAMS.write_text(text.replace("\ntiny:\n  curate:\n", "\ntiny:\n  curate:\n    max_atom: 3\n"))
    with pytest.raises(ValueError, match=r"params\.yaml: tiny\.curate: unknown parameter 'max_atom'.*'max_atoms'"):
        run.run("paper", "tiny")


def test_a_second_run_of_a_stage_waits_for_the_first(project, capfd, monkeypatch):
    project(cells())
    folder = cache.folder("run", {"stage": "paper", "profile": "sample"})
    code = "from matalign import cache; import pathlib, sys\n"
    code += f"with cache.held(pathlib.Path({str(folder)!r})): print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as first:
        assert first.stdout.readline() == "held\n"

        def told(*words, **how):
            print(*words, **how)
            first.stdin.close()  # the first ends once the second has said that it waits

        monkeypatch.setattr(cache, "print", told, raising=False)
        run.run("paper", "sample")
    assert f"is held by process {first.pid} on " in capfd.readouterr().err


def test_source_holds_cells_and_tags_alone(project):
    notebook = cells()
    before = run.source(project(notebook))
    assert [cell.source for cell in before.cells] == [cell.source for cell in notebook.cells]
    assert before.cells[1].metadata == {"tags": ["parameters"]}
    for cell in notebook.cells:
        cell.id = "other" + cell.id
        cell.metadata["collapsed"] = True
    notebook.cells[2].outputs = [new_output("stream", text="x")]
    notebook.cells[2].execution_count = 12
    notebook.metadata["kernelspec"] = {"name": "other", "display_name": "Other"}
    assert run.source(project(notebook)) == before
    for change in (notebook.cells[2].source + " ", "# Other words"):
        notebook.cells[2].source = change
        assert run.source(project(notebook)) != before


def test_provenance_counts_fits(tmp_path):
    log = tmp_path / "fits.jsonl"
    assert provenance.count_fits(log) == {}
    lines = [("b", "computed", 60), ("b", "loaded", 30), ("a", "loaded", 120)]
    log.write_text("".join(json.dumps({"stage": s, "state": t, "seconds": n}) + "\n" for s, t, n in lines))
    assert provenance.count_fits(log) == {
        "a": {"computed": 0, "loaded": 1, "minutes": 2.0},
        "b": {"computed": 1, "loaded": 1, "minutes": 1.5},
    }


def test_provenance_keeps_the_run_that_computed_what_later_runs_loaded(tmp_path):
    log, file = tmp_path / "fits.jsonl", tmp_path / "retrieval.json"

    def run_again(state, minutes, **changes):
        log.write_text(json.dumps({"stage": "retrieval", "state": state, "seconds": 60}) + "\n")
        cfg = dataclasses.replace(config.load("retrieval", "sample"), **changes)
        record = provenance.record(cfg, minutes=minutes, fits=log, earlier=file)
        file.write_text(json.dumps(record))
        return record

    assert "computed" not in run_again("loaded", 0.5)  # by whom, nobody knows
    assert "computed" not in run_again("computed", 9.0)
    for minutes in (0.2, 0.1):
        record = run_again("loaded", minutes)
        assert (record["minutes"], record["computed"]["minutes"]) == (minutes, 9.0)
        assert set(record["computed"]) == {"minutes", "machine", "versions", "git"}
    assert "computed" not in run_again("loaded", 0.3, seed=1)
    assert "computed" not in run_again("computed", 8.0, seed=1)


def test_a_parameter_that_was_not_there_has_changed_no_fit_that_is_loaded(tmp_path):
    cfg, log, file = config.load("properties", "sample"), tmp_path / "fits.jsonl", tmp_path / "properties.json"
    for state, minutes in (("computed", 9.0), ("loaded", 0.2)):
        log.write_text(json.dumps({"stage": "properties", "state": state, "seconds": 60}) + "\n")
        record = provenance.record(cfg, minutes=minutes, fits=log, earlier=file)
        older = {name: value for name, value in record["parameters"].items() if name != "compiled"}
        file.write_text(json.dumps(record | {"parameters": older}))
    assert (record["minutes"], record["computed"]["minutes"]) == (0.2, 9.0)


def test_provenance_tells_machine_and_versions_but_neither_host_nor_path(tmp_path):
    import platform

    absent = tmp_path / "absent"
    record = provenance.record(config.load("paper", "sample"), minutes=1.234, fits=absent, earlier=absent)
    assert record["minutes"] == 1.23
    assert record["versions"]["python"] == platform.python_version()
    assert {"torch", "numpy", "dvc"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    text = json.dumps(record)
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(paths.ROOT) not in text


def test_results_of_other_code_are_listed(tmp_path, monkeypatch):
    def git(*args):
        who = [f"-c user.{name}=test" for name in ("name", "email")]
        return subprocess.run(
            ["git", *" ".join(who).split(), *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )

    def result(name, sha, **changes):
        file = tmp_path / "results" / "p" / "provenance" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"git": {"sha": sha, "dirty": False}} | changes))

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    golden = tmp_path / "tests" / "golden"
    golden.mkdir(parents=True)
    for name in ("old", "loaded"):
        (golden / f"{name}.json").write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "src" / "a.py").write_text("2\n")
    (golden / "loaded.json").write_text("2\n")
    git("commit", "-qam", "two")
    second = git("rev-parse", "HEAD").stdout.strip()
    result("now", second)
    result("old", first)
    result("loaded", second, computed={"git": {"sha": first, "dirty": False}})
    result("lost", "0" * 40)
    result("paper", first)
    git("add", ".")
    git("commit", "-qm", "results")  # no code
    result("not_in_git", first)
    assert provenance.stale() == [
        f"p/loaded: computed by commit {first[:12]}, 1 commits to src ago; awaits its re-run",
        f"p/lost: computed by commit {'0' * 12}, which is not in the history",
        f"p/old: computed by commit {first[:12]}, 1 commits to src ago; golden numbers unchanged since",
        f"p/paper: computed by commit {first[:12]}, 1 commits to src ago; make check makes it anew",
    ]
