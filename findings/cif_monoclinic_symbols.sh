#!/bin/sh
# Finding: No spelling of the commonest space group, P 21/c, is read by both pymatgen and ASE
# Expected: A general position of space group 14 is four atoms, whether the symbol is short (P 21/c) or full (P 1
#   21/c 1).
# Seen: pymatgen knows the full symbols only and takes the short ones for P 1 with a warning: one atom. ASE knows
#   the short ones only and refuses the full ones. gemmi reads all, and the older C m c a (today C m c e), which
#   neither of them knows.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: About a third of molecular crystals are P 21/c. Where warnings are off, pymatgen goes on with a quarter
#   of the atoms.
# matalign: tests/data/test_cif.py::test_a_short_monoclinic_symbol_has_its_axis_where_the_angle_is and
#   ::test_a_glide_e_may_name_its_axes.

set -eu
packages="gemmi==0.7.5 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, gemmi_count, pymatgen_count

readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count}
expected = "4, 4, 8, 8 and 16 in each"
seen = {name: [] for name in readers}
for symbol, beta in (("P 21/c", 100), ("P 1 21/c 1", 100), ("C 2/m", 100), ("C 1 2/m 1", 100), ("C m c a", 90)):
    text = cif([5, 6, 7, 90, beta, 90], f"_symmetry_space_group_name_H-M '{symbol}'", ["C1 C 0.1 0.2 0.3"])
    for name, count in readers.items():
        seen[name].append(count(text))
unknown = "SpacegroupNotFoundError"
recorded = {
    "gemmi": [4, 4, 8, 8, 16],
    "pymatgen": [1, 4, 1, 8, 1],
    "ase": [4, unknown, 8, unknown, unknown],
}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
