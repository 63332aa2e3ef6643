"""What a user holds -> what the towers take: crystals as arrays, protocols as text, micrographs at a model's scale.

Structures come as pymatgen or ASE objects, as files that one of them reads, or as OPTIMADE records. Neither package is
needed until a file or an object of theirs comes along. What cannot be taken is a ValueError that names the file.
"""

import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from vesin import NeighborList

from matalign.data import formulas, protocols, sources
from matalign.data.dataset import Structures
from matalign.data.protocols import Operation, Protocol
from matalign.data.sources import Crystal
from matalign.elements import NUMBER, SYMBOLS
from matalign.views import micrographs

MAX_ATOMS = 2000  # in a cell; those of the curated sets have 200 at most
MIN_DISTANCE_A = 0.5  # no two atoms of a crystal are nearer: H2 has 0.74 Å
MAX_FILE_MB = 32  # of a structure
MAX_PIXELS = 16_000_000  # of a micrograph
FORMATS = ("PNG", "TIFF", "JPEG")  # others run programs, or hold no counts
MIN_PIXELS = 8  # of its own in what the model sees of it
MAX_CHARACTERS = 20_000  # of a text; the text tower reads its first 128 tokens
MAX_TEMPERATURE_C = 3500.0
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]  # numbers (n,), frac_coords (n, 3), lattice (3, 3)

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


# Structures


