"""The pipeline as a whole, on the `tiny` profile: what runs again and what does not, killed runs, the check routes."""

import random
import sys

import nbformat
import pytest
import yaml
from projects import PROFILE, REPOSITORY, REPRO, Project, finished, ran

from matalign import config
from matalign.pipeline import run

DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
ORDER = [name for stage in config.STAGES for name in ((stage, "embed") if stage == "pretrain" else (stage,))]
NAMED = [f"{stage}@{PROFILE}" for stage in ORDER]


@pytest.fixture(scope="module")
def whole() -> Project:
    return finished().project


@pytest.fixture
def copy(whole, tmp_path) -> Project:
    return whole.copy(tmp_path / "project")


def test_no_shell_stays_between_dvc_and_a_stage():
    commands = [DVC["source"]["cmd"], *(DVC[stage]["do"]["cmd"] for stage in ORDER)]
    assert all(command.startswith("exec ") and "\n" not in command for command in commands)


def test_expensive_outputs_are_cached_and_small_ones_left_to_git():
    kept = ("data/curated/${key}", "results/${key}/pretrained", "results/${key}/features")
    for stage in ORDER:
        for out in DVC[stage]["do"]["outs"]:
            assert isinstance(out, str) == (out in kept)


def test_a_run_makes_everything(whole):
    run_once = finished()
    ended = ["source", *NAMED[:1]] if run_once.killed else []  # before the second kill
    assert ended + ran(run_once.output) == ["source", *NAMED]
    names = set(whole.files())
    for stage, name in run.NAMES.items():
        assert f"results/{PROFILE}/notebooks/{name}.ipynb" in names
        assert (whole.results / "provenance" / f"{stage}.json").exists()
    assert f"results/{PROFILE}/paper.pdf" in names


def test_executed_notebooks_hold_no_address_and_no_progress(whole):
    """Either would make two runs differ."""
    for name in run.NAMES.values():
        text = (whole.results / "notebooks" / f"{name}.ipynb").read_text()
        assert " at 0x" not in text, name
        assert '"stderr"' not in text, name


def test_a_second_run_does_nothing(whole):
    output = whole.repro()
    assert ran(output) == []
    assert "up to date" in output


def test_no_other_profile_and_no_download_was_touched(whole):
    assert {f.name for f in (whole.root / "results").iterdir()} == {PROFILE, "claims", "training"}
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


def test_the_first_run_computes_the_fits(whole):
    for stage in ("pretrain", "properties", "release", "retrieval", "defects", "ablations"):
        fits = whole.provenance(stage)["fits"].values()
        assert sum(fit["computed"] for fit in fits) > 0, stage


def test_moved_renamed_and_commented_code_runs_nothing_again(copy):
    source = copy.root / "src" / "matalign"
    (source / "stats.py").rename(source / "statistics_of_tests.py")
    (source / "stats.py").write_text('"""Moved."""\n\nfrom matalign.statistics_of_tests import *  # noqa: F403\n')
    losses = source / "pretrain" / "losses.py"
    losses.write_text("# another comment\n" + losses.read_text().replace("LOWEST", "LEAST"))
    assert ran(copy.repro("--dry")) == []


def test_a_raised_version_runs_its_kind_and_what_is_made_from_it(copy):
    copy.edit("params.yaml", "\n  retrieval: 1\n", "\n  retrieval: 2\n")
    assert ran(copy.repro("--dry", "--force-downstream")) == [f"{stage}@{PROFILE}" for stage in ("retrieval", "paper")]


