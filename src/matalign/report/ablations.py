"""Tables and figures of the ablations: variants down, tasks across; a group of variants each, and one of all."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from matalign.report.printing import Table, interval, number, pivot, span
from matalign.report.style import COLOURS, PAGE_IN, Metrics, dot, panels

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


def figures(metrics: Metrics) -> dict[str, Figure]:
    """`ablations_<group>` for each group of variants that was run."""
    groups = dict.fromkeys(r["group"] for r in metrics["results"])
    return {f"ablations_{group}": figure(metrics, group) for group in groups}


def figure(metrics: Metrics, group: str) -> Figure:
    """The variants of a group on each task; dotted: the base. Hollow: query and target were never trained together."""
    rows = [r for r in metrics["results"] if r["group"] == group]
    tasks = [c for c in TASKS if c[1] != "R@10" and any((r["task"], r["metric"]) == c for r in rows)]
    names = list(dict.fromkeys(r["variant"] for r in rows))
    fig, axes = panels(1, len(tasks), width=PAGE_IN, height=0.75 + 0.16 * len(names), sharey=True)
    for ax, task in zip(axes[0], tasks, strict=True):
        for r in (r for r in rows if (r["task"], r["metric"]) == task):
            colour = COLOURS["structure"] if r["base"] else COLOURS["scratch"]
            face = "white" if r["emergent"] else colour
            dot(ax, r, names.index(r["variant"]), color=colour, marker="o", mfc=face, lw=0, elinewidth=0.9)
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


def tables(metrics: Metrics, *, own: bool) -> dict[str, Table]:
    """All variants by the measures of the statements, the statements; with `own` the rows of each group, too."""
    results, pairs = pd.DataFrame(metrics["results"]), pd.DataFrame(metrics["pairs"])
    if results.empty:
        return {}
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
        marked = lambda r: interval(r) + "†" * r["emergent"]  # noqa: E731
        [[_, *values]] = pivot(here, ("task", "metric"), columns, down="variant", show=marked)
        line = ["", "base"] if base else [group, variant]
        for c, value in zip(columns, values, strict=True):
            line += [value, "" if base else number(p.get((group, variant, *c)))]
        cells.append(line)
    plain = {column: label.replace("$", "") for column, label in TASKS.items()}
    header = ["group", "variant"]
    for column in columns:
        header += [plain[column].replace(", ", ",\n"), "p"]
    said = [[s["group"], plain[s["task"], s["metric"]], s["verdict"], s["statement"]] for s in metrics["statements"]]
    pairs = pairs if len(pairs) else pd.DataFrame(columns=["group"])
    parts = {
        f"ablations_{group}": Table(
            pd.concat([part, *(more for name, more in pairs.groupby("group") if name == group)])
        )
        for group, part in results.groupby("group", sort=False)
    }
    seeds = span(r["seeds"] for r in rows)
    where = f"Files results/{metrics['profile']}/tables/ablations_*, with more tasks; seeds: {seeds}."
    labels = f"{metrics['label_percent']:g} % of the training labels (n = {span(metrics['n_labels'])})"
    note = f"{where} Formation energy in eV/atom, from {labels}."
    return (parts if own else {}) | {
        "ablations": Table(pd.DataFrame(rows), header, cells, note),
        "ablations_statements": Table(
            pd.DataFrame(list(metrics["comparisons"])), ["group", "task", "verdict", "statement"], said
        ),
    }
