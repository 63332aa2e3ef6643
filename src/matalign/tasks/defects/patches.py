"""Experimental micrographs with known defects, registered with their crystals: nothing is trained.

The patches are those of RAW-Ayyubi/defect-classification-in-stem-images (commit c4cf67a), of Ayyubi et al., npj Comput.
Mater. (2026), doi 10.1038/s41524-026-02024-x: 1,883 cuttings of 64 pixels in eleven classes, without a scale. Windows
slide over one frame of CdTe and one of SrTiO3, which the archive holds too, and over a second frame of CdTe (its bulk):
they overlap, so what is measured is of two specimens, not of 1,883. `located` finds where each was cut.
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from matalign.data.sources import used_files
from matalign.data.structures import Structures
from matalign.views import anomalies, identification, references, registration

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
CRYSTALS = Structures.pack(
    [
        (np.array([48] * 4 + [52] * 4), np.concatenate([FCC, FCC + 0.25]), 6.482 * np.eye(3)),
        (np.array([38, 22, 8, 8, 8]), np.concatenate([FCC[:1], [[0.5] * 3], FCC[1:]]), 3.905 * np.eye(3)),
    ]
)
MATERIALS = {"CdTe": "DataSet_CdTe", "SrTiO3": "DataSet_STO"}  # in the order of CRYSTALS, with the archive's folders
FRAMES = {"CdTe": "CdTe_Training_Image", "SrTiO3": "STO_Training_Image"}
BULK = "Bulk"
AGREES = 0.2  # median difference from the frame, over its spread, up to which a patch is of that place
CHANGED = 30  # grey levels beyond which a pixel of a patch is painted over, not compressed otherwise
SAME, SHARED = 0.98, 0.12  # correlation of two cuttings of one place, and the share of a patch that it is judged on
RANGE_A = (0.1, 0.6)  # of unknown pixel sizes
PROBE_A = 0.6
KEEP = 6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALIKE = 0.01  # correlations that nearer are not told apart
NEAR = 0.05  # a pixel size within this of the bulk's median is right


@dataclass(frozen=True)
class Patches:
    """Labelled micrographs of one material, in the order of their classes and numbers."""

    images: Tensor  # (n, 1, 64, 64) as in the file, colours averaged
    label: np.ndarray  # (n,) class, as the file's name has it
    number: np.ndarray  # (n,) in the class
    frame: Tensor  # (H, W) that patches are cut from


@dataclass(frozen=True)
class Places:
    """Where n patches were cut."""

    corner: np.ndarray  # (n, 2) row and column
    own: np.ndarray  # (n,) in the frame; the others are of another frame, relative to the first of them
    painted: np.ndarray  # (n,) share of the pixels that are not the frame's; nan in another frame
    region: np.ndarray  # (n,) patches of different numbers overlap little, those of one number overlap the same patch

    def overlap(self, one: np.ndarray, other: np.ndarray, *, px: int) -> np.ndarray:
        """(a, b) whether patches share pixels."""
        near = (np.abs(self.corner[one][:, None] - self.corner[other]) < px).all(2)
        return near & (self.own[one][:, None] == self.own[other])


def read(archive: Path, material: str) -> Patches:
    """The patches of one of MATERIALS, out of the repository's archive as GitHub makes it."""
    found, frame = [], None
    for name, content in used_files(archive):
        path = Path(name)
        if path.parent.name == MATERIALS[material]:
            label, _, number = path.stem.rpartition("_")
            found.append((label, int(number), _grey(content)))
        elif path.stem == FRAMES[material]:
            frame = torch.as_tensor(_grey(content))
    if not found or frame is None:
        raise ValueError(f"{archive}: no patch of {material}, or not the frame that patches are cut from")
    label, number, images = zip(*sorted(found, key=lambda each: each[:2]), strict=True)
    return Patches(torch.as_tensor(np.stack(images))[:, None], np.array(label), np.array(number), frame)


