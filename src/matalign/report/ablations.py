"""Tables and figures of the ablations: variants down, tasks across; a group of variants each, and one of all."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from matalign.report.printing import Table, caption, counted, interval, number, pivot, span
from matalign.report.style import COLOURS, PAGE_IN, Metrics, Row, bars, panels

TASKS = {  # (task, metric) -> how it is headed
    ("structure_text_L1", "MRR"): "structure → protocol, L1 MRR",
    ("structure_text_L1", "R@10"): "structure → protocol, L1 R@10",
    ("structure_text_L2", "MRR"): "structure → protocol, L2 MRR",
    ("structure_text_L2", "R@10"): "structure → protocol, L2 R@10",
    ("structure_image", "MRR"): "structure → image, MRR",
    ("image_text_L1", "MRR"): "image → protocol, L1 MRR",
    ("finetuned", "MAE"): "$E_f$ MAE, fine-tuned",
    ("ridge", "MAE"): "$E_f$ MAE, frozen",
}


def groups(metrics: Metrics) -> list[str]:
    """Groups of variants that were run."""
    return list(dict.fromkeys(r["group"] for r in metrics["results"]))


def figures(metrics: Metrics | None) -> dict[str, Figure]:
    """`ablations_<group>` for each group of variants that was run."""
    return {f"ablations_{group}": figure(metrics, group) for group in (groups(metrics) if metrics else [])}


def figure(metrics: Metrics, group: str) -> Figure:
    """The variants of a group on each task; dotted: the base. Hollow: query and target were never trained together."""
    rows = [r for r in metrics["results"] if r["group"] == group]
    tasks = [c for c in TASKS if c[1] != "R@10" and any((r["task"], r["metric"]) == c for r in rows)]
    names = list(dict.fromkeys(r["variant"] for r in rows))
    fig, axes = panels(1, len(tasks), width=PAGE_IN, height=0.75 + 0.16 * len(names), sharey=True)
    for ax, task in zip(axes[0], tasks, strict=True):
        for r in (r for r in rows if (r["task"], r["metric"]) == task):
            colour = COLOURS["structure"] if r["base"] else COLOURS["scratch"]
            error = bars([r["value"]], [r["low"]], [r["high"]])
            look = {"color": colour, "marker": "o", "mfc": "white" if r["emergent"] else colour, "lw": 0}
            ax.errorbar(r["value"], names.index(r["variant"]), xerr=error, elinewidth=0.9, capsize=2, **look)
            if r["base"]:
                ax.axvline(r["value"], color="#888888", lw=0.8, ls=":", zorder=0)
        label = TASKS[task]
        title = label.replace("→ ", "→\n") if "→" in label else label.replace(", ", "\n")
        ax.set(title=title, xlabel="eV/atom" if task[1] == "MAE" else "MRR")
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return fig


def own(metrics: Mapping[str, Metrics]) -> Metrics | None:
    """Of the metrics of a paper's stages, those of the ablations if this profile ran them."""
    found = metrics.get("ablations")
    return found if found and found["profile"] == metrics["curate"]["profile"] else None


def tables(metrics: Metrics | None) -> list[Table]:
    """One table a group of variants; none where no variant was run.

    Args:
        metrics: of the stage, None if the results hold none.
    """
    return [table(metrics, group) for group in (groups(metrics) if metrics else [])]


def _marked(row: Row) -> str:
    return interval(row) + "†" * row["emergent"]


def _trained(metrics: Metrics) -> str:
    labels = f"{metrics['label_percent']:g} % of the training labels (n = {span(metrics['n_labels'])})"
    return f"Formation energy in eV/atom, from {labels}."


