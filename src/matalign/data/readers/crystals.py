"""The one way in for crystals: files, texts, records and objects of pymatgen and ASE -> arrays.

What a file holds is told by its content, whatever its name. CIF, POSCAR, PDB and JSON are read here, the rest by ASE,
which is not imported before. What cannot be taken is a ValueError that names item and value.
"""

import bz2
import gzip
import lzma
import re
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from os import PathLike
from os.path import isdir, isfile
from pathlib import Path
from typing import Any

import numpy as np

from matalign.data.readers import cif, pdb, poscar, records, unit_cell
from matalign.data.readers.unit_cell import Cell

MAX_FILE_MB = 32  # of a structure, unpacked
MASS_TOLERANCE = 0.2  # atomic units
CONTENT = (  # kind of a text, by ASE's name for it where ASE reads it -> pattern that tells it
    ("json", r"\A[\s\ufeff]*[{\[]"),
    ("lammps-dump-text", r"\A[\s\ufeff]*ITEM:"),
    ("lammps-data", r"^\s*\d+\s+atom types"),
    ("xsf", r"^\s*PRIM(VEC|COORD)\b"),
    ("pdb", r"^(CRYST1|ATOM  |HETATM)"),
    ("vasp-xdatcar", r"(?i)^\s*Direct configuration\s*="),
)
NAMES = (("cif", r"(?i)\.m?cif"), ("json", r"(?i)\.json"), ("poscar", r"(?i)POSCAR|CONTCAR|\.vasp$"))
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by first bytes


def read_structure(item: Any, *, block: str | None = None, frame: int | None = None) -> Cell:
    """One ordered crystal.

    Args:
        item: path of a file with one structure (CIF, POSCAR, PDB, JSON, whatever ASE reads; gzipped or not); text of a
            CIF, POSCAR, PDB or JSON; pymatgen Structure; ASE Atoms; OPTIMADE record or answer; dictionary of a
            structure as pymatgen, ASE or JARVIS writes it.
        block: data block of a CIF with several crystals.
        frame: which of several structures, from 0; -1 is the last.

    Returns:
        `numbers` (n,) int16, `frac_coords` (n, 3), `lattice` (3, 3) in Å with rows as vectors, `notes` of what was
        assumed or merged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: naming the item: unreadable, several structures, no lattice, disorder, an unknown element, unclear
            symmetry, atoms on top of one another, more than `unit_cell.MAX_ATOMS` atoms.
    """
    name, read = _reader(item, block, frame)
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _reader(item: Any, block: str | None, frame: int | None) -> tuple[str, Callable[[], Cell]]:
    """What messages call the item, and what reads it."""
    if isinstance(item, str) and ("\n" in item or "\r" in item or item.lstrip()[:1] in ("{", "[")):
        kind = kind_of(item, "")
        name = kind.upper() if kind in ("cif", "poscar", "pdb", "json") else "text"
        return name, lambda: _of_text(item, "", block, frame)
    if isinstance(item, str | PathLike):
        return Path(item).name, lambda: _of_file(Path(item), block, frame)
    if isinstance(item, list | tuple) and item and not all(isinstance(each, Mapping) for each in item):
        return type(item).__name__, lambda: _reader(unit_cell.chosen(item, frame), block, None)[1]()
    if isinstance(item, Mapping | list | tuple):
        return records.name(item), lambda: records.read(item, frame=frame)
    if hasattr(item, "get_scaled_positions"):
        return f"ASE Atoms {item.symbols}", lambda: _of_ase(item)
    if hasattr(item, "frac_coords") and hasattr(item, "is_ordered"):
        return f"Structure {item.formula}", lambda: _of_pymatgen(item)
    return type(item).__name__, lambda: _of_arrays(item)


def _of_arrays(item: Any) -> Cell:
    if not all(hasattr(item, name) for name in ("numbers", "frac_coords", "lattice")):
        raise ValueError(
            "is no crystal; expected a pymatgen Structure, ASE Atoms, a path, a text or an OPTIMADE record"
        )
    return unit_cell.checked(*map(np.asarray, (item.numbers, item.frac_coords, item.lattice)))


def kind_of(text: str, name: str) -> str:
    """What a text holds, by its content first, then by its name: of `CONTENT`, cif, poscar or ""."""
    if re.search(r"(?im)^\s*data_", text) and re.search(r"(?i)(^|\s)_(cell|atom_site|symmetry|space_group)[_.]", text):
        return "cif"
    found = next((kind for kind, pattern in CONTENT if re.search(pattern, text, re.MULTILINE)), "")
    named = next((kind for kind, pattern in NAMES if re.search(pattern, name)), "")
    return found or ("poscar" if not named and poscar.is_poscar(text) else named)


def _of_file(path: Path, block: str | None, frame: int | None) -> Cell:
    content, packed = _content(path)
    name = re.sub(r"(?i)\.(gz|bz2|xz)$", "", path.name) if packed else path.name
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        text = "" if b"\0" in content else content.decode("utf-8-sig", errors="replace")
    if kind_of(text, name) and (text or not content):
        return _of_text(text, name, block, frame)
    return _by_ase(content, name, frame)


