"""One crystal in every form that people bring it, and what is refused with its reason."""

import bz2
import gzip
import importlib
import json
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from pymatgen.core import Lattice, Molecule, Structure

import matalign
from matalign.data import sources
from matalign.data.readers import crystals, records, unit_cell
from matalign.data.readers.crystals import read_structure


@pytest.fixture
def salt(nacl):
    numbers, sites, lattice = nacl
    return Structure(Lattice(lattice), numbers, sites)


@pytest.fixture
def atoms(srtio3):
    numbers, sites, lattice = srtio3
    return Atoms(numbers=numbers, scaled_positions=sites, cell=lattice, pbc=True)


def optimade(numbers, sites, lattice, **changed):
    """An OPTIMADE structure record."""
    symbols = [unit_cell.SYMBOLS[z] for z in numbers]
    species = [{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in dict.fromkeys(symbols)]
    attributes = {
        "lattice_vectors": np.asarray(lattice).tolist(),
        "cartesian_site_positions": (np.asarray(sites) @ lattice).tolist(),
        "species": species,
        "species_at_sites": symbols,
        "dimension_types": [1, 1, 1],
    }
    return {"id": "x-1", "type": "structures", "attributes": attributes | changed}


def full(name):
    """An OPTIMADE species of one element."""
    return {"name": name, "chemical_symbols": [name], "concentration": [1.0]}


def jarvis(numbers, sites, lattice):
    symbols = [unit_cell.SYMBOLS[z] for z in numbers]
    return {"lattice_mat": np.asarray(lattice).tolist(), "coords": np.asarray(sites).tolist(), "elements": symbols,
            "cartesian": False}  # fmt: skip


def same(found, expected):
    """Whether the crystals agree but for the order of atoms, whole cells and how the lattice lies in space."""
    numbers, sites, lattice = found.numbers, found.frac_coords, found.lattice
    order = np.lexsort(np.c_[(sites.round(4) + 1e-6) % 1, numbers].T)
    wanted = np.lexsort(np.c_[(np.round(expected[1], 4) + 1e-6) % 1, expected[0]].T)
    np.testing.assert_array_equal(numbers[order], expected[0][wanted])
    np.testing.assert_allclose((sites[order] - expected[1][wanted] + 0.5) % 1, 0.5, atol=1e-5)
    np.testing.assert_allclose(lattice @ lattice.T, expected[2] @ expected[2].T, atol=1e-3)
    assert (numbers.dtype, sites.dtype, lattice.dtype) == (np.int16, float, float)


# Forms


@pytest.mark.parametrize(
    "name", ["x.cif", "x.mcif", "x.cif.txt", "noname", "x.CIF.gz", "x.cif.bz2", "x.cif_old", "POSCAR"]
)
def test_a_cif_is_known_by_its_content(name, srtio3, tmp_path):
    text = Structure(Lattice(srtio3[2]), srtio3[0], srtio3[1]).to(fmt="cif").encode()
    packed = {"gz": gzip.compress, "z2": bz2.compress}.get(name[-2:], bytes)(text)
    (tmp_path / name).write_bytes(packed)
    same(read_structure(tmp_path / name), srtio3)
    same(read_structure(str(tmp_path / name)), srtio3)
    same(read_structure(text.decode()), srtio3)


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", "\ufeff".encode("utf-16-le")])
def test_a_byte_order_mark_is_no_part_of_a_text(start, srtio3, tmp_path):
    text = Structure(Lattice(srtio3[2]), srtio3[0], srtio3[1]).to(fmt="cif")
    (tmp_path / "x.cif").write_bytes(start + text.encode("utf-16-le" if start[:1] == b"\xff" else "utf-8"))
    same(read_structure(tmp_path / "x.cif"), srtio3)


@pytest.mark.parametrize(
    "name",
    ["x.cif", "x.xsf", "x.extxyz", "POSCAR", "x.vasp", "x.traj", "x.json", "x.gen", "geometry.in", "x.res",
     "x.lammpstrj"],
)  # fmt: skip
def test_what_ase_writes_is_read(name, atoms, srtio3, tmp_path):
    if name == "x.lammpstrj":
        rows = [f"{k} {a.symbol} {a.x} {a.y} {a.z}" for k, a in enumerate(atoms, start=1)]
        box = [f"0 {length}" for length in atoms.cell.lengths()]
        start = ["ITEM: TIMESTEP", "0", "ITEM: NUMBER OF ATOMS", "5", "ITEM: BOX BOUNDS pp pp pp", *box]
        (tmp_path / name).write_text("\n".join([*start, "ITEM: ATOMS id element x y z", *rows, ""]))
    elif name == "geometry.in":
        rows = [f"lattice_vector {a} {b} {c}" for a, b, c in atoms.cell]
        rows += [f"atom_frac {' '.join(map(str, place))} {a.symbol}" for a, place in zip(atoms, srtio3[1], strict=True)]
        (tmp_path / name).write_text("\n".join([*rows, ""]))
    else:
        write(tmp_path / name, atoms)
    same(read_structure(tmp_path / name), srtio3)


@pytest.mark.parametrize(
    "form", ["pymatgen", "ase", "optimade", "attributes", "answer", "list", "jarvis", "dict", "todict"]
)
def test_objects_and_records_are_read(form, atoms, srtio3, tmp_path):
    crystal = Structure(Lattice(srtio3[2]), srtio3[0], srtio3[1])
    record = optimade(*srtio3)
    item = {
        "pymatgen": crystal,
        "ase": atoms,
        "optimade": record,
        "attributes": record["attributes"],
        "answer": {"data": record, "meta": {"api_version": "1.1.0"}},
        "list": {"data": [record]},
        "jarvis": {"jid": "JVASP-1", "atoms": jarvis(*srtio3)},
        "dict": crystal.as_dict(),
        "todict": {key: value.tolist() for key, value in atoms.todict().items()},
    }[form]
    same(read_structure(item), srtio3)
    if form not in ("pymatgen", "ase"):
        (tmp_path / "saved.json").write_text(json.dumps(item))
        same(read_structure(tmp_path / "saved.json"), srtio3)
        same(read_structure(json.dumps(item)), srtio3)


def test_orders_of_magnitude_of_packages_are_not_needed(monkeypatch, nacl):
    for name in ("pymatgen", "pymatgen.core", "ase", "spglib", "torch", "optimade"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it fails
    bare = importlib.reload(crystals)
    same(bare.read_structure(optimade(*nacl)), nacl)
    same(bare.read_structure(POSCAR.format(scale="1.0")), EXPECTED)


def test_a_crystal_is_described_as_curation_describes_it(nacl, srtio3, salt):
    found = sources.described(crystals.read_structure(optimade(*srtio3)))
    assert (found.formula, found.chemsys, found.space_group) == ("SrTiO3", "O-Sr-Ti", 221)
    read = sources.parse_cif(salt.to(fmt="cif"))
    for item in (salt, optimade(*nacl)):
        found = sources.described(crystals.read_structure(item))
        assert (found.formula, found.chemsys, found.space_group) == (read.formula, read.chemsys, read.space_group)


def test_the_package_has_the_reader_at_its_door(srtio3):
    same(matalign.read_structure(optimade(*srtio3)), srtio3)


@pytest.mark.parametrize(
    ("record", "is_one"),
    [
        (optimade(np.array([11]), np.zeros((1, 3)), np.eye(3)), True),
        ({"data": optimade(np.array([11]), np.zeros((1, 3)), np.eye(3))}, True),
        ({"lattice": {}, "sites": []}, True),
        ({"precursors": ["TiO2"], "operations": []}, False),
        ("text", False),
        ([], False),
    ],
)
def test_a_structure_in_json_is_told_from_a_protocol(record, is_one):
    assert records.holds_structure(record) is is_one


# POSCAR

POSCAR = """strontium titanate
{scale}
3.9 0 0
0 3.9 0
0 0 3.9
Sr Ti O
1 1 3
Cartesian
0 0 0
1.95 1.95 1.95
1.95 1.95 0
1.95 0 1.95
0 1.95 1.95
"""
EXPECTED = (
    np.array([38, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    np.eye(3) * 3.9,
)


@pytest.mark.parametrize(
    "change",
    [
        ("1.0", "1 1 1"),
        ("1.0", "-59.319"),  # the volume: no change
        ("Sr Ti O", "Sr_sv Ti_pv O"),
        ("Sr Ti O", "Sr_sv/1a2b3c4d Ti_pv/99ff O/7d"),
        ("Sr Ti O\n1 1 3", "Sr_sv/1a2b3c\nTi_pv/99ff O\n1\n1 3"),
        ("Sr Ti O\n1 1 3", "Sr Ti O O\n1 1 1 2"),
        ("Cartesian", "Selective dynamics\nCartesian"),
        ("Cartesian", "k"),
        ("strontium titanate\n", "Sr Ti O\n"),
        ("0 0 3.9", "0 0 3.9D0"),
        ("1.95 1.95 0", "1.95 1.95 0 T T F O"),
    ],
)
def test_a_poscar_of_any_dialect_is_the_same_crystal(change):
    text = POSCAR.format(scale="1.0")
    assert change[0] in text
    same(read_structure(text.replace(*change, 1)), EXPECTED)


def test_scales_of_a_poscar_scale_cartesian_coordinates_too():
    unit = POSCAR.replace("3.9", "1").replace("1.95", "0.5")
    for scale in ("3.9", "-59.319", "3.9 3.9 3.9"):
        same(read_structure(unit.format(scale=scale)), EXPECTED)
    found = read_structure(unit.format(scale="3.9 4.0 5.0"))
    np.testing.assert_allclose(np.diag(found.lattice), [3.9, 4.0, 5.0])
    np.testing.assert_allclose(found.frac_coords[1], [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("comment", "numbers"),
    [("Sr Ti O", [38, 22, 8, 8, 8]), ("Sr1 Ti1 O3", [38, 22, 8, 8, 8]), ("SrTiO3", None), ("Sr Ti", None),
     ("Sr2 Ti1 O3", None), ("my new cell", None)],
)  # fmt: skip
def test_names_of_vasp_4_are_those_of_the_comment_if_they_match_the_counts(comment, numbers):
    text = POSCAR.format(scale="1.0").replace("strontium titanate", comment).replace("Sr Ti O\n1 1 3", "1 1 3")
    if numbers:
        found = read_structure(text)
        assert found.numbers.tolist() == numbers
        assert "without a line of names" in found.notes[0]
    else:
        with pytest.raises(ValueError, match=r"^POSCAR: unreadable: Elements in POSCAR cannot be determined"):
            read_structure(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.0", "0", "no lattice: scale '0'"),
        ("1.0", "1 -1 1", "no lattice"),
        ("Sr Ti O", "Sr Qq O", "unknown element: Qq"),
        ("Sr Ti O", "Sr Ti", "2 names and 3 counts"),
        ("1 1 3", "1 1 4", "5 lines of coordinates for 6 atoms"),
        ("1 1 3", "1 1 9999", "too many atoms: 10001"),
        ("1.95 1.95 1.95", "1.95 1.95", "line 10 is '1.95 1.95'; expected three coordinates"),
        ("1.95 1.95 0", "1.95 1.95 1.90", "overlapping atoms"),
        ("0 0 3.9", "0 3.9 0", "no lattice"),
    ],
)
def test_a_bad_poscar_is_named_with_what_is_wrong_in_it(old, new, said, tmp_path):
    (tmp_path / "CONTCAR").write_text(POSCAR.format(scale="1.0").replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"^CONTCAR: .*{said}"):
        read_structure(tmp_path / "CONTCAR")


# What is refused by the name of its cause


def test_several_frames_need_a_choice(atoms, tmp_path):
    larger = atoms.copy()
    larger.set_cell(atoms.cell * 1.1, scale_atoms=True)
    for name in ("x.extxyz", "x.traj", "XDATCAR"):
        write(tmp_path / name, [atoms, larger])
        with pytest.raises(ValueError, match=rf"^{name}: several structures: .*choose one by `frame`"):
            read_structure(tmp_path / name)
        for frame, expected in ((0, atoms), (1, larger), (-1, larger)):
            found = read_structure(tmp_path / name, frame=frame)
            np.testing.assert_allclose(abs(np.linalg.det(found.lattice)), expected.cell.volume, rtol=1e-4)
        with pytest.raises(ValueError, match=rf"^{name}: .*frame 7"):
            read_structure(tmp_path / name, frame=7)
    with pytest.raises(ValueError, match="several structures: 2; choose"):
        read_structure([atoms, larger])
    assert read_structure([atoms, larger], frame=1).lattice[0, 0] == pytest.approx(larger.cell[0, 0])
    with pytest.raises(ValueError, match=r"several structures: 2 records \(x-1, x-1 …\); choose one by `frame`"):
        read_structure({"data": [optimade(*EXPECTED)] * 2})
    assert len(read_structure({"data": [optimade(*EXPECTED)] * 2}, frame=1).numbers) == 5


BOX = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 3\n0 3\n0 3\n"
DUMP = BOX + "ITEM: ATOMS id type x y z\n1 1 0 0 0\n"
DATA = "LAMMPS\n\n1 atoms\n1 atom types\n0 3 xlo xhi\n0 3 ylo yhi\n0 3 zlo zhi\n\nAtoms # atomic\n\n1 1 0 0 0\n"
XSF = "{kind}\nPRIMVEC\n4 0 0\n0 4 0\n0 0 4\nPRIMCOORD\n1 1\n29 0 0 0\n"
PDB = (
    "CRYST1    5.640    5.640    5.640  90.00  90.00  90.00 {group:11s} 4\n"
    "HETATM    1 NA   MOL     1       0.000   0.000   0.000  1.00  0.00          NA\n"
    "HETATM    2 CL   MOL     1       2.820   2.820   2.820  1.00  0.00          CL\nEND\n"
)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.lammpstrj", DUMP, "unknown element: a LAMMPS dump of types"),
        ("anything", DUMP, "unknown element: a LAMMPS dump of types"),
        ("x.data", DATA, "unknown element: LAMMPS data of types"),
        ("x.data", DATA.replace("Atoms", "Masses\n\n1 72.0\n\nAtoms"), "the mass 72.0, which is no element's"),
        ("x.xsf", XSF.format(kind="SLAB"), "not periodic in three directions: the XSF is a SLAB"),
        ("x.xsf", XSF.format(kind="# film\nPOLYMER"), "the XSF is a POLYMER"),
        ("x.xsf", XSF.format(kind="DIM-GROUP\n2 1"), "the XSF is a DIM-GROUP 2"),
        ("x.pdb", PDB.format(group="Q 9 9 9"), "symmetry: CRYST1 names 'Q 9 9 9', which is unknown"),
        ("x.pdb", PDB.format(group="P 21 3 2")[:80] + "\nEND\n", r"(unknown|no atoms|symmetry)"),
        ("x.pdb", "HETATM" + PDB.partition("HETATM")[2], "no lattice: no CRYST1"),
        ("x.pdb", PDB.format(group="P 1").replace("          NA\n", "\n"), "unknown element: columns 77 and 78"),
        ("x.pdb", PDB.format(group="P 1").replace(" 1.00  0.00          N", " 0.50  0.00          N"), "disordered"),
        ("notes.txt", "nothing of the kind", "unreadable: .*ASE cannot read it"),
        ("x.json", "{", "unreadable: not JSON"),
        ("x.json", "[1, 2]", "several structures|unreadable"),
        ("x.json", '{"a": 1}', "unreadable: a JSON object of a"),
        ("x.cif", "", "unreadable CIF"),
        ("x.cif.gz", "not packed", "unreadable CIF"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_crystal_is_refused_by_its_cause(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^{name}: .*({said})"):
        read_structure(tmp_path / name)


def test_the_group_of_a_pdb_fills_its_cell(tmp_path):
    (tmp_path / "x.pdb").write_text(PDB.format(group="F m -3 m"))
    found = read_structure(tmp_path / "x.pdb")
    assert sorted(found.numbers.tolist()) == [11] * 4 + [17] * 4
    assert len(read_structure(PDB.format(group="P 1")).numbers) == 2


def test_models_of_a_pdb_need_a_choice_and_one_cell():
    start, atom, *_ = PDB.format(group="P 1").splitlines()
    other = atom.replace(" 0.000   0.000", " 1.000   1.000")
    models = "\n".join([start, "MODEL        1", atom, "ENDMDL", "MODEL        2", other, "ENDMDL", "END", ""])
    with pytest.raises(ValueError, match="several structures: 2 models; choose one by `frame`"):
        read_structure(models)
    np.testing.assert_allclose(read_structure(models, frame=-1).frac_coords * 5.64, [[1, 1, 0]])
    with pytest.raises(ValueError, match="several structures: CRYST1 records of different cells"):
        read_structure(models.replace("MODEL        2", start.replace("5.640", "5.700") + "\nMODEL        2"), frame=0)


def test_a_broken_archive_and_a_missing_file_are_told(tmp_path):
    (tmp_path / "x.cif.gz").write_bytes(gzip.compress(b"data_x\n" * 99)[:30])
    with pytest.raises(ValueError, match=r"^x\.cif\.gz: unreadable"):
        read_structure(tmp_path / "x.cif.gz")
    for missing, why in (
        (tmp_path / "none.cif", "no such file"),
        (str(tmp_path), "is a folder"),
        ("x" * 5000, "no such"),
    ):
        with pytest.raises(FileNotFoundError, match=why):
            read_structure(missing)


def test_what_is_too_large_is_refused_also_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(crystals, "MAX_FILE_MB", 1)
    (tmp_path / "x.cif").write_bytes(b"#" * (2 << 20))
    (tmp_path / "x.cif.gz").write_bytes(gzip.compress(b"#" * (2 << 20)))
    for name in ("x.cif", "x.cif.gz"):
        with pytest.raises(ValueError, match=rf"^{name}: too large: structure files of at most 1 MB"):
            crystals.read_structure(tmp_path / name)


def test_an_object_that_is_no_crystal_is_refused(salt, monkeypatch):
    water = Atoms("OH2", positions=[[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    with pytest.raises(ValueError, match="no lattice"):
        read_structure(water)
    water.set_cell([9, 9, 9])
    with pytest.raises(ValueError, match="not periodic in three directions"):
        read_structure(water)
    for item, said in (
        (Molecule(["O"], [[0, 0, 0]]), "Molecule: is no crystal"),
        (3, "int: is no crystal"),
        (None, "NoneType: is no crystal"),
        ([], "no structures"),
        (
            Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]),
            "disordered: Na0.5 K0.5|disordered: K0.5 Na0.5",
        ),
        (Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]), "unknown element: X"),
        (Structure(Lattice.cubic(4), [], []), "no atoms"),
    ):
        with pytest.raises(ValueError, match=said):
            read_structure(item)
    monkeypatch.setattr(unit_cell, "MAX_ATOMS", 1)
    with pytest.raises(ValueError, match="too many atoms: 2 in the cell; at most 1"):
        read_structure(salt)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lattice_vectors": None}, "no lattice"),
        ({"lattice_vectors": [[1, 0, 0], [0, 1, 0], [None] * 3]}, "no lattice"),
        ({"lattice_vectors": [[1, 0, 0], [0, 1, 0], [1, 1, 0]]}, "no lattice"),
        ({"dimension_types": [1, 1, 0]}, "not periodic"),
        ({"cartesian_site_positions": [[0, 0, 0]]}, "incomplete: 2 species_at_sites for 1"),
        ({"cartesian_site_positions": None}, "incomplete: 2 species_at_sites for 0"),
        ({"species_at_sites": ["Na", "vacancy"]}, "unknown element: vacancy"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na", "K"], "concentration": [0.5, 0.5]}]}, "disordered"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": [0.5]}]}, "disordered"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": []}]}, "incomplete: species Na"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": None}]}, "incomplete: species Na"),
        ({"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": ["a"]}]}, "unreadable: TypeError"),
        (
            {"species": [{"name": "Na", "chemical_symbols": ["Na"], "concentration": [1], "nattached": [2],
                          "attached": ["H"]}]},
            "disordered",
        ),
        ({"assemblies": [{"sites_in_groups": [[0], [1]]}]}, "disordered: assemblies"),
        ({"structure_features": ["implicit_atoms"]}, "disordered: structure_features has implicit_atoms"),
        ({"species": [{"chemical_symbols": ["Na"]}]}, "unreadable: KeyError 'name'"),
        ({"lattice_vectors": 3}, "unreadable: TypeError"),
        ({"species_at_sites": 3}, "unreadable: TypeError"),
        ({"species_at_sites": [["Na"], "Cl"]}, "unreadable: TypeError"),
        ({"cartesian_site_positions": [[0, 0], [1, 1]]}, "incomplete"),
        ({"nperiodic_dimensions": 2}, "not periodic in three directions: nperiodic_dimensions is 2"),
        ({"nsites": 3}, "incomplete: nsites is 3, the sites are 2 of"),
        ({"nelements": 3}, "incomplete: nelements is 3"),
        ({"elements": ["K", "Cl"]}, r"incomplete: elements is \['K', 'Cl'\]"),
        ({"chemical_formula_reduced": "Cl2Na"}, "formula mismatch: chemical_formula_reduced is Cl2Na"),
        ({"species": [full("Na")]}, "incomplete: species names Na once each"),
        ({"species": [full(name) for name in ("Na", "Cl", "Cl")]}, "incomplete: species names Na, Cl once"),
    ],
)  # fmt: skip
def test_a_bad_optimade_record_is_named_with_what_is_wrong_in_it(changed, said, nacl):
    with pytest.raises(ValueError, match=f"^OPTIMADE record 'x-1': .*{said}"):
        read_structure(optimade(*nacl, **changed))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pbc": [True, True, False]}, "not periodic"),
        ({"numbers": [0, 0, 0, 0, 0]}, "unknown element: atomic number 0"),
        ({"numbers": [8]}, "incomplete: 1 numbers for 5 positions"),
        ({"cell": None}, "no lattice|unreadable"),
        ({"info": {"occupancy": {"0": {"Sr": 0.5}}}}, "disordered"),
    ],
)
def test_a_bad_dictionary_of_ase_is_refused(change, said, atoms):
    record = {key: value.tolist() for key, value in atoms.todict().items()} | change
    with pytest.raises(ValueError, match=f"^JSON: .*({said})"):
        read_structure(record)


