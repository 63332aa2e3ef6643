#!/bin/sh
# Finding: pymatgen's reduced formula of Li2O2 is Li2O2 and of ozone O2; OPTIMADE and ASE have LiO and O
# Expected: A reduced formula has its counts divided by their greatest divisor, as in OPTIMADE's
#   chemical_formula_reduced and ASE's Formula.reduce: Li2O2 is LiO, O3 is O.
# Seen: pymatgen keeps a list of peroxides (Li2O2, Na2O2, K2O2, H2O2) and of gases: LiO becomes Li2O2, any number of
#   O, N, H, F, Cl atoms becomes O2, N2 and so on, in reduced_composition as well. S8 and P4 reduce to S and P.
# Versions: pymatgen 2026.10.24, pymatgen-core 2026.10.16, ase 3.29.0, numpy 2.4.6
# Matters: A join by reduced formula between a provider and pymatgen loses the peroxides, and holds ozone to be
#   oxygen.
# matalign: formulas are compared as fractions of elements;
#   tests/data/test_cif.py::test_a_formula_is_compared_in_fractions_and_with_its_count.

set -eu
packages="pymatgen==2026.10.24 pymatgen-core==2026.10.16 ase==3.29.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from ase.formula import Formula
from pymatgen.core import Composition

expected = "one reduced formula from both"
seen = {
    formula: [Composition(formula).reduced_formula, Formula(formula).reduce()[0].format("hill")]
    for formula in ("Li2O2", "LiO", "O3", "S8")
}
recorded = {"Li2O2": ["Li2O2", "LiO"], "LiO": ["Li2O2", "LiO"], "O3": ["O2", "O"], "S8": ["S", "S"]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