def _content(path: Path) -> tuple[bytes, bool]:
    """The bytes of a file, unpacked, and whether they were packed."""
    if not isfile(path):
        what = "is a folder" if isdir(path) else "no such file"
        raise FileNotFoundError(f"{path}: {what}; expected a structure")
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_FILE_MB << 20 else bytes((MAX_FILE_MB << 20) + 1)
        opener = next((opener for start, opener in PACKED.items() if content.startswith(start)), None)
        if opener:
            with opener(BytesIO(content)) as stream:
                content = stream.read((MAX_FILE_MB << 20) + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise ValueError(f"unreadable: {error or type(error).__name__}") from None
    if len(content) > MAX_FILE_MB << 20:
        raise ValueError(f"too large: structure files of at most {MAX_FILE_MB} MB are read")
    return content, bool(opener)


def _of_text(text: str, name: str, block: str | None, frame: int | None) -> Cell:
    kind = kind_of(text, name)
    text = text.removeprefix("\ufeff")
    if block is not None and kind != "cif":
        raise ValueError(f"no block {block!r}: a CIF alone has blocks")
    if kind in ("cif", "poscar"):
        unit_cell.chosen([text], frame)  # each holds one
    if kind == "cif":
        return cif.read(text, block=block)
    if kind == "json":
        return records.read(records.load(text), frame=frame)
    if kind == "pdb":
        return pdb.read(text, frame=frame)
    if kind == "poscar":
        return poscar.read(text)
    if not kind:
        raise ValueError("unreadable: a text that is no CIF, POSCAR, PDB or JSON; give other files by their path")
    if kind == "lammps-dump-text" and not re.search(r"(?m)^ITEM: ATOMS.*\b(element|mass)\b", text):
        raise ValueError("unknown element: a LAMMPS dump of types without a column `element`")
    if kind == "lammps-data":
        _check_masses(text)
    if kind == "xsf" and (found := re.search(r"(?m)^\s*(SLAB|POLYMER|MOLECULE|ATOMS|DIM-GROUP\s+[012]\b)", text)):
        raise ValueError(f"not periodic in three directions: the XSF is a {' '.join(found[1].split())}")
    return _by_ase(text.encode(), name or kind, frame, form=kind)


def _check_masses(text: str) -> None:
    """Refuse LAMMPS data of which a mass is no element's, as of beads; ASE takes the element with the nearest one."""
    from ase.data import atomic_masses

    if not re.search(r"(?m)^\s*Masses\b", text):
        raise ValueError("unknown element: LAMMPS data of types without the section Masses")
    listed = re.search(r"(?m)^\s*Masses\b.*\n\s*((?:\d+[ \t]+[\d.eE+-]+.*\n\s*)+)", text)
    for line in listed[1].splitlines() if listed else ():
        mass = line.split()[1] if line.strip() else ""
        if mass and np.abs(atomic_masses[1:] - float(mass)).min() > MASS_TOLERANCE:
            raise ValueError(f"unknown element: LAMMPS data of a type with the mass {mass}, which is no element's")


def _by_ase(content: bytes, name: str, frame: int | None, *, form: str | None = None) -> Cell:
    """What a file of this content and name holds, with what ASE warns of as notes."""
    import ase.io

    wanted = ":2" if frame is None else slice(frame, frame + 1 or None)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            found = ase.io.read(path, index=wanted, format=form, do_not_split_by_at_sign=True)
        except Exception as error:  # the parsers raise whatever their parts raise
            raise ValueError(f"unreadable: {_line(error)}; ASE cannot read it") from None
    found = found if isinstance(found, list) else [found]
    if not found:
        raise ValueError(f"no frame {frame}" if frame is not None else "no structures: none in the file")
    if len(found) > 1:
        raise ValueError("several structures: expected one a file; choose one by `frame`, from 0 (-1 is the last)")
    cell = _of_ase(found[0])
    said = [_line(each.message) for each in told if issubclass(each.category, UserWarning)]
    return replace(cell, notes=(*cell.notes, *dict.fromkeys(said)))


def _line(error: Exception | Warning) -> str:
    """The last line of what an exception says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _of_pymatgen(found: Any) -> Cell:
    species = [specie for site in found for specie in site.species]
    unknown = [specie for specie in species if type(specie).__name__ == "DummySpecies"]
    if unknown:
        raise ValueError(f"unknown element: {unknown[0]}")
    if not found.is_ordered:
        raise ValueError(f"disordered: {found.composition.formula}; expected each site full, of one element")
    if not all(found.lattice.pbc):
        raise ValueError(f"not periodic in three directions: pbc is {found.lattice.pbc}")
    return unit_cell.checked(np.array([specie.Z for specie in species]), found.frac_coords, found.lattice.matrix)


def _of_ase(found: Any) -> Cell:
    unit_cell.check_volume(found.cell.array)
    if not all(found.pbc):
        raise ValueError(f"not periodic in three directions: pbc is {found.pbc.tolist()}")
    records.check_full(found.info.get("occupancy"))
    return unit_cell.checked(found.numbers, found.get_scaled_positions(wrap=False), found.cell.array)