@pytest.mark.parametrize("attributes", [[], 3, "text", None, {"lattice_vectors": "x"}, {"species": 3}])
def test_misshapen_attributes_are_refused(attributes):
    with pytest.raises(ValueError, match=r"^OPTIMADE record 'x': (unreadable|no lattice|incomplete)"):
        read_structure({"id": "x", "attributes": attributes})


def test_what_json_states_twice_must_agree(salt, nacl):
    record = salt.as_dict()
    record["lattice"]["a"] += 0.5
    with pytest.raises(ValueError, match="no lattice: the vectors have other lengths than a, b, c"):
        read_structure(record)
    record = salt.as_dict()
    record["sites"][1]["abc"] = [0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match=r"abc .* and xyz .* are different places"):
        read_structure(record)
    with pytest.raises(ValueError, match="no lattice: the vectors have other lengths"):
        read_structure(jarvis(*nacl) | {"abc": [9.0, 9.0, 9.0]})


def test_an_occupancy_of_ase_that_is_none_is_passed_over(atoms):
    atoms.info["occupancy"] = "full"
    assert len(read_structure(atoms).numbers) == 5
    atoms.info["occupancy"] = {"0": {"Sr": 0.5, "Ba": 0.5}}
    with pytest.raises(ValueError, match="disordered"):
        read_structure(atoms)


def test_a_mixed_site_of_pymatgens_json_is_refused(salt):
    record = salt.as_dict()
    record["sites"][0]["species"] = [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}]
    with pytest.raises(ValueError, match=r"^JSON: disordered: a site of Na 0\.5, K 0\.5"):
        read_structure(record)
