"""Space groups as operations: from lists of triplets, Hermann-Mauguin or Hall symbols, or numbers (gemmi's tables).

A symbol may leave its origin or its axes open (`F d -3 m`, `R -3 m`); it then stands for several settings, and
`unit_cell` decides among them by what they make of the atoms.
"""

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import gemmi
import numpy as np

MERGE_A = 0.1  # images of an atom nearer than this are one atom on a special position, rounded in the file
SAME_A = 1e-3  # of an averaged position and its images
LENGTH_TOLERANCE, ANGLE_TOLERANCE = 0.01, 0.5  # relative, and in degrees: how well operations must fit a cell
LAST_MONOCLINIC = 15
PARTS = 24  # translations are multiples of 1/24


@dataclass(frozen=True)
class Setting:
    """A space group on axes and origin: `rotations` (g, 3, 3) and `translations` (g, 3) of fractional coordinates."""

    name: str
    number: int  # international; 0: not in the table in this setting
    rotations: np.ndarray
    translations: np.ndarray
    rare: bool = False  # a reading of a short symbol that only the cell's angles can ask for

    @cached_property
    def key(self) -> frozenset[bytes]:
        """The operations as a set, to compare settings by."""
        parts = np.rint(self.translations * PARTS).astype(int) % PARTS
        table = np.concatenate([self.rotations.reshape(-1, 9), parts], axis=1).astype(np.int8)
        return frozenset(row.tobytes() for row in table)


@lru_cache(maxsize=1024)
def from_triplets(triplets: tuple[str, ...], centrings: tuple[str, ...] = ()) -> Setting:
    """The group of a list of operations, such as ``-x,y+1/2,-z``, and of centring translations beside them.

    Raises:
        ValueError: naming an operation that cannot be read, or a list that is no group.
    """
    listed = [_operation(text) for text in triplets]
    listed = [each.combine(move) for each in listed for move in map(_operation, centrings)] or listed
    unique = {each.wrap().triplet(): each for each in listed}
    group = gemmi.GroupOps(list(unique.values()))
    with suppress(RuntimeError):  # more than any group has
        group.add_missing_elements()
    if len(group) != len(unique) or "x,y,z" not in unique:
        raise ValueError(f"symmetry: the {len(unique)} operations listed make no group (first {triplets[0]!r})")
    known = gemmi.find_spacegroup_by_ops(group)
    return _setting(known.xhm(), known.number, group) if known else _setting(f"{len(unique)} operations", 0, group)


def _operation(text: str) -> gemmi.Op:
    try:
        parts = text.split(",")[:3]  # a magnetic one has time reversal as a fourth
        found = gemmi.Op(",".join(part.replace(" ", "") for part in parts))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"symmetry: operation {text!r} is unreadable ({error})") from None
    if abs(round(np.linalg.det(np.array(found.rot) / gemmi.Op.DEN))) != 1:
        raise ValueError(f"symmetry: operation {text!r} is no symmetry")
    return found


def _setting(name: str, number: int, operations: gemmi.GroupOps) -> Setting:
    table = [(each.rot, each.tran) for each in operations]
    rotations = np.array([rot for rot, _ in table]) // gemmi.Op.DEN
    return Setting(name, number, rotations, np.array([tran for _, tran in table]) / gemmi.Op.DEN)


def group_number(found: Setting, lattice: np.ndarray) -> int:
    """The international number, in whatever setting; 0: none."""
    if found.number:
        return found.number
    import spglib  # here: few files need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = spglib.get_spacegroup_type_from_symmetry(found.rotations, found.translations % 1, lattice)
    return kind.number if kind else 0


def by_hall(symbol: str) -> list[Setting]:
    """The setting of a Hall symbol; none if it is unreadable."""
    words = " ".join(symbol.replace("_", " ").lower().split())
    words = re.sub(r"^(-?) ?([a-z])", lambda match: match[1] + match[2].upper(), words)
    try:
        group = gemmi.symops_from_hall(words)
    except (RuntimeError, ValueError):
        return []
    known = gemmi.find_spacegroup_by_ops(group)
    return [_setting(f"Hall {words}", known.number if known else 0, group)]


