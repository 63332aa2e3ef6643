"""Tables of the paper, from metrics alone: all rows, and of those that are printed a selection as cells."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from matalign import paths, quantities
from matalign.cache import write_json
from matalign.report import ablations, style
from matalign.report.printing import MISSING, Table, digits_of, frame, interval, number, pivot, span, with_unit
from matalign.report.style import Metrics

TARGETS = [q.column for q in quantities.TARGETS]
PRINTED_METRICS = ("MAE", "F1", "accuracy")  # of a target, the first that it has
NOMINAL = 0.9  # coverage of the released intervals that is printed


def claims(metrics: Mapping[str, Metrics]) -> Table:
    """The proposal's claims with value, interval, threshold and verdict; rows name the cell that shows them."""
    rows = [
        {"stage": stage, "cell": _cell(stage), **claim}
        for stage in ("properties", "retrieval", "recommendation", "defects", "micrographs")
        if stage in metrics
        for claim in metrics[stage]["claims"]
    ]
    cells = [
        [
            r["claim"] + (f" ({r['note']})" if r.get("note") else ""),
            with_unit(interval(r, unit=r["unit"]), r["unit"]),
            with_unit(number(r["threshold"], digits=digits_of(r["unit"])), r["unit"]),
            r["verdict"],
        ]
        for r in rows
    ]
    return Table(pd.DataFrame(rows), ["claim", "value", "threshold", "verdict"], cells)


def _cell(stage: str) -> str:
    """``04_retrieval.ipynb#cell-21``: where a stage's notebook shows its claims; ids as in executed notebooks."""
    file = next(paths.NOTEBOOKS.glob(f"*_{stage}.ipynb"))
    cells = ("".join(cell["source"]) for cell in json.loads(file.read_text())["cells"])
    number = next(i for i, text in enumerate(cells, start=1) if 'metrics["claims"]' in text)
    return f"{file.name}#cell-{number:02d}"


def properties(metrics: Metrics) -> dict[str, Table]:
    """Arms down; target, split and share of labels across. A target of at most two runs shares its cohort's table."""
    runs: dict[tuple[str, str], set] = {}
    for r in metrics["results"]:
        runs.setdefault((r["cohort"], r["target"]), set()).add((r["split"], r["label_percent"]))
    grouped: dict[tuple[str, ...], list[str]] = {}
    for cohort, target in sorted(runs, key=lambda t: (t[0], TARGETS.index(t[1]))):
        alone = (target,) if len(runs[cohort, target]) > 2 else ()
        grouped.setdefault((cohort, *alone), []).append(target)
    return {
        "_".join(["properties", name[0], *(targets if len(targets) == 1 else [])]): _cohort(metrics, name[0], targets)
        for name, targets in grouped.items()
    }


def _cohort(metrics: Metrics, cohort: str, targets: list[str]) -> Table:
    rows = [r for r in metrics["results"] if r["cohort"] == cohort and r["target"] in targets]
    held = {t: {r["metric"] for r in rows if r["target"] == t} for t in targets}
    printed = {t: next(m for m in (*PRINTED_METRICS, *sorted(held[t])) if m in held[t]) for t in targets}
    shown = [r for r in rows if r["metric"] == printed[r["target"]]]
    across = ("target", "split", "label_percent")
    columns = sorted({tuple(r[k] for k in across) for r in shown}, key=lambda c: (targets.index(c[0]), *c[1:]))
    header = ["arm"]
    for target, split, percent in columns:
        here = [r for r in shown if (r["target"], r["split"], r["label_percent"]) == (target, split, percent)]
        named = f"{quantities.of(target).name}\n" if len(targets) > 1 else ""
        n, seeds = span(r["n_train"] for r in here), span(r["seeds"] for r in here)
        header.append(f"{named}{split} {percent:g} %\nn = {n}, {seeds} seed{'' if seeds == '1' else 's'}")
    return Table(frame(rows), header, pivot(shown, across, columns))


def retrieval(metrics: Metrics, *, levels: tuple[int, ...] = (1, 2)) -> Table:
    """Structure to protocol: arms down, mask levels across, full gallery above the hard one."""
    everything = style.retrieval_rows(metrics["results"])
    rows = [r for r in everything if (r["query"], r["target"]) == ("structure", "text")]
    # the last column: the mean with ties against the arm
    worst = [{**r, "metric": "MRR, ties worst", "value": r["value_pessimistic"]} for r in rows if r["metric"] == "MRR"]
    ranks = ("R@1", "R@10", "MRR", "MRR, ties worst")
    columns = [(level, m) for level in levels if any(r["level"] == level for r in rows) for m in ranks]
    cells = []
    for gallery in ("full", "hard"):
        here = [r for r in (*rows, *worst) if r["gallery"] == gallery]
        show = lambda r: interval(r) if r["metric"] == "MRR" else number(r["value"])  # noqa: E731
        cells += [[gallery, *line] for line in pivot(here, ("level", "metric"), columns, show=show)]
    return Table(frame(everything), ["gallery", "arm", *(f"L{level}\n{name}" for level, name in columns)], cells)


