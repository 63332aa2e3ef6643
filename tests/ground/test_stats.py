import numpy as np
import pytest
from scipy.stats import t
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from matalign import stats
from matalign.stats import bootstrap, holm, paired

OPTIONS = {"resamples": 500, "seed": 0}


def clustered(rng, *, clusters=40, size=6, spread=1.0, noise=0.5):
    """Items whose mean is zero in expectation, with a common deviation in each cluster."""
    deviation = rng.normal(scale=spread, size=clusters)
    label = np.repeat(np.arange(clusters), size)
    return deviation[label] + rng.normal(scale=noise, size=clusters * size), label


class TestBootstrap:
    def test_value_is_the_plain_mean(self):
        got = bootstrap(np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]), ["a", "a", "b"], **OPTIONS)
        assert got.value == pytest.approx(4.0)
        assert got.low <= got.value <= got.high
        assert got.p is None

    def test_all_resamples_of_two_clusters_by_hand(self):
        """Clusters {0, 0} and {3}: a resample is aa (mean 0), ab twice (mean 1) or bb (mean 3)."""
        values, options = np.array([[0.0, 0.0, 3.0]]), {"resamples": 20000, "seed": 1}
        estimates = stats._estimates(values, ["a", "a", "b"], "mean", **options)[:, 0]
        assert estimates[0] == pytest.approx(1.0)
        values, counts = np.unique(estimates[1:], return_counts=True)
        np.testing.assert_allclose(values, [0, 1, 3])
        np.testing.assert_allclose(counts / 20000, [0.25, 0.5, 0.25], atol=0.01)

    @pytest.mark.parametrize("luck", [[0.0, 1.0, 2.0, 3.0], [0.4, 0.6]])
    def test_seeds_alone_give_the_interval_of_student(self, luck):
        """No spread between items: what is left is the textbook interval of a mean of few values."""
        values = np.repeat(np.array(luck)[:, None], 50, axis=1)
        got = bootstrap(values, np.arange(50), resamples=4000, seed=0)
        assert got.value == pytest.approx(np.mean(luck))
        expected = t.interval(0.95, len(luck) - 1, np.mean(luck), np.std(luck, ddof=1) / len(luck) ** 0.5)
        np.testing.assert_allclose([got.low, got.high], expected, rtol=0.02)

    def test_variances_add_as_in_two_way_clustering(self):
        """The width is that of normal theory, from sums of squares of the balanced table of seeds and clusters."""
        rng = np.random.default_rng(0)
        seeds, n = 8, 150
        table = rng.normal(size=n) + rng.normal(scale=0.2, size=(seeds, 1)) + rng.normal(size=(seeds, n))
        clusters, both = table.mean(0).var(ddof=1) / n, table - table.mean(0) - table.mean(1)[:, None]
        both = (both**2).sum() / (seeds - 1) / (n - 1) / seeds / n
        luck = table.mean(1).var(ddof=1) / seeds - both
        draws = rng.normal(scale=clusters**0.5, size=10**5) + luck**0.5 * rng.standard_t(seeds - 1, size=10**5)
        got = bootstrap(table, np.arange(n), resamples=4000, seed=0)
        low, high = np.quantile(draws, [0.025, 0.975])
        assert got.high - got.low == pytest.approx(high - low, rel=0.05)

    def test_seeds_that_agree_add_nothing(self):
        values, label = clustered(np.random.default_rng(0))
        one, five = (bootstrap(np.tile(values, (n, 1)), label, **OPTIONS) for n in (1, 5))
        np.testing.assert_allclose([five.value, five.low, five.high], [one.value, one.low, one.high], rtol=1e-12)

    def test_callable_equals_the_fast_path(self):
        rng = np.random.default_rng(0)
        values, label = clustered(rng)
        values = np.stack([values, values + rng.normal(size=values.shape)])
        fast = bootstrap(values, label, resamples=2000, seed=3)
        slow = bootstrap(values, label, statistic=np.mean, resamples=2000, seed=3)
        assert slow.value == pytest.approx(fast.value)
        np.testing.assert_allclose([slow.low, slow.high], [fast.low, fast.high], atol=0.03)

    def test_rmse(self):
        errors = np.array([[3.0, -4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
        got = bootstrap(errors, np.arange(4), statistic="rmse", **OPTIONS)
        assert got.value == pytest.approx((2.5 + 1.0) / 2)

    def test_ratio_of_sums_is_the_callable(self):
        rng = np.random.default_rng(0)
        values, label = rng.random((2, 30, 2)), np.arange(30) // 3
        ratio = lambda items: items[:, 0].sum() / items[:, 1].sum()  # noqa: E731
        slow, fast = (stats._estimates(values, label, how, resamples=400, seed=0) for how in (ratio, "ratio"))
        np.testing.assert_allclose(fast, slow)
        assert bootstrap(np.zeros((1, 30, 2)), label, statistic="ratio", **OPTIONS).value == 0

    def test_macro_f1_as_callable(self):
        rng = np.random.default_rng(0)
        true = rng.integers(5, size=200)
        predicted = np.where(rng.random(200) < 0.7, true, rng.integers(5, size=200))

        def macro_f1(items):
            return f1_score(items[:, 0], items[:, 1], average="macro", labels=range(5), zero_division=0)

        values = np.stack([true, predicted], axis=1)[None]  # (1, 200, 2)
        got = bootstrap(values, np.arange(200) // 5, statistic=macro_f1, resamples=100, seed=0)
        assert got.value == pytest.approx(f1_score(true, predicted, average="macro"))
        assert got.low < got.value < got.high

    def test_same_seed_same_interval_whatever_the_chunks(self, monkeypatch):
        values, label = clustered(np.random.default_rng(0))
        first = bootstrap(values, label, **OPTIONS)
        monkeypatch.setattr(stats, "CHUNK", 100)
        again = bootstrap(values, label, **OPTIONS)
        assert (again.value, again.low, again.high) == pytest.approx((first.value, first.low, first.high), rel=1e-12)

    def test_labels_of_any_kind_and_order(self):
        values, label = clustered(np.random.default_rng(0), clusters=5)
        names = np.array(["Fe-O", "Li-O", "Al-O", "Ti-O", "V-O"])[label]
        a = bootstrap(values, names, resamples=4000, seed=0)
        b = bootstrap(values, label, resamples=4000, seed=0)
        np.testing.assert_allclose([a.value, a.low, a.high], [b.value, b.low, b.high], atol=0.05)

    def test_one_cluster_collapses(self):
        got = bootstrap(np.array([1.0, 2.0]), ["a", "a"], **OPTIONS)
        assert (got.low, got.value, got.high) == (1.5, 1.5, 1.5)

    def test_absent_class_and_empty_bins(self):
        """A class that a resample (here even the sample) lacks counts as `zero_division` says; no resample is NaN."""
        true = np.repeat([0, 1, 2], [18, 1, 1])
        values = np.stack([true, np.where(true == 2, 0, true)], axis=1)[None]

        def macro_f1(items):
            return f1_score(items[:, 0], items[:, 1], average="macro", labels=range(4), zero_division=0)

        got = bootstrap(values, np.arange(20), statistic=macro_f1, resamples=200, seed=0)
        assert got.value == pytest.approx((36 / 37 + 1 + 0 + 0) / 4)
        assert 0.2 < got.low <= 0.25  # resamples without the second class
        assert got.high <= 0.5

    def test_ties_have_no_width(self):
        got = bootstrap(np.full((3, 20), 0.5), np.arange(20) // 2, **OPTIONS)
        assert (got.low, got.value, got.high) == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        ("values", "clusters", "message"),
        [
            (np.zeros((2, 0)), [], "nothing to resample"),
            (np.zeros((0, 3)), [0, 1, 2], "nothing to resample"),
            (np.zeros(3), [0, 1], "3 items, but 2 cluster labels"),
            (np.array([0.0, np.nan, np.nan]), [0, 1, 2], "2 values are NaN, first at item 1"),
        ],
    )
    def test_bad_input(self, values, clusters, message):
        with pytest.raises(ValueError, match=message):
            bootstrap(values, clusters, **OPTIONS)

    def test_unknown_statistic(self):
        with pytest.raises(ValueError, match="median"):
            bootstrap(np.zeros(3), [0, 1, 2], statistic="median", **OPTIONS)


def study(rng, *, luck, clusters=200, seeds=5):
    """An arm and its baseline, (5, about 600) each, equal in expectation; variance between clusters: 1 + 1/4."""
    label = np.repeat(np.arange(clusters), rng.integers(1, 6, size=clusters))
    n = len(label)

    def arm():
        own = 0.5 * rng.normal(size=clusters)[label] + 0.5 * rng.normal(size=(seeds, n))
        return own + luck**0.5 * rng.normal(size=(seeds, 1))

    shared = rng.normal(size=clusters)[label] + 0.5 * rng.normal(size=n)
    return shared + arm(), shared + arm(), label


class TestCoverage:
    """2,000 studies of 200 clusters and 5 seeds, 200 resamples each. The truth is 0."""

    # variance between seeds: none; 1.25 · 5 / 200, which tells in the mean as much as the clusters'; the clusters' 1.25
    @pytest.mark.parametrize("luck", [0.0, 0.03, 1.25], ids=["none", "small", "equal"])
    def test_interval_holds_the_truth_in_95_percent(self, luck):
        rng, hits = np.random.default_rng(11), 0
        for i in range(2000):
            a, _, label = study(rng, luck=luck)
            got = bootstrap(a, label, resamples=200, seed=i)
            hits += got.low <= 0 <= got.high
        assert 0.93 <= hits / 2000 <= 0.97

    @pytest.mark.parametrize("luck", [0.0, 1.25], ids=["none", "equal"])
    def test_paired_difference_and_its_p_value(self, luck):
        """1,000 studies: the test at 5 % rejects in about 5 %, and when its interval excludes zero."""
        rng, hits, p = np.random.default_rng(5), 0, []
        for i in range(1000):
            a, b, label = study(rng, luck=luck)
            got = paired(a, b, label, resamples=200, seed=i)
            hits += got.low <= 0 <= got.high
            p.append(got.p)
            assert (got.p < 0.04) <= (got.low > 0 or got.high < 0) <= (got.p < 0.06)
        assert 0.93 <= hits / 1000 <= 0.97
        assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07
        assert 0.45 <= np.median(p) <= 0.55

    def test_single_items_and_seeds_alike_would_not(self):
        """The same studies, had items or seeds been taken for clusters' worth of evidence: the tests above can fail."""
        rng, items, seeds = np.random.default_rng(11), 0, 0
        for i in range(200):
            a, _, label = study(rng, luck=0.0)
            got = bootstrap(a, np.arange(len(label)), resamples=200, seed=i)
            items += got.low <= 0 <= got.high
            a, _, label = study(rng, luck=1.25)
            got = bootstrap(a.mean(0), label, resamples=200, seed=i)
            seeds += got.low <= 0 <= got.high
        assert items / 200 < 0.85
        assert seeds / 200 < 0.4


class TestPaired:
    def test_pairing_removes_what_is_shared(self):
        rng = np.random.default_rng(0)
        base, label = clustered(rng, spread=5.0)
        better = base + 0.2 + rng.normal(scale=0.05, size=base.shape)
        got = paired(better, base, label, **OPTIONS)
        assert got.value == pytest.approx((better - base).mean())
        assert 0.1 < got.low < got.high < 0.3
        assert got.p == pytest.approx(2 / 501)
        alone = bootstrap(better, label, **OPTIONS)
        assert alone.high - alone.low > 10 * (got.high - got.low)

    def test_relative(self):
        got = paired(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 6.0]]), [0, 1, 2], relative=True, **OPTIONS)
        assert (got.value, got.low, got.high) == (pytest.approx(-0.5), pytest.approx(-0.5), pytest.approx(-0.5))

    def test_relative_to_a_baseline_that_is_often_nil(self):
        """One error in three: resamples without it have no ratio; with it, it is halved."""
        got = paired(np.array([0.5, 0, 0]), np.array([1.0, 0, 0]), [0, 1, 2], relative=True, **OPTIONS)
        assert (got.value, got.low, got.high) == (-0.5, -0.5, -0.5)
        assert got.p > 0.05  # such resamples tell no difference
        with pytest.raises(ValueError, match="baseline's statistic is 0"):
            paired(np.array([0.5, 0]), np.zeros(2), [0, 1], relative=True, **OPTIONS)

    def test_identical_arms_do_not_differ(self):
        a = np.random.default_rng(0).normal(size=(2, 30))
        got = paired(a, a, np.arange(30), **OPTIONS)
        assert (got.value, got.low, got.high, got.p) == (0.0, 0.0, 0.0, 1.0)

    def test_sign(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=40), rng.normal(size=40)
        forward, back = paired(a, b, np.arange(40), **OPTIONS), paired(b, a, np.arange(40), **OPTIONS)
        assert forward.value == pytest.approx(-back.value)
        assert forward.p == back.p

    def test_one_seed_against_several(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(4, 30)), rng.normal(size=30)
        one = paired(a, b, np.arange(30), **OPTIONS)
        every = paired(a, np.repeat(b[None], 4, axis=0), np.arange(30), **OPTIONS)
        np.testing.assert_allclose([one.value, one.low, one.high, one.p], [every.value, every.low, every.high, every.p])

    def test_seeds_that_cannot_be_paired(self):
        with pytest.raises(ValueError, match="2 seeds cannot be paired with 3"):
            paired(np.zeros((2, 4)), np.zeros((3, 4)), [0, 1, 2, 3], **OPTIONS)


class TestHolm:
    def test_by_hand(self):
        """Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made non-decreasing: .04 .06 .06 .06."""
        np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])

    def test_capped_at_one_and_ties(self):
        np.testing.assert_allclose(holm([0.5, 0.5, 0.9]), [1.0, 1.0, 1.0])
        np.testing.assert_allclose(holm([0.01, 0.01]), [0.02, 0.02])

    def test_single_and_empty(self):
        assert holm([0.03]) == pytest.approx([0.03])
        assert holm([]).shape == (0,)

    @pytest.mark.parametrize("bad", [[1.2], [-0.1], [float("nan")]])
    def test_not_a_probability(self, bad):
        with pytest.raises(ValueError, match="p-values"):
            holm(bad)


