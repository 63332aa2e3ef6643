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
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from matalign.data.dataset import Structures

DEFECTS = ("pristine", "vacancy", "substitution", "interstitial", "planar_fault")
CROSS_SECTION_A2 = 0.02  # of an atom of Z = 79
MIN_CONTRAST = 0.1  # of a visible defect: largest change of the noiseless image over the pristine image's range
ATTEMPTS = 5  # draws of a defect before it is left invisible
# Elements put in a host's place: lithium to bismuth without noble gases, technetium and promethium.
SUBSTITUENTS = tuple(z for z in range(3, 84) if z not in (10, 18, 36, 43, 54, 61))
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


def view_seed(seed: int, epoch: int, mp_id: str, view: int) -> int:
    """The 63-bit key of all random draws of one view of one material, the same on every rank and at every position."""
    text = f"{seed}/{epoch}/{mp_id}/{view}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def bits(keys: np.ndarray, n: int) -> np.ndarray:
    """Keyed random integers: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

    Args:
        keys: (B,) integers, the seeds.
        n: how many of each seed's sequence.

    Returns:
        (B, n) uint64.
    """
    step = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = np.asarray(keys).astype(np.uint64)[:, None] + step
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(keys: np.ndarray, n: int) -> np.ndarray:
    """Keyed uniform numbers in [0, 1), (B, n) float64, from `bits`."""
    return (bits(keys, n) >> np.uint64(11)) * 2.0**-53


def draw_views(lattice: np.ndarray, keys: Sequence[int], *, optics: Optics, device: torch.device | str = "cpu") -> View:
    """Draw how each crystal is looked at.

    Args:
        lattice: (B, 3, 3) rows are vectors, Å.
        keys: (B,) from `view_seed`.
        optics: ranges of the draws.
        device: where the tensors go.
    """
    size = len(keys)
    u = uniforms(np.asarray(keys, dtype=np.uint64), 9 + 2 * optics.image_px)
    repeat = np.linalg.norm(np.asarray(ZONE_AXES) @ lattice, axis=2)  # (B, 13)
    shortest = np.argsort(repeat.round(6), axis=1, kind="stable")[:, : optics.axes]
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
    """Project crystals along their views' zone axes onto the frame and its margin.

    Args:
        structures: where the crystals are.
        rows: (B,) which; repeats are allowed.
        view: of B images.
        optics: frame, pixel, margin.
        mirror: (B, 2, 2) applied to positions in the image plane (p @ mirror), with `offset_A` after it: a twin.
        offset_A: (B, 2) rigid displacement: an antiphase domain.

    Returns:
        The sites within the frame and its margin; an image without a site in view has none.
    """
    crystals = structures.take(np.asarray(rows))
    device, size = view.axis.device, len(crystals)
    lattice = torch.as_tensor(crystals.lattice, device=device)
    plane, basis, repeat = projected_lattice(lattice, view.axis)

    # Everything between the crystal and the pixels is linear: rotation, the twin's mirror, and the shear of drift.
    extent = optics.image_px * optics.pixel_A
    cos, sin = view.rotation.double().cos(), view.rotation.double().sin()
    linear = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    shift = view.shift_A.double()
    if mirror is not None:
        linear, shift = linear @ mirror.double(), (shift[:, None] @ mirror.double())[:, 0]
    if offset_A is not None:
        shift = shift + offset_A.double()
    shear = torch.eye(2, dtype=torch.float64, device=device).repeat(size, 1, 1)
    shear[:, 0] += view.drift_A.double() / extent  # the row that is scanned last has drifted by drift_A
    linear, shift = linear @ shear, (shift[:, None] @ shear)[:, 0]
    plane, basis = plane @ linear, basis @ linear

    # Atoms of one cell, flat over the batch, in units of the projected lattice.
    owner = np.repeat(np.arange(size), np.diff(crystals.ptr))
    site = torch.as_tensor(np.arange(len(owner)) - crystals.ptr[owner], device=device)
    owner = torch.as_tensor(owner, device=device)
    number = torch.as_tensor(crystals.numbers.astype(np.float32), device=device)
    frac = torch.as_tensor(crystals.frac_coords, device=device)
    position = ((frac[:, None] @ plane[owner])[:, 0] + shift[owner]).float()
    basis = basis.float()

    # Each atom stands on the points n1·basis[0] + n2·basis[1] within the frame (a square) and its margin: first all
    # lines n1 that can meet the square, then on each line the n2 that do.
    margin = optics.reach_A if optics.margin_A is None else min(optics.margin_A, optics.reach_A)
    half = (optics.image_px - 1) / 2 * optics.pixel_A + margin  # pixels are points, the outermost at (px - 1)/2
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
    position = origin[line] + n2[:, None] * step[line]
    atom = atom[line]
    layers = (view.thickness_A / repeat).round().clamp(min=1).float()
    return Columns(owner[atom], site[atom], number[atom], position, layers[owner[atom]])


