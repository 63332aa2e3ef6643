"""Tables of the paper, from metrics alone.

A printed table is a selection of its rows: one metric a target, intervals in brackets. Its caption carries what a
number needs to be read: cohort, test materials, chemical systems, seeds, the interval, and whether the data are
synthetic.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from matalign import quantities
from matalign.report import ablations, style
from matalign.report.printing import (
    MISSING,
    Table,
    caption,
    counted,
    difference,
    digits_of,
    frame,
    interval,
    number,
    pivot,
    span,
    with_unit,
)
from matalign.report.style import Metrics, Row, ordered

TARGETS = [q.column for q in quantities.TARGETS]
PRINTED_METRICS = ("MAE", "F1", "accuracy")  # of a target, the first that it has
NOMINAL = 0.9  # coverage of the released intervals that is printed
DEFECT_METRICS = {"macro_F1": "macro-F1", "accuracy": "accuracy", "ECE": "ECE", "ECE_scaled": "ECE, scaled"}


def claims(metrics: Mapping[str, Metrics]) -> Table:
    """The proposal's claims with value, interval, threshold and verdict."""
    stages = [s for s in ("properties", "retrieval", "recommendation", "defects") if s in metrics]
    rows = [{"stage": s, **claim} for s in stages for claim in metrics[s]["claims"]]
    cells = [
        [
            r["claim"] + (f" ({r['note']})" if r.get("note") else ""),
            with_unit(interval(r, unit=r["unit"]), r["unit"]),
            with_unit(number(r["threshold"], digits=digits_of(r["unit"])), r["unit"]),
            r["verdict"],
        ]
        for r in rows
    ]
    unit = "chemical systems (hosts, for defects)"
    text = caption("Claims of the proposal, as pass or fail.", metrics["properties"], unit=unit)
    return Table("claims", text, pd.DataFrame(rows), ["claim", "value", "threshold", "verdict"], cells)


def properties(metrics: Metrics) -> list[Table]:
    """Arms down; target, split and share of labels across. A target of at most two runs shares its cohort's table."""
    runs: dict[tuple[str, str], set] = {}
    for r in metrics["results"]:
        runs.setdefault((r["cohort"], r["target"]), set()).add((r["split"], r["label_percent"]))
    grouped: dict[tuple[str, ...], list[str]] = {}
    for cohort, target in sorted(runs, key=lambda t: (t[0], TARGETS.index(t[1]))):
        alone = (target,) if len(runs[cohort, target]) > 2 else ()
        grouped.setdefault((cohort, *alone), []).append(target)
    return [_properties(metrics, name[0], targets) for name, targets in grouped.items()]


def _properties(metrics: Metrics, cohort: str, targets: list[str]) -> Table:
    rows = [r for r in metrics["results"] if r["cohort"] == cohort and r["target"] in targets]
    shown, units = [], []
    for target in targets:
        mine = [r for r in rows if r["target"] == target]
        metric = next(m for m in (*PRINTED_METRICS, mine[0]["metric"]) if any(r["metric"] == m for r in mine))
        name, unit = quantities.of(target).name, mine[0]["unit"]
        units.append(f"{metric} of the {name}" + (f", {unit}" if unit else ""))
        shown += [r for r in mine if r["metric"] == metric]
    across = ("target", "split", "label_percent")
    runs = {tuple(r[key] for key in across) for r in shown}
    columns = sorted(runs, key=lambda c: (targets.index(c[0]), *c[1:]))
    header = ["arm"]
    for target, split, percent in columns:
        here = [r for r in shown if tuple(r[key] for key in across) == (target, split, percent)]
        named = f"{quantities.of(target).name}\n" if len(targets) > 1 else ""
        n, seeds = span(r["n_train"] for r in here), counted(here, "seeds", "seed")
        header.append(f"{named}{split} {percent:g} %\nn = {n}, {seeds}")
    tests = []
    for split in sorted({split for _, split, _ in columns}):
        here = [r for r in shown if r["split"] == split]
        materials, systems = counted(here, "n_test", "test material"), counted(here, "n_chemsys", "chemical system")
        tests.append(f"{split}: {materials} of {systems}")
    text = f"{'; '.join(units)}; cohort {cohort}, from the structure alone"
    beyond = style.beyond_structure(r["arm"] for r in shown)
    text += ", but for arms named fused or after one modality. " if beyond else ". "
    text += f"{'; '.join(tests)}. Columns: split, share of the training labels, number of training materials and of "
    text += "seeds."
    name = "_".join(["properties", cohort, *(targets if len(targets) == 1 else [])])
    return Table(name, caption(text, metrics), frame(rows), header, pivot(shown, across, columns))


