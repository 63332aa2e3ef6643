"""What the benchmarks share: two or more sides timed in turn, a comparison of ours with a peer, the table, the figure.

A comparison is a plain dict, as it stands in `results/bench/bench.json`: `what` is measured in which `unit`, whether
more or less of it is `better`, the names of `ours` and the `peer`, and their values, one a repeat; values at the same
place were taken one right after the other. The ratio says how many times ours is ahead of the peer, below 1: behind.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
from tqdm import tqdm

from matalign.report import style

Comparison = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Of all benchmarks of one run."""

    profile: str  # whose curated crystals
    threads: int
    seconds: float  # that each tower trains
    seeds: int  # trainings of each tower
    started: str  # names the run, for what a killed one has finished


def alternate(
    sides: Mapping[str, Callable[[], Any]], *, repeats: int, desc: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that each side takes, all sides once in each repeat, so that a drift of the machine meets them all.

    A first round, to warm up, is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in tqdm(range(repeats + 1), desc=desc):
        for name, side in sides.items():
            start = clock()
            side()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def compare(what: str, unit: str, *, better: str, ours: tuple[str, list], peer: tuple[str, list]) -> Comparison:
    """A comparison from (name, values) of both sides; better: ``more`` or ``less``."""
    names = {"ours": ours[0], "peer": peer[0]}
    row = {"what": what, "unit": unit, "better": better, **names, "ours_values": ours[1], "peer_values": peer[1]}
    return row | {"ratios": ratios(row), "ratio": median(ratios(row))}


def rates(what: str, unit: str, work: int, seconds: Mapping[str, list[float]], ours: str) -> list[Comparison]:
    """Ours against each other side of `alternate`, in units of `work` a second."""
    speed = {name: [work / s for s in values] for name, values in seconds.items()}
    peers = [name for name in speed if name != ours]
    return [compare(what, unit, better="more", ours=(ours, speed[ours]), peer=(p, speed[p])) for p in peers]


def ratios(row: Comparison) -> list[float]:
    """How many times ours is ahead, repeat by repeat."""
    pairs = zip(row["ours_values"], row["peer_values"], strict=True)
    return [a / b if row["better"] == "more" else b / a for a, b in pairs]


def verdict(row: Comparison) -> str:
    """Ahead or behind by how much; level where the repeats disagree about which."""
    low, high = min(row["ratios"]), max(row["ratios"])
    if low > 1:
        return f"ahead, {row['ratio']:.3g} times"
    return f"behind, {1 / row['ratio']:.3g} times" if high < 1 else "level"


def spread(values: Iterable[float]) -> str:
    """Median and range, ``2.5 [2, 3]``; three digits."""
    values = list(values)
    return f"{_digits(median(values))} [{_digits(min(values))}, {_digits(max(values))}]"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(bench: Mapping[str, Any]) -> pd.DataFrame:
    """The printed table: median and range over repeats."""
    return pd.DataFrame(
        {
            "what": f"{row['what']} ({row['unit']})",
            "ours": f"{row['ours']}: {spread(row['ours_values'])}",
            "peer": f"{row['peer']}: {spread(row['peer_values'])}",
            "ratio": spread(row["ratios"]),
            "verdict": verdict(row),
        }
        for row in rows(bench)
    )


def rows(bench: Mapping[str, Any]) -> list[Comparison]:
    """All comparisons, in the order of the benchmarks."""
    return [row for part in bench.values() for row in part["comparisons"]]


def figure(bench: Mapping[str, Any]) -> style.Drawing:
    """How many times ours is ahead of each peer, median and range, on a logarithmic axis."""
    style.use()
    table = rows(bench)
    fig = style.Drawing(figsize=(style.PAGE_IN, 0.5 + 0.28 * len(table)), layout="constrained")
    ax = fig.subplots()
    colours = {"ahead": style.COLOURS["structure"], "behind": style.COLOURS["scratch"], "level": "#888888"}
    for y, row in enumerate(table):
        colour = colours[verdict(row).partition(",")[0]]
        ax.plot([min(row["ratios"]), max(row["ratios"])], [y, y], color=colour, solid_capstyle="butt")
        ax.plot(row["ratio"], y, color=colour, marker=style.ARMS["structure"].marker)
    ax.axvline(1, color="#888888", lw=0.8, ls=":", zorder=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(range(len(table)), [f"{row['what']}\n{row['ours']} / {row['peer']}" for row in table])
    ax.set(xlabel="times ahead of the peer", ylim=(len(table) - 0.5, -0.5))
    return fig
