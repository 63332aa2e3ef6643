"""Noiseless pictures of pristine crystals along zone axes, as sums of plane waves.

A crystal seen along a zone axis is periodic, so its picture is r(q) = Σ_G F_G exp(2πi G·q) over the projected cell's
reciprocal lattice. The waves are those of `micrographs.expose`: cross-sections that go as Z^γ, thickness, the probe
with its tails, and the root that `stabilise` takes of counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from matalign.data.structures import Structures
from matalign.views.micrographs import CROSS_SECTION_A2, ZONE_AXES, Optics, projected_lattice

FINEST = 1.25  # cycles/Å: the probe passes next to nothing beyond
WAVES = 512  # of a reference at most
ENERGY = 0.999  # of the picture's variance that its strongest waves must hold


@dataclass(frozen=True)
class References:
    """Noiseless pictures of R crystals along zone axes, as waves: one of each pair ±G, zero mean, unit variance."""

    wave: np.ndarray  # (K, 2) G of all references, cycles/Å, strongest first in each
    index: np.ndarray  # (K, 2) G in terms of the reciprocal lattice
    coefficient: np.ndarray  # (K,) complex F_G
    ptr: np.ndarray  # (R + 1,) reference r has waves ptr[r]:ptr[r + 1]
    basis: np.ndarray  # (R, 2, 2) rows are the shortest vectors of the projected lattice, Å
    plane: np.ndarray  # (R, 3, 2) frac_coords @ plane are positions in the picture's plane, Å
    row: np.ndarray  # (R,) which structure
    axis: np.ndarray  # (R,) row of ZONE_AXES
    mirrored: np.ndarray  # (R,) seen from behind

    def __len__(self) -> int:
        return len(self.row)


def references(
    structures: Structures,
    rows: Sequence[int] | np.ndarray,
    axes: Sequence[int] | np.ndarray,
    *,
    mirrored: Sequence[bool] | np.ndarray | bool = False,
    optics: Optics | None = None,
    probe_sigma_A: float = 0.52,
    waves: int = WAVES,
) -> References:
    """The pictures to look for.

    Args:
        rows: (R,) which.
        axes: (R,) row of ZONE_AXES, along which each is seen.
        mirrored: (R,) or for all: seen from behind.
        optics: the microscope: contrast, tails of the probe; thickness and dose from the middle of their ranges.
    """
    optics = optics or Optics()
    rows, axes = np.asarray(rows, np.int64), np.asarray(axes, np.int64)
    mirrored = np.broadcast_to(np.asarray(mirrored, bool), rows.shape)
    lattice = torch.as_tensor(structures.lattice[rows])
    plane, basis, repeat = (t.numpy() for t in projected_lattice(lattice, torch.as_tensor(axes)))
    turn = np.where(mirrored[:, None], [1.0, -1.0], [1.0, 1.0])[:, None]
    plane, basis = plane * turn, basis * turn
    probe = _probe(optics, probe_sigma_A)
    dose = math.sqrt(optics.dose_e_A2[0] * optics.dose_e_A2[1]) * optics.pixel_A**2
    layers = np.maximum(np.round(5 * sum(optics.thickness_nm) / repeat), 1)
    parts = []
    for r, row in enumerate(rows):
        numbers, frac_coords, _ = structures[row]
        strength = dose * layers[r] * CROSS_SECTION_A2 * (numbers / 79.0) ** optics.gamma
        site = frac_coords @ plane[r] @ np.linalg.inv(basis[r])
        parts.append([each[:waves] for each in _waves(site, strength, basis[r], probe)])
    index, wave, coefficient = (np.concatenate(part) for part in zip(*parts, strict=True))
    ptr = np.cumsum([0, *(len(part[0]) for part in parts)])
    return References(wave, index, coefficient, ptr, basis, plane, rows, axes, mirrored)


def _probe(optics: Optics, sigma_A: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) spatial frequencies, cycles/Å, and the probe's spectrum there, 1 at zero."""
    g = np.linspace(0, 1.5 * FINEST, 128)
    r = np.linspace(0, optics.reach_A, 257)
    tail = optics.tail_ratio / (1 + 4 * r**2 / optics.tail_width_A**2)
    wave = torch.special.bessel_j0(torch.as_tensor(2 * np.pi * g[:, None] * r)).numpy()
    spectrum = 2 * np.pi * np.trapezoid(tail * wave * r, r, axis=1)
    spectrum += 2 * np.pi * sigma_A**2 * np.exp(-2 * (np.pi * sigma_A * g) ** 2)
    return g, spectrum / spectrum[0]


def _waves(
    site: np.ndarray, strength: np.ndarray, basis: np.ndarray, probe: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The strongest waves of one picture: (K, 2) indices, (K, 2) vectors in cycles/Å, (K,) coefficients.

    Args:
        site: (n, 2) of the atoms, fractional in the projected cell.
        strength: (n,) Å², as expected counts.
        basis: (2, 2) of the projected cell, Å.
    """
    inverse = np.linalg.inv(basis).T  # rows are reciprocal vectors
    h, k = (np.arange(-n, n + 1) for n in np.ceil(np.linalg.norm(basis, axis=1) * FINEST).astype(int))
    index = np.stack(np.meshgrid(h, k, indexing="ij"), axis=-1)
    wave = index @ inverse
    size = np.linalg.norm(wave, axis=2)
    one, two = (np.exp(-2j * np.pi * n[:, None] * site[:, i]) for i, n in enumerate((h, k)))
    found = (one * strength) @ two.T * np.interp(size, *probe) / abs(np.linalg.det(basis))
    shape = (3 * len(h), 3 * len(k))  # finer than the waves, as the root sharpens
    grid = np.zeros(shape, complex)
    grid[np.ix_(h, k)] = found
    density = np.fft.ifft2(grid).real.clip(min=0) * grid.size
    found = np.fft.fft2(2 * np.sqrt(density + 0.375))[np.ix_(h, k)]
    half = ((index[..., 0] > 0) | ((index[..., 0] == 0) & (index[..., 1] > 0))) & (size <= FINEST)
    index, wave, found = index[half], wave[half], found[half]
    order = np.argsort(-np.abs(found), kind="stable")
    power = np.cumsum(np.abs(found[order]) ** 2)
    order = order[: min(WAVES, 1 + np.searchsorted(power, ENERGY * power[-1]))]
    return index[order], wave[order], found[order] / max(math.sqrt(2 * power[-1]), 1e-12)


def low_index(structures: Structures, row: int, *, mirrored: bool = False, **options: Any) -> References:
    """One crystal along all zone axes of low index; of those that look alike the first, in the usual order."""
    axes = sorted(range(len(ZONE_AXES)), key=lambda i: (sum(map(abs, ZONE_AXES[i])), [-n for n in ZONE_AXES[i]]))
    refs = references(structures, [row] * len(axes), axes, mirrored=mirrored, **options)
    length = np.linalg.norm(refs.wave, axis=1)
    kept: dict[bytes, int] = {}
    for r in reversed(range(len(axes))):  # the same waves, whatever their directions and phases
        waves = slice(refs.ptr[r], min(refs.ptr[r + 1], refs.ptr[r] + 24))
        seen = np.round(np.stack([np.abs(refs.coefficient[waves]), length[waves]]), 2) + 0.0
        kept[seen[:, np.lexsort(seen)].tobytes()] = r
    chosen = sorted(kept.values())
    return references(structures, [row] * len(chosen), np.array(axes)[chosen], mirrored=mirrored, **options)
