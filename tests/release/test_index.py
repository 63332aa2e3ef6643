import numpy as np
import pandas as pd
import pytest

from matalign.pretrain import encode
from matalign.release import index


def units(n, dim, *, seed):
    z = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture
def vectors():
    """Crystals and protocols in 3 of 16 directions, and a little beside."""
    plane = units(3, 16, seed=0)
    z = {
        name: units(n, 3, seed=n) @ plane + 0.01 * units(n, 16, seed=n + 1)
        for name, n in (("crystal", 90), ("protocol", 40))
    }
    return {name: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for name, x in z.items()}


@pytest.fixture
def tables(vectors):
    return {name: pd.DataFrame({"id": [f"{name}-{i}" for i in range(len(z))]}) for name, z in vectors.items()}


def test_few_axes_keep_what_spans_the_vectors(vectors, tables):
    built = index.build(vectors, tables, size=3)
    assert built.axes.shape == (3, 16)
    np.testing.assert_allclose(built.axes @ built.axes.T, np.eye(3), atol=2e-3)
    full = vectors["crystal"] @ vectors["protocol"].T
    short = vectors["crystal"] @ built.axes.T @ built.vectors["protocol"].T
    assert np.abs(full - short).max() < 0.03  # 8 bits and the little beside
    rows, similarity = built.nearest(vectors["crystal"], 2, among="protocol")
    assert rows.shape == similarity.shape == (90, 2)
    np.testing.assert_allclose(similarity[:, 0], full.max(1), atol=0.03)


def test_agreement_is_the_share_of_neighbours_that_both_find(vectors, tables):
    whole = index.build(vectors, tables, size=16)
    assert index.agreement(whole, vectors["crystal"], vectors["crystal"], among="crystal") > 0.95
    one = index.build(vectors, tables, size=1)
    found = index.agreement(one, vectors["crystal"], vectors["crystal"], among="crystal")
    line = (vectors["crystal"] @ one.axes.T).astype(np.float32)
    near = [set(encode.nearest(x, y, 10)[0][5]) for x, y in ((line, one.vectors["crystal"]), (vectors["crystal"],) * 2)]
    assert (
        index.agreement(one, vectors["crystal"][5:6], vectors["crystal"], among="crystal")
        == len(near[0] & near[1]) / 10
    )
    assert found < 0.8


def test_what_is_written_is_read(vectors, tables, tmp_path):
    built = index.build(vectors, tables, size=3)
    files = index.write(tmp_path, built)
    assert sorted(files) == sorted(f.name for f in tmp_path.iterdir())
    again = index.read(tmp_path)
    np.testing.assert_array_equal(again.axes, built.axes)
    for name in vectors:
        np.testing.assert_allclose(again.vectors[name], built.vectors[name], atol=1e-6)
        pd.testing.assert_frame_equal(again.tables[name], tables[name])
    assert (tmp_path / index.FILE).stat().st_size < 130 * (3 + 4) + 16 * 3 * 2 + 1000


def test_only_modalities_of_the_index_are_searched(vectors, tables):
    with pytest.raises(ValueError, match="among must be one of crystal, protocol, got 'image'"):
        index.build(vectors, tables, size=3).nearest(vectors["crystal"], 1, among="image")
