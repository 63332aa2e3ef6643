"""Crystal structure -> electron micrograph: annular dark-field images in the projection approximation, in batches.

Along a zone axis [uvw] the projected crystal is periodic in two dimensions, so an image needs the atoms of one cell and
a two-dimensional lattice, never a three-dimensional supercell. A foil of n repeats puts n atoms on every projected
site; each scatters to the detector with a cross-section proportional to Z^γ, and the expected count of a pixel is

    N(x) = dose · Σ_sites n · σ(Z) · probe(x - x_site),      σ(Z) = 0.02 Å² · (Z / 79)^γ,

with Poisson noise. Sites are dealt bilinearly to the pixels around them and convolved with the probe by FFT.

Views of one crystal differ as frames of one specimen do: by zone axis, rotation, position, thickness, dose, defocus (a
wider probe) and the scan's distortion (drift shears and stretches the frame, jitter shifts its lines). Brightness and
contrast are no draws: images are standardised.

Limits: no dynamical scattering, no channelling, no thermal diffuse background, no relaxation around defects. The
approximation and the probe (Gaussian with Lorentzian tails) are those of jarvis-tools' `STEMConv`, against which the
tests compare; σ(Z = 79) is of the order of high-angle cross-sections at 200 kV and only sets how noisy a dose is.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from matalign.data.structures import Structures
from matalign.views.draws import uniforms

CROSS_SECTION_A2 = 0.02  # of an atom of Z = 79
# Zone axes [uvw] with indices of at most 1, one of each pair ±[uvw], in terms of the lattice as given.
ZONE_AXES = tuple(
    (u, v, w)
    for u in (0, 1)
    for v in (-1, 0, 1)
    for w in (-1, 0, 1)
    if next((i for i in (u, v, w) if i), 0) > 0
)  # fmt: skip


@dataclass(frozen=True)
class Optics:
    """The microscope; a pair is the range that a view draws from."""

    image_px: int = 64
    pixel_A: float = 0.2
    gamma: float = 1.7  # contrast goes as Z^gamma
    axes: int = 6  # views look along so many zone axes, those of shortest repeat
    probe_sigma_A: tuple[float, float] = (0.4, 0.65)  # its spread stands for defocus
    tail_ratio: float = 0.5  # height of the probe's Lorentzian part over its Gaussian part
    tail_width_A: float = 0.5  # full width at half maximum of the Lorentzian; the probe ends at four times this
    thickness_nm: tuple[float, float] = (2.0, 8.0)
    dose_e_A2: tuple[float, float] = (1e3, 1e5)  # drawn log-uniformly
    drift_A: float = 0.5  # at most so far along each axis while the frame is scanned
    jitter_A: float = 0.03  # standard deviation of a scan line's position
    margin_A: float | None = None  # draw atoms up to so far outside the frame; None: as far as the probe reaches

    @property
    def reach_A(self) -> float:
        """Where the probe ends, Å."""
        return 4 * self.tail_width_A


@dataclass(frozen=True)
class View:
    """How B micrographs are taken. First image axis: slow scan (rows); second: fast scan (columns)."""

    axis: Tensor  # (B,) long, row of ZONE_AXES
    rotation: Tensor  # (B,) rad, of the crystal in the image plane
    shift_A: Tensor  # (B, 2) of the cell's origin from the image's centre
    drift_A: Tensor  # (B, 2) of the specimen while the frame is scanned
    thickness_A: Tensor  # (B,)
    dose_e_A2: Tensor  # (B,)
    probe_sigma_A: Tensor  # (B,)
    jitter_A: Tensor  # (B, image_px) shift of each scan line

    def take(self, images: Tensor) -> "View":
        """The views of these images."""
        return View(*(t[images] for t in vars(self).values()))


@dataclass(frozen=True)
class Columns:
    """Projected sites of B crystals, flat: K sites in all."""

    image: Tensor  # (K,) long, which of the B images
    site: Tensor  # (K,) long, which atom of the cell
    number: Tensor  # (K,) atomic number
    position_A: Tensor  # (K, 2) from the image's centre
    atoms: Tensor  # (K,) how many atoms stand above one another

    def where(self, keep: Tensor) -> "Columns":
        """The sites of a mask (K,)."""
        return Columns(*(t[keep] for t in vars(self).values()))

    def __add__(self, other: "Columns") -> "Columns":
        return Columns(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def draw_views(lattice: np.ndarray, keys: Sequence[int], *, optics: Optics, device: torch.device | str = "cpu") -> View:
    """How crystals of lattices (B, 3, 3), rows in Å, are looked at, drawn by keys (B,) from `view_seed`."""
    size = len(keys)
    u = uniforms(np.asarray(keys, dtype=np.uint64), 9 + 2 * optics.image_px)
    shortest = by_repeat(lattice)[:, : optics.axes]
    axis = shortest[np.arange(size), (u[:, 0] * shortest.shape[1]).astype(int)]
    low, high = np.log(optics.dose_e_A2)
    radius, angle = u[:, 9 : 9 + optics.image_px], u[:, 9 + optics.image_px :]  # Box-Muller
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)

    def between(column: int, bounds: tuple[float, float]) -> np.ndarray:
        return bounds[0] + (bounds[1] - bounds[0]) * u[:, column]

    values = {
        "rotation": 2 * np.pi * u[:, 1],
        "shift_A": 20 * (u[:, 2:4] - 0.5),  # wide against a projected cell, so any phase is about as likely
        "drift_A": optics.drift_A * (2 * u[:, 4:6] - 1),
        "thickness_A": 10 * between(6, optics.thickness_nm),
        "dose_e_A2": np.exp(between(7, (low, high))),
        "probe_sigma_A": between(8, optics.probe_sigma_A),
        "jitter_A": optics.jitter_A * normal,
    }
    tensors = {name: torch.as_tensor(v, dtype=torch.float32, device=device) for name, v in values.items()}
    return View(axis=torch.as_tensor(axis, device=device), **tensors)


def by_repeat(lattice: np.ndarray) -> np.ndarray:
    """(B, 13) rows of ZONE_AXES, that of shortest repeat first, of lattices (B, 3, 3)."""
    repeat = np.linalg.norm(np.asarray(ZONE_AXES) @ lattice, axis=2)
    return np.argsort(repeat.round(6), axis=1, kind="stable")


@functools.cache
def _bases() -> np.ndarray:
    """(13, 3, 3) integers of determinant ±1: two lattice vectors, then the zone axis."""
    bases = []
    for axis in ZONE_AXES:
        pivot = next(i for i in range(3) if axis[i])
        bases.append([*(np.eye(3, dtype=int)[i] for i in range(3) if i != pivot), axis])
    return np.array(bases)


def projected_lattice(lattice: Tensor, axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Look along a zone axis.

    Args:
        lattice: (B, 3, 3) rows are vectors, Å, float64.
        axis: (B,) rows of ZONE_AXES.

    Returns:
        plane: (B, 3, 2) frac_coords @ plane are positions in the image plane, Å; the first image axis is along the
            projection of the first of the three lattice vectors that is not part of the axis.
        basis: (B, 2, 2) rows are the shortest vectors of the projected lattice, Å (Gauss reduction).
        repeat: (B,) length of the zone axis, Å.
    """
    cell = torch.as_tensor(_bases(), dtype=lattice.dtype, device=lattice.device)[axis] @ lattice
    repeat = cell[:, 2].norm(dim=1)
    w = cell[:, 2] / repeat[:, None]
    e1 = cell[:, 0] - (cell[:, 0] * w).sum(1, keepdim=True) * w
    e1 = e1 / e1.norm(dim=1, keepdim=True)
    frame = torch.stack([e1, torch.linalg.cross(w, e1)], dim=2)  # (B, 3, 2)
    a, b = (cell[:, :2] @ frame).unbind(1)
    for _ in range(16):  # every step shortens the longer vector or leaves both alone
        swap = (a.norm(dim=1) > b.norm(dim=1))[:, None]
        a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        b = b - ((a * b).sum(1) / (a * a).sum(1)).round()[:, None] * a
    return lattice @ frame, torch.stack([a, b], dim=1), repeat


