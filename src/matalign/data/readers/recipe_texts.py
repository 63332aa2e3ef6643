"""Synthesis protocols as people write them -> text as the text tower takes it, or a structured record.

Compatibility characters become plain ones (NFKC), byte order marks and soft hyphens go; what is no text is named with
its place.
"""

import codecs
import json
import unicodedata
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from matalign import quantities
from matalign.data import protocols
from matalign.data.formulas import composition, normalise, plain, spells
from matalign.data.protocols import Operation, Protocol

MAX_CHARACTERS = 20_000  # of a text; the text tower reads its first 128 tokens
MAX_TEMPERATURE_C = 3500.0
SUFFIXES = (".txt", ".json")  # of files of a protocol
FIELDS = ("target", "precursors", "method", "operations", "doi")
STEP = ("action", "temperature", "time", "atmosphere", "medium")


def read_protocol(item: Any, *, level: int = 1) -> str:
    """A protocol as the text tower takes it.

    A structured one is rendered as the curated sets' are, at a mask level; a free text stays as it is written, but for
    blanks, compatibility characters and unseen marks, and nothing in it is masked.

    Args:
        item: text; path of a .txt or .json file, of which one word that ends so is one too; or fields, see `record`.
        level: mask level of a structured one (`protocols.render`); models are trained at level 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty text, one of more than `MAX_CHARACTERS`, or with a sign that is no text, which is named
            with its place; see `record`.
    """
    if isinstance(item, PathLike) or (isinstance(item, str) and item.endswith(SUFFIXES) and len(item.split()) == 1):
        path = Path(item)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a protocol")
        try:
            return read_protocol(load(path), level=level)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    if isinstance(item, Mapping):
        return protocols.render(record(item), level=level)
    if not isinstance(item, str):
        raise ValueError(f"{type(item).__name__} is no protocol; expected a text, a path or a dict of fields")
    if len(item) > MAX_CHARACTERS:
        raise ValueError(
            f"a text of {len(item):,} characters; at most {MAX_CHARACTERS:,} are taken: give the synthesis alone"
        )
    return _text(item)


def _text(written: str) -> str:
    for at, sign in enumerate(written):
        category = unicodedata.category(sign)
        if category in ("Cc", "Co", "Cn", "Cs") and not sign.isspace():
            line, column = written.count("\n", 0, at) + 1, at - written.rfind("\n", 0, at)
            before = " ".join(written[max(0, at - 20) : at].split())
            kinds = {"Cc": "a control character", "Co": "a sign of one font alone", "Cn": "of no character"}
            raise ValueError(
                f"no readable text: U+{ord(sign):04X}, {kinds.get(category, 'half a character')}, in line {line}, "
                f"character {column}, after {before!r}"
            )
    text = " ".join(plain(written).split())
    if not text:
        raise ValueError("an empty text; expected a synthesis protocol")
    return text


def load(path: Path) -> str | dict[str, Any]:
    """The text of a file, or fields of a .json file, in UTF-8, or UTF-16 by its mark; ValueError: neither, too long."""
    if path.stat().st_size > 4 * MAX_CHARACTERS:
        size = path.stat().st_size
        raise ValueError(f"a text of {size:,} bytes; at most {MAX_CHARACTERS:,} characters are taken")
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, what = content.count(b"\n", 0, error.start) + 1, content[error.start : error.start + 1].hex()
        raise ValueError(
            f"not {'UTF-16' if wide else 'UTF-8'} text: byte {what} in line {line}, byte {error.start} of the file; "
            "save it as UTF-8"
        ) from None
    if path.suffix.lower() != ".json":
        return text
    try:
        fields = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, str | dict):
        raise ValueError(f"a JSON {type(fields).__name__}; expected an object of fields")
    return fields


