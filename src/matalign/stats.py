"""Intervals and paired tests: bootstrap over clusters, joined with seeds; Holm's correction; calibration.

Materials of one chemical system are alike, and runs of one seed share their luck; resampling single items would claim
too narrow an interval. So a resample draws whole clusters (chemical systems, hosts) with replacement (Davison &
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Intervals are percentile intervals at 95 %.

Seeds are crossed with clusters and few, and drawing them with replacement in the same way fails twice. S seeds drawn
from S have a variance too small by (S − 1)/S and no longer tail than their own extremes: five seeds whose luck
outweighs the materials' give intervals that hold the truth in 84 % of simulated studies. And what varies by seed *and*
cluster is counted up to three times (Owen, Ann. Appl. Stat. 1, 386, 2007): where nothing else varies, intervals are 1.6
times too wide, and a test at 5 % is one at 0.2 %. So all seeds are evaluated on each resample, and their luck
is added as a draw from Student's t of S − 1 degrees, its variance that between seeds less what the resampled clusters
have counted already, as in two-way clustering (Cameron, Gelbach & Miller, J. Bus. Econ. Stat. 29, 238, 2011).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
CHUNK = 2**22  # resampled labels held at once
BINS = 10  # of a probability
Statistic = str | Callable[[np.ndarray], float]  # "mean", "rmse", "ratio", or a function of one seed's items (n, ...)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; `p`, of paired comparisons alone: two-sided, for "no difference"."""

    value: float
    low: float
    high: float
    p: float | None = None

    def bounds(self, name: str = "value") -> dict[str, float]:
        """Value (by the name given), low, high and, of a comparison, p: as the rows of metrics hold them."""
        found = {name: self.value, "low": self.low, "high": self.high}
        return found if self.p is None else {**found, "p": self.p}


