"""Fits side by side, in processes of joblib's backend: loky's here, a cluster's under `joblib.parallel_config`."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import joblib
from tqdm import tqdm

from matalign import cache

Fit = TypeVar("Fit")
Result = TypeVar("Result")


def results(
    fit_or_load: Callable[[Fit], Result], fits: Sequence[Fit], pending: Sequence[Fit], *, processes: int, title: str
) -> dict[Fit, Result]:
    """The result of each fit; the bar moves as they finish.

    Args:
        fit_or_load: a function of a module, or a partial of one; it and the fits are sent to the processes.
        fits: all, in the order of the results.
        pending: those that have no result yet, in the order in which they start.
        processes: one or fewer: all are fitted here, one after the other. Processes of this machine end with this one.
        title: of the bar.
    """
    out = {fit: fit_or_load(fit) for fit in fits if fit not in set(pending)}
    if processes <= 1:
        made = ((fit, fit_or_load(fit)) for fit in pending)
    else:
        parallel = joblib.Parallel(processes, return_as="generator_unordered", batch_size=1)
        made = parallel(joblib.delayed(_call)(os.getpid(), fit_or_load, fit) for fit in pending)
    with tqdm(total=len(fits), initial=len(out), desc=title, unit="fit", mininterval=1) as bar:
        for fit, result in made:
            out[fit] = result
            bar.update()
    return {fit: out[fit] for fit in fits}


def _call(starter: int, fit_or_load: Callable[[Fit], Result], fit: Fit) -> tuple[Fit, Result]:
    if os.getppid() == starter:  # not so for a process of a cluster
        cache.die_with_parent(starter)
    return fit, fit_or_load(fit)
