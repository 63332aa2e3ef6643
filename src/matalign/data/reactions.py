"""Text-mined synthesis records: the readers of their files, and the one parser that makes protocols of them.

Both sets (solid-state: Kononova et al., Sci. Data 6, 203, 2019; sol-gel: its companion of 2020) and a user's own JSON
lines come as one kind of record. Conditions may be null, a scalar or a list; temperatures are in °C, C or K, or without
a unit (then °C, as in all of the solid-state file).
"""

import json
import lzma
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matalign.data import protocols, sources
from matalign.data.formulas import COMMON, composition, normalise, readable, spells
from matalign.data.protocols import METHODS, Operation, Protocol
from matalign.elements import NAMES
from matalign.quantities import ABSOLUTE_ZERO_C, HOURS

MAX_TEMPERATURE_C = 2500.0  # above: absurd


@dataclass(frozen=True)
class Reaction:
    """A synthesis record as a source gives it, unchecked: `parse` reads it."""

    source: str
    row: int
    where: str  # file and row, for messages
    method: str  # solid-state or sol-gel
    record: Mapping[str, Any]


class Skip(Exception):
    """A record, or one of its targets, that is not used; the message is the reason, to be counted."""


def read(raw: Path) -> Iterator[Reaction]:
    """All synthesis records under a folder. Raises FileNotFoundError: the folder holds no source."""
    return sources.every(raw, [("protocols.jsonl", lines), ("solid_state", mined), ("sol_gel", mined)])


def mined(folder: Path) -> Iterator[Reaction]:
    """The text-mined reactions of one method, which the folder is named after; mp-ids are in the solid-state ones."""
    for file in sorted(folder.glob("*.json.xz")):
        with lzma.open(file, "rt") as stream:
            for number, record in enumerate(json.load(stream)["reactions"]):
                yield Reaction(folder.name, number, f"{file.name}:{number}", folder.name.replace("_", "-"), record)


