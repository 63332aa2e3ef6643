"""Expected atoms are counted by hand, or by spglib's tables of settings, which the reader does not use."""

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import spglib

from matalign.data.readers import cif, unit_cell

pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")  # spglib, of how it will tell errors one day

CUBIC = {"a": 5.43, "b": 5.43, "c": 5.43}
BRICK = {"a": 4.1, "b": 5.7, "c": 7.3}
HEXAGONAL = {"a": 4.386, "b": 4.386, "c": 30.497, "gamma": 120}
SILICON = "Si1 Si 0.125 0.125 0.125"  # as origin 2 (at -3m) has it: 8 atoms; under origin 1 they would be 16


def text(*rows, symmetry="", formula="", units="", columns=(), name="x", labels=("label", "type_symbol"), **cell):
    """A CIF of one block; rows are as in its loop of atoms."""
    names = {"a": "length_a", "b": "length_b", "c": "length_c", "gamma": "angle_gamma", "beta": "angle_beta"}
    names["alpha"] = "angle_alpha"
    cell = {"alpha": 90, "beta": 90, "gamma": 90} | (cell or CUBIC)
    lines = [f"data_{name}", *(f"_cell_{names[key]} {value}" for key, value in cell.items() if value is not None)]
    lines += [f"_chemical_formula_sum {formula}"] if formula else []
    lines += [f"_cell_formula_units_Z {units}"] if units else []
    lines += [symmetry, "loop_", *(f"_atom_site_{label}" for label in labels)]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"] + [f"_atom_site_{column}" for column in columns]
    return "\n".join([*lines, *rows, ""])


def named(symbol, tag="_symmetry_space_group_name_H-M"):
    return f"{tag} '{symbol}'"


def listed(*operations, tag="_symmetry_equiv_pos_as_xyz"):
    return "\n".join(["loop_", tag, *(f"'{each}'" for each in operations)])


P1 = listed("x,y,z")


def counts(cell):
    return {z: int((cell.numbers == z).sum()) for z in set(cell.numbers.tolist())}


def nearest(cell):
    """The smallest distance between two atoms, Å."""
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    between = (cell.frac_coords[:, None, None] - cell.frac_coords[None, :, None] + shifts) @ cell.lattice
    distance = np.linalg.norm(between, axis=-1)
    return distance[distance > 1e-6].min()


# Symmetry


@pytest.mark.parametrize(
    ("symbol", "atoms"),
    [
        ("F d -3 m", 8),
        ("Fd-3m", 8),
        ("f d -3 M", 8),
        ("F d 3 m", 8),
        ("F 41/d -3 2/m", 8),
        ("F d -3 m :2", 8),
        ("F d -3 m Z", 8),
        ("F d -3 m S", 8),  # a letter that files do not agree on: both origins are tried
        ("F d -3 m (origin choice 2)", 8),
        ("F d -3 m, origin at -3m", 8),
        ("F_d_-3_m", 8),
    ],
)
@pytest.mark.parametrize("units", ["8", "8.0"])
def test_the_origin_is_the_one_that_fits_formula_and_count(symbol, atoms, units):
    found = cif.read(text(SILICON, symmetry=named(symbol), formula="Si", units=units))
    assert counts(found) == {14: atoms}
    assert nearest(found) == pytest.approx(5.43 * math.sqrt(3) / 4)


def test_an_origin_that_nothing_decides_is_refused_and_a_stated_one_is_taken():
    with pytest.raises(ValueError, match=r"symmetry: _symmetry.* 'F d -3 m' is ambiguous: F d -3 m:1, F d -3 m:2"):
        cif.read(text(SILICON, symmetry=named("F d -3 m"), formula="Si"))
    with pytest.raises(ValueError, match=r"formula mismatch: the cell holds 8 x Si, the sites are 16 atoms"):
        cif.read(text(SILICON, symmetry=named("F d -3 m :1"), formula="Si", units="8"))
    assert len(cif.read(text("Si1 Si 0 0 0", symmetry=named("F d -3 m :1"))).numbers) == 8


