"""One claim of a stage, put to a test: what `claims` of its metrics holds, and paper and READMEs print."""

from collections.abc import Mapping
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
        interval: with `value`, `low` and `high`, in `unit`.
        metric: where the value stands in the stage's metrics, as from `locate`.
        control: what would score alike if the claim's reason were not the true one, with its figure; "": none.
    """
    row = {"claim": statement, "question": question, "metric": metric}
    row |= {key: interval[key] for key in ("value", "low", "high")}
    row |= {"threshold": threshold, "unit": unit, "verdict": "PASS" if passed else "FAIL"}
    return row | {"control": control, "note": note}


def locate(rows: str, key: str, **where: Any) -> str:
    """``rows[name=value; ...].key``: a number of a stage's metrics, in the one row of a list that has these values."""
    return f"{rows}[{'; '.join(f'{name}={value}' for name, value in where.items())}].{key}"
