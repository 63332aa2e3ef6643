#!/bin/sh
# Finding: Magnesium at .333 .667 .25 is 6 atoms in pymatgen, ASE and diffpy, 2 in gemmi
# Expected: A third with three digits is a third: hexagonal close packing has two atoms a cell.
# Seen: With an edge of 3 Å images 0.003 Å apart count as different atoms in pymatgen, ASE and diffpy, which give
#   six. gemmi joins them to two. With four digits pymatgen and ASE give two as well.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, diffpy.structure 3.3.1, numpy
#   2.4.6
# Matters: Files of the older literature have three digits. Atoms 0.003 Å apart end an energy calculation and double
#   densities.
# matalign: tests/data/test_cif.py::test_x_2x_rounded_to_three_digits_is_one_position and
#   ::test_rounded_coordinates_come_onto_their_special_position.

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


GROUP = "_symmetry_space_group_name_H-M 'P 63/m m c'"
readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count, "diffpy": diffpy_count}
expected = 2
seen = {name: count(cif([3, 3, 5, 90, 90, 120], GROUP, ["Mg1 Mg 0.333 0.667 0.25"])) for name, count in readers.items()}
recorded = {"gemmi": 2, "pymatgen": 6, "ase": 6, "diffpy": 6}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
