#!/bin/sh
# Finding: Names as the present core dictionary defines them, `_cell.length_a`, are read by no common package
# Expected: The third version of the core dictionary defines _cell.length_a and _atom_site.fract_x and keeps the
#   names with an underscore as aliases: a file with either is the same crystal.
# Seen: gemmi gives a small structure without atoms in a cell of 1 Å, and no error. pymatgen, ASE and diffpy raise
#   ValueError, StopIteration and TypeError, none of which names the cause.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, diffpy.structure 3.3.1, numpy
#   2.4.6
# Matters: A valid file is taken for an empty one.
# matalign: names are read with either; tests/data/test_cif.py::test_operations_are_read_under_each_of_their_names.

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


old = cif([5.64] * 3 + [90] * 3, "_space_group_name_H-M_alt 'F m -3 m'", ["Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5"])
new = old.replace("_cell_", "_cell.").replace("_space_group_", "_space_group.").replace("_atom_site_", "_atom_site.")


def outcome(count, text):
    try:
        return count(text)
    except Exception as error:
        return type(error).__name__


readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count, "diffpy": diffpy_count}
expected = [8, 8]
seen = {name: [outcome(count, text) for text in (old, new)] for name, count in readers.items()}
recorded = {
    "gemmi": [8, 0],
    "pymatgen": [8, "ValueError"],
    "ase": [8, "StopIteration"],
    "diffpy": [8, "TypeError"],
}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
