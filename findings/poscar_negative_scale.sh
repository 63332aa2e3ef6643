#!/bin/sh
# Finding: A negative scale of a POSCAR, which is a volume, multiplies coordinates in pymatgen and the whole cell in
#   JARVIS and phonopy
# Expected: VASP takes a negative number on the second line as the cell's volume: the scale of vectors and Cartesian
#   coordinates is the cube root of its ratio to the volume of the vectors. A cube of 2 Å with -64 is one of 4 Å,
#   and an atom at (1, 1, 1) stands in its middle.
# Seen: ASE does so. pymatgen scales the cell, then multiplies Cartesian coordinates by -64. JARVIS and phonopy
#   multiply cell and coordinates by -64, and the cell has 128 Å a side. None of them says a word.
# Versions: pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, jarvis-tools 2026.6.12, phonopy 4.10.0, numpy
#   2.4.6
# Matters: Distances are wrong by orders of magnitude, or, modulo the lattice, merely plausible: -64 turns this atom
#   onto the other.
# matalign: own reader, tests/data/test_crystals.py::test_scales_of_a_poscar_scale_cartesian_coordinates_too.

set -eu
packages="pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 jarvis-tools==2026.6.12 phonopy==4.10.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys
import warnings

import ase.io
from jarvis.io.vasp.inputs import Poscar as JarvisPoscar
from phonopy.interface.vasp import read_vasp
from pymatgen.io.vasp import Poscar

warnings.simplefilter("ignore")
with open("POSCAR", "w") as file:
    file.write("cube\n-64\n2 0 0\n0 2 0\n0 0 2\nCs Cl\n1 1\nCartesian\n0 0 0\n1 1 1\n")


def middle(lattice, fractional):
    """Edge of the cell in Å and the second atom's fractional coordinate, not wrapped."""
    return round(float(lattice[0][0]), 6), round(float(fractional[1][0]), 6)


theirs = ase.io.read("POSCAR", format="vasp")
pymatgen = Poscar.from_file("POSCAR").structure
jarvis = JarvisPoscar.from_file("POSCAR").atoms
phonopy = read_vasp("POSCAR")
expected = (4.0, 0.5)
seen = {
    "ase": middle(theirs.cell, theirs.get_scaled_positions(wrap=False)),
    "pymatgen": middle(pymatgen.lattice.matrix, pymatgen.frac_coords),
    "jarvis": middle(jarvis.lattice_mat, jarvis.frac_coords),
    "phonopy": middle(phonopy.cell, phonopy.scaled_positions),
}
recorded = {"ase": (4.0, 0.5), "pymatgen": (4.0, -16.0), "jarvis": (-128.0, -0.007812), "phonopy": (-128.0, -0.007812)}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
