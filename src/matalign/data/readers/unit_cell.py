"""A cell full of atoms from listed sites and what is known of their symmetry, checked by formula and distances."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from matalign.data.formulas import VOCABULARY, spelled
from matalign.data.readers import symmetry
from matalign.data.readers.symmetry import Setting
from matalign.elements import HEAVIEST, NUMBER, SYMBOLS

MAX_ATOMS = 2000  # in a cell; those of the curated sets have 200 at most
MIN_DISTANCE_A = 0.5  # no two atoms of a crystal are nearer: H2 has 0.74 Å
MAX_LENGTH_A = 1000.0  # of a cell
DUPLICATE_A = 0.01  # two sites of one element nearer than this are one site, listed twice
SAME_SHIFT_A = 0.005  # two crystals are one if their distances, up to `COMPARED_A`, differ by no more on average
COMPARED_A = 6.0
FEW = 100  # atoms, up to which all pairs are faster than a tree


@dataclass(frozen=True)
class Cell:
    """A crystal as arrays."""

    numbers: np.ndarray  # (n,) int16 atomic numbers
    frac_coords: np.ndarray  # (n, 3) float64
    lattice: np.ndarray  # (3, 3) float64, rows are the lattice vectors, Å
    notes: tuple[str, ...] = ()  # what was assumed or merged in reading

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, frac_coords and lattice, as `Structures.pack` takes them."""
        return self.numbers, self.frac_coords, self.lattice


@dataclass(frozen=True)
class Sites:
    """Sites as a file lists them."""

    labels: tuple[str, ...]  # (s,) of each
    numbers: np.ndarray  # (s,) atomic numbers
    frac_coords: np.ndarray  # (s, 3)
    multiplicity: np.ndarray  # (s,) atoms in the cell that the file states; 0: it does not
    doubtful: tuple[str, ...] = ()  # labels whose element is a guess that a formula must confirm


@dataclass(frozen=True)
class Formula:
    """A stated formula; `units` of it are in the cell (0: not stated)."""

    text: str
    amounts: dict[int, float]
    decimals: dict[int, int]
    units: float = 0.0

    @classmethod
    def read(cls, text: str, units: float = 0.0) -> "Formula | None":
        """None where the text is no formula."""
        words = text.split()
        pattern = r"([A-Z][a-z]?)(\d*(?:\.\d+)?)"
        if len(words) > 1 or text.upper() == text:
            pairs = [re.fullmatch(r"([A-Za-z]{1,2})(\d*(?:\.\d+)?)", word) for word in words]
        else:
            pairs = list(re.finditer(pattern, text)) if re.fullmatch(f"(?:{pattern})+", text) else []
        if not pairs or not all(pairs):
            return None
        amounts, decimals = Counter(), {}
        for symbol, amount in (pair.groups() for pair in pairs):
            number = NUMBER.get({"D": "H"}.get(symbol, symbol).capitalize())
            if number is None:
                return None
            amounts[number] += float(amount or 1)
            decimals[number] = len(amount.partition(".")[2])
        return cls(text, dict(amounts), decimals, units) if sum(amounts.values()) > 0 else None

    @property
    def _of_cell(self) -> bool:
        """Whether it may be that of the whole cell, as pymatgen writes `Si2` and `Cl4` beside Z = 2."""
        whole = {z: round(amount) for z, amount in self.amounts.items()}
        units = math.gcd(*whole.values())
        if units % 2 == 0 and spelled(Counter(whole).elements()) in VOCABULARY["molecules"].values():
            units //= 2
        return whole == self.amounts and units == self.units

    def mismatch(self, numbers: np.ndarray) -> str:
        """How the atoms of a cell differ from it, "" if they do not; amounts with decimals may be rounded."""
        counts = Counter(numbers.tolist())
        total = sum(self.amounts.values())
        scale = len(numbers) / total
        slack = {z: 0.51 * 10.0**-places if places else 1e-6 for z, places in self.decimals.items()}
        spread = sum(value for value in slack.values() if value > 1e-6)
        same = set(counts) == {z for z, amount in self.amounts.items() if amount} and all(
            abs(counts[z] / scale - amount) <= slack[z] + spread * amount / total for z, amount in self.amounts.items()
        )
        if not same:
            return f"formula mismatch: _chemical_formula_sum is {self.text}, the sites are {formula(numbers)}"
        units = [self.units, 1.0] if scale != self.units and self._of_cell else [self.units]
        if self.units and min(abs(scale / each - 1) for each in units) > 1e-6 + spread / total:
            cell = f"{self.units:g} x {self.text}"
            return f"formula mismatch: the cell holds {cell}, the sites are {len(numbers)} atoms, {formula(numbers)}"
        return ""