@lru_cache(maxsize=256)
def by_number(number: str) -> tuple[Setting, ...]:
    """All settings of a group; none if there is no such group. Centred triclinic ones are rare."""
    found = [each for each in gemmi.spacegroup_table() if str(each.number) == number.lstrip("0")]
    return tuple(replace(_of(each), rare=each.number <= 2 and each.hm[0] != "P") for each in found)


@lru_cache(maxsize=1024)
def by_name(symbol: str) -> tuple[Setting, ...]:
    """All settings that a Hermann-Mauguin symbol may stand for; none if it is unreadable.

    Blanks, case, typeset subscripts, short, full and extended symbols, extensions (`:1`, `:H`, `:cab`) and words about
    the origin are understood; without such words both origins and both axes come out. S and Z, which some databases
    append, leave it open.
    """
    text = " ".join(re.sub(r"(?i)[_~{}$]|</?sub>|,?\s*no\.?\s*\d+$", "", symbol).split())
    words = " ".join(re.findall(r"\((.*?)\)", text) + re.findall(r"(?i),?\s*(origin.*|.*axes.*)$", text)).lower()
    text = re.sub(r"\(.*?\)|(?i:,?\s*origin.*$)", "", text).strip(" ,;")
    extension = ""
    if match := re.search(r"\s*:\s*([A-Za-z0-9-]+)$", text) or re.search(r"(?<=[\w/\d])\s*([HRSZ])$", text):
        extension, text = match[1].upper().removeprefix("O"), text[: match.start()].strip()
    if match := re.search(r"(?:origin|choice)\D*([12])\b", words):
        extension = match[1]
    elif "rhombohedral" in words or "hexagonal" in words:
        extension = "R" if "rhombohedral" in words else "H"
    text = text if " " in text or gemmi.find_spacegroup_by_name(text) else _spaced(text)
    forms = (text, _short(text), text.replace(" ", " 1 1 ", 1) if text.count(" ") == 1 else text)  # P 21/b: along c
    known = next((each for form in forms if (each := gemmi.find_spacegroup_by_name(form))), None)
    if known is None:
        return ()
    if extension not in ("", "1", "2", "H", "R", "S", "Z"):
        return _on_axes(known, text, extension.lower())
    same = [each for each in gemmi.spacegroup_table() if each.number == known.number and _alike(each, known, text)]
    exact = [each for each in same if each.ext.upper() == extension and extension]
    standard = known.hm == gemmi.get_spacegroup_reference_setting(known.number).hm
    rare = {each.hm for each in same if each.hm != known.hm and (standard or known.number <= LAST_MONOCLINIC)}
    return tuple(replace(_of(each), rare=each.hm in rare) for each in exact or same)


def _on_axes(known: gemmi.SpaceGroup, text: str, axes: str) -> tuple[Setting, ...]:
    """The settings on axes as the International Tables name them: `P b n m:cab`, also of the standard `P n m a:cab`."""
    standard = gemmi.get_spacegroup_reference_setting(known.number).hm
    named = [each for each in gemmi.spacegroup_table() if each.number == known.number]
    named = [each for each in named if each.qualifier and axes in (each.qualifier, each.ext.lower() + each.qualifier)]
    return tuple(_of(each) for each in named if known.hm == standard or _alike(each, known, text))


def _of(known: gemmi.SpaceGroup) -> Setting:
    return _setting(known.xhm(), known.number, known.operations())


def _alike(each: gemmi.SpaceGroup, known: gemmi.SpaceGroup, text: str) -> bool:
    """Whether a symbol may mean this entry of the table.

    `P 21` has its axis along b, or along c as it was once written; `P 1 21 1` has it along b. The e of `C m c e` is a
    glide along a as well as along b.
    """
    if each.hm == known.hm:
        return True
    if known.number <= LAST_MONOCLINIC:
        short = len(re.sub(r"\s", "", text)) < len(re.sub(r"\s", "", known.hm))
        one, other = ([word for word in entry.hm.split() if word != "1"] for entry in (each, known))
        return short and one == other and each.hm.split()[-1] != "1"
    pattern = re.sub(r"[^A-Za-z0-9-]", "", _short(text)).lower()
    return "e" in pattern and bool(re.fullmatch(pattern.replace("e", "[abc]"), "".join(each.hm.lower().split())))


