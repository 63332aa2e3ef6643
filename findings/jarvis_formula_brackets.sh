#!/bin/sh
# Finding: JARVIS forgets the brackets of a formula: Fe2(SO4)3 has one sulfur
# Expected: Composition.from_string reads Fe2(SO4)3 as 2 Fe, 3 S, 12 O, or refuses it.
# Seen: It gives 2 Fe, 1 S, 4 O: brackets and what follows them are passed over without a word. Ca(OH)2 is CaOH,
#   (NH4)2SO4 has four hydrogens.
# Versions: jarvis-tools 2026.6.12, numpy 2.4.6
# Matters: Descriptors of composition, masses and reduced formulas of every salt with a repeated anion are those of
#   another compound.
# matalign: JARVIS reads no formula here; own grammar,
#   tests/data/test_formulas.py::test_a_group_is_its_atoms_and_an_element_its_own.

set -eu
packages="jarvis-tools==2026.6.12 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

from jarvis.core.composition import Composition

expected = {"Fe2(SO4)3": {"Fe": 2, "S": 3, "O": 12}, "Ca(OH)2": {"Ca": 1, "O": 2, "H": 2}}
seen = {formula: dict(sorted(Composition.from_string(formula).to_dict().items())) for formula in expected}
recorded = {"Fe2(SO4)3": {"Fe": 2, "O": 4, "S": 1}, "Ca(OH)2": {"Ca": 1, "H": 1, "O": 1}}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
