"""Chemical formulas as papers write them: their atoms, their spelling, and what kind of compound they name."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from importlib import resources

import numpy as np
import yaml

from matalign import elements
from matalign.elements import NAMES, NUMBER, SYMBOLS, VALUES

ELECTRONEGATIVITY = {s: float(np.nan_to_num(elements.ELECTRONEGATIVITY[z], nan=np.inf)) for s, z in NUMBER.items()}
MAX_WITHIN_ANION = 1.65  # difference of electronegativity, as pymatgen has it
SAME_COMPOSITION = 0.01  # largest difference of an atomic fraction between two spellings of one composition
COMMON = frozenset("CHON")  # what anions, ligands, water and air are made of: says little about which material it is
WATER = r"·((\d+(\.\d+)?|\d+/\d+)?[xnmyz]?\(?H2O\)?[xnmyz]?)$"
DIGITS = r"\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)?|\.\d+"
TOKEN = re.compile(rf"([A-Z][a-z]?)|([(\[{{])|([)\]}}])|({DIGITS})|(.)")
VOCABULARY = yaml.safe_load(resources.files("matalign.data").joinpath("vocabulary.yaml").read_text(encoding="utf-8"))
_END = r"(?=\d*(?:[)\]}·-]|$))"
_GROUPS = [(re.compile(pattern.replace("[END]", _END)), f"({atoms})") for pattern, atoms in VOCABULARY["groups"]]
_MIXED = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")  # between a number and the fraction after it
_ABBREVIATED = re.compile("[aA]c|Me|Et|Pr|Bu|Ph|Cp|P[VAES]|CTAB|EDTA")  # sorts out most formulas at once


def plain(text: str) -> str:
    """Compatibility characters (subscripts, ligatures) as plain ones; unseen marks (soft hyphens) taken out.

    >>> plain("H₂O, 4½ h")
    'H2O, 4 1/2 h'
    """
    text = _MIXED.sub(" ", text)  # else 4½ would become 41/2
    text = unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/")
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def spelled_out(formula: str) -> str:
    """A normalised formula with the atoms of its abbreviated groups.

    >>> spelled_out("Zn(OAc)2·2H2O")
    'Zn((C2H3O2))2·2H2O'
    """
    for pattern, atoms in _GROUPS if _ABBREVIATED.search(formula) else ():
        formula = pattern.sub(atoms, formula)
    return formula


@lru_cache(maxsize=200_000)
def normalise(formula: str) -> str:
    """A formula in ASCII but for the dot of hydrates: subscripts, dots, dashes and blanks made uniform.

    >>> normalise("Fe(NO₃)₃ • 9H₂O")
    'Fe(NO3)3·9H2O'
    """
    text = plain(formula)
    text = re.sub(r"\s*[⋅∙•×⸱‧∗*]\s*|\s*·\s*", "·", text)
    text = re.sub(r"^([^·]*?[A-Za-z\d)\]])\s+(\d+(?:\.\d+)?|[xnmyz])?\s*H2O$", r"\1·\2H2O", text)  # a blank for it
    text = re.sub(r"[−–—‐‑]", "-", text)
    text = re.sub(r"\(\d+(\.\d+)?N\)$", "", text)  # purity: SiO2(4N)
    text = re.sub(r"N03", "NO3", re.sub(r"H20\b", "H2O", text))  # zero for O
    text = re.sub(r"·(\d)·(\dH2O)$", r"·\1.\2", text)  # the dot for a decimal point: In(NO3)3·4·5H2O
    text = re.sub(r"(?<=[A-Za-z)])(\d*)\.(\d*H2O)$", r"\1·\2", text)  # a decimal point for the dot: Fe(NO3)3.9H2O
    text = re.sub(r"·?\((\d*)H2O\)([xnmyz]?)$", r"·\2\1H2O", text)
    return re.sub(r"\s+", "", text).strip("·")


@lru_cache(maxsize=200_000)
def composition(formula: str) -> dict[str, Fraction]:
    """Symbol -> amount > 0 in a formula unit, summed over a hydrate's or mixture's parts; do not change the dict.

    Groups in brackets, abbreviated ones (`groups` of vocabulary.yaml), decimals, fractions ("1/3"), Unicode subscripts
    and parts ("4MgCO3-Mg(OH)2·5H2O") are read; an unknown number of water molecules ("·xH2O") counts as one.

    Raises:
        ValueError: not a formula: an unknown element, a variable, an unbalanced bracket, no atom at all.
    """
    total: dict[str, Fraction] = {}
    for part in re.split(r"[·-]", spelled_out(normalise(formula))):
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
        if symbol in NAMES:
            last = {symbol: Fraction(1)}
        elif symbol and symbol[0] in NAMES and len(symbol) == 2:
            raise ValueError(f"{formula!r}: {symbol!r}{_place(symbol, formula)} is not an element")
        elif opening:
            stack.append({})
            last = {}
            continue
        elif closing and len(stack) > 1:
            last = stack.pop()
        else:
            sign = symbol or closing or amount or other
            raise ValueError(f"{formula!r}: cannot read {sign!r}{_place(sign, formula)}")
        for key, value in last.items():
            stack[-1][key] = stack[-1].get(key, Fraction(0)) + value
    if len(stack) > 1 or not part:
        raise ValueError(f"{formula!r}: unbalanced bracket or empty part")
    return stack[0]


def _place(sign: str, formula: str) -> str:
    at = formula.find(sign)
    return f" (character {at + 1})" if at >= 0 else ""


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


def spelled(atoms: Iterable[int] | str) -> str:
    """A reduced formula as chemists and pymatgen spell it: LiFePO4, Ca3(PO4)2; SrCO3 for C1O3Sr1.

    By electronegativity, the last two elements in brackets where they are an anion; `atoms` are atomic numbers of a
    cell, or a formula of whole numbers.

    Raises:
        ValueError: see `composition`.
    """
    if isinstance(atoms, str):
        text = _spelled({symbol: int(amount) for symbol, amount in composition(atoms).items()})
    else:
        text = _spelled(Counter(SYMBOLS[int(z)] for z in atoms))
    return VOCABULARY["molecules"].get(text, text)


def _spelled(atoms: Mapping[str, int]) -> str:
    symbols = sorted(atoms, key=lambda symbol: (ELECTRONEGATIVITY[symbol], symbol))
    divisor, anion = math.gcd(*atoms.values()), ""
    if len(symbols) > 2 and ELECTRONEGATIVITY[symbols[-1]] - ELECTRONEGATIVITY[symbols[-2]] < MAX_WITHIN_ANION:
        last = {symbol: atoms[symbol] // divisor for symbol in symbols[-2:]}
        if (units := math.gcd(*last.values())) > 1:
            anion, symbols = f"({_spelled(last)}){units}", symbols[:-2]
    amounts = ((symbol, atoms[symbol] // divisor) for symbol in symbols)
    return "".join(symbol + (str(n) if n > 1 else "") for symbol, n in amounts) + anion


@lru_cache(maxsize=200_000)
def fractions(formula: str) -> tuple[tuple[str, float], ...]:
    """(element, atomic fraction), alphabetical; raises as `composition`."""
    atoms = composition(formula)
    total = sum(atoms.values())
    return tuple((symbol, float(atoms[symbol] / total)) for symbol in sorted(atoms))


@lru_cache(maxsize=200_000)
def readable(formula: str) -> bool:
    """Whether `composition` reads the formula."""
    try:
        return bool(fractions(formula))
    except ValueError:
        return False


def vector(shares: Iterable[tuple[str, float]]) -> np.ndarray:
    """(119,) atomic fractions by atomic number."""
    row = np.zeros(len(VALUES))
    for symbol, share in shares:
        row[NUMBER[symbol]] = share
    return row


@lru_cache(maxsize=100_000)
def anhydrous(formula: str) -> str:
    """A spelling that one precursor's formulas share: reduced, elements in alphabetical order, without crystal water.

    >>> anhydrous("NH4H2AsO4") == anhydrous("AsH6NO4"), anhydrous("Ce(NO3)3·6H2O")
    (True, 'Ce1N3O9')

    Raises:
        ValueError: see `composition`.
    """
    text = normalise(formula)
    dry = re.sub(WATER, "", text)
    return reduced(dry or text)


@lru_cache(maxsize=100_000)
def symbols(spelling: str) -> frozenset[str]:
    """Elements of a formula as `anhydrous` spells it."""
    return frozenset(re.findall(r"[A-Z][a-z]?", spelling))


def telling(system: Iterable[str]) -> frozenset[str]:
    """The elements that a precursor must bring: all but those of water, air and ligands."""
    return frozenset(system) - COMMON


def same_composition(a: str, b: str) -> bool:
    """Whether two formulas hold the same elements in proportions within `SAME_COMPOSITION`; False if unreadable."""
    if not (readable(a) and readable(b)):
        return False
    left, right = dict(fractions(a)), dict(fractions(b))
    return left.keys() == right.keys() and all(abs(left[s] - right[s]) <= SAME_COMPOSITION for s in left)


@lru_cache(maxsize=200_000)
def _tokens(text: str) -> tuple[str, ...]:
    """What blanks and commas part, and its parts: between marks of dopants and mixtures, and in brackets."""
    words = [w for w in re.split(r"[\s,;=+]+", plain(text)) if w]
    parts = [
        p
        for w in words
        for p in (w, *re.split(r"[:·⋅•/@|-]", w), *re.split(r"[:@|]|/(?!\d)", w), *re.findall(r"[^()]+", w))
    ]
    return tuple({p.strip(".:·*-") for p in parts} - {""})


def in_text(text: str) -> list[str]:
    """The words of a text that are chemical formulas, in order, each once."""
    words = (w.strip(".,;:") for w in text.split())
    return [w for w in dict.fromkeys(words) if not w.isdigit() and readable(w)]


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
    text = spelled_out(normalise(formula))
    dry = re.sub(r"·\(?[\dxnmyz./]*\)?H2O$", "", text)
    elements = set(atoms)
    if elements == {"H", "O"}:
        return "water" if text.endswith("H2O") else "a peroxide" if reduced(formula) == "H1O1" else "a hydroxide"
    if len(elements) == 1:
        return "an element"
    if elements <= COMMON:
        rules = VOCABULARY["organic"]
        return next((name for pattern, name in rules if re.search(pattern, text)), "an organic compound")
    for pattern, name in VOCABULARY["anions"]:
        if re.search(pattern, dry):
            return name
    if "C" in elements and "H" in elements:
        return "an organometallic compound"
    salt = re.sub(r"\(?NH4\)?\d*", "", dry)  # ammonium is a cation here, not a nitride
    rest = set(composition(salt)) if readable(salt) else elements
    if {"H", "O"} <= rest:
        return "an acid" if salt.startswith("H") else "a hydroxide"
    return next((name for symbol, name in VOCABULARY["binary"].items() if symbol in rest), "an alloy")


def with_names(formula: str, *, hidden: str = "") -> str:
    """The formula with the names of its telling elements; an unreadable one is not shown where something is hidden."""
    if not readable(formula):
        return "another compound" if hidden else formula
    atoms = composition(formula)
    telling = [s for s in atoms if s not in COMMON] or list(atoms)
    # The name of an elemental target is its element's name.
    alone = set(composition(hidden)) if hidden and len(composition(hidden)) == 1 else set()
    names = " ".join(NAMES[s] for s in telling if s not in alone)
    return f"{normalise(formula)} ({names})" if names else normalise(formula)