def _ranges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers low[i] … high[i] of each range, flat: (index i of the range, number); none where high < low."""
    length = (high - low + 1).clamp(min=0).long()
    owner = torch.repeat_interleave(length)
    within = torch.arange(len(owner), device=low.device) - (length.cumsum(0) - length)[owner]
    return owner, low[owner] + within


def expose(columns: Columns, view: View, *, optics: Optics) -> Tensor:
    """Expected counts, without noise.

    Args:
        columns: projected sites of B crystals.
        view: of the same B images.
        optics: the microscope.

    Returns:
        (B, image_px, image_px) expected electrons in each pixel.
    """
    size, px = len(view.axis), optics.image_px
    pad = math.ceil(optics.reach_A / optics.pixel_A) + 1
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
    """Poisson counts, one generator an image.

    Args:
        expected: (B, H, W) expected counts.
        keys: (B,) seeds.
    """
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
    """Noisy micrographs as the image tower takes them.

    Args:
        structures: where the crystals are.
        rows: (B,) which.
        keys: (B,) from `view_seed`; an image depends on its crystal, its key and the optics alone.
        optics: the microscope.
        device: where to compute; draws are the same everywhere, the noise only on the same kind of device.

    Returns:
        (B, 1, image_px, image_px) float32, zero mean and unit variance each.
    """
    view = draw_views(structures.lattice[np.asarray(rows, dtype=np.int64)], keys, optics=optics, device=device)
    expected = expose(project(structures, rows, view, optics=optics), view, optics=optics)
    return standardise(stabilise(detect(expected, keys)))


def aperiodic(images: Tensor, *, pixel_A: float, lags: int = 8) -> Tensor:
    """What does not repeat: each image less the mean of its copies displaced by its own lattice vectors.

    The vectors are the highest peaks of the image's autocorrelation, weighted by the square root of the overlap (short
    vectors first, as those of little overlap are noisy), to a fraction of a pixel; peaks below 0.7 of the highest are
    no lattice vectors. A perfect crystal leaves noise, a defect itself and faint ghosts a lattice vector away.

    Args:
        images: (B, 1, H, H) standardised.
        pixel_A: Å per pixel.
        lags: how many displacements; they come in pairs ±v.

    Returns:
        (B, 1, H, H); zero where no displaced copy covers the pixel.
    """
    size, _, px, _ = images.shape
    full = 2 * px

    def correlation(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, s=(full, full)).abs().square()
        return torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(full, full)), dim=(-2, -1))  # lag 0 at (px, px)

    overlap = correlation(torch.ones(px, px, device=images.device)).clamp(min=0.5)
    raw = F.avg_pool2d(correlation(images) / overlap, 3, stride=1, padding=1)  # (B, 1, 2 px, 2 px)
    lag = torch.arange(full, device=images.device) - px
    far = (lag[:, None] ** 2 + lag**2).sqrt() * pixel_A >= 1.6  # no two columns of one kind are nearer
    near = (lag[:, None].abs() <= 0.6 * px) & (lag.abs() <= 0.6 * px)
    peak = (raw == F.max_pool2d(raw, 5, stride=1, padding=2)) & far & near
    score = torch.where(peak, raw * (overlap / px**2).sqrt(), -math.inf)[:, 0]
    raw, (score, index) = raw[:, 0], score.flatten(1).topk(lags)  # (B, lags)
    row, column, image = index // full, index % full, torch.arange(size, device=images.device)[:, None]
    height = raw[image, row, column]
    valid = score.isfinite() & (height >= 0.7 * height.where(score.isfinite(), -math.inf).amax(1, keepdim=True))

    def vertex(before: Tensor, after: Tensor) -> Tensor:  # of the parabola through three neighbouring values
        return ((before - after) / 2 / (before - 2 * height + after).clamp(max=-1e-9)).clamp(-0.5, 0.5)

    # Fewer peaks than lags leave arbitrary, invalid places, at the border too: stay inside.
    r, c = row.clamp(1, full - 2), column.clamp(1, full - 2)
    down = row - px + vertex(raw[image, r - 1, column], raw[image, r + 1, column])
    right = column - px + vertex(raw[image, row, c - 1], raw[image, row, c + 1])
    x = torch.arange(px, device=images.device, dtype=images.dtype)
    at_row = (x[:, None] + down[:, :, None, None]).expand(-1, -1, -1, px)
    at_column = (x + right[:, :, None, None]).expand(-1, -1, px, -1)
    total, count = torch.zeros_like(images), torch.zeros_like(images)
    for k in range(lags):
        grid = torch.stack([at_column[:, k], at_row[:, k]], dim=-1) * 2 / (px - 1) - 1
        inside = (grid.abs() <= 1).all(-1)[:, None] & valid[:, k, None, None, None]
        total += F.grid_sample(images, grid, align_corners=True) * inside
        count += inside
    return torch.where(count > 0, images - total / count.clamp(min=1), 0.0)


@dataclass(frozen=True)
class DefectImages:
    """B labelled micrographs."""

    images: Tensor  # (B, 1, image_px, image_px) as `render`'s
    kinds: Tensor  # (B,) long, row of DEFECTS
    view: View
    contrast: Tensor  # (B,) largest change of the noiseless image over the pristine image's range
    visibility: Tensor  # (B,) signal to noise of the change, as an observer sees it who knows where to look


def defect_images(
    structures: Structures,
    rows: Sequence[int] | np.ndarray,
    kinds: Sequence[int] | np.ndarray,
    keys: Sequence[int],
    *,
    optics: Optics,
    held_out: bool,
    device: torch.device | str = "cpu",
) -> DefectImages:
    """Noisy micrographs of crystals with one defect near the middle of the frame.

    - vacancy: half to all of the atoms of one projected site are gone;
    - substitution: as many are of another element, |ΔZ| ≥ 5;
    - interstitial: as many atoms of one of the host's elements stand in the widest gap between the columns;
    - planar fault: beyond a line along a lattice row, the crystal is mirrored in that line (twin) or displaced along it
      by a half or a third of the lattice vector (antiphase).

    Sites, elements and faults whose noiseless image differs too little from the pristine one are drawn anew, a few
    times. The view depends on the key alone: one key with five kinds gives images that differ in defect and noise.

    Args:
        structures: where the hosts are.
        rows: (B,) which host.
        kinds: (B,) row of DEFECTS.
        keys: (B,) from `view_seed`.
        optics: the microscope.
        held_out: substitute by the element pairs held out for testing, or by the others.
        device: where to compute.
    """
    rows, kinds = np.asarray(rows, dtype=np.int64), np.asarray(kinds, dtype=np.int64)
    seeds = bits(np.asarray(keys, dtype=np.uint64), len(DEFECTS))[np.arange(len(rows)), kinds]  # a defect's own draws
    view = draw_views(structures.lattice[rows], keys, optics=optics, device=device)
    columns = project(structures, rows, view, optics=optics)
    pristine = expose(columns, view, optics=optics)
    span = (pristine.amax((1, 2)) - pristine.amin((1, 2))).clamp(min=1e-12)

    expected, contrast = pristine.clone(), torch.zeros_like(span)
    todo = torch.as_tensor(np.flatnonzero(kinds), device=device)
    draws = uniforms(seeds, ATTEMPTS * _DRAWS).reshape(len(rows), ATTEMPTS, _DRAWS)
    draws = torch.as_tensor(draws, dtype=torch.float32, device=device)
    for attempt in range(ATTEMPTS):
        if not len(todo):
            break
        there = todo.cpu().numpy()
        number = torch.full((len(rows),), -1, device=device)
        number[todo] = torch.arange(len(todo), device=device)
        own = columns.where(number[columns.image] >= 0)
        own = Columns(number[own.image], *list(vars(own).values())[1:])
        flawed = _insert(
            own,
            structures,
            rows[there],
            kinds[there],
            view.take(todo),
            draws[todo, attempt],
            optics=optics,
            held_out=held_out,
        )
        image = expose(flawed, view.take(todo), optics=optics)
        change = (image - pristine[todo]).abs().amax((1, 2)) / span[todo]
        better = change > contrast[todo]
        expected[todo[better]], contrast[todo[better]] = image[better], change[better]
        todo = todo[change < MIN_CONTRAST]

    noise2 = (expected + pristine).clamp(min=1e-12) / 2  # Poisson
    visibility = ((expected - pristine) ** 2 / noise2).sum((1, 2)).sqrt()
    images = standardise(stabilise(detect(expected, seeds)))
    return DefectImages(images, torch.as_tensor(kinds, device=device), view, contrast, visibility)


_GAPS = 48  # places tried for an interstitial
_DRAWS = 7 + 2 * _GAPS  # uniform numbers that one attempt uses


def _insert(
    columns: Columns,
    structures: Structures,
    rows: np.ndarray,
    kinds: np.ndarray,
    view: View,
    u: Tensor,
    *,
    optics: Optics,
    held_out: bool,
) -> Columns:
    """Pristine columns of B images -> columns with one defect each, from uniform numbers (B, _DRAWS)."""
    device, size = u.device, len(rows)
    extent = optics.image_px * optics.pixel_A
    kind = torch.as_tensor(kinds, device=device)
    target = (u[:, :2] - 0.5) * extent / 2  # in the middle quarter of the frame
    n_atoms = torch.as_tensor(np.diff(structures.ptr)[rows], device=device)

    # The site: of a random atom of the cell, the copy nearest to the target (any atom if there is none in view).
    wanted = (u[:, 2] * n_atoms).long()
    distance = (columns.position_A - target[columns.image]).norm(dim=1) + 1e3 * (columns.site != wanted[columns.image])
    nearest = distance.new_full((size,), math.inf).scatter_reduce(0, columns.image, distance, "amin")
    candidates = (distance == nearest[columns.image]).nonzero()[:, 0]
    first = torch.full((size,), len(distance), device=device)
    first = first.scatter_reduce(0, columns.image[candidates], candidates, "amin")
    has_site = first < len(distance)
    # An image without any site has nothing to lose or to replace: it stays as it is.
    image = torch.arange(size, device=device)[has_site]
    chosen = columns.where(first[has_site])
    some = ((0.5 + 0.5 * u[image, 3]) * chosen.atoms).ceil()

    atoms = columns.atoms.clone()
    loses = (kind[image] == DEFECTS.index("vacancy")) | (kind[image] == DEFECTS.index("substitution"))
    atoms[first[image][loses]] -= some[loses]
    columns = Columns(columns.image, columns.site, columns.number, columns.position_A, atoms)

    swaps = kind[image] == DEFECTS.index("substitution")
    old = chosen.number[swaps].long().cpu().numpy()
    options, count = substituents(held_out=held_out)
    pick = (u[image[swaps], 4].cpu().numpy() * count[old]).astype(int)
    new = torch.as_tensor(options[old, pick], dtype=torch.float32, device=device)
    replacement = Columns(image[swaps], chosen.site[swaps], new, chosen.position_A[swaps], some[swaps])

    adds = kind[image] == DEFECTS.index("interstitial")
    gap = _widest_gap(columns, (u[:, 7:].view(size, _GAPS, 2) - 0.5) * extent / 2)
    extra = Columns(image[adds], chosen.site[adds], chosen.number[adds], gap[image[adds]], some[adds])

    fault = (kind == DEFECTS.index("planar_fault")).nonzero()[:, 0]
    far = torch.zeros(len(columns.image), dtype=torch.bool, device=device)
    beyond = columns.where(far)
    if len(fault):
        part, p0, v = view.take(fault), target[fault], u[fault]
        _, basis, _ = projected_lattice(
            torch.as_tensor(structures.lattice[rows[fault.cpu().numpy()]], device=device), part.axis
        )
        cos, sin = part.rotation.cos(), part.rotation.sin()
        turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
        along = (basis.float() @ turn)[torch.arange(len(fault), device=device), (v[:, 4] < 0.5).long()]  # (F, 2)
        unit = along / along.norm(dim=1, keepdim=True)
        twin = (v[:, 5] < 0.5)[:, None]
        identity = torch.eye(2, device=device)
        mirror = torch.where(twin[:, :, None], 2 * unit[:, :, None] * unit[:, None] - identity, identity)
        glide = torch.where(v[:, 6:7] < 0.5, 1 / 2, 1 / 3) * along
        offset = torch.where(twin, p0 - (p0[:, None] @ mirror)[:, 0], glide)
        there = fault.cpu().numpy()
        second = project(structures, rows[there], part, optics=optics, mirror=mirror, offset_A=offset)
        second = Columns(fault[second.image], *list(vars(second).values())[1:])

        point, normal = target.clone(), torch.zeros_like(target)  # a zero normal: nothing lies beyond
        normal[fault] = torch.stack([-unit[:, 1], unit[:, 0]], dim=1)

        def is_beyond(c: Columns) -> Tensor:
            return ((c.position_A - point[c.image]) * normal[c.image]).sum(1) > 0

        far, beyond = is_beyond(columns), second.where(is_beyond(second))
    return columns.where(~far) + replacement + extra + beyond


def _widest_gap(columns: Columns, places: Tensor) -> Tensor:
    """Of each image's places (B, P, 2) the one farthest from any column, (B, 2)."""
    size, tried, _ = places.shape
    distance = (places[columns.image] - columns.position_A[:, None]).norm(dim=2)  # (K, P)
    index = columns.image[:, None].expand(-1, tried)
    room = distance.new_full((size, tried), 1e3).scatter_reduce(0, index, distance, "amin")
    return places[torch.arange(size, device=places.device), room.argmax(1)]


@functools.cache
def substituents(*, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Elements that may replace an element: |ΔZ| ≥ 5, and the unordered pair on one side of a fixed split by hash.

    Args:
        held_out: the fifth of the pairs that only test images show, or the others.

    Returns:
        options: (119, n) atomic numbers, row Z lists the substituents of Z first.
        count: (119,) how many of them hold.
    """
    options = np.zeros((119, len(SUBSTITUENTS)), dtype=np.int64)
    count = np.zeros(119, dtype=np.int64)
    for old in range(1, 119):
        allowed = [
            new
            for new in SUBSTITUENTS
            if abs(new - old) >= 5 and (view_seed(0, 0, f"{min(old, new)}-{max(old, new)}", 0) % 5 == 0) == held_out
        ]
        options[old, : len(allowed)], count[old] = allowed, len(allowed)
    return options, count