@pytest.mark.parametrize(
    ("symbol", "cell", "rows", "formula", "origin"),
    [
        ("P 4/n m m", (3.77, 5.52), ["Fe1 Fe 0 0 0", "Se1 Se 0 0.5 0.2673"], "'Fe Se'", 1),
        ("P 4/n m m", (3.77, 5.52), ["Fe1 Fe 0.75 0.25 0", "Se1 Se 0.25 0.25 0.2673"], "'Fe Se'", 2),
        ("P n -3 m", (4.27, 4.27), ["Cu1 Cu 0.25 0.25 0.25", "O1 O 0 0 0"], "'Cu2 O'", 1),
        ("P n -3 m", (4.27, 4.27), ["Cu1 Cu 0 0 0", "O1 O 0.25 0.25 0.25"], "'Cu2 O'", 2),
        ("F d -3 m", (7.04, 7.04), ["Mg1 Mg 0 0 0", "Cu1 Cu 0.625 0.625 0.625"], "'Cu2 Mg'", 1),
    ],
)
def test_the_formula_tells_the_origin_of_a_known_crystal(symbol, cell, rows, formula, origin):
    a, c = cell
    found = cif.read(text(*rows, symmetry=named(symbol), formula=formula, a=a, b=a, c=c))
    assert found.notes[0].endswith(f"is read as {symbol}:{origin}")
    # the bonds of FeSe and Cu2O, and the edge of the tetrahedra of copper in MgCu2
    bond = {"'Fe Se'": math.hypot(a / 2, 0.2673 * c), "'Cu2 O'": a * math.sqrt(3) / 4, "'Cu2 Mg'": a / math.sqrt(8)}
    assert nearest(found) == pytest.approx(bond[formula], abs=1e-3)


