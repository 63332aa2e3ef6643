#!/bin/sh
# Finding: optimade's adapters drop the hydrogens that a species has attached
# Expected: A species with attached H, nattached 3 (a methyl group or ammonia without places of its atoms, declared
#   by site_attachments) has atoms without coordinates: an adapter raises, as it does for partial occupancy.
# Seen: as_pymatgen and as_ase give the bare atom, without a word.
# Versions: optimade 1.5.0, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: Densities, formulas and charges are those of another compound; the provider did tell.
# matalign: tests/data/test_crystals.py::test_a_bad_optimade_record_is_named_with_what_is_wrong_in_it (nattached).

set -eu
packages="optimade==1.5.0 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys
import warnings

from optimade_record import record

warnings.simplefilter("ignore")

group = {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0], "attached": ["H"], "nattached": [3]}
chlorine = {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]}
crystal = record(
    [group, chlorine],
    elements=["Cl", "H", "Na"],
    nelements=3,
    elements_ratios=[0.2, 0.6, 0.2],
    chemical_formula_descriptive="NaH3Cl",
    chemical_formula_reduced="ClH3Na",
    chemical_formula_anonymous="A3BC",
    structure_features=["site_attachments"],
)
expected = "an error, or three hydrogens"
seen = {"pymatgen": crystal.as_pymatgen.composition["H"], "ase": list(crystal.as_ase.symbols).count("H")}
recorded = {"pymatgen": 0, "ase": 0}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
