"""Tables of the paper, from metrics alone: long rows for machines (`.csv`), the printed form for readers (`.tex`).

A printed table is a selection of its rows: one metric a target, intervals in brackets. Its caption carries what a
number needs to be read: cohort, test materials, chemical systems, seeds, the interval, and whether the data are
synthetic.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from matalign.cache import write_json
from matalign.report import figures

Metrics = Mapping[str, Any]
Row = Mapping[str, Any]

NAMES = {
    "formation_energy_eV_atom": "formation energy",
    "band_gap_eV": "band gap",
    "is_metal": "metal",
    "bulk_modulus_GPa": "bulk modulus",
    "shear_modulus_GPa": "shear modulus",
}
PRINTED_METRICS = ("MAE", "F1", "accuracy")  # of a target, the first that it has
HELD = 0.9  # the released intervals, `ensemble.LEVEL`
MISSING = "–"
INTERVAL = "Brackets: 95 % interval, bootstrap over {unit} and seeds."
SYNTHETIC = "Numbers come from the synthetic sample."
TEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "†": r"$\dagger$",
    "Å": r"\AA{}",
    "Δ": r"$\Delta$",
    "²": "$^2$",
    "³": "$^3$",
    "°": r"$^\circ$",
}


@dataclass(frozen=True)
class Table:
    """A table: long rows, and its printed form."""

    name: str  # of its files
    caption: str
    rows: pd.DataFrame  # tidy, numbers as numbers
    header: list[str]  # a line break inside a cell is \n
    cells: list[list[str]]


def number(value: float | None, *, digits: int = 3) -> str:
    """A number in fixed format, with a true minus sign; "–" for none."""
    if value is None or value != value:
        return MISSING
    return f"{value:,.{digits}f}".replace("-", "−")


def interval(row: Row, *, value: str = "value", digits: int = 3) -> str:
    """``value [low, high]``."""
    low, high = number(row.get("low"), digits=digits), number(row.get("high"), digits=digits)
    return number(row[value], digits=digits) + ("" if MISSING in (low, high) else f" [{low}, {high}]")


def span(values: Iterable[float]) -> str:
    """``5`` or ``1–5``: from the least to the greatest of some counts; "–" of none."""
    values = set(values)
    if not values:
        return MISSING
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def caption(text: str, metrics: Metrics, *, unit: str = "chemical systems") -> str:
    """A caption with the interval explained and synthetic data named."""
    return " ".join([text, INTERVAL.format(unit=unit), *([SYNTHETIC] if metrics["synthetic"] else [])])


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows sorted by what is not a number (and by label share, mask level, dose and gallery); columns as they come."""
    table = pd.DataFrame(list(rows))
    steps = ("label_percent", "level", "dose_low", "n_gallery")
    keys = [c for c in table if not pd.api.types.is_numeric_dtype(table[c]) or c in steps]
    return table.sort_values(keys, kind="stable", ignore_index=True) if keys else table


def claims(metrics: Mapping[str, Metrics]) -> Table:
    """The proposal's claims with value, interval, threshold and verdict."""
    stages = [s for s in ("properties", "retrieval", "recommendation", "defects") if s in metrics]
    rows = [{"stage": s, **claim} for s in stages for claim in metrics[s]["claims"]]
    cells = []
    for r in rows:
        digits = 1 if r["unit"] in ("%", "°C") else 3
        cells.append(
            [
                r["claim"] + (f" ({r['note']})" if r.get("note") else ""),
                with_unit(interval(r, digits=digits), r["unit"]),
                with_unit(number(r["threshold"], digits=digits), r["unit"]),
                r["verdict"],
            ]
        )
    text = "Claims of the proposal, as pass or fail."
    return Table(
        "claims",
        caption(text, metrics["properties"], unit="chemical systems (hosts, for defects)"),
        pd.DataFrame(rows),
        ["claim", "value", "threshold", "verdict"],
        cells,
    )