@pytest.mark.parametrize(
    ("symmetry", "axes", "atoms"),
    [
        (named("R -3 m"), "H", 15),
        (named("R -3 m :H"), "H", 15),
        (named("R-3m:h"), "H", 15),
        (named("R -3 2/m"), "H", 15),
        ("_symmetry_Int_Tables_number 166", "H", 15),
        (named("R -3 m"), "R", 5),
        (named("R -3 m :R"), "R", 5),
        ("_space_group_IT_number 166", "R", 5),
        (named("-P 3* 2", "_space_group_name_Hall"), "R", 5),
    ],
)
def test_rhombohedral_groups_stand_on_the_axes_of_the_cell(symmetry, axes, atoms):
    rhombohedral = {"a": 10.4763, "b": 10.4763, "c": 10.4763, "alpha": 24.1661, "beta": 24.1661, "gamma": 24.1661}
    cell, site = (HEXAGONAL, "0 0 {}") if axes == "H" else (rhombohedral, "{0} {0} {0}")
    rows = [f"{name}1 {name} {site.format(z)}" for name, z in (("Bi", 0.4), ("Se", 0.0), ("Te", 0.2097))]
    found = cif.read(text(*rows, symmetry=symmetry, **cell))
    assert counts(found) == {83: 2 * atoms // 5, 34: atoms // 5, 52: 2 * atoms // 5}


def test_axes_that_do_not_fit_the_cell_are_refused():
    with pytest.raises(ValueError, match=r"symmetry: .*'R -3 m :R' does not fit the cell with a, b, c 4\.386"):
        cif.read(text("Bi1 Bi 0 0 0.4", symmetry=named("R -3 m :R"), **HEXAGONAL))
    with pytest.raises(ValueError, match="does not fit the cell"):
        cif.read(text("Bi1 Bi 0 0 0.4", symmetry=named("P 63/m m c"), a=4, b=4, c=5))


MONOCLINIC = {"a": 7.1, "b": 9.3, "c": 11.2, "beta": 98}


@pytest.mark.parametrize(
    ("symmetry", "image"),
    [
        (named("P 21/c"), [-0.113, 0.731, 0.413]),  # -x, y+1/2, -z+1/2
        (named("P21/c"), [-0.113, 0.731, 0.413]),
        (named("P 2_1/c"), [-0.113, 0.731, 0.413]),
        (named("P 1 21/c 1", "_space_group_name_H-M_alt"), [-0.113, 0.731, 0.413]),
        (named("P 21/n"), [0.387, 0.731, 0.413]),  # -x+1/2, y+1/2, -z+1/2
        (named("P 1 21/n 1", "_Symmetry_Space_Group_Name_h-m"), [0.387, 0.731, 0.413]),
        (named("-P 2yn", "_space_group_name_Hall"), [0.387, 0.731, 0.413]),
        (named("-p 2yn", "_symmetry_space_group_name_Hall"), [0.387, 0.731, 0.413]),
        (named("P 21/a"), [0.387, 0.731, -0.087]),
    ],
)
def test_every_cell_of_a_monoclinic_group_has_its_own_images(symmetry, image):
    found = cif.read(text("Te1 Te 0.113 0.231 0.087", symmetry=symmetry, units="4", formula="Te", **MONOCLINIC))
    assert len(found.numbers) == 4
    np.testing.assert_allclose(np.abs((found.frac_coords - image + 0.5) % 1 - 0.5).max(1).min(), 0, atol=1e-9)


@pytest.mark.parametrize("symbol", ["P 2~1~/c", "P2<sub>1</sub>/c", "P2_{1}/c", "P 21/c (14)", "P21/c, No. 14"])
def test_a_typeset_symbol_is_read(symbol):
    assert len(cif.read(text("Te1 Te 0.113 0.231 0.087", symmetry=named(symbol), **MONOCLINIC)).numbers) == 4


def test_a_short_monoclinic_symbol_has_its_axis_where_the_angle_is():
    along_c = MONOCLINIC | {"beta": 90, "gamma": 98}
    found = cif.read(text("Te1 Te 0.1 0.2 0.1", symmetry=named("P 21"), **along_c))
    np.testing.assert_allclose(sorted(found.frac_coords[:, 2]), [0.1, 0.6])
    assert found.notes == ("symmetry: _symmetry_space_group_name_h-m 'P 21' is read as P 1 1 21",)


def test_a_number_alone_is_taken_only_where_one_crystal_remains():
    rows = ["Sr1 Sr 0 0 0", "Ti1 Ti 0.5 0.5 0.5", "O1 O 0.5 0.5 0"]
    assert len(cif.read(text(*rows, symmetry="_space_group_IT_number 221", a=3.9, b=3.9, c=3.9)).numbers) == 5
    general = "Te1 Te 0.113 0.231 0.087"
    with pytest.raises(ValueError, match=r"symmetry: _space_group_it_number '14' is ambiguous"):
        cif.read(text(general, symmetry="_space_group_IT_number 14", formula="Te", units="4", **MONOCLINIC))


@pytest.mark.parametrize(
    ("symmetry", "said"),
    [
        (named("P 99"), r"symmetry: _symmetry_space_group_name_h-m 'P 99' is unknown, and no operations"),
        (named("C2h^5"), "unknown"),
        (named("P 1 21/n 1:b1"), "unknown"),  # b1 is P 1 21/c 1
        (named("P2/x2/m2/m"), "unknown"),
        (named("nonsense", "_space_group_name_Hall"), "unknown"),
        (named("C2h.5", "_space_group_name_Schoenflies"), r"_space_group_name_schoenflies 'C2h.5' is not read"),
        (named("P2_1/c.1", "_space_group_magn.name_BNS"), r"_space_group_magn_name_bns .* is not read"),
        ("_space_group_IT_number 300", r"_space_group_it_number '300' is unknown"),
        (named("P 21/c") + "\n_space_group_IT_number 15", "contradict one another"),
        (named("P 21/c") + "\n" + named("-P 2yn", "_space_group_name_Hall"), "contradict one another"),
        (P1 + "\n" + named("P 21/c"), r"'P 21/c' is not the group of the operations, P 1 \(number 1\)"),
        (listed("x,y,z", "-x,-y,-z") + "\n_space_group_IT_number 14", "is not the group of the operations, P -1"),
        (
            listed("x,y,z", "-x,y+1/2,-z+1/2", "-x,-y,-z", "x,-y+1/2,z+1/2") + "\n" + named("P 1 21/n 1"),
            r"stands for other operations than those listed, P 1 21/c 1",
        ),
        (listed("x,y,z", "-x,y+1/2,-z", "-x,-y,-z"), r"the 3 operations listed make no group"),
        (listed("-x,-y,-z"), "make no group"),
        (listed("x,y,z", "x+y,y,z"), "the 2 operations listed make no group"),  # a shear: they never close
        (listed("x,y,z", "x,y,w"), r"symmetry: operation 'x,y,w' is unreadable"),
        (listed("x,y,z", "x+1/5,y,z"), r"operation 'x\+1/5,y,z' is unreadable"),
        (listed("x,y,z", "x,y,x"), "is no symmetry"),
        (P1 + "\n" + listed("x,y,z", "-x,-y,-z", tag="_space_group_symop_operation_xyz"), "two lists .* differ"),
        ("_cell_modulation_dimension 1", "modulated structure"),
    ],
)
def test_unclear_symmetry_is_refused_by_its_name(symmetry, said):
    with pytest.raises(ValueError, match=said):
        cif.read(text("Te1 Te 0.113 0.231 0.087", symmetry=symmetry, **MONOCLINIC))


@pytest.mark.parametrize(
    "tag",
    [
        "_symmetry_equiv_pos_as_xyz",
        "_space_group_symop_operation_xyz",
        "_space_group_symop.operation_xyz",
        "_SYMMETRY_EQUIV_POS_AS_XYZ",
        "_space_group_symop_magn_operation.xyz",
    ],
)
def test_operations_are_read_under_each_of_their_names(tag):
    time = ",+1" if "magn" in tag else ""
    listing = listed(f"X, Y, Z{time}", f"-x,1/2+y,-z{time}", tag=tag)
    found = cif.read(text("Te1 Te 0.113 0.231 0.087", symmetry=listing, **MONOCLINIC))
    np.testing.assert_allclose(found.frac_coords, [[0.113, 0.231, 0.087], [0.887, 0.731, 0.913]])


def test_an_unknown_name_beside_operations_is_told_and_no_symmetry_is_the_dictionarys():
    found = cif.read(text("Te1 Te 0.1 0.2 0.1", symmetry=P1 + "\n" + named("Q 17")))
    assert any("'Q 17' is unknown; the operations are taken" in note for note in found.notes)
    found = cif.read(text("Te1 Te 0.1 0.2 0.1", symmetry=named("?")))
    assert found.notes == ("no symmetry is stated: P 1, as the dictionary has it",)


@pytest.mark.parametrize("hall", range(1, 531, 23))
@pytest.mark.parametrize("form", ["hall", "operations", "name and choice", "without blanks", "axes"])
def test_settings_agree_with_spglibs_tables(hall, form):
    about, group = spglib.get_spacegroup_type(hall), spglib.get_symmetry_from_database(hall)
    rotations, translations = group["rotations"], group["translations"]
    metric = np.mean([r.T @ np.array([[560, 30, 20], [30, 640, 40], [20, 40, 720]]) @ r for r in rotations], axis=0)
    a, b, c = np.sqrt(np.diag(metric))
    pairs = ((1, 2), (0, 2), (0, 1))
    angles = [math.degrees(math.acos(metric[i, j] / math.sqrt(metric[i, i] * metric[j, j]))) for i, j in pairs]
    place = np.array([0.0523, 0.1177, 0.2891])
    expected = (rotations @ place + translations) % 1
    operations = listed(*(triplet(r, t) for r, t in zip(rotations, translations, strict=True)))
    choice = f":{about.choice}" if about.choice in ("1", "2", "H", "R") else ""
    symmetry = {
        "hall": named(about.hall_symbol, "_space_group_name_Hall"),
        "operations": operations,
        "name and choice": named(about.international_full + choice),
        "without blanks": named(about.international_full.replace(" ", "").replace("_", "") + choice),
        "axes": named(f"{about.international_full}:{about.choice}" if about.choice else about.international_full),
    }[form]
    row = "O1 O " + " ".join(map(str, place))
    cell = dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), (a, b, c, *angles), strict=True))
    found = cif.read(text(row, symmetry=symmetry, **cell))
    assert len(found.numbers) == len(expected)
    apart = np.abs((found.frac_coords[:, None] - expected + 0.5) % 1 - 0.5).max(-1)
    assert apart.min(1).max() < 1e-6


