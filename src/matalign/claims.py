"""One claim of a stage, put to a test: what `claims` of its metrics holds, and the paper's table prints."""

from collections.abc import Mapping
from typing import Any

ALPHA = 0.05  # of a p-value after Holm


def claim(
    statement: str, interval: Mapping[str, Any], *, threshold: float = 0.0, passed: bool, unit: str = "", note: str
) -> dict[str, Any]:
    """A row {claim, value, low, high (95 % interval), threshold, unit, verdict, note}.

    Args:
        statement: what is claimed.
        interval: with `value`, `low` and `high`, in `unit`.
        threshold: that the claim is about.
        passed: the verdict, PASS or FAIL.
        unit: as printed.
        note: what to know of it.
    """
    bounds = {key: interval[key] for key in ("value", "low", "high")}
    verdict = "PASS" if passed else "FAIL"
    return {"claim": statement, **bounds, "threshold": threshold, "unit": unit, "verdict": verdict, "note": note}
