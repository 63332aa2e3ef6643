"""A folder of one's own: `manifest.csv` names crystals, protocols and micrographs, each of which may be missing.

One row a material. Columns, of which `id` is asked for; quantities carry their unit in the name (`temperature_C`) or in
a column beside it (`temperature`, `temperature_unit`):

    id                                      unique
    structure                               path of a CIF, POSCAR, JSON or any file that ASE reads
    protocol                                path of a .txt or .json file, or the text itself
    target precursors method doi            or the protocol's fields, as `recipe_texts.record` takes them; formulas
    action temperature time                 parted by ";"
    atmosphere medium
    image pixel_size image_frame            path of an image, its scale where it states none, which of several from 0
    formation_energy band_gap               properties, where they are known
    bulk_modulus shear_modulus

Paths are relative to the folder and stay in it. Everything is read and checked before anything is returned.
"""

import csv
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from matalign import quantities
from matalign.data import sources
from matalign.data.formulas import same_composition
from matalign.data.protocols import Protocol
from matalign.data.readers import crystals, recipe_texts
from matalign.data.readers.micrographs import model_image, read_micrograph
from matalign.data.sources import Crystal

NAME = "manifest.csv"
SHOWN = 20  # errors in one message
LONGEST = 300  # characters of one of them
LONG = 100  # more rows than this show a progress bar
PROPERTIES = ("formation_energy", "band_gap", "bulk_modulus", "shear_modulus")
FIELDS = tuple(n for n in recipe_texts.FIELDS + recipe_texts.STEP if n not in ("operations", *quantities.UNITS))
WORDS = ("id", "structure", "protocol", "image", "image_frame", *FIELDS)  # columns that are no quantities
COLUMNS = WORDS + tuple(
    f"{name}{end}" for name, units in quantities.UNITS.items() for end in ("", "_unit", *(f"_{u}" for u in units))
)
# How an image is looked at to see whether it can be used at all: the scale and size of most models.
LOOK = {"to_pixel_A": 0.2, "px": 64}


@dataclass(frozen=True)
class Entry:
    """One row, read and checked."""

    id: str  # unique in the manifest
    where: str  # file and row, for messages
    structure: Crystal | None  # the crystal
    # a structured one, or text; its target is the crystal's formula where the row names none
    protocol: Protocol | str | None
    image: Path | None  # the file
    pixel_A: float | None  # Å per pixel of the image
    frame: int | None  # which of the file's images; None: the only one
    properties: dict[str, float]  # column of `dataset.MATERIALS` -> value


def read(folder: str | Path) -> list[Entry]:
    """All rows of a folder's manifest.

    Raises:
        FileNotFoundError: no folder, or no manifest in it.
        ValueError: what is wrong, by row: all of it, or the first `SHOWN`.
    """
    file = Path(folder) / NAME
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a table with the columns {', '.join(WORDS[:4])} …")
    header, rows = table(file)
    _stop(file, [f"row 1: {error}" for error in _header(header)])
    entries: list[Entry] = []
    errors: list[str] = []
    first: dict[str, int] = {}  # id -> the row that has it
    shown = {"desc": file.parent.name, "unit": "row", "mininterval": 1, "disable": len(rows) <= LONG}
    for number, cells in enumerate(tqdm(rows, **shown), start=2):
        wrong = [f"{len(cells)} cells for {len(header)} columns"] if len(cells) > len(header) else []
        entries.append(_entry(dict(zip_longest(header, cells[: len(header)], fillvalue="")), file, number, wrong))
        if (id := entries[-1].id) and first.setdefault(id, number) != number:
            wrong.append(f"the id {id!r} is that of row {first[id]} already")
        errors += [f"row {number}: {error[:LONGEST]}" for error in wrong]
    _stop(file, errors)
    return entries


