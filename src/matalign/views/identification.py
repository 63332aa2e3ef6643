"""Which of many crystals a micrograph shows: coarse to fine.

1. Amplitudes alone: the image's spectrum, and the waves of every crystal along its shortest zone axes, on a grid of
   angle and logarithm of spatial frequency, where turning and scaling are shifts: one small FFT finds the best of all.
2. Phases: for the best references all shifts at angles and pixel sizes around that place.
3. The correlation within the frame, refined, for the best few hundred.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from matalign.data.structures import Structures
from matalign.views import registration
from matalign.views.micrographs import ZONE_AXES, projected_lattice, standardise
from matalign.views.references import References, references
from matalign.views.registration import padded

AXES = 6  # of a crystal, those of shortest repeat of which no two have the same projected lattice
STRONG = 32  # waves of a reference that the search looks at
ANGLES = 60  # of half a turn
STEP = 0.06  # of the logarithm of a frequency
LONGEST_A = 14.0  # waves of longer period are not looked at
PERIODS = 80  # steps of the grid's logarithm, so that what leaves it does not come in again
AGREES = 0.03  # logarithm of two pixel sizes that agree
SLACK = 1.07  # by which a pixel size that is given is left open in the first stage
PHASED, FITTED = 40000, 500  # references that come to the second, and crystals that come to the third stage
CHUNK = 128  # references at once, few enough for a processor's cache


@dataclass(frozen=True)
class Ranking:
    """How well each of n crystals fits one image."""

    correlation: np.ndarray  # (n,) refined for the best few hundred; less than 0 for the others, in their order
    axis: np.ndarray  # (n,) row of ZONE_AXES
    pixel_A: np.ndarray  # (n,)

    def rank(self, row: int) -> int:
        """1 for the crystal that fits best; of equals, the mean."""
        here = self.correlation[row]
        return int(1 + (self.correlation > here).sum() + ((self.correlation == here).sum() - 1) // 2)


def library(structures: Structures, **options: float) -> References:
    """The strongest waves of all crystals along their shortest zone axes of different projected lattices."""
    size, count = len(structures), len(ZONE_AXES)
    lattice = torch.as_tensor(structures.lattice).repeat_interleave(count, dim=0)
    _, basis, repeat = projected_lattice(lattice, torch.arange(count).repeat(size))
    a, b = basis.unbind(1)
    shape = torch.stack([repeat, a.norm(dim=1), b.norm(dim=1), (a * b).sum(1).abs()], dim=1)
    shape = shape.view(size, count, 4).numpy().round(1)
    rows, axes = [], []
    for row, each in enumerate(shape):
        _, first = np.unique(each, axis=0, return_index=True)  # sorted by repeat
        axes.extend(first[:AXES].tolist())
        rows.extend([row] * len(first[:AXES]))
    return references(structures, rows, axes, waves=STRONG, **options)


def identify(
    images: Tensor, structures: Structures, refs: References, *, pixel_A: float | tuple[float, float], **options: float
) -> list[Ranking]:
    """Rank crystals by how well they fit each image.

    Args:
        images: (B, 1, H, W), H and W about equal and at most about 100.
        pixel_A: Å per pixel; or the range that it is looked for in. Computed cells are off by some per cent, too, so a
            crystal that needs a pixel size more than 3 % off the one given comes after those that do not.
    """
    unit = standardise(images[:, 0])[:, 0]
    low, high = (pixel_A / SLACK, pixel_A * SLACK) if isinstance(pixel_A, int | float) else pixel_A
    score, place = _amplitudes(unit, refs, low=low, high=high)
    prior = registration.prior_of(pixel_A, AGREES, device=unit.device)
    return [
        _ranked(unit[i], structures, refs, score[i], place[i], prior, options)
        for i in tqdm(range(len(unit)), "images", mininterval=1, disable=len(unit) < 8)
    ]


def _amplitudes(unit: Tensor, refs: References, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(B, R) how well amplitudes agree at best, and (B, R, 2) at which angle and log pixel size."""
    side = max(unit.shape[1:])
    spectrum = registration.spectra(unit)
    seen = torch.fft.rfft2(_image_map(spectrum, side=side))
    base = math.log(1.5 * LONGEST_A / side)  # log pixel size at no shift
    lags = torch.arange(math.ceil((math.log(low) - base) / STEP), math.floor((math.log(high) - base) / STEP) + 1)
    score, place = [], []
    for start in range(0, len(refs), CHUNK):
        waves = padded(refs, np.arange(start, min(start + CHUNK, len(refs))))
        angle = torch.atan2(waves.wave[..., 1], waves.wave[..., 0]) % math.pi * (ANGLES / math.pi)
        log = (waves.wave.norm(dim=2).clamp(min=1e-9) * LONGEST_A).log() / STEP
        strength = torch.where(log > 0, waves.coefficient.abs(), 0.0)
        known = torch.fft.rfft2(_dealt(torch.stack([angle, log.clamp(min=0)], dim=-1), strength)).conj()
        each = [
            torch.fft.irfft2(known * one, s=(ANGLES, PERIODS))[:, :, lags % PERIODS].flatten(1).max(1) for one in seen
        ]
        score.append(torch.stack([best.values for best in each]))
        at = torch.stack([best.indices for best in each])
        place.append(torch.stack([at // len(lags) * (math.pi / ANGLES), base + STEP * lags[at % len(lags)]], dim=-1))
    return torch.cat(score, dim=1), torch.cat(place, dim=1)


def _dealt(at: Tensor, strength: Tensor) -> Tensor:
    """(N, ANGLES, PERIODS) root of the power of waves at (N, P, 2) places on the grid, dealt bilinearly."""
    corner = at.floor()
    part, corner = at - corner, corner.long()
    out = strength.new_zeros(len(at), ANGLES * PERIODS)
    for i in (0, 1):
        for j in (0, 1):
            share = (part[..., 0] if i else 1 - part[..., 0]) * (part[..., 1] if j else 1 - part[..., 1])
            index = (corner[..., 0] + i) % ANGLES * PERIODS + (corner[..., 1] + j) % PERIODS
            out.scatter_add_(1, index, share * strength**2)
    return out.sqrt().view(-1, ANGLES, PERIODS)


def _image_map(spectrum: Tensor, *, side: int) -> Tensor:
    """(B, ANGLES, PERIODS) amplitudes of spectra (B, 2, n, n) on the grid; the first frequency is 1.5 / side."""
    amplitude = spectrum.square().sum(1, keepdim=True).sqrt()
    n = amplitude.shape[-1]
    angle = torch.arange(ANGLES, device=amplitude.device)[:, None] * (math.pi / ANGLES)
    k = 1.5 / side * (torch.arange(PERIODS, device=amplitude.device) * STEP).exp()
    at = torch.stack([k * angle.sin(), k * angle.cos()], dim=-1)  # columns, rows
    grid = ((at * n + n // 2) * 2 / (n - 1) - 1).expand(len(amplitude), -1, -1, -1)
    return F.grid_sample(amplitude, grid, align_corners=True)[:, 0] * (k < 0.5)


def _ranked(
    unit: Tensor,
    structures: Structures,
    refs: References,
    score: Tensor,
    place: Tensor,
    prior: Tensor,
    options: dict[str, float],
) -> Ranking:
    """The second and third stage, for one image (H, W)."""
    best = score.topk(min(PHASED, len(score))).indices
    values, coarse = [], []
    spectrum = registration.spectra(unit[None])
    half = torch.tensor([-0.5, 0.0, 0.5], device=unit.device)
    turn = half * math.pi / ANGLES
    offset = torch.cartesian_prod(torch.cat([turn, turn + math.pi]), half * STEP)
    for part in best[torch.as_tensor(np.diff(refs.ptr))[best].argsort()].split(32):
        waves = padded(refs, part.numpy())
        tried = place[part][:, None] + offset
        found, shift = registration.shifts(spectrum.expand(len(part), -1, -1, -1), waves, tried)
        first = torch.arange(len(part)), found.argmax(1)
        shift = shift[first]
        zero = torch.zeros_like(shift)
        values.append(torch.cat([tried[first], zero, shift, zero[:, :1]], dim=1))
        coarse.append(registration.correlated(unit.expand(len(part), -1, -1), waves, values[-1]))
    best = best[torch.as_tensor(np.diff(refs.ptr))[best].argsort()]
    values, coarse = torch.cat(values), torch.cat(coarse)

    order = coarse.argsort(descending=True).numpy()
    _, first = np.unique(refs.row[best.numpy()[order]], return_index=True)  # the best reference of each crystal
    order = order[np.sort(first)][:FITTED]
    chosen = best.numpy()[order]
    full = references(structures, refs.row[chosen], refs.axis[chosen], **options)
    fits = []
    for part in torch.arange(len(chosen)).split(32):
        waves = padded(full, part.numpy())
        fits.append(registration.refine(unit.expand(len(part), -1, -1), waves, values[order][part], prior, steps=5))
    correlation = np.full(len(structures), -3.0)
    np.maximum.at(correlation, refs.row, score.numpy() - 3)
    np.maximum.at(correlation, refs.row[best.numpy()], coarse.numpy() - 1.2)
    axis, pixel_A = np.zeros(len(structures), int), np.full(len(structures), np.nan)
    rows = refs.row[chosen]
    fitted, log = torch.cat([fit.correlation for fit in fits]), torch.cat([fit.values[:, 1] for fit in fits])
    beyond = (prior[1, 1] > 0) & ((log - prior[0, 1]).abs() > AGREES)
    correlation[rows] = torch.where(beyond, fitted - 1, fitted).numpy()
    axis[rows], pixel_A[rows] = refs.axis[chosen], log.exp().numpy()
    return Ranking(correlation, axis, pixel_A)
