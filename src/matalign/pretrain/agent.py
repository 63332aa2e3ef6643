"""Ranks on this machine, under an elastic agent in a process of its own: the caller's process never touches a GPU.

The agent ends with the process that started it, the ranks with the agent.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from matalign import cache

FAILURE = "failure.txt"  # in the folder of the run


def run(folder: Path, *, ranks: int, max_steps: int = 0, env: Mapping[str, str]) -> None:
    """Run so many ranks of `matalign.pretrain.train` to their end.

    Args:
        folder: of the run, with its `pretrain.json`.
        ranks: how many.
        max_steps: stop after so many; 0: train in full.
        env: environment of the ranks.

    Raises:
        RuntimeError: training failed; the message is the traceback of the rank that failed first, or which was killed.
    """
    failure = folder / FAILURE
    failure.unlink(missing_ok=True)
    ended = subprocess.run(command(folder, ranks=ranks, max_steps=max_steps), env=env, check=False)
    if ended.returncode:
        why = failure.read_text() if failure.exists() else "its agent has left no message"
        raise RuntimeError(f"training ended with exit code {ended.returncode}; its state is in {folder}\n{why}")


def command(folder: Path, *, ranks: int, max_steps: int = 0) -> list[str]:
    """What starts the agent; it ends with this process."""
    return [sys.executable, "-m", __name__, str(os.getpid()), str(folder), str(ranks), str(max_steps)]


def reason(failures: Mapping[int, ProcessFailure]) -> str:
    """Which ranks were killed, and the first traceback: a killed rank leaves none, those that waited for it do."""
    killed = [
        f"rank {rank} was killed: {failure.message}"
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # by which the agent itself ends ranks
    ]
    raised = [failure for failure in failures.values() if isinstance(failure.message, Mapping)]
    first = min(raised, key=lambda failure: failure.timestamp, default=None)
    return "\n".join([*killed, *([first.message["extraInfo"]["py_callstack"]] if first else [])])


def main() -> None:
    """The agent."""
    parent, folder, ranks, max_steps = sys.argv[1:]
    cache.die_with_parent(int(parent))
    one_machine = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=int(ranks),
        run_id="pretrain",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    train = ("-m", "matalign.pretrain.train", "--config", f"{folder}/pretrain.json", "--max-steps", max_steps)
    try:
        elastic_launch(one_machine, sys.executable)(*train)
    except ChildFailedError as error:
        (Path(folder) / FAILURE).write_text(reason(error.failures))
        sys.exit(1)


if __name__ == "__main__":
    main()
