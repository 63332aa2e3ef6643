"""A function a figure: metrics as the stages wrote them in, a matplotlib Figure out.

Nothing is computed here but positions on the page: values, intervals and counts come from the metrics.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from matalign import quantities
from matalign.report import style
from matalign.report.style import ARMS, COLUMN_IN, PAGE_IN, Metrics, Row, bars, curves, legend, ordered, panels

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
    _log_bars(kept, {k.replace("_", " "): v for k, v in counts.items()}, "kept (count)", "#0072B2")
    _log_bars(left, {f"{r['source']}: {r['reason']}": r["rows"] for r in skipped}, "skipped (rows)", "#D55E00")
    return fig


def _log_bars(ax: Axes, values: Mapping[str, float], what: str, colour: str) -> None:
    drawn = ax.barh(range(len(values)), values.values(), color=colour, height=0.7)
    ax.bar_label(drawn, fmt="{:,.0f}", padding=2, fontsize=6.5)
    ax.set_yticks(range(len(values)), values)
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel=what, xlim=(0, 8 * max([1, *values.values()])))


def training(metrics: Metrics) -> Figure:
    """Contrastive loss on training and validation materials, and the learned temperature, by epoch."""
    history = pd.DataFrame(metrics["history"])
    fig, ((loss, temperature),) = panels(1, 2, width=COLUMN_IN, height=1.55)
    marker = "o" if len(history) < 12 else ""
    loss.plot(history.epoch, history.loss_train, marker=marker, color="#D55E00", label="training")
    loss.plot(history.epoch, history.loss_val, marker=marker, color="#0072B2", label="validation")
    loss.axvline(metrics["best_epoch"], color="#888888", lw=0.8, ls=":", zorder=0)
    loss.set(xlabel="epoch", ylabel="loss (nat)")
    loss.legend()
    temperature.plot(history.epoch, history.temperature, marker=marker, color="#009E73")
    temperature.set(xlabel="epoch", ylabel="temperature")
    for ax in (loss, temperature):
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def proposal_loss_faults(faults: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Two faults of the proposal's loss: what perfect alignment costs, and how an easy pair starves a hard one."""
    import seaborn as sns  # here: its import takes a second

    floor = pd.DataFrame(faults["floor"])
    fig, ((cost, gradient),) = panels(1, 2, width=COLUMN_IN, height=1.9)
    lines = {"hue": "loss", "palette": LOSS_COLOURS, "errorbar": None}
    dashes = dict(zip(sorted(set(floor.modalities)), ["", (3.7, 1.6), (1, 1.65)], strict=True))
    sns.lineplot(floor, x="temperature", y="value", style="modalities", dashes=dashes, ax=cost, legend=False, **lines)
    for m, first in floor[floor.loss == "proposal"].groupby("modalities").first().iterrows():
        at = (first.temperature, first.value)
        cost.annotate(f"$M$ = {m}", at, xytext=(0, 1.5), textcoords="offset points", fontsize=6.5)
    cost.set(xscale="log", xlabel="temperature", ylabel="loss (nat)", ylim=(-0.04, 1.2))
    sns.lineplot(pd.DataFrame(faults["starvation"]), x="cosine", y="gradient", ax=gradient, **lines)
    gradient.tick_params(axis="y", which="minor", length=0)
    gradient.set(yscale="log", xlabel="cosine crystal–text", ylabel="gradient at image")
    gradient.get_legend().remove()
    legend(fig, [gradient], columns=3)
    return fig


def learning_curve(metrics: Metrics, *, metric: str = "MAE") -> Figure:
    """Error against share of labels, cohort A, structure alone, on the split with most shares; a panel a target."""
    rows = [r for r in metrics["results"] if r["metric"] == metric and r["cohort"] == "A" and r["target"] in TARGETS]
    splits = pd.DataFrame(rows, columns=["split", "label_percent"]).groupby("split").label_percent.nunique()
    split = splits.idxmax() if len(splits) else ""  # of equals, the first by name
    rows = [r for r in rows if r["split"] == split and not style.beyond_structure([r["arm"]])]
    shares = {t: sorted({r["label_percent"] for r in rows if r["target"] == t}) for t in TARGETS}
    widest = max(map(len, shares.values()))
    targets = [t for t in CURVES if shares[t] and len(shares[t]) == widest]
    fig, axes = panels(1, max(len(targets), 1), width=COLUMN_IN, height=2.2)
    for ax, target in zip(axes[0], targets, strict=False):
        here, percents = [r for r in rows if r["target"] == target], shares[target]
        curves(ax, here, x="label_percent")
        ax.set_xscale("log")
        ax.set_xticks(percents, [f"{p:g}" for p in percents])
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set(xlabel="labels (%)", ylabel=_error(here[0]), xlim=(percents[0] / 1.4, percents[-1] * 1.4))
    legend(fig, axes[0], columns=2)
    return fig