def recommendation(metrics: Metrics) -> dict[str, Table]:
    """Precursor sets, temperatures, and their paired differences; published scores are marked."""
    sets, heat = metrics["precursors"], metrics["temperatures"]
    tops = sorted({r["k"] for r in sets})
    places = sorted({(r["split"], r["kind"]) for r in heat}, key=lambda p: (p[0], p[1] != "sintering"))
    header = ["arm", *(f"{kind}\n{split}" for split, kind in places)]
    degrees = pivot(heat, ("split", "kind"), places, show=lambda r: interval(r, unit="°C").replace(" ", "\n", 1))
    named = ["arm", *(f"top-{k}" for k in tops)]
    return {
        "precursors": Table(frame(sets), named, pivot(sets, ("k",), [(k,) for k in tops])),
        "temperatures": Table(frame(heat), header, degrees),
        "recommendation_differences": Table(frame(sorted(metrics["comparisons"], key=lambda r: r["task"]))),
    }


def defect_differences(metrics: Metrics) -> pd.DataFrame:
    """Paired differences in macro-F1, on all test hosts and on those with a protocol."""
    order = list(style.ARMS)
    rows, part = metrics["comparisons"], metrics["with_protocol"]["comparisons"]
    if part:
        rows = [{"hosts": name, **r} for name, some in (("all", rows), ("with protocol", part)) for r in some]
    return frame(sorted(rows, key=lambda r: (r.get("hosts", ""), order.index(r["baseline"]), order.index(r["arm"]))))


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
    header = ["target", *(f"{group},\n{what}" for group in groups for what in ("error", "held"))]
    return Table(pd.DataFrame([*rows, *held.values()]), header, cells)


def audit(metrics: Metrics) -> Table:
    """What training and test share, by ladder and key; *: asserted to be zero."""
    rows = metrics["audit"]
    keys = list(dict.fromkeys(r["key"] for r in rows))
    show = lambda r: f"{r['overlap']:,}{'*' * r['asserted_zero']}"  # noqa: E731
    cells = pivot(rows, ("key",), [(k,) for k in keys], down="ladder", show=show)
    return Table(pd.DataFrame(list(rows)), ["split", *(k.replace("_", " ") for k in keys)], cells)


def cohorts(metrics: Metrics) -> Table:
    """Materials and chemical systems of each cohort."""
    table = pd.DataFrame(metrics["cohorts"]).T.rename_axis("cohort")
    cells = [[name, *(f"{n:,}" for n in row)] for name, row in zip(table.index, table.to_numpy())]
    return Table(table.reset_index(), ["cohort", *(c.replace("_", " ") for c in table)], cells)


def declare(metrics: Mapping[str, Metrics], folder: Path) -> None:
    """Write what dvc.yaml declares as metrics and plots, a file a profile: values of claims, losses of training."""
    name, values = metrics["curate"]["profile"], {}
    for row in claims(metrics).rows.to_dict("records"):
        values.setdefault(row["stage"], {})[row["claim"]] = row["value"]
    for kind in ("claims", "training"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    write_json(folder / "claims" / f"{name}.json", values)
    losses = pd.DataFrame(metrics["pretrain"]["history"])[["epoch", "loss_train", "loss_val"]]
    losses.to_csv(folder / "training" / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


def build(metrics: Mapping[str, Metrics]) -> dict[str, Table]:
    """All tables of the paper by name, and those that lie beside it as rows alone."""
    curate, found, ranked, seen = (metrics[s] for s in ("curate", "properties", "retrieval", "defects"))
    pairs = [r for r in ranked["results"] if r["gallery"] == "full" and r["arm"] in ("pretrained", "image")]
    pairs = [r for r in pairs if "text" not in (r["query"], r["target"]) or r["level"] == 1]
    order = ("cohort", "arm", "split", "label_percent")
    gains = sorted(found["comparisons"], key=lambda r: (*(r[k] for k in order), TARGETS.index(r["target"])))
    skipped = sorted(curate["skipped"], key=lambda r: (r["source"], -r["rows"], r["reason"]))
    return {
        "cohorts": cohorts(curate),
        "audit": audit(curate),
        "skipped": Table(pd.DataFrame(skipped)),
        **properties(found),
        "gains": Table(frame(gains)),
        "retrieval": retrieval(ranked),
        "retrieval_pairs": Table(frame(pairs)),
        "registration": Table(frame(ranked.get("registration", []))),  # results of earlier commits have none
        "gallery_curve": Table(frame(style.retrieval_rows(ranked["gallery_curve"]))),
        "retrieval_differences": Table(frame(ranked["comparisons"])),
        **recommendation(metrics["recommendation"]),
        "defects": Table(frame(seen["results"])),
        "defect_differences": Table(defect_differences(seen)),
        "released": released(metrics["release"]),
        **ablations.tables(metrics["ablations"], own=metrics["ablations"]["profile"] == curate["profile"]),
        "claims": claims(metrics),
    }