def with_unit(text: str, unit: str) -> str:
    """A number followed by its unit, if it has both."""
    return f"{text} {unit}" if unit and text != MISSING else text


def properties(metrics: Metrics) -> list[Table]:
    """Arms down; target, split and share of labels across. A target of at most two runs shares its cohort's table."""
    runs: dict[tuple[str, str], set] = {}
    for r in metrics["results"]:
        runs.setdefault((r["cohort"], r["target"]), set()).add((r["split"], r["label_percent"]))
    grouped: dict[tuple[str, ...], list[str]] = {}
    for cohort, target in sorted(runs, key=lambda t: (t[0], list(NAMES).index(t[1]))):
        alone = (target,) if len(runs[cohort, target]) > 2 else ()
        grouped.setdefault((cohort, *alone), []).append(target)
    return [_properties(metrics, name[0], targets) for name, targets in grouped.items()]


def _properties(metrics: Metrics, cohort: str, targets: list[str]) -> Table:
    rows = [r for r in metrics["results"] if r["cohort"] == cohort and r["target"] in targets]
    by, units = {}, {}
    for target in targets:
        mine = [r for r in rows if r["target"] == target]
        metric = next(m for m in (*PRINTED_METRICS, mine[0]["metric"]) if any(r["metric"] == m for r in mine))
        units[target] = f"{metric} of the {NAMES[target]}" + (f", {mine[0]['unit']}" if mine[0]["unit"] else "")
        by |= {(target, r["split"], r["label_percent"], r["arm"]): r for r in mine if r["metric"] == metric}
    columns = sorted({key[:3] for key in by}, key=lambda c: (targets.index(c[0]), *c[1:]))
    header, cells = ["arm"], []
    for target, split, percent in columns:
        here = [r for key, r in by.items() if key[:3] == (target, split, percent)]
        n, seeds = span(r["n_train"] for r in here), counted((r["seeds"] for r in here), "seed")
        named = f"{NAMES[target]}\n" if len(targets) > 1 else ""
        header.append(f"{named}{split} {percent:g} %\nn = {n}, {seeds}")
    arms = figures.ordered(arm for *_, arm in by)
    for arm in arms:
        found = [by.get((*column, arm)) for column in columns]
        cells.append([figures.arm(arm).label, *(interval(r) if r else MISSING for r in found)])
    tests = "; ".join(
        f"{split}: {counted((r['n_test'] for r in by.values() if r['split'] == split), 'test material')} of "
        f"{counted((r['n_chemsys'] for r in by.values() if r['split'] == split), 'chemical system')}"
        for split in sorted({split for _, split, _ in columns})
    )
    text = f"{'; '.join(units.values())}; cohort {cohort}, from the structure alone"
    text += ", but for arms named fused or after one modality. " if figures.beyond_structure(arms) else ". "
    text += f"{tests}. Columns: split, share of the training labels, number of training materials and of seeds."
    name = "_".join(["properties", cohort, *(targets if len(targets) == 1 else [])])
    return Table(name, caption(text, metrics), frame(rows), header, cells)


def counted(counts: Iterable[int], noun: str) -> str:
    """``1–5 seeds``, ``1 seed``."""
    text = span(counts)
    return f"{text} {noun}" + ("" if text == "1" else "s")


