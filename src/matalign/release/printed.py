"""How the command prints rows: a table for people, JSON or CSV for programs."""

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 60  # letters of a cell of a table for people


def records(columns: "Mapping[str, Sequence]") -> list[dict[str, Any]]:
    """Columns of equal length as rows of plain values."""
    lists = (column.tolist() if hasattr(column, "tolist") else column for column in columns.values())
    return [dict(zip(columns, values)) for values in zip(*lists)]


def with_files(names: list[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that begin with the file that each is about."""
    return [{"file": name, **row} for name, row in zip(names, rows, strict=True)]


def ranges(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions for people: each value with its interval in one cell."""
    out = []
    for row in rows:
        bounded = [name.removesuffix("_low") for name in row if name.endswith("_low")]
        text = {name: f"{row[name]:.3g} [{row[f'{name}_low']:.3g}, {row[f'{name}_high']:.3g}]" for name in bounded}
        rest = {name: value for name, value in row.items() if not name.startswith((*bounded, "warning"))}
        out.append(rest | text | {"warning": row["warning"]})
    return out


def show(rows: list[dict[str, Any]], *, as_json: bool, as_csv: bool) -> None:
    """Print a table."""
    if as_json:
        print(json.dumps(plain(rows), indent=1))
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if as_csv:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif rows:
        cells = [columns, *([cell(name, row.get(name)) for name in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for line in cells:
            print(" ".join(text.rjust(width) for text, width in zip(line, widths)))


def cell(column: str, value: Any) -> str:
    """A value of a table for people; degrees are whole."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if column.endswith("_C") else f"{value:.3g}"
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH or column == "warning" else text[: WIDTH - 1] + "…"


def plain(value: Any) -> Any:
    """A value as JSON has it: tables as lists of rows, null where there is no number, six decimals."""
    if hasattr(value, "to_dict"):
        value = value.to_dict("records")
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
