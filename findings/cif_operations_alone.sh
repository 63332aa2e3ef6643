#!/bin/sh
# Finding: ASE refuses a CIF that lists all operations because the space group has no name beside them
# Expected: The list of operations is the whole symmetry; symbols and numbers are comments beside it.
# Seen: gemmi and pymatgen apply the two operations. ASE raises SpacegroupValueError (either *no* and *setting* or
#   *symbol* must be given), until a symbol stands there too.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: The one form without ambiguity, which settings and origins call for, is the one that is refused.
# matalign: tests/data/test_cif.py::test_operations_are_read_under_each_of_their_names.

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


OPERATIONS = "loop_\n_space_group_symop_operation_xyz\nx,y,z\n-x,-y,-z"
sites = ["Na1 Na 0.1 0.2 0.3"]
alone = cif([4, 5, 6, 80, 85, 95], OPERATIONS, sites)
named = cif([4, 5, 6, 80, 85, 95], f"_space_group_name_H-M_alt 'P -1'\n{OPERATIONS}", sites)
readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count}
expected = [2, 2]
seen = {name: [count(alone), count(named)] for name, count in readers.items()}
recorded = {"gemmi": [2, 2], "pymatgen": [2, 2], "ase": ["SpacegroupValueError", 2]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
