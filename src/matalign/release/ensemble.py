"""How the predictors of a released model are trained: small ensembles of fine-tuned crystal towers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matalign.config import Properties, Run, Weights
from matalign.quantities import ENERGY
from matalign.tasks.properties import fits
from matalign.tasks.properties.arms import NETWORKS, STRUCTURE_ONLY, Fit

SPLIT, PERCENT = "random", 100.0  # what the released predictors are trained on: all labels of its training part
CANDIDATES = tuple(arm for arm in STRUCTURE_ONLY if arm in NETWORKS)


# Training


def chosen(rows: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> dict[str, Any]:
    """For a group of targets, the arm of least error on validation of those that train a tower on the structure alone.

    Looked for where the predictors are trained (all labels, random split), else at the largest share of labels of the
    other split. The error is that of E_f where it is among the targets, else the mean over them.

    Args:
        rows: `fits` of `metrics/properties.json`.
        targets: name -> weight in the loss.

    Returns:
        {targets, arm, split, label_percent, val_error}, the error a mean over seeds.

    Raises:
        ValueError: no such fit.
    """
    there = [r for r in rows if (r["targets"], r["cohort"]) == (targets, "A") and r["arm"] in CANDIDATES]
    if not there:
        names, arms = ", ".join(targets), ", ".join(CANDIDATES)
        raise ValueError(f"no fit of {names} by any of {arms} in the metrics of properties")
    cells = {(r["split"], r["label_percent"]) for r in there}
    split, percent = max(cells, key=lambda cell: (cell[0] == SPLIT, cell[1]))
    found: dict[str, list[float]] = {}
    for r in there:
        if (r["split"], r["label_percent"]) == (split, percent):
            error = r["val_error"]
            mean = error[ENERGY] if ENERGY in error else float(np.mean(list(error.values())))
            found.setdefault(r["arm"], []).append(mean)
    arm = min(found, key=lambda name: (np.mean(found[name]), name))
    place = {"targets": targets, "arm": arm, "split": split, "label_percent": percent}
    return {**place, "val_error": float(np.mean(found[arm]))}


def plan(cfg: Properties, arms: Mapping[Weights, str], *, members: int) -> tuple[Properties, list[Fit]]:
    """The fits of all predictors, and the config that they belong to; the schedule is that of the properties.

    A fit that the tables of properties hold too is theirs: its weights lie in scratch, and are not trained again.

    Args:
        cfg: of the stage properties.
        arms: targets -> arm.
        members: fits of each, of different seeds.
    """
    names = {targets: name for name, targets in cfg.targets}
    runs = tuple((names[targets], (Run(SPLIT, PERCENT, members, also=(arm,)),)) for targets, arm in arms.items())
    mine = replace(cfg, targets=tuple((names[targets], targets) for targets in arms), arms=(), runs=runs)
    return mine, fits.plan(mine)
