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
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from cif_counts import ase_count, cif, diffpy_count, gemmi_count, pymatgen_count

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