def test_axes_of_a_standard_symbol_are_those_of_the_international_tables():
    place = "Te1 Te 0.113 0.231 0.087"
    moved, named_so = (cif.read(text(place, symmetry=named(symbol), **BRICK)) for symbol in ("Pnma:cab", "P b n m"))
    np.testing.assert_array_equal(moved.frac_coords, named_so.frac_coords)


@pytest.mark.parametrize(
    ("symbol", "older"), [("A e m m:-cba", "A c m m"), ("Aemm:cab", "A b m m"), ("Ccce:2ba-c", "C c c b:2")]
)
def test_a_glide_e_may_name_its_axes(symbol, older):
    """The older names are those of the International Tables up to 1992, one for each choice of axes."""
    one, other = (cif.read(text("Te1 Te 0.113 0.171 0.317", symmetry=named(name), **BRICK)) for name in (symbol, older))
    np.testing.assert_array_equal(one.frac_coords, other.frac_coords)


def triplet(rotation, translation):
    """An operation as text."""
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        letters = "".join(f"{'+' if n > 0 else '-'}{axis}" for n, axis in zip(row, "xyz", strict=True) if n)
        parts.append(letters + (f"+{Fraction(shift).limit_denominator(12)}" if abs(shift) > 1e-6 else ""))
    return ",".join(parts)


