import numpy as np
import pytest
from benchmarks import stem
from frames import keys, view

from matalign.data.structures import Structures
from matalign.views import identification, micrographs
from matalign.views.micrographs import ZONE_AXES, Optics

NAMES, CRYSTALS = zip(*stem.crystals(), strict=True)
MANY = Structures.pack(list(CRYSTALS))


@pytest.fixture(scope="module")
def refs():
    return identification.library(MANY)


def shots(names, pixel_A, axis=(1, 1, 0)):
    size = len(names)
    values = {
        "axis": [ZONE_AXES.index(axis)] * size,
        "rotation": [0.3 + i for i in range(size)],
        "shift_A": [[0.4, -0.7]] * size,
        "thickness_A": [50.0] * size,
        "dose_e_A2": [1e4] * size,
        "probe_sigma_A": [0.52] * size,
    }
    optics = Optics(image_px=64, pixel_A=pixel_A, jitter_A=0.0)
    v = view(size, px=64, **values)
    rows = [NAMES.index(name) for name in names]
    counts = micrographs.detect(
        micrographs.expose(micrographs.project(MANY, rows, v, optics=optics), v, optics=optics), keys(size)
    )
    return micrographs.standardise(micrographs.stabilise(counts))


def test_library_has_a_crystals_different_projections(refs):
    perovskite = [ZONE_AXES[a] for a in refs.axis[refs.row == NAMES.index("SrTiO3")]]
    assert sorted(sum(map(abs, axis)) for axis in perovskite) == [1, 2, 3]
    assert set(refs.row) == set(range(len(NAMES)))


@pytest.mark.parametrize("scale", [0.22, (0.1, 0.6)])
def test_crystal_comes_first_at_known_and_unknown_scale(refs, scale):
    names = ("SrTiO3", "GaAs", "TiO2", "ZnO")
    for name, ranking in zip(
        names, identification.identify(shots(names, 0.22), MANY, refs, pixel_A=scale), strict=True
    ):
        row = NAMES.index(name)
        assert ranking.rank(row) <= (1 if scale == 0.22 else 3), name
        assert ranking.correlation[row] > ranking.correlation.max() - 0.01
        assert ranking.pixel_A[row] == pytest.approx(0.22, rel=0.01)


def test_rank_by_hand():
    ranking = identification.Ranking(np.array([0.5, 0.9, 0.5, 0.5]), np.zeros(4, int), np.ones(4))
    assert [ranking.rank(i) for i in range(4)] == [3, 1, 3, 3]
