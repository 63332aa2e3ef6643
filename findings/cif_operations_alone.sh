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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, gemmi_count, pymatgen_count

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
