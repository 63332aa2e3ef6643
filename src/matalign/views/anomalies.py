"""What a registered crystal does not explain of its image: how much, and where."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matalign.data.structures import Structures
from matalign.elements import SYMBOLS
from matalign.views.references import References
from matalign.views.registration import Registration

SMOOTH_A = 0.5  # standard deviation of the Gaussian that residuals are smoothed with: about a probe's
APART_A = 1.5  # candidates lie farther from one another
ON_COLUMN_A = 0.8  # what is nearer to a column is at it
CHANCE = 0.05  # share of images without a defect that noise alone gives a candidate, were it Gaussian
STRONG = (1.0, 2.5)  # or contrast and significance: a fault across the frame makes the noise seem large
BRIGHTNESSES = 8  # classes of the pristine picture's, each with its own noise
MOST = 5  # candidates of an image


@dataclass(frozen=True)
class Anomaly:
    """Where an image departs from its crystal."""

    kind: str  # missing (darker at a column), extra (brighter between columns), brighter, darker, or shift
    down_A: float  # of the image's centre
    right_A: float
    contrast: float  # over the standard deviation of the pristine picture; negative: darker
    significance: float  # over the noise of places as bright in the pristine picture; see `significance`
    column: str  # elements of the nearest column
    distance_A: float  # from it


def smoothed(found: Registration) -> Tensor:
    """(B, 1, H, W) residuals over the pristine pictures' standard deviation, smoothed by `SMOOTH_A`."""
    residual = found.residual / found.gain.abs().clamp(min=1e-12)[:, None, None, None]
    down, right = (_weights(found, n) for n in residual.shape[2:])
    return (down @ residual[:, 0] @ right.transpose(1, 2))[:, None]


def _weights(found: Registration, n: int) -> Tensor:
    """(B, n, n) of a Gaussian of `SMOOTH_A` along one side; rows sum to one at the border too."""
    x = torch.arange(n, device=found.pixel_A.device, dtype=found.residual.dtype)
    weight = torch.exp(-((x[:, None] - x) ** 2) / 2 * (found.pixel_A / SMOOTH_A)[:, None, None] ** 2)
    return weight / weight.sum(2, keepdim=True)


def significance(found: Registration, maps: Tensor) -> Tensor:
    """(B, 1, H, W) smoothed residuals over their noise, which depends on how bright the pristine picture is there.

    Counts are noisier on bright columns, and a probe or thickness that is not quite the image's leaves the same at all
    columns: median and robust standard deviation (1.4826 times the median absolute deviation) are of places of like
    brightness. Towards the border fewer pixels are averaged: residuals are divided by how much noise grows there.
    """
    grown = [_weights(found, n).square().sum(2).sqrt() for n in maps.shape[2:]]
    grown = [each / each.amin(1, keepdim=True) for each in grown]
    flat = (maps[:, 0] / (grown[0][:, :, None] * grown[1][:, None])).flatten(1)
    order = found.reference.flatten(1).argsort(1)
    parts = []
    for chunk in flat.gather(1, order).tensor_split(BRIGHTNESSES, dim=1):
        middle = chunk.quantile(0.5, dim=1, keepdim=True)
        noise = 1.4826 * (chunk - middle).abs().quantile(0.5, dim=1, keepdim=True)
        parts.append((chunk - middle) / noise.clamp(min=1e-12))
    return torch.empty_like(flat).scatter_(1, order, torch.cat(parts, dim=1)).view_as(maps)


def threshold(found: Registration) -> Tensor:
    """(B,) the significance z that smoothed Gaussian noise passes somewhere in a share `CHANCE` of images of this size.

    Expected extrema beyond ±z in an area A: A / (σ² (2π)^(3/2)) · z · exp(−z²/2) (Adler, The Geometry of Random Fields,
    1981), with σ = `SMOOTH_A`.
    """
    area = found.residual[0].numel() * found.pixel_A**2
    z = torch.full_like(area, 4.0)
    for _ in range(20):
        z = (2 * (area * z / (SMOOTH_A**2 * (2 * math.pi) ** 1.5 * CHANCE)).clamp(min=math.e).log()).sqrt()
    return z


def score(found: Registration) -> Tensor:
    """(B,) anomaly score: the largest smoothed residual over the pristine picture's standard deviation."""
    return smoothed(found).abs().amax((1, 2, 3))


