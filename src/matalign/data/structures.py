"""Periodic crystals as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLAT = ("numbers", "frac_coords", "lattice")


@dataclass(frozen=True)
class Structures:
    """M periodic crystals with N atoms in all, flat. Raises ValueError: shapes that do not belong together."""

    numbers: np.ndarray  # (N,) atomic numbers
    frac_coords: np.ndarray  # (N, 3) fractional coordinates
    lattice: np.ndarray  # (M, 3, 3) rows are the lattice vectors, Å
    ptr: np.ndarray  # (M + 1,) crystal m holds atoms ``ptr[m]:ptr[m + 1]``

    def __post_init__(self) -> None:
        atoms, crystals = len(self.numbers), len(self.lattice)
        if self.frac_coords.shape != (atoms, 3) or self.lattice.shape != (crystals, 3, 3):
            raise ValueError(
                f"{atoms} atoms and {crystals} crystals do not fit frac_coords {self.frac_coords.shape} "
                f"and lattice {self.lattice.shape}"
            )
        if len(self.ptr) != crystals + 1 or self.ptr[[0, -1]].tolist() != [0, atoms] or (np.diff(self.ptr) < 1).any():
            raise ValueError(f"ptr {self.ptr.shape} must rise from 0 to {atoms} in {crystals} steps of at least 1")

    @classmethod
    def pack(cls, crystals: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> "Structures":
        """Flatten a list of (numbers (n,), frac_coords (n, 3), lattice (3, 3))."""
        numbers, frac_coords, lattices = zip(*crystals) if crystals else ((), (), ())
        return cls(
            numbers=np.concatenate([np.zeros(0), *numbers]).astype(np.int16),
            frac_coords=np.concatenate([np.zeros((0, 3)), *frac_coords]).astype(np.float64),
            lattice=np.array(lattices, dtype=np.float64).reshape(-1, 3, 3),
            ptr=np.cumsum([0, *map(len, numbers)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.lattice)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers (n,), frac_coords (n, 3) and lattice (3, 3) of one crystal."""
        row = range(len(self))[row]  # negative rows count from the end; beyond: IndexError
        atoms = slice(self.ptr[row], self.ptr[row + 1])
        return self.numbers[atoms], self.frac_coords[atoms], self.lattice[row]

    def fractions(self) -> np.ndarray:
        """(M, 119) atomic fractions of the crystals, by atomic number."""
        atoms = np.diff(self.ptr)
        counts = np.zeros((len(self), 119))
        np.add.at(counts, (np.repeat(np.arange(len(self)), atoms), self.numbers), 1)
        return counts / atoms[:, None]

    def take(self, rows: np.ndarray) -> "Structures":
        """The crystals of these rows, in this order; a row may come twice."""
        rows = np.asarray(rows, dtype=np.int64)
        sizes = self.ptr[rows + 1] - self.ptr[rows]
        ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        atoms = np.repeat(self.ptr[rows] - ptr[:-1], sizes) + np.arange(ptr[-1])
        return Structures(self.numbers[atoms], self.frac_coords[atoms], self.lattice[rows], ptr)


class Sharded(Structures):
    """The crystals of several parts, one part after the other; parts that are mapped from disk stay there.

    Crystals and rows are read from their parts alone; a whole array is a copy, made when it is asked for.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[Structures]) -> None:
        atoms = np.cumsum([0, *(part.ptr[-1] for part in parts)])
        ptr = [part.ptr[1:] + before for part, before in zip(parts, atoms)]
        vars(self).update(parts=tuple(parts), first=np.cumsum([0, *map(len, parts)]), ptr=np.concatenate([[0], *ptr]))

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in FLAT:
            raise AttributeError(name)
        return np.concatenate([getattr(part, name) for part in self.parts])

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = range(len(self))[row]
        part = np.searchsorted(self.first, row, side="right") - 1
        return self.parts[part][row - self.first[part]]

    def take(self, rows: np.ndarray) -> Structures:
        """See `Structures.take`."""
        rows = np.asarray(rows, dtype=np.int64)
        part = np.searchsorted(self.first, rows, side="right") - 1
        taken = [self.parts[p].take(rows[part == p] - self.first[p]) for p in np.unique(part)] or [
            self.parts[0].take(rows)
        ]
        flat = {name: np.concatenate([getattr(each, name) for each in taken]) for name in FLAT}
        sizes = np.concatenate([np.diff(each.ptr) for each in taken])
        joined = Structures(**flat, ptr=np.concatenate([[0], np.cumsum(sizes)]))
        return joined.take(np.argsort(np.argsort(part, kind="stable")))