# Rounded coordinates


@pytest.mark.parametrize(
    ("x", "y"), [("0.333", "0.667"), ("0.3333", "0.6667"), ("0.33", "0.67"), ("0.333333", "0.666667")]
)
def test_rounded_coordinates_come_onto_their_special_position(x, y):
    rows = [f"Zn1 Zn {x} {y} 0", f"O1 O {x} {y} 0.382"]
    found = cif.read(text(*rows, symmetry=named("P 63 m c"), formula="'O Zn'", a=3.25, b=3.25, c=5.2, gamma=120))
    assert counts(found) == {30: 2, 8: 2}
    np.testing.assert_allclose(sorted(found.frac_coords[:, 0]), [1 / 3, 1 / 3, 2 / 3, 2 / 3], atol=1e-6)
    assert len(found.notes) == (2 if len(x) < 6 else 0)
    assert all("onto its special position (2 in the cell)" in note for note in found.notes)


def test_x_2x_rounded_to_three_digits_is_one_position():
    row = "Te1 Te 0.187 0.375 0.25"  # (x, 2x, 1/4) of P 63/m m c: 6 atoms
    found = cif.read(text(row, symmetry=named("P 63/m m c"), a=8.4, b=8.4, c=9.0, gamma=120))
    assert counts(found) == {52: 6}
    assert "moved by" in found.notes[0]


def test_a_site_listed_twice_is_one_and_two_elements_in_one_place_overlap():
    found = cif.read(text("Mg1 Mg 0 0 0", "Mg2 Mg 0.5 0.5 0", "O1 O 0.5 0.5 0.5", symmetry=named("F m -3 m")))
    assert counts(found) == {12: 4, 8: 4}
    assert "Mg2 is listed twice: it is an image of Mg1" in found.notes
    with pytest.raises(ValueError, match=r"overlapping atoms: .* 0\.00 Å apart"):
        cif.read(text("Mg1 Mg 0 0 0", "O1 O 0.5 0.5 0", symmetry=named("F m -3 m")))


# Formula


@pytest.mark.parametrize(
    "formula", ['"Cs1 Br1"', "'Br Cs'", "BrCs", "?", ".", "''", "'?'", "unreadable", "'Br0.5 Cs0.5'", "'Cs (Br)'"]
)
def test_a_formula_agrees_or_is_no_formula(formula):
    found = cif.read(text("Cs1 Cs 0 0 0", "Br1 Br 0.5 0.5 0.5", symmetry=P1, formula=formula))
    assert counts(found) == {55: 1, 35: 1}


