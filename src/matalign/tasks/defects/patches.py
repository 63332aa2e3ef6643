"""Experimental micrographs with known defects, registered with their crystals: nothing is trained.

The patches are those of RAW-Ayyubi/defect-classification-in-stem-images (commit c4cf67a): 1,883 cuttings of 64 pixels
out of annular dark-field images of CdTe and SrTiO3, in eleven classes, without a scale. They are cut from a few images
and overlap, so what is measured is of two specimens, not of 1,883.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

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
BULK = "Bulk"
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


def read(archive: Path, material: str) -> Patches:
    """The patches of one of MATERIALS, out of the repository's archive as GitHub makes it."""
    found = []
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = Path(member.name)
            if path.suffix == ".tif" and path.parent.name == MATERIALS[material]:
                label, _, number = path.stem.rpartition("_")
                with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:
                    found.append((label, int(number), np.asarray(image.convert("RGB"), np.float32).mean(2)))
    if not found:
        raise ValueError(f"{archive}: no patch of {material}")
    label, number, images = zip(*sorted(found, key=lambda each: each[:2]), strict=True)
    return Patches(torch.as_tensor(np.stack(images))[:, None], np.array(label), np.array(number))


def measure(patches: Patches, material: str) -> dict[str, Any]:
    """Register patches with their crystal at unknown scale, and at the scale that this finds in the bulk.

    Returns:
        The bulk's `zone_axis`, `pixel_A` and `pixel_spread` (standard deviation over patches, relative), and of each
        class, at `unknown` and at `known` scale: quantiles of `correlation` and `pixel_A`, `n`, the share `right` (zone
        axis and pixel size as the bulk's), `auc`: by anomaly score from bulk, and the `kinds` of the first candidate.
    """
    row = list(MATERIALS).index(material)
    refs = references.low_index(CRYSTALS, row, probe_sigma_A=PROBE_A)
    every = np.tile(np.arange(len(refs)), (len(patches.label), 1))
    options = {"keep": KEEP}
    free = registration.register(patches.images, refs, every, pixel_A=RANGE_A, **options)
    bulk = torch.as_tensor(patches.label == BULK)
    axis = int(free.choice[bulk].mode().values)
    pixel_A = free.pixel_A[bulk].median().item()
    known = registration.register(patches.images, refs, every[:, axis], pixel_A=pixel_A, tolerance=0.02, **options)
    right = (free.choice == axis) & ((free.pixel_A / pixel_A - 1).abs() < NEAR)
    out = {
        "zone_axis": "".join(map(str, references.ZONE_AXES[refs.axis[axis]])),
        "pixel_A": pixel_A,
        "pixel_spread": (free.pixel_A[bulk].std() / pixel_A).item(),
        "pixel_error": free.pixel_error[bulk].median().item(),
        "right": {
            label: right[torch.as_tensor(patches.label == label)].float().mean().item() for label in labels(patches)
        },
    }
    chosen = {"unknown": free.choice.numpy(), "known": np.full(len(every), axis)}
    for name, found in (("unknown", free), ("known", known)):
        out[name] = _by_class(found, refs, chosen[name], patches)
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
    """Where a crystal comes among many, by how well each fits a patch.

    Args:
        patches: of the crystal.
        structures: n crystals.
        refs: their `identification.library` at PROBE_A.
        true: which of them it is.
        pixel_A: Å per pixel, or the range that it is looked for in.
        per_class: so many patches, evenly out of each class.

    Returns:
        Of each class the ranks, the `alike`: how many crystals come within ALIKE of its correlation or above, and the
        rows of those that come first in most patches.
    """
    chosen = {}
    for label in labels(patches):
        rows = np.flatnonzero(patches.label == label)
        chosen[label] = rows[np.linspace(0, len(rows) - 1, min(per_class, len(rows))).astype(int)]
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


def _by_class(
    found: registration.Registration, refs: references.References, chosen: np.ndarray, patches: Patches
) -> dict[str, dict[str, Any]]:
    score = anomalies.score(found).numpy()
    listed = anomalies.anomalies(found, refs, chosen, CRYSTALS)
    first = np.array([each[0].kind if each else "none" for each in listed])
    out = {}
    for label in labels(patches):
        here = patches.label == label
        kinds, counts = np.unique(first[here], return_counts=True)
        out[label] = {
            "n": int(here.sum()),
            "correlation": np.quantile(found.correlation.numpy()[here], QUANTILES).tolist(),
            "pixel_A": np.quantile(found.pixel_A.numpy()[here], QUANTILES).tolist(),
            "anomaly": np.quantile(score[here], QUANTILES).tolist(),
            "auc": auc(score[patches.label == BULK], score[here]),
            "kinds": dict(zip(kinds.tolist(), counts.tolist(), strict=True)),
        }
    return out


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """How often one of `high` exceeds one of `low`; ties count half."""
    ranks = rankdata(np.concatenate([low, high]))[len(low) :]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))
