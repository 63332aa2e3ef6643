"""Where the right answer stands: ranks with ties, Recall@k and the mean reciprocal rank."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

QUERIES = 256  # ranked at once


@dataclass(frozen=True)
class Ranks:
    """Where the best correct answer of each query stands."""

    above: np.ndarray  # (Q,) wrong answers scored higher than it
    wrong: np.ndarray  # (Q,) wrong answers that tie with it
    right: np.ndarray  # (Q,) correct answers that tie with it, itself included

    @classmethod
    def of(cls, scores: np.ndarray, correct: np.ndarray) -> "Ranks":
        """Rank (Q, N) scores, higher is better; `correct` (Q, N), one or more a query. ValueError: none, or a NaN."""
        if np.isnan(scores).any():
            raise ValueError(f"{np.isnan(scores).any(1).sum()} of {len(scores)} queries have a score that is NaN")
        if not correct.any(1).all():
            raise ValueError(f"query {int(np.argmin(correct.any(1)))} has no correct answer")
        best = np.where(correct, scores, -np.inf).max(1, keepdims=True)
        tied = scores == best
        return cls((~correct & (scores > best)).sum(1), (~correct & tied).sum(1), (correct & tied).sum(1))

    def metric(self, name: str, *, pessimistic: bool = False) -> np.ndarray:
        """(Q,) score of each query: "R@k", a correct answer is among the first k; or "MRR", 1 / rank of the first.

        Ties are broken at random, in expectation: with t wrong and r right answers tied, the first j are all wrong with
        probability C(t, j) / C(t + r, j). Or, pessimistic, always with the wrong one first.
        """
        if pessimistic:
            rank = self.above + self.wrong + 1
            return 1 / rank if name == "MRR" else (rank <= int(name[2:])).astype(float)
        if not len(self.above):
            return np.zeros(0)
        score, all_wrong = np.zeros(len(self.above)), np.ones(len(self.above))
        for j in range(int(self.wrong.max()) + 1):  # the first correct answer is the (j + 1)-th of those tied
            left = np.maximum(self.wrong - j, 0)
            here = all_wrong * self.right / np.maximum(left + self.right, 1)
            rank = self.above + j + 1
            score += here * (1 / rank if name == "MRR" else rank <= int(name[2:]))
            all_wrong = all_wrong * left / np.maximum(left + self.right, 1)
        return score

    def metric_among(self, name: str, n: int, *, gallery: int) -> np.ndarray:
        """(Q,) the expectation of `metric` over all galleries of n drawn at random: the right answer, n − 1 others.

        Of x wrong answers ahead in the whole `gallery`, N, a hypergeometric number H is drawn. So "R@k" is P(H < k);
        and for "MRR" the sum over H closes: E[1 / (H + 1)] = N / n / (x + 1) · (1 − C(N − 1 − x, n) / C(N, n)).

        Raises:
            ValueError: several right answers may tie, or n is not from 1 to N.
        """
        from scipy.stats import hypergeom  # here: its import takes a second

        if (self.right > 1).any() or not 1 <= n <= gallery:
            raise ValueError(f"expected one right answer each, and 1 to {gallery} of them; got {n}")
        ahead = np.arange(gallery)
        if name == "MRR":
            left = np.maximum(gallery - 1 - ahead, n)  # where fewer are left than drawn, one ahead is certain
            none = gammaln(left + 1) - gammaln(left - n + 1) - gammaln(gallery + 1) + gammaln(gallery - n + 1)
            none = np.where(gallery - 1 - ahead < n, 0.0, np.exp(none))
            score = gallery / n / (ahead + 1) * (1 - none)
        else:
            score = hypergeom.cdf(int(name[2:]) - 1, gallery - 1, ahead, n - 1)
        total = np.concatenate([[0.0], np.cumsum(score)])  # among those tied, the right answer stands anywhere
        return (total[self.above + self.wrong + 1] - total[self.above]) / (self.wrong + 1)


def rank(
    score: Callable[[np.ndarray], np.ndarray], asked: np.ndarray, own: np.ndarray, hard: np.ndarray
) -> dict[str, Ranks]:
    """The ranks of the materials for some queries in the "full" and in the "hard" gallery, part by part.

    Args:
        score: queries -> (queries, N) scores of all materials.
        asked: (Q, ...) queries, as `score` takes them.
        own: (Q,) the right material of each.
        hard: (Q, H) the hard gallery of each, the right one included.
    """
    parts: dict[str, list[Ranks]] = {"full": [], "hard": []}
    for start in range(0, len(asked), QUERIES):
        part = slice(start, start + QUERIES)
        scores = score(asked[part])
        right = np.arange(scores.shape[1]) == own[part, None]
        parts["full"].append(Ranks.of(scores, right))
        parts["hard"].append(Ranks.of(*(np.take_along_axis(a, hard[part], axis=1) for a in (scores, right))))
    return {name: Ranks(*map(np.concatenate, zip(*(vars(r).values() for r in ranks)))) for name, ranks in parts.items()}
