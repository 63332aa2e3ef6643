#!/bin/sh
# Finding: Neighbours exactly at the cutoff are in pymatgen's list and in none of ASE, matscipy and vesin
# Expected: One crystal and one cutoff give one graph, whichever library finds the neighbours.
# Seen: CsCl of 4 Å with a cutoff of 4 Å has 28 directed pairs in pymatgen (8 unlike neighbours and 6 like ones an
#   atom) and 16 in the others: their comparison is strict.
# Versions: pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, matscipy 1.3.1, vesin 0.6.2, numpy 2.4.6
# Matters: Cutoffs are round numbers and so are lattice parameters of prototypes. A model trained on graphs of one
#   library and used with another sees other coordination numbers.
# matalign: one finder only, and an envelope that is zero at the cutoff;
#   tests/views/test_graphs.py::test_rounding_breaks_no_shell.

set -eu
packages="pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 matscipy==1.3.1 vesin==0.6.2 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import matscipy.neighbours
from ase.neighborlist import neighbor_list
from pymatgen.core import Lattice, Structure
from vesin import NeighborList

EDGE = CUTOFF = 4.0  # Å
crystal = Structure(Lattice.cubic(EDGE), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
atoms = crystal.to_ase_atoms()
vesin = NeighborList(cutoff=CUTOFF, full_list=True)
expected = "one number of pairs"
seen = {
    "pymatgen": len(crystal.get_neighbor_list(CUTOFF)[0]),
    "ase": len(neighbor_list("i", atoms, CUTOFF)),
    "matscipy": len(matscipy.neighbours.neighbour_list("i", atoms, CUTOFF)),
    "vesin": len(vesin.compute(points=atoms.positions, box=atoms.cell[:], periodic=True, quantities="i")[0]),
}
recorded = {"pymatgen": 28, "ase": 16, "matscipy": 16, "vesin": 16}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
