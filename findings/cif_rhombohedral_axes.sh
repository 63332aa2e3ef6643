#!/bin/sh
# Finding: pymatgen and ASE put hexagonal operations on a rhombohedral cell: 36 atoms of bismuth instead of 2
# Expected: R -3 m in a cell of three equal edges and three equal angles of 57 degrees is on rhombohedral axes;
#   bismuth at x x x is two atoms.
# Seen: gemmi and diffpy give two. pymatgen and ASE apply the operations of hexagonal axes, which are no symmetry of
#   that cell, and give 36 atoms, many less than 1 Å apart. Neither says so.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, diffpy.structure 3.3.1, numpy
#   2.4.6
# Matters: Bi, Sb, As, Bi2Te3, calcite and ilmenite come in either cell.
# matalign: tests/data/test_cif.py::test_rhombohedral_groups_stand_on_the_axes_of_the_cell and
#   ::test_axes_that_do_not_fit_the_cell_are_refused.

set -eu
packages="gemmi==0.7.5 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 diffpy.structure==3.3.1 numpy==2.4.6"
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
from diffpy.structure.parsers import getParser
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


def diffpy_count(text):
    return len(getParser("cif").parse(text))


text = cif([4.4] * 3 + [57] * 3, "_symmetry_space_group_name_H-M 'R -3 m'", ["Bi1 Bi 0.23 0.23 0.23"])
expected = 2
seen = {
    "gemmi": gemmi_count(text),
    "diffpy": diffpy_count(text),
    "pymatgen": pymatgen_count(text),
    "ase": ase_count(text),
}
recorded = {"gemmi": 2, "diffpy": 2, "pymatgen": 36, "ase": 36}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
