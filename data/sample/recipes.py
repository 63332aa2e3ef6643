"""Protocols of the sample, and its stand-ins for the public test files: precursors and conditions by rule.

Precursors follow from the ions, the temperature from ions and prototype, the atmosphere from the ions' ease of
oxidation, and the number of firings, pressing and cooling from the prototype alone (`FIRINGS`): so a structure tells
more about a recipe than a composition does.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pandas as pd
from prototypes import Ion, decorations, formula
from pymatgen.core import Composition
from rules import draw, pick

SHARE_WITH_PROTOCOL = 0.62
MOST_PROTOCOLS = 4
SHARE_SHARED_DOI = 0.06  # of the protocols
SHARED_DOIS = 12
SHARE_SOL_GEL = 0.35  # of the protocols of oxides that have soluble precursors and no polymorph

ALKALI = {"Li", "Na", "K", "Rb", "Cs"}
CARBONATES = {**{s: f"{s}2CO3" for s in sorted(ALKALI)}, **{s: f"{s}CO3" for s in ("Ca", "Sr", "Ba")}}
# Usual powders where the oxide of the ion itself is not the one on the shelf; the first is the commonest.
OXIDES = {
    ("Mg", 2): ["MgO", "MgCO3"],
    ("Mn", 2): ["MnO", "MnCO3"],
    ("Mn", 3): ["Mn2O3", "MnO2"],
    ("Mn", 4): ["MnO2", "MnCO3"],
    ("Fe", 2): ["FeC2O4", "Fe2O3"],
    ("Co", 2): ["Co3O4", "CoO"],
    ("Co", 3): ["Co3O4"],
    ("Co", 4): ["Co3O4"],
    ("Ni", 3): ["NiO"],
    ("Ni", 4): ["NiO"],
    ("Ti", 3): ["TiO2"],
    ("V", 3): ["V2O5"],
    ("V", 4): ["V2O5"],
    ("Al", 3): ["Al2O3", "Al(OH)3"],
    ("B", 3): ["H3BO3", "B2O3"],
    ("P", 5): ["NH4H2PO4", "(NH4)2HPO4"],
}
SOLUBLE = {
    "Ti": "Ti(OC4H9)4",
    "Zr": "ZrO(NO3)2",
    "Hf": "HfCl4",
    "Sn": "SnCl4",
    "Si": "Si(OC2H5)4",
    "V": "NH4VO3",
    "Mo": "(NH4)6Mo7O24",
    "Nb": "Nb(OC2H5)5",
    "Ta": "Ta(OC2H5)5",
    "P": "NH4H2PO4",
    **{s: f"{s}NO3" for s in ("Li", "Na", "K", "Rb", "Cs", "Ag")},
    **{s: f"{s}(NO3)2" for s in ("Mg", "Ca", "Sr", "Ba", "Mn", "Co", "Ni", "Cu", "Zn", "Cd", "Pb")},
    **{s: f"{s}(NO3)3" for s in ("Al", "Ga", "In", "Cr", "Fe", "Sc", "Y", "La", "Lu", "Bi")},
}
INERT = {("Mn", 2), ("Fe", 2), ("Co", 2), ("Cu", 1), ("Sn", 2), ("Mo", 4)}
REDUCING = {("V", 3), ("V", 4), ("Ti", 3), ("Nb", 4), ("Re", 6)}
OXIDISING = {("Mn", 4), ("Co", 3), ("Co", 4), ("Ni", 3), ("Ni", 4), ("Ru", 4), ("Ag", 1)}
VOLATILE = ALKALI | {"Pb", "Bi", "Tl", "Cd", "Ag"}
LEAST_C = 250  # of any firing
# Family -> temperature (degrees C) at mean cation charge 1, and its rise per unit of charge.
BASE_C = {
    "oxide": (760, 110),
    "fluoride": (480, 60),
    "halide": (400, 60),
    "chalcogenide": (560, 50),
    "pnictide": (640, 40),
}


@dataclass(frozen=True)
class Firing:
    """How a structure type is fired.

    Attributes:
        shift_C: added to the temperature.
        cooling: ``quenched``, ``cooled`` (in the furnace) or ``annealed`` (a last long step 200 degrees below).
        hours: at the highest temperature, about.
        times: firings with grinding between them.
        pressed: into pellets before the last firing.
    """

    shift_C: int
    cooling: str
    hours: int
    times: int
    pressed: bool


DENSE = Firing(150, "quenched", 6, 1, True)
PLAIN = Firing(0, "cooled", 12, 1, True)
OPEN = Firing(-150, "annealed", 24, 1, False)
STACKED = Firing(100, "cooled", 36, 3, True)
SOFT = Firing(-150, "cooled", 5, 1, False)
FIRINGS = {
    **dict.fromkeys(("CsCl", "perovskite", "fluorite", "lanthana", "NiAs"), DENSE),
    **dict.fromkeys(("rocksalt", "rutile", "corundum", "spinel", "elpasolite", "antifluorite", "scheelite"), PLAIN),
    **dict.fromkeys(("zincblende", "ilmenite", "zircon", "layered-NaFeO2", "CdCl2", "chalcopyrite"), OPEN),
    **dict.fromkeys(("K2NiF4", "Ruddlesden-Popper-2", "oxychalcogenide", "molybdenite", "tetradymite"), STACKED),
    **dict.fromkeys(("anatase", "cuprite", "litharge", "ReO3", "CdI2", "K2PtCl6", "matlockite"), SOFT),
    "wurtzite": Firing(50, "quenched", 24, 1, False),
    "cristobalite": Firing(200, "quenched", 48, 1, False),
    "pyrite": Firing(-100, "annealed", 72, 1, False),
    "anti-lanthana": Firing(0, "annealed", 10, 1, True),
    "hexagonal-perovskite": Firing(50, "quenched", 24, 2, True),
    "lithium-niobate": Firing(0, "annealed", 8, 1, True),
    "calcite": Firing(-200, "annealed", 10, 2, True),
    "antiperovskite": Firing(-50, "quenched", 10, 2, True),
    "delafossite": Firing(100, "cooled", 20, 2, False),
    "half-Heusler": Firing(200, "annealed", 96, 1, True),
    "CaAl2Si2": Firing(100, "cooled", 48, 1, False),
}


@dataclass(frozen=True)
class Recipe:
    """Precursors of a target with their amounts for one formula unit, and the conditions."""

    target: str
    precursors: dict[str, Fraction]
    family: str
    temperature_C: int
    firing: Firing
    atmosphere: tuple[str, ...]
    key: str  # of its draws
    sol_gel: bool = False


# Precursors


def salt(cation: Ion, anion: Ion) -> str:
    """Formula of the binary compound: (Al 3+, O 2-) -> ``Al2O3``."""
    amounts = {cation.symbol: -anion.charge, anion.symbol: cation.charge}
    return formula(amounts)


def family(amounts: dict[Ion, int]) -> str:
    """What the conditions are chosen by: the anion, the softest one where there are several."""
    symbols = {ion.symbol for ion in amounts}
    if any(ion.charge <= -3 for ion in amounts):
        return "pnictide"
    if symbols & {"S", "Se", "Te"}:
        return "chalcogenide"
    if symbols & {"Cl", "Br", "I"}:
        return "halide"
    return "fluoride" if "F" in symbols else "oxide"


def precursors(amounts: dict[Ion, int], *, key: str) -> dict[str, Fraction]:
    """Precursors of a target, each with its amount for one formula unit; what the gases balance is not listed.

    Nitrides, pnictides and chalcogenides form from the elements (of several cations also from binary compounds),
    halides and mixed anions from binary salts, single salts from an ammonium halide and a carbonate, oxide or metal,
    oxides from carbonates and oxides, single oxides from what decomposes to them. A target is never its own precursor.
    """
    cations = {ion: n for ion, n in amounts.items() if ion.charge >= 0}
    anions = {ion: n for ion, n in amounts.items() if ion.charge < 0}
    kind = family(amounts)
    if kind == "pnictide" or Ion("S", -1) in anions:
        return {ion.symbol: Fraction(n) for ion, n in amounts.items() if ion.symbol != "N"}  # nitrogen is the gas
    if kind == "oxide":
        return oxide_precursors(cations, key=key)
    if len(cations) == len(anions) == 1:
        ((cation, n),) = cations.items()
        ((anion, m),) = anions.items()
        if kind == "chalcogenide":
            return {cation.symbol: Fraction(n), anion.symbol: Fraction(m)}
        source = CARBONATES.get(cation.symbol) or pick([salt(cation, Ion("O", -2)), cation.symbol], key, "source")
        return {source: Fraction(n) / contained(source, cation.symbol), f"NH4{anion.symbol}": Fraction(m)}
    if kind == "chalcogenide" and len(anions) == 1 and draw(key, "elements") < 0.5:
        return {ion.symbol: Fraction(n) for ion, n in amounts.items()}
    return salts(cations, anions)


def salts(cations: dict[Ion, int], anions: dict[Ion, int]) -> dict[str, Fraction]:
    """Binary compounds that add up to the target: charges are dealt out in the order of the formula."""
    found: dict[str, Fraction] = {}
    owed = {anion: -anion.charge * n for anion, n in anions.items()}
    for cation, n in cations.items():
        left = cation.charge * n
        for anion in owed:
            charge = min(left, owed[anion])
            if charge:
                name = salt(cation, anion)
                per_formula = contained(name, cation.symbol) * cation.charge
                found[name] = found.get(name, Fraction(0)) + Fraction(charge) / per_formula
                left, owed[anion] = left - charge, owed[anion] - charge
    return found


def oxide_precursors(cations: dict[Ion, int], *, key: str) -> dict[str, Fraction]:
    """Carbonates of alkali and alkaline-earth metals, oxides of the rest; a single oxide from what decomposes to it."""
    single = len(cations) == 1
    found: dict[str, Fraction] = {}
    for ion, n in cations.items():
        if ion.symbol in CARBONATES:
            source = CARBONATES[ion.symbol]
        elif single:
            hydroxide = f"{ion.symbol}OH" if ion.charge == 1 else f"{ion.symbol}(OH){ion.charge}"
            nitrate = SOLUBLE.get(ion.symbol, "")
            options = [hydroxide, ion.symbol] + ([nitrate] if "NO3" in nitrate else [])
            source = ion.symbol if ion.charge > 4 else pick(options, key, "decomposes")
        else:
            options = OXIDES.get((ion.symbol, ion.charge), [salt(ion, Ion("O", -2))])
            source = options[0] if draw(key, ion.symbol) < 0.7 else options[-1]
        found[source] = found.get(source, Fraction(0)) + Fraction(n) / contained(source, ion.symbol)
    return found


def soluble_precursors(cations: dict[Ion, int]) -> dict[str, Fraction]:
    """Nitrates and alkoxides; empty if an ion has none."""
    if any(ion.symbol not in SOLUBLE for ion in cations):
        return {}
    return {SOLUBLE[i.symbol]: Fraction(n) / contained(SOLUBLE[i.symbol], i.symbol) for i, n in cations.items()}


def symbols(names: Iterable[str]) -> set[str]:
    """Elements that occur in any of the formulas."""
    return {element.symbol for name in names for element in Composition(name)}


def contained(name: str, symbol: str) -> int:
    """Atoms of an element in a formula as written."""
    return int(Composition(name)[symbol])


# Reactions


def reaction(target: str, used: dict[str, Fraction]) -> dict[str, list[dict[str, str]]]:
    """Both sides of the balanced reaction, in the keys of the text-mined records.

    Carbon leaves as CO2, nitrogen as NH3 where it came as ammonium alone and as NO2 otherwise, chlorine that the target
    does not take as HCl, hydrogen as H2O; oxygen comes from, or goes to, the gas.

    Raises:
        ValueError: an element that no gas takes away does not balance.
    """
    excess: dict[str, Fraction] = {}
    for name, amount in [*used.items(), (target, Fraction(-1))]:
        for symbol, n in Composition(name).get_el_amt_dict().items():
            excess[symbol] = excess.get(symbol, Fraction(0)) + amount * int(n)
    gases: dict[str, Fraction] = {}

    def release(gas: str, element: str) -> None:
        amount = excess.get(element, Fraction(0)) / contained(gas, element)
        if amount:
            gases[gas] = amount
            for symbol, n in Composition(gas).get_el_amt_dict().items():
                excess[symbol] = excess.get(symbol, Fraction(0)) - amount * int(n)

    release("CO2", "C")
    names = "".join(used)
    ammonium = "NH4" in names and "NO3" not in names
    release("NH3" if ammonium else "NO2" if "N" in symbols(used) else "N2", "N")
    release("HCl", "Cl")
    release("H2O", "H")
    release("O2", "O")
    wrong = {symbol: str(n) for symbol, n in excess.items() if n}
    if wrong or any(n < 0 for gas, n in gases.items() if gas not in ("O2", "H2O", "N2")):
        raise ValueError(f"{target} from {', '.join(used)}: left over {wrong}, gases {gases}")
    left = {**used, **{gas: -n for gas, n in gases.items() if n < 0}}
    right = {target: Fraction(1), **{gas: n for gas, n in gases.items() if n > 0}}
    return {
        "element_substitution": {},
        "left_side": [{"material": name, "amount": number(n)} for name, n in left.items()],
        "right_side": [{"material": name, "amount": number(n)} for name, n in right.items()],
    }


def reaction_string(sides: dict[str, list[dict[str, str]]]) -> str:
    """``1 SrCO3 + 1 TiO2 == 1 SrTiO3 + 1 CO2``."""
    return " == ".join(
        " + ".join(f"{term['amount']} {term['material']}" for term in sides[side])
        for side in ("left_side", "right_side")
    )


def number(amount: Fraction) -> str:
    """An amount with at most three decimals."""
    return f"{float(amount):.3f}".rstrip("0").rstrip(".")


# Conditions


def recipe(target: str, amounts: dict[Ion, int], firing: Firing, *, key: str, sol_gel: bool = False) -> Recipe:
    """One way to make a target; the key draws among equivalent precursors and within 50 degrees."""
    kind = family(amounts)
    cations = {ion: n for ion, n in amounts.items() if ion.charge >= 0}
    used = soluble_precursors(cations) if sol_gel else precursors(amounts, key=key)
    base, slope = BASE_C[kind]
    mean_charge = sum(ion.charge * n for ion, n in cations.items()) / sum(cations.values())
    temperature = base + slope * (mean_charge - 1) + firing.shift_C + 100 * (draw(key, "temperature") - 0.5)
    temperature -= 100 * bool(VOLATILE & {ion.symbol for ion in cations}) + 150 * sol_gel
    temperature_C = max(LEAST_C, round(temperature / 25) * 25)
    gas = atmosphere(cations, amounts, kind, key=key)
    return Recipe(target, used, kind, temperature_C, firing, gas, key, sol_gel)


def atmosphere(cations: Iterable[Ion], amounts: Iterable[Ion], kind: str, *, key: str) -> tuple[str, ...]:
    """The gas of the last firing."""
    charges = {(ion.symbol, ion.charge) for ion in cations}
    if Ion("N", -3) in amounts:
        return (pick(["nitrogen", "ammonia"], key, "gas"),)
    if kind in ("chalcogenide", "pnictide"):
        return (pick(["vacuum", "vacuum", "argon"], key, "gas"),)
    if kind in ("fluoride", "halide"):
        return (pick(["argon", "nitrogen"], key, "gas"),)
    if charges & REDUCING:
        return ("hydrogen", "argon")
    if charges & INERT:
        return ("argon",)
    return ("oxygen",) if charges & OXIDISING else ("air",)


def steps(made: Recipe) -> list[dict]:
    """Operations in the keys of the text-mined records; None where a record of its kind would have nothing."""
    key, firing, gas = made.key, made.firing, list(made.atmosphere)
    hours = max(1, round(firing.hours * (0.75 + 0.5 * draw(key, "hours"))))
    if made.sol_gel:
        found = [
            step("MixingOperation", "dissolved", media="water"),
            step("MixingOperation", "stirred", media="citric acid", hours=(round(30 + 90 * draw(key, "stir")), "min")),
            step(
                "DryingOperation", "dried", temperature=(100 + 5 * round(6 * draw(key, "dry")), "°C"), hours=(12, "h")
            ),
            step("HeatingOperation", "heated", temperature=(350, "°C"), hours=(3, "h"), gas=["air"]),
        ]
    else:
        medium = pick(["ethanol", "acetone", "water", ""], key, "medium") if made.family == "oxide" else ""
        device = pick(["agate", "zirconia"], key, "device")
        found = [step("LiquidGrinding", "milled", media=[medium], device=[device], lists=True)] if medium else []
        found = found or [step("Mixing", "ground", device=[device], lists=True)]
        if medium:
            found.append(step("DryingOperation", "dried", lists=True))
        for _ in range(firing.times - 1):
            found.append(
                step(
                    "HeatingOperation",
                    "calcined",
                    temperature=(made.temperature_C - 100, "C"),
                    hours=(hours, "h"),
                    gas=gas,
                    lists=True,
                )
            )
            found.append(step("Mixing", "reground", lists=True))
    if firing.pressed:
        found.append(step("ShapingOperation", "pressed", lists=not made.sol_gel))
    last = "sintered" if firing.pressed else "heated"
    kelvin = made.sol_gel and draw(key, "unit") < 0.1
    hot = (made.temperature_C + 273, "K") if kelvin else (made.temperature_C, "°C" if made.sol_gel else "C")
    found.append(step("HeatingOperation", last, temperature=hot, hours=(hours, "h"), gas=gas, lists=not made.sol_gel))
    if firing.cooling == "annealed":
        cool = (made.temperature_C - 200, "°C" if made.sol_gel else "C")
        found.append(
            step(
                "HeatingOperation",
                "annealed",
                temperature=cool,
                hours=(2 * hours, "h"),
                gas=gas,
                lists=not made.sol_gel,
            )
        )
    else:
        found.append(step("QuenchingOperation", firing.cooling, lists=not made.sol_gel))
    return found


def step(
    kind: str,
    token: str,
    *,
    temperature: tuple[float, str] | None = None,
    hours: tuple[float, str] | None = None,
    gas: list[str] | None = None,
    media: str | list[str] | None = None,
    device: list[str] | None = None,
    lists: bool = False,
) -> dict:
    """One operation; `lists` writes absent conditions as the solid-state file does, else as the sol-gel file."""

    def quantity(value: tuple[float, str] | None) -> list[dict] | None:
        if value is None:
            return None
        low = None if lists else float(value[0])
        return [{"max_value": float(value[0]), "min_value": low, "values": [float(value[0])], "units": value[1]}]

    conditions = {
        "heating_temperature": quantity(temperature),
        "heating_time": quantity(hours),
        "heating_atmosphere": gas,
        "mixing_media": media,
        "mixing_device": device,
    }
    if lists and not any(conditions.values()):
        return {"token": token, "type": kind, "conditions": None}
    if lists:
        conditions = {name: value or [] for name, value in conditions.items()}
    return {"token": token, "type": kind, "conditions": conditions}


# Records


def material(name: str, *, mp_id: str | None, sol_gel: bool, written: str = "") -> dict:
    """A target or precursor in the keys of the text-mined records."""
    elements = {symbol: number(Fraction(n)) for symbol, n in Composition(name).get_el_amt_dict().items()}
    both = {
        "material_string": written or name,
        "material_formula": name,
        "composition": [{"formula": name, "elements": elements, "amount": "1"}],
        "amounts_vars": {},
        "elements_vars": {},
        "additives": [],
        "oxygen_deficiency": None,
    }
    return {**both, **({"material_name": "", "phase": None, "is_acronym": False} if sol_gel else {"mp_id": mp_id})}


def record(made: Recipe, *, doi: str, mp_id: str) -> dict:
    """A text-mined record; those of the sol-gel kind name no mp-id, as in that file."""
    sides = reaction(made.target, made.precursors)
    kind = "sol-gel" if made.sol_gel else "solid-state"
    written = made.target + pick(["", "", " powder", " ceramics"], made.key, "written")
    return {
        "synthesis_type": kind,
        "doi": doi,
        "targets_string": [made.target],
        "reaction_string": reaction_string(sides),
        "reaction": sides,
        "target": material(made.target, mp_id=mp_id, sol_gel=made.sol_gel, written=written),
        "precursors": [material(name, mp_id=None, sol_gel=made.sol_gel) for name in made.precursors],
        "operations": steps(made),
        "paragraph_string": "Synthetic record, made by rule.",
    }


def protocols(materials: pd.DataFrame) -> list[dict]:
    """Records for about three fifths of the materials, one to four each; then the five faulty ones.

    Args:
        materials: columns `mp_id`, `prototype`, as in materials.csv.
    """
    kept = set(materials.mp_id)
    table = [d for d in decorations() if d.mp_id in kept]
    twins = [d.formula for d in table]
    found: list[dict] = []
    papers = 0
    for decoration in table:
        if decoration.prototype == "calcite" and Ion("C", 4) in decoration.amounts:
            continue  # a carbonate would be its own precursor
        if draw("protocol", decoration.mp_id) >= SHARE_WITH_PROTOCOL:
            continue
        for i in range(1 + int(MOST_PROTOCOLS * draw("count", decoration.mp_id) ** 1.3)):
            key = f"{decoration.mp_id}/{i}"
            cations = [ion for ion in decoration.amounts if ion.charge >= 0]
            soluble = family(decoration.amounts) == "oxide" and bool(soluble_precursors(dict.fromkeys(cations, 1)))
            alone = twins.count(decoration.formula) == 1
            made = recipe(
                decoration.formula,
                decoration.amounts,
                FIRINGS[decoration.prototype],
                key=key,
                sol_gel=soluble and alone and draw(key, "sol-gel") < SHARE_SOL_GEL,
            )
            papers += draw(key, "paper") > 0.2 or i == 0  # now and then two recipes of a material are of one paper
            shared = draw(key, "shared") < SHARE_SHARED_DOI
            doi = 9000 + int(SHARED_DOIS * draw(key, "which")) if shared else papers
            found.append(record(made, doi=f"10.0000/sample.{doi:04d}", mp_id=decoration.mp_id))
    return found + faulty(found)


def faulty(sound: list[dict]) -> list[dict]:
    """Five records with one fault each, made of the first sound solid-state ones."""
    copies = [json.loads(json.dumps(r)) for r in sound if r["synthesis_type"] == "solid-state"][:40:8]
    for i, copy in enumerate(copies):
        copy["doi"] = f"10.0000/sample.99{i:02d}"
    mismatch, several, absurd, circular, unknown = copies
    other = next(r for r in sound if r["targets_string"] != copies[0]["targets_string"] and "mp_id" in r["target"])
    mismatch["target"]["mp_id"] = other["target"]["mp_id"]
    several["targets_string"] += ["SrTiO3"]
    heating = [s for s in absurd["operations"] if s["type"] == "HeatingOperation"][-1]
    heating["conditions"]["heating_temperature"][0].update(max_value=12000.0, values=[12000.0])
    circular["precursors"].append(material(circular["targets_string"][0], mp_id=None, sol_gel=False))
    unknown["target"]["mp_id"] = "sample-9999"
    return copies


# Stand-ins for the public test files


def oxides() -> list[tuple[str, dict[Ion, int], str]]:
    """(formula, ions, a prototype whose firing it takes) of targets outside the sample, one per chemical system."""
    families = [
        ("Y3 La3 Lu3 Sc3 Bi3 In3", "Ti4 Zr4 Hf4 Sn4 Ge4", (2, 2, 7), "fluorite"),
        ("Mg2 Zn2 Mn2 Ni2 Co2 Cd2 Ca2 Sr2", "Nb5 Ta5", (1, 2, 6), "rutile"),
        ("Y3 La3 Lu3 Sc3", "Nb5 Ta5", (1, 1, 4), "scheelite"),
        ("Y3 Lu3 La3", "Al3 Ga3 Fe3", (3, 5, 12), "spinel"),
        ("Mg2 Zn2 Mn2 Co2 Ni2 Ca2 Sr2 Ba2", "Si4", (2, 1, 4), "zircon"),
        ("Li1 Na1 K1", "Ti4 Zr4 Sn4 Si4 Ge4 Ru4", (2, 1, 3), "layered-NaFeO2"),
        ("Ca2 Sr2 Ba2 Mg2 Zn2", "V5 P5", (3, 2, 8), "scheelite"),
        ("Mg2 Zn2 Ca2 Sr2 Ba2 Mn2", "B3", (3, 2, 6), "calcite"),
        ("Bi3 La3 Y3", "Mo6 W6", (2, 3, 12), "scheelite"),
    ]
    found = []
    for firsts, seconds, (m, n, oxygen), prototype in families:
        for a in firsts.split():
            for b in seconds.split():
                first, second = Ion(a[:-1], int(a[-1])), Ion(b[:-1], int(b[-1]))
                amounts = {first: m, second: n, Ion("O", -2): oxygen}
                found.append((formula({i.symbol: k for i, k in amounts.items()}), amounts, prototype))
    for third in ("Mg2", "Zn2", "Ni2", "Co2", "Mn2"):
        for alkaline, heavy in (("Ba", "Nb"), ("Ba", "Ta"), ("Sr", "Nb"), ("Sr", "Ta")):
            amounts = {Ion(alkaline, 2): 3, Ion(third[:-1], 2): 1, Ion(heavy, 5): 2, Ion("O", -2): 9}
            found.append((formula({i.symbol: k for i, k in amounts.items()}), amounts, "perovskite"))
    for alkali in ("Li", "Na", "K"):
        for metal in ("Mg", "Zn", "Mn", "Fe", "Co", "Ni"):
            for centre, charge in (("P", 5), ("V", 5)):
                amounts = {Ion(alkali, 1): 1, Ion(metal, 2): 1, Ion(centre, charge): 1, Ion("O", -2): 4}
                found.append((formula({i.symbol: k for i, k in amounts.items()}), amounts, "ilmenite"))
    systems = {frozenset(ion.symbol for ion in amounts): (name, amounts, p) for name, amounts, p in reversed(found)}
    return sorted(systems.values(), key=lambda entry: draw("public", entry[0]))


def public_tests(rows: int = 30) -> dict[str, pd.DataFrame]:
    """File name -> table in the columns of the public file of that name; no chemical system occurs in two files."""
    targets = oxides()
    names = ["val.csv", "test_reduced.csv", "train_data.csv", "val_data.csv", "test_data.csv"]
    if len(targets) < rows * len(names):
        raise ValueError(f"{len(targets)} targets; expected at least {rows * len(names)}")
    parts = {name: targets[i * rows : (i + 1) * rows] for i, name in enumerate(names)}
    recipes = {name: [recipe(t, a, FIRINGS[p], key=f"public/{t}") for t, a, p in part] for name, part in parts.items()}
    shelf = sorted({plain(p) for name in names[:2] for made in recipes[name] for p in made.precursors})
    tables = {name: [precursor_row(made, shelf) for made in recipes[name]] for name in names[:2]}
    tables |= {name: [condition_row(made, name) for made in recipes[name]] for name in names[2:]}
    return {name: pd.DataFrame(table) for name, table in tables.items()}


def plain(name: str) -> str:
    """Reduced formula, elements sorted by electronegativity, as the public files write precursors."""
    return Composition(name).reduced_formula


def year(made: Recipe) -> int:
    """Of the invented paper."""
    return 2000 + int(20 * draw(made.key, "year"))


def precursor_row(made: Recipe, shelf: list[str]) -> dict:
    """A row of val.csv and test_reduced.csv."""
    telling = [s for s in Composition(made.target).get_el_amt_dict() if s != "O"]
    matching = [p for p in shelf if {e.symbol for e in Composition(p)} & set(telling)]
    return {
        "precursor_formulas": str([plain(p) for p in made.precursors]),
        "target_formula": made.target,
        "Reaction": reaction_string(reaction(made.target, made.precursors)),
        "Year": year(made),
        "Elements Match": True,
        "extracted_elements": str(telling),
        "matching_precursors": str(matching),
        "matching_precursors_length": len(matching),
        "all_precursors_present": True,
    }


def condition_row(made: Recipe, file: str) -> dict:
    """A row of train_data.csv, val_data.csv and test_data.csv; a few DOIs of the last are also in the first."""
    sintering, calcination = float(made.temperature_C), float(made.temperature_C - 150)
    hours = [float(made.firing.hours), float(max(2, made.firing.hours // 2))]
    shared = draw(made.key, "doi") < {"train_data.csv": 0.25, "test_data.csv": 0.15}.get(file, 0)
    paper = 9500 + int(5 * draw(made.key, "which")) if shared else 5000 + int(4000 * draw(made.key, file))
    return {
        "id": f"{int(draw(made.key, 'id') * 16**12):024x}",
        "precursor_formulas": str([plain(p) for p in made.precursors]),
        "target_formula": str([made.target]),
        "Reaction": reaction_string(reaction(made.target, made.precursors)),
        "Year": year(made),
        "Heating Operations": str(["calcined", "sintered"]),
        "Heating Temperatures": str([[calcination], [sintering]]),
        "Heating Times": str([[hours[1]], [hours[0]]]),
        "Sintering Temperature": sintering,
        "Sintering Time": hours[0],
        "Calcination Temperature": calcination,
        "Calcination Time": hours[1],
        "DOI": f"10.0000/sample.{paper:04d}",
        "Elements Match": True,
    }


# Files


def write_csv(file: Path, table: pd.DataFrame) -> None:
    """Comma-separated, quoted where needed, one line feed a line; absent values are empty."""
    file.parent.mkdir(exist_ok=True)
    table.to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


def write_jsonl(file: Path, rows: list[dict]) -> None:
    """One compact JSON record a line."""
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
