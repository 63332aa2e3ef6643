import hashlib
import re

import numpy as np
import pytest
import rawfiles

from matalign.data import sources

FILES = {
    "data/id_prop.csv": "0,-2.1,5.0,1,1,1\n1,nan,0.0,1,1,1\n",
    "data/material_id_hash.csv": "0,mp-1\n1,mp-2\n",
    "data/0.cif": "first",
    "data/1.cif": "second",
    "data/7.cif": "of no mp-id",
    "data_elasticity/id_prop.csv": "0,131.0,74.0,0.26\n",
    "data_elasticity/material_id_hash.csv": "0,mp-10000\n1,mp-2\n",
    "data_elasticity/0.cif": "third",
}


def test_the_archive_is_known_by_its_content(tmp_path):
    one = rawfiles.archive(tmp_path / "a.tar.gz", "MEGNet-abc", FILES)
    other = rawfiles.archive(
        tmp_path / "b.tar.gz", "MEGNet-def", {"README.md": "more", **dict(reversed(FILES.items()))}, mtime=9
    )
    assert one.read_bytes() != other.read_bytes()
    assert sources.archive_hash(one) == sources.archive_hash(other)
    sums = sorted((name, hashlib.sha256(text.encode()).hexdigest()) for name, text in FILES.items())
    expected = hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sums).encode()).hexdigest()
    assert sources.archive_hash(one) == expected
    harmed = rawfiles.archive(tmp_path / "c.tar.gz", "MEGNet-abc", {**FILES, "data/0.cif": "First"})
    assert sources.archive_hash(harmed) != expected


def test_local_ids_of_the_two_parts_are_not_mixed(tmp_path):
    rawfiles.archive(tmp_path / "MEGNet.tar.gz", "MEGNet-abc", FILES)
    crystals = list(sources.megnet(tmp_path))
    assert [(m.mp_id, m.cif) for m in crystals] == [("mp-1", "first"), ("mp-2", "second"), ("", "of no mp-id")]
    assert crystals[0].labels == {"formation_energy_eV_atom": "-2.1", "band_gap_eV": "5.0"}
    elastic = list(sources.elasticity(tmp_path))
    assert [(m.mp_id, m.cif) for m in elastic] == [("mp-10000", "third"), ("mp-2", None)]
    assert elastic[0].labels == {"bulk_modulus_GPa": "131.0", "shear_modulus_GPa": "74.0"}
    assert elastic[1].labels == {"bulk_modulus_GPa": "", "shear_modulus_GPa": ""}
    assert "data_elasticity/0.cif" in elastic[0].where


def test_an_empty_folder_says_what_fetches(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fetch them with: python -m matalign\.data\.fetch megnet"):
        list(sources.materials(tmp_path))


# One crystal


CHLORIDE = rawfiles.binary("Cs", "Cl")
PEROVSKITE = rawfiles.perovskite("Sr", "Ti", lattice_A=3.905)


@pytest.mark.parametrize(
    ("text", "formula", "chemsys", "space_group", "numbers"),
    [
        (CHLORIDE, "CsCl", "Cl-Cs", 221, [17, 55]),
        (PEROVSKITE, "SrTiO3", "O-Sr-Ti", 221, [8, 8, 8, 22, 38]),
        (rawfiles.cif(5.43, ["Si"], [(0.1, 0.2, 0.3)]), "Si", "Si", 221, [14]),
        (PEROVSKITE.replace("Sr0  1  0 0 0", "Sr0  1  0 0 0.077"), "SrTiO3", "O-Sr-Ti", 99, None),  # 0.3 Å off
        (
            PEROVSKITE.replace("Sr0  1  0 0 0", "Sr0  1  0 0 0.001"),
            "SrTiO3",
            "O-Sr-Ti",
            221,
            None,
        ),  # 0.004 Å: still cubic
    ],
)
def test_a_cif_is_read(text, formula, chemsys, space_group, numbers):
    crystal = sources.parse_cif(text)
    assert (crystal.formula, crystal.chemsys, crystal.space_group) == (formula, chemsys, space_group)
    assert numbers is None or sorted(crystal.numbers) == numbers
    assert crystal.frac_coords.shape == (len(crystal.numbers), 3)
    assert np.isclose(np.linalg.det(crystal.lattice), float(re.search(r"length_a +(\S+)", text)[1]) ** 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unreadable CIF"),
        ("not a CIF at all", "unreadable CIF"),
        (CHLORIDE[:200], "unreadable CIF"),
        (CHLORIDE.replace("_cell_length_a   4.12", "_cell_length_a   wide"), "unreadable: _cell_length_a is 'wide'"),
        (CHLORIDE.replace("0.5 0.5 0.5", "nan 0.5 0.5"), "unreadable: _atom_site_fract_x of Cl1 is 'nan'"),
        (CHLORIDE.replace("_cell_angle_alpha   90.0", "_cell_angle_alpha   0.0"), "no lattice"),
        (CHLORIDE.replace("Cs  Cs0", "Xx  Xx0"), "unknown element: site Xx0 has _atom_site_type_symbol Xx"),
        (CHLORIDE.replace("Cs  Cs0", "Og  Og0"), "unknown element: site Og0"),
        (CHLORIDE.replace("0 0 0  1\n", "0 0 0  0.5\n"), "disordered"),
        (CHLORIDE.replace("0.5 0.5 0.5", "0.05 0 0"), "overlapping atoms: 0 and 1 are 0.21 Å apart"),
        (CHLORIDE.replace("Cs  Cs0", "Rb  Rb0"), "formula mismatch: _chemical_formula_sum is Cs1 Cl1, .* ClRb"),
    ],
)
def test_a_bad_cif_is_refused_with_the_reason(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sources.parse_cif(text)


def test_atoms_stand_by_electronegativity_as_in_the_curated_sets():
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    crystal = sources.parse_cif(rawfiles.cif(3.905, ["O", "O", "Ti", "He", "Sr"], places))
    assert crystal.numbers.tolist() == [2, 38, 22, 8, 8]  # helium has none
    np.testing.assert_array_equal(crystal.frac_coords, np.array(places)[[3, 4, 2, 0, 1]])
    assert crystal.formula == "SrTiO2He"


@pytest.mark.parametrize(("off_A", "program"), [(0.005, "moyo"), (0.04, "spglib"), (0.3, "moyo")])
def test_the_space_group_near_the_tolerance_is_spglibs(off_A, program, monkeypatch):
    asked = []
    by_spglib = sources._by_spglib
    monkeypatch.setattr(sources, "_by_spglib", lambda *cell: asked.append(1) or by_spglib(*cell))
    text = PEROVSKITE.replace("Sr0  1  0 0 0", f"Sr0  1  0 0 {off_A / 3.905}")
    assert sources.parse_cif(text).space_group == (99 if off_A > 0.1 else 221)
    assert bool(asked) == (program == "spglib")
