"""One table of the quantities that columns hold: what each is called, measured in, scored and drawn as."""

from dataclasses import dataclass, field


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
PASCAL = {"GPa": (1.0, 0.0), "MPa": (1e-3, 0.0)}
HOURS = {"h": (1.0, 0.0), "min": (1 / 60, 0.0), "d": (24.0, 0.0), "s": (1 / 3600, 0.0)}

TARGETS = (  # what is predicted; is_metal: 1 where the gap is zero, else 0
    Quantity(
        ENERGY,
        "formation energy",
        "$E_f$",
        "eV/atom",
        False,
        "#0072B2",
        "o",
        {"eV_atom": (1, 0), "meV_atom": (1e-3, 0)},
    ),
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


def of(column: str) -> Quantity:
    """The row of a column; one without unit for a column that the table lacks."""
    return TABLE.get(column) or Quantity(column, column.replace("_", " "))