def gains(metrics: Metrics) -> Table:
    """What pretraining buys: relative reduction of the error, paired."""
    rows = sorted(
        metrics["comparisons"],
        key=lambda r: (r["cohort"], r["arm"], list(NAMES).index(r["target"]), r["split"], r["label_percent"]),
    )
    printed = [r for r in rows if r["baseline"] in ("scratch", "scratch_long", "early_fusion")] or rows
    cells = [
        [
            r["cohort"],
            f"{NAMES[r['target']]}, {r.get('error', 'MAE')}",
            f"{r['split']} {r['label_percent']:g} %",
            figures.arm(r["arm"]).label,
            figures.arm(r["baseline"]).label,
            interval(r, value="gain_percent", digits=1),
            number(r["p_holm"]),
            str(r["seeds"]),
            f"{r['n_test']:,}",
        ]
        for r in printed
    ]
    text = "Reduction of the error against a baseline, in per cent of the baseline's, paired by material. The error "
    text += "rate is 1 − accuracy. p: Holm-corrected over all baselines and cohorts (gains.csv). A negative number is "
    text += "a loss."
    header = ["cohort", "target, error", "split, labels", "arm", "baseline", "gain (%)", "p", "seeds", "n test"]
    return Table("gains", caption(text, metrics), frame(rows), header, cells)


def retrieval(metrics: Metrics, *, levels: tuple[int, ...] = (1, 2)) -> Table:
    """Structure to protocol: arms down, mask levels across, full gallery above the hard one."""
    everything = figures.retrieval_rows(metrics["results"])
    rows = [r for r in everything if (r["query"], r["target"]) == ("structure", "text")]
    levels = tuple(level for level in levels if any(r["level"] == level for r in rows))
    header = ["gallery", "arm"]
    for level in levels:
        header += [f"L{level}\nR@1", f"L{level}\nR@10", f"L{level}\nMRR", f"L{level}\nMRR, ties worst"]
    cells = []
    for gallery in ("full", "hard"):
        here = [r for r in rows if r["gallery"] == gallery]
        for arm in figures.ordered(r["arm"] for r in here):
            line = [gallery, figures.arm(arm).label]
            for level in levels:
                by = {r["metric"]: r for r in here if r["arm"] == arm and r["level"] == level}
                line += [number(by[m]["value"]) if m in by else MISSING for m in ("R@1", "R@10")]
                line.append(interval(by["MRR"]) if "MRR" in by else MISSING)
                line.append(number(by["MRR"].get("value_pessimistic")) if "MRR" in by else MISSING)
            cells.append(line)
    sizes = {g: span(r["n_gallery"] for r in rows if r["gallery"] == g) for g in sorted({r["gallery"] for r in rows})}
    text = f"From structure to protocol: {span(r['n_queries'] for r in rows)} queries of "
    text += f"{span(r['n_chemsys'] for r in rows)} held-out chemical systems, ranked among "
    text += " and ".join(f"{n} materials ({g} gallery)" for g, n in sizes.items())
    text += (
        ". Ties count in expectation; beside it, resolved against the arm. One seed. Intervals of R@k: retrieval.csv."
    )
    return Table("retrieval", caption(text, metrics), frame(everything), header, cells)


def retrieval_pairs(metrics: Metrics, *, arms: tuple[str, ...] = ("pretrained", "image"), level: int = 1) -> Table:
    """Every direction between the three modalities, full gallery, for the towers as pretraining left them."""
    rows = [
        r
        for r in metrics["results"]
        if r["gallery"] == "full"
        and r["arm"] in arms
        and ("text" not in (r["query"], r["target"]) or r["level"] == level)
    ]
    cells = []
    for query, target, arm in sorted({(r["query"], r["target"], r["arm"]) for r in rows}):
        here = [r for r in rows if (r["query"], r["target"], r["arm"]) == (query, target, arm)]
        by = {r["metric"]: r for r in here}
        cells.append(
            [
                f"{query} → {target}".replace("text", "protocol") + ("*" if emergent(here) else ""),
                *(number(by[m]["value"]) if m in by else MISSING for m in ("R@1", "R@10")),
                interval(by["MRR"]) if "MRR" in by else MISSING,
                span(r["n_queries"] for r in here),
                span(r["n_gallery"] for r in here),
            ]
        )
    text = f"The towers as pretraining left them, all directions, full gallery (protocols at L{level})."
    if emergent(rows):
        text += " *: a pair that training never compared, aligned through the structure alone."
    elif any(r.get("paired") for r in rows):
        text += " All pairs were compared in training."
    header = ["query → target", "R@1", "R@10", "MRR", "queries", "gallery"]
    return Table("retrieval_pairs", caption(text, metrics), frame(rows), header, cells)


