import itertools
from math import comb

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from matalign.tasks.retrieval.ranking import Ranks


class TestRanks:
    scores = np.array(
        [
            [0.9, 0.5, 0.5, 0.1],  # correct: 1; one above, one tied: rank 2 or 3
            [0.2, 0.2, 0.2, 0.2],  # all tied, two correct
            [0.1, 0.8, 0.3, 0.9],  # correct: 0 and 1; the better one is second
        ]
    )
    correct = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]], dtype=bool)

    def test_by_hand(self):
        ranks = Ranks.of(self.scores, self.correct)
        np.testing.assert_array_equal(ranks.above, [1, 0, 1])
        np.testing.assert_array_equal(ranks.wrong, [1, 2, 0])
        np.testing.assert_array_equal(ranks.right, [1, 2, 1])
        # Query 1, four tied, two correct: the first correct one is 1st, 2nd, 3rd with 1/2, 1/3, 1/6.
        np.testing.assert_allclose(ranks.metric("R@1"), [0, 1 / 2, 0])
        np.testing.assert_allclose(ranks.metric("R@2"), [1 / 2, 5 / 6, 1])
        np.testing.assert_allclose(ranks.metric("R@5"), [1, 1, 1])
        np.testing.assert_allclose(ranks.metric("MRR"), [(1 / 2 + 1 / 3) / 2, 1 / 2 + 1 / 6 + 1 / 18, 1 / 2])

    def test_pessimistic_by_hand(self):
        ranks = Ranks.of(self.scores, self.correct)
        np.testing.assert_allclose(ranks.metric("R@2", pessimistic=True), [0, 0, 1])
        np.testing.assert_allclose(ranks.metric("MRR", pessimistic=True), [1 / 3, 1 / 3, 1 / 2])

    def test_every_order_of_the_ties(self):
        """Expected: the mean over all orders of equal scores; pessimistic: the worst of them."""
        rng = np.random.default_rng(3)
        for _ in range(30):
            scores = rng.integers(3, size=6)
            correct = np.zeros(6, bool)
            correct[rng.permutation(6)[: rng.integers(1, 4)]] = True
            orders = [p for p in itertools.permutations(range(6)) if (np.diff(scores[list(p)]) <= 0).all()]
            firsts = np.array([np.argmax(correct[list(p)]) for p in orders])
            ranks = Ranks.of(scores[None].astype(float), correct[None])
            for metric, found in {"R@1": firsts < 1, "R@3": firsts < 3, "MRR": 1 / (firsts + 1)}.items():
                assert ranks.metric(metric)[0] == pytest.approx(found.mean())
                # the worst order puts every wrong one first, whatever right answers tie with it
                assert ranks.metric(metric, pessimistic=True)[0] == pytest.approx(float(found.min()))

    def test_hypergeometric(self):
        """Ten tied, three correct: all of the first k wrong with probability C(7, k) / C(10, k)."""
        correct = np.zeros((1, 10), bool)
        correct[0, :3] = True
        ranks = Ranks.of(np.zeros((1, 10)), correct)
        for k in (1, 4, 7, 8):
            assert ranks.metric(f"R@{k}")[0] == pytest.approx(1 - comb(7, k) / comb(10, k))

    def test_one_answer_as_scikit_learn(self):
        """Without ties, and one correct answer: Recall@k is top-k accuracy, MRR label ranking average precision."""
        rng = np.random.default_rng(0)
        scores, answer = rng.random((200, 30)), rng.integers(30, size=200)
        ranks = Ranks.of(scores, np.arange(30) == answer[:, None])
        for k in (1, 5, 10):
            expected = top_k_accuracy_score(answer, scores, k=k, labels=range(30))
            assert ranks.metric(f"R@{k}").mean() == pytest.approx(expected)
        expected = label_ranking_average_precision_score(np.arange(30) == answer[:, None], scores)
        assert ranks.metric("MRR").mean() == pytest.approx(expected)

    def test_pessimistic_is_scikit_learns_average_precision_with_ties(self):
        rng = np.random.default_rng(1)
        scores, answer = rng.integers(5, size=(200, 30)).astype(float), rng.integers(30, size=200)
        correct = np.arange(30) == answer[:, None]
        expected = label_ranking_average_precision_score(correct, scores)
        assert Ranks.of(scores, correct).metric("MRR", pessimistic=True).mean() == pytest.approx(expected)

    def test_perfect_worst_and_random(self):
        answer = np.eye(20, dtype=bool)
        assert Ranks.of(answer.astype(float), answer).metric("R@1").mean() == 1.0
        assert Ranks.of(-answer.astype(float), answer).metric("MRR").mean() == pytest.approx(1 / 20)
        chance = Ranks.of(np.zeros((20, 20)), answer)
        assert chance.metric("R@5").mean() == pytest.approx(5 / 20)
        assert chance.metric("MRR").mean() == pytest.approx((1 / np.arange(1, 21)).mean())

    def test_no_query(self):
        ranks = Ranks.of(np.zeros((0, 4)), np.zeros((0, 4), bool))
        assert ranks.metric("MRR").shape == (0,)

    def test_bad_scores(self):
        with pytest.raises(ValueError, match="1 of 2 queries"):
            Ranks.of(np.array([[0.0, np.nan], [0.0, 1.0]]), np.eye(2, dtype=bool))
        with pytest.raises(ValueError, match="query 1 has no correct answer"):
            Ranks.of(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


class TestMetricAmong:
    def test_every_gallery_that_can_be_drawn(self):
        """Three above, two tied, of eight: the mean over all choices of n − 1 others is the closed form."""
        scores = np.array([[0.5, 0.9, 0.5, 0.1, 0.5, 0.8, 0.2, 0.9]])
        correct = np.arange(8) == np.array([[0]])
        ranks = Ranks.of(scores, correct)
        for n in range(1, 9):
            drawn = [[0, *others] for others in itertools.combinations(range(1, 8), n - 1)]
            for metric in ("R@1", "R@2", "R@5", "MRR"):
                expected = np.mean([Ranks.of(scores[:, d], correct[:, d]).metric(metric)[0] for d in drawn])
                assert ranks.metric_among(metric, n, gallery=8)[0] == pytest.approx(expected), (n, metric)

    def test_whole_gallery_and_gallery_of_one(self):
        rng = np.random.default_rng(0)
        answer = rng.integers(700, size=50)
        ranks = Ranks.of(rng.integers(40, size=(50, 700)).astype(float), np.arange(700) == answer[:, None])
        for metric in ("R@10", "MRR"):
            np.testing.assert_allclose(ranks.metric_among(metric, 700, gallery=700), ranks.metric(metric))
            np.testing.assert_allclose(ranks.metric_among(metric, 1, gallery=700), 1.0)

    def test_harder_with_size(self):
        ranks = Ranks(np.array([5, 60]), np.array([0, 3]), np.array([1, 1]))
        for metric in ("R@10", "MRR"):
            by_size = np.array([ranks.metric_among(metric, n, gallery=100) for n in range(1, 101)])
            assert (np.diff(by_size, axis=0) <= 1e-12).all()

    @pytest.mark.parametrize(("right", "n"), [(2, 3), (1, 0), (1, 9)])
    def test_not_defined(self, right, n):
        with pytest.raises(ValueError, match="one right answer each, and 1 to 8"):
            Ranks(np.array([1]), np.array([0]), np.array([right])).metric_among("MRR", n, gallery=8)
