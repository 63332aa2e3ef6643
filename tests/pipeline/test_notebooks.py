"""The notebooks as files, as the pipeline executes them, and (slow) as nbval does, on the `tiny` profile."""

import ast
import importlib
import shutil
import subprocess
import sys

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from projects import PROFILE, REPOSITORY, Project, finished

from matalign import config
from matalign.pipeline import run

FILES = {stage: REPOSITORY / "notebooks" / f"{name}.ipynb" for stage, name in run.NAMES.items()}


@pytest.fixture(params=config.STAGES)
def stage(request):
    return request.param


@pytest.fixture
def notebook(stage):
    return nbformat.read(FILES[stage], as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_notebooks_are_stripped():
    command = [sys.executable, "-m", "nbstripout", "--verify", "--keep-count", "--keep-id"]
    found = subprocess.run(
        [*command, *(REPOSITORY / "notebooks").glob("*.ipynb")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, f"run `make format`\n{found.stdout}{found.stderr}"


def test_few_short_cells_without_definitions_or_shell(code):
    assert len(code) <= 25
    for cell in code:
        lines = [line for line in cell.source.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(lines) <= 15, cell.source
        for node in ast.walk(ast.parse(cell.source)):  # a line with ! or % is no Python
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), cell.source
        assert "ipywidgets" not in cell.source


def test_the_one_parameter_is_the_profile(stage, code):
    assert [cell.source for cell in code if "parameters" in tags(cell)] == ['profile = "sample"']
    assert tags(code[0]) == ["parameters"]
    assert f'cfg = config.load("{stage}", profile)' in code[1].source.splitlines()


@pytest.mark.parametrize("file", sorted((REPOSITORY / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_every_name_of_the_package_exists(file):
    """What a cell imports of it, and the attributes of these; the kernel finds out after minutes."""
    code = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    known = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("matalign"):
            package = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                known[name] = getattr(package, name, None) or importlib.import_module(f"{node.module}.{name}")
    assert known
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            assert hasattr(known[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


def test_one_to_three_cells_keep_an_output_that_nbval_checks(code):
    checked = [cell for cell in code if "nbval-check-output" in tags(cell)]
    assert 1 <= len(checked) <= 3
    for cell in checked:
        assert cell.outputs
        assert "keep_output" in tags(cell)  # nbstripout's word for it
    assert not any(cell.outputs for cell in code if cell not in checked)


def test_prose_stands_before_every_figure(notebook):
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and "figures." in cell.source and "import" not in cell.source:
            assert before.cell_type == "markdown", cell.source


def test_the_last_cell_writes_the_results(stage, code):
    assert "paper" in code[-1].source if stage == "paper" else "write" in code[-1].source


def test_cell_ids_are_stable_and_unique(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def nbval(project: Project, *files) -> subprocess.CompletedProcess:
    """Execute notebooks and compare the outputs of the cells that ask for it."""
    plugins = ["-p", "no:cacheprovider", "-p", "no:timeout", "-c", "/dev/null", "--rootdir", str(project.root)]
    return project.command(sys.executable, "-m", "pytest", "-q", "--nbval-lax", *plugins, *map(str, files))


def parameterised(name: str, project: Project):
    """A notebook of the tiny profile, written into the project's folder."""
    notebook = load_notebook_node(str(project.root / "notebooks" / f"{name}.ipynb"))
    file = project.root / f"{name}.ipynb"
    nbformat.write(parameterize_notebook(notebook, {"profile": PROFILE}), file)
    return file


def test_cells_that_keep_an_output_gave_it_in_the_run(stage, notebook):
    """What nbval checks, on the notebook that the pipeline has executed."""
    executed = nbformat.read(finished().project.results / "notebooks" / FILES[stage].name, as_version=4)
    executed.cells = [cell for cell in executed.cells if "injected-parameters" not in tags(cell)]
    for kept, made in zip(notebook.cells, executed.cells, strict=True):
        assert kept.source == made.source
        if "nbval-check-output" in tags(kept):
            assert [output.text for output in kept.outputs] == [output.text for output in made.outputs]


@pytest.mark.slow
def test_nbval_executes_every_notebook(tmp_path):
    project = finished().project.copy(tmp_path / "project")
    before = {f.name: f.read_bytes() for f in (project.results / "metrics").iterdir()}
    shutil.rmtree(project.root / "data" / "curated")  # the notebooks write all anew, one after the other
    shutil.rmtree(project.root / "results")
    for kind in ("properties", "release", "retrieval", "defects", "ablations"):  # pretraining and texts stay
        for kept in (project.root / ".scratch").glob(f"{kind}*"):
            shutil.rmtree(kept)
    files = [parameterised(name, project) for name in (*run.NAMES.values(), "00_explore")]
    ended = nbval(project, *files)
    assert ended.returncode == 0, ended.stdout[-6000:]
    cells = sum(cell.cell_type == "code" for file in files for cell in nbformat.read(file, as_version=4).cells)
    assert f"{cells} passed" in ended.stdout
    assert {f.name: f.read_bytes() for f in (project.results / "metrics").iterdir()} == before
    assert set(before) == {f"{stage}.json" for stage in config.STAGES if stage != "paper"}

    # a checked output that is wrong is seen
    notebook = nbformat.read(files[0], as_version=4)
    checked = next(cell for cell in notebook.cells if "nbval-check-output" in tags(cell))
    wrong = nbformat.v4.new_output("stream", name="stdout", text="not what this cell says\n")
    checked.outputs = [wrong]
    nbformat.write(notebook, files[0])
    ended = nbval(project, files[0])
    assert ended.returncode == 1, ended.stdout[-3000:]
    assert "1 failed" in ended.stdout