def gallery_curve(metrics: Metrics) -> Table:
    """Structure to protocol by the size of the gallery: sizes across, arms down."""
    rows = figures.retrieval_rows(metrics["gallery_curve"])
    sizes = sorted({r["n_gallery"] for r in rows})
    by = {(r["level"], r["arm"], r["n_gallery"]): r["value"] for r in rows if r["metric"] == "MRR"}
    cells = [
        [f"L{level}", figures.arm(arm).label, *(number(by.get((level, arm, n))) for n in sizes)]
        for level in sorted({r["level"] for r in rows})
        for arm in figures.ordered(r["arm"] for r in rows if r["level"] == level)
    ]
    text = "MRR from structure to protocol by the number of materials in the gallery: the expectation over all "
    text += "galleries drawn from the full one, the last, that hold the right answer. R@10 and intervals: "
    text += "gallery_curve.csv."
    header = ["level", "arm", *(f"{n:,}" for n in sizes)]
    return Table("gallery_curve", caption(text, metrics), frame(rows), header, cells)


def emergent(rows: Iterable[Row]) -> bool:
    """Whether some rows are of a pair of modalities that training never compared."""
    return any(r.get("paired") is False for r in rows)


def retrieval_differences(metrics: Metrics) -> Table:
    """Paired differences in MRR between the structure tower and its baselines."""
    rows = [r for r in metrics["comparisons"] if r["metric"] == "MRR"]
    order = sorted(rows, key=lambda r: (r["gallery"], r["level"], r["query"], r["arm"], r["baseline"]))
    cells = [
        [
            r["gallery"],
            f"L{r['level']}",
            f"{figures.arm(r['arm']).label.removesuffix(' tower')} − {figures.arm(r['baseline']).label}",
            interval(r, value="difference"),
            number(r["p_holm"]),
        ]
        for r in order
        if (r["query"], r["target"]) == ("structure", "text")
    ]
    queries = span(r["n_queries"] for r in metrics["results"])
    text = f"Paired differences in MRR, structure to protocol; {queries} queries, one seed. "
    text += "p: Holm-corrected over the family."
    header = ["gallery", "level", "arms", "Δ MRR", "p"]
    return Table("retrieval_differences", caption(text, metrics), frame(metrics["comparisons"]), header, cells)


def recommendation(metrics: Metrics) -> list[Table]:
    """Precursor sets, temperatures, and their paired differences; published scores are marked."""
    return [_precursor_sets(metrics), _temperatures(metrics), _recommendation_differences(metrics)]


def _precursor_sets(metrics: Metrics) -> Table:
    rows = metrics["precursors"]
    tops = sorted({r["k"] for r in rows})
    cells = []
    for arm in figures.ordered(r["arm"] for r in rows):
        by = {r["k"]: r for r in rows if r["arm"] == arm}
        cells.append([figures.arm(arm).label, *(interval(by[k]) if k in by else MISSING for k in tops)])
    ceiling = {r["ceiling"]: r["value"] for r in metrics["ceilings"]}
    text = f"Precursor sets: {counted((r['n'] for r in rows), 'target')} of "
    text += (
        f"{counted((r['n_chemsys'] for r in rows), 'chemical system')}, none of them trained on; the exact set, in any "
    )
    text += (
        f"order, among the first k. Ceilings: {number(ceiling['vocabulary'])} have no precursor that training lacks, "
    )
    text += f"{number(ceiling['copy'])} a set that training holds. Published rows are of Prein et al. (2025)."
    header = ["arm", *(f"top-{k}" for k in tops)]
    return Table("precursors", caption(text, metrics), frame(rows), header, cells)


