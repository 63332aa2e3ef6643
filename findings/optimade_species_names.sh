#!/bin/sh
# Finding: optimade's adapter for JARVIS takes the name of a species for its element: site B becomes boron
# Expected: The specification lets a provider call its species anything; the element stands in chemical_symbols. A
#   species named B with the symbol Na is sodium.
# Seen: as_pymatgen and as_ase give Na and Cl. as_jarvis gives the names, without a word: B, and for a name that is
#   no element (Na_corner) a crystal of an element that is none.
# Versions: optimade 1.5.0, pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, jarvis-tools 2026.6.12, numpy
#   2.4.6
# Matters: A provider may well name sites A, B, O (perovskites) or Fe1, Fe2 (magnetic order).
# matalign: records are read by chemical_symbols (src/matalign/data/readers/records.py).

set -eu
packages="optimade==1.5.0 pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 jarvis-tools==2026.6.12 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys
import warnings

from optimade_record import record

warnings.simplefilter("ignore")

chlorine = {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]}
expected = ["Na", "Cl"]
seen = {}
for name in ("B", "Na_corner"):
    crystal = record([{"name": name, "chemical_symbols": ["Na"], "concentration": [1.0]}, chlorine])
    seen[name] = {
        "pymatgen": [str(site.specie) for site in crystal.as_pymatgen],
        "ase": list(crystal.as_ase.symbols),
        "jarvis": list(crystal.as_jarvis.elements),
    }
recorded = {name: {"pymatgen": expected, "ase": expected, "jarvis": [name, "Cl"]} for name in ("B", "Na_corner")}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