def _error(row: Row) -> str:
    """An axis of a target's error."""
    return f"{quantities.of(row['target']).symbol} {row['metric']}" + (f" ({row['unit']})" if row["unit"] else "")


def fusion(metrics: Metrics, *, target: str = quantities.ENERGY, metric: str = "MAE") -> Figure:
    """Error of fused inference beside that from the structure alone, one panel a cell that has it, each cohort's apart.

    Arms that see the structure alone stand above the line.
    """
    rows = [r for r in metrics["results"] if (r["target"], r["metric"]) == (target, metric) and r["arm"] != "dummy"]
    cells = {(r["cohort"], r["split"], r["label_percent"]) for r in rows if style.beyond_structure([r["arm"]])}
    rows = [r for r in rows if (r["cohort"], r["split"], r["label_percent"]) in cells]
    names = ordered(r["arm"] for r in rows)
    names = [*(n for n in names if not style.beyond_structure([n])), *style.beyond_structure(names)]
    fig, axes = panels(1, max(len(cells), 1), width=PAGE_IN, height=0.75 + 0.17 * len(names), sharey=True)
    for ax, (cohort, split, percent) in zip(axes[0], sorted(cells), strict=False):
        here = [r for r in rows if (r["cohort"], r["split"], r["label_percent"]) == (cohort, split, percent)]
        for r in here:
            style.dot(ax, r, names.index(r["arm"]), color=ARMS[r["arm"]].colour, marker=ARMS[r["arm"]].marker)
        ax.axhline(len(names) - len(style.beyond_structure(names)) - 0.5, color="#888888", lw=0.8, ls=":", zorder=0)
        seeds = sorted({r["seeds"] for r in here})
        seeds = "–".join(map(str, seeds[:: max(1, len(seeds) - 1)]))
        ax.set(xlabel=_error(here[0]), title=f"cohort {cohort}, {split} {percent:g} %\nseeds: {seeds}")
    axes[0, 0].set_yticks(range(len(names)), [ARMS[name].label for name in names])
    axes[0, 0].set_ylim(max(len(names), 1) - 0.5, -0.5)
    return fig


def parity(metrics: Metrics, *, unit: str = "eV/atom") -> Figure:
    """Predicted against true value of the test materials, with the diagonal."""
    true, predicted = np.asarray(metrics["parity"]["true"]), np.asarray(metrics["parity"]["predicted"])
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.1)
    both = np.concatenate([true, predicted]) if len(true) else np.array([0.0, 1.0])
    margin = 0.05 * (np.ptp(both) or 1.0)
    ends = [both.min() - margin, both.max() + margin]
    style.diagonal(ax, ends)
    ax.scatter(true, predicted, s=5, lw=0, alpha=0.45, color=style.COLOURS["pretrained"], zorder=2)
    ax.set(xlabel=f"true $E_f$ ({unit})", ylabel=f"predicted $E_f$ ({unit})", xlim=ends, ylim=ends, aspect="equal")
    return fig


