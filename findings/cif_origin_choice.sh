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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, diffpy_count, gemmi_count, pymatgen_count

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
