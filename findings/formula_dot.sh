#!/bin/sh
# Finding: The dot of a hydrate is a decimal point in pymatgen, periodictable and chemparse; a decimal point is a
#   hydrate's dot in molmass
# Expected: CuSO4.5H2O is copper sulfate with five waters: nine oxygens and ten hydrogens.
# Seen: pymatgen, periodictable and chemparse read SO4.5 and one water: 5.5 oxygens and 2 hydrogens, without a word.
#   molmass reads five waters, and for that refuses LiNi0.8Co0.1Mn0.1O2, which the others read.
# Versions: pymatgen 2026.10.24, pymatgen-core 2026.10.16, periodictable 2.1.0, chemparse 0.3.2, molmass 2026.1.8,
#   numpy 2.4.6, pandas 3.1.1
# Matters: Recipes of the literature are full of both. The molar mass of blue vitriol comes out a quarter too low.
# matalign: both are read as meant; tests/data/test_formulas.py::test_a_blank_before_water_is_the_dot_of_a_hydrate.

set -eu
packages="pymatgen==2026.10.24 pymatgen-core==2026.10.16 periodictable==2.1.0 chemparse==0.3.2 molmass==2026.1.8 numpy==2.4.6 pandas==3.1.1"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import chemparse
import molmass
import periodictable
from pymatgen.core import Composition


def by_pymatgen(formula):
    return Composition(formula).get_el_amt_dict()


def by_periodictable(formula):
    return {str(element): count for element, count in periodictable.formula(formula).atoms.items()}


def by_molmass(formula):
    try:
        return {item.symbol: item.count for item in molmass.Formula(formula).composition().values()}
    except molmass.FormulaError:
        return {}


readers = {
    "pymatgen": by_pymatgen,
    "periodictable": by_periodictable,
    "chemparse": chemparse.parse_formula,
    "molmass": by_molmass,
}
expected = "O 9, H 10 in the hydrate; Ni 0.8 in the oxide"
seen = {}
for name, read in readers.items():
    hydrate, oxide = read("CuSO4.5H2O"), read("LiNi0.8Co0.1Mn0.1O2")
    seen[name] = [hydrate.get("O"), hydrate.get("H"), oxide.get("Ni")]
recorded = {
    "pymatgen": [5.5, 2, 0.8],
    "periodictable": [5.5, 2, 0.8],
    "chemparse": [5.5, 2, 0.8],
    "molmass": [9, 10, None],
}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
