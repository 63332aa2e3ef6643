#!/bin/sh
# Finding: Pillow opens a TIFF of unsigned 32-bit counts as signed numbers: bright pixels become negative
# Expected: A count of 3,000,000,000 in an unsigned 32-bit TIFF is 3,000,000,000, or the file is refused.
# Seen: Pillow's mode I is signed: -1,294,967,296, compressed or not, without a word. tifffile has the count.
# Versions: pillow 13.0.0, tifffile 2026.3.3, imagecodecs 2026.3.6, numpy 2.4.6
# Matters: Sums of detector frames are unsigned 32-bit; saturated pixels (4,294,967,295) become -1, the darkest of
#   all.
# matalign: tifffile reads every TIFF; tests/data/test_micrographs.py::test_lzw_tiffs_of_32_bits_hold_their_counts.

set -eu
packages="pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import numpy as np
import tifffile
from PIL import Image

counts = np.tile(np.array([0, 1, 3_000_000_000, 4_294_967_295], dtype=np.uint32), (4, 1))
expected = counts[0].tolist()
seen = {}
for compression in (None, "lzw"):
    tifffile.imwrite("a.tif", counts, compression=compression, photometric="minisblack")
    with Image.open("a.tif") as image:
        seen[f"Pillow, {compression}"] = np.asarray(image)[0].tolist()
    seen[f"tifffile, {compression}"] = tifffile.imread("a.tif")[0].tolist()
negative = [0, 1, -1_294_967_296, -1]
recorded = {"Pillow, None": negative, "tifffile, None": expected, "Pillow, lzw": negative, "tifffile, lzw": expected}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
