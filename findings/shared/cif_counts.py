"""A CIF, and how many atoms its cell has to several readers."""

import io
import warnings

import ase.io
import gemmi
from pymatgen.io.cif import CifParser

warnings.simplefilter("ignore")


def cif(cell, symmetry, sites, columns=""):
    """A CIF of one block from its cell, its tags of symmetry and its rows of label, symbol, x, y, z."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{name} {value}" for name, value in zip(names, cell)), symmetry, "loop_"]
    lines += [
        f"_atom_site_{name}" for name in ("label", "type_symbol", "fract_x", "fract_y", "fract_z", *columns.split())
    ]
    return "\n".join([*lines, *sites, ""])


def gemmi_count(text):
    """Atoms in the cell of gemmi's small structure."""
    return len(
        gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block()).get_all_unit_cell_sites()
    )


def pymatgen_count(text):
    """Atoms in the cell as written of pymatgen's first structure."""
    return len(CifParser.from_str(text).parse_structures(primitive=False)[0])


def ase_count(text):
    """Atoms that ASE reads, or the name of what it raises."""
    try:
        return len(ase.io.read(io.BytesIO(text.encode()), format="cif"))
    except Exception as error:
        return type(error).__name__


def diffpy_count(text):
    """Atoms in the cell that diffpy.structure reads."""
    from diffpy.structure.parsers import getParser  # not every finding installs it

    return len(getParser("cif").parse(text))
