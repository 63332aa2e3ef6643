import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PRINT = "from matalign import paths; print(paths.ROOT); print(paths.SCRATCH)"


@pytest.fixture
def installed(tmp_path):
    """The modules that paths are made from, as a wheel lays them down: no checkout around them."""
    package = tmp_path / "site" / "matalign"
    package.mkdir(parents=True)
    for name in ("__init__.py", "paths.py"):
        (package / name).write_text((SOURCE / "matalign" / name).read_text())
    return package.parent


def roots(where, site, **env):
    """ROOT and SCRATCH of a process started in a folder."""
    left = {k: v for k, v in os.environ.items() if not k.startswith(("MATALIGN_", "XDG_"))}
    env = {**left, "PYTHONPATH": str(site), **env}
    said = subprocess.run([sys.executable, "-c", PRINT], cwd=where, env=env, capture_output=True, text=True, check=True)
    return [Path(line) for line in said.stdout.splitlines()]


def checkout(folder):
    (folder / "src" / "matalign").mkdir(parents=True)
    (folder / "params.yaml").touch()
    return folder


def test_an_installed_package_works_where_it_is_called_and_caches_for_the_user(installed, tmp_path):
    here, home = tmp_path / "empty", tmp_path / "home"
    here.mkdir()
    assert roots(here, installed, XDG_CACHE_HOME=str(home)) == [here, home / "matalign"]


def test_a_checkout_is_found_from_its_folders(installed, tmp_path):
    project = checkout(tmp_path / "project")
    (project / "notebooks").mkdir()
    assert roots(project / "notebooks", installed) == [project, project / ".scratch"]


def test_another_projects_parameters_make_no_checkout(installed, tmp_path):
    (tmp_path / "params.yaml").touch()
    here = tmp_path / "analysis"
    here.mkdir()
    assert roots(here, installed)[0] == here


def test_code_of_a_checkout_finds_it_from_elsewhere(tmp_path):
    assert roots(tmp_path, SOURCE)[0] == SOURCE.parent


def test_variables_go_first(installed, tmp_path):
    project, other = checkout(tmp_path / "project"), tmp_path / "other"
    other.mkdir()
    assert roots(project, installed, MATALIGN_ROOT=str(other)) == [other, other / ".scratch"]
    assert roots(project, installed, MATALIGN_SCRATCH=str(other)) == [project, other]


def test_a_project_that_cannot_be_written_leaves_its_state_with_the_user(installed, tmp_path, monkeypatch):
    project, home = checkout(tmp_path / "project"), tmp_path / "home"
    # not by its mode, which says nothing to a superuser
    (installed / "sitecustomize.py").write_text("import os; os.access = lambda path, mode: False\n")
    assert roots(project, installed, XDG_CACHE_HOME=str(home)) == [project, home / "matalign"]
