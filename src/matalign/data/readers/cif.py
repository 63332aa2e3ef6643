"""CIF -> a cell full of atoms, by gemmi's parser and tables of symmetry (Wojdyr, JOSS 7, 4200, 2022).

Nothing is dropped and nothing guessed in silence: what a file leaves open is decided by what else it states, told in
the notes, or refused with the item and its value.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

import gemmi
import numpy as np

from matalign.data.readers import symmetry, unit_cell
from matalign.data.readers.symmetry import Setting
from matalign.data.readers.unit_cell import Cell, Formula, Sites
from matalign.elements import HEAVIEST, NUMBER

FULL = 0.002  # an occupancy is 1 within this
THIRD = 1e-4  # relative: a coordinate this near to 1/3 or 2/3 is that, written with four digits or more
MAX_BLOCKS = 8  # that are compared, whether they are one crystal
NAMES = (
    "symmetry_space_group_name_h-m", "space_group_name_h-m_alt", "space_group_name_h-m_full", "space_group_name_h-m",
    "space_group_name_h-m_ref",
)  # fmt: skip
HALL = ("symmetry_space_group_name_hall", "space_group_name_hall")
NUMBERS = ("symmetry_int_tables_number", "space_group_it_number")
OPERATIONS = (
    "symmetry_equiv_pos_as_xyz", "space_group_symop_operation_xyz", "symmetry_equiv_as_xyz", "symmetry_equiv_pos_xyz",
    "space_group_symop_magn_operation_xyz",
)  # fmt: skip
CENTRINGS = "space_group_symop_magn_centering_xyz"
MODULATED = ("cell_modulation_dimension", "space_group_ssg_name", "space_group_symop_ssg_operation_algebraic",
             "space_group_symop_magn_ssg_operation_algebraic")  # fmt: skip
NOT_FULL = {  # items of a site that must not be stated, and what it is otherwise
    "disorder_group": "disordered: {}; expected each site full",
    "disorder_assembly": "disordered: {}; expected each site full",
    "label_alt_id": "disordered: {}; expected each site full",
    "attached_hydrogens": "incomplete: {} without places",
}


def read(text: str, *, block: str | None = None) -> Cell:
    """The one crystal of a CIF's text; of one that holds different crystals, that in the data block of this name.

    Raises:
        ValueError: "unreadable CIF", "several structures", "no block", "symmetry", "unknown element", "disordered",
            "incomplete", "formula mismatch" or what `unit_cell.checked` says, then ": " and the cause.
    """
    listing = {"atom_site_fract_x", "atom_site_cartn_x"}
    blocks = [found for found in map(Block, _blocks(text)) if found.raw.keys() & listing]
    names = [found.name for found in blocks]
    if block is not None:
        chosen = [found for found in blocks if found.name.lower() == block.lower()]
        if not chosen:
            raise ValueError(f"no block {block!r} with atoms; there are {', '.join(names[:8]) or 'none'}")
        if len(chosen) > 1:
            raise ValueError(f"several structures: {len(chosen)} blocks are named {block}")
        return chosen[0].cell()
    if not blocks:
        raise ValueError("unreadable CIF: no data block lists atoms (_atom_site_fract_x)")
    return blocks[0].cell() if len(blocks) == 1 else _one_crystal(blocks)


def _blocks(text: str) -> list[gemmi.cif.Block]:
    """Data blocks; one that is no CIF is left out if it lists no atoms. Letters beyond ASCII may stand anywhere."""
    if not text.isascii():
        text = re.sub(r"[^\x00-\x7f]", "_", text.removeprefix("\ufeff").replace("\N{MINUS SIGN}", "-"))
    try:
        return list(gemmi.cif.read_string(text, 0))
    except (RuntimeError, ValueError, MemoryError) as error:
        cause = (str(error).strip().splitlines() or ["no CIF"])[0].removeprefix("string:")
    before, *parts = re.split(r"(?im)^(?=data_)", text)
    blocks: list[gemmi.cif.Block] = []
    for part in parts:
        try:
            blocks += gemmi.cif.read_string(part, 0)
        except (RuntimeError, ValueError, MemoryError):
            if len(parts) == 1 or re.search(r"(?i)_atom_site[._](fract|cartn)_x", part):
                raise ValueError(f"unreadable CIF: {cause}") from None
    if not blocks or before.strip():
        raise ValueError(f"unreadable CIF: {cause}")
    return blocks


def _one_crystal(blocks: Sequence["Block"]) -> Cell:
    """The crystal that all blocks are settings of."""
    names = [found.name for found in blocks]
    refusal = f"several structures: {len(names)} ({', '.join(names[:3])} …), expected one a file; choose one by `block`"
    if len(blocks) > MAX_BLOCKS:
        raise ValueError(refusal)
    try:
        cells = [found.cell() for found in blocks]
    except ValueError as error:
        raise ValueError(f"{refusal} ({error})") from None
    if not all(unit_cell.same_crystal(cells[0], cell) for cell in cells[1:]):
        raise ValueError(refusal)
    note = f"{len(names)} blocks ({', '.join(names)}) are one crystal: {names[0]} is read"
    return replace(cells[0], notes=(*cells[0].notes, note))


class Block:
    """A data block: values by data name, which is in lower case, without its underscore, dots as underscores."""

    def __init__(self, block: gemmi.cif.Block) -> None:
        self.name = block.name.strip()
        self.raw: dict[str, list[str]] = {}
        self.twice: set[str] = set()
        for item in block:
            loop = item.loop
            columns = {tag: loop.values[k :: loop.width()] for k, tag in enumerate(loop.tags)} if loop else {}
            for tag, values in (columns | ({item.pair[0]: [item.pair[1]]} if item.pair else {})).items():
                key = tag[1:].lower().replace(".", "_")
                if self.raw.setdefault(key, values) != values:
                    self.twice.add(key)

    def column(self, name: str) -> list[str]:
        """Values as text, "" where there is none (`?` or `.`); [] without such an item."""
        if name in self.twice:
            raise ValueError(f"unreadable CIF: _{name} stands there twice, with different values")
        found = (gemmi.cif.as_string(value).strip() for value in self.raw.get(name, ()))
        return ["" if value in ("?", ".") else value for value in found]

    def value(self, *names: str) -> str:
        """The first value that is stated under one of these names; "" if none is."""
        return next((value for name in names if name in self.raw for value in self.column(name) if value), "")

    def cell(self) -> Cell:
        """The crystal; see `read`."""
        if modulated := [name for name in MODULATED if self.value(name) not in ("", "0")]:
            raise ValueError(f"symmetry: a modulated structure (_{modulated[0]} {self.value(modulated[0])})")
        notes: list[str] = []
        lattice = self._lattice(notes)
        sites = self._sites(lattice, notes)
        settings, stated = self._settings(lattice, notes)
        if self._formula and any(self.value(name) for name in OPERATIONS):  # the multiplicity can tell nothing more
            sites = replace(sites, multiplicity=np.zeros_like(sites.multiplicity))
        filled = unit_cell.fill(sites, lattice, settings, stated=stated, known=self._formula)
        return replace(filled, notes=(*notes, *filled.notes))

    @cached_property
    def _formula(self) -> Formula | None:
        units = self.value("cell_formula_units_z")
        stated = " ".join(self.value("chemical_formula_sum").split())
        return Formula.read(stated, float(units) if re.fullmatch(r"\d+(\.0*)?", units) else 0.0)

    def _lattice(self, notes: list[str]) -> np.ndarray:
        lengths = [_number(self.value(f"cell_length_{axis}"), f"cell_length_{axis}") for axis in "abc"]
        names = [f"cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")]
        left = [name for name in names if name not in self.raw or self.raw[name] == ["."]]
        angles = [90.0 if name in left else _number(self.value(name), name) for name in names]
        if left:
            notes.append(f"{', '.join('_' + name for name in left)} not stated: 90°, as the dictionary has it")
        return unit_cell.lattice_vectors(lengths, angles)

    def _sites(self, lattice: np.ndarray, notes: list[str]) -> Sites:
        labels = self.column("atom_site_label") or self.column("atom_site_label_atom_id")
        kinds = self.column("atom_site_type_symbol")
        rows = max(len(labels), len(kinds))
        if not rows:
            raise ValueError("incomplete: neither _atom_site_label nor _atom_site_type_symbol names the atoms")
        labels = [label or f"atom {k + 1}" for k, label in enumerate(labels)] or [f"{kind}" for kind in kinds]
        self._check_order(labels, notes)
        elements = [self._element(kind, label) for kind, label in zip(kinds or [""] * rows, labels, strict=True)]
        doubtful = tuple(label for label, (_, sure) in zip(labels, elements, strict=True) if not sure)
        if any(re.sub("[^A-Za-z]", "", kind).upper() == "D" for kind in set(kinds)):
            notes.append("deuterium (D) is taken as hydrogen")
        stated = self.column("atom_site_symmetry_multiplicity") or self.column("atom_site_site_symmetry_multiplicity")
        multiplicity = [int(value) if value.isdigit() else 0 for value in stated or [""] * rows]
        numbers = np.array([number for number, _ in elements])
        return Sites(tuple(labels), numbers, self._positions(labels, lattice), np.array(multiplicity), doubtful)

    def _check_order(self, labels: Sequence[str], notes: list[str]) -> None:
        """Refuse sites that are not one full atom."""
        for name, refusal in NOT_FULL.items():
            for label, value in zip(labels, self.column(f"atom_site_{name}"), strict=False):
                if value not in ("", "0"):
                    raise ValueError(refusal.format(f"site {label} has _atom_site_{name} {value}"))
        for label, value in zip(labels, self.column("atom_site_occupancy"), strict=False):
            occupancy = _number(value, "atom_site_occupancy", label) if value else 1.0
            if abs(occupancy - 1) > FULL:
                raise ValueError(f"disordered: site {label} has _atom_site_occupancy {value}; expected each site full")
            if occupancy != 1:
                notes.append(f"the occupancy {value} of {label} is taken as 1")
        if "?" in self.raw.get("atom_site_occupancy", ()):
            notes.append("an _atom_site_occupancy of ? is taken as 1")
        for label, value in zip(labels, self.column("atom_site_calc_flag"), strict=False):
            if value.lower() in ("dum", "dummy"):
                raise ValueError(f"unknown element: site {label} is a dummy (_atom_site_calc_flag {value})")

    def _element(self, kind: str, label: str) -> tuple[int, bool]:
        """Atomic number, and whether it is certain."""
        within = frozenset(self._formula.amounts if self._formula else ())
        item, text = ("_atom_site_type_symbol", kind) if kind else ("_atom_site_label", label)
        found = element_of_type(kind, within) if kind else element_of_label(label, within)
        if found is None:
            raise ValueError(f"unknown element: site {label} has {item} {text}; expected a chemical element")
        return found

    def _positions(self, labels: Sequence[str], lattice: np.ndarray) -> np.ndarray:
        """(s, 3) fractional coordinates."""
        form = "fract" if "atom_site_fract_x" in self.raw else "cartn"
        names = [f"atom_site_{form}_{axis}" for axis in "xyz"]
        if missing := [name for name in names if len(self.raw.get(name, ())) != len(labels)]:
            raise ValueError(f"incomplete: _{missing[0]} is missing")
        columns = [
            [_number(value, name, label) for label, value in zip(labels, self.column(name), strict=True)]
            for name in names
        ]
        positions = np.array(columns).T
        if form == "fract":
            for third in (1 / 3, 2 / 3):
                positions[np.abs(positions / third - 1) <= THIRD] = third
            return positions
        if np.abs(lattice - np.diag(np.diag(lattice))).max() > 1e-6 or any(
            key.startswith(("atom_sites_cartn_tran_matrix", "atom_sites_fract_tran_matrix")) for key in self.raw
        ):
            raise ValueError(
                "incomplete: _atom_site_Cartn_x alone, on axes that a cell without right angles leaves open"
            )
        return positions @ np.linalg.inv(lattice)

    def _settings(self, lattice: np.ndarray, notes: list[str]) -> tuple[list[Setting], str]:
        """What the symmetry may be, and how it is stated."""
        named, stated = self._named(notes)
        listed = [[value for value in self.column(name) if value] for name in OPERATIONS]
        centrings = tuple(value for value in self.column(CENTRINGS) if value)
        groups = [symmetry.from_triplets(tuple(each), centrings) for each in listed if each]
        if len({group.key for group in groups}) > 1:
            raise ValueError("symmetry: two lists of operations differ")
        if not groups:
            if named is None:
                self._check_unread()
                notes.append("no symmetry is stated: P 1, as the dictionary has it")
                return list(symmetry.by_name("P 1")), "P 1"
            if not named:
                raise ValueError(f"symmetry: {stated} is unknown, and no operations are listed")
            return named, stated
        if named == [] and stated:
            notes.append(f"symmetry: {stated} is unknown; the operations are taken")
        elif named:
            self._check_agreement(groups[0], named, stated, lattice)
        return groups, f"the list of {len(groups[0].rotations)} operations"

    def _check_unread(self) -> None:
        """Refuse a symmetry that is stated by other items than those that are read."""
        names = (name for name in self.raw if re.search("(space_group|symmetry|symop).*_(name|number|.*xyz)", name))
        for name in names:
            if value := next((value for value in self.column(name) if value not in ("", "1", "P 1", "P1")), ""):
                raise ValueError(f"symmetry: _{name} {value!r} is not read; expected a symbol, a number or operations")

    def _check_agreement(self, group: Setting, named: list[Setting], stated: str, lattice: np.ndarray) -> None:
        """Refuse a named group that is not that of the operations, or has them on other axes of the same cell."""
        number = symmetry.group_number(group, lattice)
        numbers = {setting.number for setting in named} - {0}
        if group.key in {setting.key for setting in named}:
            return
        if numbers and number not in numbers:
            raise ValueError(f"symmetry: {stated} is not the group of the operations, {group.name} (number {number})")
        by_number_alone = not self.value(*NAMES, *HALL)
        if not by_number_alone and any(symmetry.fits(setting, lattice) for setting in named):
            raise ValueError(f"symmetry: {stated} stands for other operations than those listed, {group.name}")

    def _named(self, notes: list[str]) -> tuple[list[Setting] | None, str]:
        """Settings by name; None if none is stated, [] if what is stated is unknown."""
        kinds = [(NAMES, symmetry.by_name), (HALL, symmetry.by_hall), (NUMBERS, symmetry.by_number)]
        stated = [(name, value, find) for names, find in kinds for name in names if (value := self.value(name))]
        if not stated:
            return None, ""
        readings = [(f"_{name} {value!r}", tuple(find(value))) for name, value, find in stated]
        known = [(text, settings) for text, settings in readings if settings]
        unknown = [text for text, settings in readings if not settings]
        if not known:
            return [], unknown[0]
        notes += [f"symmetry: {text} is unknown; {known[0][0]} is taken" for text in unknown]
        code = self.value("space_group_it_coordinate_system_code").upper()  # 1, 2, H, R …
        left = [each for each in known[0][1] if each.name.upper().endswith(f":{code}")] or list(known[0][1])
        for text, settings in known[1:]:
            keys = {setting.key for setting in settings}
            left = [setting for setting in left if setting.key in keys]
            if not left:
                raise ValueError(f"symmetry: {known[0][0]} and {text} contradict one another")
        return left, known[0][0]


def _number(text: str, name: str, label: str = "") -> float:
    found = gemmi.cif.as_number(text)
    if not math.isfinite(found):
        item = f"_{name} of {label}" if label else f"_{name}"
        raise ValueError(f"unreadable: {item} is {text or '?'!r}; expected a number")
    return found


@lru_cache(maxsize=4096)
def element_of_type(text: str, within: frozenset[int] = frozenset()) -> tuple[int, bool] | None:
    """Atomic number of a type (`Na1+`, `O2-`, `Cval`), and whether it is certain: CO, if `within` a formula's."""
    match = re.fullmatch(r"([A-Za-z]+?)(?:val|iso|ani)?(\d*\.?\d*[+-]|[+-]\d*\.?\d*|0)?", text)
    symbol = match[1] if match else ""
    if symbol in ("D", "d"):
        return 1, True
    number = NUMBER.get(symbol.capitalize(), 0)
    if not 1 <= number <= HEAVIEST:
        return None
    group = len(symbol) == 2 and not symbol[1].islower() and {*symbol.upper()} <= NUMBER.keys()
    return (number, not group) if not group or number in within or not within else None


@lru_cache(maxsize=4096)
def element_of_label(text: str, within: frozenset[int] = frozenset()) -> tuple[int, bool] | None:
    """As `element_of_type`, of a label (`Mg1`, `O1A`); certain if the letters are one symbol, no `Si/Al`, no `H2O`."""
    letters = re.match(r"[A-Za-z]*", text)[0]
    if NUMBER.get(letters, HEAVIEST + 1) <= HEAVIEST:
        several = [word for word in re.findall(r"(?<=[/,&+;|(])[A-Z][a-z]?", text) if word in NUMBER]
        return NUMBER[letters], not several and not re.match("H[23]O|D[23]O", text)
    options = [NUMBER[form] for form in (letters[:2].capitalize(), letters[:1].upper()) if form in NUMBER]
    options += [1] if letters == "D" else []
    likely = [number for number in dict.fromkeys(options) if number in within]
    return (likely[0], False) if len(likely) == 1 else None
