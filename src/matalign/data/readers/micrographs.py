"""Micrographs as people hold them -> counts with a scale, and these at a model's scale and size.

The scale that a file states is read with its unit and held against the one that is given. Memory: the counts (4 bytes
a pixel for up to 16 bits and floats, else 8; at most `MAX_COUNTS_BYTES`) and what is decoded of them.
"""

import math
import re
import unicodedata
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from matalign.data.readers import image_files
from matalign.data.readers.image_files import Frame, Scale

MAX_COUNTS_BYTES = 2**30  # 16384 × 16384 pixels of 4 bytes
MIN_PIXELS = 8  # of its own in what the model sees of it
AGREEMENT = 0.05  # relative: scales that differ by more contradict one another
SQUARE = 0.01  # relative: pixels are square within this
SANE_A = (1e-3, 1e7)  # Å per pixel: a thousandth of an ångström to a millimetre
LENGTHS_A = {
    "m": 1e10, "meter": 1e10, "metre": 1e10, "cm": 1e8, "inch": 2.54e8, "in": 2.54e8, "mm": 1e7, "μm": 1e4, "um": 1e4,
    "micron": 1e4, "micrometer": 1e4, "micrometre": 1e4, "nm": 10.0, "nanometer": 10.0, "nanometre": 10.0, "å": 1.0,
    "a": 1.0, "ang": 1.0, "angstrom": 1.0, "ångström": 1.0, "pm": 0.01, "picometer": 0.01, "picometre": 0.01,
}  # fmt: skip
PIXELS = ("", "px", "pixel", "pixels", "none", "undefined", "unknown", "<undefined>")  # no unit


@dataclass(frozen=True, eq=False)
class Micrograph:
    """One image."""

    # (height, width) as the file has them, float32 where that holds them exactly, else float64
    counts: Float[np.ndarray, "height width"]
    pixel_A: float | None  # Å per pixel; None where nobody has said
    notes: tuple[str, ...] = ()  # what was done to the numbers, and where the scale is from
    name: str = "image"  # of its file, for messages


def read_micrograph(item: Any, *, pixel_A: float | None = None, frame: int | None = None) -> Micrograph:
    """A micrograph and its scale.

    Args:
        item: path of a .dm3, .dm4, .emd, .mrc, .ser, TIFF, PNG or JPEG file (told by its content), or array (height,
            width). Colours become luminance; WhiteIsZero is turned over, orientations are applied.
        pixel_A: Å per pixel, for files that state no scale; one that they state must agree within 5 %.
        frame: which image of a file with several, from 0; −1: the last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: unreadable; several frames and none chosen; a stated scale that contradicts
            `pixel_A`, has no unit, is not positive, absurd, or that of a diffraction pattern; pixels that are not
            square or not finite; too large.
    """
    name = Path(item).name if isinstance(item, str | PathLike) else "image"
    try:
        if pixel_A is not None and not (math.isfinite(pixel_A) and pixel_A > 0):
            raise ValueError(f"no scale: the pixel size is {pixel_A}; expected Å per pixel, above 0")
        if isinstance(item, str | PathLike):
            if not Path(item).is_file():
                raise FileNotFoundError(f"{item}: no such file; expected an image")
            frames = image_files.read(Path(item))
        else:
            array = np.asarray(item)
            frames = [Frame(array.shape, array.dtype, lambda: array)]
        found, notes = _chosen(frames, frame)
        pixel_A, said = _scale(found.scales, pixel_A)
        return Micrograph(_counts(found), pixel_A, (*notes, *found.notes, *said), name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def model_image(
    item: Any, *, pixel_A: float | None = None, frame: int | None = None, to_pixel_A: float, px: int
) -> Float[np.ndarray, "px px"]:
    """A micrograph at a model's scale and size: centre crop, or the image's mean around it; standardised.

    Resampled with a triangle as wide as the coarser of the two pixels, so that a smaller picture has no aliases. The
    towers know square-rooted counts of annular dark field; of a measured image gain and offset are unknown, and
    standardising takes out just these two.

    Args:
        item: a `Micrograph`, or what `read_micrograph` takes, with its `pixel_A` and `frame`.
        to_pixel_A: Å per pixel to come to.
        px: pixels of each side to come to.

    Returns:
        (px, px) float32, zero mean and unit variance, as the image tower takes it.

    Raises:
        ValueError: naming the file: see `read_micrograph`; no scale, too coarse, no contrast.
    """
    image = item if isinstance(item, Micrograph) else read_micrograph(item, pixel_A=pixel_A, frame=frame)
    pixel_A, seen_A = image.pixel_A, px * to_pixel_A
    if pixel_A is None:
        raise ValueError(f"{image.name}: no scale: the file states none; give pixel_A (--pixel-A), in Å per pixel")
    if seen_A < MIN_PIXELS * pixel_A:
        raise ValueError(
            f"{image.name}: too coarse: the {seen_A:g} Å that the model sees are {seen_A / pixel_A:.1f} pixels of "
            f"{pixel_A:g} Å; expected at least {MIN_PIXELS}"
        )
    rows, columns = (_weights(n, pixel_A=pixel_A, to_pixel_A=to_pixel_A, px=px) for n in image.counts.shape)
    covered = rows.sum(1)[:, None] * columns.sum(1) > 0  # the rest lies outside the image
    seen = tuple(slice(used[0], used[-1] + 1) for used in (np.flatnonzero(w.any(0)) for w in (rows, columns)))
    counts = image.counts[seen].astype(np.float64)
    found = rows[:, seen[0]] @ counts @ columns[:, seen[1]].T
    found = np.where(covered, found - found[covered].mean(), 0)
    if found.std() < 1e-9 * max(np.abs(counts).max(), 1e-9):
        raise ValueError(f"{image.name}: no contrast: all pixels that the model would see are equal")
    return ((found - found.mean()) / found.std()).astype(np.float32)


def _weights(n: int, *, pixel_A: float, to_pixel_A: float, px: int) -> Float[np.ndarray, "px n"]:
    """Weights of the n pixels in each of px new ones about the same centre; zero rows beyond the image."""
    old, new = (np.arange(n) - (n - 1) / 2) * pixel_A, (np.arange(px) - (px - 1) / 2) * to_pixel_A
    weight = np.clip(1 - np.abs(new[:, None] - old) / max(pixel_A, to_pixel_A), 0, None)
    weight[np.abs(new) > n * pixel_A / 2] = 0
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)


