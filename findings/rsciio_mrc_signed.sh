#!/bin/sh
# Finding: RosettaSciIO reads the signed bytes of an MRC file as unsigned: -1 is the brightest pixel
# Expected: Mode 0 of the format of 2014 is signed 8-bit; -1 written by mrcfile is read as -1.
# Seen: RosettaSciIO gives 255, without a word. (Older software wrote unsigned bytes under mode 0; a flag of IMOD in
#   the header tells them apart and is not looked at.)
# Versions: rosettasciio 0.15.0, mrcfile 1.5.4, numpy 2.4.6
# Matters: Images after background subtraction have negative pixels: the darkest become the brightest.
# matalign: tests/data/test_micrographs.py::test_imods_flag_tells_whether_bytes_of_an_mrc_are_signed.

set -eu
packages="rosettasciio==0.15.0 mrcfile==1.5.4 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import mrcfile
import numpy as np
from rsciio.mrc import file_reader

with mrcfile.new("a.mrc") as file:
    file.set_data(np.array([[-128, -1], [1, 127]], dtype=np.int8))
    file.voxel_size = 2.0
expected = [-128, -1, 1, 127]
with mrcfile.open("a.mrc") as file:
    seen = {"mrcfile": file.data.ravel().tolist()}
seen["rsciio"] = np.asarray(file_reader("a.mrc")[0]["data"]).ravel().tolist()
recorded = {"mrcfile": expected, "rsciio": [128, 255, 1, 127]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