def lines(file: Path) -> Iterator[Reaction]:
    """A file of one JSON record a line, in the solid-state schema; `synthesis_type` "sol-gel" makes it one of those."""
    with open(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: expected a JSON record, got {line[:60]!r} ({error})") from None
            method = "sol-gel" if record.get("synthesis_type") == "sol-gel" else "solid-state"
            yield Reaction(file.parent.name, number, f"{file.name}:{number}", method, record)


def named_mp_ids(folder: Path) -> set[str]:
    """The mp-ids that the solid-state reactions name as targets; `mvc-` ids, of a closed project, are left out."""
    named = (reaction.record["target"].get("mp_id") or "" for reaction in mined(folder))
    return {mp_id for mp_id in named if mp_id.startswith("mp-")}


def parse(reaction: Reaction, *, max_temperature_C: float = MAX_TEMPERATURE_C) -> tuple[list[Protocol], list[str]]:
    """Protocols of one record, one for each target it names, and why others were left out.

    Returns:
        The protocols, each with a readable target, their ids in order; and a reason for the record, or for each target,
        that was skipped.

    Raises:
        ValueError: an unknown method.
    """
    if reaction.method not in METHODS:
        raise ValueError(f"method {reaction.method!r}; one of {', '.join(METHODS)}")
    record = reaction.record
    target, targets = record.get("target") or {}, targets_of(record)
    try:
        if not targets:
            raise Skip("no target")
        if re.search(r"O[x-zδ](?![a-z])", normalise(target.get("material_formula") or "")):
            raise Skip("oxygen content unknown")
        operations = tuple(o for o in map(_operation, record.get("operations") or ()) if o.verb)
        heats = [o.temperature_C for o in operations if o.temperature_C is not None]
        if any(not ABSOLUTE_ZERO_C < heat <= max_temperature_C for heat in heats):
            raise Skip("absurd temperature")
        precursors = _precursors(record)
    except Skip as skip:
        return [], [str(skip)]
    spellings = (target.get(key) or "" for key in ("material_string", "material_formula", "material_name"))
    names = tuple(dict.fromkeys(s.strip() for s in spellings if s.strip()))
    additives = {a for a in target.get("additives") or () if a in NAMES}
    found, reasons = [], []
    for formula in targets:
        try:
            used = _used(precursors, formula, additives, series=len(targets) > 1)
        except Skip as skip:
            reasons.append(str(skip))
            continue
        found.append(
            Protocol(
                doi=(record.get("doi") or "").strip().lower(),
                method=reaction.method,
                target_formula=formula,
                target_names=tuple(n for n in names if n != formula),
                precursors=used,
                operations=operations,
                reaction=record.get("reaction_string") or "",
                mp_id=(target.get("mp_id") or None) if len(targets) == 1 else None,
                protocol_id=f"{reaction.source}-{reaction.row:05d}-{len(found)}",
                source=reaction.source,
                where=reaction.where,
            )
        )
    return found, reasons


def targets_of(record: Mapping[str, Any]) -> list[str]:
    """Formulas of a record's targets, variables filled in, each once; of several it is a series."""
    return list(dict.fromkeys(t for t in record.get("targets_string") or () if t))


def _precursors(record: Mapping[str, Any]) -> tuple[str, ...]:
    written = (p.get("material_formula") or p.get("material_string") or "" for p in record.get("precursors") or ())
    precursors = tuple(sorted(set(map(normalise, written))))
    if not any(precursors):
        raise Skip("no precursors")
    return precursors


def _used(precursors: tuple[str, ...], formula: str, additives: set[str], *, series: bool) -> tuple[str, ...]:
    """Of one target; a series lists those of all its members: one that shares no metal with this is another's."""
    if not re.fullmatch(r"[A-Za-z0-9.()\[\]]+", formula) or not readable(formula):  # variables, negative amounts
        raise Skip("unreadable target formula")
    if series:
        elements = set(composition(formula)) | additives
        metals = {p: set(composition(p)) - COMMON if readable(p) else set() for p in precursors}
        precursors = tuple(p for p in precursors if not metals[p] or metals[p] & elements)
    if any(spells(p, formula) for p in precursors):
        raise Skip("target occurs in a precursor")
    if not precursors:
        raise Skip("no precursors")
    return precursors


def _operation(step: Mapping[str, Any]) -> Operation:
    verb, conditions = protocols.verb_of(step.get("token") or ""), step.get("conditions") or {}
    if not verb or step.get("type") == "StartingSynthesis":
        verb = protocols.TYPES.get(step.get("type") or "", "treated")
    given = {name: _listed(value) for name, value in conditions.items()}
    temperatures = [_celsius(*highest) for highest in map(_highest, given.get("heating_temperature", ())) if highest]
    hours = [_hours(*highest) for highest in map(_highest, given.get("heating_time", ())) if highest]
    return Operation(
        verb=verb,
        temperature_C=max(temperatures, default=None),
        hours=max(filter(None, hours), default=None),
        atmospheres=protocols.closed(map(str, given.get("heating_atmosphere", ())), protocols.ATMOSPHERES),
        media=protocols.closed(map(str, given.get("mixing_media", ())), protocols.MEDIA),
    )


def _listed(value: Any) -> list[Any]:
    return [] if value is None or value == "" else value if isinstance(value, list) else [value]


def _highest(entry: Any) -> tuple[float, str] | None:
    """The highest number of a condition, and its unit; None where it has none."""
    if not isinstance(entry, Mapping):
        return (float(entry), "") if isinstance(entry, int | float) else None
    values = [v for v in (entry.get("max_value"), *(entry.get("values") or ())) if isinstance(v, int | float)]
    return (max(values), entry.get("units") or "") if values else None


def _celsius(value: float, units: str) -> float:
    units = units.replace("°", "").replace("º", "").strip() or "C"
    if units not in ("C", "K"):
        raise Skip(f"temperature unit {units!r} unknown")
    return value if units == "C" else value + ABSOLUTE_ZERO_C


def _hours(value: float, units: str) -> float | None:
    unit = units.strip().lower() or "h"
    factor = next((HOURS[u][0] for u in sorted(HOURS, key=len, reverse=True) if unit.startswith(u)), None)
    return None if factor is None or value <= 0 else value * factor
