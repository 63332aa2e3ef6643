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
from matalign.data.readers.image_files import Frame, Scale, reading

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
    """One image.

    Attributes:
        counts: (height, width) as the file has them, float32 where that holds them exactly, else float64.
        pixel_A: Å per pixel; None where nobody has said.
        notes: what was done to the numbers, and where the scale is from.
        name: of its file, for messages.
    """

    counts: Float[np.ndarray, "height width"]
    pixel_A: float | None
    notes: tuple[str, ...] = ()
    name: str = "image"


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
        if not isinstance(item, str | PathLike):
            return _of_array(np.asarray(item), pixel_A, frame)
        path = Path(item)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected an image")
        found, notes = _chosen(image_files.read(path), frame)
        pixel_A, said = _scale(found.scales, pixel_A)
        _check(found.shape, found.dtype, found.samples)  # before anything is decoded
        with reading():
            counts = found.decode().astype(_counts_dtype(found.dtype))
        counts = np.ascontiguousarray(_oriented(_finite(counts), found.orientation))
        return Micrograph(counts, pixel_A, (*notes, *found.notes, *said), name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def resampled(image: Micrograph, *, to_pixel_A: float, px: int) -> Float[np.ndarray, "px px"]:
    """A micrograph at a model's scale and size: centre crop, or the image's mean around it; standardised.

    Resampled with a triangle as wide as the coarser of the two pixels, so that a smaller picture has no aliases. The
    towers know square-rooted counts of annular dark field; of a measured image gain and offset are unknown, and
    standardising takes out just these two.

    Args:
        image: from `read_micrograph`.
        to_pixel_A: Å per pixel to come to.
        px: pixels of each side to come to.

    Returns:
        (px, px) float32, zero mean and unit variance, as the image tower takes it.

    Raises:
        ValueError: no scale, too coarse, no contrast.
    """
    pixel_A = image.pixel_A
    if pixel_A is None:
        raise ValueError("no scale: the file states none; give pixel_A (--pixel-A), in Å per pixel")
    if px * to_pixel_A < MIN_PIXELS * pixel_A:
        seen = px * to_pixel_A / pixel_A
        raise ValueError(
            f"too coarse: the {px * to_pixel_A:g} Å that the model sees are {seen:.1f} pixels of {pixel_A:g} Å; "
            f"expected at least {MIN_PIXELS}"
        )
    rows, columns = (_weights(n, pixel_A=pixel_A, to_pixel_A=to_pixel_A, px=px) for n in image.counts.shape)
    covered = rows.sum(1)[:, None] * columns.sum(1) > 0  # the rest lies outside the image
    seen = tuple(slice(used[0], used[-1] + 1) for used in (np.flatnonzero(w.any(0)) for w in (rows, columns)))
    counts = image.counts[seen].astype(np.float64)
    found = rows[:, seen[0]] @ counts @ columns[:, seen[1]].T
    found = np.where(covered, found - found[covered].mean(), 0)
    if found.std() < 1e-9 * max(np.abs(counts).max(), 1e-9):
        raise ValueError("no contrast: all pixels that the model would see are equal")
    found = found / found.std()
    found -= found.mean()
    return (found / np.sqrt(np.square(found).mean())).astype(np.float32)


def model_image(
    item: Any, *, pixel_A: float | None = None, frame: int | None = None, to_pixel_A: float, px: int
) -> Float[np.ndarray, "px px"]:
    """`resampled` of `read_micrograph`, or of a `Micrograph`; errors name the file."""
    image = item if isinstance(item, Micrograph) else read_micrograph(item, pixel_A=pixel_A, frame=frame)
    try:
        return resampled(image, to_pixel_A=to_pixel_A, px=px)
    except ValueError as error:
        raise ValueError(f"{image.name}: {error}") from None


def _weights(n: int, *, pixel_A: float, to_pixel_A: float, px: int) -> Float[np.ndarray, "px n"]:
    """Weights of the n pixels in each of px new ones about the same centre; zero rows beyond the image."""
    old, new = (np.arange(n) - (n - 1) / 2) * pixel_A, (np.arange(px) - (px - 1) / 2) * to_pixel_A
    weight = np.clip(1 - np.abs(new[:, None] - old) / max(pixel_A, to_pixel_A), 0, None)
    weight[np.abs(new) > n * pixel_A / 2] = 0
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)


def _of_array(counts: np.ndarray, pixel_A: float | None, frame: int | None) -> Micrograph:
    if frame is not None:
        raise ValueError(f"frame {frame} of an array; give the frame itself, (height, width)")
    _check(counts.shape, counts.dtype)
    return Micrograph(_finite(counts.astype(_counts_dtype(counts.dtype))), pixel_A)


