"""matalign: crystal structures, synthesis protocols and micrographs in one space."""

import os

# Threads that wait for one another sleep instead of spinning: beside any other busy process a step on two cores is
# otherwise ten times slower. OpenMP reads this when torch is loaded, so it stands before all other imports.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
