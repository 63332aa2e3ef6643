"""Items side by side: results in order, and no process outlives the one that asked."""

import operator
import subprocess
import sys
import time
from pathlib import Path

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