def bootstrap(
    values: np.ndarray, clusters: Sequence, *, statistic: Statistic = "mean", resamples: int, seed: int
) -> Interval:
    """A statistic of per-item scores, its mean over seeds, and its interval over clusters and seeds.

    Args:
        values: (S, N, ...) per seed and item: a score; or whatever the statistic takes (true and predicted class, say).
            (N,) is one seed.
        clusters: (N,) label of each item's cluster. With a single cluster and one seed the interval collapses to the
            value.
        statistic: "mean"; "rmse" of errors; "ratio", the sum of `values[..., 0]` over that of `values[..., 1]`, 0 where
            that is nil; or a callable from the items (n, ...) of one seed to a float.

    Raises:
        ValueError: no items, a NaN, or labels that do not match the items.
    """
    per_seed = _estimates(_checked(values, clusters), clusters, statistic, resamples=resamples, seed=seed)
    return _interval(_joined(per_seed, seed=seed))


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
    """The difference a − b of a statistic on the same items and seeds, as `bootstrap` takes them, with its p-value.

    Both sides are resampled together, so that what they share cancels. One seed on one side is compared with every seed
    of the other. `p` is twice the smaller share of resamples at or beyond zero, counting the sample itself.

    Args:
        relative: give (a − b) / b instead; resamples in which b is nil tell no ratio: they are left out of the interval
            and count against a difference.

    Raises:
        ValueError: as `bootstrap`; numbers of seeds that cannot be paired; or a ratio to nothing.
    """
    a, b = _checked(a, clusters), _checked(b, clusters)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(f"{len(a)} seeds cannot be paired with {len(b)}; expected the same number, or one")
    left, right = (_estimates(x, clusters, statistic, resamples=resamples, seed=seed) for x in (a, b))
    untold = 0
    if relative:  # of means over seeds, to first order in each seed's deviation from them
        told = right.mean(1) != 0
        if not told[0]:
            raise ValueError("the baseline's statistic is 0: no difference is relative to it")
        left, right, untold = left[told], right[told], (~told).sum()
        below = right.mean(1, keepdims=True)
        ratio = left.mean(1, keepdims=True) / below
        per_seed = ratio - 1 + (left - ratio * right) / below
    else:
        per_seed = left - right
    difference = _joined(per_seed, seed=seed)
    beyond = min((difference[1:] <= 0).sum(), (difference[1:] >= 0).sum()) + untold
    result = _interval(difference)
    return Interval(result.value, result.low, result.high, p=float(min(1.0, 2 * (beyond + 1) / (resamples + 1))))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """(n,) p-values of a family of tests, by Holm's step-down adjustment (Scand. J. Statist. 6, 65, 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {p.min()} to {p.max()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def adjusted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one family of tests, `p_holm` added: their `p` by Holm's adjustment."""
    return [{**row, "p_holm": float(p)} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def calibration_error(probability: np.ndarray, observed: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error: Σ_b n_b / N · |mean observed_b − mean probability_b| (Guo et al., ICML 2017).

    Args:
        probability: (N,) that was stated; bin b holds (b / bins, (b + 1) / bins], zero the first.
        observed: (N,) whether it came true.
    """
    gap = np.bincount(_bin(probability, bins), weights=np.asarray(observed, dtype=float) - probability, minlength=bins)
    return float(np.abs(gap).sum() / len(probability))


def reliability(
    probability: np.ndarray,
    observed: np.ndarray,
    *,
    bins: int = BINS,
    names: tuple[str, str] = ("confidence", "accuracy"),
) -> list[dict[str, float]]:
    """Rows {bin_low, bin_high, mean probability, mean observed (by `names`), n} of the bins that hold any; as above."""
    at = _bin(probability, bins)
    return [
        {"bin_low": b / bins, "bin_high": (b + 1) / bins}
        | {name: float(x[at == b].mean()) for name, x in zip(names, (probability, observed), strict=True)}
        | {"n": int((at == b).sum())}
        for b in np.unique(at).tolist()
    ]


def _bin(probability: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(np.asarray(probability) * bins).astype(int) - 1, 0, bins - 1)


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


def _estimates(
    values: np.ndarray, clusters: Sequence, statistic: Statistic, *, resamples: int, seed: int
) -> np.ndarray:
    """(1 + resamples, S) the statistic of each seed: of the sample itself, then of each resample of clusters."""
    _, label = np.unique(np.asarray(clusters), return_inverse=True)
    draws = _draws(int(label.max()) + 1, resamples, seed)  # paired arrays see the same
    return (_moments if isinstance(statistic, str) else _called)(values, label, statistic, draws)


def _moments(values: np.ndarray, label: np.ndarray, statistic: str, draws: Sequence[np.ndarray]) -> np.ndarray:
    """From sums per cluster alone: no resample is ever laid out."""
    if statistic not in ("mean", "rmse", "ratio"):
        raise ValueError(f"statistic {statistic!r}; mean, rmse, ratio or a callable")
    terms = values.astype(np.float64) ** (2 if statistic == "rmse" else 1)
    over = terms[..., 1] if statistic == "ratio" else np.ones((1, len(label)))
    sums, sizes = (  # (S, C); (S, C) or (1, C)
        np.stack([np.bincount(label, weights=row) for row in part])
        for part in (terms[..., 0] if statistic == "ratio" else terms, over)
    )
    rows = [_ratio(sums.sum(1), sizes.sum(1))[None]]
    for counts in draws:
        counts = counts.astype(np.float64)
        rows.append(_ratio(counts @ sums.T, counts @ sizes.T))
    mean = np.concatenate(rows)
    return np.sqrt(mean) if statistic == "rmse" else mean


def _called(values: np.ndarray, label: np.ndarray, statistic: Callable, draws: Sequence[np.ndarray]) -> np.ndarray:
    """By calling the statistic on the resampled items of each seed."""
    order = np.argsort(label, kind="stable")
    rows = [[statistic(row) for row in values]]
    for count in (row for counts in draws for row in counts):
        items = np.repeat(order, count[label[order]])
        rows.append([statistic(row[items]) for row in values])
    return np.array(rows)


@lru_cache(4)  # the tables of a stage ask for the same few again and again, and drawing costs more than all the rest
def _draws(clusters: int, resamples: int, seed: int) -> list[np.ndarray]:
    """How often each of so many clusters is drawn in each resample, (resamples, clusters) in chunks."""
    rng, step, out = np.random.default_rng([seed, clusters]), max(1, CHUNK // clusters), []
    for start in range(0, resamples, step):
        n = min(step, resamples - start)
        flat = rng.integers(clusters, size=(n, clusters)) + np.arange(n)[:, None] * clusters
        out.append(np.bincount(flat.ravel(), minlength=n * clusters).reshape(n, clusters).astype(np.uint16))
    return out


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def _joined(per_seed: np.ndarray, *, seed: int) -> np.ndarray:
    """(1 + R,) means over seeds of (1 + R, S) estimates, the seeds' luck added to all but the first.

    Var(mean) = V_clusters + V_seeds − V_both: V_clusters is that of the resampled means; V_seeds = s²/S of the S values
    of the sample; V_both, which either holds, the spread between seeds of what a resample changes, over S.
    """
    estimates, seeds = per_seed.mean(1), per_seed.shape[1]
    if seeds > 1 and len(estimates) > 1:
        both = (per_seed[1:] - per_seed[0]).var(1, ddof=1).mean() / seeds
        luck = np.sqrt(max(0.0, per_seed[0].var(ddof=1) / seeds - both))
        t = stdtrit(seeds - 1, (np.arange(len(estimates) - 1) + 0.5) / (len(estimates) - 1))  # evenly, then shuffled
        estimates[1:] += luck * np.random.default_rng((seed, 1)).permutation(t)
    return estimates


def _interval(estimates: np.ndarray) -> Interval:
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = np.quantile(estimates[1:], ends) if len(estimates) > 1 else estimates[[0, 0]]
    return Interval(*map(float, (estimates[0], *bounds)))
