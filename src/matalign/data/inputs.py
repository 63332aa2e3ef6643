"""What a user holds -> what the towers take: protocols as text, micrographs at a model's scale.

What cannot be taken is a ValueError that names the file. Crystals are read by `crystals`.
"""

import json
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from matalign.data import formulas, protocols
from matalign.data.protocols import Operation, Protocol
from matalign.views import micrographs

MAX_PIXELS = 16_000_000  # of a micrograph
FORMATS = ("PNG", "TIFF", "JPEG")  # others run programs, or hold no counts
MIN_PIXELS = 8  # of its own in what the model sees of it
MAX_CHARACTERS = 20_000  # of a text; the text tower reads its first 128 tokens
MAX_TEMPERATURE_C = 3500.0

# Units

UNITS = {
    "temperature": {"C": (1.0, 0.0), "K": (1.0, protocols.ABSOLUTE_ZERO_C)},  # to °C: factor, then offset
    "time": {unit: (factor, 0.0) for unit, factor in protocols.HOURS.items()},  # to hours
    "pixel_size": {"A": (1.0, 0.0), "nm": (10.0, 0.0), "pm": (0.01, 0.0)},  # to Å
    "formation_energy": {"eV_atom": (1.0, 0.0), "meV_atom": (1e-3, 0.0)},
    "band_gap": {"eV": (1.0, 0.0), "meV": (1e-3, 0.0)},
    "bulk_modulus": {"GPa": (1.0, 0.0), "MPa": (1e-3, 0.0)},
    "shear_modulus": {"GPa": (1.0, 0.0), "MPa": (1e-3, 0.0)},
}
SPELLINGS = {"Å": "A", "angstrom": "A", "°C": "C", "celsius": "C", "kelvin": "K", "hour": "h", "hours": "h"}


def quantity(fields: Mapping[str, Any], name: str) -> float | None:
    """A quantity by its name and unit, in the first of its units (`UNITS`).

    Args:
        fields: has it as `<name>_<unit>`, or as `<name>` beside `<name>_unit`; None and "" are as good as absent.
        name: of `UNITS`.

    Returns:
        The value in °C, h, Å, eV/atom, eV or GPa; None where there is none.

    Raises:
        ValueError: given twice, without a unit, in an unknown one, or not a finite number.
    """
    units = UNITS[name]
    given = {key: fields[key] for key in (name, *(f"{name}_{unit}" for unit in units)) if not _empty(fields.get(key))}
    if len(given) > 1:
        raise ValueError(f"{name} stands there {len(given)} times: {', '.join(given)}; give one")
    if not given:
        return None
    key, written = next(iter(given.items()))
    unit = key.removeprefix(f"{name}_") if key != name else str(fields.get(f"{name}_unit") or "").strip()
    unit = SPELLINGS.get(unicodedata.normalize("NFKC", unit), unit)
    if unit not in units:
        said = f"has the unknown unit {unit!r}" if unit else "has no unit"
        raise ValueError(f"{name} {written!r} {said}; one of {', '.join(units)}, as {name}_{next(iter(units))}")
    try:
        value = float(written)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} is {written!r}; expected a number")
    factor, offset = units[unit]
    return factor * value + offset


def _empty(value: Any) -> bool:
    return value is None or value == ""


# Micrographs


def micrograph(item: Any, *, pixel_A: float | None, to_pixel_A: float, px: int) -> Float[np.ndarray, "height width"]:
    """A micrograph at a model's scale and size: centre crop, or the image's mean around it; standardised.

    Resampled with a triangle as wide as the coarser of the two pixels, so that a smaller picture has no aliases. The
    towers know square-rooted counts of annular dark field; of a measured image gain and offset are unknown, and
    standardising takes out just these two.

    Args:
        item: path of an image (PNG, TIFF, JPEG; of 8 or 16 bits; colours become luminance), or array (height,
            width).
        pixel_A: Å per pixel of the image.
        to_pixel_A: Å per pixel to come to.
        px: pixels of each side to come to.

    Returns:
        (px, px) float32, zero mean and unit variance, as `micrographs.render` returns each image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: no scale, unreadable, over `MAX_PIXELS`, several frames, no contrast.
    """
    name = Path(item).name if isinstance(item, str | PathLike) else "image"
    try:
        if pixel_A is None or not (math.isfinite(pixel_A) and pixel_A > 0):
            raise ValueError(f"no scale: the pixel size is {pixel_A}; expected Å per pixel, above 0")
        if px * to_pixel_A < MIN_PIXELS * pixel_A:
            seen = px * to_pixel_A / pixel_A
            raise ValueError(
                f"too coarse: the {px * to_pixel_A:g} Å that the model sees are {seen:.1f} pixels of {pixel_A:g} Å; "
                f"expected at least {MIN_PIXELS}"
            )
        counts = _pixels(item)
        rows, columns = (_resampling(n, pixel_A=pixel_A, to_pixel_A=to_pixel_A, px=px) for n in counts.shape)
        covered = rows.sum(1)[:, None] * columns.sum(1) > 0  # the rest lies outside the image
        image = rows @ counts @ columns.T
        image = np.where(covered, image - image[covered].mean(), 0)
        if image.std() < 1e-9 * max(np.abs(counts).max(), 1e-9):
            raise ValueError("no contrast: all pixels that the model would see are equal")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return micrographs.standardise(torch.from_numpy(image / image.std())[None])[0, 0].float().numpy()


