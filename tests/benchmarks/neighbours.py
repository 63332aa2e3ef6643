"""Periodic neighbour lists within 6 Å of small crystals, side by side, in processor time of one thread.

All sides start from arrays in memory, but for pymatgen's `get_neighbor_list`, which starts from its own objects. Ours
gives the graphs that training takes: of each atom the neighbours within its own cutoff, sorted, with their vectors.
The others give all pairs within 6 Å: vesin and matscipy-neighbours with vectors and distances, pymatgen's with images
and distances, ALCHEMI (batched, on Warp) and torch-sim (batched) with images alone. "Vesin and a sort" is how ours was
made until it searched many crystals at a time. Peers that are not installed are left out; `peers` says which were.
"""

import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.comparison import Settings, alternate, rates
from pymatgen.core import Structure
from pymatgen.optimization.neighbors import find_points_in_spheres
from vesin import NeighborList

from matalign import paths
from matalign.data import dataset
from matalign.data.structures import Structures
from matalign.views.neighbours import TIE, neighbour_lists

CRYSTALS, REPEATS = 512, 7
CUTOFF_A, NEIGHBOURS = 6.0, 16
IMAGES = 64  # crystals that torch-sim takes at once, for its memory
OPTIONAL = {"matscipy-neighbours": "matscipy_neighbours", "ALCHEMI": "nvalchemiops", "torch-sim": "torch_sim"}


def measure(settings: Settings) -> dict:
    """Structures a second."""
    torch.set_num_threads(1)
    everything = dataset.read(paths.curated(settings.profile)).structures
    structures = everything.take(np.random.default_rng(0).permutation(len(everything))[:CRYSTALS])
    peers = sides(structures)
    found = {name: side() for name, side in peers.items()}
    if len(set(found.values())) > 1:
        raise ValueError(f"pairs within {CUTOFF_A} Å differ: {found}")
    ours = "GraphStore's neighbour_lists"
    before = "vesin and a sort (before)"
    same(neighbour_lists(structures, cutoff_A=CUTOFF_A, neighbours=NEIGHBOURS), sorted_pairs(structures))
    every = {ours: lambda: neighbour_lists(structures, cutoff_A=CUTOFF_A, neighbours=NEIGHBOURS)}
    every |= {before: lambda: sorted_pairs(structures), **peers}
    seconds = alternate(every, repeats=REPEATS, desc="neighbours", clock=time.process_time)
    what = f"neighbour lists, {CUTOFF_A:g} Å"
    comparisons = rates(what, "structures/processor s", CRYSTALS, seconds, ours)
    return {"crystals": CRYSTALS, "pairs": found["vesin"], "peers": list(peers), "comparisons": comparisons}


def sides(structures: Structures) -> dict[str, Callable[[], int]]:
    """Each peer, which gives the number of pairs it has found."""
    crystals = [(np.ascontiguousarray(x @ lattice), np.ascontiguousarray(lattice)) for _, x, lattice in structures]
    theirs = [Structure(lattice, numbers, x) for numbers, x, lattice in structures]
    search, periodic = NeighborList(cutoff=CUTOFF_A, full_list=True, n_threads=1), np.ones(3, np.int64)

    def spheres(x, lattice):
        return len(find_points_in_spheres(x, x, CUTOFF_A, periodic, lattice, 1e-8)[0]) - len(x)

    out = {
        "pymatgen find_points_in_spheres": lambda: sum(spheres(*crystal) for crystal in crystals),
        "pymatgen get_neighbor_list": lambda: sum(len(s.get_neighbor_list(CUTOFF_A)[0]) for s in theirs),
        "vesin": lambda: sum(len(search.compute(*crystal, True, "ijDd", copy=False)[0]) for crystal in crystals),
    }
    optional = {"matscipy-neighbours": matscipy, "ALCHEMI": alchemi, "torch-sim": torch_sim}
    for name, module in OPTIONAL.items():
        if importlib.util.find_spec(module):
            out[name] = optional[name](structures, crystals)
    return out


def matscipy(structures: Structures, crystals: list) -> Callable[[], int]:
    """One crystal after the other."""
    from matscipy_neighbours import neighbour_list

    return lambda: sum(
        len(neighbour_list("ijDd", positions=x, cell=lattice, pbc=True, cutoff=CUTOFF_A)[0]) for x, lattice in crystals
    )


def batched(structures: Structures, crystals: list) -> tuple[torch.Tensor, ...]:
    """Positions within their cells, cells, periodicity and crystal of each atom."""
    inside = [(x % 1.0) @ lattice for _, x, lattice in structures]
    count = torch.from_numpy(np.diff(structures.ptr))
    of = torch.repeat_interleave(torch.arange(len(count)), count)
    cells = torch.from_numpy(structures.lattice.copy())
    return torch.from_numpy(np.concatenate(inside)), cells, torch.ones(len(count), 3, dtype=torch.bool), of


def alchemi(structures: Structures, crystals: list) -> Callable[[], int]:
    """All crystals at once; the method that was the faster of its two here."""
    from nvalchemiops.torch.neighbors import neighbor_list

    x, cells, periodic, of = batched(structures, crystals)
    given = {"cell": cells, "pbc": periodic, "batch_idx": of.int(), "batch_ptr": torch.from_numpy(structures.ptr).int()}
    given |= {"method": "batch_cell_list", "max_neighbors": 320}
    return lambda: int(neighbor_list(x, CUTOFF_A, **given)[1].sum())


def torch_sim(structures: Structures, crystals: list) -> Callable[[], int]:
    """Some crystals at a time."""
    from torch_sim.neighbors import torch_nl_linked_cell

    x, cells, periodic, of = batched(structures, crystals)

    def pairs():
        total = 0
        for start in range(0, len(cells), IMAGES):
            atoms = slice(int(structures.ptr[start]), int(structures.ptr[min(start + IMAGES, len(cells))]))
            part = slice(start, start + IMAGES)
            given = x[atoms], cells[part].reshape(-1, 3), periodic[part], of[atoms] - start
            total += torch_nl_linked_cell(CUTOFF_A, *given)[0].shape[1]
        return total

    return pairs


def sorted_pairs(structures: Structures) -> tuple[np.ndarray, ...]:
    """The graph as it was made before: all pairs of all crystals sorted by centre and distance, then picked."""
    search, edges, first = NeighborList(cutoff=CUTOFF_A, full_list=True, n_threads=1), [], 0
    for numbers, frac_coords, lattice in structures:
        i, j, vec, d = search.compute(frac_coords @ lattice, lattice, True, "ijDd")
        edges.append((i.astype(np.int64) + first, j.astype(np.int32), vec, d))
        first += len(numbers)
    centre, neighbour, vec, d = (np.concatenate(column) for column in zip(*edges))
    order = np.lexsort((d, centre))
    centre, neighbour, vec, d = centre[order], neighbour[order], vec[order], d[order]
    count = np.bincount(centre, minlength=first)
    crowded = np.flatnonzero(count > NEIGHBOURS)
    radius = np.full(first, CUTOFF_A)
    radius[crowded] = d[(np.cumsum(count) - count)[crowded] + NEIGHBOURS]
    inside = d < radius[centre] * (1 - TIE)
    return neighbour[inside], np.bincount(centre[inside], minlength=first), vec[inside], radius


def same(ours: tuple[np.ndarray, ...], before: tuple[np.ndarray, ...]) -> None:
    """Raise ValueError unless both graphs have the same edges in the same order, bit for bit."""
    if not all(np.array_equal(a, b) for a, b in zip(ours, before, strict=True)):
        raise ValueError("the graphs differ from those of before")
