"""Micrographs of crystals with one defect, and what of an image does not repeat."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matalign.data.dataset import Structures
from matalign.views import micrographs
from matalign.views.draws import bits, uniforms, view_seed
from matalign.views.micrographs import Columns, Optics, View, expose, project

DEFECTS = ("pristine", "vacancy", "substitution", "interstitial", "planar_fault")
MIN_CONTRAST = 0.1  # of a visible defect: largest change of the noiseless image over the pristine image's range
ATTEMPTS = 5  # draws of a defect before it is left invisible
# Elements put in a host's place: lithium to bismuth without noble gases, technetium and promethium.
SUBSTITUENTS = tuple(z for z in range(3, 84) if z not in (10, 18, 36, 43, 54, 61))
LAGS = 8  # displacements that show what does not repeat; they come in pairs ±v
_GAPS = 48  # places tried for an interstitial
_DRAWS = 7 + 2 * _GAPS  # uniform numbers that one attempt uses


@dataclass(frozen=True)
class DefectImages:
    """B labelled micrographs."""

    images: Tensor  # (B, 1, image_px, image_px) as `render`'s
    kinds: Tensor  # (B,) long, row of DEFECTS
    view: View
    contrast: Tensor  # (B,) largest change of the noiseless image over the pristine image's range
    visibility: Tensor  # (B,) signal to noise of the change, as an observer sees it who knows where to look


def render(
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
        rows: (B,) which host.
        kinds: (B,) row of DEFECTS.
        keys: (B,) from `view_seed`.
        held_out: substitute by the element pairs held out for testing, or by the others.
    """
    rows, kinds = np.asarray(rows, dtype=np.int64), np.asarray(kinds, dtype=np.int64)
    seeds = bits(np.asarray(keys, dtype=np.uint64), len(DEFECTS))[np.arange(len(rows)), kinds]  # a defect's own draws
    view = micrographs.draw_views(structures.lattice[rows], keys, optics=optics, device=device)
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
        there, part, u = todo.cpu().numpy(), view.take(todo), draws[todo, attempt]
        own = _of_images(columns, todo, size=len(rows))
        flawed = _insert(own, structures, rows[there], kinds[there], part, u, optics=optics, held_out=held_out)
        image = expose(flawed, part, optics=optics)
        change = (image - pristine[todo]).abs().amax((1, 2)) / span[todo]
        better = change > contrast[todo]
        expected[todo[better]], contrast[todo[better]] = image[better], change[better]
        todo = todo[change < MIN_CONTRAST]

    noise2 = (expected + pristine).clamp(min=1e-12) / 2  # Poisson
    visibility = ((expected - pristine) ** 2 / noise2).sum((1, 2)).sqrt()
    images = micrographs.standardise(micrographs.stabilise(micrographs.detect(expected, seeds)))
    return DefectImages(images, torch.as_tensor(kinds, device=device), view, contrast, visibility)


def _of_images(columns: Columns, images: Tensor, *, size: int) -> Columns:
    """The columns of some of `size` images, numbered anew in the order of these."""
    number = torch.full((size,), -1, device=images.device)
    number[images] = torch.arange(len(images), device=images.device)
    own = columns.where(number[columns.image] >= 0)
    return Columns(number[own.image], *list(vars(own).values())[1:])


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
    first = _nearest_site(columns, target, (u[:, 2] * n_atoms).long())
    # An image without any site has nothing to lose or to replace: it stays as it is.
    image = torch.arange(size, device=device)[first < len(columns.image)]
    chosen = columns.where(first[image])
    some = ((0.5 + 0.5 * u[image, 3]) * chosen.atoms).ceil()
    is_kind = {name: kind[image] == number for number, name in enumerate(DEFECTS)}

    atoms = columns.atoms.clone()
    loses, swaps, adds = is_kind["vacancy"] | is_kind["substitution"], is_kind["substitution"], is_kind["interstitial"]
    atoms[first[image][loses]] -= some[loses]
    columns = Columns(columns.image, columns.site, columns.number, columns.position_A, atoms)

    old = chosen.number[swaps].long().cpu().numpy()
    options, count = substituents(held_out=held_out)
    pick = (u[image[swaps], 4].cpu().numpy() * count[old]).astype(int)
    new = torch.as_tensor(options[old, pick], dtype=torch.float32, device=device)
    replacement = Columns(image[swaps], chosen.site[swaps], new, chosen.position_A[swaps], some[swaps])

    gap = _widest_gap(columns, (u[:, 7:].view(size, _GAPS, 2) - 0.5) * extent / 2)
    extra = Columns(image[adds], chosen.site[adds], chosen.number[adds], gap[image[adds]], some[adds])

    fault = (kind == DEFECTS.index("planar_fault")).nonzero()[:, 0]
    if not len(fault):
        return columns + replacement + extra
    unit, second = _other_domain(structures, rows, view, fault, target, u, optics=optics)
    normal = torch.zeros_like(target)  # a zero normal: nothing lies beyond
    normal[fault] = torch.stack([-unit[:, 1], unit[:, 0]], dim=1)
    here, there = (((c.position_A - target[c.image]) * normal[c.image]).sum(1) > 0 for c in (columns, second))
    return columns.where(~here) + replacement + extra + second.where(there)


def _nearest_site(columns: Columns, target: Tensor, wanted: Tensor) -> Tensor:
    """(B,) the column of each image where a defect goes, or how many columns there are if the image has none.

    Of a wanted atom of the cell (B,) it is the copy nearest to the target (B, 2), or any atom if there is none in view.
    """
    distance = (columns.position_A - target[columns.image]).norm(dim=1) + 1e3 * (columns.site != wanted[columns.image])
    nearest = distance.new_full((len(target),), math.inf).scatter_reduce(0, columns.image, distance, "amin")
    candidates = (distance == nearest[columns.image]).nonzero()[:, 0]
    first = torch.full((len(target),), len(distance), device=target.device)
    return first.scatter_reduce(0, columns.image[candidates], candidates, "amin")


