"""Quantities that people write with a unit of their choice -> numbers in the first of its units."""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from matalign.quantities import TABLE

UNITS = {quantity.base: quantity.units for quantity in TABLE.values() if quantity.units}  # factor, then offset
SPELLINGS = {"Å": "A", "angstrom": "A", "°C": "C", "celsius": "C", "kelvin": "K", "hour": "h", "hours": "h"}


def quantity(fields: Mapping[str, Any], name: str) -> float | None:
    """A quantity by its name and unit, in the first of its units (`UNITS`).

    Args:
        fields: has it as `<name>_<unit>`, or as `<name>` beside `<name>_unit`; None and "" are as good as absent.
        name: of `UNITS`.

    Returns:
        The value in °C, h, Å, eV/atom, eV or GPa; None where there is none.

    Raises:
        ValueError: given twice, without a unit, in an unknown one, or not a finite number.
    """
    units = UNITS[name]
    keys = (name, *(f"{name}_{unit}" for unit in units))
    given = {key: fields[key] for key in keys if fields.get(key) not in (None, "")}
    if len(given) > 1:
        raise ValueError(f"{name} stands there {len(given)} times: {', '.join(given)}; give one")
    if not given:
        return None
    key, written = next(iter(given.items()))
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
