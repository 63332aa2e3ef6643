"""The package as others have it: a wheel, installed apart from the checkout, used from an empty folder."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from salt import CIF

import matalign

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "results" / "laptop" / "model"
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "MATALIGN" not in name}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """Python of a fresh environment with the wheel, which finds what it needs in this one."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", symlinks=True, ignore=left_out)
    shutil.copytree(ROOT / "data" / "sample", source / "data" / "sample", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "params.yaml", "data/sources.yaml"):
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    made = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    assert wheel.stat().st_size < 5e6
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    shutil.unpack_archive(wheel, purelib, "zip")
    here = Path(matalign.__file__).parents[1]
    others = [path for path in site.getsitepackages() if Path(path) != here]
    (purelib / "others.pth").write_text("\n".join(others))
    return python


@pytest.fixture
def call(python, tmp_path):
    """Run the installed command in an empty folder; start it only, where `wait` is false."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "nacl.cif").write_text(CIF)
    env = ENV | {"MATALIGN_HOME": str(MODEL.parents[1]), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def call(*args, wait=True, cwd=tmp_path / "empty", **changes):
        command = [python, "-m", "matalign.release.cli", *map(str, args)]
        settings = {name: value for name, value in (env | changes).items() if value is not None}
        started = subprocess.Popen(
            command, cwd=cwd, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if not wait:
            return started
        out, error = started.communicate(timeout=600)
        return started.returncode, out, error

    return call


def test_it_is_the_wheel_that_runs(python, tmp_path):
    script = "import matalign; from matalign import paths; print(matalign.__file__, paths.SAMPLE, sep='\\n')"
    ran = subprocess.run([python, "-c", script], cwd=tmp_path, env=ENV, capture_output=True, text=True, check=True)
    assert all(line.startswith(str(python.parents[1])) for line in ran.stdout.splitlines()), ran.stdout


def test_commands_work_from_an_empty_folder(call, tmp_path):
    cif = tmp_path / "nacl.cif"
    code, out, error = call("predict", cif, "--json")
    assert code == 0, error
    assert json.loads(out)[0]["formula"] == "NaCl"
    code, out, error = call("neighbours", cif, "-k", 2, "--json")
    assert code == 0, error
    assert json.loads(out)[0]["formula"] == "NaCl"
    code, _, error = call("embed", cif, "--out", tmp_path / "z.npy")
    assert code == 0, error
    assert not list((tmp_path / "empty").iterdir())  # nothing was left there
    (tmp_path / "table.csv").write_text(f'material_id,cif\na,"{CIF}"\n')
    code, out, error = call("import", tmp_path / "table.csv", "lab")
    assert code == 0, error
    assert out == f"1 materials, 0 protocols in {tmp_path / 'empty' / 'data' / 'curated' / 'lab'}\n"


def test_two_processes_recommend_at_once_and_the_second_waits(call, tmp_path):
    started = [call("recommend", tmp_path / "nacl.cif", "-k", 1, "--json", wait=False) for _ in range(2)]
    ended = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    first, second = (json.loads(out)[0] for out, _ in ended)
    assert first == second
    assert first["synthetic"]
    assert list((tmp_path / "cache" / "matalign").iterdir())  # scratch is the user's cache


def test_without_a_model_one_line_says_what_to_set(call, tmp_path):
    code, _, error = call("predict", tmp_path / "nacl.cif", MATALIGN_HOME=None)
    assert code == 2
    assert "set MATALIGN_HOME to the folder that holds laptop/model" in error
    assert "Traceback" not in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_on_a_read_only_tree(call, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    tree.chmod(0o555)
    code, _, error = call("predict", tmp_path / "nacl.cif", "--json", cwd=tree)
    assert code == 0, error
    code, _, error = call("recommend", tmp_path / "nacl.cif", "-k", 1, "--json", cwd=tree, MATALIGN_ROOT=str(tree))
    assert code == 0, error
    (tmp_path / "table.csv").write_text(f'material_id,cif\na,"{CIF}"\n')
    code, _, error = call("import", tmp_path / "table.csv", "lab", cwd=tree)
    assert code == 1
    assert "set MATALIGN_ROOT" in error
    assert "Traceback" not in error
