"""PDB files with a crystal's cell and space group, by gemmi."""

import gemmi
import numpy as np

from matalign.data.readers import symmetry, unit_cell
from matalign.data.readers.unit_cell import Cell, Sites
from matalign.elements import NUMBER


def read(text: str, *, frame: int | None = None) -> Cell:
    """The crystal of a PDB file's text; the space group of CRYST1 fills the cell; ValueError with kind and cause."""
    bare = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM")) and not line[76:78].strip()]
    if bare:
        raise ValueError(f"unknown element: columns 77 and 78 of {bare[0][:30]!r} name none")
    try:
        found = gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"unreadable PDB: {str(error)[:80]}") from None
    box = found.cell
    if len({line[:54] for line in text.splitlines() if line.startswith("CRYST1")}) > 1:
        raise ValueError("several structures: CRYST1 records of different cells; expected one a file")
    if not box.is_crystal():
        raise ValueError("no lattice: no CRYST1 with a cell; expected a crystal, periodic in three directions")
    labels, numbers, sites = [], [], []
    for each in unit_cell.chosen(found, frame, " models").all():
        atom, label = each.atom, f"{each.atom.name} {each.atom.serial}"
        if atom.has_altloc() or abs(atom.occ - 1) > 0.002:
            where = f"alternative place {atom.altloc}" if atom.has_altloc() else f"occupancy {atom.occ:g}"
            raise ValueError(f"disordered: atom {label} has {where}; expected each site full")
        symbol = "H" if atom.element.name == "D" else atom.element.name
        if symbol not in NUMBER:
            raise ValueError(f"unknown element: atom {label} is {atom.element.name}")
        labels.append(label)
        numbers.append(NUMBER[symbol])
        sites.append(box.fractionalize(atom.pos).tolist())
    if not labels:
        raise ValueError("no atoms: expected at least one")
    lattice = unit_cell.lattice_vectors((box.a, box.b, box.c), (box.alpha, box.beta, box.gamma))
    group = found.spacegroup_hm or "P 1"
    settings = symmetry.by_name(group)
    if not settings:
        raise ValueError(f"symmetry: CRYST1 names {group!r}, which is unknown")
    listed = Sites(tuple(labels), np.array(numbers), np.array(sites), np.zeros(len(labels), int))
    return unit_cell.fill(listed, lattice, settings, stated=f"CRYST1 {group!r}", known=None)
