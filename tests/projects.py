"""A copy of this project in a temporary folder, in which the pipeline runs on the `tiny` profile."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from matalign import paths
from matalign.pipeline import provenance, run

REPOSITORY = Path(__file__).parents[1]
PARTS = ("src", "notebooks", "paper", "data", "params.yaml", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore")
PROFILE = "tiny"
REPRO = (sys.executable, "-m", "dvc", "repro")


@dataclass(frozen=True)
class Project:
    """Folder of a project; every process started in it carries `mark` in its environment."""

    root: Path
    profile: str = PROFILE
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MATALIGN", "GIT", "COV", "PYTEST"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        git = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**kept, **git, "PATH": path, "PYTHONPATH": str(self.root / "src"), "MATALIGN_TEST_MARK": self.mark}

    @property
    def results(self) -> Path:
        return self.root / "results" / self.profile

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

    def start_repro(self, *, output: int | IO = subprocess.DEVNULL, **how: Any) -> subprocess.Popen:
        """`dvc repro` in a process group of its own; `env` in `how` is added to the project's."""
        # dash, on many machines, stays as the parent of what it starts
        how["env"] = {**self.env, "SHELL": "/bin/sh", **how.get("env", {})}
        return subprocess.Popen(REPRO, cwd=self.root, stdout=output, stderr=output, start_new_session=True, **how)

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

    def at_work(self, stage: str, process: str) -> bool:
        """Whether a process of this command line runs, and three cells of the stage's notebook are done."""
        lines = []
        for running in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(" ".join(running.cmdline()))
        cells = "".join(f.read_text() for f in self.root.glob(f".scratch/run/*/{run.NAMES[stage]}.ipynb"))
        return any(process in line for line in lines) and cells.count('"status": "completed"') >= 3

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the one place of a file where `old` stands."""
        text = (self.root / name).read_text()
        assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times"
        (self.root / name).write_text(text.replace(old, new))

    def provenance(self, stage: str) -> dict:
        return json.loads((self.results / "provenance" / f"{stage}.json").read_text())

    def files(self) -> dict[str, bytes]:
        """All that a second run must repeat: results, model, curated set, less what tells minutes; by relative name."""
        folders = [self.results, self.root / "data" / "curated" / self.profile]
        files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()]
        return {
            str(f.relative_to(self.root)): f.read_bytes()
            for f in files
            if f.parent.name != "provenance" and f.name != "README.md"
        }

    def clone(self, root: Path) -> "Project":
        """What git holds of the project: nothing that a run has made."""
        assert self.command("git", "clone", "-q", ".", str(root)).returncode == 0
        return Project(root, self.profile)

    def copy(self, root: Path) -> "Project":
        """The project as it stands, resume state and DVC's cache included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root, self.profile)


def ran(output: str) -> list[str]:
    """Stages that `dvc repro` says it runs."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage ")]


def make(root: Path, profile: str = PROFILE) -> Project:
    """Copy this repository's working tree as git would commit it, with one profile on the embedded sample."""
    names = provenance.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS).split("\0")
    for name in dict.fromkeys(filter(None, names)):
        if (paths.ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(paths.ROOT / name, root / name)
    project = Project(root, profile)
    if profile != "sample":
        project.edit("params.yaml", "\nprofiles:\n  sample:\n", f"\nprofiles:\n  {profile}:\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        assert project.command("git", *command).returncode == 0
    return project


@dataclass(frozen=True)
class Killed:
    """A `dvc repro` that was killed at work in a stage: what still ran a minute later, and whether it had results."""

    stage: str
    left: list[str]
    had_results: bool


@dataclass(frozen=True)
class Finished:
    """A project whose pipeline was killed, was run again and went to the end; and what that last run printed."""

    project: Project
    killed: list[Killed]
    output: str


def kill(project: Project, stage: str, process: str, end: Callable[[int, int], None]) -> Killed:
    """Start `dvc repro`, and kill it once a process of the named stage runs and three cells of its notebook are done.

    Args:
        project: whose.
        stage: in which.
        process: part of the command line of the process that must run.
        end: `os.kill`, dvc alone; or `os.killpg`, its group, as Ctrl-C would.
    """
    repro, deadline = project.start_repro(), time.monotonic() + 600
    while not project.at_work(stage, process):
        assert repro.poll() is None, f"dvc repro ended before {process} was seen in {stage}"
        assert time.monotonic() < deadline, f"{process} was not seen in {stage}"
        time.sleep(0.05)
    end(repro.pid, signal.SIGKILL)
    repro.wait()
    deadline = time.monotonic() + 60
    while (left := project.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return Killed(stage, list(map(str, left)), (project.results / "metrics" / f"{stage}.json").exists())


def finished() -> Finished:
    """The one full run that tests share; they must not change it, but copy it. One that failed is not tried again."""
    project, killed, ended = _run_once()
    assert ended.returncode == 0, ended.stdout[-6000:]
    return Finished(project, killed, ended.stdout)


@functools.cache
def _run_once() -> tuple[Project, list[Killed], subprocess.CompletedProcess]:
    folder = tempfile.mkdtemp(prefix="matalign-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    project, killed = make(Path(folder) / "project"), []
    if sys.platform == "linux":  # PR_SET_PDEATHSIG is Linux's
        killed = [
            kill(project, "curate", "ipykernel_launcher", os.kill),
            kill(project, "pretrain", "matalign.pretrain.train", os.killpg),
        ]
    return project, killed, project.command(*REPRO)
