#!/bin/sh
# Finding: RosettaSciIO calls the scale of an MRC file without one 0 nm, and one of a negative cell -0.2 nm
# Expected: A header whose cell is zero (what writers leave where the pixel size is unknown) means no scale: units
#   are None or missing, as for a TIFF.
# Seen: The axes have a scale of 0.0 and units nm; a cell of -2 Å a pixel gives -0.2 nm. Nothing tells them from
#   calibrated axes.
# Versions: rosettasciio 0.15.0, mrcfile 1.5.4, numpy 2.4.6
# Matters: Division by the pixel size gives infinities, and resampling to it an empty or mirrored image.
# matalign: tests/data/test_micrographs.py::test_a_scale_that_says_nothing_is_asked_for and
#   ::test_an_absurd_scale_is_refused.

set -eu
packages="rosettasciio==0.15.0 mrcfile==1.5.4 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import mrcfile
import numpy as np
from rsciio.mrc import file_reader

expected = "no units where there is no scale"
seen = {}
for name, size in (("none", None), ("negative", -2.0)):
    with mrcfile.new(f"{name}.mrc") as file:
        file.set_data(np.ones((2, 3), dtype=np.float32))
        if size is not None:
            file.voxel_size = size
    axes = file_reader(f"{name}.mrc")[0]["axes"]
    seen[name] = [(round(float(axis["scale"]), 6), axis["units"]) for axis in axes]
recorded = {"none": [(0.0, "nm")] * 2, "negative": [(-0.2, "nm")] * 2}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
