"""Known reactions and public tests of synthesis planning, and what training may not share with a test.

The public tests (Prein et al., 2025) are two: precursor sets (`val.csv`, `test_reduced.csv`) and temperatures
(`train_data.csv`, `val_data.csv`, `test_data.csv`). Of each file only the columns named here are read: others hold the
answer (`matching_precursors` lists candidates that the true set was added to).
"""

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from matalign.data import formulas, reactions
from matalign.data.formulas import telling
from matalign.data.protocols import KINDS, Operation, Protocol

SET_COLUMNS = ("precursor_formulas", "target_formula", "Reaction")
CONDITION_COLUMNS = ("precursor_formulas", "target_formula", "DOI", "Sintering Temperature", "Calcination Temperature")


def known(raw: Path) -> list[Protocol]:
    """All text-mined reactions with readable formulas, one protocol for each composition that a record names.

    They come in an order that does not depend on the files' rows.

    Raises:
        FileNotFoundError: see `reactions.read`.
    """

    def order(p: Protocol) -> tuple:
        heats = [str(p.temperature_C(kind)) for kind in KINDS]
        return p.fractions, sorted(p.precursor_set), p.target_formula, p.doi, p.equation, heats

    return sorted((p for reaction in reactions.read(raw) for p in _by_composition(reaction)), key=order)


def _by_composition(reaction: reactions.Reaction) -> list[Protocol]:
    """Of a record's protocols the first of each composition, weighted by how many these are."""
    first: dict[tuple, Protocol] = {}
    for protocol in filter(_readable, reactions.parse(reaction)[0]):
        first.setdefault(protocol.fractions, protocol)
    return [replace(protocol, weight=1 / len(first)) for protocol in first.values()]


def _readable(protocol: Protocol) -> bool:
    try:
        return bool(protocol.fractions and protocol.precursor_set)
    except ValueError:
        return False


def precursor_test(file: Path) -> list[Protocol]:
    """Rows of `val.csv` or `test_reduced.csv`, `SET_COLUMNS` alone; ValueError: an unreadable formula."""
    rows = _rows(file, SET_COLUMNS)
    return [_test_row(file, target, precursors, reaction=reaction) for precursors, target, reaction in rows]


def condition_test(file: Path) -> list[Protocol]:
    """Rows of `train_`, `val_` or `test_data.csv`, `CONDITION_COLUMNS` alone; raises as `precursor_test`."""
    protocols = []
    for precursors, target, doi, sintering_C, calcination_C in _rows(file, CONDITION_COLUMNS):
        steps = (Operation("sintered", float(sintering_C)), Operation("calcined", float(calcination_C)))
        doi = doi.strip().lower()
        protocols.append(_test_row(file, ast.literal_eval(target)[0], precursors, doi=doi, operations=steps))
    return protocols


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple]:
    table = pd.read_csv(file, usecols=list(columns), na_filter=False)
    return table[list(columns)].itertuples(index=False, name=None)


def _test_row(file: Path, target: str, precursors: str, **known: object) -> Protocol:
    """A row of a public test; it names no method."""
    values = {"doi": "", "method": "", "operations": (), **known}
    listed = tuple(ast.literal_eval(precursors))
    row = Protocol(target_formula=target, target_names=(), precursors=listed, **values)
    if not _readable(row):
        raise ValueError(f"{file}: target {target!r} or one of its precursors {precursors} is no chemical formula")
    return row


def proposals(file: Path, test: Iterable[Protocol]) -> list[list[frozenset[str]] | None]:
    """Ranked precursor sets that a language model proposed for targets of a test, each set once.

    Args:
        file: `proposed_<model>.json`: a list of records {target, ground_truth, response}.
        test: rows of `precursor_test`, found by target and true set, as the file may hold others and lack some.

    Returns:
        Of each row the sets, spelled as `Protocol.precursor_set`; None if the file lacks it. A name that is no formula
        stays as it stands, and is never right.
    """
    records = json.loads(file.read_text(encoding="utf-8"))
    known = {(r["target"], frozenset(map(_spelled, r["ground_truth"]))): r["response"] for r in records}
    found = (known.get((row.target_formula, row.precursor_set)) for row in test)
    return [sets if sets is None else list(dict.fromkeys(frozenset(map(_spelled, s)) for s in sets)) for sets in found]


def _spelled(name: object) -> str:
    try:
        return formulas.anhydrous(str(name))
    except ValueError:
        return str(name)


def without(
    rows: Iterable[Protocol],
    test: Iterable[Protocol],
    *,
    system: bool = False,
    reaction: bool = False,
    doi: bool = False,
) -> list[Protocol]:
    """The protocols that share none of the chosen keys with a test: chemical system, reaction string, DOI."""
    test = list(test)
    systems = {r.system for r in test} if system else set()
    equations = {r.equation for r in test} - {""} if reaction else set()
    dois = {r.doi for r in test} - {""} if doi else set()
    return [r for r in rows if r.system not in systems and r.equation not in equations and r.doi not in dois]


def distinct(rows: Iterable[Protocol]) -> list[Protocol]:
    """Solid-state protocols, one a (system, precursors), which bring all the target's telling elements, no others."""
    first: dict[tuple, Protocol] = {}
    for row in rows:
        brought = [telling(formulas.symbols(p)) for p in row.precursor_set]
        complete = frozenset().union(*brought) == telling(row.system)
        if row.method == "solid-state" and all(brought) and complete:
            first.setdefault((row.system, row.precursor_set), row)
    return list(first.values())
