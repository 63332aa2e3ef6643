"""A function a figure: metrics as the stages wrote them in, a matplotlib Figure out.

Nothing is computed here but positions on the page: values, intervals and counts come from the metrics.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from matalign import quantities
from matalign.report.style import (
    COLOURS,
    COLUMN_IN,
    PAGE_IN,
    Metrics,
    Row,
    arm,
    bars,
    beyond_structure,
    curves,
    legend,
    ordered,
    panels,
    retrieval_rows,
)

LOSS_COLOURS = {"proposal": "#D55E00", "proposal-noself": "#000000", "pairwise": "#0072B2"}

TARGETS = [q.column for q in quantities.TARGETS]
CURVES = (quantities.ENERGY, quantities.GAP)  # what the learning curve shows
DEFECTS = ["pristine", "vacancy", "substitution", "interstitial", "planar_fault"]


def curation(metrics: Metrics) -> Figure:
    """What curation kept and what it left out, with the reason."""
    counts = {k: v for k, v in metrics["counts"].items() if isinstance(v, int | float) and not isinstance(v, bool)}
    skipped = sorted(metrics["skipped"], key=lambda r: -r["rows"])[:12]
    height = 0.5 + 0.16 * max(len(counts), len(skipped), 1)
    fig, ((kept, left),) = panels(1, 2, width=PAGE_IN, height=height, width_ratios=[1, 1])
    _log_bars(kept, [k.replace("_", " ") for k in counts], list(counts.values()), "#0072B2")
    _log_bars(left, [f"{r['source']}: {r['reason']}" for r in skipped], [r["rows"] for r in skipped], "#D55E00")
    kept.set(xlabel="kept (count)")
    left.set(xlabel="skipped (rows)")
    return fig


def _log_bars(ax: Axes, labels: list[str], values: list[float], colour: str) -> None:
    ax.barh(range(len(values)), values, color=colour, height=0.7)
    ax.set_yticks(range(len(values)), labels)
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(0, 8 * max([1, *values]))
    for i, value in enumerate(values):
        ax.annotate(f"{value:,.0f}", (value, i), xytext=(2, 0), textcoords="offset points", va="center", fontsize=6.5)


def training(metrics: Metrics) -> Figure:
    """Contrastive loss on training and validation materials, and the learned temperature, by epoch."""
    history = metrics["history"]
    epoch = [h["epoch"] for h in history]
    fig, ((loss, temperature),) = panels(1, 2, width=COLUMN_IN, height=1.55)
    marker = "o" if len(epoch) < 12 else ""
    loss.plot(epoch, [h["loss_train"] for h in history], marker=marker, color="#D55E00", label="training")
    loss.plot(epoch, [h["loss_val"] for h in history], marker=marker, color="#0072B2", label="validation")
    loss.axvline(metrics["best_epoch"], color="#888888", lw=0.8, ls=":", zorder=0)
    loss.set(xlabel="epoch", ylabel="loss (nat)")
    loss.legend()
    temperature.plot(epoch, [h["temperature"] for h in history], marker=marker, color="#009E73")
    temperature.set(xlabel="epoch", ylabel="temperature")
    for ax in (loss, temperature):
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def proposal_loss_faults(defects: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Two defects of the proposal's loss: what perfect alignment costs, and how an easy pair starves a hard one.

    Args:
        defects: as from `losses.proposal_loss_faults`.
    """
    floor, starvation = defects["floor"], defects["starvation"]
    fig, ((cost, gradient),) = panels(1, 2, width=COLUMN_IN, height=1.9)
    styles = dict(zip(sorted({r["modalities"] for r in floor}), ["-", "--", ":"], strict=False))
    for (loss, colour), (modalities, line) in itertools.product(LOSS_COLOURS.items(), styles.items()):
        rows = [r for r in floor if (r["loss"], r["modalities"]) == (loss, modalities)]
        cost.plot([r["temperature"] for r in rows], [r["value"] for r in rows], color=colour, ls=line)
        if loss == "proposal":
            at = (rows[0]["temperature"], rows[0]["value"])
            cost.annotate(f"$M$ = {modalities}", at, xytext=(0, 1.5), textcoords="offset points", fontsize=6.5)
    cost.set_xscale("log")
    cost.set(xlabel="temperature", ylabel="loss (nat)", ylim=(-0.04, 1.2))
    for loss, colour in LOSS_COLOURS.items():
        rows = [r for r in starvation if r["loss"] == loss]
        gradient.plot([r["cosine"] for r in rows], [r["gradient"] for r in rows], color=colour, label=loss)
    gradient.set_yscale("log")
    gradient.tick_params(axis="y", which="minor", length=0)
    gradient.set(xlabel="cosine crystal–text", ylabel="gradient at image")
    legend(fig, [gradient], columns=3)
    return fig


