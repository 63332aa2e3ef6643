"""The one way in for crystals: files, texts, records and objects of pymatgen and ASE -> arrays.

What a file holds is told by its content, whatever its name. CIF, POSCAR, PDB and JSON are read here; pymatgen, then
ASE, reads the rest, and neither is imported before. What cannot be taken is a ValueError that names item and value.
"""

import bz2
import gzip
import lzma
import re
import tempfile
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matalign.data.readers import cif, pdb, poscar, records, unit_cell
from matalign.data.readers.unit_cell import Cell
from matalign.elements import SYMBOLS

if TYPE_CHECKING:
    from matalign.data.sources import Crystal

MAX_FILE_MB = 32  # of a structure, unpacked
MASS_TOLERANCE = 0.2  # atomic units
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # by first bytes


def read_structure(item: Any, *, block: str | None = None, frame: int | None = None) -> Cell:
    """One ordered crystal.

    Args:
        item: path of a file with one structure (CIF, POSCAR, PDB, JSON, whatever pymatgen or ASE reads; gzipped or
            not); text of a CIF, POSCAR, PDB or JSON; pymatgen Structure; ASE Atoms; OPTIMADE record or answer;
            dictionary of a structure as pymatgen, ASE or JARVIS writes it.
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
    name = _name(item)
    try:
        return _read(item, block, frame)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def described(item: Any) -> "Crystal":
    """As `read_structure`, with formula, chemical system and space group (`sources.space_group`)."""
    from pymatgen.core import Composition

    from matalign.data import sources

    cell = read_structure(item)
    composition = Composition({SYMBOLS[z]: int((cell.numbers == z).sum()) for z in np.unique(cell.numbers)})
    number = sources.space_group(*cell.arrays)
    return sources.Crystal(*cell.arrays, composition.reduced_formula, composition.chemical_system, number)


def _name(item: Any) -> str:
    """What messages call the item."""
    if isinstance(item, str) and _is_text(item):
        return {"cif": "CIF", "poscar": "POSCAR", "pdb": "PDB", "json": "JSON"}.get(kind_of(item, ""), "text")
    if isinstance(item, str | PathLike):
        return Path(item).name
    if isinstance(item, Mapping | list | tuple):
        return records.name(item)
    if hasattr(item, "get_scaled_positions"):
        return f"ASE Atoms {item.symbols}"
    if hasattr(item, "frac_coords") and hasattr(item, "formula"):
        return f"Structure {item.formula}"
    return type(item).__name__


def _is_text(item: str) -> bool:
    return "\n" in item or "\r" in item or item.lstrip()[:1] in ("{", "[")


def _read(item: Any, block: str | None, frame: int | None) -> Cell:
    if isinstance(item, str) and _is_text(item):
        return _of_text(item, "", block, frame)
    if isinstance(item, str | PathLike):
        return _of_file(Path(item), block, frame)
    if isinstance(item, list | tuple) and item and not all(isinstance(each, Mapping) for each in item):
        if len(item) > 1 and frame is None:
            raise ValueError(f"several structures: {len(item)}; choose one by `frame`, from 0")
        if not -len(item) <= (frame or 0) < len(item):
            raise ValueError(f"no frame {frame}: there are {len(item)}")
        return _read(item[frame or 0], block, None)
    if isinstance(item, Mapping | list | tuple):
        return records.read(item, frame=frame)
    if hasattr(item, "get_scaled_positions"):
        return _of_ase(item)
    if hasattr(item, "frac_coords") and hasattr(item, "is_ordered"):
        return _of_pymatgen(item)
    if all(hasattr(item, name) for name in ("numbers", "frac_coords", "lattice")):
        return unit_cell.checked(*map(np.asarray, (item.numbers, item.frac_coords, item.lattice)))
    raise ValueError("is no crystal; expected a pymatgen Structure, ASE Atoms, a path, a text or an OPTIMADE record")


# Files and texts


def kind_of(text: str, name: str) -> str:
    """What a text holds, by its content first: cif, json, pdb, lammps-dump, lammps-data, xsf, xdatcar, poscar or ""."""
    start = text.lstrip("\ufeff \t\r\n")
    if re.search(r"(?im)^\s*data_", text) and re.search(r"(?i)(^|\s)_(cell|atom_site|symmetry|space_group)[_.]", text):
        return "cif"
    if start[:1] in ("{", "["):
        return "json"
    if re.search(r"^(CRYST1|ATOM  |HETATM)", text, re.MULTILINE) and not re.search(r"(?i)\.(xsf|res)", name):
        return "pdb"
    if start.startswith("ITEM:"):
        return "lammps-dump"
    if re.search(r"(?m)^\s*\d+\s+atom types", text):
        return "lammps-data"
    if re.search(r"(?m)^\s*PRIM(VEC|COORD)\b", text):
        return "xsf"
    if re.search(r"(?im)^\s*Direct configuration\s*=", text):
        return "xdatcar"
    if re.search(r"(?i)\.m?cif", name):
        return "cif"
    if re.search(r"(?i)\.json", name):
        return "json"
    if poscar.is_poscar(text) or re.search(r"(?i)POSCAR|CONTCAR|\.vasp$", name):
        return "poscar"
    return ""


def _of_file(path: Path, block: str | None, frame: int | None) -> Cell:
    content, packed = _content(path)
    text = _text(content)
    name = re.sub(r"(?i)\.(gz|bz2|xz)$", "", path.name) if packed else path.name
    if text is not None and kind_of(text, name):
        return _of_text(text, name, block, frame, path=None if packed else path)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, name) if packed else path
        if packed:
            plain.write_bytes(content)
        return _by_libraries(plain, frame)


def _content(path: Path) -> tuple[bytes, bool]:
    """The bytes of a file, unpacked, and whether they were packed."""
    if not _is_file(path):
        raise FileNotFoundError(f"{path}: no such file; expected a structure")
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be read
        return False


def _text(content: bytes) -> str | None:
    """The text of bytes; None if they are none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    return None if b"\0" in content else content.decode("utf-8-sig", errors="replace")


