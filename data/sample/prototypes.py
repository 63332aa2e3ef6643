"""The crystals of the sample: structure types and the ions that decorate them.

A prototype is a space group, the axis ratios of a starting cell and one Wyckoff position per site; free coordinates are
rounded starting values, which the relaxation in `make_sample.py` moves. A decoration names one ion per role.
Decorations are given as groups, each the product of the ions listed for every role, in the order of the roles.
"""

import itertools
import re
from dataclasses import dataclass
from math import gcd

THIRD = 1 / 3


@dataclass(frozen=True)
class Ion:
    """An element with its formal charge."""

    symbol: str
    charge: int


@dataclass(frozen=True)
class Prototype:
    """A structure type.

    Attributes:
        space_group: international symbol, first origin choice.
        cell: b/a, c/a, alpha, beta, gamma (degrees) of the conventional cell.
        sites: (role, fractional coordinates) of each Wyckoff position.
        counts: atoms of each role in a formula unit, in the order in which the formula is written.
        groups: decorations; in each group one blank-separated list of ions per role, in the order of `counts`.
    """

    space_group: str
    cell: tuple[float, float, float, float, float]
    sites: tuple[tuple[str, tuple[float, float, float]], ...]
    counts: dict[str, int]
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Decoration:
    """A prototype with an ion for each role."""

    mp_id: str
    prototype: str
    ions: dict[str, Ion]

    @property
    def amounts(self) -> dict[Ion, int]:
        """Ions in a formula unit, in the order in which the formula is written."""
        return {self.ions[role]: n for role, n in PROTOTYPES[self.prototype].counts.items()}

    @property
    def formula(self) -> str:
        """Formula in writing order, e.g. ``SrTiO3``."""
        return formula({ion.symbol: n for ion, n in self.amounts.items()})


def formula(amounts: dict[str, int]) -> str:
    """A formula from element amounts, divided by their common factor, in the order given."""
    factor = gcd(*amounts.values())
    return "".join(f"{symbol}{n // factor if n > factor else ''}" for symbol, n in amounts.items())


def ion(text: str) -> Ion:
    """`Ti4+` -> Ion("Ti", 4); `Cl-` -> Ion("Cl", -1); `Ni0` -> Ion("Ni", 0)."""
    symbol, digits, sign = re.fullmatch(r"([A-Z][a-z]?)(\d*)([+-]?)", text).groups()
    return Ion(symbol, int(digits or 1) * (-1 if sign == "-" else 1))


def decorations() -> list[Decoration]:
    """All decorations, numbered in the order of the table below.

    Raises:
        ValueError: a decoration is not neutral, or an element stands in two roles.
    """
    found = []
    for name, prototype in PROTOTYPES.items():
        for group in prototype.groups:
            for texts in itertools.product(*(ions.split() for ions in group)):
                ions = dict(zip(prototype.counts, map(ion, texts), strict=True))
                charge = sum(prototype.counts[role] * ion.charge for role, ion in ions.items())
                if charge or len({ion.symbol for ion in ions.values()}) < len(ions):
                    raise ValueError(
                        f"{name} {' '.join(texts)}: charge {charge:+d}; expected neutral, distinct elements"
                    )
                found.append(Decoration(f"sample-{len(found) + 1:04d}", name, ions))
    return found


CUBIC = (1.0, 1.0, 90.0, 90.0, 90.0)


def tetragonal(ratio: float) -> tuple[float, float, float, float, float]:
    """Cell of a given c/a."""
    return (1.0, ratio, 90.0, 90.0, 90.0)


def hexagonal(ratio: float) -> tuple[float, float, float, float, float]:
    """Hexagonal axes of a given c/a."""
    return (1.0, ratio, 90.0, 90.0, 120.0)


