#!/bin/sh
# Finding: Pillow leaves the bytes of a compressed big-endian TIFF of floats reversed
# Expected: 1.0 and 100.0 of a 32-bit float TIFF are 1.0 and 100.0 in either byte order, compressed or not.
# Seen: Uncompressed they are. Compressed (LZW, deflate or PackBits) and big-endian they come out as 4.6e-41 and
#   7.2e-41, 16-bit signed numbers as multiples of 256, without a word.
# Versions: pillow 13.0.0, tifffile 2026.3.3, imagecodecs 2026.3.6, numpy 2.4.6
# Matters: ImageJ writes big-endian files. The picture still shows something: contrast is stretched to its range.
# matalign: tests/data/test_micrographs.py::test_lzw_tiffs_hold_their_counts and ::test_tiffs_hold_their_counts, in
#   both orders.

set -eu
packages="pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import numpy as np
import tifffile
from PIL import Image

values = np.tile(np.array([0, 1, 100], dtype=np.float32), (4, 1))
expected = "True in every case"
seen = {}
for order in "<>":
    for compression in (None, "lzw", "zlib", "packbits"):
        tifffile.imwrite("a.tif", values, compression=compression, byteorder=order, photometric="minisblack")
        assert np.array_equal(tifffile.imread("a.tif"), values)
        with Image.open("a.tif") as image:
            seen[f"{order} {compression}"] = bool(np.array_equal(np.asarray(image), values))
recorded = {
    f"{order} {name}": order == "<" or name is None for order in "<>" for name in (None, "lzw", "zlib", "packbits")
}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
