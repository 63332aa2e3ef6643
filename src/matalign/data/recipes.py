"""Known reactions and public tests of synthesis planning, in one spelling, and what training may not share with a test.

The public tests (Prein et al., 2025) are two: precursor sets (`val.csv`, `test_reduced.csv`) and temperatures
(`train_data.csv`, `val_data.csv`, `test_data.csv`). Of each file only the columns named here are read: others hold the
answer (`matching_precursors` lists candidates that the true set was added to).
"""

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from matalign import elements
from matalign.data import protocols, sources
from matalign.data.protocols import COMMON, NUMBER

SET_COLUMNS = ("precursor_formulas", "target_formula", "Reaction")
CONDITION_COLUMNS = ("precursor_formulas", "target_formula", "DOI", "Sintering Temperature", "Calcination Temperature")
KINDS = ("sintering", "calcination")
STEPS = {"sintered": "sintering", "calcined": "calcination", "annealed": "calcination"}  # gives 99.8 % of the labels
MAX_TEMPERATURE_C = 2500.0  # above: absurd
WATER = r"·((\d+(\.\d+)?|\d+/\d+)?[xnmyz]?\(?H2O\)?[xnmyz]?)$"


@dataclass(frozen=True)
class Recipe:
    """One target and how it was made."""

    formula: str  # as the source writes it
    fractions: tuple[tuple[str, float], ...]  # (element, atomic fraction), alphabetical
    precursors: frozenset[str]  # as `precursor` spells them
    reaction: str  # as `same_reaction` spells it
    doi: str = ""  # lower case
    method: str = ""
    sintering_C: float = math.nan
    calcination_C: float = math.nan
    weight: float = 1.0  # 1 / targets of its reaction

    @property
    def system(self) -> frozenset[str]:
        """The set of elements."""
        return frozenset(symbol for symbol, _ in self.fractions)


@lru_cache(maxsize=100_000)
def precursor(formula: str) -> str:
    """A spelling that one precursor's formulas share: reduced, elements in alphabetical order, without crystal water.

    >>> precursor("NH4H2AsO4") == precursor("AsH6NO4"), precursor("Ce(NO3)3·6H2O")
    (True, 'Ce1N3O9')

    Raises:
        ValueError: not a formula.
    """
    text = protocols.normalise(formula)
    dry = re.sub(WATER, "", text)
    return protocols.reduced(dry or text)


@lru_cache(maxsize=100_000)
def symbols(spelling: str) -> frozenset[str]:
    """Elements of a precursor as `precursor` spells it."""
    return frozenset(re.findall(r"[A-Z][a-z]?", spelling))


@lru_cache(maxsize=100_000)
def fractions(formula: str) -> tuple[tuple[str, float], ...]:
    """(element, atomic fraction), alphabetical.

    Raises:
        ValueError: not a formula.
    """
    atoms = protocols.composition(formula)
    total = sum(atoms.values())
    return tuple((symbol, float(atoms[symbol] / total)) for symbol in sorted(atoms))


def vector(composition: Iterable[tuple[str, float]]) -> np.ndarray:
    """(119,) atomic fractions by atomic number."""
    row = np.zeros(len(elements.VALUES))
    for symbol, share in composition:
        row[NUMBER[symbol]] = share
    return row


def telling(system: Iterable[str]) -> frozenset[str]:
    """The elements that a precursor must bring: all but those of water, air and ligands."""
    return frozenset(system) - COMMON


def same_reaction(text: str) -> str:
    """A reaction string with the terms of each side sorted."""
    sides = (sorted(" ".join(term.split()) for term in side.split(" + ")) for side in text.split("=="))
    return " == ".join(" + ".join(side) for side in sides)


def known(raw: Path) -> list[Recipe]:
    """All text-mined reactions with readable formulas, one recipe for each composition that a reaction names.

    They come in an order that does not depend on the files' rows.

    Raises:
        FileNotFoundError: see `sources.reactions`.
    """
    found = [recipe for reaction in sources.reactions(raw) for recipe in _recipes(reaction)]
    return sorted(found, key=_order)