ORIGIN, HALF, QUARTER = (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

PROTOTYPES = {
    "rocksalt": Prototype(
        "Fm-3m",
        CUBIC,
        (("A", ORIGIN), ("X", HALF)),
        {"A": 1, "X": 1},
        (
            ("Li+ Na+ K+ Rb+", "F- Cl- Br- I-"),
            ("Mg2+ Ca2+ Sr2+ Ba2+", "O2- S2-"),
            ("Mn2+ Co2+ Ni2+ Cd2+ Zn2+", "O2-"),
            ("Mn2+ Cd2+ Pb2+", "S2-"),
            ("Mg2+", "Se2-"),
            ("Sc3+ La3+ Ti3+", "N3-"),
        ),
    ),
    "CsCl": Prototype(
        "Pm-3m",
        CUBIC,
        (("A", ORIGIN), ("X", HALF)),
        {"A": 1, "X": 1},
        (("Cs+ Rb+ K+", "Cl- Br- I-"), ("Tl+", "Cl- Br-")),
    ),
    "zincblende": Prototype(
        "F-43m",
        CUBIC,
        (("A", ORIGIN), ("X", QUARTER)),
        {"A": 1, "X": 1},
        (
            ("Zn2+ Cd2+", "S2- Se2- Te2-"),
            ("Mg2+", "S2- Se2-"),
            ("Be2+", "O2- S2- Se2-"),
            ("Mn2+ Zn2+", "O2-"),
            ("Al3+ Ga3+ In3+", "P3- As3- N3-"),
            ("Ga3+", "Sb3-"),
            ("B3+", "N3- P3-"),
            ("Cu+", "Cl- Br- I-"),
            ("Li+", "Cl- Br-"),
        ),
    ),
    "wurtzite": Prototype(
        "P6_3mc",
        hexagonal(1.63),
        (("A", (THIRD, 2 * THIRD, 0.0)), ("X", (THIRD, 2 * THIRD, 0.376))),
        {"A": 1, "X": 1},
        (
            ("Zn2+ Cd2+", "S2- Se2-"),
            ("Zn2+ Be2+ Mg2+", "O2-"),
            ("Mn2+ Mg2+", "S2-"),
            ("Al3+ Ga3+ In3+", "N3-"),
            ("Ag+ Cu+", "I-"),
        ),
    ),
    "NiAs": Prototype(
        "P6_3/mmc",
        hexagonal(1.5),
        (("A", ORIGIN), ("X", (THIRD, 2 * THIRD, 0.25))),
        {"A": 1, "X": 1},
        (("Fe2+ Co2+ Ni2+ V2+", "S2-"), ("Fe2+ Ni2+", "Se2-"), ("Mn2+", "Te2-")),
    ),
    "litharge": Prototype(
        "P4/nmm",
        tetragonal(1.27),
        (("A", (0.0, 0.5, 0.24)), ("X", ORIGIN)),
        {"A": 1, "X": 1},
        (("Sn2+ Pb2+", "O2-"),),
    ),
    "fluorite": Prototype(
        "Fm-3m",
        CUBIC,
        (("A", ORIGIN), ("X", QUARTER)),
        {"A": 1, "X": 2},
        (("Ca2+ Sr2+ Ba2+ Cd2+ Pb2+ Mn2+", "F-"), ("Zr4+ Hf4+ Ce4+ Sn4+", "O2-"), ("Sr2+ Ba2+", "Cl-")),
    ),
    "antifluorite": Prototype(
        "Fm-3m",
        CUBIC,
        (("A", QUARTER), ("X", ORIGIN)),
        {"A": 2, "X": 1},
        (("Li+ Na+ K+", "O2- S2- Se2-"), ("Mg2+", "Si4- Ge4- Sn4-")),
    ),
    "rutile": Prototype(
        "P4_2/mnm",
        tetragonal(0.65),
        (("A", ORIGIN), ("X", (0.305, 0.305, 0.0))),
        {"A": 1, "X": 2},
        (
            ("Ti4+ Sn4+ Ge4+ Mn4+ V4+ Nb4+ Ru4+ Si4+", "O2-"),
            ("Mg2+ Mn2+ Fe2+ Ni2+ Zn2+ Cd2+", "F-"),
            ("Ca2+ Mg2+", "Cl-"),
        ),
    ),
    "anatase": Prototype(
        "I4_1/amd",
        tetragonal(2.5),
        (("A", ORIGIN), ("X", (0.0, 0.0, 0.208))),
        {"A": 1, "X": 2},
        (("Ti4+ Sn4+ Ge4+ V4+ Zr4+ Hf4+", "O2-"),),
    ),
    "cristobalite": Prototype(
        "Fd-3m",
        CUBIC,
        (("A", ORIGIN), ("X", (0.125, 0.125, 0.125))),
        {"A": 1, "X": 2},
        (("Si4+ Ge4+", "O2-"), ("Be2+", "F-")),
    ),
    "CdI2": Prototype(
        "P-3m1",
        hexagonal(1.6),
        (("A", ORIGIN), ("X", (THIRD, 2 * THIRD, 0.25))),
        {"A": 1, "X": 2},
        (
            ("Mg2+ Ca2+ Cd2+ Pb2+", "I-"),
            ("Mg2+ Cd2+", "Br-"),
            ("Ti4+ Zr4+ Hf4+ Sn4+", "S2-"),
            ("Ti4+ Zr4+", "Se2-"),
        ),
    ),
    "CdCl2": Prototype(
        "R-3m",
        hexagonal(4.6),
        (("A", ORIGIN), ("X", (0.0, 0.0, 0.255))),
        {"A": 1, "X": 2},
        (("Mg2+ Mn2+ Fe2+ Cd2+ Zn2+", "Cl-"), ("Mg2+ Cd2+", "Br-")),
    ),
    "molybdenite": Prototype(
        "P6_3/mmc",
        hexagonal(3.9),
        (("A", (THIRD, 2 * THIRD, 0.25)), ("X", (THIRD, 2 * THIRD, 0.621))),
        {"A": 1, "X": 2},
        (("Mo4+ W4+", "S2- Se2-"), ("Nb4+ Ta4+", "S2-"), ("Zr4+", "S2-")),
    ),
    "pyrite": Prototype(
        "Pa-3",
        CUBIC,
        (("A", ORIGIN), ("X", (0.385, 0.385, 0.385))),
        {"A": 1, "X": 2},
        (("Fe2+ Mn2+ Co2+ Ni2+", "S-"),),
    ),
    "cuprite": Prototype("Pn-3m", CUBIC, (("A", QUARTER), ("X", ORIGIN)), {"A": 2, "X": 1}, (("Cu+ Ag+", "O2-"),)),
    "ReO3": Prototype(
        "Pm-3m",
        CUBIC,
        (("B", ORIGIN), ("X", (0.5, 0.0, 0.0))),
        {"B": 1, "X": 3},
        (("W6+ Re6+", "O2-"), ("Al3+ Sc3+ Ga3+ In3+", "F-")),
    ),
    "corundum": Prototype(
        "R-3c",
        hexagonal(2.73),
        (("A", (0.0, 0.0, 0.352)), ("X", (0.306, 0.0, 0.25))),
        {"A": 2, "X": 3},
        (("Al3+ Cr3+ Fe3+ V3+ Ti3+ Ga3+ In3+", "O2-"),),
    ),
    "lanthana": Prototype(
        "P-3m1",
        hexagonal(1.56),
        (("A", (THIRD, 2 * THIRD, 0.245)), ("X", (THIRD, 2 * THIRD, 0.647)), ("X", ORIGIN)),
        {"A": 2, "X": 3},
        (("La3+ Y3+ In3+", "O2-"),),
    ),
    "tetradymite": Prototype(
        "R-3m",
        hexagonal(7.0),
        (("A", (0.0, 0.0, 0.4)), ("X", ORIGIN), ("X", (0.0, 0.0, 0.212))),
        {"A": 2, "X": 3},
        (("Bi3+ Sb3+", "Se2- Te2-"), ("In3+", "Se2-")),
    ),
    "anti-lanthana": Prototype(
        "P-3m1",
        hexagonal(1.58),
        (("X", (THIRD, 2 * THIRD, 0.23)), ("A", (THIRD, 2 * THIRD, 0.63)), ("A", ORIGIN)),
        {"A": 3, "X": 2},
        (("Mg2+", "P3- As3- Sb3- Bi3-"),),
    ),
    "perovskite": Prototype(
        "Pm-3m",
        CUBIC,
        (("A", ORIGIN), ("B", HALF), ("X", (0.5, 0.5, 0.0))),
        {"A": 1, "B": 1, "X": 3},
        (
            ("Ca2+ Sr2+ Ba2+", "Ti4+ Zr4+ Sn4+", "O2-"),
            ("Ba2+ Sr2+", "Mn4+", "O2-"),
            ("Sr2+ Ba2+", "Hf4+", "O2-"),
            ("Pb2+", "Ti4+ Zr4+", "O2-"),
            ("Mg2+ Cd2+", "Ti4+ Sn4+", "O2-"),
            ("Mn2+", "Ti4+", "O2-"),
            ("K+ Li+", "Nb5+ Ta5+", "O2-"),
            ("La3+", "Al3+ Cr3+ Fe3+ Ga3+", "O2-"),
            ("Y3+", "Al3+ Fe3+", "O2-"),
            ("K+", "Mg2+ Mn2+ Zn2+ Co2+", "F-"),
            ("Rb+", "Mg2+ Mn2+", "F-"),
            ("Cs+", "Pb2+", "Cl- Br- I-"),
            ("Cs+", "Sn2+", "Br- I-"),
            ("Cs+", "Mg2+", "Cl-"),
        ),
    ),
    "hexagonal-perovskite": Prototype(
        "P6_3/mmc",
        hexagonal(0.85),
        (("A", (THIRD, 2 * THIRD, 0.75)), ("B", ORIGIN), ("X", (0.15, 0.30, 0.25))),
        {"A": 1, "B": 1, "X": 3},
        (("Ba2+", "Ti4+ Mn4+ Ni4+ Co4+", "O2-"), ("Sr2+", "Mn4+", "O2-"), ("Cs+", "Mg2+ Ni2+ Mn2+", "Cl-")),
    ),
    "ilmenite": Prototype(
        "R-3",
        hexagonal(2.74),
        (("A", (0.0, 0.0, 0.355)), ("B", (0.0, 0.0, 0.145)), ("X", (0.31, 0.02, 0.25))),
        {"A": 1, "B": 1, "X": 3},
        (
            ("Mg2+ Mn2+ Fe2+ Co2+ Ni2+ Zn2+ Cd2+", "Ti4+", "O2-"),
            ("Mg2+ Mn2+", "Ge4+", "O2-"),
            ("Mg2+ Cd2+", "Sn4+", "O2-"),
        ),
    ),
    "lithium-niobate": Prototype(
        "R3c",
        hexagonal(2.69),
        (("A", (0.0, 0.0, 0.28)), ("B", ORIGIN), ("X", (0.05, 0.34, 0.064))),
        {"A": 1, "B": 1, "X": 3},
        (("Li+", "Nb5+ Ta5+", "O2-"), ("Zn2+", "Sn4+ Ge4+", "O2-")),
    ),
    "calcite": Prototype(
        "R-3c",
        hexagonal(3.4),
        (("A", ORIGIN), ("B", (0.0, 0.0, 0.25)), ("X", (0.26, 0.0, 0.25))),
        {"A": 1, "B": 1, "X": 3},
        (("Ca2+ Mg2+ Cd2+ Mn2+ Zn2+", "C4+", "O2-"), ("Sc3+ In3+ Lu3+", "B3+", "O2-")),
    ),
    "antiperovskite": Prototype(
        "Pm-3m",
        CUBIC,
        (("A", (0.5, 0.5, 0.0)), ("B", HALF), ("X", ORIGIN)),
        {"A": 3, "B": 1, "X": 1},
        (("Li+ Na+", "O2-", "Cl- Br-"), ("Ca2+ Mg2+", "N3-", "As3- Sb3-"), ("Sr2+", "N3-", "Sb3-")),
    ),
    "layered-NaFeO2": Prototype(
        "R-3m",
        hexagonal(5.2),
        (("A", (0.0, 0.0, 0.5)), ("B", ORIGIN), ("X", (0.0, 0.0, 0.26))),
        {"A": 1, "B": 1, "X": 2},
        (
            ("Li+", "Al3+ Sc3+ Cr3+ Co3+ Ni3+", "O2-"),
            ("Na+", "Ti3+ Cr3+ Mn3+ Fe3+ In3+", "O2-"),
            ("K+", "Cr3+ Sc3+", "O2-"),
            ("Na+ K+", "Cr3+ In3+", "S2-"),
            ("Ag+ Cu+", "Cr3+ Al3+", "O2-"),
        ),
    ),
    "delafossite": Prototype(
        "R-3m",
        hexagonal(5.9),
        (("A", ORIGIN), ("B", (0.0, 0.0, 0.5)), ("X", (0.0, 0.0, 0.11))),
        {"A": 1, "B": 1, "X": 2},
        (("Cu+", "Al3+ Cr3+ Fe3+ Ga3+", "O2-"), ("Ag+", "Al3+ Cr3+", "O2-")),
    ),
    "chalcopyrite": Prototype(
        "I-42d",
        tetragonal(1.98),
        (("A", ORIGIN), ("B", (0.0, 0.0, 0.5)), ("X", (0.24, 0.25, 0.125))),
        {"A": 1, "B": 1, "X": 2},
        (
            ("Cu+", "Al3+ Ga3+ In3+", "S2- Se2-"),
            ("Ag+", "Ga3+ In3+", "S2-"),
            ("Cu+", "Fe3+", "S2-"),
            ("Zn2+", "Si4+ Ge4+ Sn4+", "P3-"),
            ("Cd2+", "Ge4+", "As3-"),
            ("Li+", "Ga3+", "Te2-"),
        ),
    ),
    "half-Heusler": Prototype(
        "F-43m",
        CUBIC,
        (("A", HALF), ("B", QUARTER), ("X", ORIGIN)),
        {"A": 1, "B": 1, "X": 1},
        (
            ("Ti4+ Zr4+ Hf4+", "Ni0", "Sn4-"),
            ("Sc3+ Y3+", "Ni0 Pd0", "Sb3-"),
            ("Li+", "Zn2+ Mg2+", "P3- As3-"),
            ("Li+", "Al3+", "Si4- Ge4-"),
        ),
    ),
    "CaAl2Si2": Prototype(
        "P-3m1",
        hexagonal(1.65),
        (("A", ORIGIN), ("B", (THIRD, 2 * THIRD, 0.63)), ("X", (THIRD, 2 * THIRD, 0.26))),
        {"A": 1, "B": 2, "X": 2},
        (("Ca2+ Sr2+", "Zn2+", "Sb3- As3-"), ("Ca2+", "Cd2+", "Sb3-"), ("Ca2+", "Mg2+", "Bi3-")),
    ),
    "matlockite": Prototype(
        "P4/nmm",
        tetragonal(1.75),
        (("A", (0.0, 0.5, 0.2)), ("B", ORIGIN), ("X", (0.0, 0.5, 0.65))),
        {"A": 1, "B": 1, "X": 1},
        (
            ("Ba2+ Sr2+ Pb2+ Ca2+", "F-", "Cl-"),
            ("Ba2+ Sr2+", "F-", "Br-"),
            ("Bi3+ La3+ Y3+", "O2-", "Cl-"),
            ("Bi3+", "O2-", "Br-"),
        ),
    ),
    "oxychalcogenide": Prototype(
        "P4/nmm",
        tetragonal(2.13),
        (("A", (0.0, 0.5, 0.147)), ("B", (0.0, 0.0, 0.5)), ("Y", ORIGIN), ("X", (0.0, 0.5, 0.66))),
        {"A": 1, "B": 1, "Y": 1, "X": 1},
        (("La3+ Bi3+", "Cu+", "O2-", "S2- Se2-"), ("La3+", "Ag+", "O2-", "S2-"), ("Sr2+ Ba2+", "Cu+", "F-", "S2-")),
    ),
    "K2PtCl6": Prototype(
        "Fm-3m",
        CUBIC,
        (("A", QUARTER), ("B", ORIGIN), ("X", (0.24, 0.0, 0.0))),
        {"A": 2, "B": 1, "X": 6},
        (("K+ Cs+", "Sn4+ Zr4+", "Cl-"), ("K+ Cs+", "Si4+ Ti4+", "F-"), ("Cs+", "Sn4+ Hf4+", "I-")),
    ),
    "elpasolite": Prototype(
        "Fm-3m",
        CUBIC,
        (("A", QUARTER), ("B", ORIGIN), ("C", HALF), ("X", (0.25, 0.0, 0.0))),
        {"A": 2, "B": 1, "C": 1, "X": 6},
        (
            ("Cs+", "Na+", "Y3+ In3+", "Cl-"),
            ("Cs+", "Ag+", "In3+ Bi3+", "Cl-"),
            ("K+ Rb+", "Na+", "Al3+ Sc3+ Y3+", "F-"),
            ("Ba2+ Sr2+", "Mg2+ Ca2+", "W6+", "O2-"),
            ("Sr2+", "Mg2+ Ni2+", "Mo6+", "O2-"),
            ("Ba2+", "Sc3+ Y3+ Fe3+", "Nb5+", "O2-"),
            ("Sr2+", "Sc3+ Y3+", "Ta5+", "O2-"),
            ("La3+", "Mg2+ Ni2+", "Ti4+", "O2-"),
        ),
    ),
    "K2NiF4": Prototype(
        "I4/mmm",
        tetragonal(3.25),
        (("A", (0.0, 0.0, 0.355)), ("B", ORIGIN), ("X", (0.0, 0.5, 0.0)), ("X", (0.0, 0.0, 0.155))),
        {"A": 2, "B": 1, "X": 4},
        (
            ("Sr2+ Ca2+ Ba2+", "Ti4+ Sn4+", "O2-"),
            ("Sr2+", "Ru4+ Mn4+", "O2-"),
            ("La3+", "Ni2+ Cu2+", "O2-"),
            ("K+", "Mg2+ Mn2+ Zn2+", "F-"),
            ("Rb+", "Mg2+", "F-"),
        ),
    ),
    "Ruddlesden-Popper-2": Prototype(
        "I4/mmm",
        tetragonal(5.2),
        (
            ("A", (0.0, 0.0, 0.5)),
            ("A", (0.0, 0.0, 0.316)),
            ("B", (0.0, 0.0, 0.098)),
            ("X", ORIGIN),
            ("X", (0.0, 0.0, 0.194)),
            ("X", (0.0, 0.5, 0.095)),
        ),
        {"A": 3, "B": 2, "X": 7},
        (("Sr2+ Ca2+", "Ti4+ Sn4+", "O2-"), ("K+", "Mg2+ Mn2+", "F-")),
    ),
    "spinel": Prototype(
        "Fd-3m",
        CUBIC,
        (("A", ORIGIN), ("B", (0.625, 0.625, 0.625)), ("X", (0.388, 0.388, 0.388))),
        {"A": 1, "B": 2, "X": 4},
        (
            ("Mg2+ Zn2+ Co2+", "Al3+ Cr3+ Ga3+", "O2-"),
            ("Mn2+ Zn2+ Ni2+", "Fe3+", "O2-"),
            ("Ge4+", "Mg2+ Co2+ Ni2+", "O2-"),
            ("Mg2+ Cd2+", "In3+", "S2-"),
            ("Zn2+ Cd2+", "Cr3+", "S2-"),
        ),
    ),
    "scheelite": Prototype(
        "I4_1/a",
        tetragonal(2.17),
        (("A", (0.0, 0.0, 0.5)), ("B", ORIGIN), ("X", (0.15, -0.24, 0.086))),
        {"A": 1, "B": 1, "X": 4},
        (
            ("Ca2+ Sr2+ Pb2+", "W6+ Mo6+", "O2-"),
            ("Ba2+", "W6+", "O2-"),
            ("Cd2+", "Mo6+", "O2-"),
            ("Y3+ Lu3+", "V5+", "O2-"),
            ("Zr4+", "Si4+ Ge4+", "O2-"),
        ),
    ),
    "zircon": Prototype(
        "I4_1/amd",
        tetragonal(0.9),
        (("A", ORIGIN), ("B", (0.0, 0.0, 0.5)), ("X", (0.0, 0.184, 0.32))),
        {"A": 1, "B": 1, "X": 4},
        (("Zr4+ Hf4+", "Si4+", "O2-"), ("Zr4+", "Ge4+", "O2-"), ("Y3+ Sc3+ Lu3+", "V5+ P5+", "O2-")),
    ),
}
