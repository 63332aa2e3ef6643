"""Neighbour lists of periodic crystals: exact for cells smaller than the cutoff and of any skew.

An atom needs few of the pairs within the cutoff, those out to its 17th neighbour: so crystals are searched as far as
their density makes likely at first, and to the cutoff if that was too near. Of each atom the nearest images are kept
in order while they are found; those at equal distance are in the order of vesin's cells. Numba compiles the search of
many crystals, once: its machine code is kept beside this file, or in the user's cache folder.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int

from matalign.data.structures import Structures

TIE = 1e-4  # relative; neighbours as far as the first one outside, but for rounding, are outside too
REACH = 1.85  # of the first search, in cube roots of the volume of an atom: enough for 95 % of crystals
FEW = 16  # crystals, of no more than 8 times as many atoms each: Python has searched them before Numba is ready
PLACES = np.array([1 << 48, 1 << 32, 1 << 16], float)  # of an image's bins in its number


class Graph(NamedTuple):
    """Neighbour lists of one or several crystals, edges sorted by centre, then by distance."""

    neighbour: Int[np.ndarray, " edges"]  # index of u within its crystal
    edges_of: Int[np.ndarray, " atoms"]  # number of neighbours of each atom
    edge_vec: Float[np.ndarray, "edges 3"]  # v -> image of u, angstrom
    edge_cutoff: Float[np.ndarray, " atoms"]  # r_c(v), angstrom


class Nearest(NamedTuple):
    """The k + 1 nearest images of each atom, sorted by distance, then by number."""

    distance: Float[np.ndarray, "atoms k_plus_1"]  # angstrom; infinite where there are fewer
    vec: Float[np.ndarray, "atoms k_plus_1 3"]  # angstrom
    neighbour: Int[np.ndarray, "atoms k_plus_1"]  # index of u within its crystal
    number: Int[np.ndarray, "atoms k_plus_1"]  # that orders images as vesin's bins of the cutoff's size do


def neighbour_lists(structures: Structures, *, cutoff_A: float, neighbours: int) -> Graph:
    """Neighbour graphs of crystals.

    Args:
        cutoff_A: no neighbour beyond, angstrom.
        neighbours: the cutoff of an atom is the distance of its next one after these.

    Returns:
        The graph, float64; an atom without a neighbour has no edge and the cutoff `cutoff_A`. What is found of a
        crystal does not depend on the others, nor on whether a pair exactly at the cutoff counts as within it.

    Raises:
        ValueError: a value that is not finite, or a lattice without volume.
    """
    _check(structures)
    sizes = np.diff(structures.ptr)
    crystal = np.repeat(np.arange(len(structures)), sizes)
    reach = np.minimum(REACH * np.cbrt(np.abs(np.linalg.det(structures.lattice)) / sizes), cutoff_A)
    fill = _fill if len(sizes) <= FEW and (sizes <= 8 * FEW).all() else compiled()
    found = _search(structures, reach, cutoff_A, neighbours, fill)
    if (short := (found.distance[:, -1] > reach[crystal] * (1 - 1e-9)) & (reach < cutoff_A)[crystal]).any():
        rows = np.unique(crystal[short])
        again = _search(structures.take(rows), np.full(len(rows), cutoff_A), cutoff_A, neighbours, fill)
        for kept, new in zip(found, again):
            kept[np.isin(crystal, rows)] = new
    radius = np.minimum(found.distance[:, -1], cutoff_A)
    inside = found.distance < (radius * (1 - TIE))[:, None]
    return Graph(found.neighbour[inside], inside.sum(1), found.vec[inside], radius)


def _check(structures: Structures) -> None:
    frac_coords, lattice = structures.frac_coords, structures.lattice
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        raise ValueError(f"coordinates and lattice must be finite, got {frac_coords.tolist()}, {lattice.tolist()}")
    if (flat := np.abs(np.linalg.det(lattice)) < 1e-3).any():
        raise ValueError(f"lattice without volume: {lattice[flat][0].tolist()}")


def _search(
    structures: Structures, reach: np.ndarray, cutoff_A: float, neighbours: int, fill: Callable[..., None]
) -> Nearest:
    """The nearest images of each atom within the reach of its crystal, angstrom."""
    ptr, x, lattice = structures.ptr, structures.frac_coords, structures.lattice
    sizes = np.diff(ptr)
    faces = np.stack([np.cross(lattice[:, (k + 1) % 3], lattice[:, (k + 2) % 3]) for k in range(3)], 2)
    inverse = faces / sum(lattice[:, 0, k] * faces[:, k, 0] for k in range(3))[:, None, None]
    height = 1 / np.linalg.norm(inverse, axis=1)  # between planes of the lattice
    bins = np.maximum(np.trunc(height / cutoff_A), 1)
    cartesian = np.concatenate([x[a:b] @ cell for a, b, cell in zip(ptr, ptr[1:], lattice)] or [x])
    of_atom = np.repeat(inverse, sizes, axis=0)
    scaled = sum(cartesian[:, k, None] * of_atom[:, k] for k in range(3)) * np.repeat(bins, sizes, axis=0)
    own = (np.floor(scaled) * PLACES).sum(1).astype(np.int64) + np.arange(len(x)) - np.repeat(ptr[:-1], sizes)
    shape = len(x), neighbours + 1
    found = Nearest(np.full(shape, np.inf), np.zeros((*shape, 3)), np.zeros(shape, np.int32), np.zeros(shape, np.int64))
    span, steps = reach[:, None] / height + 1e-6, (bins * PLACES).astype(np.int64)
    fill(ptr, x, cartesian, lattice, reach, span, own, steps, *found)
    return found


@cache
def compiled() -> Callable[..., None]:
    """`_fill` by Numba, outside the interpreter's lock; kept for other processes where a folder can be written."""
    from numba import njit  # here: its import, and what follows, takes two seconds

    try:
        return njit(cache=True, nogil=True)(_fill)
    except RuntimeError:  # neither beside this file, nor in the user's cache folder
        return njit(nogil=True)(_fill)