def calibration(metrics: Metrics) -> Figure:
    """Share of the test labels that intervals hold against the share meant; observed metals against P(metal).

    Hollow, dashed: of chemical systems that no training material has.
    """
    fig, ((held, metal),) = panels(1, 2, width=PAGE_IN, height=2.4)
    style.diagonal(held)
    style.diagonal(metal)
    for q in quantities.TARGETS:
        for every, materials in ((True, "all"), (False, "new chemical systems")):
            rows = [r for r in metrics["coverage"] if (r["target"], r["materials"]) == (q.column, materials)]
            if not rows:
                continue
            look = {"color": q.colour, "marker": q.marker, "mfc": q.colour if every else "white"}
            look |= {"ls": "-" if every else "--", "label": q.symbol if every else None, "lw": 0.8}
            held.errorbar([r["nominal"] for r in rows], [r["value"] for r in rows], yerr=bars(rows), **look)
    held.set(xlabel="nominal coverage", ylabel="test labels held", xlim=(0.45, 1), ylim=(0, 1.03))
    _stated(metal, metrics["reliability"], "probability", "observed", color="#009E73")
    metal.set(xlabel="P(metal)", ylabel="share of metals", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    legend(fig, [held], columns=4)
    return fig


def _stated(ax: Axes, rows: list[Row], x: str, y: str, *, color: str, **look: Any) -> None:
    """What was stated against what came true; the area of a point is its share of the items."""
    n, at = max(1, sum(r["n"] for r in rows)), ([r[x] for r in rows], [r[y] for r in rows])
    ax.plot(*at, color=color, lw=0.8, zorder=2)
    ax.scatter(*at, s=[4 + 120 * r["n"] / n for r in rows], color=color, lw=0, alpha=0.8, zorder=3, **look)


def retrieval(metrics: Metrics, *, query: str = "structure", target: str = "text", metric: str = "MRR") -> Figure:
    """MRR by mask level, full gallery and hard gallery."""
    rows = style.retrieval_rows(metrics["results"])
    rows = [r for r in rows if (r["query"], r["target"], r["metric"]) == (query, target, metric)]
    galleries = [g for g in ("full", "hard") if any(r["gallery"] == g for r in rows)]
    fig, axes = panels(1, max(len(galleries), 1), width=COLUMN_IN, height=2.6, sharey=True)
    for ax, gallery in zip(axes[0], galleries, strict=False):
        here = [r for r in rows if r["gallery"] == gallery]
        curves(ax, here, x="level")
        levels = sorted({r["level"] for r in here})
        ax.set_xticks(levels, [f"L{level}" for level in levels])
        sizes = "–".join(f"{n:,}" for n in sorted({r["n_gallery"] for r in here}))
        ax.set(title=f"{gallery} gallery ({sizes})", xlabel="mask level", yscale="log", ylim=(2e-3, 1.3))
    axes[0, 0].set_ylabel(f"{metric}, {query} → {target}")
    legend(fig, axes[0], columns=2)
    return fig


def gallery_curve(metrics: Metrics, *, metric: str = "MRR") -> Figure:
    """MRR from structure to protocol against the size of the gallery, a panel a mask level."""
    rows = [r for r in style.retrieval_rows(metrics["gallery_curve"]) if r["metric"] == metric]
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


def reliability(metrics: Metrics) -> Figure:
    """Share of right answers against stated confidence; the diagonal is perfect calibration."""
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.3)
    style.diagonal(ax)
    for name in ("image", "image_structure", "image_reference"):
        points = sorted((r for r in metrics["reliability"] if r["arm"] == name), key=lambda r: r["bin_low"])
        look = {"color": ARMS[name].colour, "marker": ARMS[name].marker, "label": ARMS[name].label}
        _stated(ax, points, "confidence", "accuracy", **look)
    ax.set(xlabel="confidence", ylabel="share of right answers", xlim=(0.15, 1.03), ylim=(-0.03, 1.03))
    legend(fig, [ax], columns=2)
    return fig


def defects(metrics: Metrics) -> Figure:
    """Macro-F1 of every arm, and recall of every defect class, above it the share that the noise leaves visible."""
    import seaborn as sns

    rows = {r["arm"]: r for r in metrics["results"] if r["metric"] == "macro_F1"}
    names = ordered(rows)
    fig, ((score, recall),) = panels(1, 2, width=PAGE_IN, height=0.8 + 0.137 * len(names), width_ratios=[1, 1.2])
    for i, name in enumerate(names):
        style.dot(score, rows[name], i, color=ARMS[name].colour, marker=ARMS[name].marker, lw=0, elinewidth=0.9)
    score.axvline(1 / len(DEFECTS), color="#888888", lw=0.8, ls=":", zorder=0)
    score.set_yticks(range(len(names) + 1), [*(ARMS[name].label for name in names), "visible above the noise"])
    score.set(xlabel="macro-F1 (dotted: 1/5)", xlim=(0, 1), ylim=(len(names) + 0.5, -0.5))
    table = pd.DataFrame(np.nan, index=[*names, "visible"], columns=DEFECTS)
    for r in metrics["recall"]:
        table.loc[r["arm"], r["defect"]] = r["value"]
    for r in metrics["visibility"]:
        table.loc["visible", r["defect"]] = r["visible"]
    classes = ["pristine", "vacancy", "substi-\ntution", "inter-\nstitial", "planar\nfault"]
    shown = {"annot": True, "fmt": ".2f", "annot_kws": {"fontsize": 6.5}, "cbar_kws": {"label": "recall"}}
    sns.heatmap(table, ax=recall, vmin=0, vmax=1, cmap="cividis", xticklabels=classes, yticklabels=False, **shown)
    recall.tick_params(axis="x", rotation=0)
    return fig


