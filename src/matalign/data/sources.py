"""One reader for each source of crystals.

Local ids of the archives end here: what the readers yield is keyed by mp-id.
"""

import csv
import hashlib
import logging
import os
import re
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from matalign import paths
from matalign.data import formulas
from matalign.data.readers import cif
from matalign.data.readers.unit_cell import Cell
from matalign.elements import ELECTRONEGATIVITY, SYMBOLS

ARCHIVE = "MEGNet.tar.gz"
USED = re.compile(  # files of archives, without the top folder
    r"data(_elasticity)?/(.*\.cif|id_prop\.csv|material_id_hash\.csv)|Image Data/.*\.tif|\w+_Training_Image\.\w+"
)
SYMPREC_A = 0.1  # of space groups: the Materials Project's own tolerance
EXAMPLES = 3  # rows named for each reason why some are left out
LABELS = ("formation_energy_eV_atom", "band_gap_eV", "bulk_modulus_GPa", "shear_modulus_GPa")
OTHERS = ("fermi_level_eV", "volume_A3", "magnetisation_muB")  # of the cell in the source's file


def catalogue(file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Source name -> its entry in `sources.yaml`."""
    return yaml.safe_load((file or paths.SOURCES).read_text())


def file_hash(path: Path) -> str:
    """Sha256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(files: Iterable[tuple[str, bytes]]) -> str:
    """Sha256 over the lines `<sha256 of the file>  <path>`, as `sha256sum` prints them, sorted by path."""
    sums = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files)
    return hashlib.sha256("".join(f"{digest}  {path}\n" for path, digest in sums).encode()).hexdigest()


def archive_hash(path: Path) -> str:
    """`content_hash` of the archive's files that are used; the archive's own bytes differ from day to day."""
    return content_hash(used_files(path))


def used_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(path without the archive's top folder, content) of the files that are `USED`, in the archive's order."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if USED.fullmatch(name := member.name.partition("/")[2]):
                yield name, archive.extractfile(member).read()


@dataclass
class Skipped:
    """Rows left out, counted by source and reason: nothing is dropped silently."""

    rows: Counter = field(default_factory=Counter)
    first: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, source: str, reason: str, message: str, *, rows: int = 1) -> None:
        """Count; keep the message (file, row, value) if it is one of the first."""
        self.rows[source, reason] += rows
        if len(self.first[source, reason]) < EXAMPLES:
            self.first[source, reason].append(message)

    def table(self) -> list[dict[str, Any]]:
        """Rows {source, reason, rows, first}, sorted."""
        return [
            {"source": source, "reason": reason, "rows": count, "first": self.first[source, reason]}
            for (source, reason), count in sorted(self.rows.items())
        ]


@dataclass(frozen=True)
class Material:
    """A crystal as a source gives it, unchecked."""

    mp_id: str  # "" where the source has none for it
    source: str  # the source's name
    where: str  # file and row, for messages
    cif: str | None  # text; None where the source has no file for it
    labels: dict[str, str]  # column of `dataset.MATERIALS` -> value as written
    others: dict[str, str] = field(default_factory=dict)  # of `OTHERS`, that a modality may ask for


def megnet(folder: Path) -> Iterator[Material]:
    """The Materials Project snapshot: formation energies, gaps and `OTHERS`."""
    return _snapshot(folder / ARCHIVE, "data", "megnet", (*LABELS[:2], *OTHERS))


def elasticity(folder: Path) -> Iterator[Material]:
    """Bulk and shear moduli in the same archive, under local ids of their own."""
    return _snapshot(folder / ARCHIVE, "data_elasticity", "elasticity", LABELS[2:])


def _snapshot(archive: Path, part: str, source: str, columns: tuple[str, ...]) -> Iterator[Material]:
    files = {path: content for path, content in used_files(archive) if path.startswith(f"{part}/")}
    labels = {row[0]: row[1:] for row in _rows(files[f"{part}/id_prop.csv"]) if row}
    rows = [row for row in _rows(files[f"{part}/material_id_hash.csv"]) if row]
    ids = [(f"{part}/{local_id}.cif", local_id, mp_id) for local_id, mp_id in rows]
    known = {path for path, _, _ in ids}
    ids += [(path, "", "") for path in sorted(files) if path.endswith(".cif") and path not in known]
    for path, local_id, mp_id in ids:
        cif = files[path].decode(errors="replace") if path in files else None
        written = [*labels.get(local_id, ()), *[""] * len(columns)]
        yield Material(mp_id, source, f"{archive.name}:{path}", cif, *_parted(dict(zip(columns, written))))


def _rows(content: bytes) -> Iterator[list[str]]:
    return csv.reader(content.decode().splitlines())


