#!/bin/sh
# Finding: Pillow turns a WhiteIsZero TIFF over at 8 bits and not at 16 or 32
# Expected: A TIFF that says white is zero is turned over at every depth or at none: the same picture saved with 8
#   and with 16 bits has the same bright spots.
# Seen: Pillow opens 8 bits turned over (0 becomes 255), 16-bit counts and 32-bit floats as stored, though all carry
#   the same tag. tifffile never turns.
# Versions: pillow 13.0.0, tifffile 2026.3.3, numpy 2.4.6
# Matters: Atoms are bright in one file and dark in the next of the same session; a classifier sees vacancies.
# matalign: tests/data/test_micrographs.py::test_white_that_is_zero_is_turned_over, at every depth.

set -eu
packages="pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import numpy as np
import tifffile
from PIL import Image

expected = "the first pixel, stored as 0, is the brighter one everywhere or nowhere"
seen = {}
for dtype in (np.uint8, np.uint16, np.float32):
    tifffile.imwrite("a.tif", np.tile(np.array([0, 200], dtype=dtype), (4, 1)), photometric="miniswhite")
    with Image.open("a.tif") as image:
        first, second = np.asarray(image)[0].tolist()
    seen[np.dtype(dtype).name] = first > second
recorded = {"uint8": True, "uint16": False, "float32": False}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
