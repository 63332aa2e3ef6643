"""Tasks side by side in processes of their own, which end with this one."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

from matalign import cache

Task = TypeVar("Task")
Result = TypeVar("Result")

_taken: Any = None  # in a worker: steps that all workers have taken, shared


def tell(steps: int) -> None:
    """In a worker: say that so many steps are done; elsewhere nothing."""
    if _taken is not None:
        with _taken.get_lock():
            _taken.value += steps


def solved(
    solve: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    *,
    told: Callable[[int], None] = lambda steps: None,
) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, as they end.

    Args:
        solve: a function of a module, or a partial of one; it and the tasks are sent to the workers.
        tasks: in the order in which they start.
        workers: processes; one or fewer: solved here, one after the other.
        told: called about once a second with the steps that all workers have told of.
    """
    if workers <= 1:
        yield from ((task, solve(task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    taken = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), taken)) as pool:
        waiting = {pool.submit(solve, task): task for task in tasks}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                told(taken.value)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(parent: int, taken: Any) -> None:
    global _taken
    cache.die_with_parent(parent)
    _taken = taken