def _other_domain(
    structures: Structures, rows: np.ndarray, view: View, fault: Tensor, target: Tensor, u: Tensor, *, optics: Optics
) -> tuple[Tensor, Columns]:
    """Beyond a fault through the target the crystal is mirrored in its line (twin), or displaced along it (antiphase).

    Of the images `fault` (F,): (F, 2) unit vectors along the line, and the other domain's columns over the frame.
    """
    part, p0, v, there = view.take(fault), target[fault], u[fault], rows[fault.cpu().numpy()]
    _, basis, _ = micrographs.projected_lattice(torch.as_tensor(structures.lattice[there], device=u.device), part.axis)
    cos, sin = part.rotation.cos(), part.rotation.sin()
    turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    along = (basis.float() @ turn)[torch.arange(len(fault), device=u.device), (v[:, 4] < 0.5).long()]  # (F, 2)
    unit = along / along.norm(dim=1, keepdim=True)
    twin = (v[:, 5] < 0.5)[:, None]
    identity = torch.eye(2, device=u.device)
    mirror = torch.where(twin[:, :, None], 2 * unit[:, :, None] * unit[:, None] - identity, identity)
    glide = torch.where(v[:, 6:7] < 0.5, 1 / 2, 1 / 3) * along
    offset = torch.where(twin, p0 - (p0[:, None] @ mirror)[:, 0], glide)
    columns = project(structures, there, part, optics=optics, mirror=mirror, offset_A=offset)
    return unit, Columns(fault[columns.image], *list(vars(columns).values())[1:])


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

    The fifth of the pairs that only test images show is `held_out`.

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


def aperiodic(images: Tensor, *, pixel_A: float) -> Tensor:
    """What does not repeat: each image less the mean of its copies displaced by its own lattice vectors.

    A perfect crystal leaves noise, a defect itself and faint ghosts a lattice vector away. Of standardised images
    (B, 1, H, H) as many; zero where no displaced copy covers the pixel.
    """
    px = images.shape[-1]
    down, right, valid = _lattice_vectors(images, pixel_A)
    x = torch.arange(px, device=images.device, dtype=images.dtype)
    at_row = (x[:, None] + down[:, :, None, None]).expand(-1, -1, -1, px)
    at_column = (x + right[:, :, None, None]).expand(-1, -1, px, -1)
    total, count = torch.zeros_like(images), torch.zeros_like(images)
    for k in range(LAGS):
        grid = torch.stack([at_column[:, k], at_row[:, k]], dim=-1) * 2 / (px - 1) - 1
        inside = (grid.abs() <= 1).all(-1)[:, None] & valid[:, k, None, None, None]
        total += F.grid_sample(images, grid, align_corners=True) * inside
        count += inside
    return torch.where(count > 0, images - total / count.clamp(min=1), 0.0)


def _lattice_vectors(images: Tensor, pixel_A: float) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors by which an image repeats: the `LAGS` highest peaks of its autocorrelation, to a fraction of a pixel.

    Rows down and columns to the right, (B, LAGS) pixels each, and (B, LAGS) which of them are vectors. Peaks are
    weighted by the square root of the overlap (short vectors first, as those of little overlap are noisy); those below
    0.7 of the highest are none.
    """
    size, _, px, _ = images.shape
    full = 2 * px
    overlap = _correlation(torch.ones(px, px, device=images.device)).clamp(min=0.5)
    raw = F.avg_pool2d(_correlation(images) / overlap, 3, stride=1, padding=1)  # (B, 1, 2 px, 2 px)
    lag = torch.arange(full, device=images.device) - px
    far = (lag[:, None] ** 2 + lag**2).sqrt() * pixel_A >= 1.6  # no two columns of one kind are nearer
    near = (lag[:, None].abs() <= 0.6 * px) & (lag.abs() <= 0.6 * px)
    peak = (raw == F.max_pool2d(raw, 5, stride=1, padding=2)) & far & near
    score = torch.where(peak, raw * (overlap / px**2).sqrt(), -math.inf)[:, 0]
    raw, (score, index) = raw[:, 0], score.flatten(1).topk(LAGS)  # (B, LAGS)
    row, column, image = index // full, index % full, torch.arange(size, device=images.device)[:, None]
    height = raw[image, row, column]
    valid = score.isfinite() & (height >= 0.7 * height.where(score.isfinite(), -math.inf).amax(1, keepdim=True))
    # Fewer peaks than lags leave arbitrary, invalid places, at the border too: stay inside.
    r, c = row.clamp(1, full - 2), column.clamp(1, full - 2)
    down = row - px + _vertex(raw[image, r - 1, column], height, raw[image, r + 1, column])
    right = column - px + _vertex(raw[image, row, c - 1], height, raw[image, row, c + 1])
    return down, right, valid


def _correlation(images: Tensor) -> Tensor:
    """(…, 2 H, 2 H) autocorrelation of images (…, H, H), not periodic; lag 0 is at (H, H)."""
    full = 2 * images.shape[-1]
    spectrum = torch.fft.rfft2(images, s=(full, full)).abs().square()
    return torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(full, full)), dim=(-2, -1))


def _vertex(before: Tensor, height: Tensor, after: Tensor) -> Tensor:
    """Where the parabola through three neighbouring values is highest, from the middle one, in -0.5 … 0.5."""
    return ((before - after) / 2 / (before - 2 * height + after).clamp(max=-1e-9)).clamp(-0.5, 0.5)
