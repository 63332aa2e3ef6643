"""POSCAR and CONTCAR of VASP 4, 5 and 6 (https://www.vasp.at/wiki/POSCAR).

By hand, as peers differ from VASP: with a negative scale (the volume) Cartesian coordinates are scaled as the lattice
is, three scales are of x, y and z, names may have a potential's suffix and hash, and may run over several lines.
"""

import re

import numpy as np

from matalign.data.readers import unit_cell
from matalign.data.readers.unit_cell import Cell
from matalign.elements import NUMBER


def is_poscar(text: str) -> bool:
    """Whether the second to fifth lines are one or three scales and three vectors."""
    lines = text.splitlines()[1:5]
    counts = [len(found) if (found := _numbers(line)) is not None else 0 for line in lines]
    return len(lines) == 4 and counts[0] in (1, 3) and counts[1:] == [3, 3, 3]


def read(text: str) -> Cell:
    """The crystal of a POSCAR's text; ValueError: "unreadable" with the line, or as `unit_cell.checked`."""
    if not is_poscar(text):
        raise ValueError("unreadable: no POSCAR: expected a scale in line 2 and vectors in lines 3 to 5")
    lines = [line.strip() for line in text.splitlines()]
    scale, lattice = _scaled_lattice(lines)
    names, counts, at = _counts(lines)
    if sum(counts) > unit_cell.MAX_ATOMS:
        raise ValueError(f"too many atoms: {sum(counts)} in the cell; at most {unit_cell.MAX_ATOMS} are taken")
    if at < len(lines) and lines[at][:1].lower() == "s":  # selective dynamics
        at += 1
    rows = lines[at + 1 : at + 1 + sum(counts)]
    if at >= len(lines) or not lines[at] or len(rows) < sum(counts):
        raise ValueError(f"unreadable: {max(len(rows), 0)} lines of coordinates for {sum(counts)} atoms")
    positions = np.array([_three(row, at + 2 + k) for k, row in enumerate(rows)]).reshape(-1, 3)
    cartesian = lines[at][0] in "cCkK"
    frac_coords = positions * scale @ np.linalg.inv(lattice) if cartesian else positions
    elements = np.repeat(_elements(lines[0], names, counts, rows), counts)
    notes = () if names else ("elements of a POSCAR without a line of names are those of its comment or atoms",)
    return unit_cell.checked(elements, frac_coords, lattice, notes=notes)


def _numbers(line: str) -> list[float] | None:
    """The numbers that a line begins with, up to a comment; None if there are none."""
    found = []
    for word in line.split():
        try:
            found.append(float(re.sub("[dD]", "e", word)))
        except ValueError:
            break
    return found or None


def _three(line: str, number: int) -> list[float]:
    found = _numbers(line) or []
    if len(found) < 3 or not np.isfinite(found[:3]).all():
        raise ValueError(f"unreadable: line {number} is {line[:40]!r}; expected three coordinates")
    return found[:3]


def _scaled_lattice(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(3,) factors of x, y and z; (3, 3) the lattice, scaled."""
    stated = np.array(_numbers(lines[1]))
    lattice = np.array([_three(line, number) for number, line in enumerate(lines[2:5], start=3)])
    with np.errstate(all="ignore"):  # whatever stands there
        volume = abs(np.linalg.det(lattice))
    if not np.isfinite(stated).all() or not stated.all() or (len(stated) == 3 and stated.min() < 0) or not volume > 0:
        raise ValueError(f"no lattice: scale {lines[1]!r} of a cell of {volume:g} Å³")
    with np.errstate(all="ignore"):
        scale = np.full(3, (-stated[0] / volume) ** (1 / 3)) if stated[0] < 0 else np.broadcast_to(stated, 3)
        scaled = lattice * scale
    unit_cell.check_volume(scaled)
    return scale, scaled


def _counts(lines: list[str]) -> tuple[list[str], list[int], int]:
    """Names (none in VASP 4), atoms of each, and the line after them."""
    at, names, counts = 5, [], []
    for line in lines[5 : 5 + 400]:
        words = re.split("[!#]", line)[0].split()
        if words and all(word.isdecimal() for word in words):
            counts += [int(word[:9]) for word in words]
        elif words and not counts:
            names += words
        else:
            break
        at += 1
    if not counts or (names and len(names) != len(counts)):
        raise ValueError(f"unreadable: {len(names)} names and {len(counts)} counts of atoms in lines 6 and 7")
    return names, counts, at


def _elements(comment: str, names: list[str], counts: list[int], rows: list[str]) -> list[int]:
    """Atomic number of each group of atoms."""
    trailing = [NUMBER.get(row.split()[-1]) for row in rows]
    groups = np.split(np.array(trailing, dtype=object), np.cumsum(counts)[:-1])
    by_atoms = [group[0] if len(set(group.tolist())) == 1 else None for group in groups]
    if names:
        found = [NUMBER.get(re.split(r"[_/.\d]", name)[0]) for name in names]
        if None in found:
            raise ValueError(f"unknown element: {names[found.index(None)]} in line 6")
        if None not in trailing and by_atoms != found and all(counts):
            raise ValueError(f"unreadable: line 6 names {' '.join(names)}, the atoms' lines have other elements")
        return found
    words = [re.fullmatch(r"([A-Z][a-z]?)(?:_\w+)?(\d*)", word) for word in comment.split()]
    agreeing = [word[1] for word, n in zip(words, counts) if word and word[2] in ("", str(n))]
    by_comment = [NUMBER.get(symbol) for symbol in agreeing]
    if None not in by_atoms:
        return by_atoms
    if len(words) == len(counts) == len(by_comment) and None not in by_comment:
        return by_comment
    raise ValueError(
        f"unreadable: Elements in POSCAR cannot be determined: {len(counts)} kinds of atoms, no line of names, and the "
        f"comment is {comment[:40]!r}"
    )
