#!/bin/sh
# Finding: `F d -3 m` without operations has its origin at choice 2 in gemmi, at choice 1 in pymatgen, ASE and
#   diffpy
# Expected: Diamond is eight atoms. A CIF that names F d -3 m and lists no operations is the same crystal for
#   everybody, or somebody asks for the origin.
# Seen: A silicon at 0 0 0 is eight atoms in pymatgen, ASE and diffpy, sixteen in gemmi; one at 1/8 1/8 1/8 the
#   other way round. All four decide without asking.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, diffpy.structure 3.3.1, numpy
#   2.4.6
# Matters: Spinels, pyrochlores, diamond: the wrong origin doubles atoms or moves them to other sites, and the
#   result still is a crystal of that group.
# matalign: tests/data/test_cif.py::test_an_origin_that_nothing_decides_is_refused_and_a_stated_one_is_taken.

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


GROUP = "_symmetry_space_group_name_H-M 'F d -3 m'"
readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count, "diffpy": diffpy_count}
expected = "the same two numbers"
seen = {name: [] for name in readers}
for x in ("0", "0.125"):
    text = cif([5.43] * 3 + [90] * 3, GROUP, [f"Si1 Si {x} {x} {x}"])
    for name, count in readers.items():
        seen[name].append(count(text))
recorded = {"gemmi": [16, 8], "pymatgen": [8, 16], "ase": [8, 16], "diffpy": [8, 16]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