def _parted(row: dict[str, str]) -> list[dict[str, str]]:
    """Labels of a row, and others."""
    return [{column: row[column] for column in columns if column in row} for columns in (LABELS, OTHERS)]


def topology(folder: Path) -> Iterator[Material]:
    """Crystals that reactions name, one CIF each; no labels."""
    for file in sorted(folder.glob("*.cif")):
        yield Material(file.stem, "topology", file.name, file.read_text(errors="replace"), {})


def table(file: Path) -> Iterator[Material]:
    """A CSV with `mp_id`, `cif` (the text) and any of the columns `LABELS` and `OTHERS`: the embedded sample."""
    csv.field_size_limit(1 << 24)
    with open(file, newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            where = f"{file.name}:{number}"
            yield Material(row.get("mp_id") or "", file.parent.name, where, row.get("cif") or None, *_parted(row))


def materials(raw: Path) -> Iterator[Material]:
    """All crystals under a folder, the source to be preferred for a structure first; raises as `every`."""
    return every(raw, [("materials.csv", table), ("megnet", megnet), ("topology", topology), ("megnet", elasticity)])


def every(raw: Path, readers: list[tuple[str, Callable[[Path], Iterator[Any]]]]) -> Iterator[Any]:
    """What readers yield of the files of a folder that are there; FileNotFoundError, with how to fetch, if none is."""
    there = [(raw / name, read) for name, read in readers if (raw / name).exists()]
    if not there:
        names = ", ".join(dict.fromkeys(name for name, _ in readers))
        fetching = f"python -m matalign.data.fetch {' '.join(catalogue())}"
        raise FileNotFoundError(f"{raw} has none of {names}; fetch them with: {fetching}")
    for path, read in there:
        yield from read(path)


@dataclass(frozen=True)
class Crystal:
    """What a CIF says; see `parse_cif`."""

    numbers: np.ndarray  # (n,) atomic numbers
    frac_coords: np.ndarray  # (n, 3)
    lattice: np.ndarray  # (3, 3) rows are the lattice vectors, Å
    formula: str  # reduced
    chemsys: str
    space_group: int  # international number; 0: none found


def parse_cif(text: str) -> Crystal:
    """Read one ordered crystal; its atoms by electronegativity (first those without one), then as the file lists them.

    Raises:
        ValueError: see `readers.cif.read`.
    """
    cell = cif.read(text)
    order = np.lexsort(([SYMBOLS[z] for z in cell.numbers], np.nan_to_num(ELECTRONEGATIVITY[cell.numbers])))
    return described(replace(cell, numbers=cell.numbers[order], frac_coords=cell.frac_coords[order]))


def described(cell: Cell) -> Crystal:
    """A crystal with its formula, chemical system and space group."""
    chemsys = "-".join(sorted({SYMBOLS[z] for z in cell.numbers}))
    return Crystal(*cell.arrays, formulas.spelled(cell.numbers), chemsys, space_group(*cell.arrays))


def space_group(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> int:
    """International number at a tolerance of 0.1 Å.

    It is moyo's where every atom lies on its place under that group, within a tenth of the tolerance. The rest, where
    it depends on the program what is within the tolerance, is spglib's: at 0.1 Å, or at a tenth or a hundredth of that
    where it finds none; 0: none found.
    """
    import moyopy  # here: fetching works without a crystallography package

    logging.getLogger("moyo").setLevel(logging.ERROR)  # of operations that cannot be written on the cell's axes
    try:
        cell = moyopy.Cell(lattice.tolist(), frac_coords.tolist(), numbers.tolist())
        found = moyopy.MoyoDataset(cell, symprec=SYMPREC_A, rotate_basis=False)
    except ValueError:
        return _by_spglib(numbers, frac_coords, lattice)
    ideal = found.prim_std_cell
    placed = (frac_coords - found.prim_std_origin_shift) @ np.linalg.inv(found.prim_std_linear).T
    moved = placed - np.array(ideal.positions)[found.mapping_std_prim]
    moved_A = np.linalg.norm((moved - np.rint(moved)) @ ideal.basis, axis=1).max()
    if found.symprec == SYMPREC_A and moved_A <= SYMPREC_A / 10:
        return found.number
    return _by_spglib(numbers, frac_coords, lattice)


def _by_spglib(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> int:
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # of tolerances that it lowers by itself
    import spglib

    cell = (lattice, frac_coords, numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib's, of how it will tell errors one day
        symmetries = (spglib.get_symmetry_dataset(cell, symprec=SYMPREC_A * scale) for scale in (1, 0.1, 0.01))
        return next((symmetry.number for symmetry in symmetries if symmetry is not None), 0)
