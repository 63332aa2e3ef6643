#!/bin/sh
# Finding: RosettaSciIO keeps the number of an ImageJ TIFF's pixel size and drops its unit, unless that is `micron`
# Expected: A pixel of 0.2 nm is 0.2 nm, as a pixel of 0.2 micron is 0.2 µm.
# Seen: Both have scale 0.2; the unit is µm for micron and None for nm, um, A, pm and every other spelling.
# Versions: rosettasciio 0.15.0, tifffile 2026.3.3, numpy 2.4.6
# Matters: Electron micrographs are in nm. Software that takes a bare number for pixels, or for its own unit, is off
#   by orders of magnitude.
# matalign: tests/data/test_micrographs.py::test_a_tiffs_scale_is_that_of_its_software.

set -eu
packages="rosettasciio==0.15.0 tifffile==2026.3.3 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import numpy as np
import tifffile
from rsciio.tiff import file_reader

image = np.arange(6, dtype=np.uint16).reshape(2, 3)
expected = {"micron": (0.2, "µm"), "um": (0.2, "µm"), "nm": (0.2, "nm"), "pm": (0.2, "pm")}
seen = {}
for unit in expected:
    tifffile.imwrite("a.tif", image, imagej=True, resolution=(5, 5), metadata={"unit": unit})
    axis = file_reader("a.tif")[0]["axes"][1]
    seen[unit] = (round(float(axis["scale"]), 6), axis["units"])
recorded = {"micron": (0.2, "µm"), "um": (0.2, None), "nm": (0.2, None), "pm": (0.2, None)}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