def dose(metrics: Metrics) -> Figure:
    """Macro-F1 against the electron dose of the test images; doses held out from training are shaded.

    The dashed line is the share of images with a defect whose difference to pristine exceeds the noise: in the others
    there is nothing to see, and an answer is a guess.
    """
    arms = ("context", "image", "image_structure", "image_reference", "reference_other", "reference_view")
    fig, ((ax,),) = panels(1, 1, width=COLUMN_IN, height=2.3)
    rows = metrics["dose"]
    names = [name for name in ordered(r["arm"] for r in rows) if name in arms]
    for i, name in enumerate(names):
        shift = 1 + 0.02 * (i - len(names) / 2)  # beside one another, so that intervals can be told
        points = [{**r, "x": shift * _middle(r), "value": r["macro_F1"]} for r in rows if r["arm"] == name]
        curves(ax, points, x="x")
    visible = sorted(metrics["dose_visible"], key=lambda r: r["dose_low"])
    at = [_middle(r) for r in visible], [r["visible"] for r in visible]
    ax.plot(*at, color="#444444", ls="--", lw=0.9, label="visible above the noise")
    ax.set_xscale("log")
    for low, high in sorted({(r["dose_low"], r["dose_high"]) for r in rows if r["held_out"]}):
        ax.axvspan(low, high, color="#EEEEEE", lw=0, zorder=0)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="dose (e/Å$^2$)", ylabel="macro-F1", ylim=(0, 1))
    legend(fig, [ax], columns=2)
    return fig


def _middle(row: Row) -> float:
    """Of a bin of dose, on its logarithmic axis."""
    return np.sqrt(row["dose_low"] * row["dose_high"])


def recommendation(metrics: Metrics) -> Figure:
    """Precursor sets: exact set among the first k. Temperatures: mean absolute error, by kind and split."""
    fig, ((ranked, heat),) = panels(1, 2, width=PAGE_IN, height=2.4)
    for name in ordered(r["arm"] for r in metrics["precursors"]):
        points, look = sorted((r for r in metrics["precursors"] if r["arm"] == name), key=lambda r: r["k"]), ARMS[name]
        drawn = {"color": look.colour, "marker": look.marker, "label": look.label}
        at = [r["k"] for r in points], [r["value"] for r in points]
        if points[0]["published"]:  # many, and much alike: one entry of the legend
            models = [line for line in ranked.lines if line.get_label() == "language models"]
            ranked.plot(*at, ls=":", **drawn | {"label": "_" if models else "language models"})
        else:
            ranked.errorbar(*at, bars(points), **drawn)
    ranked.set(xlabel="sets proposed", ylabel="exact set among them", xticks=[1, 5, 10], ylim=(0, 1))
    rows = metrics["temperatures"]
    places = sorted({(r["split"], r["kind"]) for r in rows}, key=lambda p: (p[0], p[1] != "sintering"))
    names = ordered(r["arm"] for r in rows)
    for j, name in enumerate(names):  # a group of bars each kind of temperature and split
        here = [r for r in rows if r["arm"] == name]
        x = [places.index((r["split"], r["kind"])) + 0.8 * ((j + 0.5) / len(names) - 0.5) for r in here]
        look = {"color": ARMS[name].colour, "label": ARMS[name].label, "width": 0.8 / len(names)}
        heat.bar(x, [r["value"] for r in here], yerr=bars(here), error_kw={"ecolor": "#444444", "lw": 0.6}, **look)
    heat.set_xticks(range(len(places)), [f"{kind}\n{split}" for split, kind in places])
    heat.set(ylabel="MAE (°C)")
    for ax in (ranked, heat):
        ax.legend(*ax.get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return fig