def test_the_formula_of_the_cell_may_stand_beside_a_count_of_molecules():
    """As pymatgen writes both, of chlorine: Cl4, and Z = 2 of Cl2."""
    rows = [f"Cl{k} Cl {x} 0 0" for k, x in enumerate((0, 0.2, 0.5, 0.7))]
    assert len(cif.read(text(*rows, symmetry=P1, formula="Cl4", units="2", a=10, b=5, c=5)).numbers) == 4
    rows = [f"{e}{x} {e} {x / 50} 0 0" for x, e in enumerate([*"HHHHHHHHHHHHHHHHHHHH", "Ni"] * 2)]
    assert len(cif.read(text(*rows, symmetry=P1, formula="'Ni2 H40'", units="2", a=50, b=5, c=5)).numbers) == 42
    rows = [f"Cl{k} Cl {x} 0 0" for k, x in enumerate((0, 0.2, 0.5, 0.7))]
    with pytest.raises(ValueError, match="the cell holds 3 x Cl4, the sites are 4 atoms"):
        cif.read(text(*rows, symmetry=P1, formula="Cl4", units="3", a=10, b=5, c=5))


def test_a_third_written_with_four_digits_is_a_third():
    rows = ["Cs1 Cs 0.3333 0.66667 0.3334", "Br1 Br 0.5 0.5 0.8"]
    found = cif.read(text(*rows, symmetry=P1)).frac_coords[0]
    assert found.tolist() == [1 / 3, 2 / 3, 0.3334]


def test_a_formula_is_compared_in_fractions_and_with_its_count():
    rows = ["Cs1 Cs 0 0 0", "Cs2 Cs 0.5 0 0", "Br1 Br 0.25 0.5 0.5", "I1 I 0.75 0.5 0.5"]
    cell = {"a": 8.5, "b": 4.25, "c": 4.25}
    assert len(cif.read(text(*rows, symmetry=P1, formula="'Br0.5 Cs I0.5'", units="2", **cell)).numbers) == 4
    assert len(cif.read(text(*rows, symmetry=P1, formula="'Br0.500 Cs1.0 I0.5'", **cell)).numbers) == 4
    with pytest.raises(ValueError, match=r"formula mismatch: _chemical_formula_sum is Br Cs I, the sites are BrICs2"):
        cif.read(text(*rows, symmetry=P1, formula="'Br Cs I'", **cell))
    with pytest.raises(
        ValueError, match=r"formula mismatch: the cell holds 4 x Br0\.5 Cs I0\.5, the sites are 4 atoms"
    ):
        cif.read(text(*rows, symmetry=P1, formula="'Br0.5 Cs I0.5'", units="4", **cell))


def test_the_formula_may_be_that_of_the_cell_as_pymatgen_writes_it():
    rows = ["Si1 Si 0 0 0", "Si2 Si 0.25 0.25 0.25"]
    assert len(cif.read(text(*rows, symmetry=P1, formula="Si2", units="2")).numbers) == 2
    with pytest.raises(ValueError, match="formula mismatch: the cell holds 4 x Si2, the sites are 2 atoms"):
        cif.read(text(*rows, symmetry=P1, formula="Si2", units="4"))


def test_rounded_amounts_of_a_formula_agree():
    rows = [f"{'Ga' if k else 'Al'}{k} {'Ga' if k else 'Al'} {k / 3:.6f} 0 0" for k in range(3)]
    cell = {"a": 9, "b": 3, "c": 3}
    assert len(cif.read(text(*rows, symmetry=P1, formula="'Al0.33 Ga0.67'", units="3", **cell)).numbers) == 3
    with pytest.raises(ValueError, match="formula mismatch"):
        cif.read(text(*rows, symmetry=P1, formula="'Al0.30 Ga0.70'", **cell))


# Elements


@pytest.mark.parametrize(
    ("kind", "number"),
    [("Na1+", 11), ("Na+", 11), ("Na+1", 11), ("O2-", 8), ("NA", 11), ("na", 11), ("Cl1-", 17), ("D", 1),
     ("Siva", None), ("Cval", 6), ("Fe0+", 26), ("Vac", None), ("OH", None), ("Wat", None), ("T", None),
     ("X", None), ("M1", None), ("Hh", None), ("Rf", None), ("OH-", None), ("H2O", None)],
)  # fmt: skip
def test_a_type_symbol_is_an_element_or_refused(kind, number):
    written = text(f"site1 {kind} 0 0 0", symmetry=P1)
    if number:
        assert cif.read(written).numbers.tolist() == [number]
    else:
        with pytest.raises(ValueError, match=rf"unknown element: site site1 has _atom_site_type_symbol {kind}"):
            cif.read(written)