def learning_curve(metrics: Metrics, *, metric: str = "MAE") -> Figure:
    """Error against the share of labels, cohort A, from the structure alone, on the split with the most label shares.

    One panel a target of those with the most shares there.
    """
    rows = [r for r in metrics["results"] if r["metric"] == metric and r["cohort"] == "A" and r["target"] in TARGETS]
    split = widest_split(rows)
    rows = [r for r in rows if r["split"] == split and not beyond_structure([r["arm"]])]
    shares = {t: sorted({r["label_percent"] for r in rows if r["target"] == t}) for t in TARGETS}
    widest = max(map(len, shares.values()))
    targets = [t for t in CURVES if shares[t] and len(shares[t]) == widest]
    fig, axes = panels(1, max(len(targets), 1), width=COLUMN_IN, height=2.2)
    for ax, target in zip(axes[0], targets, strict=False):
        curves(ax, [r for r in rows if r["target"] == target], x="label_percent")
        unit = next(r["unit"] for r in rows if r["target"] == target)
        percents = shares[target]
        ax.set_xscale("log")
        ax.set_xticks(percents, [f"{p:g}" for p in percents])
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set(xlabel="labels (%)", ylabel=f"{quantities.of(target).symbol} {metric}" + (f" ({unit})" if unit else ""))
        ax.set_xlim(percents[0] / 1.4, percents[-1] * 1.4)
    legend(fig, axes[0], columns=2)
    return fig


def fusion(metrics: Metrics, *, target: str = quantities.ENERGY, metric: str = "MAE") -> Figure:
    """Error of fused inference beside that from the structure alone, one panel a cell that has it, each cohort's apart.

    Arms that see the structure alone stand above the line.
    """
    rows = [r for r in metrics["results"] if (r["target"], r["metric"]) == (target, metric) and r["arm"] != "dummy"]
    cells = {(r["cohort"], r["split"], r["label_percent"]) for r in rows if beyond_structure([r["arm"]])}
    rows = [r for r in rows if (r["cohort"], r["split"], r["label_percent"]) in cells]
    names = ordered(r["arm"] for r in rows)
    names = [*(n for n in names if not beyond_structure([n])), *beyond_structure(names)]
    fig, axes = panels(1, max(len(cells), 1), width=PAGE_IN, height=0.75 + 0.17 * len(names), sharey=True)
    for ax, (cohort, split, percent) in zip(axes[0], sorted(cells), strict=False):
        here = [r for r in rows if (r["cohort"], r["split"], r["label_percent"]) == (cohort, split, percent)]
        for r in here:
            look, error = arm(r["arm"]), bars([r["value"]], [r["low"]], [r["high"]])
            ax.errorbar(r["value"], names.index(r["arm"]), xerr=error, color=look.colour, marker=look.marker, capsize=2)
        seeds = sorted({r["seeds"] for r in here})
        ax.axhline(len(names) - len(beyond_structure(names)) - 0.5, color="#888888", lw=0.8, ls=":", zorder=0)
        ax.set_xlabel(f"{quantities.of(target).symbol} {metric}" + (f" ({here[0]['unit']})" if here[0]["unit"] else ""))
        ax.set_title(
            f"cohort {cohort}, {split} {percent:g} %\nseeds: {'–'.join(map(str, seeds[:: max(1, len(seeds) - 1)]))}"
        )
    axes[0, 0].set_yticks(range(len(names)), [arm(name).label for name in names])
    axes[0, 0].set_ylim(max(len(names), 1) - 0.5, -0.5)
    return fig