def _pixels(item: Any) -> np.ndarray:
    """(height, width) float64."""
    counts = _decoded(Path(item)) if isinstance(item, str | PathLike) else np.asarray(item)
    if counts.ndim != 2 or not counts.size or counts.dtype.kind not in "biuf":
        raise ValueError(f"an array {counts.shape} of {counts.dtype}; expected numbers (height, width)")
    _check_size(counts.shape[1], counts.shape[0])
    if not np.isfinite(counts).all():
        raise ValueError("some pixels are not finite")
    return counts.astype(np.float64)


def _decoded(path: Path) -> np.ndarray:
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(f"more than {MAX_PIXELS / 1e6:.0f} megapixels; crop or bin it") from None
        except Exception:  # the readers raise whatever a broken file makes of them
            raise ValueError(f"unreadable; expected an image of the kinds {', '.join(FORMATS)}") from None
        with image:
            _check_size(*image.size)  # before anything is decoded
            grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
            try:
                frames = getattr(image, "n_frames", 1)
                counts = np.asarray(image if grey else image.convert("L"))
            except Exception as error:  # as above
                raise ValueError(f"unreadable: {_line(error)}") from None
    if frames > 1:
        raise ValueError(f"{frames} frames; expected one image")
    return counts


def _line(error: Exception) -> str:
    """The last line of what an exception says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} × {height} pixels ({width * height / 1e6:.0f} megapixels); at most {MAX_PIXELS / 1e6:.0f} are "
            "taken: crop or bin it"
        )


def _resampling(n: int, *, pixel_A: float, to_pixel_A: float, px: int) -> Float[np.ndarray, "px n"]:
    """Weights of the n pixels in each of px new ones about the same centre; zero rows beyond the image."""
    old, new = (np.arange(n) - (n - 1) / 2) * pixel_A, (np.arange(px) - (px - 1) / 2) * to_pixel_A
    weight = np.clip(1 - np.abs(new[:, None] - old) / max(pixel_A, to_pixel_A), 0, None)
    weight[np.abs(new) > n * pixel_A / 2] = 0
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)


# Protocols


def protocol(item: Any, *, level: int = 1) -> str:
    """A protocol as the text tower takes it.

    A structured one is rendered as the curated sets' are, at a mask level; a free text stays as it is written, and
    nothing in it is masked.

    Args:
        item: text; path of a .txt or .json file; or fields, see `record`.
        level: mask level of a structured one (`protocols.render`); models are trained at level 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty text, one of more than `MAX_CHARACTERS`; see `record`.
    """
    if isinstance(item, PathLike):
        path = Path(item)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a protocol")
        try:
            return protocol(load_protocol(path), level=level)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    if isinstance(item, Mapping):
        return protocols.render(record(item), level=level)
    if not isinstance(item, str):
        raise ValueError(f"{type(item).__name__} is no protocol; expected a text, a path or a dict of fields")
    if len(item) > MAX_CHARACTERS:
        raise ValueError(
            f"a text of {len(item):,} characters; at most {MAX_CHARACTERS:,} are taken: give the synthesis alone"
        )
    text = " ".join(item.split())
    if not text or not text.isprintable():
        raise ValueError(f"{text[:20]!r} is no readable text; expected a synthesis protocol")
    return text


def load_protocol(path: Path) -> str | dict[str, Any]:
    """The text of a file, or the fields of a .json file.

    Raises:
        ValueError: not UTF-8, not JSON, or far too long.
    """
    if path.stat().st_size > 4 * MAX_CHARACTERS:
        size = path.stat().st_size
        raise ValueError(f"a text of {size:,} bytes; at most {MAX_CHARACTERS:,} characters are taken")
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix.lower() == ".json" else text
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, str | dict):
        raise ValueError(f"a JSON {type(fields).__name__}; expected an object of fields")
    return fields


FIELDS = ("target", "precursors", "method", "operations", "doi")
STEP = ("action", "temperature", "time", "atmosphere", "medium")


def record(fields: Mapping[str, Any]) -> Protocol:
    """A structured protocol as a record.

    Args:
        fields:
            `precursors`: formulas, a list or parted by ";"; asked for.
            `target`: formula.
            `method`: solid-state (if not given) or sol-gel.
            `operations`: list of steps, each with any of `action` ("calcined"), `temperature_C` or `temperature_K`,
            `time_h`, `time_min` or `time_d`, `atmosphere` and `medium` (each a word, a list or parted by ";"; those
            that `protocols.ATMOSPHERES` and `MEDIA` do not know are rendered as "other"). A protocol of one step may
            have these fields itself.
            `doi`.

    Raises:
        ValueError: an unknown field, method or action; no precursors; an unreadable target, or one that is among the
            precursors; an unknown unit, an absurd temperature or time.
    """
    steps = fields["operations"] or [] if "operations" in fields else [fields]
    if not isinstance(steps, list | tuple):
        raise ValueError(f"operations {steps!r} are no list of steps")
    allowed = {"": FIELDS if "operations" in fields else FIELDS + STEP, "operation": STEP}
    for where, each in [("", fields), *(("operation", step) for step in steps if step is not fields)]:
        _known(each, allowed[where], where=where)
    method = fields.get("method") or "solid-state"
    if method not in protocols.METHODS:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(protocols.METHODS)}")
    target = formulas.normalise(str(fields.get("target") or ""))
    if target:
        formulas.composition(target)
    precursors = tuple(sorted({formulas.normalise(word) for word in _words(fields.get("precursors"))}))
    if not precursors:
        raise ValueError("no precursors; expected formulas, as BaCO3; TiO2")
    if target and any(formulas.spells(word, target) for word in precursors):
        raise ValueError(f"the target {target} is among its precursors")
    operations = tuple(operation for step in steps if (operation := _operation(step)) is not None)
    doi = str(fields.get("doi") or "").strip().lower()
    return Protocol(doi, method, target, (), precursors, operations)


def _known(fields: Any, allowed: tuple[str, ...], *, where: str) -> None:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where} {fields!r} is no dict of fields")
    names = {key: key.removesuffix("_unit") for key in fields}
    units = {f"{name}_{unit}": name for name in ("temperature", "time") for unit in UNITS[name]}
    unknown = [key for key, name in names.items() if units.get(key, name) not in allowed]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}{where and f' of an {where}'}; known are {', '.join(allowed)}")


def _operation(step: Mapping[str, Any]) -> Operation | None:
    """None where the step says nothing."""
    temperature, hours = quantity(step, "temperature"), quantity(step, "time")
    if temperature is not None and not protocols.ABSOLUTE_ZERO_C < temperature <= MAX_TEMPERATURE_C:
        raise ValueError(f"a temperature of {temperature:g} °C; expected at most {MAX_TEMPERATURE_C:g} °C")
    if hours is not None and hours <= 0:
        raise ValueError(f"a time of {hours:g} h; expected more than 0")
    action = str(step.get("action") or "").strip().lower()
    verb = next((verb for stem, verb in protocols.VERBS if re.search(stem, action)), "") if action else ""
    if action and not verb:
        raise ValueError(f"unknown action {action!r}; one of {', '.join(verb for _, verb in protocols.VERBS)}")
    atmospheres = _closed(step.get("atmosphere"), protocols.ATMOSPHERES)
    media = _closed(step.get("medium"), protocols.MEDIA)
    if not verb and temperature is None and hours is None and not atmospheres and not media:
        return None
    verb = verb or ("treated" if temperature is None else "heated")
    return Operation(verb, temperature, hours, atmospheres, media)


def _words(value: Any) -> list[str]:
    parts = value.split(";") if isinstance(value, str) else value or ()
    if not isinstance(parts, list | tuple):
        raise ValueError(f"{value!r} is no list of words")
    return [str(part).strip() for part in parts if str(part).strip()]


def _closed(value: Any, vocabulary: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    words = (next((w for pattern, w in vocabulary if re.fullmatch(pattern, x.lower())), "other") for x in _words(value))
    return tuple(sorted(set(words)))
