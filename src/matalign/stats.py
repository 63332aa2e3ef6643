"""Intervals and paired tests: bootstrap over clusters nested with seeds, Holm's correction.

Materials of one chemical system are alike, and runs of one seed share their luck; resampling single items would claim
too narrow an interval. So a resample draws whole clusters (chemical systems, hosts) and whole seeds, both with
replacement (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Intervals are percentile
intervals at 95 %.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
CHUNK = 2**22  # resampled labels held at once
Statistic = str | Callable[[np.ndarray], float]  # "mean", "rmse", "ratio", or a function of one seed's items (n, ...)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; `p`, of paired comparisons alone: two-sided, for "no difference"."""

    value: float
    low: float
    high: float
    p: float | None = None


def bootstrap(
    values: np.ndarray, clusters: Sequence, *, statistic: Statistic = "mean", resamples: int, seed: int
) -> Interval:
    """A statistic of per-item scores, its mean over seeds, and its interval over clusters and seeds.

    Args:
        values: (S, N, ...) per seed and item: a score; or whatever the statistic takes (true and predicted class, say).
            (N,) is one seed.
        clusters: (N,) label of each item's cluster. With a single cluster the interval collapses to the value.
        statistic: "mean"; "rmse" of errors; "ratio", the sum of `values[..., 0]` over that of `values[..., 1]`, 0 where
            that is nil; or a callable from the items (n, ...) of one seed to a float.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: no items, a NaN, or labels that do not match the items.
    """
    estimates = _Resampler(clusters, resamples=resamples, seed=seed).estimates(_checked(values, clusters), statistic)
    return _interval(estimates)


def paired(
    a: np.ndarray,
    b: np.ndarray,
    clusters: Sequence,
    *,
    statistic: Statistic = "mean",
    relative: bool = False,
    resamples: int,
    seed: int,
) -> Interval:
    """The difference a − b of a statistic on the same items and seeds, its interval and p-value.

    Both sides are resampled together, so that what they share cancels. One seed on one side is compared with every seed
    of the other.

    Args:
        a: (S, N, ...) as in `bootstrap`.
        b: the same, of the baseline.
        clusters: (N,) labels.
        statistic: as in `bootstrap`.
        relative: give (a − b) / b instead; resamples in which b is nil tell no ratio and are left out of its interval.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        The interval; `p` is twice the smaller share of resamples at or beyond zero, counting the sample itself.

    Raises:
        ValueError: as `bootstrap`; numbers of seeds that cannot be paired; or a ratio to nothing.
    """
    a, b = _checked(a, clusters), _checked(b, clusters)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"{len(a)} seeds cannot be paired with {len(b)}; expected the same number, or one")
    seeds = max(len(a), len(b))
    sampler = _Resampler(clusters, resamples=resamples, seed=seed)
    left, right = (sampler.estimates(x, statistic, seeds=seeds) for x in (a, b))
    difference = left - right
    beyond = min((difference[1:] <= 0).sum(), (difference[1:] >= 0).sum())
    if relative and right[0] == 0:
        raise ValueError("the baseline's statistic is 0: no difference is relative to it")
    result = _interval(difference[right != 0] / right[right != 0] if relative else difference)
    return Interval(result.value, result.low, result.high, p=float(min(1.0, 2 * (beyond + 1) / (resamples + 1))))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment for a family of tests (Scand. J. Statist. 6, 65, 1979).

    Args:
        p_values: (n,) raw p-values.

    Returns:
        (n,) adjusted p-values, in the order given; reject where at most the family's error rate.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {p.min()} to {p.max()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def _checked(values: np.ndarray, clusters: Sequence) -> np.ndarray:
    values = np.asarray(values)
    values = values[None] if values.ndim == 1 else values
    if values.shape[1] == 0 or values.shape[0] == 0:
        raise ValueError(f"nothing to resample: values of shape {values.shape}")
    if values.shape[1] != len(clusters):
        raise ValueError(f"{values.shape[1]} items, but {len(clusters)} cluster labels")
    if values.dtype.kind == "f" and np.isnan(values).any():
        item = int(np.argwhere(np.isnan(values))[0, 1])
        raise ValueError(f"{np.isnan(values).sum()} values are NaN, first at item {item}; drop or score them before")
    return values


