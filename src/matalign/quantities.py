"""One table of the quantities that columns hold: what each is called, measured in, scored and drawn as."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A column of a table."""

    column: str  # the unit is in its name: formation_energy_eV_atom
    name: str  # in a sentence, in a table's head
    symbol: str = ""  # on an axis, as mathtext
    unit: str = ""  # as printed
    logarithmic: bool = False  # fitted, scored and coloured by its log10
    colour: str = "#555555"  # in figures that tell targets apart; fit for the colour-blind
    marker: str = "o"
    units: dict[str, tuple[float, float]] = field(default_factory=dict)  # that it may be given in, as the end of a
    # column's name -> factor and offset into the unit of `column`, which is the first

    @property
    def base(self) -> str:
        """The column's name without its unit: formation_energy."""
        return self.column.removesuffix(f"_{next(iter(self.units), '')}")

    @property
    def fitted_unit(self) -> str:
        """The unit that it is fitted and scored in."""
        return f"log10({self.unit})" if self.logarithmic else self.unit


ENERGY, GAP, METAL = "formation_energy_eV_atom", "band_gap_eV", "is_metal"  # columns
ABSOLUTE_ZERO_C = -273.15
PER_ATOM = {"eV_atom": (1.0, 0.0), "meV_atom": (1e-3, 0.0)}
PASCAL = {"GPa": (1.0, 0.0), "MPa": (1e-3, 0.0)}
HOURS = {"h": (1.0, 0.0), "min": (1 / 60, 0.0), "d": (24.0, 0.0), "s": (1 / 3600, 0.0)}

TARGETS = (  # what is predicted; is_metal: 1 where the gap is zero, else 0
    Quantity(ENERGY, "formation energy", "$E_f$", "eV/atom", False, "#0072B2", "o", PER_ATOM),
    Quantity(GAP, "band gap", "gap", "eV", False, "#D55E00", "v", {"eV": (1, 0), "meV": (1e-3, 0)}),
    Quantity(METAL, "metal", "metal", colour="#009E73", marker="p"),
    Quantity("bulk_modulus_GPa", "bulk modulus", "$K$", "GPa", True, "#000000", "s", PASCAL),
    Quantity("shear_modulus_GPa", "shear modulus", "$G$", "GPa", True, "#56B4E9", "D", PASCAL),
)
CONDITIONS = (  # of a synthesis, of a micrograph
    Quantity("temperature_C", "temperature", "$T$", "°C", units={"C": (1, 0), "K": (1, ABSOLUTE_ZERO_C)}),
    Quantity("time_h", "time", "$t$", "h", units=HOURS),
    Quantity("pixel_size_A", "pixel size", "", "Å", units={"A": (1, 0), "nm": (10, 0), "pm": (0.01, 0)}),
)
TABLE = {quantity.column: quantity for quantity in (*TARGETS, *CONDITIONS)}
UNITS = {q.base: q.units for q in TABLE.values() if q.units}  # factor, then offset
SPELLINGS = {"Å": "A", "angstrom": "A", "°C": "C", "celsius": "C", "kelvin": "K", "hour": "h", "hours": "h"}


def of(column: str) -> Quantity:
    """The row of a column; one without unit for a column that the table lacks."""
    return TABLE.get(column) or Quantity(column, column.replace("_", " "))


def given(fields: Mapping[str, Any], name: str) -> float | None:
    """What people write with a unit of their choice, in °C, h, Å, eV/atom, eV or GPa; None where there is none.

    It stands as `<name>_<unit>`, or as `<name>` beside `<name>_unit`; None and "" are as good as absent.

    Raises:
        ValueError: given twice, without a unit, in an unknown one, or not a finite number.
    """
    units = UNITS[name]
    keys = (name, *(f"{name}_{unit}" for unit in units))
    found = {key: fields[key] for key in keys if fields.get(key) not in (None, "")}
    if len(found) > 1:
        raise ValueError(f"{name} stands there {len(found)} times: {', '.join(found)}; give one")
    if not found:
        return None
    key, written = next(iter(found.items()))
    unit = key.removeprefix(f"{name}_") if key != name else str(fields.get(f"{name}_unit") or "").strip()
    unit = SPELLINGS.get(unicodedata.normalize("NFKC", unit), unit)
    if unit not in units:
        said = f"has the unknown unit {unit!r}" if unit else "has no unit"
        raise ValueError(f"{name} {written!r} {said}; one of {', '.join(units)}, as {name}_{next(iter(units))}")
    try:
        value = float(written)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} is {written!r}; expected a number")
    factor, offset = units[unit]
    return factor * value + offset
