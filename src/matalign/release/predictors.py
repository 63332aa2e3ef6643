"""The predictors of a released model: ensembles of crystal towers, and how sure they are.

Of a target the ensemble's mean is the prediction, and half the width of its interval q · s(x), with

    s(x) = members' standard deviation + (β + r(x)) · max(d(x) / d₀, ½),

d(x) the distance from training and r(x) the error of training nearby (`depth`), β the median error and d₀ the median
distance on validation. The score of a validation label is its error over s, that of a chemical system the greatest of
its labels': split-conformal prediction with normalised residuals (Papadopoulos et al., ECML 2002; Lei et al., J. Am.
Stat. Assoc. 113, 1094, 2018). Quantiles are taken in groups: up to five by distance, equally large, and one of each
element that enough systems hold; q is the greatest of all those by distance and of the crystal's elements. So what is
far and what is hard is covered too. The ½ keeps what is known best from intervals narrower than validation can vouch
for. The form was chosen by cross-validation over the chemical systems of validation. That has also chosen the weights
that are kept, so what the intervals cover is measured on the test part. Of the class `is_metal` the mean of the
members' probabilities is given, with its calibration error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from matalign.config import Pretrain
from matalign.elements import NUMBER, SYMBOLS
from matalign.quantities import METAL
from matalign.release.depth import Around
from matalign.towers import crystal
from matalign.towers.crystal import Regressor
from matalign.views.graphs import Graphs

LEVEL = 0.9  # of the intervals that are given
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # whose coverage is measured
ROWS = 256  # crystals in a batch
GUARD = 0.5  # least distance over the median that counts
GROUPS, SYSTEMS = 5, 100  # by distance: at most so many groups, of at least so many chemical systems
ELEMENT = 50  # chemical systems of validation that hold an element with a quantile of its own
LONG = 100  # more crystals than this show a progress bar


@dataclass(frozen=True)
class Predictor:
    """An ensemble that predicts a group of targets."""

    targets: tuple[str, ...]  # columns of `dataset.MATERIALS`; moduli as log10
    members: tuple[Regressor, ...]
    mean: np.ndarray  # (targets,)
    std: np.ndarray  # (targets,)

    @torch.no_grad()
    def __call__(
        self, store: Graphs
    ) -> tuple[Float[np.ndarray, "members crystals targets"], Float[np.ndarray, "crystals d"]]:
        """What each member says of a store's crystals, in the targets' units, of a class its probability; and what the
        first member pools.
        """
        classes, said, features = np.array([target == METAL for target in self.targets]), [], []
        parts = torch.arange(len(store)).split(ROWS)
        for batch in (store.batch(p) for p in tqdm(parts, "predict", mininterval=1, disable=len(store) <= LONG)):
            pooled = [member.tower(batch)[0] for member in self.members]
            said.append(torch.stack([member.head(z) for member, z in zip(self.members, pooled)]).double())
            features.append(pooled[0])
        out = torch.cat(said, 1)
        values = np.where(classes, torch.sigmoid(out).numpy(), out.numpy() * self.std + self.mean)
        return values, torch.cat(features).numpy()


def network(cfg: Pretrain, tower: str, targets: int) -> Regressor:
    """An untrained member: its tower (of `towers.crystal`; "": the config's own) and head."""
    return Regressor(crystal.build(replace(cfg, crystal_tower=tower or cfg.crystal_tower)), targets).eval()


@dataclass(frozen=True)
class Calibration:
    """What turns spread and distance into half the width of an interval at `LEVEL`, in the target's unit."""

    floor: float
    factor: float
    distance: float = 1.0  # median on validation
    elements: Mapping[str, float] = field(default_factory=dict)  # symbol -> factor, where it is greater

    def half_width(self, members: Float[np.ndarray, "members n"], around: Around) -> Float[np.ndarray, " n"]:
        """(n,) of predictions by each member."""
        own = np.zeros(around.holds.shape[1])
        own[[NUMBER[symbol] for symbol in self.elements]] = list(self.elements.values())
        factor = np.maximum(self.factor, (around.holds * own).max(1))
        return factor * _scale(members, around, self.floor, self.distance)


def _scale(members: np.ndarray, around: Around, floor: float, middle: float) -> np.ndarray:
    return spread(members) + (floor + around.error) * np.maximum(around.distance / middle, GUARD)


def spread(members: Float[np.ndarray, "members n"]) -> Float[np.ndarray, " n"]:
    """Standard deviation over the members; nil where there is one."""
    return members.std(0, ddof=1) if len(members) > 1 else np.zeros(members.shape[1])


def calibrate(
    members: Float[np.ndarray, "members n"],
    true: Float[np.ndarray, " n"],
    around: Around,
    systems: np.ndarray,
    *,
    level: float = LEVEL,
) -> Calibration:
    """Calibrate on validation.

    Args:
        systems: (n,) chemical system of each crystal.
        level: share of the labels that intervals are to cover. The quantile of n scores is the ⌈(n + 1) · level⌉-th
            smallest; where n is too small for that, the greatest.

    Raises:
        ValueError: no labels.
    """
    if not len(true):
        raise ValueError("no labels to calibrate on")
    error, distance = np.abs(members.mean(0) - true), around.distance
    floor, middle = (max(float(np.median(x)), 1e-9) for x in (error, distance))
    score = error / _scale(members, around, floor, middle)
    worst = np.argsort(-score, kind="stable")
    worst = worst[np.unique(systems[worst], return_index=True)[1]]  # the greatest of each system
    by_distance = score[worst[np.argsort(distance[worst], kind="stable")]]
    groups = np.array_split(by_distance, min(max(len(worst) // SYSTEMS, 1), GROUPS))
    factor, holds = max(_quantile(group, level) for group in groups), around.holds[worst]
    own = {SYMBOLS[z]: _quantile(score[worst[holds[:, z]]], level) for z in np.flatnonzero(holds.sum(0) >= ELEMENT)}
    return Calibration(floor, factor, middle, {symbol: q for symbol, q in own.items() if q > factor})


def _quantile(scores: np.ndarray, level: float) -> float:
    return float(np.sort(scores)[min(math.ceil((len(scores) + 1) * level), len(scores)) - 1])


def member_predictions(
    predictors: Sequence[Predictor], store: Graphs
) -> tuple[dict[str, Float[np.ndarray, "members n"]], list[Float[np.ndarray, "n d"]]]:
    """Target -> what each member says of the crystals of a store; and the features of each predictor."""
    found = [predictor(store) for predictor in predictors]
    members = {
        target: each
        for predictor, (said, _) in zip(predictors, found, strict=True)
        for target, each in zip(predictor.targets, np.moveaxis(said, 2, 0), strict=True)
    }
    return members, [features for _, features in found]


def values(
    members: Mapping[str, Float[np.ndarray, "members n"]],
    calibrations: Mapping[str, Calibration],
    around: Mapping[str, Around],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is predicted, from what the members say and what training is around.

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
        half = calibrations[target].half_width(each, around[target])
        bounds = mean, mean - half, mean + half
        if target.endswith("_GPa"):
            bounds = tuple(10**x for x in bounds)
        elif target == "band_gap_eV":
            bounds = tuple(x.clip(min=0) for x in bounds)
        out[target] = bounds
    return out