@pytest.mark.parametrize(("kind", "formula", "number"), [("CO", "Co", 27), ("CO", "'C O'", None), ("CO", "", None)])
def test_capital_letters_that_may_be_a_group_need_the_formula(kind, formula, number):
    written = text(f"site1 {kind} 0 0 0", symmetry=P1, formula=formula)
    if number:
        assert cif.read(written).numbers.tolist() == [number]
    else:
        with pytest.raises(ValueError, match="unknown element: "):
            cif.read(written)


@pytest.mark.parametrize(
    ("label", "formula", "number"),
    [("Mg1", "", 12), ("O", "", 8), ("Na1+", "", 11), ("O1A", "", 8), ("OW1", "", None), ("OH1", "", None),
     ("Wat1", "", None), ("SiT", "", None), ("SiT1", "Si", 14), ("OA", "O", 8), ("OH1", "'H O'", None),
     ("Si/Al", "", None), ("Na,K", "", None), ("Fe2+Fe3+", "", None), ("H2O", "", None), ("O(1)", "", 8),
     ("Ob1", "O2", 8), ("MG1", "Mg", 12), ("1", "", None), ("Rf1", "", None), ("Vac1", "", None), ("Vac1", "V", 23)],
)  # fmt: skip
def test_a_label_alone_is_an_element_for_certain_or_by_the_formula(label, formula, number):
    written = text(f"{label} 0 0 0", symmetry=P1, formula=formula, labels=("label",))
    if number:
        assert cif.read(written).numbers.tolist() == [number]
    else:
        with pytest.raises(ValueError, match=rf"(unknown element: site '?{re.escape(label)}|formula mismatch)"):
            cif.read(written)


# Sites


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("occupancy", "0.5", r"disordered: site O1 has _atom_site_occupancy 0\.5"),
        ("occupancy", "0.9", "disordered"),
        ("occupancy", "0", "disordered"),
        ("occupancy", "2", "disordered"),
        ("occupancy", "full", "unreadable: _atom_site_occupancy of O1 is 'full'"),
        ("disorder_group", "1", r"disordered: site O1 has _atom_site_disorder_group 1"),
        ("disorder_group", "-1", "disordered"),
        ("disorder_assembly", "A", r"disordered: site O1 has _atom_site_disorder_assembly A"),
        ("attached_hydrogens", "2", r"incomplete: site O1 has _atom_site_attached_hydrogens 2"),
        ("calc_flag", "dum", "unknown element: site O1 is a dummy"),
        ("symmetry_multiplicity", "4", r"site O1 stands 1 times .* _atom_site_symmetry_multiplicity is 4"),
    ],
)
def test_a_site_that_is_not_one_full_atom_is_refused(column, value, said):
    with pytest.raises(ValueError, match=said):
        cif.read(text(f"O1 O 0 0 0 {value}", symmetry=P1, columns=[column]))


@pytest.mark.parametrize(
    ("column", "value", "notes"),
    [("occupancy", ".", 0), ("occupancy", "?", 1), ("occupancy", "1.0", 0), ("occupancy", "1.00(2)", 0),
     ("occupancy", "0.999", 1), ("disorder_group", ".", 0), ("disorder_group", "?", 0), ("attached_hydrogens", "?", 0),
     ("attached_hydrogens", "0", 0), ("calc_flag", "d", 0), ("symmetry_multiplicity", "1", 0)],
)  # fmt: skip
def test_what_the_dictionary_lets_a_file_leave_out_is_no_disorder(column, value, notes):
    found = cif.read(text(f"O1 O 0 0 0 {value}", symmetry=P1, columns=[column]))
    assert (found.numbers.tolist(), len(found.notes)) == ([8], notes)


@pytest.mark.parametrize("value", ["?", ".", "1/3", "nan", "abc"])
def test_a_site_without_a_place_is_not_dropped(value):
    with pytest.raises(ValueError, match=r"unreadable: _atom_site_fract_y of O2 is"):
        cif.read(text("O1 O 0 0 0", f"O2 O 0.5 {value} 0.5", symmetry=P1))