def _spaced(symbol: str) -> str:
    """A full symbol with its blanks: P4/m2/m2/m -> P 4/m 2/m 2/m; as it is where that cannot be."""
    words = re.findall(r"-[1346]|(?:21|3[12]|4[123]|6[1-5]|[1-6])(?:/[a-emn])?|[a-emn]", symbol[1:].lower())
    return " ".join([symbol[:1], *words]) if "".join(words) == symbol[1:].lower() else symbol


def _short(symbol: str) -> str:
    """The short form of a full symbol: F 4/m -3 2/m -> F m -3 m."""
    lattice, *words = symbol.split() or [""]
    if len(words) < 2 or sum("/" in word for word in words) < (1 if "-3" in words else 2):
        return symbol
    first = words[0] if words[0][:1] in "46" and words[1] != "-3" else words[0].rpartition("/")[2]
    return " ".join([lattice, first, *(word.rpartition("/")[2] for word in words[1:])])


def fits(found: Setting, lattice: np.ndarray) -> bool:
    """Whether the operations leave the cell's lengths and angles as they are."""
    if len(found.rotations) == 1:
        return True
    metric = lattice @ lattice.T
    turned = np.swapaxes(found.rotations, 1, 2) @ metric @ found.rotations
    lengths, others = np.sqrt(np.diag(metric)), np.sqrt(np.abs(np.diagonal(turned, axis1=1, axis2=2)))
    if (np.abs(others / lengths - 1) > LENGTH_TOLERANCE).any():
        return False
    angles = [
        np.degrees(np.arccos(np.clip(g / np.einsum("...i,...j->...ij", n, n), -1, 1)))
        for g, n in ((metric, lengths), (turned, others))
    ]
    return bool((np.abs(angles[1] - angles[0]) <= ANGLE_TOLERANCE)[:, *np.triu_indices(3, 1)].all())


def expand(
    sites: np.ndarray, lattice: np.ndarray, group: Setting, *, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """All atoms of the cell with listed `sites` (s, 3), fractional, and `lattice` (3, 3), Å.

    Returns:
        (n,) the site of each atom; (n, 3) fractional coordinates in [0, 1); what was merged, by site.
    """
    if len(group.rotations) == 1:
        return np.arange(len(sites)), sites % 1, []
    orbits, notes = [], []
    for label, position in zip(labels, sites, strict=True):
        placed, moved = _on_special_position(position, lattice, group)
        images = _images(placed, group) % 1
        images[images > 1 - 1e-9] = 0
        same = np.array([_apart(images - image, lattice) < SAME_A for image in images])
        orbits.append(images[same.argmax(1) == np.arange(len(images))])  # the first of those that coincide
        if moved > SAME_A:
            where = f"onto its special position ({len(orbits[-1])} in the cell)"
            notes.append(f"{label} moved by {moved:.3f} Å {where}")
    return np.repeat(np.arange(len(sites)), [len(orbit) for orbit in orbits]), np.concatenate(orbits), notes


def _images(position: np.ndarray, group: Setting) -> np.ndarray:
    return group.rotations @ position + group.translations


def _apart(difference: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """Å between two positions that differ by this and whole cells."""
    return np.linalg.norm((difference - np.rint(difference)) @ lattice, axis=-1)


def _on_special_position(position: np.ndarray, lattice: np.ndarray, group: Setting) -> tuple[np.ndarray, float]:
    """The position, averaged over the operations that leave it within `MERGE_A`; and by how many Å that moves it."""
    placed = position
    for _ in range(3):
        images = _images(placed, group)
        near = _apart(images - placed, lattice) < MERGE_A
        if near.sum() < 2 or _apart(images[near] - placed, lattice).max() < 1e-9:
            break
        shifted = images[near] - placed
        placed = placed + (shifted - np.rint(shifted)).mean(0)
    return placed, float(_apart(placed - position, lattice))
