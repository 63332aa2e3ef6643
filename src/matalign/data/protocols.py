"""A synthesis record of the text-mined sets, its rendering as text, and the mask levels.

Both files (solid-state, doi 10.1038/s41597-019-0224-1; sol-gel, its companion of 2020) are read into one record:
target, precursors, operations with temperature, time, atmosphere and medium. The text is *rendered* from those fields
with a closed vocabulary, so nothing but a precursor's formula carries chemistry into it, and the mask levels take that
away step by step:

    L0  everything, the target and the reaction included
    L1  the target is not named; precursors by formula and element names, no amounts, no reaction
    L2  each precursor by its class ("a carbonate")
    L3  conditions only
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

METHODS = ("solid-state", "sol-gel")
LEVELS = (0, 1, 2, 3)
SAME_COMPOSITION = 0.01  # largest difference of an atomic fraction between two spellings of one composition
ABSOLUTE_ZERO_C = -273.15

# Symbol and name, in the order of the atomic number, from hydrogen.
TABLE = (
    "H hydrogen He helium Li lithium Be beryllium B boron C carbon N nitrogen O oxygen F fluorine Ne neon Na sodium "
    "Mg magnesium Al aluminium Si silicon P phosphorus S sulfur Cl chlorine Ar argon K potassium Ca calcium Sc "
    "scandium Ti titanium V vanadium Cr chromium Mn manganese Fe iron Co cobalt Ni nickel Cu copper Zn zinc Ga "
    "gallium Ge germanium As arsenic Se selenium Br bromine Kr krypton Rb rubidium Sr strontium Y yttrium Zr "
    "zirconium Nb niobium Mo molybdenum Tc technetium Ru ruthenium Rh rhodium Pd palladium Ag silver Cd cadmium In "
    "indium Sn tin Sb antimony Te tellurium I iodine Xe xenon Cs caesium Ba barium La lanthanum Ce cerium Pr "
    "praseodymium Nd neodymium Pm promethium Sm samarium Eu europium Gd gadolinium Tb terbium Dy dysprosium Ho "
    "holmium Er erbium Tm thulium Yb ytterbium Lu lutetium Hf hafnium Ta tantalum W tungsten Re rhenium Os osmium "
    "Ir iridium Pt platinum Au gold Hg mercury Tl thallium Pb lead Bi bismuth Po polonium At astatine Rn radon Fr "
    "francium Ra radium Ac actinium Th thorium Pa protactinium U uranium Np neptunium Pu plutonium Am americium Cm "
    "curium Bk berkelium Cf californium Es einsteinium Fm fermium Md mendelevium No nobelium Lr lawrencium Rf "
    "rutherfordium Db dubnium Sg seaborgium Bh bohrium Hs hassium Mt meitnerium Ds darmstadtium Rg roentgenium Cn "
    "copernicium Nh nihonium Fl flerovium Mc moscovium Lv livermorium Ts tennessine Og oganesson"
)
ELEMENTS: dict[str, str] = dict(zip(TABLE.split()[::2], TABLE.split()[1::2], strict=True))
NUMBER = {symbol: z for z, symbol in enumerate(ELEMENTS, start=1)}  # symbol -> atomic number
COMMON = frozenset("CHON")  # what anions, ligands, water and air are made of: says little about which material it is

# The closed word lists: pattern -> word (the first that matches wins), and the formula that a word names, if any.
ATMOSPHERES = (
    (r"air|ambient", "air"),
    (r"o2|oxygen", "oxygen"),
    (r"n2|nitrogen", "nitrogen"),
    (r"ar|argon", "argon"),
    (r"h2|hydrogen", "hydrogen"),
    (r"ar-?h2|h2-?ar|n2-?h2|h2-?n2|forming gas", "forming gas"),
    (r"nh3|ammonia", "ammonia"),
    (r"co|carbon monoxide", "carbon monoxide"),
    (r"co2|carbon dioxide", "carbon dioxide"),
    (r"h2s|hydrogen sulfide", "hydrogen sulfide"),
    (r"he|helium", "helium"),
    (r"vacuum", "vacuum"),
    (r"inert", "inert gas"),
)
MEDIA = (
    (r"water|h2o|(di|dd|distilled|deionized|milli-q|millipore|ultrapure) ?(water)?|ddw", "water"),
    (r"ethanol|ethyl ?alcohol|c2h5oh|ch3ch2oh|etoh", "ethanol"),
    (r"methanol|meoh|ch3oh", "methanol"),
    (r"iso-?propanol|2-propanol|isopropyl( alcohol)?|ipa|2-?proh|propanol", "propanol"),
    (r"n-?butanol|butanol", "butanol"),
    (r"alcohol", "alcohol"),
    (r"acetone", "acetone"),
    (r"nitric acid|hno3|nitric", "nitric acid"),
    (r"hydrochloric acid|hcl", "hydrochloric acid"),
    (r"(glacial )?acetic( acid)?|ch3cooh", "acetic acid"),
    (r"citric[ -]acid( monohydrate)?|acid citric|citric|c6h8o7", "citric acid"),
    (r"oxalic acid", "oxalic acid"),
    (r"acid", "acid"),
    (r"(di|tri|poly)?ethylene glycol|glycol|eg|peg", "glycol"),
    (r"ammonia( water)?|nh3|ammonium hydroxide|nh4oh|nh3·h2o", "ammonia"),
    (r"2-methoxy ?ethanol|2-?moe|moe", "methoxyethanol"),
    (r"dmf|(n,n-)?dimethylformamide", "dimethylformamide"),
    (r"(n-|cyclo)?hexane", "hexane"),
    (r"toluene", "toluene"),
    (r"edta|ethylenediaminetetraacetic acid", "chelating agent"),
    (r"urea", "urea"),
    (r"glycine", "glycine"),
)
WORD_FORMULA = {
    "oxygen": "O2", "nitrogen": "N2", "argon": "Ar", "hydrogen": "H2", "helium": "He", "ammonia": "NH3",
    "carbon monoxide": "CO", "carbon dioxide": "CO2", "hydrogen sulfide": "H2S", "water": "H2O", "urea": "CH4N2O",
    "nitric acid": "HNO3", "hydrochloric acid": "HCl", "oxalic acid": "C2H2O4", "acetic acid": "C2H4O2",
}  # fmt: skip
# What was done: stem in the record's token -> verb; then by the record's type of operation.
VERBS = (
    ("calcin", "calcined"), ("sinter", "sintered"), ("anneal", "annealed"), ("melt", "melted"),
    ("pyroly", "pyrolysed"), ("decompos", "decomposed"), ("combust|ignit|burn", "burned"), ("reflux", "refluxed"),
    ("fir(ed|ing)", "fired"), ("quench", "quenched"), ("cool", "cooled"), ("evapor", "evaporated"),
    ("filter|filtra", "filtered"), ("wash", "washed"), ("dissol", "dissolved"), ("stir", "stirred"),
    ("mill", "milled"), ("gr(ou|i)nd|pulveri|crush|powder", "ground"), ("pellet|pallet", "pelletised"),
    ("press|compact", "pressed"), ("dr(y|ied)", "dried"), ("aged|aging", "aged"), ("mix|blend|homogeni", "mixed"),
    ("heat", "heated"),
)  # fmt: skip
TYPES = {
    "HeatingOperation": "heated", "DryingOperation": "dried", "QuenchingOperation": "cooled",
    "ShapingOperation": "shaped", "Mixing": "mixed", "MixingOperation": "mixed", "SolutionMixing": "mixed",
    "LiquidGrinding": "ground", "StartingSynthesis": "",
}  # fmt: skip
HOURS = {"h": 1.0, "min": 1 / 60, "d": 24.0, "s": 1 / 3600}  # by the longest of these that the unit starts with


@dataclass(frozen=True)
class Operation:
    """One step of a synthesis, in the words of the closed lists."""

    verb: str
    temperature_C: float | None = None  # the highest named
    hours: float | None = None
    atmospheres: tuple[str, ...] = ()
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """One way to make one target."""

    doi: str
    method: str  # one of METHODS
    target_formula: str  # variables filled in, as the source writes it
    target_names: tuple[str, ...]  # its other spellings and names in the paper
    precursors: tuple[str, ...]  # normalised formulas, sorted
    operations: tuple[Operation, ...]
    reaction: str = ""  # balanced, with amounts
    mp_id: str | None = None  # named by the source (solid-state, single target), unchecked

    @property
    def max_temperature_C(self) -> float:
        """The highest temperature of all steps; NaN if none is named."""
        return max((o.temperature_C for o in self.operations if o.temperature_C is not None), default=math.nan)


class Skip(Exception):
    """A record, or one of its targets, that is not used; the message is the reason, to be counted."""


# Formulas


@lru_cache(maxsize=200_000)
def normalise(formula: str) -> str:
    """A formula in ASCII but for the dot of hydrates: subscripts, dots, dashes and blanks made uniform.

    >>> normalise("Fe(NO₃)₃ • 9H₂O")
    'Fe(NO3)3·9H2O'
    """
    text = unicodedata.normalize("NFKC", formula)
    text = re.sub(r"\s*[⋅∙•×⸱‧∗*]\s*|\s*·\s*", "·", text)
    text = re.sub(r"[−–—‐‑]", "-", text)
    text = re.sub(r"\(\d+(\.\d+)?N\)$", "", text)  # purity: SiO2(4N)
    text = re.sub(r"N03", "NO3", re.sub(r"H20\b", "H2O", text))  # zero for O
    text = re.sub(r"·(\d)·(\dH2O)$", r"·\1.\2", text)  # the dot for a decimal point: In(NO3)3·4·5H2O
    text = re.sub(r"(?<=[A-Za-z)])(\d*)\.(\d*H2O)$", r"\1·\2", text)  # a decimal point for the dot: Fe(NO3)3.9H2O
    text = re.sub(r"·?\((\d*)H2O\)([xnmyz]?)$", r"·\2\1H2O", text)
    return re.sub(r"\s+", "", text).strip("·")


DIGITS = r"\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)?|\.\d+"
TOKEN = re.compile(rf"([A-Z][a-z]?)|([(\[{{])|([)\]}}])|({DIGITS})|(.)")


@lru_cache(maxsize=200_000)
def composition(formula: str) -> dict[str, Fraction]:
    """Atoms in a formula unit, summed over the parts of a hydrate or a mixture; do not change the returned dict.

    Groups in brackets, decimals, fractions ("1/3"), Unicode subscripts and parts ("4MgCO3-Mg(OH)2·5H2O") are read; an
    unknown number of water molecules ("·xH2O") counts as one.

    Args:
        formula: as written.

    Returns:
        Element symbol -> amount > 0.

    Raises:
        ValueError: not a formula: an unknown element, a variable, an unbalanced bracket, no atom at all.
    """
    total: dict[str, Fraction] = {}
    for part in re.split(r"[·-]", normalise(formula)):
        lead = re.match(rf"({DIGITS})?(\(?[xnmyz]\)?(?=H2O$))?", part)
        factor = number(lead[1]) if lead[1] else Fraction(1)
        for symbol, amount in _group(part[lead.end() :], formula).items():
            total[symbol] = total.get(symbol, Fraction(0)) + factor * amount
    total = {symbol: amount for symbol, amount in total.items() if amount > 0}
    if not total:
        raise ValueError(f"{formula!r}: no atoms; expected a chemical formula")
    return total


def number(text: str) -> Fraction:
    """Exact value of "2", "0.5", "1/3"."""
    top, _, bottom = text.partition("/")
    return Fraction(top) / (Fraction(bottom) if bottom else 1)


def _group(part: str, formula: str) -> dict[str, Fraction]:
    stack: list[dict[str, Fraction]] = [{}]
    last: dict[str, Fraction] = {}  # what a number that follows multiplies
    for symbol, opening, closing, amount, other in TOKEN.findall(part):
        if amount and last:
            for key, value in last.items():
                stack[-1][key] += value * (number(amount) - 1)
            last = {}
            continue
        if symbol in ELEMENTS:
            last = {symbol: Fraction(1)}
        elif symbol and symbol[0] in ELEMENTS and len(symbol) == 2:
            raise ValueError(f"{formula!r}: {symbol!r} is not an element")
        elif opening:
            stack.append({})
            last = {}
            continue
        elif closing and len(stack) > 1:
            last = stack.pop()
        else:
            raise ValueError(f"{formula!r}: cannot read {symbol or closing or amount or other!r}")
        for key, value in last.items():
            stack[-1][key] = stack[-1].get(key, Fraction(0)) + value
    if len(stack) > 1 or not part:
        raise ValueError(f"{formula!r}: unbalanced bracket or empty part")
    return stack[0]


def reduced(formula: str) -> str:
    """A spelling that equal compositions share: smallest whole numbers, elements in alphabetical order.

    >>> reduced("Ba(Mg1/3Nb2/3)O3")
    'Ba3Mg1Nb2O9'

    Raises:
        ValueError: see `composition`.
    """
    atoms = composition(formula)
    scale = math.lcm(*(a.denominator for a in atoms.values()))
    whole = {symbol: int(amount * scale) for symbol, amount in atoms.items()}
    divisor = math.gcd(*whole.values())
    return "".join(f"{symbol}{whole[symbol] // divisor}" for symbol in sorted(whole))


@lru_cache(maxsize=200_000)
def _fractions(formula: str) -> dict[str, float]:
    """Atomic fractions; empty if unreadable."""
    try:
        atoms = composition(formula)
    except ValueError:
        return {}
    total = sum(atoms.values())
    return {symbol: float(amount / total) for symbol, amount in atoms.items()}


def same_composition(a: str, b: str) -> bool:
    """Whether two formulas hold the same elements in proportions within `SAME_COMPOSITION`; False if unreadable."""
    left, right = _fractions(a), _fractions(b)
    return bool(left) and left.keys() == right.keys() and all(abs(left[s] - right[s]) <= SAME_COMPOSITION for s in left)


@lru_cache(maxsize=200_000)
def _tokens(text: str) -> tuple[str, ...]:
    """What blanks and commas part, and its parts: between marks of dopants and mixtures, and in brackets."""
    words = [w for w in re.split(r"[\s,;=+]+", unicodedata.normalize("NFKC", text)) if w]
    parts = [
        p
        for w in words
        for p in (w, *re.split(r"[:·⋅•/@|-]", w), *re.split(r"[:@|]|/(?!\d)", w), *re.findall(r"[^()]+", w))
    ]
    return tuple({p.strip(".:·*-") for p in parts} - {""})


def formulas(text: str) -> list[str]:
    """The words of a text that are chemical formulas, in order, each once."""
    words = (w.strip(".,;:") for w in text.split())
    return [w for w in dict.fromkeys(words) if not w.isdigit() and _readable(w)]


def spells(text: str, target: str) -> bool:
    """Whether a token of the text spells the target: in any order, multiple or subscripts; in a hydrate, or doped.

    Tokens ("Y2O3:Eu", "LiFePO4/C") are compared whole and in parts, so that no substring of another formula counts.
    """
    return any(same_composition(token, target) for token in _tokens(text))


@lru_cache(maxsize=50_000)
def precursor_class(formula: str) -> str:
    """The kind of compound, with its article: "a carbonate", "an oxide"; "another compound" if unreadable."""
    try:
        atoms = composition(formula)
    except ValueError:
        return "another compound"
    text = normalise(formula)
    dry = re.sub(r"·\(?[\dxnmyz./]*\)?H2O$", "", text)
    elements = set(atoms)
    if elements == {"H", "O"}:
        return "water" if text.endswith("H2O") else "a peroxide" if reduced(formula) == "H1O1" else "a hydroxide"
    if len(elements) == 1:
        return "an element"
    if elements <= COMMON:
        rules = [
            (r"NH4\)?\(?NO3", "a nitrate"),
            (r"NH4\)?OH|^NH3", "ammonia"),
            (r"CO3", "a carbonate"),
            (r"NO3", "an acid"),
        ]
        return next((name for pattern, name in rules if re.search(pattern, text)), "an organic compound")
    for pattern, name in ANIONS:
        if re.search(pattern, dry):
            return name
    if "C" in elements and "H" in elements:
        return "an organometallic compound"
    salt = re.sub(r"\(?NH4\)?\d*", "", dry)  # ammonium is a cation here, not a nitride
    rest = set(composition(salt)) if _readable(salt) else elements
    if {"H", "O"} <= rest:
        return "an acid" if salt.startswith("H") else "a hydroxide"
    return next((name for symbol, name in BINARY.items() if symbol in rest), "an alloy")


BINARY = {
    "O": "an oxide", "F": "a fluoride", "Cl": "a chloride", "Br": "a bromide", "I": "an iodide", "S": "a sulfide",
    "Se": "a selenide", "Te": "a telluride", "N": "a nitride", "P": "a phosphide", "C": "a carbide", "B": "a boride",
    "H": "a hydride", "Si": "a silicide", "As": "an arsenide",
}  # fmt: skip
# The oxyacids before the simpler anions that their formulas contain.
ANIONS = (
    (r"CO3(?!H)|\(CO\)3", "a carbonate"),
    (r"C2O4", "an oxalate"),
    (r"CH3COO|CH3CO2|C2H3O2|OOCCH3|O2CCH3|OCOCH3|C4H6|C6H9", "an acetate"),
    (r"C6H5O7|C3H5O\(COO\)3", "a citrate"),
    (r"NO3", "a nitrate"),
    (r"C5H7O2|CH3COCHCOCH3", "an acetylacetonate"),
    (r"\(?O\(?C[H2-9]|C\d?H\d+\)?O\)|OPr|OEt|OBu|CH2\)?3?O\)", "an alkoxide"),
    (r"SO4", "a sulfate"),
    (r"PO[34]|P2O7", "a phosphate"),
    (r"OH", "a hydroxide"),
)


def _readable(formula: str) -> bool:
    return bool(_fractions(formula))


# Records


def parse(record: Mapping[str, Any], *, method: str, max_temperature_C: float) -> tuple[list[Protocol], list[str]]:
    """Protocols of one reaction of the text-mined sets, one for each target it names, and why others were left out.

    Args:
        record: an entry of `reactions`, of either file: conditions may be null, a scalar or a list; temperatures in °C,
            C or K, or without a unit (then °C, as all of the solid-state file).
        method: "solid-state" or "sol-gel".
        max_temperature_C: above, a temperature is absurd.

    Returns:
        The protocols, each with a readable target; and a reason for the record, or for each target, that was skipped.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}; one of {', '.join(METHODS)}")
    protocols: dict[Protocol, None] = {}  # in order, without duplicates
    reasons: list[str] = []
    try:
        target = record.get("target") or {}
        targets = list(dict.fromkeys(t for t in record.get("targets_string") or () if t))
        if not targets:
            raise Skip("no target")
        if re.search(r"O[x-zδ](?![a-z])", normalise(target.get("material_formula") or "")):
            raise Skip("oxygen content unknown")
        operations = tuple(o for o in map(_operation, record.get("operations") or ()) if o.verb)
        temperatures = [o.temperature_C for o in operations if o.temperature_C is not None]
        if any(not ABSOLUTE_ZERO_C < t <= max_temperature_C for t in temperatures):
            raise Skip("absurd temperature")
        precursors = tuple(
            sorted(
                {
                    normalise(p.get("material_formula") or p.get("material_string") or "")
                    for p in record.get("precursors") or ()
                }
            )
        )
        if not any(precursors):
            raise Skip("no precursors")
    except Skip as skip:
        return [], [str(skip)]
    spellings = (target.get(key) or "" for key in ("material_string", "material_formula", "material_name"))
    names = tuple(dict.fromkeys(s.strip() for s in spellings if s.strip()))
    single = len(targets) == 1
    additives = {a for a in target.get("additives") or () if a in ELEMENTS}
    for formula in targets:
        if not re.fullmatch(r"[A-Za-z0-9.()\[\]]+", formula) or not _readable(formula):  # variables, negative amounts
            reasons.append("unreadable target formula")
            continue
        # A series lists the precursors of all its members: one that shares no metal with this member is another's.
        used = (
            precursors
            if single
            else tuple(p for p in precursors if _supplies(p, set(composition(formula)) | additives))
        )
        if any(spells(p, formula) for p in used):
            reasons.append("target occurs in a precursor")
            continue
        if not used:
            reasons.append("no precursors")
            continue
        protocols[
            Protocol(
                doi=(record.get("doi") or "").strip().lower(),
                method=method,
                target_formula=formula,
                target_names=tuple(n for n in names if n != formula),
                precursors=used,
                operations=operations,
                reaction=record.get("reaction_string") or "",
                mp_id=(target.get("mp_id") or None) if single else None,
            )
        ] = None
    return list(protocols), reasons


