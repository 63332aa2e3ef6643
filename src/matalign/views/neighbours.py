"""Neighbour lists of periodic crystals, many at a time: exact for cells smaller than the cutoff and of any skew.

An atom needs few of the pairs within the cutoff, those out to its 17th neighbour: so crystals are searched as far as
their density makes likely at first, and to the cutoff if that was too near. Crystals with as many atoms and as many
images in reach are searched together: products of matrices in single precision find pairs, then their vectors are
computed. Large crystals go to vesin, one by one. The order of neighbours at equal distance is vesin's either way.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from vesin import NeighborList

from matalign.data.structures import Structures

TIE = 1e-4  # relative; neighbours as far as the first one outside, but for rounding, are outside too
REACH = 1.85  # of the first search, in cube roots of the volume of an atom: enough for 95 % of crystals
AT_ONCE = 1 << 18  # pairs of atoms and images that are compared at once; a crystal with more is left to vesin
PLACES = np.array([1 << 48, 1 << 32, 1 << 16], float)[:, None, None]  # of an image's bins in its number


class Graph(NamedTuple):
    """Neighbour lists of one or several crystals, edges sorted by centre, then by distance."""

    neighbour: Int[np.ndarray, " edges"]  # index of u within its crystal
    edges_of: Int[np.ndarray, " atoms"]  # number of neighbours of each atom
    edge_vec: Float[np.ndarray, "edges 3"]  # v -> image of u, angstrom
    edge_cutoff: Float[np.ndarray, " atoms"]  # r_c(v), angstrom


class Pairs(NamedTuple):
    """Pairs of atoms within reach, each in both directions."""

    centre: Int[np.ndarray, " pairs"]  # of all atoms
    neighbour: Int[np.ndarray, " pairs"]  # likewise
    vec: Float[np.ndarray, "4 pairs"]  # x, y, z and distance, angstrom
    number: Int[np.ndarray, " pairs"]  # that orders the images of a crystal as vesin's bins of the cutoff's size do


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
    likely = REACH * np.cbrt(np.abs(np.linalg.det(structures.lattice)) / sizes)
    pairs, reach = _search(structures, np.minimum(likely, cutoff_A), cutoff_A)
    chosen, edges_of, radius = choose(pairs, len(crystal), cutoff_A=cutoff_A, neighbours=neighbours)
    neighbour, vec = pairs.neighbour, pairs.vec
    if (short := (radius > reach[crystal] * (1 - 1e-9)) & (reach < cutoff_A)[crystal]).any():
        rows = np.unique(crystal[short])
        again = structures.take(rows)
        pairs, _ = _search(again, np.full(len(rows), cutoff_A), cutoff_A)
        atoms = np.flatnonzero(np.isin(crystal, rows))
        more, edges_of[atoms], radius[atoms] = choose(pairs, len(atoms), cutoff_A=cutoff_A, neighbours=neighbours)
        chosen[atoms] = more + len(neighbour)
        neighbour, vec = np.concatenate([neighbour, atoms[pairs.neighbour]]), np.concatenate([vec, pairs.vec], 1)
    edges = chosen[np.arange(neighbours) < edges_of[:, None]]
    neighbour = neighbour.take(edges)
    neighbour = neighbour - structures.ptr[:-1].take(crystal.take(neighbour))
    return Graph(neighbour.astype(np.int32), edges_of, np.stack([x.take(edges) for x in vec[:3]], 1), radius)


def _check(structures: Structures) -> None:
    frac_coords, lattice = structures.frac_coords, structures.lattice
    if not (np.isfinite(frac_coords).all() and np.isfinite(lattice).all()):
        raise ValueError(f"coordinates and lattice must be finite, got {frac_coords.tolist()}, {lattice.tolist()}")
    if (flat := np.abs(np.linalg.det(lattice)) < 1e-3).any():
        raise ValueError(f"lattice without volume: {lattice[flat][0].tolist()}")


def choose(
    pairs: Pairs, atoms: int, *, cutoff_A: float, neighbours: int
) -> tuple[Int[np.ndarray, "atoms neighbours"], Int[np.ndarray, " atoms"], Float[np.ndarray, " atoms"]]:
    """The neighbours within each atom's own cutoff, out of the pairs that a search has found.

    Returns:
        Of each atom the numbers of its pairs, sorted by distance, then by the image's number, how many of them count,
        and its cutoff.
    """
    order = np.argsort(pairs.centre.astype(np.uint16) if atoms <= 1 << 16 else pairs.centre, kind="stable")
    count = np.bincount(pairs.centre, minlength=atoms)
    d = pairs.vec[3].take(order)
    table = _rows(d, count, max(count.max(), neighbours + 1), cutoff_A)
    table.sort(axis=1)
    radius = np.minimum(table[:, neighbours], cutoff_A)
    inside = np.flatnonzero(d < np.repeat(radius * (1 - TIE), count))
    order = order.take(inside)
    count = np.bincount(pairs.centre.take(order), minlength=atoms)
    columns = d.take(inside), pairs.number.take(order), order
    d, number, order = (_rows(x, count, neighbours, fill) for x, fill in zip(columns, (np.inf, 0, 0)))
    return np.take_along_axis(order, np.lexsort((number, d), axis=1), 1), count, radius


def _rows(values: np.ndarray, count: np.ndarray, width: int, fill: float) -> np.ndarray:
    """Values of one row after the other, `count` in each, as a table."""
    table = np.full((len(count), width), fill, values.dtype)
    shift = np.arange(0, table.size, width) - (np.cumsum(count) - count)
    table.ravel()[np.arange(len(values)) + np.repeat(shift, count)] = values
    return table


def _search(structures: Structures, reach: np.ndarray, cutoff_A: float) -> tuple[Pairs, np.ndarray]:
    """All pairs within reach of each crystal, and some beyond; and the reach, where it became the cutoff."""
    sizes, lattice = np.diff(structures.ptr), structures.lattice
    faces = np.stack([np.cross(lattice[:, (k + 1) % 3], lattice[:, (k + 2) % 3]) for k in range(3)], 2)
    volume = sum(lattice[:, 0, k] * faces[:, k, 0] for k in range(3))
    inverse = faces / volume[:, None, None]
    height = 1 / np.linalg.norm(inverse, axis=1)
    first, x = structures.ptr[:-1], structures.frac_coords
    span = np.maximum.reduceat(x, first) - np.minimum.reduceat(x, first) if len(x) else x
    box = np.floor(reach[:, None] / height + span + 1e-6)
    work = sizes * (sizes + 1) // 2 * np.prod(2 * box + 1, 1)
    large = work > AT_ONCE
    reach = np.where(large, cutoff_A, reach)
    bins = np.maximum(np.trunc(height / cutoff_A), 1)
    kind = np.column_stack([large, sizes, box])
    order = np.lexsort(kind.T)
    parts = []
    for rows in np.split(order, np.flatnonzero((np.diff(kind[order], axis=0) != 0).any(1)) + 1):
        if large[rows[0]]:
            parts += [_by_cells(structures, row, cutoff_A) for row in rows]
            continue
        step = int(AT_ONCE // work[rows[0]])
        for part in np.split(rows, range(step, len(rows), step)):
            parts.append(_dense(structures, part, box[rows[0]], reach[part], inverse[part], bins[part]))
    return Pairs(*(np.concatenate(column, axis=-1) for column in zip(*parts))), reach


def _by_cells(structures: Structures, row: int, cutoff_A: float) -> Pairs:
    """The pairs of one crystal within the cutoff, by lists of cells."""
    _, x, lattice = structures[row]
    search, first = NeighborList(cutoff=cutoff_A, full_list=True, n_threads=1), structures.ptr[row]
    i, j, vec, d = search.compute(x @ lattice, lattice, True, "ijDd")
    return Pairs(i.astype(np.int64) + first, j.astype(np.int64) + first, np.stack([*vec.T, d]), np.arange(len(i)))


def _dense(
    structures: Structures, rows: np.ndarray, box: np.ndarray, reach: np.ndarray, inverse: np.ndarray, bins: np.ndarray
) -> Pairs:
    """The pairs of crystals with as many atoms, by comparing all with all images in a box of cells."""
    count, first = len(rows), structures.ptr[rows]
    size = int(structures.ptr[rows[0] + 1] - first[0])
    (i, j), cells = _both(size), _cells(tuple(box.astype(int)))
    pairs, images = len(i), cells.shape[-1]
    lattice = structures.lattice[rows]
    x = np.moveaxis(structures.frac_coords.take(first[:, None] + np.arange(size), axis=0) @ lattice, 2, 0).copy()
    lattice, inverse = (np.moveaxis(m, 0, 2)[..., None] for m in (lattice, inverse))
    d = x.take(j, axis=2) - x.take(i, axis=2)  # (3, crystals, pairs)
    t = cells[0] * lattice[0] + cells[1] * lattice[1] + cells[2] * lattice[2]  # (3, crystals, images)
    a, b = np.ones((5, count, pairs), np.float32), np.ones((5, count, images), np.float32)
    a[:3], a[3], b[:3], b[4] = 2 * d, (d * d).sum(0), t, (t * t).sum(0)
    within = reach**2 + 1e-6 * (np.sqrt(a[3].max(1)) + np.sqrt(b[4].max(1))) ** 2 + 1e-6  # rounding is less than that
    square = a.transpose(1, 2, 0) @ b.transpose(1, 0, 2)
    square[:, :size, : images // 2 + 1] = np.inf  # an atom itself, and of its images those that others mirror
    flat = np.flatnonzero(square < within.astype(np.float32)[:, None, None]).astype(np.int32)

    pair = flat // images
    crystal = pair // pairs
    image = flat + (crystal - pair) * images
    vec = np.empty((4, 2, len(flat)))
    for k in range(3):
        np.add(d[k].ravel().take(pair), t[k].ravel().take(image), out=vec[k, 0])
    vec[3] = np.sqrt(vec[0, 0] ** 2 + vec[1, 0] ** 2 + vec[2, 0] ** 2)
    np.negative(vec[:3, 0], out=vec[:3, 1])
    bins = bins.T[..., None]
    own = np.floor((x[0] * inverse[0] + x[1] * inverse[1] + x[2] * inverse[2]) * bins)
    own = ((own * PLACES).sum(0).astype(np.int64) + np.arange(size)).ravel()
    ahead = (cells[:, None] * bins * PLACES).sum(0).astype(np.int64).ravel().take(image)
    pair -= crystal * pairs
    ends = [end.take(pair) + crystal * size for end in (i, j)]
    number = np.concatenate([own.take(ends[1]) + ahead, own.take(ends[0]) - ahead])
    u, v = (end + (first - np.arange(count) * size).take(crystal) for end in ends)
    return Pairs(np.concatenate([u, v]), np.concatenate([v, u]), vec.reshape(4, -1), number)


@lru_cache
def _both(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of so many atoms, each with itself at first."""
    own, (i, j) = np.arange(size), np.triu_indices(size, 1)
    return np.concatenate([own, i]).astype(np.int32), np.concatenate([own, j]).astype(np.int32)


@lru_cache
def _cells(box: tuple[int, int, int]) -> Float[np.ndarray, "3 images"]:
    """The cells from -box to box, by their numbers."""
    return np.indices([2 * b + 1 for b in box]).reshape(3, -1) - np.array(box, float)[:, None]