def _temperatures(metrics: Metrics) -> Table:
    rows = metrics["temperatures"]
    places = sorted({(r["split"], r["kind"]) for r in rows}, key=lambda p: (p[0], p[1] != "sintering"))
    cells = []
    for arm in figures.ordered(r["arm"] for r in rows):
        by = {(r["split"], r["kind"]): r for r in rows if r["arm"] == arm}
        cells.append([figures.arm(arm).label, *(interval(by[p], digits=1) if p in by else MISSING for p in places)])
    text = (
        f"Mean absolute error of temperatures, °C; {counted((r['n_test'] for r in rows), 'test reaction')}. official: "
    )
    text += (
        "the public split, and text-mined reactions of no DOI of a test row; strict: nothing that shares a chemical "
    )
    text += "system or DOI with the test. Published rows are of Prein et al. (2025)."
    header = ["arm", *(f"{kind}\n{split}" for split, kind in places)]
    return Table("temperatures", caption(text, metrics), frame(rows), header, cells)


def _recommendation_differences(metrics: Metrics) -> Table:
    rows = sorted(metrics["comparisons"], key=lambda r: r["task"])
    cells = [
        [
            r["task"],
            f"{figures.arm(r['arm']).label} − {figures.arm(r['baseline']).label}",
            with_unit(interval(r, digits=1 if r["unit"] else 3), r["unit"]),
            number(r["p_holm"]),
        ]
        for r in rows
    ]
    text = (
        "Recommendation: paired differences on the same targets, in the share of exact sets and in °C of mean absolute "
    )
    text += "error. p: Holm-corrected over the family."
    header = ["task", "arms", "Δ", "p"]
    return Table("recommendation_differences", caption(text, metrics), frame(rows), header, cells)


def defects(metrics: Metrics) -> Table:
    """Defect classes: macro-F1, accuracy, calibration."""
    rows = metrics["results"]
    shown = {m: label for m, label in DEFECT_METRICS.items() if any(r["metric"] == m for r in rows)}
    cells = []
    for arm in figures.ordered(r["arm"] for r in rows):
        by = {r["metric"]: r for r in rows if r["arm"] == arm}
        cells.append([figures.arm(arm).label, *(interval(by[m]) if m in by else MISSING for m in shown)])
    text = f"Five defect classes: {counted((r['n_images'] for r in rows), 'test image')} of "
    text += f"{counted((r['n_hosts'] for r in rows), 'host')}, {counted((r['seeds'] for r in rows), 'seed')}; "
    text += "hosts split by chemical system, "
    text += "all classes equally from every host. ECE: expected calibration error"
    text += ", scaled: with one temperature fitted on validation." if "ECE_scaled" in shown else "."
    header = ["arm", *shown.values()]
    return Table("defects", caption(text, metrics, unit="hosts"), frame(rows), header, cells)


DEFECT_METRICS = {"macro_F1": "macro-F1", "accuracy": "accuracy", "ECE": "ECE", "ECE_scaled": "ECE, scaled"}


def defect_differences(metrics: Metrics) -> Table:
    """Paired differences in macro-F1, on all test hosts and on those with a protocol."""
    order = list(figures.ARMS)
    rows, part = metrics["comparisons"], metrics.get("with_protocol", {"comparisons": []})
    if part["comparisons"]:
        rows = [{"hosts": "all", **r} for r in rows]
        rows += [{"hosts": "with protocol", **r} for r in part["comparisons"]]
    rows = sorted(rows, key=lambda r: (r.get("hosts", ""), order.index(r["baseline"]), order.index(r["arm"])))
    cells = [
        [
            f"{figures.arm(r['arm']).label} − {figures.arm(r['baseline']).label}"
            + (", hosts with a protocol" if r.get("hosts") == "with protocol" else ""),
            interval(r, value="difference"),
            number(r["p_holm"]),
        ]
        for r in rows
        if r["arm"] not in ("majority", "context")
    ]
    text = "Paired differences in macro-F1 on the same images. p: Holm-corrected over the family."
    if part["comparisons"]:
        text += f" {counted([part['n_hosts']], 'test host')} have a protocol; they are a family of their own."
    header = ["arms", "Δ macro-F1", "p"]
    return Table("defect_differences", caption(text, metrics, unit="hosts"), frame(rows), header, cells)


