#!/bin/sh
# Finding: pymatgen drops a site whose occupancy is `.`, the dictionary's sign for its default of 1
# Expected: In a CIF `.` stands for the default of an item and `?` for an unknown value; the dictionary's default of
#   an occupancy is 1. NaCl with occupancies . and 1 is two atoms.
# Seen: gemmi, ASE and diffpy give two. pymatgen takes `.` for zero and gives chlorine alone, with a warning of
#   missing elements; `?` it takes for 1.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, diffpy.structure 3.3.1, numpy
#   2.4.6
# Matters: The element that the file marks as fully there is the one that goes; where all are marked so, there is an
#   error that names no cause.
# matalign: tests/data/test_cif.py::test_what_the_dictionary_lets_a_file_leave_out_is_no_disorder.

set -eu
packages="gemmi==0.7.5 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 diffpy.structure==3.3.1 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, diffpy_count, gemmi_count, pymatgen_count

P1 = "_symmetry_space_group_name_H-M 'P 1'\n_symmetry_Int_Tables_number 1\nloop_\n_symmetry_equiv_pos_as_xyz\nx,y,z"
readers = {"gemmi": gemmi_count, "ase": ase_count, "diffpy": diffpy_count, "pymatgen": pymatgen_count}
expected = [2, 2]
seen = {name: [] for name in readers}
for value in (".", "?"):
    text = cif([4, 5, 6, 90, 90, 90], P1, [f"Na1 Na 0 0 0 {value}", "Cl1 Cl 0.5 0.5 0.5 1"], "occupancy")
    for name, count in readers.items():
        seen[name].append(count(text))
recorded = {"gemmi": [2, 2], "ase": [2, 2], "diffpy": [2, 2], "pymatgen": [1, 2]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
