"""Labels of properties: their scale, and how far a prediction is from them.

The target `is_metal` is a class: a network gives its logit and is trained by binary cross-entropy, every other model
gives a number that means metal above one half. All other targets are fitted by absolute error. NaN where there is none.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from matalign.quantities import METAL

THRESHOLD = 0.5  # above: a metal
Parts = Mapping[str, Int[np.ndarray, " _"]]  # train, val, test -> rows of materials
Predictions = dict[str, Float[np.ndarray, "_ targets"]]  # val, test -> values; of a class, that of being a metal


def errors(predicted: Float[np.ndarray, "*n"], true: Float[np.ndarray, "*n"], target: str) -> Float[np.ndarray, "*n"]:
    """Absolute error of each prediction; of a class 1 where it is wrong, else 0; NaN where there is no label."""
    if target == METAL:
        return np.where(np.isnan(true), np.nan, (predicted > THRESHOLD) != (true > THRESHOLD))
    return np.abs(predicted - true)


def masked_error(
    predicted: Float[Tensor, "b targets"],
    true: Float[Tensor, "b targets"],
    *,
    weights: Float[Tensor, " targets"] | None = None,
    classes: Bool[Tensor, " targets"] | None = None,
) -> Float[Tensor, ""]:
    """Error of each target over the rows that have it, then the weighted mean over targets that any row has.

    Args:
        predicted: values, or the logit of a class.
        true: values or 0 and 1, NaN where there is no label.
        weights: of the targets; None: equal.
        classes: which targets' error is the binary cross-entropy, nat; the others' is absolute. None: no target's.
    """
    known, true = ~true.isnan(), true.nan_to_num()
    error = (predicted - true).abs()
    if classes is not None and classes.any():
        entropy = F.binary_cross_entropy_with_logits(predicted, true, reduction="none")
        error = torch.where(classes, entropy, error)
    error = torch.where(known, error, 0).sum(0) / known.sum(0).clamp(min=1)
    weights = known.any(0).to(error) * (1 if weights is None else weights)
    return (error * weights).sum() / weights.sum().clamp(min=1e-12)


def standard(
    labels: Float[np.ndarray, "n targets"], targets: Sequence[str]
) -> tuple[Float[np.ndarray, " targets"], Float[np.ndarray, " targets"]]:
    """Mean and deviation that `train` standardises by; a class is left as it is."""
    classes = np.array([target == METAL for target in targets])
    mean, std = np.nanmean(labels, 0), np.nanstd(labels, 0)
    return np.where(classes, 0.0, mean), np.where(classes | ~(std > 0), 1.0, std)
