"""Sintering and calcination temperatures from composition and precursors, on the public test's two splits.

    official  the test's own training and validation rows; of the text-mined reactions, those of no DOI of a test row
    strict    of both, what shares neither chemical system nor DOI with any test row

Arms: the median of the training labels; boosting on element fractions of the test's own rows (`boosting`); and of those
rows and the text-mined solid-state reactions together, a median of the nearest compositions (`nearest`), and trees on
Magpie-like features and precursors (`recipes`). Formation energies of precursors, and formation energy, gap and space
group of the target, do not help these trees on validation; nor do the temperatures of their nearest.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

from matalign import elements
from matalign.data import formulas, recipes
from matalign.data.protocols import KINDS, Protocol

SPLITS = ("official", "strict")
ARMS = ("dummy", "boosting", "nearest", "recipes")
NEIGHBOURS, REACH = 20, 0.1  # compositions looked up; a neighbour farther than the nearest by REACH weighs 1/e
COMMON_PRECURSORS = 120  # that have a feature of their own
LIGANDS = [frozenset(k) for k in ("CO", "NO", "O", "HO", "S", "")]  # what a precursor holds of C, H, N, O, S
RANGE_C = {"sintering": (300.0, 1900.0), "calcination": (200.0, 1700.0)}  # text-mined labels outside are left out
MINED = (0.33, 0.1)  # weight of a text-mined row, whose reaction names both temperatures, or one
PERCENTILES = (10, 90)  # of the errors on validation: the predicted range


@dataclass(frozen=True)
class Split:
    """What is trained on, beside the test rows."""

    own: list[Protocol]  # the test's training and validation rows
    mined: list[Protocol]  # text-mined reactions

    def labelled(self, kind: str) -> list[Protocol]:
        """The text-mined reactions that are learned from: solid-state as the test is, temperature in `RANGE_C`."""
        low, high = RANGE_C[kind]
        return [r for r in self.mined if r.method == "solid-state" and low <= r.temperature_C(kind) <= high]


def split(name: str, own: Sequence[Protocol], test: Sequence[Protocol], known: Sequence[Protocol]) -> Split:
    """Training rows of a split; see the module. Raises ValueError: no such split, or nothing is left to train on."""
    if name not in SPLITS:
        raise ValueError(f"split {name!r}; one of {', '.join(SPLITS)}")
    strict = name == "strict"
    kept = recipes.without(own, test, system=True, doi=True) if strict else list(own)
    mined = recipes.without(known, test, system=strict, doi=True)
    if not kept:
        raise ValueError(f"{name} split: all {len(own)} training rows share a chemical system or DOI with the test")
    return Split(kept, recipes.without(mined, kept, doi=True))  # papers that stand in `kept` count once


def labels(rows: Sequence[Protocol], kind: str) -> np.ndarray:
    """(N,) temperatures in °C."""
    return np.array([r.temperature_C(kind) for r in rows], dtype=float)


def shares(rows: Sequence[Protocol]) -> np.ndarray:
    """(N, 119) atomic fractions."""
    return np.stack([formulas.vector(r.fractions) for r in rows])


def common(rows: Sequence[Protocol]) -> list[str]:
    """The most frequent precursors, ties in alphabetical order."""
    counts = Counter(p for r in rows for p in r.precursor_set)
    return sorted(counts, key=lambda p: (-counts[p], p))[:COMMON_PRECURSORS]


def features(rows: Sequence[Protocol], names: Sequence[str]) -> np.ndarray:
    """(N, F): fractions, five statistics of each elemental property weighted by them, and the precursors.

    Mean, mean deviation, least, greatest and range, unknown values as zero; then which of `names` are used, and how
    many precursors hold which of `LIGANDS`.
    """
    share, values = shares(rows), np.nan_to_num(elements.VALUES)
    mean = share @ values
    deviation = np.stack([s @ np.abs(values - m) for s, m in zip(share, mean)])
    low = np.stack([values[s > 0].min(0) for s in share])
    high = np.stack([values[s > 0].max(0) for s in share])
    used = np.array([[name in r.precursor_set for name in names] for r in rows], dtype=float).reshape(len(rows), -1)
    held = [[formulas.symbols(p) & frozenset("CHNOS") for p in r.precursor_set] for r in rows]
    kinds = np.array([[h.count(k) for k in LIGANDS] for h in held], dtype=float)
    return np.concatenate([share, mean, deviation, low, high, high - low, used, kinds], 1).astype(np.float32)


@dataclass(frozen=True)
class Model:
    """Boosted trees for one kind of temperature."""

    names: list[str]  # precursors with a feature of their own
    trees: "HistGradientBoostingRegressor"

    def predict(self, rows: Sequence[Protocol]) -> np.ndarray:
        """(N,) temperatures in °C, of rows as the test's own: both kinds of temperature are named."""
        return self.trees.predict(np.c_[features(rows, self.names), np.ones((len(rows), 2))])


