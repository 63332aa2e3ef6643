"""Rows left out, counted: nothing is dropped silently."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3  # rows named for each reason


@dataclass
class Skipped:
    """Rows left out, by source and reason."""

    rows: Counter = field(default_factory=Counter)
    first: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, source: str, reason: str, message: str, *, rows: int = 1) -> None:
        """Count; keep the message (file, row, value) if it is one of the first."""
        self.rows[source, reason] += rows
        if len(self.first[source, reason]) < EXAMPLES:
            self.first[source, reason].append(message)

    def table(self) -> list[dict[str, Any]]:
        """Rows {source, reason, rows, first}, sorted."""
        return [
            {"source": source, "reason": reason, "rows": count, "first": self.first[source, reason]}
            for (source, reason), count in sorted(self.rows.items())
        ]
