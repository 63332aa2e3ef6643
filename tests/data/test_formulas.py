"""Spelling against pymatgen's, whose formulas the curated sets hold; atoms of abbreviated groups counted by hand."""

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from matalign.data import formulas
from matalign.data.formulas import composition, normalise, precursor_class


@pytest.mark.parametrize(("written", "spelled"), [("C1O3Sr1", "SrCO3"), ("O2Ti1", "TiO2"), ("Ti1", "Ti"), ("O2", "O2")])
def test_precursors_are_spelled_as_chemists_do(written, spelled):
    assert formulas.spelled(written) == spelled


def test_cells_are_spelled_as_pymatgen_does():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        z = rng.choice([1, 3, 6, 7, 8, 9, 11, 14, 15, 16, 17, 20, 22, 26, 38, 53, 55, 56, 57, 92], rng.integers(1, 6))
        numbers = np.repeat(z, rng.integers(1, 7, len(z)))
        expected = Composition([(Element.from_Z(int(a)).symbol, int((numbers == a).sum())) for a in set(z.tolist())])
        assert formulas.spelled(numbers) == expected.reduced_formula


# Abbreviated groups, hydrates with a blank and unseen marks


@pytest.mark.parametrize(
    ("formula", "atoms", "kind"),
    [
        ("Zn(OAc)2·2H2O", {"Zn": 1, "C": 4, "H": 10, "O": 6}, "an acetate"),
        ("Zn(AcO)2", {"Zn": 1, "C": 4, "H": 6, "O": 4}, "an acetate"),
        ("Zn(Ac)2", {"Zn": 1, "C": 4, "H": 6, "O": 4}, "an acetate"),
        ("ZnAc2", {"Zn": 1, "C": 4, "H": 6, "O": 4}, "an acetate"),
        ("NaAc", {"Na": 1, "C": 2, "H": 3, "O": 2}, "an acetate"),
        ("NH4OAc", {"N": 1, "C": 2, "H": 7, "O": 2}, "an organic compound"),
        ("HOAc", {"C": 2, "H": 4, "O": 2}, "an organic compound"),
        ("AcOH", {"C": 2, "H": 4, "O": 2}, "an organic compound"),
        ("Ti(OPr)4", {"Ti": 1, "C": 12, "H": 28, "O": 4}, "an alkoxide"),
        ("Ti(O-iPr)4", {"Ti": 1, "C": 12, "H": 28, "O": 4}, "an alkoxide"),
        ("Zr(OⁱPr)4", {"Zr": 1, "C": 12, "H": 28, "O": 4}, "an alkoxide"),
        ("Ti(OBut)4", {"Ti": 1, "C": 16, "H": 36, "O": 4}, "an alkoxide"),
        ("Si(OEt)4", {"Si": 1, "C": 8, "H": 20, "O": 4}, "an alkoxide"),
        ("Fe(acac)3", {"Fe": 1, "C": 15, "H": 21, "O": 6}, "an acetylacetonate"),
        ("PVP-K30", {"C": 6, "H": 9, "N": 1, "O": 1}, "an organic compound"),
        ("PVA", {"C": 2, "H": 4, "O": 1}, "an organic compound"),
        ("PrOH", {"C": 3, "H": 8, "O": 1}, "an organic compound"),
        ("Ac2O3", {"Ac": 2, "O": 3}, "an oxide"),
        ("AcCrO3", {"Ac": 1, "Cr": 1, "O": 3}, "an oxide"),
        ("Pr6O11", {"Pr": 6, "O": 11}, "an oxide"),
        ("SrPrO3", {"Sr": 1, "Pr": 1, "O": 3}, "an oxide"),
        ("PrOCl", {"Pr": 1, "O": 1, "Cl": 1}, "an oxide"),
        ("VP", {"V": 1, "P": 1}, "a phosphide"),
    ],
)
def test_a_group_is_its_atoms_and_an_element_its_own(formula, atoms, kind):
    assert composition(formula) == atoms
    assert precursor_class(formula) == kind


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Mg(NO3)2 6H2O", "Mg(NO3)2·6H2O"),
        ("CuSO4 5 H2O", "CuSO4·5H2O"),
        ("Nd(NO3)3 xH2O", "Nd(NO3)3·xH2O"),
        ("MnO2 H2O", "MnO2·H2O"),
        ("Fe(NO₃)₃ ⋅ 9 H₂O", "Fe(NO3)3·9H2O"),
        ("\ufeffFe\u00ad2O3", "Fe2O3"),
        ("C2 H2 O4", "C2H2O4"),
    ],
)
def test_a_blank_before_water_is_the_dot_of_a_hydrate(written, plain):
    assert normalise(written) == plain


@pytest.mark.parametrize(
    ("formula", "said"),
    [("BaXx3", r"cannot read 'Xx' \(character 3\)"), ("MeCO3", r"'Me' \(character 1\)"), ("La2O3?", "'\\?' .*6")],
)
def test_what_cannot_be_read_is_named_with_its_place(formula, said):
    with pytest.raises(ValueError, match=said):
        composition(formula)
