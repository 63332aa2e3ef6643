"""Items side by side: results in order, and no process outlives the one that asked."""

import operator
import subprocess
import sys
import time
from pathlib import Path

import dask_jobqueue.local
import psutil
import pytest

from matalign import cache

SLEEPS = """
import os, pathlib, sys, time
from matalign import cache

def sleep(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(cache.each(sleep, [sys.argv[1]] * 2, processes=2, title="sleeps"))
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_results_are_in_the_order_of_the_items(processes):
    assert list(cache.each(operator.neg, [1, 2, 3], processes=processes, title="negatives")) == [-1, -2, -3]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path):
    """SIGKILL, after which it can tell nobody."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    (folder := tmp_path / "at_work").mkdir()
    command = [sys.executable, tmp_path / "sleeps.py", folder]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(workers := list(folder.iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        workers = [psutil.Process(int(worker.name)) for worker in workers]
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the queue here: it closes no pipes
def test_jobs_that_a_file_describes_do_the_work(tmp_path: Path, monkeypatch):
    """A queue that starts its jobs here, instead of SLURM's."""
    monkeypatch.setattr(dask_jobqueue, "LocalQueue", dask_jobqueue.local.LocalCluster, raising=False)
    options = "cores: 1, processes: 1, memory: 1GB, interface: lo, scheduler_options: {dashboard_address: ':0'}"
    (file := tmp_path / "queue.yaml").write_text(f"LocalQueue: {{jobs: 2, {options}}}")
    made = cache.each(operator.neg, [1, 2, 3], processes=1, title="negatives", cluster=str(file))
    assert list(made) == [-1, -2, -3]


def test_a_machine_that_submits_no_jobs_is_told(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (file := tmp_path / "queue.yaml").write_text("SLURMCluster: {jobs: 2, cores: 1, memory: 1GB}")
    with pytest.raises(OSError, match=r"queue.yaml: SLURMCluster submits its jobs by sbatch, which is not on this"):
        list(cache.each(operator.neg, [1], processes=1, title="negatives", cluster=str(file)))


@pytest.mark.parametrize("content", ["SLURM: {jobs: 2}", "SLURMCluster: {cores: 1}", "16", "a: [", "SLURMCluster: x"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str):
    (file := tmp_path / "queue.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"queue.yaml: expected {class of dask_jobqueue: {jobs: number"):
        list(cache.each(operator.neg, [1], processes=1, title="negatives", cluster=str(file)))
