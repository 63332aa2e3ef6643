"""The map: neighbours and groups on it, places of newcomers, and what a map is said to keep."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from matalign.pretrain import encode
from matalign.report.atlas import layout


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearest(vectors, k):
    index, _ = encode.nearest(vectors, vectors, k + 1)
    return index[layout.others(index)].reshape(len(vectors), k)


def test_a_grid_in_many_dimensions_is_a_grid_on_the_map():
    rng = np.random.default_rng(1)
    across, down = np.meshgrid(np.linspace(-0.5, 0.5, 20), np.linspace(-0.4, 0.4, 16))
    plane = np.stack([across.ravel(), down.ravel(), np.ones(320)], axis=1) @ rng.normal(size=(3, 24))
    vectors = unit(plane)
    near = nearest(vectors, 8)
    y = layout.tsne(vectors, attracted=8, iterations=400)
    found = layout.kept(near, vectors, y)
    assert found["among_k"] > 0.7
    assert found["trustworthiness"] > 0.98
    np.testing.assert_array_equal(layout.tsne(vectors, attracted=8, iterations=400), y)


def test_groups_that_share_no_neighbour_come_apart():
    rng = np.random.default_rng(2)
    middle = rng.normal(size=(4, 32))
    vectors = unit(np.repeat(middle, 40, axis=0) + 0.3 * rng.normal(size=(160, 32)))
    y = layout.tsne(vectors, attracted=8, iterations=400).reshape(4, 40, 2)
    size = np.linalg.norm(y - y.mean(1, keepdims=True), axis=2).max()
    apart = np.linalg.norm(y.mean(1)[:, None] - y.mean(1), axis=2)[np.triu_indices(4, 1)].min()
    assert apart > size


@pytest.mark.parametrize("n", [3, 5, 24])
def test_a_handful_of_points_has_a_map(n):
    vectors = unit(np.random.default_rng(n).normal(size=(n, 8)))
    y = layout.tsne(vectors, attracted=15, iterations=60)
    assert np.isfinite(y).all()
    assert len(np.unique((y / np.abs(y).max()).round(3), axis=0)) == n


def test_principal_components_are_those_of_the_covariance():
    x = np.random.default_rng(3).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    got = layout.principal(x)
    variance = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][:2]
    np.testing.assert_allclose(got.var(0), variance)
    np.testing.assert_allclose(layout.principal(x[:, ::-1].copy()), got, atol=1e-9)


def test_a_newcomer_stands_among_the_group_it_is_nearest_to():
    rng = np.random.default_rng(5)
    middle = rng.normal(size=(3, 16))
    vectors = unit(np.repeat(middle, 40, axis=0) + 0.3 * rng.normal(size=(120, 16)))
    points = layout.tsne(vectors, attracted=8, iterations=300)
    newcomers = unit(middle + 0.1 * rng.normal(size=(3, 16)))
    found = layout.place(newcomers, vectors, points, attracted=8)
    away = np.linalg.norm(found[:, None] - points.reshape(3, 40, 2).mean(1), axis=2)  # from each group's middle
    assert away.argmin(1).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(layout.place(newcomers, vectors, points, attracted=8), found)


def test_what_a_map_keeps_by_hand_and_by_scikit_learn():
    rng = np.random.default_rng(4)
    vectors = unit(rng.normal(size=(150, 5)))
    near = nearest(vectors, 7)
    for points in (rng.normal(size=(150, 2)), layout.principal(vectors)):
        found = layout.kept(near, vectors, points)
        expected = trustworthiness(vectors, points, n_neighbors=7, metric="cosine")
        assert found["trustworthiness"] == pytest.approx(expected, abs=1e-6)
        distance = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(150, np.inf))
        for k, name in ((7, "among_k"), (35, "among_5k")):
            on_map = distance.argsort(1)[:, :k]
            shares = [len(set(a) & set(b)) / 7 for a, b in zip(near.tolist(), on_map.tolist())]
            assert found[name] == pytest.approx(np.mean(shares))
    assert found["chance"] == pytest.approx(7 / 149)


def test_the_own_number_is_left_out_and_else_the_last():
    index = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 3]])
    assert index[layout.others(index)].reshape(3, 2).tolist() == [[1, 2], [0, 2], [0, 1]]
