#!/bin/sh
# Finding: gemmi leaves a crystal whose space group is given by its number alone without symmetry
# Expected: A CIF of NaCl with two sites and _space_group_IT_number 225 is eight atoms, or an error.
# Seen: pymatgen and ASE give eight atoms. gemmi's small structure has two sites in its cell and no space group,
#   without a word; the number is used after a call of determine_and_set_spacegroup with N in its order.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: A density a quarter of the true one, and coordination that is lost.
# matalign: tests/data/test_cif.py::test_a_number_alone_is_taken_only_where_one_crystal_remains.

set -eu
packages="gemmi==0.7.5 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if command -v uv > /dev/null; then
    uv venv --quiet venv
    uv pip install --quiet --python venv/bin/python $packages
else
    python3 -m venv venv
    venv/bin/pip install --quiet $packages
fi
echo "versions: $packages"
venv/bin/python - <<'EOF'
import io
import sys
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
    return len(
        gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block()).get_all_unit_cell_sites()
    )


def pymatgen_count(text):
    return len(CifParser.from_str(text).parse_structures(primitive=False)[0])


def ase_count(text):
    try:
        return len(ase.io.read(io.BytesIO(text.encode()), format="cif"))
    except Exception as error:
        return type(error).__name__


text = cif([5.64] * 3 + [90] * 3, "_space_group_IT_number 225", ["Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"])
small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
small.determine_and_set_spacegroup("S.H2N")
expected = 8
seen = {
    "gemmi": gemmi_count(text),
    "gemmi, asked for N": len(small.get_all_unit_cell_sites()),
    "pymatgen": pymatgen_count(text),
    "ase": ase_count(text),
}
recorded = {"gemmi": 2, "gemmi, asked for N": 8, "pymatgen": 8, "ase": 8}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