def structure(item: Any) -> Arrays:
    """One ordered crystal.

    Args:
        item: pymatgen Structure, ASE Atoms, path of a file with one structure (CIF, POSCAR, whatever pymatgen or ASE
            reads), text of a CIF, or OPTIMADE structure record (with `attributes`, or these alone).

    Returns:
        numbers (n,) int16; frac_coords (n, 3); lattice (3, 3), rows are the lattice vectors, Å.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the file: unreadable, several structures, no lattice, disorder, an unknown element, atoms on
            top of one another, more than `MAX_ATOMS` atoms.
    """
    if isinstance(item, str) and "\n" in item:
        name, read = "CIF", cif
    elif isinstance(item, str | PathLike):
        name, read = Path(item).name, _from_file
    elif isinstance(item, Mapping):
        name, read = f"OPTIMADE record {item.get('id', '')!r}", _from_optimade
    elif hasattr(item, "get_scaled_positions"):
        name, read = f"ASE Atoms {item.symbols}", _from_ase
    elif hasattr(item, "frac_coords") and hasattr(item, "lattice"):
        name, read = f"Structure {item.formula}", _from_pymatgen
    else:
        raise ValueError(
            f"{type(item).__name__} is no crystal; expected a pymatgen Structure, ASE Atoms, a path or an OPTIMADE "
            "record"
        )
    try:
        return checked(*read(item))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def crystal(item: Any) -> Crystal:
    """As `structure`, with formula, chemical system and space group; these are found as in `sources.parse_cif`."""
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # of tolerances that it lowers by itself
    import spglib
    from pymatgen.core import Composition

    numbers, frac_coords, lattice = structure(item)
    composition = Composition({SYMBOLS[z]: int((numbers == z).sum()) for z in np.unique(numbers)})
    cell = (lattice, frac_coords, numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib's, of how it will tell errors one day
        found = (spglib.get_symmetry_dataset(cell, symprec=sources.SYMPREC_A * scale) for scale in (1, 0.1, 0.01))
        number = next((symmetry.number for symmetry in found if symmetry is not None), 0)
    return Crystal(numbers, frac_coords, lattice, composition.reduced_formula, composition.chemical_system, number)


def structures(items: Iterable[Any]) -> Structures:
    """Crystals, each of any kind that `structure` takes.

    Raises:
        FileNotFoundError, ValueError: see `structure`; the message counts items from 0.
    """
    crystals = []
    for number, item in enumerate(items):
        try:
            crystals.append(structure(item))
        except ValueError as error:
            raise ValueError(f"item {number}: {error}") from None
    return Structures.pack(crystals)


def checked(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> Arrays:
    """The arrays, if they make a crystal that the models take.

    Raises:
        ValueError: see `structure`.
    """
    if not len(numbers):
        raise ValueError("no atoms: expected at least one")
    if len(numbers) > MAX_ATOMS:
        raise ValueError(f"too many atoms: {len(numbers)} in the cell; at most {MAX_ATOMS} are taken")
    unknown = [int(z) for z in numbers if not 1 <= z <= sources.HEAVIEST]
    if unknown:
        raise ValueError(f"unknown element: atomic number {unknown[0]}; known are 1 to {sources.HEAVIEST}")
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        raise ValueError("unreadable: cell or coordinates are not finite")
    _check_volume(lattice)
    close = NeighborList(cutoff=MIN_DISTANCE_A, full_list=False)
    first, second, distance = close.compute(frac_coords @ lattice, lattice, periodic=True, quantities="ijd")
    if len(distance):
        i, j = int(first[0]), int(second[0])
        raise ValueError(
            f"overlapping atoms: {i} and {j} are {distance[0]:.2f} Å apart; expected at least {MIN_DISTANCE_A} Å"
        )
    return np.asarray(numbers, np.int16), np.asarray(frac_coords, np.float64), np.asarray(lattice, np.float64)


def _check_volume(lattice: np.ndarray) -> None:
    if abs(np.linalg.det(lattice)) < 1e-3:
        raise ValueError("no lattice: the cell has no volume; expected a crystal, periodic in three directions")


def _from_file(item: str | PathLike) -> Arrays:
    path = Path(item)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a structure")
    if path.stat().st_size > MAX_FILE_MB * 2**20:
        raise ValueError(
            f"too large: {path.stat().st_size / 2**20:.0f} MB; structure files of at most {MAX_FILE_MB} MB are read"
        )
    if path.suffix.lower() == ".cif":
        return cif(path.read_text(errors="replace"))
    from pymatgen.io.registry import get_structure_format

    try:
        get_structure_format(filename=str(path))
    except ValueError:
        return _by_ase(path)
    return _by_pymatgen(path)


def cif(text: str) -> Arrays:
    """The one crystal of a CIF's text, as `sources.parse_cif` reads it.

    Raises:
        ValueError: see `structure`.
    """
    blocks = re.split(r"^data_", text, flags=re.MULTILINE | re.IGNORECASE)[1:]
    crystals = [block.split(maxsplit=1)[0] for block in blocks if re.search("_atom_site_(fract|cartn)_x", block, re.I)]
    if len(crystals) > 1:
        raise ValueError(f"several structures: {len(crystals)} ({', '.join(crystals[:3])} …), expected one a file")
    found = sources.parse_cif(text)
    return found.numbers, found.frac_coords, found.lattice


def _by_pymatgen(path: Path) -> Arrays:
    from pymatgen.core import Structure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Elements in POSCAR cannot be determined")  # it would make some up
        try:
            found = Structure.from_file(path)
        except Exception as error:  # the parsers raise whatever their parts raise
            raise ValueError(f"unreadable: {_line(error)}") from None
    return _from_pymatgen(found)


def _by_ase(path: Path) -> Arrays:
    import ase.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = ase.io.read(path, index=":2")
        except Exception as error:  # as above
            raise ValueError(f"unreadable: {_line(error)}; neither pymatgen nor ASE can read it") from None
    if len(found) != 1:
        raise ValueError("several structures: expected one a file")
    return _from_ase(found[0])


def _line(error: Exception) -> str:
    """The last line of what an exception says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _from_pymatgen(found: Any) -> Arrays:
    species = [specie for site in found for specie in site.species]
    unknown = [specie for specie in species if type(specie).__name__ == "DummySpecies"]
    if unknown:
        raise ValueError(f"unknown element: {unknown[0]}")
    if not found.is_ordered:
        raise ValueError(f"disordered: {found.composition.formula}; expected each site full, of one element")
    if not all(found.lattice.pbc):
        raise ValueError(f"not periodic in three directions: pbc is {found.lattice.pbc}")
    return np.array([specie.Z for specie in species]), found.frac_coords, found.lattice.matrix


def _from_ase(found: Any) -> Arrays:
    _check_volume(found.cell.array)
    if not all(found.pbc):
        raise ValueError(f"not periodic in three directions: pbc is {found.pbc.tolist()}")
    occupancy = found.info.get("occupancy") or {}
    partial = [site for site in occupancy.values() if len(site) > 1 or min(site.values()) < 1]
    if partial:
        raise ValueError(f"disordered: {partial[0]}; expected each site full, of one element")
    return found.numbers, found.get_scaled_positions(wrap=False), found.cell.array


def _from_optimade(record: Mapping[str, Any]) -> Arrays:
    try:
        return _read_optimade(record)
    except (TypeError, KeyError, AttributeError) as error:  # a field of another shape than the standard's
        raise ValueError(f"unreadable: {type(error).__name__} {_line(error)}") from None


def _read_optimade(record: Mapping[str, Any]) -> Arrays:
    about = record.get("attributes", record)
    lattice, sites = about.get("lattice_vectors"), about.get("cartesian_site_positions")
    if not lattice or any(x is None for vector in lattice for x in vector or [None]):
        raise ValueError("no lattice: lattice_vectors is missing or has gaps")
    if list(about.get("dimension_types") or [1, 1, 1]) != [1, 1, 1]:
        raise ValueError(f"not periodic in three directions: dimension_types is {about['dimension_types']}")
    species = {kind["name"]: kind for kind in about.get("species") or ()}
    names = about.get("species_at_sites") or []
    if not sites or len(sites) != len(names):
        raise ValueError(f"incomplete: {len(names)} species_at_sites for {len(sites or [])} cartesian_site_positions")
    numbers = {name: _number(name, species.get(name)) for name in dict.fromkeys(names)}
    lattice, sites = np.array(lattice, dtype=float), np.array(sites, dtype=float)
    if lattice.shape != (3, 3) or sites.shape != (len(names), 3):
        raise ValueError(
            f"incomplete: lattice_vectors {lattice.shape} and sites {sites.shape}; expected (3, 3) and (n, 3)"
        )
    _check_volume(lattice)
    return np.array([numbers[name] for name in names]), sites @ np.linalg.inv(lattice), lattice


def _number(name: str, kind: Mapping[str, Any] | None) -> int:
    """Atomic number of an OPTIMADE species; one of a record without `species` is named by its element."""
    symbols = kind["chemical_symbols"] if kind else [name]
    if len(symbols) != 1 or (kind or {}).get("attached") or (kind or {}).get("concentration", [1])[0] < 1:
        raise ValueError(f"disordered: species {name} is {'/'.join(symbols)}; expected each site full, of one element")
    if symbols[0] not in NUMBER:
        raise ValueError(f"unknown element: {symbols[0]}")
    return NUMBER[symbols[0]]


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