def gains(metrics: Metrics) -> Table:
    """What pretraining buys: relative reduction of the error, paired."""
    rows = sorted(
        metrics["comparisons"],
        key=lambda r: (r["cohort"], r["arm"], TARGETS.index(r["target"]), r["split"], r["label_percent"]),
    )
    cells = [
        [
            r["cohort"],
            f"{quantities.of(r['target']).name}, {r.get('error', 'MAE')}",
            f"{r['split']} {r['label_percent']:g} %",
            style.arm(r["arm"]).label,
            style.arm(r["baseline"]).label,
            interval(r, value="gain_percent", unit="%"),
            number(r["p_holm"]),
            str(r["seeds"]),
            f"{r['n_test']:,}",
        ]
        for r in [r for r in rows if r["baseline"] in ("scratch", "scratch_long", "early_fusion")] or rows
    ]
    text = "Reduction of the error against a baseline, in per cent of the baseline's, paired by material. The error "
    text += "rate is 1 − accuracy. p: Holm-corrected over all baselines and cohorts (gains.csv). A negative number is "
    text += "a loss."
    header = ["cohort", "target, error", "split, labels", "arm", "baseline", "gain (%)", "p", "seeds", "n test"]
    return Table("gains", caption(text, metrics), frame(rows), header, cells)


RANKS = {  # columns of a retrieval table
    "R@1": lambda by: number(by["R@1"]["value"]) if "R@1" in by else MISSING,
    "R@10": lambda by: number(by["R@10"]["value"]) if "R@10" in by else MISSING,
    "MRR": lambda by: interval(by["MRR"]) if "MRR" in by else MISSING,
    "MRR, ties worst": lambda by: number(by["MRR"].get("value_pessimistic")) if "MRR" in by else MISSING,
}


def retrieval(metrics: Metrics, *, levels: tuple[int, ...] = (1, 2)) -> Table:
    """Structure to protocol: arms down, mask levels across, full gallery above the hard one."""
    everything = style.retrieval_rows(metrics["results"])
    rows = [r for r in everything if (r["query"], r["target"]) == ("structure", "text")]
    levels = tuple(level for level in levels if any(r["level"] == level for r in rows))
    cells, sizes = [], []
    for gallery in ("full", "hard"):
        here = [r for r in rows if r["gallery"] == gallery]
        if here:
            sizes.append(f"{span(r['n_gallery'] for r in here)} materials ({gallery} gallery)")
        for arm in ordered(r["arm"] for r in here):
            by = [{r["metric"]: r for r in here if (r["arm"], r["level"]) == (arm, level)} for level in levels]
            cells.append([gallery, style.arm(arm).label, *(show(b) for b in by for show in RANKS.values())])
    header = ["gallery", "arm", *(f"L{level}\n{name}" for level in levels for name in RANKS)]
    text = f"From structure to protocol: {span(r['n_queries'] for r in rows)} queries of "
    text += f"{span(r['n_chemsys'] for r in rows)} held-out chemical systems, ranked among {' and '.join(sizes)}. Ties "
    text += "count in expectation; beside it, resolved against the arm. One seed. Intervals of R@k: retrieval.csv."
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
        name = f"{query} → {target}".replace("text", "protocol") + ("*" if emergent(here) else "")
        ranks = [RANKS[column](by) for column in ("R@1", "R@10", "MRR")]
        cells.append([name, *ranks, *(span(r[n] for r in here) for n in ("n_queries", "n_gallery"))])
    text = f"The towers as pretraining left them, all directions, full gallery (protocols at L{level})."
    if emergent(rows):
        text += " *: a pair that training never compared, aligned through the structure alone."
    elif any(r.get("paired") for r in rows):
        text += " All pairs were compared in training."
    header = ["query → target", "R@1", "R@10", "MRR", "queries", "gallery"]
    return Table("retrieval_pairs", caption(text, metrics), frame(rows), header, cells)


def emergent(rows: Iterable[Row]) -> bool:
    """Whether some rows are of a pair of modalities that training never compared."""
    return any(r.get("paired") is False for r in rows)