class _Resampler:
    """Draws of clusters and seeds, the same for every array it is asked about."""

    def __init__(self, clusters: Sequence, *, resamples: int, seed: int) -> None:
        _, self.label = np.unique(np.asarray(clusters), return_inverse=True)
        self.n_clusters = int(self.label.max()) + 1 if self.label.size else 0
        self.resamples, self.seed = resamples, seed

    def estimates(self, values: np.ndarray, statistic: Statistic, *, seeds: int | None = None) -> np.ndarray:
        """(1 + resamples,) the statistic's mean over seeds: of the sample itself, then of each resample.

        Args:
            values: (S, N, ...).
            statistic: see `bootstrap`.
            seeds: how many seeds to draw; where `values` has one, it stands for all.
        """
        rng = np.random.default_rng(self.seed)  # anew for each array: paired arrays see the same draws
        seeds = seeds or len(values)
        draws = rng.multinomial(seeds, [1 / seeds] * seeds, size=self.resamples)  # (R, S) how often each seed is drawn
        weights = np.concatenate([np.ones((1, seeds)), draws]) / seeds
        if len(values) == 1:
            weights = weights.sum(1, keepdims=True)
        per_seed = self._moments(values, statistic) if isinstance(statistic, str) else None
        if per_seed is None:
            per_seed = self._called(values, statistic, weights, rng)
        return (per_seed * weights).sum(1)

    def _moments(self, values: np.ndarray, statistic: str) -> np.ndarray:
        """(1 + R, S) from sums per cluster alone: no resample is ever laid out."""
        if statistic not in ("mean", "rmse", "ratio"):
            raise ValueError(f"statistic {statistic!r}; mean, rmse, ratio or a callable")
        terms = values.astype(np.float64) ** (2 if statistic == "rmse" else 1)
        over = terms[..., 1] if statistic == "ratio" else np.ones((1, len(self.label)))
        sums, sizes = (  # (S, C); (S, C) or (1, C)
            np.stack([np.bincount(self.label, weights=row, minlength=self.n_clusters) for row in part])
            for part in (terms[..., 0] if statistic == "ratio" else terms, over)
        )
        rows = [_ratio(sums.sum(1), sizes.sum(1))[None]]
        for counts in _draws(self.n_clusters, self.resamples, self.seed, chunk=max(1, CHUNK // self.n_clusters)):
            counts = counts.astype(np.float64)
            rows.append(_ratio(counts @ sums.T, counts @ sizes.T))
        mean = np.concatenate(rows)
        return np.sqrt(mean) if statistic == "rmse" else mean

    def _called(
        self, values: np.ndarray, statistic: Callable, weights: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """(1 + R, S) by calling the statistic on the resampled items of each seed that was drawn."""
        order = np.argsort(self.label, kind="stable")
        per_seed = np.zeros((len(weights), len(values)))
        per_seed[0] = [statistic(row) for row in values]
        for r in range(self.resamples):
            counts = _counts(rng, self.n_clusters, 1)[0]
            items = np.repeat(order, counts[self.label[order]])
            for s in np.flatnonzero(weights[r + 1]):
                per_seed[r + 1, s] = statistic(values[s, items])
        return per_seed


def _counts(rng: np.random.Generator, clusters: int, n: int) -> np.ndarray:
    """(n, clusters) how often each cluster is drawn."""
    flat = (rng.integers(clusters, size=(n, clusters)) + np.arange(n)[:, None] * clusters).ravel()
    return np.bincount(flat, minlength=n * clusters).reshape(n, clusters)


@lru_cache(4)  # the tables of a stage ask for the same few again and again, and drawing costs more than all the rest
def _draws(clusters: int, resamples: int, seed: int, *, chunk: int) -> list[np.ndarray]:
    """How often each cluster is drawn in each resample, (resamples, clusters) in chunks."""
    rng = np.random.default_rng([seed, clusters])
    sizes = (min(chunk, resamples - start) for start in range(0, resamples, chunk))
    return [_counts(rng, clusters, n).astype(np.uint16) for n in sizes]


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _interval(estimates: np.ndarray) -> Interval:
    low, high = (
        np.quantile(estimates[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(estimates) > 1 else estimates[[0, 0]]
    )
    return Interval(float(estimates[0]), float(low), float(high))
