"""How a material was made: the record of one synthesis, its rendering as text, and the mask levels.

A record holds target, precursors, and operations with temperature, time, atmosphere and medium. The text is *rendered*
from those fields with a closed vocabulary, so nothing but a precursor's formula carries chemistry into it, and the mask
levels take that away step by step:

    L0  everything, the target and the reaction included
    L1  the target is not named; precursors by formula and element names, no amounts, no reaction
    L2  each precursor by its class ("a carbonate")
    L3  conditions only
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from matalign.data import formulas
from matalign.data.formulas import VOCABULARY, plain, precursor_class, same_composition, with_names

METHODS = ("solid-state", "sol-gel")
LEVELS = (0, 1, 2, 3)

ATMOSPHERES, MEDIA, VERBS = (tuple(map(tuple, VOCABULARY[name])) for name in ("atmospheres", "media", "verbs"))
WORD_FORMULA, TYPES = VOCABULARY["formulas"], VOCABULARY["types"]
KINDS = ("sintering", "calcination")
STEPS = {"sintered": "sintering", "calcined": "calcination", "annealed": "calcination"}  # gives 99.8 % of the labels


def closed(words: Iterable[str], vocabulary: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Words of a closed list, sorted, each once; "other" for those that it does not know."""
    plain_words = (plain(word).strip().lower() for word in words)
    found = (next((w for pattern, w in vocabulary if re.fullmatch(pattern, word)), "other") for word in plain_words)
    return tuple(sorted(set(found)))


def verb_of(action: str) -> str:
    """The verb of a word for what was done; "" if it is unknown."""
    return next((verb for stem, verb in VERBS if re.search(stem, action.lower())), "")


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
    """One way to make one target, of whatever source; two of the same content are equal, whatever file and row."""

    doi: str  # lower case
    method: str  # one of METHODS
    target_formula: str  # variables filled in, as the source writes it
    target_names: tuple[str, ...]  # its other spellings and names in the paper
    precursors: tuple[str, ...]  # normalised formulas, sorted
    operations: tuple[Operation, ...]
    reaction: str = ""  # balanced, with amounts
    mp_id: str | None = None  # named by the source (solid-state, single target), unchecked
    protocol_id: str = field(default="", compare=False)  # source, row of the record and number of the target
    source: str = field(default="", compare=False)
    where: str = field(default="", compare=False)  # file and row, for messages
    weight: float = field(default=1.0, compare=False)  # in training: 1 / targets of its record

    @property
    def max_temperature_C(self) -> float:
        """The highest temperature of all steps; NaN if none is named."""
        return max((o.temperature_C for o in self.operations if o.temperature_C is not None), default=math.nan)

    @cached_property
    def fractions(self) -> tuple[tuple[str, float], ...]:
        """(element, atomic fraction) of the target, alphabetical; ValueError if unreadable."""
        return formulas.fractions(self.target_formula)

    @property
    def system(self) -> frozenset[str]:
        """The target's elements."""
        return frozenset(symbol for symbol, _ in self.fractions)

    @cached_property
    def precursor_set(self) -> frozenset[str]:
        """The precursors as `formulas.anhydrous` spells them; ValueError if one is unreadable."""
        return frozenset(map(formulas.anhydrous, self.precursors))

    @cached_property
    def equation(self) -> str:
        """The reaction with the terms of each side sorted."""
        sides = (sorted(" ".join(term.split()) for term in side.split(" + ")) for side in self.reaction.split("=="))
        return " == ".join(" + ".join(side) for side in sides)

    def temperature_C(self, kind: str) -> float:
        """Temperature of sintering or calcination (`KINDS`), as the public test reads it; NaN where there is none.

        That of the last step that sinters and names one, or of the last that calcines or anneals.
        """
        named = [o.temperature_C for o in self.operations if STEPS.get(o.verb) == kind and o.temperature_C is not None]
        return named[-1] if named else math.nan

    def columns(self) -> dict[str, Any]:
        """What the tables of protocols hold of it: all but the operations, and the text at each level."""
        return {
            "protocol_id": self.protocol_id,
            "doi": self.doi,
            "method": self.method,
            "target_formula": self.target_formula,
            "precursors": list(self.precursors),
            "max_temperature_C": self.max_temperature_C,
            **{f"text_L{level}": render(self, level=level) for level in LEVELS},
        }


def render(protocol: Protocol, *, level: int) -> str:
    """The protocol as text, at a mask level.

    Lower case but for formulas: a language model that lower-cases (Co = CO) finds the element names beside them.

    Args:
        level: 0 as rendered; 1 target masked; 2 precursors by class; 3 conditions only. Amounts and the reaction stand
            at 0 alone.

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