def widest_split(rows: Iterable[Row]) -> str:
    """The split evaluated at the most shares of labels; of equals, the first by name."""
    shares: dict[str, set[float]] = {}
    for r in rows:
        shares.setdefault(r["split"], set()).add(r["label_percent"])
    return min(shares, key=lambda s: (-len(shares[s]), s)) if shares else ""


def parity(metrics: Metrics, *, unit: str = "eV/atom") -> Figure:
    """Predicted against true value of the test materials, with the diagonal."""
    true, predicted = np.asarray(metrics["parity"]["true"]), np.asarray(metrics["parity"]["predicted"])
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.1)
    both = np.concatenate([true, predicted]) if len(true) else np.array([0.0, 1.0])
    margin = 0.05 * (np.ptp(both) or 1.0)
    ends = [both.min() - margin, both.max() + margin]
    ax.plot(ends, ends, color="#888888", lw=0.8, zorder=1)
    ax.scatter(true, predicted, s=5, lw=0, alpha=0.45, color=COLOURS["pretrained"], zorder=2)
    ax.set(xlabel=f"true $E_f$ ({unit})", ylabel=f"predicted $E_f$ ({unit})", xlim=ends, ylim=ends, aspect="equal")
    return fig


def calibration(metrics: Metrics) -> Figure:
    """Share of the test labels that intervals hold against the share meant; observed metals against P(metal).

    Hollow, dashed: of chemical systems that no training material has.
    """
    fig, ((held, metal),) = panels(1, 2, width=PAGE_IN, height=2.4)
    for ax in (held, metal):
        ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, zorder=1)
    for quantity in quantities.TARGETS:
        for materials in ("all", "new chemical systems"):
            rows = [r for r in metrics["coverage"] if (r["target"], r["materials"]) == (quantity.column, materials)]
            if not rows:
                continue
            value, every = [r["value"] for r in rows], materials == "all"
            held.errorbar(
                [r["nominal"] for r in rows],
                value,
                yerr=bars(value, [r["low"] for r in rows], [r["high"] for r in rows]),
                color=quantity.colour,
                marker=quantity.marker,
                mfc=quantity.colour if every else "white",
                ls="-" if every else "--",
                lw=0.8,
                label=quantity.symbol if every else None,
            )
    held.set(xlabel="nominal coverage", ylabel="test labels held", xlim=(0.45, 1), ylim=(0, 1.03))
    rows = metrics["reliability"]
    n = max(1, sum(r["n"] for r in rows))
    at = [r["probability"] for r in rows], [r["observed"] for r in rows]
    metal.plot(*at, color="#009E73", lw=0.8, zorder=2)
    metal.scatter(*at, s=[4 + 120 * r["n"] / n for r in rows], color="#009E73", lw=0, alpha=0.8, zorder=3)
    metal.set(xlabel="P(metal)", ylabel="share of metals", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    legend(fig, [held], columns=4)
    return fig


def retrieval(metrics: Metrics, *, query: str = "structure", target: str = "text", metric: str = "MRR") -> Figure:
    """MRR by mask level, full gallery and hard gallery."""
    rows = retrieval_rows(metrics["results"])
    rows = [r for r in rows if (r["query"], r["target"], r["metric"]) == (query, target, metric)]
    galleries = [g for g in ("full", "hard") if any(r["gallery"] == g for r in rows)]
    fig, axes = panels(1, max(len(galleries), 1), width=COLUMN_IN, height=2.05, sharey=True)
    for ax, gallery in zip(axes[0], galleries, strict=False):
        here = [r for r in rows if r["gallery"] == gallery]
        curves(ax, here, x="level")
        levels = sorted({r["level"] for r in here})
        ax.set_xticks(levels, [f"L{level}" for level in levels])
        sizes = sorted({r["n_gallery"] for r in here})
        ax.set(
            title=f"{gallery} gallery ({'–'.join(f'{n:,}' for n in sizes)})", xlabel="mask level", ylim=(-0.03, 1.03)
        )
    axes[0, 0].set_ylabel(f"{metric}, {query} → {target}")
    legend(fig, axes[0], columns=2)
    return fig


def gallery_curve(metrics: Metrics, *, metric: str = "MRR") -> Figure:
    """MRR from structure to protocol against the size of the gallery, a panel a mask level."""
    rows = [r for r in retrieval_rows(metrics.get("gallery_curve", [])) if r["metric"] == metric]
    levels = sorted({r["level"] for r in rows})
    fig, axes = panels(1, max(len(levels), 1), width=COLUMN_IN, height=2.1, sharey=True)
    for ax, level in zip(axes[0], levels, strict=False):
        curves(ax, [r for r in rows if r["level"] == level], x="n_gallery")
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(title=f"L{level}", xlabel="materials in the gallery", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel(f"{metric}, structure → text")
    legend(fig, axes[0], columns=2)
    return fig


def reliability(
    metrics: Metrics, *, arms: tuple[str, ...] = ("image", "image_composition", "image_structure")
) -> Figure:
    """Share of right answers against stated confidence; the diagonal is perfect calibration."""
    rows = metrics.get("reliability", [])
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.3)
    ax.plot([0, 1], [0, 1], color="#888888", lw=0.8, zorder=1)
    for name in ordered(r["arm"] for r in rows if r["arm"] in arms):
        points = sorted((r for r in rows if r["arm"] == name), key=lambda r: r["bin_low"])
        look, n = arm(name), sum(r["n"] for r in points)
        at = [r["confidence"] for r in points], [r["accuracy"] for r in points]
        ax.plot(*at, color=look.colour, lw=0.8, zorder=2)
        size = [4 + 120 * r["n"] / n for r in points]
        ax.scatter(*at, s=size, color=look.colour, marker=look.marker, lw=0, alpha=0.8, label=look.label, zorder=3)
    ax.set(xlabel="confidence", ylabel="share of right answers", xlim=(0.15, 1.03), ylim=(-0.03, 1.03))
    legend(fig, [ax], columns=2)
    return fig


def defects(metrics: Metrics) -> Figure:
    """Macro-F1 of every arm, and recall of every defect class, above it the share that the noise leaves visible."""
    rows = {r["arm"]: r for r in metrics["results"] if r["metric"] == "macro_F1"}
    names = ordered(rows)
    fig, ((score, recall),) = panels(1, 2, width=PAGE_IN, height=0.85 + 0.155 * len(names), width_ratios=[1, 1.2])
    for i, name in enumerate(names):
        r, look = rows[name], arm(name)
        error = bars([r["value"]], [r["low"]], [r["high"]])
        score.errorbar(r["value"], i, xerr=error, color=look.colour, marker=look.marker, capsize=2, lw=0)
        score.errorbar(r["value"], i, xerr=error, color=look.colour, elinewidth=0.9, capsize=2)
    score.axvline(1 / len(DEFECTS), color="#888888", lw=0.8, ls=":", zorder=0)
    score.set_yticks(range(len(names) + 1), [*(arm(name).label for name in names), "visible above the noise"])
    score.set(xlabel="macro-F1 (dotted: 1/5)", xlim=(0, 1), ylim=(len(names) + 0.5, -0.5))
    table = np.full((len(names) + 1, len(DEFECTS)), np.nan)
    for r in metrics["recall"]:
        if r["arm"] in names:
            table[names.index(r["arm"]), DEFECTS.index(r["defect"])] = r["value"]
    for r in metrics["visibility"]:
        table[-1, DEFECTS.index(r["defect"])] = r["visible"]
    sns.heatmap(
        table,
        ax=recall,
        vmin=0,
        vmax=1,
        cmap="cividis",
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 6.5},
        xticklabels=["pristine", "vacancy", "substi-\ntution", "inter-\nstitial", "planar\nfault"],
        yticklabels=False,
        cbar_kws={"label": "recall"},
    )
    recall.tick_params(axis="x", rotation=0)
    return fig