def test_calibration_error_by_hand():
    # Bins of 1/2: three images at .3, .4, .5 (one right), one at .9 (right); their gaps are |1 - 1.2| and |1 - .9|.
    confidence, correct = np.array([0.3, 0.4, 0.5, 0.9]), np.array([1, 0, 0, 1])
    assert stats.calibration_error(confidence, correct, bins=2) == pytest.approx((0.2 + 0.1) / 4)


def test_calibration_error_passes_over_empty_bins():
    assert stats.calibration_error(np.array([0.95, 0.95]), np.array([1, 0]), bins=10) == pytest.approx(0.45)
    assert stats.calibration_error(np.array([0.0, 1.0]), np.array([0, 1]), bins=10) == 0


def test_reliability_by_hand():
    """The images above: 0.4 on average sure, one of three right; 0.9 sure and right."""
    rows = stats.reliability(np.array([0.3, 0.4, 0.5, 0.9]), np.array([1, 0, 0, 1]), bins=2)
    assert rows == [
        {"bin_low": 0.0, "bin_high": 0.5, "confidence": pytest.approx(0.4), "accuracy": pytest.approx(1 / 3), "n": 3},
        {"bin_low": 0.5, "bin_high": 1.0, "confidence": 0.9, "accuracy": 1.0, "n": 1},
    ]


def test_reliability_is_that_of_scikit_learn_and_gives_the_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 0.8, size=500)  # five bins are empty
    correct = (rng.random(500) < confidence**2).astype(float)
    rows = stats.reliability(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    np.testing.assert_allclose([r["accuracy"] for r in rows], accuracy)
    np.testing.assert_allclose([r["confidence"] for r in rows], mean)
    assert sum(r["n"] for r in rows) == 500
    weighted = sum(r["n"] * abs(r["accuracy"] - r["confidence"]) for r in rows) / 500
    assert stats.calibration_error(confidence, correct) == pytest.approx(weighted)