def released(metrics: Metrics) -> Table:
    """The released model: what each predictor errs by, and how many test materials its intervals hold."""
    held = {(r["target"], r["materials"]): r for r in metrics["coverage"] if r["nominal"] == HELD}
    rows = [r for r in metrics["results"] if r["metric"] in ("MAE", "accuracy")]
    of = {(r["target"], r["materials"]): r for r in rows}
    groups = list(dict.fromkeys(r["materials"] for r in rows))
    cells = []
    for target in dict.fromkeys(r["target"] for r in rows):
        line = [
            f"{NAMES.get(target, target)}, {with_unit(of[target, groups[0]]['metric'], of[target, groups[0]]['unit'])}"
        ]
        for group in groups:
            line += [interval(r[target, group]) if (target, group) in r else MISSING for r in (of, held)]
        cells.append(line)
    text = f"The released predictors on the random split's test set, ensembles of {metrics['members']}, trained on its "
    text += "training part. Held: the share of materials whose value lies within the interval that is meant to hold "
    text += f"{HELD:.0%} (file calibration.pdf). Brackets: 95 % interval, bootstrap over chemical systems."
    text += f" {SYNTHETIC}" if metrics["synthetic"] else ""
    header = ["target", *(f"{group},\n{what}" for group in groups for what in ("error", "held"))]
    return Table("released", text, pd.DataFrame([*rows, *held.values()]), header, cells)


def own_ablations(metrics: Mapping[str, Metrics]) -> Metrics | None:
    """Of the metrics of a paper's stages, those of the ablations if this profile ran them."""
    found = metrics.get("ablations")
    return found if found and found["profile"] == metrics["curate"]["profile"] else None


def ablations(metrics: Metrics | None) -> list[Table]:
    """One table a group of variants; none where no variant was run.

    Args:
        metrics: of the stage, None if the results hold none.
    """
    return [ablation(metrics, group) for group in (figures.ablation_groups(metrics) if metrics else [])]


def ablation_summary(metrics: Metrics | None) -> list[Table]:
    """All variants by the measures of the statements and by emergent alignment, and the statements.

    Args:
        metrics: of the stage, None if the results hold none; no table where no variant was run.
    """
    if not metrics or not metrics["results"]:
        return []
    told = [(s["task"], s["metric"]) for s in metrics["statements"]] + [("image_text_L1", "MRR")]
    columns = [c for c in figures.ABLATION_TASKS if c in told]
    rows = [r for r in metrics["results"] if (r["task"], r["metric"]) in columns]
    p = {(r["group"], r["variant"], r["task"], r["metric"]): r["p_holm"] for r in metrics["comparisons"]}
    cells = []
    for group, variant in dict.fromkeys((r["group"], r["variant"]) for r in rows):
        by = {(r["task"], r["metric"]): r for r in rows if (r["group"], r["variant"]) == (group, variant)}
        base = any(r["base"] for r in by.values())
        if base and cells:
            continue  # it stands once, at the top
        line = ["", "base"] if base else [group, variant]
        for c in columns:
            line.append(interval(by[c]) + "†" * by[c]["emergent"] if c in by else MISSING)
            line.append("" if base else number(p.get((group, variant, *c))))
        cells.append(line)
    text = (
        "Ablations, one factor at a time from a base (pairwise loss, ILD of order 3, three modalities, batches of 128, "
    )
    text += f"texts at L1; files results/{metrics['profile']}/tables/ablations_*, with more tasks), "
    text += f"{counted((r['seeds'] for r in rows), 'seed')} each. Formation energy in eV/atom, from "
    text += f"{metrics['label_percent']:g} % of the training labels (n = {span(metrics['n_labels'])}). "
    text += "p: difference to the base, Holm-corrected within the group. "
    text += "†: emergent, the two sides were never trained against one another. The objective none: not trained at all."
    header = ["group", "variant"]
    for task, metric in columns:
        header += [_task({"task": task, "metric": metric}).replace(", ", ",\n"), "p"]
    return [Table("ablations", caption(text, metrics), pd.DataFrame(rows), header, cells), ablation_statements(metrics)]


