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
import time
from matalign import cache
if __name__ == "__main__":
    list(cache.each(time.sleep, [600, 601], processes=2, title="sleeps"))
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_results_are_in_the_order_of_the_items(processes):
    assert list(cache.each(operator.neg, [1, 2, 3], processes=processes, title="negatives")) == [-1, -2, -3]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path):
    """SIGKILL, after which it can tell nobody."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    with subprocess.Popen([sys.executable, tmp_path / "sleeps.py"], stderr=subprocess.DEVNULL) as process:
        starter = psutil.Process(process.pid)
        workers = []
        while len(workers) < 2:
            assert process.poll() is None
            time.sleep(0.1)
            children = starter.children()
            workers = [p for p in children if any("popen_loky" in word for word in p.cmdline())]
        time.sleep(5)  # they have taken their work
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
