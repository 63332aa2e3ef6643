"""The predictors of a released model: ensembles of crystal towers, and how sure they are.

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

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from matalign.config import Pretrain
from matalign.quantities import METAL
from matalign.towers import crystal
from matalign.towers.crystal import Regressor
from matalign.views.graphs import GraphStore

LEVEL = 0.9  # of the intervals that are given
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # whose coverage is measured
ROWS = 256  # crystals in a batch
LONG = 100  # more crystals than this show a progress bar


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
    return Regressor(crystal.build(replace(cfg, crystal_tower=tower or cfg.crystal_tower)), targets).eval()


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


def member_predictions(predictors: Sequence[Predictor], store: GraphStore) -> dict[str, Float[np.ndarray, "members n"]]:
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