def ablation(metrics: Metrics, group: str) -> Table:
    """The variants of a group down, tasks across; of the losses, how well each pair is aligned besides."""
    rows = [r for r in metrics["results"] if r["group"] == group]
    cells = []
    columns = [c for c in figures.ABLATION_TASKS if any((r["task"], r["metric"]) == c for r in rows)]
    pairs = [r for r in metrics["pairs"] if r["group"] == group]
    names = list(dict.fromkeys(r["pair"] for r in pairs))
    for variant in dict.fromkeys(r["variant"] for r in rows):
        by = {(r["task"], r["metric"]): r for r in rows if r["variant"] == variant}
        line = [variant + (" (base)" if any(r["base"] for r in by.values()) else "")]
        line += [interval(by[c]) + "†" * by[c]["emergent"] if c in by else MISSING for c in columns]
        aligned = {r["pair"]: r for r in pairs if r["variant"] == variant}
        for name in names:
            loss, recall = (aligned.get(name, {}).get(k) for k in ("loss", "recall"))
            line.append(number(loss, digits=2) + (f", {number(recall, digits=2)}" if recall is not None else ""))
        cells.append(line)
    text = f"Ablation, {group}: {counted((r['seeds'] for r in rows), 'seed')} each, on the test set of the split by "
    text += f"chemical system ({span(r['n_chemsys'] for r in rows)} systems). Retrieval in the full gallery. "
    text += f"Formation energy in eV/atom, from {metrics['label_percent']:g} % of the training labels "
    text += f"(n = {span(metrics['n_labels'])})."
    if any(r["emergent"] for r in rows):
        text += " †: emergent, the two sides were never trained against one another."
    if names:
        text += " Last columns, on validation materials: the loss that was trained (nat; seed cannot fall below "
        text += "log(M/(M−1)) with M modalities), then of each pair of modalities InfoNCE and Recall@1 in the batch."
    header = ["variant", *(_task({"task": c[0], "metric": c[1]}).replace(", ", "\n") for c in columns)]
    header += ["own loss" if name == "all" else f"{name}\nInfoNCE, R@1" for name in names]
    return Table(f"ablations_{group}", caption(text, metrics), pd.DataFrame([*rows, *pairs]), header, cells)


def _task(row: Row) -> str:
    return figures.ABLATION_TASKS[row["task"], row["metric"]].replace("$", "")


def ablation_statements(metrics: Metrics) -> Table:
    """What each group shows, beside the paired difference to the base that says so."""
    cells = [[s["group"], _task(s), s["verdict"], s["statement"]] for s in metrics["statements"]]
    text = "What each group of ablations shows, from paired differences to its base (ablations_statements.csv): "
    text += "p < 0.05 after Holm's correction within the group."
    rows = pd.DataFrame(list(metrics["comparisons"]))
    return Table("ablations_statements", caption(text, metrics), rows, ["group", "task", "verdict", "statement"], cells)


def audit(metrics: Metrics) -> Table:
    """What training and test share, by ladder and key."""
    rows = metrics["audit"]
    keys = list(dict.fromkeys(r["key"] for r in rows))
    cells = []
    for ladder in dict.fromkeys(r["ladder"] for r in rows):
        by = {r["key"]: r for r in rows if r["ladder"] == ladder}
        cells.append(
            [
                ladder,
                *(
                    f"{by[k]['overlap']:,}" + ("*" if by[k]["asserted_zero"] else "") if k in by else MISSING
                    for k in keys
                ),
            ]
        )
    text = "What training and test share, counted. *: asserted to be zero."
    text += f" {SYNTHETIC}" if metrics["synthetic"] else ""
    return Table("audit", text, pd.DataFrame(list(rows)), ["split", *(k.replace("_", " ") for k in keys)], cells)


