"""The files around the package agree with one another."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from projects import REPOSITORY

import matalign
from matalign.pipeline import provenance

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PEERS = "tests/benchmarks/requirements"


def lock(name):
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / name).read_text(), flags=re.M))


LOCK = lock("requirements.txt")


def requirements(name="requirements.in"):
    """Lines of a file of requirements."""
    lines = (line.partition("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def tracked():
    """Files that git holds or would take."""
    names = provenance.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [REPOSITORY / name for name in dict.fromkeys(filter(None, names)) if (REPOSITORY / name).is_file()]


def make(*args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *args], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True).stdout


def test_every_direct_requirement_is_pinned_and_installed():
    for requirement in requirements():
        version = LOCK[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version)
        assert importlib.metadata.version(requirement.name) == version


@pytest.mark.parametrize("name", ["requirements.txt", f"{PEERS}.txt"])
def test_every_pin_carries_hashes_and_names_no_index(name):
    text = (REPOSITORY / name).read_text()
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert len(blocks) == len(lock(name)) > 80
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert "--index" not in text


def test_what_the_package_needs_is_in_the_pinned_set():
    optional = PYPROJECT["optional-dependencies"]
    for line in PYPROJECT["dependencies"] + optional["pipeline"] + optional["cluster"]:
        assert canonicalize_name(Requirement(line).name) in LOCK, line
    for extra in set(optional) - {"pipeline", "cluster"}:  # what neither pipeline nor tests need
        for line in optional[extra]:
            assert canonicalize_name(Requirement(line).name) not in LOCK, line


def test_peers_stand_beside_the_versions_of_the_main_lock():
    theirs = lock(f"{PEERS}.txt")
    for line in PYPROJECT["dependencies"]:
        name = canonicalize_name(Requirement(line).name)
        assert theirs[name] == LOCK[name]
    for requirement in requirements(f"{PEERS}.in"):
        assert requirement.specifier.contains(theirs[canonicalize_name(requirement.name)])
    assert not {"matgl", "mp-api", "accelerate", "faiss-cpu", "open-clip-torch"} & set(LOCK)


def test_conda_environment_is_the_same_set():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    python, pip, listed = environment["dependencies"]
    assert listed == {"pip": ["-r requirements.txt"]}
    assert pip == "pip"
    version = python.removeprefix("python=")
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(version)
    assert f"--python-version {version} " in MAKEFILE
    assert f"command -v python{version} " in MAKEFILE


def test_citation_licence_and_package_agree():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == matalign.__version__ == importlib.metadata.version("matalign")
    assert citation["license"] == PYPROJECT["license"] == "MIT"
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the matalign authors")


def test_tools_outside_the_lock_are_pinned():
    tools = re.findall(r"uv tool run --from (\S+) ", MAKEFILE)
    assert len(tools) == 2
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", tool) for tool in tools)


def test_help_names_every_target():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.M))
    assert {"repro", "test", "check", "lab", "bench", "clean", "help"} <= targets
    assert set(re.findall(r"^make ([a-z-]+) ", make("help"), flags=re.M)) == targets


@pytest.mark.parametrize(("asked", "more"), [((), ""), (("PROFILE=laptop",), " --profile laptop")])
def test_make_repro_switches_profile_only_when_asked(asked, more):
    stamp = ["-o", "requirements.txt", "-o", "pyproject.toml", "-o", ".venv/.installed"]
    (line,) = make("-n", *stamp, "repro", *asked).splitlines()
    assert line.rpartition("/")[2].rstrip() == f"python -m matalign.pipeline.repro{more}"


def test_dvc_tells_nobody():
    config = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--project", "--list"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "core.analytics=false" in config.stdout
    assert "remote" not in config.stdout


def test_pre_commit_hooks_are_local():
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    entries = [hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]]
    assert {"ruff", "nbstripout"} == {entry.removeprefix(".venv/bin/") for entry in entries}


def test_continuous_integration_runs_make_test():
    script = REPOSITORY / ".ci" / "run"
    assert "make test" in script.read_text()
    assert os.access(script, os.X_OK)


def test_what_git_holds_is_small():
    size = sum(file.lstat().st_size for file in tracked())
    assert size <= 50e6, f"{size / 1e6:.1f} MB"


def test_made_files_stay_out_of_git():
    made = ["results/sample/paper.pdf", "results/laptop/pretrained/config.json", "data/raw/x/y"]
    made += [".venv/bin/python", ".scratch/run", ".source/01_curate.ipynb", "results/tiny/metrics/a.json"]
    made += ["results/sample/notebooks/01_curate.ipynb", "results/claims/sample.json", "results/training/tiny.csv"]
    made += [".venv-bench/bin/python", "data/curated/sample/z"]
    assert provenance.git("check-ignore", *made).split() == made
    kept = ["results/laptop/metrics/curate.json", "results/laptop/tables/a.csv", "results/laptop/paper.pdf"]
    kept += ["results/bench/bench.json", "results/bench/bench.png", "results/laptop/notebooks/01_curate.ipynb"]
    kept += ["results/claims/laptop.json", "results/training/full_cpu.csv"]
    kept += ["results/full_cpu/notebooks/01_curate.ipynb", "results/ablations/notebooks/05b_ablations.ipynb"]
    found = subprocess.run(["git", "check-ignore", "--no-index", *kept], cwd=REPOSITORY, check=False)
    assert found.returncode == 1  # none of them is ignored


def test_no_path_of_a_machine_in_any_text():
    # "/home/" and the like, outside the words of a URL
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users|work|mnt|scratch)/\w+")
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        if file.name != "test_house.py" and (found := pattern.search(text)):
            pytest.fail(f"{file.relative_to(REPOSITORY)}: {found[0]}")


def test_no_module_imports_relatively():
    # one way to write them, which the test of rooms reads
    for file in (REPOSITORY / "src").rglob("*.py"):
        assert not re.search(r"^\s*from \.", file.read_text(), flags=re.M), file.name


ROOMS = ("data", "views", "towers", "pretrain", "tasks", "release", "report", "pipeline")  # from the ground up


def test_rooms_import_only_what_stands_below_them():
    package = REPOSITORY / "src" / "matalign"
    assert {f.name for f in package.iterdir() if f.is_dir() and (f / "__init__.py").exists()} == set(ROOMS)
    for file in package.rglob("*.py"):
        here = file.relative_to(package).parts[0]
        floor = ROOMS.index(here) if here in ROOMS else -1
        for name in re.findall(r"^\s*(?:from|import) matalign\.(\w+)", file.read_text(), flags=re.M):
            above = name in ROOMS and ROOMS.index(name) > floor
            assert not above or file.name == "__init__.py", (
                f"{file.relative_to(package)} imports {name}, which stands above"
            )