def formula(numbers: np.ndarray) -> str:
    """The atoms of a cell, in reduced amounts."""
    counts = Counter(numbers.tolist())
    common = math.gcd(*counts.values())
    return "".join(f"{SYMBOLS[z]}{n // common if n > common else ''}" for z, n in sorted(counts.items()))


def lattice_vectors(lengths: Sequence[float], angles: Sequence[float]) -> np.ndarray:
    """(3, 3) from a, b, c in Å and alpha, beta, gamma in degrees; c along z and a in the plane of x and z.

    These are the axes of pymatgen, by which the curated sets are made.

    Raises:
        ValueError: no such cell.
    """
    a, b, c = lengths
    alpha, beta, gamma = np.radians(angles)
    turn = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta)) if all(angles) else 2.0
    if not (min(angles) > 0 and max(angles) < 180 and abs(turn) < 1 and min(lengths) > 0):
        raise ValueError(f"no lattice: a, b, c {a:g}, {b:g}, {c:g} Å and angles {', '.join(f'{x:g}' for x in angles)}°")
    around = np.arccos(turn)
    return np.array(
        [
            [a * np.sin(beta), 0.0, a * np.cos(beta)],
            [-b * np.sin(alpha) * np.cos(around), b * np.sin(alpha) * np.sin(around), b * np.cos(alpha)],
            [0.0, 0.0, c],
        ]
    )


def checked(
    numbers: np.ndarray,
    frac_coords: np.ndarray,
    lattice: np.ndarray,
    *,
    notes: Sequence[str] = (),
    near: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Cell:
    """The arrays, if they make a crystal that the models take.

    Args:
        numbers: (n,) atomic numbers.
        frac_coords: (n, 3).
        lattice: (3, 3), Å.
        near: the `pairs` within `MIN_DISTANCE_A`, where they are known.

    Raises:
        ValueError: no atoms, more than `MAX_ATOMS`, an unknown element, no volume, atoms on top of one another.
    """
    if not len(numbers):
        raise ValueError("no atoms: expected at least one")
    if len(numbers) > MAX_ATOMS:
        raise ValueError(f"too many atoms: {len(numbers)} in the cell; at most {MAX_ATOMS} are taken")
    unknown = [int(z) for z in numbers if not 1 <= z <= HEAVIEST]
    if unknown:
        raise ValueError(f"unknown element: atomic number {unknown[0]}; known are 1 to {HEAVIEST}")
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        raise ValueError("unreadable: cell or coordinates are not finite")
    if near is None:
        check_volume(lattice)
    first, second, distance = near or pairs(frac_coords, lattice, MIN_DISTANCE_A)
    if len(distance):
        k = np.lexsort([second, first])[0]
        where = f"{first[k]} and {second[k]} are {distance[k]:.2f} Å apart"
        raise ValueError(f"overlapping atoms: {where}; expected at least {MIN_DISTANCE_A} Å")
    arrays = np.asarray(numbers, np.int16), np.asarray(frac_coords, np.float64), np.asarray(lattice, np.float64)
    return Cell(*arrays, tuple(notes))


def chosen(items: Sequence[Any], frame: int | None, what: str = "") -> Any:
    """One of several structures; a ValueError where none is chosen, or none of that number is there."""
    if frame is None and len(items) > 1:
        raise ValueError(f"several structures: {len(items)}{what}; choose one by `frame`, from 0")
    if not -len(items) <= (frame or 0) < len(items):
        raise ValueError(f"no frame {frame}: there are {len(items)}")
    return items[frame or 0]


def check_volume(lattice: np.ndarray) -> None:
    """Raises a ValueError if this is no cell of a crystal."""
    if not np.isfinite(lattice).all() or np.abs(lattice).max() > MAX_LENGTH_A:
        raise ValueError(f"no lattice: a cell as long as {np.abs(lattice).max():.4g} Å is no crystal's")
    volume = abs(np.linalg.det(lattice))
    if not volume >= 1e-3:
        raise ValueError("no lattice: the cell has no volume; expected a crystal, periodic in three directions")
    longest = np.linalg.norm(lattice, axis=1).max()
    height = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0).max()
    if longest > MAX_LENGTH_A or height < MIN_DISTANCE_A:
        raise ValueError(f"no lattice: a cell as long as {longest:.4g} Å and as low as {height:.4g} Å is no crystal's")


