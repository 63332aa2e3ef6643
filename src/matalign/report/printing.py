"""A printed table: its cells by one pivot, its numbers by one format, and the files it is written to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from matalign.cache import write_json
from matalign.report import style
from matalign.report.style import Metrics, Row, ordered

MISSING = "–"
INTERVAL = "Brackets: 95 % interval, bootstrap over {unit} and seeds."
SYNTHETIC = "Numbers come from the synthetic sample."
STEPS = ("label_percent", "level", "dose_low", "n_gallery")  # numbers that rows are sorted by


@dataclass(frozen=True)
class Table:
    """A table: long rows, and its printed form."""

    name: str  # of its files
    caption: str
    rows: pd.DataFrame  # tidy, numbers as numbers
    header: list[str]  # a line break inside a cell is \n
    cells: list[list[str]]


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
    """``5`` or ``1–5``: from the least to the greatest of some counts; "–" of none."""
    values = set(values)
    if not values:
        return MISSING
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def counted(rows: Iterable[Row], column: str, noun: str) -> str:
    """``1–5 seeds``, ``1 seed``: the span of a column of counts."""
    text = span(r[column] for r in rows)
    return f"{text} {noun}" + ("" if text == "1" else "s")


def caption(text: str, metrics: Metrics, *, unit: str = "chemical systems") -> str:
    """A caption with the interval explained (unit "": the table has none) and synthetic data named."""
    notes = [INTERVAL.format(unit=unit)] if unit else []
    return " ".join([text, *notes, *([SYNTHETIC] if metrics["synthetic"] else [])])


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
    lines: Iterable[Any] | None = None,
    show: Callable[[Row], str] = interval,
) -> list[list[str]]:
    """Cells of a printed table.

    Args:
        rows: one a cell.
        across: keys whose values name a column.
        columns: their values, in order.
        down: the key whose values name a line; an arm goes by its label.
        lines: its values, in order; default: arms as ordered, others as they come.
        show: a row as it is printed.
    """
    rows = list(rows)
    by = {(r[down], *(r[key] for key in across)): r for r in rows}
    found = dict.fromkeys(r[down] for r in rows)
    lines = lines if lines is not None else ordered(found) if down == "arm" else found
    columns = list(columns)
    return [
        [
            style.arm(line).label if down == "arm" else str(line),
            *(show(by[line, *c]) if (line, *c) in by else MISSING for c in columns),
        ]
        for line in lines
    ]


def difference(row: Row) -> str:
    """The two arms of a paired difference."""
    return f"{style.arm(row['arm']).label} − {style.arm(row['baseline']).label}"


def write(tables: Iterable[Table], folder: Path) -> None:
    """Write the long rows of each table as `<name>.csv`, and all printed forms as `tables.json`.

    Args:
        tables: what to write.
        folder: made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printed = {}
    for table in tables:
        table.rows.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g", lineterminator="\n")
        printed[table.name] = {"caption": table.caption, "header": table.header, "cells": table.cells}
    write_json(folder / "tables.json", printed)


def tex(table: Table) -> str:
    """A LaTeX `table` environment (booktabs; Unicode signs, as LuaLaTeX and XeLaTeX read them)."""
    printed = pd.DataFrame(table.cells, columns=[name.replace("\n", " ") for name in table.header])
    return printed.to_latex(index=False, escape=True, caption=table.caption, label=f"tab:{table.name}")


def markdown(table: Table) -> str:
    """The printed form as a GitHub table, for a README."""
    flat = [[c.replace("\n", "<br>").replace("|", r"\|") for c in row] for row in [table.header, *table.cells]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [flat[0], ["---"] * len(flat[0]), *flat[1:]]) + "\n"