def project(
    structures: Structures,
    rows: Sequence[int] | np.ndarray,
    view: View,
    *,
    optics: Optics,
    mirror: Tensor | None = None,
    offset_A: Tensor | None = None,
) -> Columns:
    """The sites of crystals, seen along their views' zone axes, within the frame and its margin; there may be none.

    Args:
        rows: (B,) which; repeats are allowed.
        mirror: (B, 2, 2) applied to positions in the image plane (p @ mirror), with `offset_A` after it: a twin.
        offset_A: (B, 2) rigid displacement: an antiphase domain.
    """
    crystals = structures.take(np.asarray(rows))
    device, size = view.axis.device, len(crystals)
    lattice = torch.as_tensor(crystals.lattice, device=device)
    plane, basis, repeat = projected_lattice(lattice, view.axis)
    linear, shift = _onto_frame(view, mirror, offset_A, extent=optics.image_px * optics.pixel_A)
    plane, basis = plane @ linear, (basis @ linear).float()

    # Atoms of one cell, flat over the batch.
    owner = np.repeat(np.arange(size), np.diff(crystals.ptr))
    site = torch.as_tensor(np.arange(len(owner)) - crystals.ptr[owner], device=device)
    owner = torch.as_tensor(owner, device=device)
    number = torch.as_tensor(crystals.numbers.astype(np.float32), device=device)
    frac = torch.as_tensor(crystals.frac_coords, device=device)
    position = ((frac[:, None] @ plane[owner])[:, 0] + shift[owner]).float()
    margin = optics.reach_A if optics.margin_A is None else min(optics.margin_A, optics.reach_A)
    half = (optics.image_px - 1) / 2 * optics.pixel_A + margin  # pixels are points, the outermost at (px - 1)/2
    atom, position = _copies(position, owner, basis, half=half)
    layers = (view.thickness_A / repeat).round().clamp(min=1).float()
    return Columns(owner[atom], site[atom], number[atom], position, layers[owner[atom]])


