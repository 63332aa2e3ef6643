#!/bin/sh
# Finding: ASE reads the cell of a PDB file and passes over the space group beside it
# Expected: CRYST1 holds cell and space group. NaCl with two atoms, 5.64 Å and F m -3 m is eight atoms, or a note.
# Seen: ASE gives two atoms in the full cell, periodic, without a word; gemmi tells the group and its operations.
# Versions: ase 3.29.0, gemmi 0.7.5, numpy 2.4.6
# Matters: Zeolites and framework materials are passed on as PDB; the crystal has a quarter of its atoms and still
#   is periodic.
# matalign: tests/data/test_crystals.py::test_the_group_of_a_pdb_fills_its_cell.

set -eu
packages="ase==3.29.0 gemmi==0.7.5 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import io
import sys

import ase.io
import gemmi

TEXT = """\
CRYST1    5.640    5.640    5.640  90.00  90.00  90.00 F m -3 m      4
HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA
HETATM    2 CL    CL A   2       2.820   2.820   2.820  1.00  0.00          CL
END
"""
atoms = ase.io.read(io.StringIO(TEXT), format="proteindatabank")
group = gemmi.find_spacegroup_by_name(gemmi.read_pdb_string(TEXT).spacegroup_hm)
expected = 8
seen = {"ase": len(atoms), "ase, periodic": bool(atoms.pbc.all()), "operations of the group": len(group.operations())}
recorded = {"ase": 2, "ase, periodic": True, "operations of the group": 192}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
