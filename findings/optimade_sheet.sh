#!/bin/sh
# Finding: A sheet whose third vector is null is a molecule in optimade's pymatgen adapter and has coordinates NaN
#   in ASE and JARVIS
# Expected: The specification allows null for the vector of a direction that is not periodic. A sheet of 4 Å stays a
#   sheet: periodic in two directions, or the adapter raises.
# Seen: as_pymatgen answers a Molecule, without any lattice. as_ase has a cell whose third vector is NaN; as_jarvis
#   fractional coordinates that are all NaN. None warns or raises.
# Versions: optimade 1.5.0, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, jarvis-tools 2026.6.12, numpy
#   2.4.6
# Matters: Two-dimensional materials are a large part of some providers; a neighbour list of the molecule lacks
#   every bond across the border of the cell.
# matalign: tests/data/test_crystals.py::test_a_bad_optimade_record_is_named_with_what_is_wrong_in_it (no lattice).

set -eu
packages="optimade==1.5.0 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 jarvis-tools==2026.6.12 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys
import warnings

import numpy as np
from optimade_record import record

warnings.simplefilter("ignore")

kinds = [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in ("Na", "Cl")]
crystal = record(
    kinds,
    dimension_types=[1, 1, 0],
    nperiodic_dimensions=2,
    lattice_vectors=[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [None, None, None]],
)
expected = "two lattice vectors and finite coordinates, or an error"
seen = {
    "pymatgen": type(crystal.as_pymatgen).__name__,
    "ase, cell": np.isfinite(crystal.as_ase.cell[:]).all(axis=1).tolist(),
    "jarvis, coordinates": np.isfinite(np.asarray(crystal.as_jarvis.frac_coords, dtype=float)).any().item(),
}
recorded = {"pymatgen": "Molecule", "ase, cell": [True, True, False], "jarvis, coordinates": False}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