def table(metrics: Metrics, group: str) -> Table:
    """The variants of a group down, tasks across; of the losses, how well each pair is aligned besides."""
    rows = [r for r in metrics["results"] if r["group"] == group]
    columns = [c for c in TASKS if any((r["task"], r["metric"]) == c for r in rows)]
    cells = pivot(rows, ("task", "metric"), columns, down="variant", show=_marked)
    bases = {r["variant"] for r in rows if r["base"]}
    pairs = [r for r in metrics["pairs"] if r["group"] == group]
    names = list(dict.fromkeys(r["pair"] for r in pairs))
    aligned = {(r["variant"], r["pair"]): (r["loss"], r["recall"]) for r in pairs}
    for line in cells:
        for name in names:
            loss, recall = aligned.get((line[0], name), (None, None))
            line.append(number(loss, digits=2) + (f", {number(recall, digits=2)}" if recall is not None else ""))
        line[0] += " (base)" if line[0] in bases else ""
    text = f"Ablation, {group}: {counted(rows, 'seeds', 'seed')} each, on the test set of the split by "
    text += f"chemical system ({span(r['n_chemsys'] for r in rows)} systems). Retrieval in the full gallery. "
    text += _trained(metrics)
    if any(r["emergent"] for r in rows):
        text += " †: emergent, the two sides were never trained against one another."
    if names:
        text += " Last columns, on validation materials: the loss that was trained (nat; proposal cannot fall below "
        text += "log(M/(M−1)) with M modalities), then of each pair of modalities InfoNCE and Recall@1 in the batch."
    header = ["variant", *(_task(c).replace(", ", "\n") for c in columns)]
    header += ["own loss" if name == "all" else f"{name}\nInfoNCE, R@1" for name in names]
    return Table(f"ablations_{group}", caption(text, metrics), pd.DataFrame([*rows, *pairs]), header, cells)


def _task(column: tuple[str, str]) -> str:
    return TASKS[column].replace("$", "")


def summary(metrics: Metrics | None) -> list[Table]:
    """All variants by the measures of the statements and by emergent alignment, and the statements.

    Args:
        metrics: of the stage, None if the results hold none; no table where no variant was run.
    """
    if not metrics or not metrics["results"]:
        return []
    told = [(s["task"], s["metric"]) for s in metrics["statements"]] + [("image_text_L1", "MRR")]
    columns = [c for c in TASKS if c in told]
    rows = [r for r in metrics["results"] if (r["task"], r["metric"]) in columns]
    p = {(r["group"], r["variant"], r["task"], r["metric"]): r["p_holm"] for r in metrics["comparisons"]}
    cells = []
    for group, variant in dict.fromkeys((r["group"], r["variant"]) for r in rows):
        here = [r for r in rows if (r["group"], r["variant"]) == (group, variant)]
        base = any(r["base"] for r in here)
        if base and cells:
            continue  # it stands once, at the top
        [[_, *values]] = pivot(here, ("task", "metric"), columns, down="variant", show=_marked)
        line = ["", "base"] if base else [group, variant]
        for c, value in zip(columns, values, strict=True):
            line += [value, "" if base else number(p.get((group, variant, *c)))]
        cells.append(line)
    text = "Ablations, one factor at a time from a base (pairwise loss, ILD of order 3, three modalities, batches of "
    text += f"128, texts at L1; files results/{metrics['profile']}/tables/ablations_*, with more tasks), "
    text += f"{counted(rows, 'seeds', 'seed')} each. {_trained(metrics)} "
    text += "p: difference to the base, Holm-corrected within the group. "
    text += "†: emergent, the two sides were never trained against one another. The objective none: not trained at all."
    header = ["group", "variant"]
    for column in columns:
        header += [_task(column).replace(", ", ",\n"), "p"]
    variants = Table("ablations", caption(text, metrics), pd.DataFrame(rows), header, cells)

    text = "What each group of ablations shows, from paired differences to its base (ablations_statements.csv): "
    text += "p < 0.05 after Holm's correction within the group."
    cells = [[s["group"], _task((s["task"], s["metric"])), s["verdict"], s["statement"]] for s in metrics["statements"]]
    rows, header = pd.DataFrame(list(metrics["comparisons"])), ["group", "task", "verdict", "statement"]
    return [variants, Table("ablations_statements", caption(text, metrics), rows, header, cells)]
