#!/bin/sh
# Finding: PyTorch Geometric adds numbers of atoms to a property because its name is refractive_index
# Expected: Collating three graphs stacks their properties: three crystals of refractive index 1.5 have 1.5, 1.5,
#   1.5.
# Seen: 1.5, 3.5, 6.5: every attribute with `index` in its name, or named `face`, grows by the number of nodes
#   before it. It is documented for edge lists; a number of float type gets it too.
# Versions: torch 2.13.0, torch-geometric 2.8.1, numpy 2.4.6
# Matters: Refractive index is a target of materials data sets (dielectric); the model learns the order in the batch
#   and evaluation, one graph at a time, does not match.
# matalign: names of tensors are fixed in one class, none of a property with `index`;
#   tests/views/test_graphs.py::test_batches_hold_each_crystals_own_graph_in_the_order_asked_for.

set -eu
packages="torch==2.13.0 torch-geometric==2.8.1 numpy==2.4.6"
. "$(dirname "$0")/shared/install.sh"
venv/bin/python - <<'EOF'
import sys

import torch
from torch_geometric.data import Batch, Data

values = {"refractive_index": torch.tensor([1.5]), "face": torch.tensor([1.5]), "refraction": torch.tensor([1.5])}
batch = Batch.from_data_list([Data(x=torch.zeros(atoms, 1), **values) for atoms in (2, 3, 4)])
expected = [1.5, 1.5, 1.5]
seen = {name: batch[name].tolist() for name in values}
recorded = {"refractive_index": [1.5, 3.5, 6.5], "face": [1.5, 3.5, 6.5], "refraction": [1.5, 1.5, 1.5]}
print("expected:", expected)
print("seen:    ", seen)
sys.exit(None if seen == recorded else f"the behaviour changed; recorded: {recorded}")
EOF