def _order(recipe: Recipe) -> tuple:
    heats = str(recipe.sintering_C), str(recipe.calcination_C)
    return recipe.fractions, sorted(recipe.precursors), recipe.formula, recipe.doi, recipe.reaction, heats


def _recipes(reaction: sources.Reaction) -> list[Recipe]:
    parsed, _ = protocols.parse(reaction.record, method=reaction.method, max_temperature_C=MAX_TEMPERATURE_C)
    found: dict[tuple, Recipe] = {}
    for p in parsed:
        try:
            composition, precursors = fractions(p.target_formula), frozenset(map(precursor, p.precursors))
        except ValueError:
            continue
        named = composition, precursors, same_reaction(p.reaction), p.doi, p.method
        found.setdefault(composition, Recipe(p.target_formula, *named, *temperatures(p.operations)))
    return [replace(recipe, weight=1 / len(found)) for recipe in found.values()]


def temperatures(operations: Sequence[protocols.Operation]) -> tuple[float, float]:
    """Sintering and calcination temperature in °C as the public test reads them; NaN where there is none.

    Of the steps that name a temperature, the last that sinters, and the last that calcines or anneals.
    """
    found = dict.fromkeys(KINDS, math.nan)
    for step in operations:
        kind = STEPS.get(step.verb)
        if kind and step.temperature_C is not None:
            found[kind] = step.temperature_C
    return found["sintering"], found["calcination"]


def precursor_test(file: Path) -> list[Recipe]:
    """Rows of `val.csv` or `test_reduced.csv`; only `SET_COLUMNS` are read."""
    table = pd.read_csv(file, usecols=list(SET_COLUMNS), na_filter=False)
    rows = zip(*(table[column] for column in SET_COLUMNS), strict=True)
    return [Recipe(t, fractions(t), _listed(p), same_reaction(r)) for p, t, r in rows]


def condition_test(file: Path) -> list[Recipe]:
    """Rows of `train_data.csv`, `val_data.csv` or `test_data.csv`; only `CONDITION_COLUMNS` are read."""
    table = pd.read_csv(file, usecols=list(CONDITION_COLUMNS), na_filter=False)
    rows = zip(*(table[column] for column in CONDITION_COLUMNS), strict=True)
    found = []
    for p, t, doi, sintering, calcination in rows:
        formula = ast.literal_eval(t)[0]
        heats = float(sintering), float(calcination)
        found.append(Recipe(formula, fractions(formula), _listed(p), "", doi.strip().lower(), "", *heats))
    return found


def _listed(text: str) -> frozenset[str]:
    return frozenset(precursor(p) for p in ast.literal_eval(text))


def without(
    recipes: Iterable[Recipe],
    test: Iterable[Recipe],
    *,
    system: bool = False,
    reaction: bool = False,
    doi: bool = False,
) -> list[Recipe]:
    """The recipes that share none of the chosen keys with a test: chemical system, reaction string, DOI."""
    test = list(test)
    systems = {r.system for r in test} if system else set()
    reactions = {r.reaction for r in test} - {""} if reaction else set()
    dois = {r.doi for r in test} - {""} if doi else set()
    return [r for r in recipes if r.system not in systems and r.reaction not in reactions and r.doi not in dois]


def distinct(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Solid-state recipes that make their target from all of its telling elements and no others.

    One of each (chemical system, set of precursors): series of one paper count once.
    """
    found: dict[tuple, Recipe] = {}
    for recipe in recipes:
        brought = [telling(symbols(p)) for p in recipe.precursors]
        complete = frozenset().union(*brought) == telling(recipe.system)
        if recipe.method == "solid-state" and all(brought) and complete:
            found.setdefault((recipe.system, recipe.precursors), recipe)
    return list(found.values())
