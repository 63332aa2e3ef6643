"""A micrograph against crystals: which fits, at what scale and orientation, and where the image departs from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from matalign.data import formulas
from matalign.data.readers.crystals import read_structure
from matalign.data.readers.micrographs import Micrograph, read_micrograph
from matalign.data.structures import Structures
from matalign.views import anomalies, references, registration
from matalign.views.anomalies import Anomaly
from matalign.views.micrographs import ZONE_AXES

MOST_PX = 256  # of a side; of larger images the middle is looked at
COARSEST_A = 0.6  # pixels of an image of unknown scale: columns 2 Å apart are just told apart
FEWEST_A = 6.0  # across such an image at least
PROBE_A = 0.6  # width of the probe that the search begins with
KEEP = 6  # places that are refined
BEHIND = 0.002  # by how much the correlation must gain before a crystal is said to be seen from behind
SCALE = 4  # of the pictures that are written


@dataclass(frozen=True, eq=False)
class Match:
    """One crystal, registered with one image."""

    formula: str  # of the crystal
    correlation: float  # normalised, of the image and the pristine picture
    zone_axis: tuple[int, int, int]  # [uvw] of the lattice as given, that points to the viewer
    rotation_deg: float  # of the crystal in the image plane
    shift_A: tuple[float, float]  # of the cell's origin from the image's centre, down and right, up to lattice vectors
    pixel_A: float  # Å per pixel along the fast scan direction (columns)
    pixel_error_A: float  # its standard error
    anomaly: float  # largest smoothed residual over the pristine picture's standard deviation
    candidates: tuple[Anomaly, ...]  # where the image departs from the crystal, strongest first
    image: Float[np.ndarray, "height width"]  # what was looked at
    reference: Float[np.ndarray, "height width"]  # the pristine picture
    residual: Float[np.ndarray, "height width"]  # image - gain · reference - offset


def register(
    image: Any, structures: Sequence[Any] | Structures, *, pixel_A: float | None = None, frame: int | None = None
) -> list[Match]:
    """Find each crystal in a micrograph, along any zone axis of low index; one match each, in their order.

    Args:
        image: path, array (height, width) or `Micrograph`; of more than 256 pixels a side, the middle is looked at.
        structures: n of any kind that `read_structure` takes.
        pixel_A: Å per pixel, right within a few per cent; None: as the file states, and if it states none, unknown.
        frame: which image of a file with several.

    Raises:
        ValueError: an image or structure that cannot be read, or an image without contrast.
    """
    shot = image if isinstance(image, Micrograph) else read_micrograph(image, pixel_A=pixel_A, frame=frame)
    counts = shot.counts
    top, left = (max(0, (n - MOST_PX) // 2) for n in counts.shape)
    counts = counts[top : top + MOST_PX, left : left + MOST_PX].astype(np.float64)
    if min(counts.shape) < 16 or counts.std() < 1e-9 * max(np.abs(counts).max(), 1e-9):
        raise ValueError(f"{shot.name}: {counts.shape[1]} × {counts.shape[0]} pixels without contrast, or below 16")
    pixels = torch.as_tensor((counts - counts.mean()) / counts.std(), dtype=torch.float32)[None, None]
    scale = shot.pixel_A or (min(FEWEST_A / min(counts.shape), COARSEST_A / 2), COARSEST_A)
    crystals = structures
    if not isinstance(structures, Structures):
        crystals = Structures.pack([read_structure(each).arrays for each in structures])
    return [_match(pixels, crystals, row, scale) for row in range(len(crystals))]


def _match(pixels: torch.Tensor, crystals: Structures, row: int, scale: float | tuple[float, float]) -> Match:
    found = []
    for mirrored in (False, True):
        refs = references.low_index(crystals, row, mirrored=mirrored, probe_sigma_A=PROBE_A)
        which = np.arange(len(refs))[None]
        found.append((refs, registration.register(pixels, refs, which, pixel_A=scale, keep=KEEP)))
    (_, front), (_, back) = found
    refs, best = found[int(back.correlation.item() > front.correlation.item() + BEHIND)]
    chosen = best.choice.item()
    axis = ZONE_AXES[refs.axis[chosen]]
    pixel_A = best.pixel_A.item()
    return Match(
        formula=formulas.spelled(crystals[row][0]),
        correlation=best.correlation.item(),
        zone_axis=tuple(-n for n in axis) if refs.mirrored[chosen] else axis,
        rotation_deg=float(np.degrees(best.rotation.item()) % 360),
        shift_A=tuple(best.shift_A[0].tolist()),
        pixel_A=pixel_A,
        pixel_error_A=pixel_A * best.pixel_error.item(),
        anomaly=anomalies.score(best).item(),
        candidates=tuple(anomalies.anomalies(best, refs, np.array([chosen]), crystals)[0]),
        image=pixels[0, 0].numpy(),
        reference=best.reference[0, 0].numpy(),
        residual=best.residual[0, 0].numpy(),
    )


def summary(match: Match) -> dict[str, Any]:
    """A match as a row of a table."""
    names = ("formula", "correlation", "zone_axis", "rotation_deg", "pixel_A", "pixel_error_A", "anomaly")
    return {name: getattr(match, name) for name in names} | {"zone_axis": "[{} {} {}]".format(*match.zone_axis)}


def write_png(match: Match, path: str | Path) -> None:
    """Write image, pristine picture and residual (blue: darker than the crystal, red: brighter) side by side."""
    from PIL import Image

    low, high = np.percentile(match.image, [0.5, 99.5])
    picture = match.reference * match.image.std() * match.correlation + match.image.mean()
    grey = np.concatenate([match.image, picture], axis=1)
    grey = np.repeat(((grey - low) / (high - low)).clip(0, 1)[..., None], 3, axis=2)
    x = (match.residual / (3 * match.image.std())).clip(-1, 1)
    residual = np.stack([1 + x.clip(max=0), 1 - np.abs(x), 1 - x.clip(min=0)], axis=2)
    panels = np.concatenate([grey, residual], axis=1)
    Image.fromarray((255 * panels).round().astype(np.uint8)).resize(
        (panels.shape[1] * SCALE, panels.shape[0] * SCALE), Image.Resampling.NEAREST
    ).save(path)