def cohorts(metrics: Metrics) -> Table:
    """Materials and chemical systems of each cohort."""
    rows = [{"cohort": name, **counts} for name, counts in metrics["cohorts"].items()]
    columns = [c for c in rows[0] if c != "cohort"] if rows else []
    cells = [[r["cohort"], *(f"{r[c]:,}" if c in r else MISSING for c in columns)] for r in rows]
    text = "Cohorts." + (f" {SYNTHETIC}" if metrics["synthetic"] else "")
    return Table("cohorts", text, pd.DataFrame(rows), ["cohort", *(c.replace("_", " ") for c in columns)], cells)


def skipped(metrics: Metrics) -> Table:
    """Rows left out at curation, with the reason."""
    rows = sorted(metrics["skipped"], key=lambda r: (r["source"], -r["rows"], r["reason"]))
    cells = [[r["source"], r["reason"].replace("_", " "), f"{r['rows']:,}"] for r in rows]
    text = "Rows left out at curation." + (f" {SYNTHETIC}" if metrics["synthetic"] else "")
    return Table("skipped", text, pd.DataFrame(rows), ["source", "reason", "rows"], cells)


def build(metrics: Mapping[str, Metrics]) -> list[Table]:
    """All tables of the paper.

    Args:
        metrics: stage -> what it wrote.
    """
    return [
        cohorts(metrics["curate"]),
        audit(metrics["curate"]),
        skipped(metrics["curate"]),
        *properties(metrics["properties"]),
        gains(metrics["properties"]),
        retrieval(metrics["retrieval"]),
        retrieval_pairs(metrics["retrieval"]),
        *([gallery_curve(metrics["retrieval"])] if "gallery_curve" in metrics["retrieval"] else []),
        retrieval_differences(metrics["retrieval"]),
        *(recommendation(metrics["recommendation"]) if "recommendation" in metrics else ()),
        defects(metrics["defects"]),
        defect_differences(metrics["defects"]),
        *([released(metrics["release"])] if "release" in metrics else []),
        *ablations(own_ablations(metrics)),
        *ablation_summary(metrics.get("ablations")),
        claims(metrics),
    ]


def write(tables: Iterable[Table], folder: Path) -> None:
    """Write each table as `<name>.csv` (long rows) and `<name>.tex`, and all printed forms as `tables.json`.

    Args:
        tables: what to write.
        folder: made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    printed = {}
    for table in tables:
        table.rows.to_csv(folder / f"{table.name}.csv", index=False, float_format="%.6g", lineterminator="\n")
        (folder / f"{table.name}.tex").write_text(tex(table))
        printed[table.name] = {"caption": table.caption, "header": table.header, "cells": table.cells}
    write_json(folder / "tables.json", printed)


def tex(table: Table) -> str:
    """A LaTeX `table` environment (booktabs)."""
    header = [r"\shortstack{" + r" \\ ".join(map(escape, h.split("\n"))) + "}" for h in table.header]
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{'l' * len(header)}}}",
        r"\toprule",
        *(" & ".join(row) + r" \\" for row in [header]),
        r"\midrule",
        *(" & ".join(map(escape, row)) + r" \\" for row in table.cells),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX source."""
    return "".join(TEX.get(c, c) for c in text)


def markdown(table: Table) -> str:
    """The printed form as a GitHub table, for the README."""
    flat = [[c.replace("\n", "<br>").replace("|", r"\|") for c in row] for row in [table.header, *table.cells]]
    return "\n".join("| " + " | ".join(row) + " |" for row in [flat[0], ["---"] * len(flat[0]), *flat[1:]]) + "\n"