def _chosen(frames: list[Frame], frame: int | None) -> tuple[Frame, tuple[str, ...]]:
    count = len(frames)
    if frame is None and count > 1:
        raise ValueError(f"{count} frames; expected one image, or one chosen by frame 0 to {count - 1}")
    frame = count - 1 if frame == -1 else frame or 0
    if not 0 <= frame < count:
        raise ValueError(f"no frame {frame}; it has {count}, from 0")
    return frames[frame], (f"frame {frame} of {count}",) if count > 1 else ()


def _counts(frame: Frame) -> np.ndarray:
    """The upright picture; refused before it is decoded if it is none, or too large."""
    if len(frame.shape) != 2 or 0 in frame.shape or frame.dtype.kind not in "biuf":
        raise ValueError(f"pixels {frame.shape} of {frame.dtype}; expected real numbers (height, width)")
    dtype = np.dtype(np.float32 if np.can_cast(frame.dtype, np.float32) else np.float64)
    height, width = frame.shape
    size = height * width * dtype.itemsize * frame.samples
    if size > MAX_COUNTS_BYTES:
        raise ValueError(
            f"{width} × {height} pixels ({width * height / 1e6:.0f} megapixels, {size / 2**20:.0f} MB of counts); at "
            f"most {MAX_COUNTS_BYTES // 2**20} MB are taken: crop or bin it"
        )
    with image_files.reading():
        counts = frame.decode().astype(dtype)
    if not math.isfinite(float(counts.max())) or not math.isfinite(float(counts.min())):  # NaN spreads to both
        raise ValueError("some pixels are not finite")
    # TIFF 6.0, tag Orientation: which side of the picture the first row and the first column are
    counts = counts.T if frame.orientation in (5, 6, 7, 8) else counts
    counts = counts[::-1] if frame.orientation in (3, 4, 7, 8) else counts
    return np.ascontiguousarray(counts[:, ::-1] if frame.orientation in (2, 3, 6, 7) else counts)


def _scale(scales: tuple[Scale, ...], given: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Å per pixel, and where it is from.

    Raises:
        ValueError: the file's is not positive, absurd, not square, no length, or contradicts the given one; or it lacks
            something and none is given.
    """
    if not scales:
        return given, ()
    (value, written), (other, _) = scales[-1], scales[0]
    said = f"{value:.4g} {written}"
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), written)  # as ImageJ writes µ
    unit = re.sub(r"[\[\]_\s]", "", unicodedata.normalize("NFKC", text)).lower()
    if re.search(r"^1\s*/|\^?[-−]1$|rad$|⁻", unit):
        raise ValueError(f"a diffraction pattern: the file's pixels are {said}; expected an image")
    length = LENGTHS_A.get(unit) or LENGTHS_A.get(unit.removesuffix("s"))
    lacks = "" if length else f"unknown unit: the file's scale is {said}"
    if unit in PIXELS:
        lacks = f"no unit: the file's scale is {value:g}, of what it does not say"
        if value in (0.0, 1.0):
            return given, ()
    elif value == 0 == other:
        lacks = f"no scale: the file says 0 {written} per pixel"
    if lacks:
        if given is None:
            raise ValueError(f"{lacks}; give pixel_A (--pixel-A), in Å per pixel")
        return given, (f"{lacks}: {given:g} Å per pixel as given",)
    if not all(SANE_A[0] <= side * length <= SANE_A[1] for side in (value, other)):  # NaN and negative ones, too
        raise ValueError(f"absurd scale: the file says {said} per pixel; mend it, or give the array")
    if abs(value / other - 1) > SQUARE:
        raise ValueError(f"pixels are not square: the file says {other:g} × {said}")
    found = value * length
    if given is not None and abs(math.log(found / given)) > AGREEMENT:
        raise ValueError(
            f"contradicting scales: the file says {said} per pixel, which is {found:.4g} Å, and pixel_A is {given:g} Å"
        )
    return given or found, (f"the file says {found:.4g} Å per pixel",)