def pairs(frac_coords: np.ndarray, lattice: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First (p,), second (p,) and distance (p,) in Å of all periodic pairs of atoms within `cutoff`, each both ways."""
    inside = frac_coords % 1
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = cutoff / heights
    if reach.max() < 0.5 and len(inside) <= FEW:  # then one image of each atom can be near
        apart = inside[:, None] - inside
        distance = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=-1)
        first, second = np.nonzero((distance <= cutoff) & ~np.eye(len(inside), dtype=bool))
        return first, second, distance[first, second]
    cells = [np.arange(-math.ceil(each), math.ceil(each) + 1) for each in reach]
    shifts = np.stack(np.meshgrid(*cells, indexing="ij"), axis=-1).reshape(-1, 3)
    images = (inside[:, None] + shifts).reshape(-1, 3)
    near = ((images >= -reach) & (images <= 1 + reach)).all(1)
    atoms = np.repeat(np.arange(len(inside)), len(shifts))[near]
    still = np.tile((shifts == 0).all(1), len(inside))[near]
    from scipy.spatial import cKDTree  # here: its import takes as long as a prediction

    around = cKDTree(images[near] @ lattice)
    found = cKDTree(inside @ lattice).sparse_distance_matrix(around, cutoff, output_type="ndarray")
    first, image, distance = found["i"], found["j"], found["v"]
    itself = still[image] & (atoms[image] == first)
    return first[~itself], atoms[image[~itself]], distance[~itself]


def fill(sites: Sites, lattice: np.ndarray, settings: Sequence[Setting], *, stated: str, known: Formula | None) -> Cell:
    """The cell that sites make under a symmetry.

    Args:
        lattice: (3, 3), Å.
        settings: what the symmetry may be. Those that do not fit cell, formula or distances are left out; where more
            than one remains, they must make the same crystal.

    Raises:
        ValueError: nothing fits, the choice stays open, or an element is a guess that no formula confirms.
    """
    if len(sites.numbers) > MAX_ATOMS:
        raise ValueError(f"too many atoms: {len(sites.numbers)} sites; at most {MAX_ATOMS} are taken")
    check_volume(lattice)
    unique = {setting.key: setting for setting in reversed(settings)}
    fitting = [setting for setting in reversed(unique.values()) if symmetry.fits(setting, lattice)]
    fitting = [setting for setting in fitting if not setting.rare] or fitting
    if not fitting:
        lengths = ", ".join(f"{x:.4g}" for x in np.linalg.norm(lattice, axis=1))
        raise ValueError(f"symmetry: {stated} does not fit the cell with a, b, c {lengths} Å and its angles")
    cells, causes = [], []
    for setting in fitting:
        try:
            cells.append((setting, _filled(sites, lattice, setting, known)))
        except ValueError as error:
            causes.append(error)
    if not cells:
        raise causes[0]
    setting, cell = cells[0]
    if not all(same_crystal(cell, other) for _, other in cells[1:]):
        names = ", ".join(each.name for each, _ in cells[:4])
        raise ValueError(
            f"symmetry: {stated} is ambiguous: {names} make different crystals of these sites; expected the operations"
        )
    if sites.doubtful and known is None:
        raise ValueError(f"unknown element: site {sites.doubtful[0]!r} names none for certain, and no formula tells")
    if len(fitting) > 1 or setting.rare:
        cell = replace(cell, notes=(f"symmetry: {stated} is read as {setting.name}", *cell.notes))
    return cell


def _filled(sites: Sites, lattice: np.ndarray, setting: Setting, known: Formula | None) -> Cell:
    origin, frac_coords, notes = symmetry.expand(sites.frac_coords, lattice, setting, labels=sites.labels)
    near = pairs(frac_coords, lattice, MIN_DISTANCE_A)
    first, second, distance = near
    kind = sites.numbers[origin]  # listed sites that are images of an earlier site of the same element, with that site
    same = (distance < DUPLICATE_A) & (origin[first] > origin[second]) & (kind[first] == kind[second])
    if twins := sorted(dict(zip(origin[first[same]].tolist(), origin[second[same]].tolist(), strict=True)).items()):
        notes += [f"{sites.labels[k]} is listed twice: it is an image of {sites.labels[other]}" for k, other in twins]
        kept = ~np.isin(origin, [k for k, _ in twins])
        origin, frac_coords = origin[kept], frac_coords[kept]
        near = pairs(frac_coords, lattice, MIN_DISTANCE_A)
    numbers = sites.numbers[origin]
    if known and (mismatch := known.mismatch(numbers)):
        raise ValueError(mismatch)
    cell = checked(numbers, frac_coords, lattice, notes=notes, near=near)
    counts = np.bincount(origin, minlength=len(sites.labels))
    wrong = np.flatnonzero((sites.multiplicity > 0) & (counts > 0) & (counts != sites.multiplicity))
    if len(wrong) and not (known and known.units):
        site = int(wrong[0])
        raise ValueError(
            f"symmetry: site {sites.labels[site]} stands {counts[site]} times in the cell of {setting.name}, "
            f"_atom_site_symmetry_multiplicity is {sites.multiplicity[site]}"
        )
    return cell


def same_crystal(one: Cell, other: Cell) -> bool:
    """Whether two cells hold one crystal, or its mirror image, by volume per atom, composition and pairs' distances."""
    atoms = len(one.numbers), len(other.numbers)
    volumes = [abs(np.linalg.det(cell.lattice)) / n for cell, n in zip((one, other), atoms, strict=True)]
    if formula(one.numbers) != formula(other.numbers) or abs(volumes[0] / volumes[1] - 1) > 2e-3:
        return False
    mine, its = _shells(one), _shells(other)
    return mine.keys() == its.keys() and all(_shift(mine[pair], its[pair], atoms) <= SAME_SHIFT_A for pair in mine)


def _shells(cell: Cell) -> dict[tuple[int, int], np.ndarray]:
    """Sorted distances of each pair of elements."""
    first, second, distance = pairs(cell.frac_coords, cell.lattice, COMPARED_A)
    kinds = np.sort(np.stack([cell.numbers[first], cell.numbers[second]]), axis=0).T
    return {tuple(pair): np.sort(distance[(pair == kinds).all(1)]) for pair in np.unique(kinds, axis=0).tolist()}


def _shift(one: np.ndarray, other: np.ndarray, atoms: tuple[int, int]) -> float:
    """Å by which distances must move on average to make one list of the other, of cells with so many atoms."""
    at = np.sort(np.concatenate([one, other, [COMPARED_A]]))
    counts = [np.searchsorted(found, at[:-1], side="right") / n for found, n in zip((one, other), atoms, strict=True)]
    return float((np.abs(counts[0] - counts[1]) * np.diff(at)).sum() / max(counts[0].max(), counts[1].max()))
