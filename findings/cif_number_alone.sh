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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import gemmi
from cif_counts import ase_count, cif, gemmi_count, pymatgen_count

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