def pooled(training: Split, kind: str) -> tuple[list[Protocol], np.ndarray, np.ndarray]:
    """All training rows, their weights (1 for the test's own, `MINED` for the others), and two features of each.

    These say whether a row is of the test's own, and whether it names both kinds of temperature, as all of those do.
    """
    rows = [*training.own, *training.labelled(kind)]
    both = np.array([not any(math.isnan(r.temperature_C(k)) for k in KINDS) for r in rows], dtype=bool)
    own = np.arange(len(rows)) < len(training.own)
    return rows, np.where(own, 1.0, np.where(both, *MINED)) * [r.weight for r in rows], np.c_[own, both]


def fit(training: Split, kind: str, *, trees: int, seed: int) -> Model:
    """Boosted trees on the test's own rows and the text-mined ones."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # here: its import takes a second

    rows, weight, source = pooled(training, kind)
    names = common(rows)
    model = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=trees,
        learning_rate=0.06,
        max_leaf_nodes=24,
        max_features=0.3,  # tried at each split
        early_stopping=False,
        random_state=seed,
    )
    return Model(names, model.fit(np.c_[features(rows, names), source], labels(rows, kind), sample_weight=weight))


def nearest(training: Split, test: Sequence[Protocol], kind: str) -> np.ndarray:
    """(N,) weighted median temperature in °C of the `NEIGHBOURS` nearest by the summed differences of fractions."""
    from sklearn.neighbors import NearestNeighbors

    rows, weight, _ = pooled(training, kind)
    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(rows)), metric="manhattan").fit(shares(rows))
    distance, near = index.kneighbors(shares(test))
    heat = labels(rows, kind)[near]
    order = heat.argsort(1)
    kept = np.take_along_axis(weight[near] * np.exp((distance[:, :1] - distance) / REACH), order, 1).cumsum(1)
    middle = (kept >= kept[:, -1:] / 2).argmax(1)
    return np.take_along_axis(heat, order, 1)[np.arange(len(test)), middle]


def baselines(training: Split, test: Sequence[Protocol], kind: str, *, trees: int, seed: int) -> dict[str, np.ndarray]:
    """Arm -> (N,) temperatures in °C: median and boosting on fractions of the test's own training rows; `nearest`."""
    from sklearn.ensemble import GradientBoostingRegressor

    y = labels(training.own, kind)
    boosted = GradientBoostingRegressor(
        loss="absolute_error", n_estimators=trees, max_depth=4, learning_rate=0.05, subsample=0.7, random_state=seed
    ).fit(shares(training.own), y)
    return {
        "dummy": np.full(len(test), np.median(y)),
        "boosting": boosted.predict(shares(test)),
        "nearest": nearest(training, test, kind),
    }


def spread(
    train: Sequence[Protocol], val: Sequence[Protocol], known: Sequence[Protocol], *, trees: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Kind -> `PERCENTILES` of true less predicted temperature on validation rows, °C."""
    training = split("official", train, val, known)
    errors = {kind: labels(val, kind) - fit(training, kind, trees=trees, seed=seed).predict(val) for kind in KINDS}
    return {kind: tuple(np.percentile(each, PERCENTILES).tolist()) for kind, each in errors.items()}
