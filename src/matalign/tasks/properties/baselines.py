"""Models without a network: the median, boosted trees on the composition, ridge regression on frozen features.

Each sees arrays alone: features by part, labels, and a function from predictions for validation to their error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float

from matalign import elements
from matalign.data.dataset import Structures
from matalign.quantities import METAL
from matalign.tasks.properties.labels import THRESHOLD, Parts, Predictions, errors

TREES, TREE_RATE = 600, 0.05
PENALTIES = np.logspace(-4, 8, 25)
LANDMARKS, FARTHEST = 1500, 10.0  # of a kernel; a standardised feature counts as at most this
WIDTHS, KERNEL_PENALTIES = (0.5, 1.0, 2.0, 4.0), np.logspace(-5, 1, 13)  # in root mean squares over features


def composition_features(structures: Structures) -> Float[np.ndarray, "crystals features"]:
    """(M, 119 + 5 · 14) Magpie-like features: element fractions, and five statistics of each elemental property.

    They are mean, mean deviation, minimum, maximum and range over the atoms, NaN where an element's is unknown.
    """
    crystal = np.repeat(np.arange(len(structures)), np.diff(structures.ptr))
    per_atom, first = elements.VALUES[structures.numbers], structures.ptr[:-1]
    size = np.diff(structures.ptr)[:, None]
    mean = np.add.reduceat(per_atom, first) / size
    deviation = np.add.reduceat(np.abs(per_atom - mean[crystal]), first) / size
    low, high = np.minimum.reduceat(per_atom, first), np.maximum.reduceat(per_atom, first)
    return np.concatenate([structures.fractions(), mean, deviation, low, high, high - low], 1)


def each_target(
    baseline: Callable[..., dict[str, np.ndarray]],
    features: Float[np.ndarray, "materials features"],
    targets: Sequence[str],
    labels: Float[np.ndarray, "materials targets"],
    parts: Parts,
) -> Predictions:
    """Fit each target by itself.

    Args:
        baseline: one of those below; takes features by part, known labels of training, a function from predictions for
            validation to their error, and whether the target is a class.
    """
    found: list[dict[str, np.ndarray]] = []
    for target, column in zip(targets, labels.T, strict=True):
        known = parts["train"][~np.isnan(column[parts["train"]])]
        x = {"train": features[known], "val": features[parts["val"]], "test": features[parts["test"]]}

        def score(predicted: np.ndarray, target: str = target, true: np.ndarray = column[parts["val"]]) -> float:
            return float(np.nanmean(errors(predicted, true, target)))

        found.append(baseline(x, column[known], score, target == METAL))
    return {name: np.stack([f[name] for f in found], 1) for name in ("val", "test")}


def constant(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """Predict the training median, or the majority class."""
    value = float(y.mean() > THRESHOLD) if classes else float(np.median(y))
    return {name: np.full(len(x[name]), value) for name in ("val", "test")}


def boosting(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """A boosted ensemble; its loss and its number of trees are those of least error on validation.

    Where most labels are equal, as the gaps of metals are, absolute error starts there and finds nothing to split on.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor  # here: takes a second

    if len(np.unique(y)) < 2:
        return constant(x, y, score, classes)
    options = {"max_iter": TREES, "learning_rate": TREE_RATE, "early_stopping": False, "random_state": 0}
    if classes:
        models = [HistGradientBoostingClassifier(**options)]
    else:
        models = [HistGradientBoostingRegressor(loss=loss, **options) for loss in ("absolute_error", "squared_error")]

    def stages(model: Any, features: np.ndarray) -> Iterator[np.ndarray]:
        return (p[:, 1] for p in model.staged_predict_proba(features)) if classes else model.staged_predict(features)

    least, best = math.inf, {}
    for model in models:
        staged = list(stages(model.fit(x["train"], y), x["val"]))
        found = [score(predicted) for predicted in staged]
        i = int(np.argmin(found))
        if found[i] < least:
            least, best = found[i], {"val": staged[i], "test": next(islice(stages(model, x["test"]), i, None))}
    return best


def ridge(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """Ridge regression, standardised on training; the penalty is that of least error on validation.

    A feature that is NaN counts as its mean. On the labels 0 and 1 of a class, cut at one half, it is the ridge
    classifier.
    """
    x = _standardised(x)
    left, size, right = np.linalg.svd(x["train"], full_matrices=False)  # one decomposition for all penalties
    along = left.T @ (y - y.mean())
    found = [right.T @ (size / (size**2 + penalty) * along) for penalty in PENALTIES]
    best = min(found, key=lambda slope: score(x["val"] @ slope + y.mean()))
    return {name: x[name] @ best + y.mean() for name in ("val", "test")}


def kernel_ridge(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """As `ridge`, under a Gaussian kernel, its width chosen likewise, of at most LANDMARKS training points."""
    from sklearn.kernel_approximation import Nystroem  # here: takes a second

    x = {name: values.clip(-FARTHEST, FARTHEST) for name, values in _standardised(x).items()}
    least, best = math.inf, {}
    for width in WIDTHS:
        gamma = 1 / (2 * width**2 * x["train"].shape[1])
        kernel = Nystroem(gamma=gamma, n_components=min(LANDMARKS, len(y)), random_state=0).fit(x["train"])
        z = {name: kernel.transform(values) for name, values in x.items()}
        size, axes = np.linalg.eigh(z["train"].T @ z["train"])
        along = axes.T @ (z["train"].T @ (y - y.mean()))
        for penalty in KERNEL_PENALTIES:
            slope = axes @ (along / (size.clip(0) + penalty))
            made = {name: z[name] @ slope + y.mean() for name in ("val", "test")}
            if (error := score(made["val"])) < least:
                least, best = error, made
    return best


def _standardised(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    mean, std = np.nanmean(x["train"], 0, dtype=np.float64), np.nanstd(x["train"], 0, dtype=np.float64) + 1e-8
    return {name: np.nan_to_num((values - mean) / std) for name, values in x.items()}