def _grey(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"), np.float32).mean(2)


def located(patches: Patches) -> Places:
    """Where patches were cut: in the frame, by normalised correlation; those of another frame beside one another."""
    images, frame = patches.images[:, 0], patches.frame
    px, full = images.shape[-1], frame.shape
    unit = images - images.mean((1, 2), keepdim=True)
    window = torch.fft.rfft2(torch.ones(px, px), s=full).conj()
    centred = frame - frame.mean()
    spectrum = torch.fft.rfft2(centred)
    total, square = (torch.fft.irfft2(s * window, s=full) for s in (spectrum, torch.fft.rfft2(centred**2)))
    spread = (square - total**2 / px**2).clamp(min=1).sqrt()[: full[0] - px + 1, : full[1] - px + 1]
    corner = np.zeros((len(images), 2), int)
    for i, each in enumerate(unit):
        fit = torch.fft.irfft2(spectrum * torch.fft.rfft2(each, s=full).conj(), s=full)
        best = int((fit[: len(spread), : spread.shape[1]] / spread).argmax())
        corner[i] = divmod(best, spread.shape[1])
    difference = (images - windows(frame, corner, px)).abs().flatten(1)
    own = (difference.median(1).values / images.flatten(1).std(1)).numpy() < AGREES
    painted = np.where(own, (difference > CHANGED).float().mean(1).numpy(), np.nan)
    if not own.all():
        corner[~own] = _chained(unit[torch.as_tensor(~own)])
    places = Places(corner, own, painted, np.zeros(len(own), int))
    return replace(places, region=_regions(places, px=px))


def windows(frame: Tensor, corner: np.ndarray, px: int) -> Tensor:
    """(n, px, px) of a frame at corners (n, 2)."""
    return torch.stack([frame[row : row + px, column : column + px] for row, column in corner])


def _chained(unit: Tensor) -> np.ndarray:
    """(n, 2) corners of overlapping cuttings (n, px, px) of zero mean, the first at (0, 0); unconnected: far off."""
    size, px = unit.shape[:2]
    full = (2 * px, 2 * px)
    spectrum, window = torch.fft.rfft2(unit, s=full), torch.fft.rfft2(torch.ones(px, px), s=full)
    shared = torch.fft.irfft2(window * window.conj(), s=full)
    # energy of what is shared, by lag
    here = torch.fft.irfft2(torch.fft.rfft2(unit**2, s=full) * window.conj(), s=full)
    corner, todo, queue = np.zeros((size, 2), int), set(range(1, size)), [0]
    while todo:
        if not queue:
            queue = [todo.pop()]
            corner[queue[0]] = 1000 * queue[0]
        one, rest = queue.pop(), np.array(sorted(todo), int)
        other = torch.roll(here[one].flip((0, 1)), (1, 1), (0, 1))
        fit = torch.fft.irfft2(spectrum[rest] * spectrum[one].conj(), s=full)
        fit = torch.where(shared > SHARED * px**2, fit / (here[rest] * other).clamp(min=1).sqrt(), -1.0)
        best, at = fit.flatten(1).max(1)
        for row, lag in zip(rest[best.numpy() > SAME], at[best > SAME].tolist(), strict=True):
            corner[row] = corner[one] - [(n + px) % (2 * px) - px for n in divmod(lag, 2 * px)]
            todo.discard(int(row))
            queue.append(int(row))
    return corner


def _regions(places: Places, *, px: int) -> np.ndarray:
    """(n,) the first patches that do not overlap one another count up; each other joins the first it overlaps most."""
    leaders: list[int] = []
    for i in range(len(places.corner)):
        if not places.overlap(np.array([i]), np.array(leaders, int), px=px).any():
            leaders.append(i)
    every = np.arange(len(places.corner))
    distance = np.abs(places.corner[:, None] - places.corner[leaders]).max(2).astype(float)
    distance[~places.overlap(every, np.array(leaders), px=px)] = np.inf
    return distance.argmin(1)


@dataclass(frozen=True)
class Measured:
    """Patches registered with their crystal, at unknown scale, and at the scale and axis found in the bulk."""

    patches: Patches
    refs: references.References
    free: registration.Registration
    known: registration.Registration
    axis: int  # which of the references the bulk is seen along
    pixel_A: float
    right: np.ndarray  # (n,) zone axis and pixel size at unknown scale are the bulk's


def measure(patches: Patches, material: str) -> Measured:
    """Register patches with their crystal; nothing is trained, and of the labels only the bulk's is read."""
    row = list(MATERIALS).index(material)
    refs = references.low_index(CRYSTALS, row, probe_sigma_A=PROBE_A)
    every = np.tile(np.arange(len(refs)), (len(patches.label), 1))
    free = registration.register(patches.images, refs, every, pixel_A=RANGE_A, keep=KEEP)
    bulk = torch.as_tensor(patches.label == BULK)
    axis = int(free.choice[bulk].mode().values)
    pixel_A = free.pixel_A[bulk].median().item()
    known = registration.register(patches.images, refs, every[:, axis], pixel_A=pixel_A, tolerance=0.02, keep=KEEP)
    right = (free.choice == axis) & ((free.pixel_A / pixel_A - 1).abs() < NEAR)
    return Measured(patches, refs, free, known, axis, pixel_A, right.numpy())


def summary(measured: Measured) -> dict[str, Any]:
    """What registration finds.

    Returns:
        The bulk's `zone_axis`, `pixel_A`, `pixel_spread` (standard deviation over patches, relative) and `pixel_error`
        (as registration states it); `classes`: rows {scale, label, n, right, correlation, pixel_A and anomaly at
        `QUANTILES`, kinds of the first candidate}.
    """
    free, patches, bulk = measured.free, measured.patches, torch.as_tensor(measured.patches.label == BULK)
    chosen = {"unknown": free.choice.numpy(), "known": np.full(len(bulk), measured.axis)}
    rows = []
    for scale, found in (("unknown", free), ("known", measured.known)):
        rows += [{"scale": scale, **row} for row in _by_class(found, measured, chosen[scale])]
    return {
        "zone_axis": "".join(map(str, references.ZONE_AXES[measured.refs.axis[measured.axis]])),
        "pixel_A": measured.pixel_A,
        "pixel_spread": (free.pixel_A[bulk].std() / measured.pixel_A).item(),
        "pixel_error": free.pixel_error[bulk].median().item(),
        "n": len(patches.label),
        "classes": rows,
    }


def evenly(patches: Patches, count: int) -> dict[str, np.ndarray]:
    """Of each class at most so many rows, evenly out of it."""
    out = {}
    for label in labels(patches):
        rows = np.flatnonzero(patches.label == label)
        out[label] = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return out


def ranks(
    patches: Patches,
    structures: Structures,
    refs: references.References,
    true: int,
    *,
    pixel_A: float | tuple[float, float],
    per_class: int,
) -> dict[str, dict[str, Any]]:
    """Where a crystal comes among many, by how well each fits; `refs`: their `identification.library` at PROBE_A.

    Returns:
        Of each class the ranks, the `alike`: how many crystals come within ALIKE of its correlation or above, and the
        rows of those that come first in most patches.
    """
    chosen = evenly(patches, per_class)
    images = patches.images[np.concatenate(list(chosen.values()))]
    ranked = iter(identification.identify(images, structures, refs, pixel_A=pixel_A, probe_sigma_A=PROBE_A))
    out = {}
    for label, rows in chosen.items():
        found = [next(ranked) for _ in rows]
        first, times = np.unique([each.correlation.argmax() for each in found], return_counts=True)
        out[label] = {
            "rank": [each.rank(true) for each in found],
            "alike": [int((each.correlation > each.correlation[true] - ALIKE).sum()) for each in found],
            "correlation": [float(each.correlation[true]) for each in found],
            "best": [float(each.correlation.max()) for each in found],
            "first": first[np.argsort(-times, kind="stable")][:5].tolist(),
        }
    return out


def labels(patches: Patches) -> list[str]:
    """The classes, bulk first."""
    return sorted(set(patches.label.tolist()), key=lambda label: (label != BULK, label))


def _by_class(found: registration.Registration, measured: Measured, chosen: np.ndarray) -> list[dict[str, Any]]:
    label, score = measured.patches.label, anomalies.score(found).numpy()
    listed = anomalies.anomalies(found, measured.refs, chosen, CRYSTALS)
    first = np.array([each[0].kind if each else "none" for each in listed])
    values = {"correlation": found.correlation.numpy(), "pixel_A": found.pixel_A.numpy(), "anomaly": score}
    rows = []
    for name in labels(measured.patches):
        here = label == name
        kinds, counts = np.unique(first[here], return_counts=True)
        row = {"label": name, "n": int(here.sum()), "right": float(measured.right[here].mean())}
        row |= {key: np.quantile(each[here], QUANTILES).tolist() for key, each in values.items()}
        rows.append({**row, "kinds": dict(zip(kinds.tolist(), counts.tolist(), strict=True))})
    return rows


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """How often one of `high` exceeds one of `low`; ties count half."""
    ranks = rankdata(np.concatenate([low, high]))[len(low) :]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))