def _chosen(frames: list[Frame], frame: int | None) -> tuple[Frame, tuple[str, ...]]:
    if frame is None:
        if len(frames) > 1:
            raise ValueError(f"{len(frames)} frames; expected one image, or one chosen by frame 0 to {len(frames) - 1}")
        return frames[0], ()
    frame = len(frames) - 1 if frame == -1 else frame
    if not 0 <= frame < len(frames):
        raise ValueError(f"no frame {frame}; it has {len(frames)}, from 0")
    return frames[frame], (f"frame {frame} of {len(frames)}",) if len(frames) > 1 else ()


def _counts_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def _check(shape: tuple[int, ...], dtype: np.dtype, samples: int = 1) -> None:
    """Refuse what is no image, or too large a one."""
    if len(shape) != 2 or 0 in shape or dtype.kind not in "biuf":
        raise ValueError(f"pixels {shape} of {dtype}; expected real numbers (height, width)")
    height, width = shape
    size = height * width * _counts_dtype(dtype).itemsize * samples
    if size > MAX_COUNTS_BYTES:
        raise ValueError(
            f"{width} × {height} pixels ({width * height / 1e6:.0f} megapixels, {size / 2**20:.0f} MB of counts); at "
            f"most {MAX_COUNTS_BYTES // 2**20} MB are taken: crop or bin it"
        )


def _finite(counts: np.ndarray) -> np.ndarray:
    if not math.isfinite(float(counts.max())) or not math.isfinite(float(counts.min())):  # NaN spreads to both
        raise ValueError("some pixels are not finite")
    return counts


def _oriented(counts: np.ndarray, orientation: int) -> np.ndarray:
    """By TIFF 6.0, tag Orientation: which side of the picture the first row and the first column are."""
    counts = counts.T if orientation in (5, 6, 7, 8) else counts  # the first row is a side: 0th row is a visual column
    counts = counts[::-1] if orientation in (3, 4, 7, 8) else counts
    return counts[:, ::-1] if orientation in (2, 3, 6, 7) else counts


# Scales


def _scale(stated: tuple[Scale, ...], given: float | None) -> tuple[float | None, tuple[str, ...]]:
    """Å per pixel, and where it is from."""
    found, lacks = _stated(stated)
    if found is None:
        if lacks and given is None:
            raise ValueError(f"{lacks}; give pixel_A (--pixel-A), in Å per pixel")
        return given, (f"{lacks}: {given:g} Å per pixel as given",) if lacks else ()
    if given is not None and abs(math.log(found / given)) > AGREEMENT:
        raise ValueError(
            f"contradicting scales: the file says {_written(stated)} per pixel, which is {found:.4g} Å, and pixel_A is "
            f"{given:g} Å"
        )
    return found if given is None else given, (f"the file says {found:.4g} Å per pixel",)


def _stated(scales: tuple[Scale, ...]) -> tuple[float | None, str]:
    """Å per pixel of what a file states, or what it lacks.

    Raises:
        ValueError: not positive, absurd, not square, or no length.
    """
    if not scales:
        return None, ""
    (value, written), (other, _) = scales[-1], scales[0]
    unit = _unit(written)
    if re.search(r"^1\s*/|\^?[-−]1$|rad$|⁻", unit):
        raise ValueError(f"a diffraction pattern: the file's pixels are {_written(scales)}; expected an image")
    if unit in PIXELS:
        return None, "" if value in (0.0, 1.0) else f"no unit: the file's scale is {value:g}, of what it does not say"
    if value == 0 == other:
        return None, f"no scale: the file says 0 {written} per pixel"
    length = LENGTHS_A.get(unit) or LENGTHS_A.get(unit.removesuffix("s"))
    if length is None:
        return None, f"unknown unit: the file's scale is {_written(scales)}"
    if not all(SANE_A[0] <= side * length <= SANE_A[1] for side in (value, other)):  # NaN and negative ones, too
        raise ValueError(f"absurd scale: the file says {_written(scales)} per pixel; mend it, or give the array")
    if abs(value / other - 1) > SQUARE:
        raise ValueError(f"pixels are not square: the file says {other:g} × {_written(scales)}")
    return value * length, ""


def _unit(written: str) -> str:
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), written)  # as ImageJ writes µ
    return re.sub(r"[\[\]_\s]", "", unicodedata.normalize("NFKC", text)).lower()


def _written(scales: tuple[Scale, ...]) -> str:
    return f"{scales[-1][0]:.4g} {scales[-1][1]}"