@no_type_check
def _fill(ptr, x, cartesian, lattice, reach, span, own, steps, distance, vec, neighbour, number):
    """Compare each atom v with the images within reach of each atom u of its crystal."""
    last = distance.shape[1] - 1
    for c in range(len(reach)):
        cell, step, first = lattice[c], steps[c], ptr[c]
        for v in range(first, ptr[c + 1]):
            count, furthest = 0, reach[c] ** 2 * (1 + 1e-9)
            for u in range(first, ptr[c + 1]):
                d0 = cartesian[u, 0] - cartesian[v, 0]
                d1 = cartesian[u, 1] - cartesian[v, 1]
                d2 = cartesian[u, 2] - cartesian[v, 2]
                s0, s1, s2 = x[v, 0] - x[u, 0], x[v, 1] - x[u, 1], x[v, 2] - x[u, 2]
                for i in range(math.ceil(s0 - span[c, 0]), math.floor(s0 + span[c, 0]) + 1):
                    for j in range(math.ceil(s1 - span[c, 1]), math.floor(s1 + span[c, 1]) + 1):
                        for k in range(math.ceil(s2 - span[c, 2]), math.floor(s2 + span[c, 2]) + 1):
                            v0 = d0 + (i * cell[0, 0] + j * cell[1, 0] + k * cell[2, 0])
                            v1 = d1 + (i * cell[0, 1] + j * cell[1, 1] + k * cell[2, 1])
                            v2 = d2 + (i * cell[0, 2] + j * cell[1, 2] + k * cell[2, 2])
                            square = v0 * v0 + v1 * v1 + v2 * v2
                            if square > furthest or (u == v and i == 0 and j == 0 and k == 0):
                                continue
                            d, n = math.sqrt(square), own[u] + i * step[0] + j * step[1] + k * step[2]
                            if count > last and (d, n) >= (distance[v, last], number[v, last]):
                                continue
                            place = min(count, last)
                            while place and (d, n) < (distance[v, place - 1], number[v, place - 1]):
                                distance[v, place], number[v, place] = distance[v, place - 1], number[v, place - 1]
                                neighbour[v, place] = neighbour[v, place - 1]
                                for axis in range(3):
                                    vec[v, place, axis] = vec[v, place - 1, axis]
                                place -= 1
                            distance[v, place], number[v, place], neighbour[v, place] = d, n, u - first
                            vec[v, place, 0], vec[v, place, 1], vec[v, place, 2] = v0, v1, v2
                            count += 1
                            if count > last:
                                furthest = distance[v, last] ** 2 * (1 + 1e-12)