def dose(
    metrics: Metrics,
    *,
    arms: tuple[str, ...] = ("context", "image", "image_composition", "image_structure", "image_other"),
) -> Figure:
    """Macro-F1 against the electron dose of the test images; doses held out from training are shaded.

    The dashed line is the share of images with a defect whose difference to pristine exceeds the noise: in the others
    there is nothing to see, and an answer is a guess.
    """
    rows = metrics["dose"]
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.3)
    names = [name for name in ordered(r["arm"] for r in rows) if name in arms]
    for name in names:
        points = [r for r in rows if r["arm"] == name]
        shift = 1 + 0.02 * (names.index(name) - len(names) / 2)  # beside one another, so that intervals can be told
        at = [{**r, "x": shift * np.sqrt(r["dose_low"] * r["dose_high"]), "value": r["macro_F1"]} for r in points]
        curves(ax, [{"low": r["value"], "high": r["value"], **r} for r in at], x="x")
    visible = sorted(metrics.get("dose_visible", []), key=lambda r: r["dose_low"])
    if visible:
        middle = [np.sqrt(r["dose_low"] * r["dose_high"]) for r in visible]
        ax.plot(
            middle, [r["visible"] for r in visible], color="#444444", ls="--", lw=0.9, label="visible above the noise"
        )
    ax.set_xscale("log")
    for low, high in sorted({(r["dose_low"], r["dose_high"]) for r in rows if r.get("held_out")}):
        ax.axvspan(low, high, color="#EEEEEE", lw=0, zorder=0)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="dose (e/Å$^2$)", ylabel="macro-F1", ylim=(0, 1))
    legend(fig, [ax], columns=2)
    return fig


