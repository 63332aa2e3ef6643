"""One claim of a stage, put to a test: what `claims` of its metrics holds, and paper and READMEs print."""

import re
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from typing import Any

ALPHA = 0.05  # of a p-value after Holm


def claim(
    statement: str,
    interval: Mapping[str, Any],
    *,
    question: str,
    metric: str,
    threshold: float = 0.0,
    passed: bool,
    unit: str = "",
    control: str = "",
    note: str,
) -> dict[str, Any]:
    """A row {claim, question, metric, value, low, high (95 % interval), threshold, unit, verdict, control, note}.

    Args:
        statement: what is claimed.
        interval: with `value`, `low` and `high`, in `unit`.
        question: that the claim answers.
        metric: where the value stands in the stage's metrics, as from `locate`.
        threshold: that the claim is about.
        passed: the verdict, PASS or FAIL.
        unit: as printed.
        control: what would score alike if the claim's reason were not the true one, with its figure; "": none.
        note: what to know of it.
    """
    bounds = {key: interval[key] for key in ("value", "low", "high")}
    found = {"threshold": threshold, "unit": unit, "verdict": "PASS" if passed else "FAIL"}
    return {
        "claim": statement,
        "question": question,
        "metric": metric,
        **bounds,
        **found,
        "control": control,
        "note": note,
    }


def locate(rows: str, key: str, **where: Any) -> str:
    """``rows[name=value; ...].key``: a number of a stage's metrics, in the one row of a list that has these values."""
    return f"{rows}[{'; '.join(f'{name}={value}' for name, value in where.items())}].{key}"


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
