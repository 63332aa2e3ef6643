"""Periodic neighbour lists within 6 Å, against pymatgen's two.

All sides use one thread, but for one that says so (pymatgen has no more), and start from structures in memory, pymatgen
from its own objects. `GraphStore.build` also sorts the pairs by distance and picks those within each atom's cutoff;
vesin, which it calls, finds the pairs alone.
"""

import numpy as np
from benchmarks.comparison import Settings, alternate, rates
from pymatgen.core import Structure
from vesin import NeighborList

from matalign import paths
from matalign.data import dataset
from matalign.views.graphs import GraphStore

CRYSTALS, REPEATS = 1024, 5
CUTOFF_A = 6.0


def measure(settings: Settings) -> dict:
    """Structures a second."""
    everything = dataset.read(paths.curated(settings.profile)).structures
    chosen = np.random.default_rng(0).permutation(len(everything))[:CRYSTALS]
    structures = everything.take(chosen)
    theirs = [Structure(x[2], x[0], x[1]) for x in structures]
    vesin = NeighborList(cutoff=CUTOFF_A, full_list=True, n_threads=1)

    def pairs():
        return sum(len(vesin.compute(x @ lattice, lattice, True, "ijDd")[0]) for _, x, lattice in structures)

    peers = {
        "pymatgen get_neighbor_list": lambda: sum(len(s.get_neighbor_list(CUTOFF_A)[0]) for s in theirs),
        "pymatgen get_all_neighbors": lambda: sum(len(n) for s in theirs for n in s.get_all_neighbors(CUTOFF_A)),
    }
    found = {name: side() for name, side in {"vesin": pairs, **peers}.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"pairs within {CUTOFF_A} Å differ: {found}")

    def build(workers):
        return lambda: GraphStore.build(structures, cutoff_A=CUTOFF_A, neighbours=16, workers=workers)

    ours = {"GraphStore.build": build(1), "GraphStore.build, two threads": build(2), "vesin alone": pairs}
    seconds = alternate(ours | peers, repeats=REPEATS, desc="neighbours")
    what = f"neighbour lists, {CUTOFF_A:g} Å"
    comparisons = [
        row
        for name in ours
        for row in rates(what, "structures/s", len(theirs), {s: seconds[s] for s in (name, *peers)}, name)
    ]
    return {"crystals": len(theirs), "pairs": found["vesin"], "comparisons": comparisons}