def _supplies(precursor: str, elements: set[str]) -> bool:
    if not _readable(precursor):
        return True
    metals = set(composition(precursor)) - COMMON
    return not metals or bool(metals & elements)


def _operation(step: Mapping[str, Any]) -> Operation:
    token, conditions = (step.get("token") or "").lower(), step.get("conditions") or {}
    verb = next((verb for stem, verb in VERBS if re.search(stem, token)), "")
    if not verb or step.get("type") == "StartingSynthesis":
        verb = TYPES.get(step.get("type") or "", "treated")
    temperatures = [t for entry in _listed(conditions.get("heating_temperature")) if (t := _celsius(entry)) is not None]
    hours = [h for entry in _listed(conditions.get("heating_time")) if (h := _hours(entry)) is not None]
    return Operation(
        verb=verb,
        temperature_C=max(temperatures, default=None),
        hours=max(hours, default=None),
        atmospheres=_words(conditions.get("heating_atmosphere"), ATMOSPHERES),
        media=_words(conditions.get("mixing_media"), MEDIA),
    )


def _listed(value: Any) -> list[Any]:
    return [] if value is None or value == "" else value if isinstance(value, list) else [value]


def _highest(entry: Any) -> float | None:
    if not isinstance(entry, Mapping):
        return float(entry) if isinstance(entry, int | float) else None
    values = [v for v in (entry.get("max_value"), *(entry.get("values") or ())) if isinstance(v, int | float)]
    return max(values, default=None)


