#!/bin/sh
# Finding: mlcroissant reads the formula NaN, of sodium and nitrogen, from a column of text as missing
# Expected: A field declared sc:Text holds text: NaN, NaCl.
# Seen: None and b'NaCl': the table is read by pandas with its list of words for missing values before the declared
#   type is looked at, and no field can switch that off.
# Versions: mlcroissant 1.1.1, pandas 3.1.1, numpy 2.4.6
# Matters: Databases of computed crystals hold compounds of one sodium and one nitrogen; they lose their name
#   without an error.
# matalign: tables are Parquet, which has no such words;
#   tests/data/test_croissant.py::test_the_library_accepts_it_and_reads_the_tables.

set -eu
packages="mlcroissant==1.1.1 pandas==3.1.1 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import hashlib
import json
import logging
import sys

import mlcroissant as mlc

logging.disable()
content = b"formula,gap_eV\nNaN,0.0\nNaCl,5.0\n"
with open("materials.csv", "wb") as file:
    file.write(content)
source = mlc.Source(file_object="materials.csv", extract=mlc.Extract(column="formula"))
field = mlc.Field(id="crystals/formula", name="formula", data_types=mlc.DataType.TEXT, source=source)
table = mlc.FileObject(
    id="materials.csv",
    name="materials.csv",
    content_url="materials.csv",
    encoding_formats=["text/csv"],
    sha256=hashlib.sha256(content).hexdigest(),
)
metadata = mlc.Metadata(
    name="two-crystals",
    description="Two crystals",
    license="CC0-1.0",
    url="https://example.org/two-crystals",
    distribution=[table],
    record_sets=[mlc.RecordSet(id="crystals", name="crystals", fields=[field])],
)
with open("croissant.json", "w") as file:
    json.dump(metadata.to_json(), file, default=str)
expected = ["NaN", "NaCl"]
seen = [record["crystals/formula"] for record in mlc.Dataset("croissant.json").records("crystals")]
recorded = [None, b"NaCl"]
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
