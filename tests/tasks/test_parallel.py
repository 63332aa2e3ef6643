"""Fits side by side: results in order, and no process outlives the one that asked."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from matalign.tasks import parallel

SLEEPS = """
import time
from matalign.tasks import parallel
if __name__ == "__main__":
    parallel.results(time.sleep, [600, 601], [600, 601], processes=2, title="sleeps")
"""


def test_what_is_pending_starts_in_its_order_and_results_are_in_that_of_the_fits():
    started = []
    found = parallel.results(lambda x: started.append(x) or 2 * x, [1, 2, 3], [3, 1], processes=1, title="doubles")
    assert list(found.items()) == [(1, 2), (2, 4), (3, 6)]
    assert started == [2, 3, 1]


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
