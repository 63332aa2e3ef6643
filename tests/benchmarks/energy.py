"""Formation energy from the structure alone, from scratch: how tower and training were chosen, and what they reach.

    make bench PROFILE=laptop ONLY=energy

Trials change one thing at a time of `START`; each shows as many crystals of the random split's training set, and only
its error on validation is looked at. The best then trains for 15 minutes with another seed, and predicts the test set
once. Trials run two at a time on one thread each and are kept in scratch; some forty minutes in all on two idle cores.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from benchmarks.comparison import Settings
from benchmarks.towers import OURS, Task
from torch import nn
from tqdm import tqdm

from matalign import cache, config, stats
from matalign.pretrain.checkpoint import on_threads

START = {"width": 96, "layers": 3, "order": 3, "learning_rate": 3e-3, "weight_decay": 0.05, "batch_size": 64}
CHANGES = (
    {},
    {"width": 64},
    {"width": 128},
    {"layers": 4},
    {"order": -1},
    {"learning_rate": 1.5e-3},
)
SHOWN = 192_000  # crystals in a trial
SECONDS = 900.0  # of the last training
RESAMPLES = 2000


def trial(profile: str, changes: dict) -> dict:
    """Mean absolute error on validation, eV/atom, and what it cost; from scratch if it was run before."""
    task = Task(profile, **START | changes)
    key = {"settings": START | changes, "shown": SHOWN, "data": task.data, "version": config.version("properties")}

    def run() -> dict:
        steps, start = SHOWN // task.fit.batch_size, time.process_time()
        make, rate = task.models()[OURS[0]], task.fit.learning_rate
        model, _ = task.cycle(make, length=steps, at=lambda step: step, rate=rate, seed=0)
        error = float(task.errors(model, "val").mean())
        return {"mae_val_eV_atom": error, "core_minutes": (time.process_time() - start) / 60}

    with on_threads(1):
        return START | changes | cache.memo("energy", key, run)


def final(task: Task, make: Callable[[], nn.Module]) -> dict:
    """Train a model for `SECONDS`; the test error with its interval, and the speed."""
    rate, start = task.fit.learning_rate, time.perf_counter()
    with tqdm(total=round(SECONDS), desc="energy, training", unit="s") as bar:

        def elapsed(step: int) -> float:
            now = time.perf_counter() - start
            bar.update(min(int(now), bar.total) - bar.n)
            return now

        model, steps = task.cycle(make, length=SECONDS, at=elapsed, rate=rate, seed=1)
    clusters = task.clusters[task.rows["test"]]
    interval = stats.bootstrap(task.errors(model, "test"), clusters, resamples=RESAMPLES, seed=0)
    return {
        "mae_test_eV_atom": {"value": interval.value, "low": interval.low, "high": interval.high},
        "mae_val_eV_atom": float(task.errors(model, "val").mean()),
        "seconds": SECONDS,
        "threads": torch.get_num_threads(),
        "structures_per_s": steps * task.fit.batch_size / SECONDS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "crystals": {part: len(rows) for part, rows in task.rows.items()},
    }


def measure(settings: Settings) -> dict:
    """All trials, and the last training."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        running = pool.map(partial(trial, settings.profile), CHANGES)
        trials = list(tqdm(running, total=len(CHANGES), desc="energy, trials"))
    best = min(trials, key=lambda t: t["mae_val_eV_atom"])
    chosen = {name: best[name] for name in START}
    task = Task(settings.profile, **chosen)
    return {"trials": trials, "chosen": chosen, "final": final(task, task.models()[OURS[0]]), "comparisons": []}