def _of_text(text: str, name: str, block: str | None, frame: int | None, path: Path | None = None) -> Cell:
    kind = kind_of(text, name)
    text = text.removeprefix("\ufeff")
    if kind == "cif":
        return cif.read(text, block=block)
    if kind == "json":
        return records.read(records.load(text), frame=frame)
    if kind == "pdb":
        return pdb.read(text, frame=frame)
    if kind == "poscar":
        return poscar.read(text)
    if kind == "lammps-dump" and not re.search(r"(?m)^ITEM: ATOMS.*\b(element|mass)\b", text):
        raise ValueError("unknown element: a LAMMPS dump of types without a column `element`")
    if kind == "lammps-data" and not re.search(r"(?m)^\s*Masses\b", text):
        raise ValueError("unknown element: LAMMPS data of types without the section Masses")
    if kind == "lammps-data":
        _check_masses(text)
    if kind == "xsf" and (found := re.search(r"(?m)^\s*(SLAB|POLYMER|MOLECULE|ATOMS|DIM-GROUP\s+[012]\b)", text)):
        raise ValueError(f"not periodic in three directions: the XSF is a {' '.join(found[1].split())}")
    if not kind:
        raise ValueError("unreadable: a text that is no CIF, POSCAR, PDB or JSON; give other files by their path")
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder, name or kind)
            path.write_text(text)
        return _by_ase(path, frame, form={"xdatcar": "vasp-xdatcar", "lammps-dump": "lammps-dump-text"}.get(kind, kind))


def _check_masses(text: str) -> None:
    """Refuse LAMMPS data of which a mass is no element's, as of beads; ASE takes the element with the nearest one."""
    from ase.data import atomic_masses

    listed = re.search(r"(?m)^\s*Masses\b.*\n\s*((?:\d+[ \t]+[\d.eE+-]+.*\n\s*)+)", text)
    for line in listed[1].splitlines() if listed else ():
        mass = line.split()[1] if line.strip() else ""
        if mass and np.abs(atomic_masses[1:] - float(mass)).min() > MASS_TOLERANCE:
            raise ValueError(f"unknown element: LAMMPS data of a type with the mass {mass}, which is no element's")


# Libraries


def _by_libraries(path: Path, frame: int | None) -> Cell:
    """By pymatgen, or else by ASE; what both refuse is refused with both causes."""
    from pymatgen.io.registry import get_structure_format

    try:
        known = bool(get_structure_format(filename=str(path)))
    except ValueError:
        known = False
    if not known or frame is not None or re.search(r"(?i)vasprun|\.traj", path.name):
        return _by_ase(path, frame)
    try:
        found, notes = _heard(_pymatgen_reads, path)
    except ValueError as error:
        try:
            return _by_ase(path, frame)
        except ValueError as other:
            raise ValueError(f"{other} (pymatgen: {str(error).removeprefix('unreadable: ')})") from None
    cell = _of_pymatgen(found)
    return replace(cell, notes=(*cell.notes, *notes))


def _pymatgen_reads(path: Path) -> Any:
    from pymatgen.core import Structure

    return Structure.from_file(path)


def _by_ase(path: Path, frame: int | None, *, form: str | None = None) -> Cell:
    import ase.io

    def reads(path: Path) -> list[Any]:
        wanted = ":2" if frame is None else slice(frame, frame + 1 or None)
        found = ase.io.read(path, index=wanted, format=form, do_not_split_by_at_sign=True)
        return found if isinstance(found, list) else [found]

    try:
        found, notes = _heard(reads, path)
    except ValueError as error:
        raise ValueError(f"{error}; neither pymatgen nor ASE can read it") from None
    if not found:
        raise ValueError(f"no frame {frame}" if frame is not None else "no structures: none in the file")
    if len(found) > 1:
        raise ValueError("several structures: expected one a file; choose one by `frame`, from 0 (-1 is the last)")
    cell = _of_ase(found[0])
    return replace(cell, notes=(*cell.notes, *notes))


def _heard(reads: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """What a library reads, and what it warns of; its errors are ValueErrors."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = reads(path)
        except Exception as error:  # the parsers raise whatever their parts raise
            raise ValueError(f"unreadable: {_line(error)}") from None
    said = [_line(each.message) for each in told if issubclass(each.category, UserWarning)]
    return found, tuple(dict.fromkeys(said))


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