def test_cartesian_coordinates_are_taken_in_a_cell_of_right_angles_only():
    written = text("Cs1 Cs 0 0 0", "Br1 Br 2 2.5 3", symmetry=P1, a=4, b=5, c=6).replace("fract_", "Cartn_")
    np.testing.assert_allclose(cif.read(written).frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match="incomplete: _atom_site_Cartn_x alone"):
        cif.read(written.replace("_cell_angle_beta 90", "_cell_angle_beta 98"))


# Cell


def test_angles_are_right_where_none_is_stated_and_told():
    found = cif.read(text("O1 O 0 0 0", symmetry=P1, **CUBIC, alpha=None, beta=".", gamma=90))
    np.testing.assert_allclose(found.lattice, np.diag([5.43] * 3), atol=1e-12)
    assert found.notes == ("_cell_angle_alpha, _cell_angle_beta not stated: 90°, as the dictionary has it",)


def test_lattice_vectors_have_the_stated_lengths_and_angles_on_pymatgens_axes():
    from pymatgen.core import Lattice

    stated = (4.1, 5.2, 6.3, 81.0, 97.0, 103.0)
    found = unit_cell.lattice_vectors(stated[:3], stated[3:])
    np.testing.assert_allclose(found, Lattice.from_parameters(*stated).matrix, atol=1e-12)


@pytest.mark.parametrize(
    "cell",
    [{"a": 0}, {"a": -4}, {"a": "?"}, {"gamma": 180}, {"gamma": 0}, {"a": 1e9}, {"a": "1e400"}, {"a": 0.01},
     {"alpha": 20, "beta": 20, "gamma": 90}],
)  # fmt: skip
def test_a_cell_that_is_none_is_refused(cell):
    with pytest.raises(ValueError, match=r"(no lattice|unreadable: _cell_length_a)"):
        cif.read(text("O1 O 0 0 0", symmetry=P1, **(CUBIC | cell)))


# Blocks


def test_one_of_several_blocks_is_chosen_by_name():
    one, other = text("O1 O 0 0 0", name="one"), text("S1 S 0 0 0", name="Other")
    with pytest.raises(ValueError, match=r"several structures: 2 \(one, Other …\), expected one a file; .*`block`"):
        cif.read(one + other)
    assert cif.read(one + other, block="other").numbers.tolist() == [16]
    with pytest.raises(ValueError, match=r"no block 'third' with atoms; there are one, Other"):
        cif.read(one + other, block="third")


def test_a_block_without_atoms_is_passed_over_with_its_formula():
    found = cif.read("data_journal\n_chemical_formula_sum 'C2 H6 O'\n" + text("O1 O 0 0 0", formula="O"))
    assert found.numbers.tolist() == [8]


def test_settings_of_one_crystal_are_one_and_a_strained_one_is_not():
    cell = {"a": 4.21, "b": 4.21, "c": 4.21}
    cubic = text("Mg1 Mg 0 0 0", "O1 O 0.5 0.5 0.5", symmetry=named("F m -3 m"), name="conventional", **cell)
    half = 4.21 / math.sqrt(2)
    primitive = {"a": half, "b": half, "c": half, "alpha": 60, "beta": 60, "gamma": 60}
    reduced = text("O O 0 0 0", "Mg Mg 0.5 0.5 0.5", symmetry=P1, name="reduced", **primitive)
    found = cif.read(cubic + reduced)
    assert counts(found) == {12: 4, 8: 4}
    assert "2 blocks (conventional, reduced) are one crystal: conventional is read" in found.notes
    with pytest.raises(ValueError, match="several structures"):
        cif.read(cubic + reduced.replace(str(half), str(half * 1.002)))
    with pytest.raises(ValueError, match="several structures"):  # of one formula and volume, but caesium chloride's
        cif.read(cubic + text("Mg1 Mg 0 0 0", "O1 O 0.5 0.5 0.5", symmetry=P1, name="b2", a=2.652, b=2.652, c=2.652))


@pytest.mark.parametrize(
    "broken",
    ["", "data_x\n", "data_x\n_cell_length_a\n", "loop_\n_a\n1", "data_x\nloop_\n_a\n_b\n1 2 3\n", "no CIF",
     "data_x\n_a 1\n_A 2\n"],
)  # fmt: skip
def test_what_is_no_cif_is_unreadable(broken):
    with pytest.raises(ValueError, match=r"^unreadable CIF: "):
        cif.read(broken)
