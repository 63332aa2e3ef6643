#!/bin/sh
# Finding: One monoclinic CIF has a along x in ASE and gemmi, c along z in pymatgen: the two differ by a rotation
# Expected: Reading one file gives one set of Cartesian coordinates.
# Seen: For a = 4, b = 5, c = 6 Å, beta = 110 degrees ASE and gemmi put a at (4, 0, 0); pymatgen puts c at (0, 0, 6)
#   and a at (3.759, 0, -1.368), 20 degrees away.
# Versions: gemmi 0.7.5, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: Forces, stress, elastic and dielectric tensors or a beam direction taken from one library do not belong
#   to the structure of another. Cubic tests do not show it.
# matalign: lattices on pymatgen's axes throughout;
#   tests/data/test_cif.py::test_lattice_vectors_have_the_stated_lengths_and_angles_on_pymatgens_axes.

set -eu
packages="gemmi==0.7.5 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import gemmi
import numpy as np
from ase.geometry import cellpar_to_cell
from pymatgen.core import Lattice

CELL = (4, 5, 6, 90, 110, 90)


def rounded(vector):
    return [float(round(x, 3)) + 0.0 for x in np.asarray(vector)]


expected = "one vector a"
seen = {
    "pymatgen": rounded(Lattice.from_parameters(*CELL).matrix[0]),
    "ase": rounded(cellpar_to_cell(CELL)[0]),
    "gemmi": rounded(np.array(gemmi.UnitCell(*CELL).orth.mat.tolist())[:, 0]),
}
recorded = {"pymatgen": [3.759, 0.0, -1.368], "ase": [4.0, 0.0, 0.0], "gemmi": [4.0, 0.0, 0.0]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