def anomalies(found: Registration, refs: References, chosen: np.ndarray, structures: Structures) -> list[list[Anomaly]]:
    """The candidates for defects in B images, registered with references `chosen` (B,), strongest first."""
    maps = smoothed(found)
    ratio, least = significance(found, maps), threshold(found)
    out = []
    for i, reference in enumerate(chosen):
        pixel_A = found.pixel_A[i].item()
        z, sigmas, places = _extrema(maps[i, 0], ratio[i, 0], pixel_A=pixel_A)
        size = np.abs(sigmas)
        keep = (size >= least[i].item()) | ((np.abs(z) >= STRONG[0]) & (size >= STRONG[1]))
        z, sigmas, places = z[keep], sigmas[keep], places[keep]
        sites, elements = columns(found, i, refs, int(reference), structures)
        listed: list[Anomaly] = []
        for value, sigma, place in zip(z, sigmas, places, strict=True):
            if len(listed) == MOST:
                break
            if any(np.hypot(place[0] - other.down_A, place[1] - other.right_A) < APART_A for other in listed):
                continue
            distance = np.hypot(*(sites - place).T)
            nearest = int(distance.argmin())
            opposite = (z * value < 0) & (np.abs(z) > abs(value) / 2) & (np.hypot(*(places - place).T) < 2 * APART_A)
            middle = (places[opposite] + place) / 2
            shifted = any(np.hypot(*(sites - at).T).min() < ON_COLUMN_A / 2 for at in middle)
            here = distance[nearest] < ON_COLUMN_A
            kind = ("brighter" if here else "extra") if value > 0 else ("missing" if here else "darker")
            listed.append(
                Anomaly(
                    kind="shift" if shifted else kind,
                    down_A=float(place[0]),
                    right_A=float(place[1]),
                    contrast=float(value),
                    significance=float(sigma),
                    column="/".join(dict.fromkeys(elements[np.hypot(*(sites - sites[nearest]).T) < ON_COLUMN_A / 2])),
                    distance_A=float(distance[nearest]),
                )
            )
        out.append(listed)
    return out


def _extrema(picture: Tensor, ratio: Tensor, *, pixel_A: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and significance (n,) and places (n, 2), Å from the centre, of a picture's extrema, largest first."""
    size = picture.abs()[None, None]
    reach = max(1, round(APART_A / 2 / pixel_A))
    peak = (size == F.max_pool2d(size, 2 * reach + 1, stride=1, padding=reach))[0, 0].nonzero()
    peak = peak[picture[peak[:, 0], peak[:, 1]].abs().argsort(descending=True)]
    centre = (torch.tensor(picture.shape, device=peak.device) - 1) / 2
    values = (each[peak[:, 0], peak[:, 1]].cpu().numpy() for each in (picture, ratio))
    return *values, ((peak - centre) * pixel_A).cpu().numpy()


def columns(
    found: Registration, image: int, refs: References, reference: int, structures: Structures
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) projected sites of an image's crystal in its frame and a bit beyond, Å from the centre; (n,) symbols."""
    numbers, frac_coords, _ = structures[refs.row[reference]]
    basis, plane = refs.basis[reference], refs.plane[reference]
    rotation, pixel_A = found.rotation[image].item(), found.pixel_A[image].item()
    shift, drift = (t[image].cpu().double().numpy() for t in (found.shift_A, found.drift_A))
    height, width = (n * pixel_A for n in found.residual.shape[-2:])
    turn = np.array([[np.cos(rotation), np.sin(rotation)], [-np.sin(rotation), np.cos(rotation)]])
    shear = np.eye(2) + np.outer([1, 0], drift / height)
    reach = np.hypot(height, width) * 0.6 + 2
    most = np.ceil((reach + np.hypot(*shift)) * np.linalg.norm(np.linalg.inv(basis), axis=0)).astype(int)
    cells = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 2)
    site = (frac_coords @ plane @ np.linalg.inv(basis)) % 1
    position = (((site[:, None] + cells) @ basis @ turn + shift) @ shear).reshape(-1, 2)
    inside = (np.abs(position) < np.array([height, width]) / 2 + APART_A).all(1)
    symbols = np.array([SYMBOLS[z] for z in numbers])
    heavy = np.argsort(-numbers[np.repeat(np.arange(len(numbers)), len(cells))[inside]], kind="stable")
    return position[inside][heavy], np.repeat(symbols, len(cells))[inside][heavy]