def test_a_parameter_runs_what_depends_on_it_and_nothing_else(copy):
    copy.edit("params.yaml", "    max_materials: 24\n", "    max_materials: 23\n")
    curated = [stage for stage in NAMED if stage != f"recommendation@{PROFILE}"]  # that one reads the sources itself
    assert ran(copy.repro("--dry", "--force-downstream")) == curated
    copy.edit("params.yaml", "    max_materials: 23\n", "    max_materials: 24\n")
    params = (copy.root / "params.yaml").read_text()
    head, tiny = params.split("\ntiny:\n")
    (copy.root / "params.yaml").write_text(head + "\ntiny:\n" + tiny.replace("bootstrap: 20", "bootstrap: 21"))
    assert ran(copy.repro("--dry", "--force-downstream")) == [
        f"{s}@tiny"
        for s in (
            "properties",
            "release",
            "retrieval",
            "recommendation",
            "defects",
            "ablations",
            "atlas",
            "micrographs",
            "paper",
        )
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_killed_runs_leave_nothing_running_and_no_results(whole):
    """That they go on to the same numbers is what golden numbers say: the run they are of was killed twice."""
    assert [(killed.stage, killed.left, killed.had_results) for killed in finished().killed] == [
        ("curate", [], False),
        ("pretrain", [], False),
    ]


@pytest.mark.slow
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(whole, tmp_path):
    undisturbed = whole.clone(tmp_path / "project")
    undisturbed.repro(f"pretrain@{PROFILE}")
    once, killed = undisturbed.files(), whole.files()
    assert any("/pretrained/" in name for name in once)
    assert once == {name: killed[name] for name in once}


def test_a_bare_clone_rebuilds_the_paper_from_committed_metrics(copy, tmp_path):
    """What `make check` does."""
    for command in (["add", "-f", str(copy.results)], ["commit", "-q", "-m", "results"]):
        assert copy.command("git", *command).returncode == 0
    clone = copy.clone(tmp_path / "clone")
    stages = ["source", f"paper@{PROFILE}"]
    assert ran(clone.repro("--force", "--single-item", *stages)) == stages
    compared = [f"results/{PROFILE}/{name}" for name in ("metrics", "tables", "figures", "paper.pdf")]
    compared += ["results/claims", "results/training"]
    same = ["git", "diff", "--exit-code", "--stat", "--", *compared]
    assert clone.command(*same).stdout == ""
    table = next((clone.results / "tables").glob("*.csv"))
    table.write_text(table.read_text() + "1\n")
    assert clone.command(*same).returncode == 1


def test_a_run_of_a_profile_outside_git_leaves_the_tree_clean(copy):
    assert copy.command("git", "status", "--porcelain").stdout == "?? dvc.lock\n"  # what plain `dvc repro` leaves
    for _ in range(2):  # the second time from the entries that the first has put aside
        again = copy.command(sys.executable, "-m", "matalign.pipeline.repro")
        assert again.returncode == 0, again.stdout[-3000:]
        assert ran(again.stdout) == []
        assert copy.command("git", "status", "--porcelain").stdout == ""


def test_a_profile_is_named_in_one_block_of_the_parameters(copy):
    before = (copy.root / "params.yaml").read_text()
    code = "from matalign.pipeline import repro; repro.switch('sample')"
    assert copy.command(sys.executable, "-c", code).returncode == 0
    after = (copy.root / "params.yaml").read_text()
    assert after == before.replace("\nprofiles:\n  tiny:\n", "\nprofiles:\n  sample:\n") != before
    wrong = copy.command(sys.executable, "-m", "matalign.pipeline.repro", "--profile", "lptop")
    assert wrong.returncode != 0
    assert wrong.stdout.startswith("error: params.yaml: no profile 'lptop', the nearest is 'laptop'; of sample, laptop")


def test_a_wrong_parameter_stops_the_first_stage_within_seconds(copy):
    copy.edit("params.yaml", "    max_materials: 24\n", "    max_materials: 23\n")
    params = copy.root / "params.yaml"
    params.write_text(params.read_text().replace("    embed_dim: 16\n", "    embed_dims: 16\n"))
    stopped = copy.command(*REPRO)
    assert stopped.returncode != 0
    assert "error: params.yaml: tiny.pretrain: unknown parameter 'embed_dims', the nearest is 'embed_dim'" in (
        stopped.stdout
    )
    assert ran(stopped.stdout) == [f"curate@{PROFILE}"]  # the first, not the one whose section is wrong


def test_sources_of_data_are_stages_of_their_own():
    fetch = yaml.safe_load((REPOSITORY / "data" / "dvc.yaml").read_text())["stages"]
    assert fetch
    assert not set(fetch) & set(DVC)
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in fetch["fetch"]["do"]["outs"]]
    assert outs == ["raw/${key}"]


def test_real_data_pulls_the_sources_in(copy):
    for profile, fetched in {PROFILE: False, "laptop": True}.items():
        if fetched:
            copy.edit(
                "params.yaml",
                f"\nprofiles:\n  {PROFILE}:\n    raw: data/sample\n",
                "\nprofiles:\n  laptop:\n    raw: data/raw\n",
            )
        graph = copy.command(sys.executable, "-m", "dvc", "dag", "--dot", f"paper@{profile}")
        assert graph.returncode == 0, graph.stdout
        assert ("data/dvc.yaml:" in graph.stdout) == fetched
