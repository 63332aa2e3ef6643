"""The periodic table: symbols, names, and the properties that composition features and the crystal tower are made of.

`elements.csv` holds values as in pymatgen 2026 for hydrogen to lawrencium (electronegativity: Pauling; radius: Slater's
atomic radius; Mendeleev number: Pettifor's order; volume: molar; electrons outside the noble-gas core by subshell,
filled subshells included), and nothing where there is none; of the elements beyond it has symbol and name alone.
"""

import csv
from importlib import resources

import numpy as np

_ROWS = list(csv.reader(resources.files("matalign").joinpath("elements.csv").read_text().splitlines()))
PROPERTIES = tuple(_ROWS[0][3:])
NAMES = {symbol: name for _, symbol, name, *_ in _ROWS[1:]}  # symbol -> name, by atomic number
NUMBER = {symbol: int(z) for z, symbol, *_ in _ROWS[1:]}  # symbol -> atomic number
SYMBOLS = ("", *(symbol for _, symbol, _, *values in _ROWS[1:] if any(values)))  # by atomic number, to lawrencium
HEAVIEST = len(SYMBOLS) - 1  # lawrencium: of heavier elements no property is known
VALUES = np.full((len(_ROWS), len(PROPERTIES)), np.nan)  # (119, 14) by atomic number; nan where unknown
VALUES[1:] = [[float(value or "nan") for value in row[3:]] for row in _ROWS[1:]]
ELECTRONEGATIVITY = VALUES[:, PROPERTIES.index("electronegativity")]  # (119,) likewise


def standardised() -> np.ndarray:
    """(119, 14) float32: each property with zero mean and unit variance over the elements, 0 where unknown."""
    scaled = (VALUES - np.nanmean(VALUES, 0)) / np.nanstd(VALUES, 0)
    return np.nan_to_num(scaled).astype(np.float32)
