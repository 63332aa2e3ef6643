"""Ranks on this machine, in processes of their own: the caller's never touches a GPU.

Several run under an elastic agent, which ends with the process that started it, and the ranks with the agent. One needs
no agent.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from matalign import cache

FAILURE, ERROR = "failure.txt", "error.json"  # in the folder of the run: of the agent, of a rank alone


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
    failure, error = folder / FAILURE, folder / ERROR
    for old in (failure, error):
        old.unlink(missing_ok=True)
    if ranks == 1:
        env = {**env, "TORCHELASTIC_ERROR_FILE": str(error)}  # where `record` writes what a rank dies of
    ended = subprocess.run(command(folder, ranks=ranks, max_steps=max_steps), env=env, check=False)
    if ended.returncode:
        why = failure.read_text() if failure.exists() else "no message was left"
        if error.exists():
            why = json.loads(error.read_text())["message"]["extraInfo"]["py_callstack"]
        elif ranks == 1 and ended.returncode < 0:
            why = f"rank 0 was killed: {signal.Signals(-ended.returncode).name}"
        raise RuntimeError(f"training ended with exit code {ended.returncode}; its state is in {folder}\n{why}")


def command(folder: Path, *, ranks: int, max_steps: int = 0) -> list[str]:
    """What starts the ranks; they end with this process."""
    if ranks == 1:
        return [sys.executable, *rank(folder, max_steps)]
    return [sys.executable, "-m", __name__, str(os.getpid()), str(folder), str(ranks), str(max_steps)]


def rank(folder: Path, max_steps: int | str) -> list[str]:
    """Arguments of Python in which it is a rank."""
    return ["-m", "matalign.pretrain.train", "--config", f"{folder}/pretrain.json", "--max-steps", str(max_steps)]


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
    try:
        elastic_launch(one_machine, sys.executable)(*rank(Path(folder), max_steps))
    except ChildFailedError as error:
        (Path(folder) / FAILURE).write_text(reason(error.failures))
        sys.exit(1)


if __name__ == "__main__":
    main()