def gallery_curve(metrics: Metrics) -> Table:
    """Structure to protocol by the size of the gallery: sizes across, arms down."""
    rows = style.retrieval_rows(metrics["gallery_curve"])
    sizes = sorted({r["n_gallery"] for r in rows})
    shown = [r for r in rows if r["metric"] == "MRR"]
    cells = []
    for level in sorted({r["level"] for r in rows}):
        here = [r for r in shown if r["level"] == level]
        lines = pivot(here, ("n_gallery",), [(n,) for n in sizes], show=lambda r: number(r["value"]))
        cells += [[f"L{level}", *line] for line in lines]
    text = "MRR from structure to protocol by the number of materials in the gallery: the expectation over all "
    text += "galleries drawn from the full one, the last, that hold the right answer. R@10 and intervals: "
    text += "gallery_curve.csv."
    header = ["level", "arm", *(f"{n:,}" for n in sizes)]
    return Table("gallery_curve", caption(text, metrics), frame(rows), header, cells)


def retrieval_differences(metrics: Metrics) -> Table:
    """Paired differences in MRR between the structure tower and its baselines."""
    rows = [r for r in metrics["comparisons"] if (r["metric"], r["query"], r["target"]) == ("MRR", "structure", "text")]
    cells = [
        [
            r["gallery"],
            f"L{r['level']}",
            f"{style.arm(r['arm']).label.removesuffix(' tower')} − {style.arm(r['baseline']).label}",
            interval(r, value="difference"),
            number(r["p_holm"]),
        ]
        for r in sorted(rows, key=lambda r: (r["gallery"], r["level"], r["arm"], r["baseline"]))
    ]
    queries = span(r["n_queries"] for r in metrics["results"])
    text = f"Paired differences in MRR, structure to protocol; {queries} queries, one seed. "
    text += "p: Holm-corrected over the family."
    header = ["gallery", "level", "arms", "Δ MRR", "p"]
    return Table("retrieval_differences", caption(text, metrics), frame(metrics["comparisons"]), header, cells)


def recommendation(metrics: Metrics) -> list[Table]:
    """Precursor sets, temperatures, and their paired differences; published scores are marked."""
    published = "Published rows are of Prein et al. (2025)."
    rows = metrics["precursors"]
    tops = sorted({r["k"] for r in rows})
    ceiling = {r["ceiling"]: number(r["value"]) for r in metrics["ceilings"]}
    text = f"Precursor sets: {counted(rows, 'n', 'target')} of {counted(rows, 'n_chemsys', 'chemical system')}, none "
    text += f"of them trained on; the exact set, in any order, among the first k. Ceilings: {ceiling['vocabulary']} "
    text += f"have no precursor that training lacks, {ceiling['copy']} a set that training holds. {published}"
    header, cells = ["arm", *(f"top-{k}" for k in tops)], pivot(rows, ("k",), [(k,) for k in tops])
    sets = Table("precursors", caption(text, metrics), frame(rows), header, cells)

    rows = metrics["temperatures"]
    places = sorted({(r["split"], r["kind"]) for r in rows}, key=lambda p: (p[0], p[1] != "sintering"))
    text = f"Mean absolute error of temperatures, °C; {counted(rows, 'n_test', 'test reaction')}. official: the public "
    text += "split, and text-mined reactions of no DOI of a test row; strict: nothing that shares a chemical system or "
    text += f"DOI with the test. {published}"
    header = ["arm", *(f"{kind}\n{split}" for split, kind in places)]
    cells = pivot(rows, ("split", "kind"), places, show=lambda r: interval(r, unit="°C"))
    temperatures = Table("temperatures", caption(text, metrics), frame(rows), header, cells)

    rows = sorted(metrics["comparisons"], key=lambda r: r["task"])
    text = "Recommendation: paired differences on the same targets, in the share of exact sets and in °C of mean "
    text += "absolute error. p: Holm-corrected over the family."
    cells = [
        [r["task"], difference(r), with_unit(interval(r, unit=r["unit"]), r["unit"]), number(r["p_holm"])] for r in rows
    ]
    header = ["task", "arms", "Δ", "p"]
    differences = Table("recommendation_differences", caption(text, metrics), frame(rows), header, cells)
    return [sets, temperatures, differences]


def defects(metrics: Metrics) -> Table:
    """Defect classes: macro-F1, accuracy, calibration."""
    rows = metrics["results"]
    shown = {m: label for m, label in DEFECT_METRICS.items() if any(r["metric"] == m for r in rows)}
    text = f"Five defect classes: {counted(rows, 'n_images', 'test image')} of {counted(rows, 'n_hosts', 'host')}, "
    text += f"{counted(rows, 'seeds', 'seed')}; hosts split by chemical system, all classes equally from every host. "
    text += "ECE: expected calibration error"
    text += ", scaled: with one temperature fitted on validation." if "ECE_scaled" in shown else "."
    cells = pivot(rows, ("metric",), [(m,) for m in shown])
    return Table("defects", caption(text, metrics, unit="hosts"), frame(rows), ["arm", *shown.values()], cells)