def record(fields: Mapping[str, Any]) -> Protocol:
    """A structured protocol as a record.

    Args:
        fields:
            `precursors`: formulas, a list or parted by ";"; asked for.
            `target`: formula.
            `method`: solid-state (if not given) or sol-gel.
            `operations`: list of steps, each with any of `action` ("calcined"), `temperature_C` or `temperature_K`,
            `time_h`, `time_min` or `time_d`, `atmosphere` and `medium` (each a word, a list or parted by ";"; those
            that `protocols.ATMOSPHERES` and `MEDIA` do not know are rendered as "other"). A protocol of one step may
            have these fields itself.
            `doi`.

    Raises:
        ValueError: an unknown field, method or action; no precursors; an unreadable target, or one that is among the
            precursors; an unknown unit, an absurd temperature or time; a sign that is no text.
    """
    flat = "operations" not in fields
    steps = [fields] if flat else fields["operations"] or []
    if not isinstance(steps, list | tuple):
        raise ValueError(f"operations {steps!r} are no list of steps")
    _check_names(fields, FIELDS + STEP if flat else FIELDS)
    for step in () if flat else steps:
        _check_names(step, STEP, of="operation")
    method = _word(fields, "method") or "solid-state"
    if method not in protocols.METHODS:
        raise ValueError(f"unknown method {method!r}; one of {', '.join(protocols.METHODS)}")
    target = normalise(_word(fields, "target"))
    if target:
        composition(target)
    precursors = tuple(sorted({normalise(word) for word in _words(fields, "precursors")}))
    if not precursors:
        raise ValueError("no precursors; expected formulas, as BaCO3; TiO2")
    if target and any(spells(word, target) for word in precursors):
        raise ValueError(f"the target {target} is among its precursors")
    operations = tuple(operation for step in steps if (operation := _operation(step)) is not None)
    return Protocol(_word(fields, "doi").lower(), method, target, (), precursors, operations)


def _check_names(fields: Any, allowed: tuple[str, ...], *, of: str = "") -> None:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{of} {fields!r} is no dict of fields")
    measured = [name for name in allowed if name in quantities.UNITS]
    known = {*allowed, *(f"{name}_{unit}" for name in measured for unit in ("unit", *quantities.UNITS[name]))}
    if unknown := [key for key in fields if key not in known]:
        raise ValueError(f"unknown field {unknown[0]!r}{of and f' of an {of}'}; known are {', '.join(allowed)}")


def _operation(step: Mapping[str, Any]) -> Operation | None:
    """None where the step says nothing."""
    temperature, hours = quantities.given(step, "temperature"), quantities.given(step, "time")
    if temperature is not None and not quantities.ABSOLUTE_ZERO_C < temperature <= MAX_TEMPERATURE_C:
        raise ValueError(f"a temperature of {temperature:g} °C; expected at most {MAX_TEMPERATURE_C:g} °C")
    if hours is not None and hours <= 0:
        raise ValueError(f"a time of {hours:g} h; expected more than 0")
    action = _word(step, "action").lower()
    verb = protocols.verb_of(action)
    if action and not verb:
        raise ValueError(f"unknown action {action!r}; one of {', '.join(verb for _, verb in protocols.VERBS)}")
    atmospheres = protocols.closed(_words(step, "atmosphere"), protocols.ATMOSPHERES)
    media = protocols.closed(_words(step, "medium"), protocols.MEDIA)
    if not verb and temperature is None and hours is None and not atmospheres and not media:
        return None
    verb = verb or ("treated" if temperature is None else "heated")
    return Operation(verb, temperature, hours, atmospheres, media)


def _word(fields: Mapping[str, Any], name: str) -> str:
    """A field as plain text; "" where there is none."""
    value = str(fields.get(name) or "")
    try:
        return _text(value) if value.strip() else ""
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _words(fields: Mapping[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    parts = value.split(";") if isinstance(value, str) else value or ()
    if not isinstance(parts, list | tuple):
        raise ValueError(f"{name} {value!r} is no list of words")
    return [word for part in parts if (word := _word({name: part}, name))]