def _onto_frame(view: View, mirror: Tensor | None, offset_A: Tensor | None, *, extent: float) -> tuple[Tensor, Tensor]:
    """Rotation, mirror, displacement and the shear of drift as x @ linear (B, 2, 2) + shift (B, 2); `extent` in Å."""
    cos, sin = view.rotation.double().cos(), view.rotation.double().sin()
    linear = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    shift = view.shift_A.double()
    if mirror is not None:
        linear, shift = linear @ mirror.double(), (shift[:, None] @ mirror.double())[:, 0]
    if offset_A is not None:
        shift = shift + offset_A.double()
    shear = torch.eye(2, dtype=torch.float64, device=shift.device).repeat(len(shift), 1, 1)
    shear[:, 0] += view.drift_A.double() / extent  # the row that is scanned last has drifted by drift_A
    return linear @ shear, (shift[:, None] @ shear)[:, 0]


def _copies(position: Tensor, owner: Tensor, basis: Tensor, *, half: float) -> tuple[Tensor, Tensor]:
    """(K,) which atom and (K, 2) where: all that stand on the points n1·basis[0] + n2·basis[1] within ±half Å.

    First all lines n1 that can meet the square, then on each line the n2 that do.
    """
    inverse = torch.linalg.inv(basis)
    centre = (position * inverse[owner, :, 0]).sum(1)  # n1 = -centre is the line through the middle
    bound = half * inverse[:, :, 0].abs().sum(1)[owner]
    low, high = (-centre - bound).ceil(), (-centre + bound).floor()
    atom, n1 = _ranges(low, high)
    origin = position[atom] + n1[:, None] * basis[owner[atom], 0]
    step = basis[owner[atom], 1]
    step = torch.where(step.abs() < 1e-6, 1e-6, step)  # a line along the frame meets the other two sides far away
    ends = torch.stack([(-half - origin) / step, (half - origin) / step], dim=2)  # (lines, 2 image axes, 2)
    line, n2 = _ranges(ends.amin(2).amax(1).ceil(), ends.amax(2).amin(1).floor())
    return atom[line], origin[line] + n2[:, None] * step[line]