def _stop(file: Path, errors: list[str]) -> None:
    if errors:
        beyond = [f"… and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        lines = "\n  ".join(errors[:SHOWN] + beyond)
        raise ValueError(f"{file}: {len(errors)} error{'s' * (len(errors) > 1)}, nothing is imported\n  {lines}")


def table(file: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV, cells stripped, blank rows too; ValueError: not UTF-8, not a CSV, or no rows."""
    csv.field_size_limit(1 << 24)
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(stream)] or [[]]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start}); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{file}: not a CSV file: {error}") from None
    if not rows or not any(header):
        raise ValueError(f"{file}: no rows; expected a header and at least one material")
    return header, rows


def _header(header: list[str]) -> list[str]:
    """What is wrong with the columns."""
    errors = [f"the column {c!r} stands there twice" for c in dict.fromkeys(header) if header.count(c) > 1]
    for column in (c for c in header if c not in COLUMNS):
        base = next((name for name in quantities.UNITS if column.startswith(f"{name}_")), "")
        nearest = difflib.get_close_matches(column, COLUMNS, n=1)
        hint = f"is it {nearest[0]!r}?" if nearest else f"known are {', '.join(WORDS)} …"
        if base:
            unit = column.removeprefix(f"{base}_")
            errors.append(f"unknown unit {unit!r} in the column {column!r}; one of {', '.join(quantities.UNITS[base])}")
        else:
            errors.append(f"unknown column {column!r}; {hint}")
    return errors if "id" in header else [*errors, "no column 'id'"]


def _entry(row: Mapping[str, str], file: Path, number: int, errors: list[str]) -> Entry:
    """What is right in a row; `errors` gets what is wrong."""

    def attempt(read: Callable[..., Any], *args: Any) -> Any:
        try:
            return read(*args)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            return None

    if not row["id"]:
        errors.append("no id")
    structure = attempt(_structure, row, file.parent)
    protocol = attempt(_protocol, row, file.parent, structure.formula if structure else "")
    image, pixel_A, frame = attempt(_image, row, file.parent) or (None, None, None)
    properties = {f"{name}_{next(iter(quantities.UNITS[name]))}": attempt(_property, row, name) for name in PROPERTIES}
    properties = {column: value for column, value in properties.items() if value is not None}
    if not errors and structure is None and protocol is None and image is None:
        errors.append("neither structure nor protocol nor image")
    return Entry(row["id"], f"{file.name}:{number}", structure, protocol, image, pixel_A, frame, properties)


def _path(cell: str, folder: Path) -> Path:
    """A file of the folder.

    Raises:
        ValueError: it leads out of the folder, by whatever way.
        FileNotFoundError: there is none.
    """
    if Path(cell).is_absolute():
        raise ValueError(f"{cell}: an absolute path; expected one relative to the manifest's folder")
    root = folder.resolve()
    path = (root / cell).resolve()  # through links too
    if not path.is_relative_to(root):
        raise ValueError(f"{cell}: leaves the manifest's folder")
    if not path.is_file():
        raise FileNotFoundError(f"{cell}: no such file")
    return path


def _structure(row: Mapping[str, str], folder: Path) -> Crystal | None:
    cell = row.get("structure")
    return sources.described(crystals.read_structure(_path(cell, folder))) if cell else None


def _protocol(row: Mapping[str, str], folder: Path, formula: str) -> Protocol | str | None:
    """Of a row whose structure has this formula ("": it has none)."""
    names, cell = recipe_texts.FIELDS + recipe_texts.STEP, row.get("protocol")
    fields = {c: text for c, text in row.items() if text and (c in names or c.startswith(("temperature_", "time_")))}
    told = fields.keys() - {"target", "method", "doi"}
    if cell and told:
        raise ValueError(f"both a protocol and its fields ({', '.join(sorted(told))}); give one")
    if not cell and not told:
        return None
    content = cell or {}
    if cell and len(cell.split()) == 1 and Path(cell).suffix.lower() in recipe_texts.SUFFIXES:
        try:
            content = recipe_texts.load(_path(cell, folder))
        except ValueError as error:
            raise ValueError(f"{cell}: {error}") from None
    if isinstance(content, str):
        return recipe_texts.read_protocol(content)
    content = {**fields, **content}
    target = content.get("target") or formula
    if formula and not same_composition(str(target), formula):
        raise ValueError(f"the protocol's target is {target}, the structure {formula}")
    return recipe_texts.record({**content, "target": target})


def _image(row: Mapping[str, str], folder: Path) -> tuple[Path, float | None, int | None] | None:
    cell, pixel_A = row.get("image"), quantities.given(row, "pixel_size")
    if not cell:
        return None
    number = row.get("image_frame")
    if number and not number.isdecimal():
        raise ValueError(f"image_frame is {number!r}; expected a whole number from 0")
    path, frame = _path(cell, folder), int(number) if number else None
    image = read_micrograph(path, pixel_A=pixel_A, frame=frame)
    model_image(image, **LOOK)
    return path, image.pixel_A, frame


def _property(row: Mapping[str, str], name: str) -> float | None:
    value = quantities.given(row, name)
    if value is not None and name == "band_gap" and value < 0:
        raise ValueError(f"{name} is {value:g}; expected at least 0")
    if value is not None and name.endswith("modulus") and value <= 0:
        raise ValueError(f"{name} is {value:g}; expected more than 0")
    return value
