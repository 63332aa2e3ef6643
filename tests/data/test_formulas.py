"""Spelling against pymatgen's, whose formulas the curated sets hold."""

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from matalign.data import formulas


@pytest.mark.parametrize(("written", "spelled"), [("C1O3Sr1", "SrCO3"), ("O2Ti1", "TiO2"), ("Ti1", "Ti"), ("O2", "O2")])
def test_precursors_are_spelled_as_chemists_do(written, spelled):
    assert formulas.respelled(written) == spelled


def test_cells_are_spelled_as_pymatgen_does():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        z = rng.choice([1, 3, 6, 7, 8, 9, 11, 14, 15, 16, 17, 20, 22, 26, 38, 53, 55, 56, 57, 92], rng.integers(1, 6))
        numbers = np.repeat(z, rng.integers(1, 7, len(z)))
        expected = Composition([(Element.from_Z(int(a)).symbol, int((numbers == a).sum())) for a in set(z.tolist())])
        assert formulas.spelled(numbers) == expected.reduced_formula
