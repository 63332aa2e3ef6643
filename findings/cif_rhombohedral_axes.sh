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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, diffpy_count, gemmi_count, pymatgen_count

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
