"""A printed table: its cells by one pivot, its numbers by one format, and the files it is written to."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from matalign.cache import write_json
from matalign.report import style
from matalign.report.style import Row

MISSING = "–"
STEPS = ("label_percent", "level", "dose_low", "n_gallery")  # numbers that rows are sorted by


@dataclass(frozen=True)
class Table:
    """Long rows and, of a table that is printed, its cells; the paper's source has the captions."""

    rows: pd.DataFrame  # tidy, numbers as numbers
    header: list[str] = field(default_factory=list)  # a line break inside a cell is \n
    cells: list[list[str]] = field(default_factory=list)
    note: str = ""  # for the caption, of numbers that are in no metrics of the paper's own profile


def number(value: float | None, *, digits: int = 3) -> str:
    """A number in fixed format, with a true minus sign; "–" for none."""
    if value is None or value != value:
        return MISSING
    return f"{value:,.{digits}f}".replace("-", "−")


def digits_of(unit: str) -> int:
    """Decimals that a number of this unit is printed with."""
    return 1 if unit in ("%", "°C") else 3


def interval(row: Row, *, value: str = "value", unit: str = "") -> str:
    """``value [low, high]`` in the decimals of a unit."""
    digits = digits_of(unit)
    low, high = number(row.get("low"), digits=digits), number(row.get("high"), digits=digits)
    return number(row[value], digits=digits) + ("" if MISSING in (low, high) else f" [{low}, {high}]")


def with_unit(text: str, unit: str) -> str:
    """A number followed by its unit, if it has both."""
    return f"{text} {unit}" if unit and text != MISSING else text


def span(values: Iterable[float]) -> str:
    """``5`` or ``1–5``: from the least to the greatest of some counts."""
    values = set(values)
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows sorted by what is not a number and by `STEPS`; columns as they come."""
    table = pd.DataFrame(list(rows))
    keys = [c for c in table if not pd.api.types.is_numeric_dtype(table[c]) or c in STEPS]
    return table.sort_values(keys, kind="stable", ignore_index=True) if keys else table


def pivot(
    rows: Iterable[Row],
    across: Sequence[str],
    columns: Iterable[tuple],
    *,
    down: str = "arm",
    show: Callable[[Row], str] = interval,
) -> list[list[str]]:
    """Cells of a printed table of rows, one a cell: keys `across` name its column, of those of `columns`.

    The key `down` names its line: arms as ordered, by their labels, others as they come.
    """
    cells = {(r[down], *(r[key] for key in across)): show(r) for r in rows}
    found, columns = dict.fromkeys(line for line, *_ in cells), list(columns)
    lines = {n: style.ARMS[n].label for n in style.ordered(found)} if down == "arm" else {n: str(n) for n in found}
    return [[label, *(cells.get((line, *c), MISSING) for c in columns)] for line, label in lines.items()]


def write(tables: Mapping[str, Table], folder: Path) -> None:
    """Write the long rows of each table as `<name>.csv`, of claims as `claims.json` too, and all printed forms."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.rows.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
        if name == "claims":
            rows = table.rows.to_json(orient="records", double_precision=15)
            write_json(folder / "claims.json", json.loads(rows))
    printed = {name: {"header": t.header, "cells": t.cells, "note": t.note} for name, t in tables.items() if t.header}
    arms: dict[str, Any] = {name: look.label for name, look in style.ARMS.items()}
    write_json(folder / "tables.json", {**printed, "arms": arms})


def markdown(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A GitHub table, for a README."""
    lines = [[c.replace("|", r"\|") for c in line] for line in (header, ["---"] * len(header), *cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