def atlas(points: np.ndarray, group: np.ndarray, *, names: Sequence[str], colours: Sequence[str]) -> Figure:
    """The map of a space.

    Args:
        points: (n, 2) places; only who is near whom means something.
        group: (n,) which colour each has.
        names: of the groups.
        colours: of the groups.
    """
    fig, axes = panels(1, 1, width=PAGE_IN, height=4.2)
    ax = axes[0, 0]
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        xy = points[group == row]
        if len(xy):
            size = np.clip(20_000 / len(points), 1, 12)
            ax.scatter(*xy.T, s=size, lw=0, color=colour, label=f"{name} ({len(xy):,})", rasterized=True)
    ax.set(aspect="equal", xticks=[], yticks=[])
    sns.despine(ax=ax, left=True, bottom=True)
    fig.legend(loc="outside right upper", markerscale=np.sqrt(20 / size))
    return fig


def recommendation(metrics: Metrics) -> Figure:
    """Precursor sets: exact set among the first k. Temperatures: mean absolute error, by kind and split."""
    fig, ((ranked, heat),) = panels(1, 2, width=PAGE_IN, height=2.4)
    for name in ordered(r["arm"] for r in metrics["precursors"]):
        points = sorted((r for r in metrics["precursors"] if r["arm"] == name), key=lambda r: r["k"])
        look, x, y = arm(name), [r["k"] for r in points], [r["value"] for r in points]
        drawn = {"color": look.colour, "marker": look.marker, "label": look.label}
        if points[0]["published"]:
            ranked.plot(x, y, ls=":", **drawn)
        else:
            ranked.errorbar(x, y, bars(y, (r["low"] for r in points), (r["high"] for r in points)), **drawn)
    ranked.set(xlabel="sets proposed", ylabel="exact set among them", xticks=[1, 5, 10], ylim=(0, 1))
    _temperature_bars(heat, metrics["temperatures"])
    for ax in (ranked, heat):
        ax.legend(*ax.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return fig


def _temperature_bars(ax: Axes, rows: list[Row]) -> None:
    """One group of bars a kind of temperature and split."""
    places = sorted({(r["split"], r["kind"]) for r in rows}, key=lambda p: (p[0], p[1] != "sintering"))
    names = ordered(r["arm"] for r in rows)
    for j, name in enumerate(names):
        here = [r for r in rows if r["arm"] == name]
        x = [places.index((r["split"], r["kind"])) + 0.8 * ((j + 0.5) / len(names) - 0.5) for r in here]
        value = [r["value"] for r in here]
        ax.bar(x, value, width=0.8 / len(names), color=arm(name).colour, label=arm(name).label)
        ends = [[r["value"] if r[end] is None else r[end] for r in here] for end in ("low", "high")]
        ax.errorbar(x, value, bars(value, *ends), fmt="none", ecolor="#444444", elinewidth=0.6)
    ax.set_xticks(range(len(places)), [f"{kind}\n{split}" for split, kind in places])
    ax.set(ylabel="MAE (°C)")
