"""Golden numbers of the `tiny` pipeline: reading, comparing, and writing them anew after a version was raised."""

import json
import math
import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
RTOL = 1e-5


def number(metrics: dict[str, Any], table: str, where: dict[str, Any], field: str) -> float:
    """The one number of a metrics file: a field (dots go deeper) of the row of a table that `where` picks."""
    rows = metrics[table] if isinstance(metrics[table], list) else [metrics[table]]
    (value,) = [row for row in rows if where.items() <= row.items()]
    for name in field.split("."):
        value = value[name]
    return value


def differences(kind: str, folder: Path) -> list[str]:
    """Numbers of a kind that a folder of metrics has otherwise, one line each."""
    about = json.loads((FOLDER / f"{kind}.json").read_text())
    metrics = json.loads((folder / f"{about['metrics']}.json").read_text())
    found = []
    for kept in about["numbers"]:
        got = number(metrics, kept["table"], kept["where"], kept["field"])
        if not math.isclose(got, kept["value"], rel_tol=RTOL, abs_tol=1e-12):
            found.append(f"{kept['table']} {kept['where']} {kept['field']}: {kept['value']!r} -> {got!r}")
    return found


def write(folder: Path) -> None:
    """Set every golden number to what a folder of metrics has now."""
    for file in sorted(FOLDER.glob("*.json")):
        about = json.loads(file.read_text())
        metrics = json.loads((folder / f"{about['metrics']}.json").read_text())
        for kept in about["numbers"]:
            kept["value"] = number(metrics, kept["table"], kept["where"], kept["field"])
        file.write_text(json.dumps(about, indent=1) + "\n")


def look_up(metrics: Mapping[str, Any], metric: str) -> float:
    """The number at `metric`, as `locate` writes it; ``-`` and ``1-`` before it are applied, ``mean`` is over rows.

    Raises:
        ValueError: not such a place, or not one row of the metrics.
    """
    if not (parts := re.fullmatch(r"(-|1-|mean )?([\w.]+)\[(.*)\]\.(\w+)", metric)):
        raise ValueError(f"{metric!r}: expected rows[name=value; ...].key")
    how, rows, where, key = parts.groups()
    wanted = [item.partition("=")[::2] for item in where.split("; ") if item]
    table = reduce(getitem, rows.split("."), metrics)
    found = [row[key] for row in table if all(str(row.get(name)) == value for name, value in wanted)]
    if how == "mean ":
        return sum(found) / len(found)
    if len(found) != 1:
        raise ValueError(f"{metric!r}: expected one row, found {len(found)}")
    return {"-": -found[0], "1-": 1 - found[0], None: found[0]}[how]


if __name__ == "__main__":
    from projects import finished

    write(finished().project.results / "metrics")
