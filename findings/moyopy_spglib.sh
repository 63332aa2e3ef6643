#!/bin/sh
# Finding: At one tolerance moyopy calls a polar perovskite cubic and spglib calls it polar
# Expected: Both take symprec in Å of displacement: the same crystal and 0.1 Å give the same group.
# Seen: Titanium 0.08 Å from its centre in a cube of 3.9 Å: spglib finds P4mm (99) and moyopy Pm-3m (221). Below
#   (0.04 Å) and above (0.12 Å) they agree on 221 and 99.
# Versions: moyopy 0.21.0, spglib 2.8.0, numpy 2.4.6
# Matters: 0.1 Å is the usual tolerance for computed structures. Polar or not decides whether a ferroelectric is
#   found in a screening.
# matalign: moyo's group is taken only where every atom lies within a tenth of the tolerance, else spglib's;
#   tests/data/test_sources.py::test_the_space_group_near_the_tolerance_is_spglibs.

set -eu
packages="moyopy==0.21.0 spglib==2.8.0 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import moyopy
import spglib

EDGE, SYMPREC = 3.9, 0.1  # Å
lattice = [[EDGE, 0, 0], [0, EDGE, 0], [0, 0, EDGE]]
numbers = [56, 22, 8, 8, 8]
expected = "one number for each shift"
seen = {}
for shift in (0.01, 0.02, 0.03):  # of titanium along c; half of it for oxygen
    oxygens = [[0.5, 0.5, shift / 2], [0.5, 0, 0.5 + shift / 2], [0, 0.5, 0.5 + shift / 2]]
    sites = [[0, 0, 0], [0.5, 0.5, 0.5 + shift], *oxygens]
    old = spglib.get_symmetry_dataset((lattice, sites, numbers), symprec=SYMPREC).number
    new = moyopy.MoyoDataset(moyopy.Cell(basis=lattice, positions=sites, numbers=numbers), symprec=SYMPREC).number
    seen[shift] = (old, new)
recorded = {0.01: (221, 221), 0.02: (99, 221), 0.03: (99, 99)}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
