"""One claim of a stage, put to a test: what `claims` of its metrics holds, and the paper's table prints."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALPHA = 0.05  # of a p-value after Holm


@dataclass(frozen=True)
class Claim:
    """A statement, the number that decides it, and the verdict."""

    claim: str
    value: float
    low: float  # 95 % interval
    high: float
    threshold: float
    unit: str
    verdict: str  # PASS, FAIL; STRONG where a stage says what that means
    note: str

    @classmethod
    def of(
        cls, claim: str, interval: Mapping[str, Any], *, threshold: float, passed: bool, unit: str = "", note: str
    ) -> "Claim":
        """A claim that passed or failed.

        Args:
            claim: the statement.
            interval: with `value`, `low` and `high`, in `unit`.
            threshold: that the claim is about.
            passed: the verdict.
            unit: as printed.
            note: what to know of it.
        """
        bounds = {key: interval[key] for key in ("value", "low", "high")}
        return cls(claim, **bounds, threshold=threshold, unit=unit, verdict="PASS" if passed else "FAIL", note=note)

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)