def defect_differences(metrics: Metrics) -> Table:
    """Paired differences in macro-F1, on all test hosts and on those with a protocol."""
    order = list(style.ARMS)
    rows, part = metrics["comparisons"], metrics.get("with_protocol", {"comparisons": []})
    if part["comparisons"]:
        rows = [{"hosts": "all", **r} for r in rows]
        rows += [{"hosts": "with protocol", **r} for r in part["comparisons"]]
    rows = sorted(rows, key=lambda r: (r.get("hosts", ""), order.index(r["baseline"]), order.index(r["arm"])))
    note = {"with protocol": ", hosts with a protocol"}
    cells = [
        [difference(r) + note.get(r.get("hosts"), ""), interval(r, value="difference"), number(r["p_holm"])]
        for r in rows
        if r["arm"] not in ("majority", "context")
    ]
    text = "Paired differences in macro-F1 on the same images. p: Holm-corrected over the family."
    if part["comparisons"]:
        text += f" {counted([part], 'n_hosts', 'test host')} have a protocol; they are a family of their own."
    header = ["arms", "Δ macro-F1", "p"]
    return Table("defect_differences", caption(text, metrics, unit="hosts"), frame(rows), header, cells)


def released(metrics: Metrics) -> Table:
    """The released model: error of each predictor, and coverage of its intervals."""
    held = {(r["target"], r["materials"]): r for r in metrics["coverage"] if r["nominal"] == NOMINAL}
    rows = [r for r in metrics["results"] if r["metric"] in ("MAE", "accuracy")]
    of = {(r["target"], r["materials"]): r for r in rows}
    groups = list(dict.fromkeys(r["materials"] for r in rows))
    cells = []
    for target in dict.fromkeys(r["target"] for r in rows):
        scored = of[target, groups[0]]
        line = [f"{quantities.of(target).name}, {with_unit(scored['metric'], scored['unit'])}"]
        for group in groups:
            line += [interval(r[target, group]) if (target, group) in r else MISSING for r in (of, held)]
        cells.append(line)
    text = f"The released predictors on the random split's test set, ensembles of {metrics['members']}, trained on its "
    text += "training part. Held: the share of materials whose value lies within the interval that is meant to hold "
    text += f"{NOMINAL:.0%} (file calibration.pdf). Brackets: 95 % interval, bootstrap over chemical systems."
    header = ["target", *(f"{group},\n{what}" for group in groups for what in ("error", "held"))]
    rows = pd.DataFrame([*rows, *held.values()])
    return Table("released", caption(text, metrics, unit=""), rows, header, cells)


def audit(metrics: Metrics) -> Table:
    """What training and test share, by ladder and key."""
    rows = metrics["audit"]
    keys = list(dict.fromkeys(r["key"] for r in rows))

    def show(row: Row) -> str:
        return f"{row['overlap']:,}" + "*" * row["asserted_zero"]

    cells = pivot(rows, ("key",), [(key,) for key in keys], down="ladder", show=show)
    text = caption("What training and test share, counted. *: asserted to be zero.", metrics, unit="")
    return Table("audit", text, pd.DataFrame(list(rows)), ["split", *(k.replace("_", " ") for k in keys)], cells)


def cohorts(metrics: Metrics) -> Table:
    """Materials and chemical systems of each cohort."""
    rows = [{"cohort": name, **counts} for name, counts in metrics["cohorts"].items()]
    columns = [c for c in rows[0] if c != "cohort"] if rows else []
    cells = [[r["cohort"], *(f"{r[c]:,}" if c in r else MISSING for c in columns)] for r in rows]
    header = ["cohort", *(c.replace("_", " ") for c in columns)]
    return Table("cohorts", caption("Cohorts.", metrics, unit=""), pd.DataFrame(rows), header, cells)


def skipped(metrics: Metrics) -> Table:
    """Rows left out at curation, with the reason."""
    rows = sorted(metrics["skipped"], key=lambda r: (r["source"], -r["rows"], r["reason"]))
    cells = [[r["source"], r["reason"].replace("_", " "), f"{r['rows']:,}"] for r in rows]
    text = caption("Rows left out at curation.", metrics, unit="")
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
        *ablations.tables(ablations.own(metrics)),
        *ablations.summary(metrics.get("ablations")),
        claims(metrics),
    ]
