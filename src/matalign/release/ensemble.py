"""How the predictors of a released model are trained: small ensembles of fine-tuned crystal towers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from matalign import cache, config
from matalign.config import Properties
from matalign.tasks import regression, workers
from matalign.tasks.fit import on_threads, weights
from matalign.tasks.properties import fits
from matalign.tasks.properties.fits import E_F, Fit

SPLIT, PERCENT = "random", 100.0  # what the released predictors are trained on: all labels of its training part
CANDIDATES = tuple(arm for arm in fits.STRUCTURE_ONLY if arm in fits.NETWORKS)


# Training


def chosen(rows: Sequence[Mapping[str, Any]], targets: str) -> dict[str, Any]:
    """For a group of targets, the arm of least error on validation of those that train a tower on the structure alone.

    Looked for where the predictors are trained (all labels, random split), else at the largest share of labels of the
    other split. The error is that of E_f where it is among the targets, else the mean over them.

    Args:
        rows: `fits` of `metrics/properties.json`.
        targets: as in `Fit.targets`.

    Returns:
        {targets, arm, split, label_percent, val_error}, the error a mean over seeds.

    Raises:
        ValueError: no such fit.
    """
    there = [r for r in rows if (r["targets"], r["cohort"]) == (targets, "A") and r["arm"] in CANDIDATES]
    if not there:
        raise ValueError(f"no fit of {targets} by any of {', '.join(CANDIDATES)} in the metrics of properties")
    cells = {(r["split"], r["label_percent"]) for r in there}
    split, percent = max(cells, key=lambda cell: (cell[0] == SPLIT, cell[1]))
    found: dict[str, list[float]] = {}
    for r in there:
        if (r["split"], r["label_percent"]) == (split, percent):
            error = r["val_error"]
            found.setdefault(r["arm"], []).append(error[E_F] if E_F in error else float(np.mean(list(error.values()))))
    arm = min(found, key=lambda name: (np.mean(found[name]), name))
    place = {"targets": targets, "arm": arm, "split": split, "label_percent": percent}
    return {**place, "val_error": float(np.mean(found[arm]))}


def plan(cfg: Properties, arms: Mapping[str, str], *, members: int) -> tuple[Properties, list[Fit]]:
    """The fits of all predictors, and the config that they belong to; the schedule is that of the properties.

    Args:
        cfg: of the stage properties.
        arms: targets -> arm.
        members: fits of each, of different seeds.
    """
    runs = "; ".join(f"{SPLIT}:{PERCENT:g}:{members}:+{arm}" for arm in arms.values())
    mine = replace(cfg, targets="; ".join(arms), arms="", runs=runs)
    return mine, fits.plan(mine)


def fit(cfg: Properties, each: Fit) -> dict[str, Any]:
    """One member, from scratch if an earlier run made it.

    Returns:
        `weight.<name>` of the network, and `mean` and `std` (targets,) that its standardised output is of.
    """
    t = fits.task(cfg)
    key = fits.key(t, each) | {"version": config.version("release")}

    def compute() -> dict[str, Any]:
        model, _ = fits.train(cfg, each, cache.folder("release", key) / "state.pt")
        labels = t.labels[list(each.weights)].to_numpy()[fits.rows(t, each)["train"]]
        mean, std = regression.standard(labels, list(each.weights))
        return {"mean": mean, "std": std} | {f"weight.{k}": w.numpy() for k, w in weights(model).items()}

    with on_threads(1):
        return cache.memo("release", key, compute)


def fit_all(cfg: Properties, planned: Sequence[Fit]) -> dict[Fit, dict[str, Any]]:
    """All members, up to `cfg.threads` at a time (one on a GPU); see `fit` for what each gives."""
    device = fits.task(cfg).device
    short = sum(f.steps for f in planned) * cfg.batch_size < fits.WORTH_A_PROCESS
    processes = 1 if device.type == "cuda" or short else min(cfg.threads, len(planned))
    out = {}
    with tqdm(total=sum(f.steps for f in planned), desc="members", unit="step", mininterval=1) as bar:
        told = (lambda steps: bar.update(steps - bar.n)) if processes > 1 else (lambda steps: None)
        for each, result in workers.solved(partial(fit, cfg), planned, processes, told=told):
            out[each] = result
            bar.update(each.steps if processes == 1 else 0)
    return {each: out[each] for each in planned}
