"""The predictors of a released model: small ensembles of fine-tuned crystal towers, and how sure they are.

Of a target the ensemble's mean is the prediction, and with the members' standard deviation s and a floor β (the median
error on validation) half the width of its interval at a level is q · (s + β), where q is that quantile of the errors on
validation, each divided by its s + β: split-conformal prediction with normalised residuals (Papadopoulos et al., ECML
2002; Lei et al., J. Am. Stat. Assoc. 113, 1094, 2018). Validation has also chosen the weights that are kept, so what
the intervals cover is measured on the test part. Of the class `is_metal` the mean of the members' probabilities is
given, with its calibration error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from matalign import cache, config, stats, towers
from matalign.config import Pretrain, Properties
from matalign.tasks import regression, workers
from matalign.tasks.fit import on_threads, weights
from matalign.tasks.properties import fits
from matalign.tasks.properties.fits import E_F, Fit
from matalign.tasks.regression import METAL, Regressor
from matalign.views.graphs import GraphStore

SPLIT, PERCENT = "random", 100.0  # what the released predictors are trained on: all labels of its training part
LEVEL = 0.9  # of the intervals that are given
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # whose coverage is measured
ROWS = 256  # crystals in a batch
LONG = 100  # more crystals than this show a progress bar
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
        model, _ = fits.train(cfg, each, cache.folder("release", key) / "state.safetensors")
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


# Predicting


@dataclass(frozen=True)
class Predictor:
    """An ensemble that predicts a group of targets."""

    targets: tuple[str, ...]  # columns of `dataset.MATERIALS`; moduli as log10
    members: tuple[Regressor, ...]
    mean: np.ndarray  # (targets,)
    std: np.ndarray  # (targets,)

    @torch.no_grad()
    def __call__(self, store: GraphStore) -> Float[np.ndarray, "members crystals targets"]:
        """What each member says of the crystals of a store, in the targets' units; of a class its probability."""
        classes, found = np.array([target == METAL for target in self.targets]), []
        parts = torch.arange(len(store)).split(ROWS)
        for batch in (store.batch(p) for p in tqdm(parts, "predict", mininterval=1, disable=len(store) <= LONG)):
            found.append(torch.stack([member(batch) for member in self.members]).double())
        out = torch.cat(found, 1)
        return np.where(classes, torch.sigmoid(out).numpy(), out.numpy() * self.std + self.mean)


def network(cfg: Pretrain, tower: str, targets: int) -> Regressor:
    """An untrained member: its tower (of `towers.crystal`; "": the config's own) and head."""
    return Regressor(towers.build("crystal", replace(cfg, crystal_tower=tower or cfg.crystal_tower)), targets).eval()


# How sure


@dataclass(frozen=True)
class Calibration:
    """What turns the members' spread into half the width of an interval at `LEVEL`, in the target's unit."""

    floor: float
    factor: float

    def half_width(self, members: Float[np.ndarray, "members n"]) -> Float[np.ndarray, " n"]:
        """(n,) of predictions by each member."""
        return self.factor * (spread(members) + self.floor)


def spread(members: Float[np.ndarray, "members n"]) -> Float[np.ndarray, " n"]:
    """Standard deviation over the members; nil where there is one."""
    return members.std(0, ddof=1) if len(members) > 1 else np.zeros(members.shape[1])


def calibrate(
    members: Float[np.ndarray, "members n"], true: Float[np.ndarray, " n"], *, level: float = LEVEL
) -> Calibration:
    """Calibrate on validation.

    Args:
        members: predictions by each.
        true: labels.
        level: share of the labels that intervals are to cover. Its quantile is the ⌈(n + 1) · level⌉-th smallest error;
            where n is too small for that, the greatest.

    Raises:
        ValueError: no labels.
    """
    if not len(true):
        raise ValueError("no labels to calibrate on")
    error = np.abs(members.mean(0) - true)
    floor = max(float(np.median(error)), 1e-9)
    ranked = np.sort(error / (spread(members) + floor))
    return Calibration(floor, float(ranked[min(math.ceil((len(ranked) + 1) * level), len(ranked)) - 1]))


def reliability(probability: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> list[dict[str, float]]:
    """Bins of a probability that hold any: {bin_low, bin_high, probability, observed, n}, both means over the bin."""
    return stats.reliability(probability, true, names=("probability", "observed"))


def calibration_error(items: Float[np.ndarray, "n 2"]) -> float:
    """Expected calibration error of (probability, label) rows, as `stats.bootstrap` takes a statistic."""
    return stats.calibration_error(items[:, 0], items[:, 1])


def said(predictors: Sequence[Predictor], store: GraphStore) -> dict[str, Float[np.ndarray, "members n"]]:
    """Target -> what each member says of the crystals of a store, as from `Predictor`."""
    found = ((predictor.targets, np.moveaxis(predictor(store), 2, 0)) for predictor in predictors)
    return {target: members for targets, each in found for target, members in zip(targets, each, strict=True)}


def values(
    members: Mapping[str, Float[np.ndarray, "members n"]], calibrations: Mapping[str, Calibration]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is predicted, from what the members say.

    Returns:
        Target -> (n,) value, low and high, in the units of `dataset.MATERIALS`: moduli in GPa, no negative gap. Of the
        class the probability, between the least and the greatest of any member.
    """
    out = {}
    for target, each in members.items():
        mean = each.mean(0)
        if target == METAL:
            out[target] = mean, each.min(0), each.max(0)
            continue
        half = calibrations[target].half_width(each)
        bounds = mean, mean - half, mean + half
        if target.endswith("_GPa"):
            bounds = tuple(10**x for x in bounds)
        elif target == "band_gap_eV":
            bounds = tuple(x.clip(min=0) for x in bounds)
        out[target] = bounds
    return out