def _ranges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers low[i] … high[i] of each range, flat: (index i of the range, number); none where high < low."""
    length = (high - low + 1).clamp(min=0).long()
    owner = torch.repeat_interleave(length)
    within = torch.arange(len(owner), device=low.device) - (length.cumsum(0) - length)[owner]
    return owner, low[owner] + within


def expose(columns: Columns, view: View, *, optics: Optics) -> Tensor:
    """(B, image_px, image_px) expected electrons in each pixel, without noise."""
    size, px = len(view.axis), optics.image_px
    pad = math.ceil(optics.reach_A / optics.pixel_A) + 1
    from scipy.fft import next_fast_len  # here: `scipy.fft` takes as long as a prediction

    full = next_fast_len(px + 2 * pad, real=True)

    section = CROSS_SECTION_A2 * (np.arange(119) / 79) ** optics.gamma  # Å², row Z
    section = torch.as_tensor(section, dtype=torch.float32, device=columns.number.device)
    strength = section[columns.number.long()] * columns.atoms
    pixel = columns.position_A / optics.pixel_A + (px - 1) / 2 + pad
    corner = pixel.floor()
    part = pixel - corner  # (K, 2)
    corner = corner.long()
    index = columns.image * full**2 + corner[:, 0] * full + corner[:, 1]
    grid = strength.new_zeros(size * full**2)
    for i in (0, 1):
        for j in (0, 1):
            share = (part[:, 0] if i else 1 - part[:, 0]) * (part[:, 1] if j else 1 - part[:, 1])
            grid.index_add_(0, index + i * full + j, strength * share)

    # The probe is even, so its spectrum is real; the Gaussian's is a product, the tails' the same for all views.
    x = torch.fft.fftfreq(full, 1 / full, device=grid.device) * optics.pixel_A
    gauss = torch.exp(-(x**2) / (2 * view.probe_sigma_A[:, None] ** 2)) * (x.abs() <= optics.reach_A)
    gauss = torch.fft.fft(gauss).real  # (B, full)
    r2 = x[:, None] ** 2 + x**2
    tail = optics.tail_ratio / (1 + 4 * r2 / optics.tail_width_A**2) * (r2 <= optics.reach_A**2)
    probe = gauss[:, :, None] * gauss[:, None, : full // 2 + 1] + torch.fft.rfft2(tail).real

    image = torch.fft.rfft2(grid.view(size, full, full)) * (probe / probe[:, :1, :1])
    image = torch.fft.ifft(image, dim=1)[:, pad : pad + px]  # rows are in place, columns still as frequencies:
    if optics.jitter_A > 0:  # so each scan line can be shifted
        phase = -2 * math.pi * torch.fft.rfftfreq(full, optics.pixel_A, device=grid.device) * view.jitter_A[:, :, None]
        # In real parts: a complex product may round otherwise elsewhere in a batch, and Poisson noise would tell.
        real, imag, cos, sin = image.real, image.imag, phase.cos(), phase.sin()
        image = torch.complex(real * cos - imag * sin, real * sin + imag * cos)
    image = torch.fft.irfft(image, n=full, dim=2)[:, :, pad : pad + px]
    return image.clamp(min=0) * view.dose_e_A2[:, None, None]


def detect(expected: Tensor, keys: Sequence[int]) -> Tensor:
    """Poisson counts of expected ones (B, H, W), one generator, seeded by its key, an image."""
    counts = torch.empty_like(expected)
    for i, key in enumerate(keys):
        counts[i] = torch.poisson(expected[i], torch.Generator(expected.device).manual_seed(int(key)))
    return counts


def standardise(images: Tensor) -> Tensor:
    """(B, H, W) -> (B, 1, H, W) with zero mean and unit variance in each image; an empty image stays zero."""
    centred = images - images.mean((1, 2), keepdim=True)
    return (centred / centred.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-6))[:, None]


def stabilise(counts: Tensor) -> Tensor:
    """Counts of nearly unit variance whatever their expectation: 2 √(n + 3/8) (Anscombe, Biometrika 1948)."""
    return 2 * torch.sqrt(counts + 0.375)


def render(
    structures: Structures,
    rows: Sequence[int] | np.ndarray,
    keys: Sequence[int],
    *,
    optics: Optics,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(B, 1, image_px, image_px) noisy micrographs as the image tower takes them, zero mean and unit variance each.

    Args:
        keys: (B,) from `view_seed`; an image depends on its crystal, its key and the optics alone.
        device: where to compute; draws are the same everywhere, the noise only on the same kind of device.
    """
    view = draw_views(structures.take(rows).lattice, keys, optics=optics, device=device)
    expected = expose(project(structures, rows, view, optics=optics), view, optics=optics)
    return standardise(stabilise(detect(expected, keys)))