def _celsius(entry: Any) -> float | None:
    value = _highest(entry)
    units = (entry.get("units") or "C") if isinstance(entry, Mapping) else "C"
    units = units.replace("°", "").replace("º", "").strip()
    if value is None:
        return None
    if units not in ("C", "K"):
        raise Skip(f"temperature unit {units!r} unknown")
    return value if units == "C" else value + ABSOLUTE_ZERO_C


def _hours(entry: Any) -> float | None:
    value = _highest(entry)
    unit = ((entry.get("units") or "h") if isinstance(entry, Mapping) else "h").strip().lower()
    factor = next((HOURS[u] for u in sorted(HOURS, key=len, reverse=True) if unit.startswith(u)), None)
    return None if value is None or factor is None or value <= 0 else value * factor


def _words(value: Any, vocabulary: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found = []
    for item in _listed(value):
        text = unicodedata.normalize("NFKC", str(item)).strip().lower()
        found.append(next((word for pattern, word in vocabulary if re.fullmatch(pattern, text)), "other"))
    return tuple(sorted(set(found)))


# Text


def render(protocol: Protocol, *, level: int) -> str:
    """The protocol as text, at a mask level.

    Args:
        protocol: the record.
        level: 0 as rendered; 1 target masked; 2 precursors by class; 3 conditions only. Amounts and the reaction stand
            at 0 alone.

    Returns:
        Lower case but for formulas: a language model that lower-cases (Co = CO) finds the element names beside them.

    Raises:
        ValueError: no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"mask level {level!r}; one of {LEVELS}")
    target = protocol.target_formula
    sentences = [f"{protocol.method} synthesis"]
    if level == 0:
        sentences[0] += f" of {with_names(target)}"
        sentences += [", ".join(protocol.target_names)] if protocol.target_names else []
        sentences += [f"reaction: {protocol.reaction}"] if protocol.reaction else []
    hidden = target if level else ""
    if level <= 1:
        sentences.append("from " + ", ".join(dict.fromkeys(with_names(p, hidden=hidden) for p in protocol.precursors)))
    elif level == 2:
        sentences.append("from " + ", ".join(sorted(map(precursor_class, protocol.precursors))))
    steps = [_step(operation, hidden=hidden) for operation in protocol.operations]
    sentences += [step for i, step in enumerate(steps) if i == 0 or step != steps[i - 1]]
    return ". ".join(sentences) + "."


def with_names(formula: str, *, hidden: str = "") -> str:
    """The formula with the names of its telling elements; an unreadable one is not shown where something is hidden."""
    if not _readable(formula):
        return "another compound" if hidden else formula
    atoms = composition(formula)
    telling = [s for s in atoms if s not in COMMON] or list(atoms)
    # The name of an elemental target is its element's name.
    alone = set(composition(hidden)) if hidden and len(composition(hidden)) == 1 else set()
    names = " ".join(ELEMENTS[s] for s in telling if s not in alone)
    return f"{normalise(formula)} ({names})" if names else normalise(formula)


def _step(operation: Operation, *, hidden: str) -> str:
    text = operation.verb
    if operation.temperature_C is not None:
        text += f" at {operation.temperature_C:.0f} celsius"
    if operation.hours is not None:
        text += f" for {operation.hours:.2g} hours" if operation.hours < 10 else f" for {operation.hours:.0f} hours"
    words = [_shown(word, hidden) for word in (*operation.media, *operation.atmospheres)]
    return text + (" in " + " and ".join(dict.fromkeys(words)) if words else "")


def _shown(word: str, hidden: str) -> str:
    """The word, unless it names what is hidden."""
    return "other" if hidden and same_composition(WORD_FORMULA.get(word, ""), hidden) else word
