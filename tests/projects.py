"""A copy of this project in a temporary folder, in which the pipeline runs on the `tiny` profile."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from matalign import paths
from matalign.pipeline import provenance

REPOSITORY = Path(__file__).parents[1]
PARTS = ("src", "notebooks", "paper", "data", "params.yaml", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore")
PROFILE = "tiny"
REPRO = (sys.executable, "-m", "dvc", "repro")


@dataclass(frozen=True)
class Project:
    """Folder of a project; every process started in it carries `mark` in its environment."""

    root: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MATALIGN", "GIT", "COV", "PYTEST"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        git = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**kept, **git, "PATH": path, "PYTHONPATH": str(self.root / "src"), "MATALIGN_TEST_MARK": self.mark}

    @property
    def results(self) -> Path:
        return self.root / "results" / PROFILE

    def command(self, *args: str) -> subprocess.CompletedProcess:
        """Run to the end; standard output and error together."""
        return subprocess.run(
            args, cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def matalign_run(self, *args: str) -> subprocess.CompletedProcess:
        return self.command(sys.executable, "-m", "matalign.pipeline.run", *args)

    def repro(self, *args: str) -> str:
        """`dvc repro`, which must succeed; what it printed."""
        ended = self.command(*REPRO, *args)
        assert ended.returncode == 0, ended.stdout[-6000:]
        return ended.stdout

    def start_repro(self) -> subprocess.Popen:
        """`dvc repro` in a process group of its own."""
        return subprocess.Popen(
            REPRO,
            cwd=self.root,
            env={**self.env, "SHELL": "/bin/sh"},  # dash, on many machines, stays as the parent of what it starts
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        """Those that were started in this project, by anyone, and still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MATALIGN_TEST_MARK") == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the one place of a file where `old` stands."""
        text = (self.root / name).read_text()
        assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times"
        (self.root / name).write_text(text.replace(old, new))

    def provenance(self, stage: str) -> dict:
        return json.loads((self.results / "provenance" / f"{stage}.json").read_text())

    def files(self) -> dict[str, bytes]:
        """All that a second run must repeat: results less provenance, model and curated set, by relative name."""
        folders = [self.results, self.root / "data" / "curated" / PROFILE]
        files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in files if f.parent.name != "provenance"}

    def clone(self, root: Path) -> "Project":
        """What git holds of the project: nothing that a run has made."""
        assert self.command("git", "clone", "-q", ".", str(root)).returncode == 0
        return Project(root)

    def copy(self, root: Path) -> "Project":
        """The project as it stands, resume state and DVC's cache included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)


def ran(output: str) -> list[str]:
    """Stages that `dvc repro` says it runs."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")]


def make(root: Path) -> Project:
    """Copy this repository's working tree as git would commit it, with `tiny` as the one profile."""
    names = provenance.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS).split("\0")
    for name in dict.fromkeys(filter(None, names)):
        if (paths.ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(paths.ROOT / name, root / name)
    project = Project(root)
    project.edit("params.yaml", "\nprofiles:\n  sample:\n", f"\nprofiles:\n  {PROFILE}:\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        assert project.command("git", *command).returncode == 0
    return project


@dataclass(frozen=True)
class Finished:
    """A project whose pipeline has run, and what that printed."""

    project: Project
    output: str


def finished() -> Finished:
    """The one full run that tests share; they must not change it, but copy it. One that failed is not tried again."""
    project, ended = _run_once()
    assert ended.returncode == 0, ended.stdout[-6000:]
    return Finished(project, ended.stdout)


@functools.cache
def _run_once() -> tuple[Project, subprocess.CompletedProcess]:
    folder = tempfile.mkdtemp(prefix="matalign-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    project = make(Path(folder) / "project")
    return project, project.command(*REPRO)
