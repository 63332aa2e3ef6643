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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, diffpy_count, gemmi_count, pymatgen_count

GROUP = "_symmetry_space_group_name_H-M 'P 63/m m c'"
readers = {"gemmi": gemmi_count, "pymatgen": pymatgen_count, "ase": ase_count, "diffpy": diffpy_count}
expected = 2
seen = {name: count(cif([3, 3, 5, 90, 90, 120], GROUP, ["Mg1 Mg 0.333 0.667 0.25"])) for name, count in readers.items()}
recorded = {"gemmi": 2, "pymatgen": 6, "ase": 6, "diffpy": 6}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
