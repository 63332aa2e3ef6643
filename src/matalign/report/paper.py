"""The last stage: metrics of all others in; tables, figures and the typeset paper out."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import typst

from matalign import config, paths
from matalign.pretrain import losses
from matalign.report import ablations, figures, tables

STAGES = ("curate", "pretrain", "properties", "release", "retrieval", "recommendation", "defects", "ablations")
LATER = ("release", "recommendation", "ablations", "atlas")  # results of older code lack them
SOURCE = paths.ROOT / "paper"
EPOCH = 1_735_689_600  # 2025-01-01, the time every PDF is stamped with: the same input gives the same bytes

TEXT_END_PT = 72 * (11 - 0.85) + 1  # US letter less the bottom margin of main.typ

Metrics = Mapping[str, Any]


def read(folder: Path, *, ablations: str = "") -> dict[str, Metrics]:
    """Metrics of the stages; of those in `LATER`, if they are there.

    Args:
        folder: `results/<profile>/metrics`.
        ablations: the profile whose ablations are read; "": this one's.

    Raises:
        FileNotFoundError: a stage has not written its metrics.
    """
    files = {stage: folder / f"{stage}.json" for stage in STAGES}
    if ablations:
        files["ablations"] = folder.parents[1] / ablations / "metrics" / "ablations.json"
    there = [stage for stage, file in files.items() if stage not in LATER or ablations or file.exists()]
    missing = [stage for stage in there if not files[stage].exists()]
    if missing:
        raise FileNotFoundError(f"no {files[missing[0]]}; run the stage {missing[0]} first")
    return {stage: json.loads(files[stage].read_text(), object_hook=_renamed) for stage in there}


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file, the losses by today's names: results of earlier commits call `proposal` `seed`."""
    loss = {k: v for k, v in row.items() if isinstance(v, str) and (k == "loss" or row.get("group") == "loss")}
    return row | {k: re.sub(r"\bseed\b", "proposal", v) for k, v in loss.items()}


def drawings(metrics: Mapping[str, Metrics]) -> dict[str, figures.Figure]:
    """Every figure of the paper by name; one whose rows a profile leaves out is an empty panel.

    `calibration`, `gallery_curve` and `reliability` are drawn only from metrics that have their rows.
    """
    drawn = {
        "curation": figures.curation(metrics["curate"]),
        "proposal_loss_faults": figures.proposal_loss_faults(losses.proposal_loss_faults()),
        "training": figures.training(metrics["pretrain"]),
        "learning_curve": figures.learning_curve(metrics["properties"]),
        "parity": figures.parity(metrics["properties"]),
        "fusion": figures.fusion(metrics["properties"]),
        "retrieval": figures.retrieval(metrics["retrieval"]),
        "defects": figures.defects(metrics["defects"]),
        "dose": figures.dose(metrics["defects"]),
        **ablations.figures(ablations.own(metrics)),
    }
    if "release" in metrics:
        drawn["calibration"] = figures.calibration(metrics["release"])
    if "gallery_curve" in metrics["retrieval"]:
        drawn["gallery_curve"] = figures.gallery_curve(metrics["retrieval"])
    if "reliability" in metrics["defects"]:
        drawn["reliability"] = figures.reliability(metrics["defects"])
    if "recommendation" in metrics:
        drawn["recommendation"] = figures.recommendation(metrics["recommendation"])
    return drawn


def typeset(folder: Path, *, title: str, source: Path = SOURCE) -> Path:
    """Typeset the paper from `metrics/`, `tables/` and `figures/` of a results folder.

    Needs no network and none of the machine's fonts: typst brings its own, packages are not used.

    Args:
        folder: `results/<profile>`, with tables and figures made.
        title: of the paper.
        source: folder of `main.typ`, `references.bib` and `deviations.csv`.

    Returns:
        `folder / "paper.pdf"`.

    Raises:
        ValueError: the source does not compile, with the place; or typst warns (unknown font, unsettled layout).
    """
    pdf = folder / "paper.pdf"
    pdf.write_bytes(document(folder, title=title, source=source)[0])
    return pdf


def pages(folder: Path, *, title: str, source: Path = SOURCE, ppi: float = 100) -> list[bytes]:
    """The paper's pages as PNG images, to look at."""
    return document(folder, title=title, source=source, format="png", ppi=ppi)


def document(folder: Path, *, title: str, source: Path, format: str = "pdf", ppi: float | None = None) -> list[bytes]:
    """The paper in the given format, one item a page for images. Arguments as `typeset`."""
    try:
        out, warnings = compiler(folder, title=title, source=source).compile_with_warnings(
            format=format, ppi=ppi, timestamp=EPOCH
        )
    except typst.TypstError as error:
        raise ValueError(error.diagnostic) from None
    if warnings:
        raise ValueError("; ".join(w.diagnostic for w in warnings))
    return out if isinstance(out, list) else [out]


def compiler(folder: Path, *, title: str, source: Path) -> typst.Compiler:
    """Typst set up for a results folder; all paths in the document are relative to what it and `source` share."""
    folder, source = folder.resolve(), source.resolve()
    root = Path(os.path.commonpath([folder, source]))
    inputs = {"results": f"/{folder.relative_to(root)}", "title": title, "origins": json.dumps(origins(folder))}
    return typst.Compiler(source / "main.typ", root=root, ignore_system_fonts=True, sys_inputs=inputs)


def overflowing(folder: Path, *, title: str, source: Path = SOURCE) -> list[str]:
    """Figures and tables that run below the text area of their page; a layout to mend. Arguments as `typeset`."""
    ends = json.loads(compiler(folder, title=title, source=source).query("<end>"))
    return [f"{end['name']}, page {end['page']}" for end in (e["value"] for e in ends) if end["y"] > TEXT_END_PT]


def provenance(folder: Path, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each stage has left in `results/<profile>/provenance`.

    Of a stage that was run again and loaded all its fits: minutes, machine and commit of the run that computed them.

    Raises:
        FileNotFoundError: a stage has left none; those in `LATER` may.
    """
    files = {stage: folder / "provenance" / f"{stage}.json" for stage in stages}
    made = {s: json.loads(f.read_text()) for s, f in files.items() if s not in LATER or f.exists()}
    return {stage: {**record, **record.get("computed", {})} for stage, record in made.items()}


def origins(folder: Path) -> list[dict[str, str]]:
    """Where the numbers of the paper come from: a row a stage, from its notebook to the commit that ran it.

    Empty where the claim of identity includes a second run, whose minutes are others: for the synthetic sample; and for
    results without provenance. Without a row of the ablations where the profile ran none.
    """
    curated = folder / "metrics" / "curate.json"
    if not (folder / "provenance" / "curate.json").exists() or json.loads(curated.read_text())["synthetic"]:
        return []
    return [
        {
            "stage": stage,
            "notebook": next(paths.NOTEBOOKS.glob(f"*_{stage}.ipynb")).name,
            "commit": made["git"]["sha"][:7] if made["git"] else "",
            "minutes": f"{made['minutes']:.1f}",
            "cores": str(made["machine"]["cores"]),
        }
        for stage, made in provenance(folder, STAGES).items()
        if stage != "ablations" or json.loads((folder / "metrics" / "ablations.json").read_text())["results"]
    ]


def cost(folder: Path) -> tables.Table:
    """Minutes of each stage; see `provenance`.

    Args:
        folder: `results/<profile>`.

    Raises:
        FileNotFoundError: a stage has left no provenance.
    """
    made = provenance(folder, config.STAGES)
    rows = [
        {
            "stage": stage,
            "minutes": record["minutes"],
            "cores": record["machine"]["cores"],
            "gpus": len(record["machine"]["gpus"]),
            "cpu": record["machine"]["cpu"],
        }
        for stage, record in made.items()
    ]
    rows.append({"stage": "all", "minutes": sum(r["minutes"] for r in rows), "cores": "", "gpus": "", "cpu": ""})
    cells = [[r["stage"], f"{r['minutes']:.1f}", str(r["cores"]), str(r["gpus"]), r["cpu"]] for r in rows]
    text = f"Wall time of the profile {folder.name}."
    return tables.Table("cost", text, pd.DataFrame(rows), ["stage", "minutes", "cores", "GPUs", "processor"], cells)


def deviations(source: Path = SOURCE) -> tables.Table:
    """What differs from the proposal; the paper prints the same file."""
    rows = pd.read_csv(source / "deviations.csv", dtype=str, keep_default_na=False)
    return tables.Table("deviations", "Deviations from the proposal.", rows, list(rows), rows.to_numpy().tolist())


def printed(file: Path) -> tables.Table:
    """A table that a benchmark has written as it is printed; timings, so for the README and not for the PDF."""
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    return tables.Table(file.stem, "Timings.", rows, list(rows), rows.to_numpy().tolist())


def trials(found: Mapping[str, Any]) -> tables.Table:
    """How the settings of the crystal tower were chosen, and what they reach; the part `energy` of `bench.json`."""
    start, final = found["trials"][0], found["final"]

    def changed(settings: Mapping[str, Any]) -> str:
        return ", ".join(f"{k} {settings[k]:g}" for k in found["chosen"] if settings[k] != start[k]) or "start"

    rows = [
        {"run": changed(t), "on": "validation", "value": t["mae_val_eV_atom"], "minutes": t["core_minutes"], "cores": 1}
        for t in found["trials"]
    ]
    cells = [[r["run"], r["on"], f"{r['value']:.4f}", f"{r['minutes']:.1f}", "1"] for r in rows]
    error, threads, minutes = final["mae_test_eV_atom"], final["threads"], final["seconds"] / 60
    run = f"{changed(found['chosen'])}, {final['structures_per_s']:.0f} structures/s"
    rows.append({"run": run, "on": "test", **error, "minutes": minutes, "cores": threads})
    value = f"{error['value']:.4f} [{error['low']:.4f}, {error['high']:.4f}]"
    cells.append([run, "test", value, f"{minutes:.1f}", str(threads)])
    header = ["run", "on", "MAE (eV/atom)", "minutes", "cores"]
    return tables.Table("trials", "Formation energy from scratch, random split.", pd.DataFrame(rows), header, cells)


def fill(text: str, folder: Path, *, source: Path = SOURCE) -> str:
    """A README with the tables between its marks made anew: ``<!-- table: claims of laptop -->`` … ``<!-- end -->``.

    A mark names a table of a profile's paper, or its `cost`; or, of no profile, `deviations`, `bench`, `scale`,
    `trials`. One whose source is absent stays as it is.

    Args:
        text: of the README.
        folder: `results`.
        source: as in `typeset`.
    """
    made = {("deviations", ""): deviations(source)}
    for file in (folder / "bench" / name for name in ("bench.csv", "scale.csv")):
        if file.exists():
            made[file.stem, ""] = printed(file)
    if (parts := folder / "bench" / "bench.json").exists() and (energy := json.loads(parts.read_text()).get("energy")):
        made["trials", ""] = trials(energy)
    mark = r"(?P<start><!-- table: (?P<name>\w+)(?: of (?P<profile>\w+))? -->).*?(?P<end><!-- end -->)"
    for profile in {match["profile"] for match in re.finditer(mark, text, flags=re.S)} - {None}:
        if (folder / profile / "metrics").is_dir():
            own = [*tables.build(read(folder / profile / "metrics")), cost(folder / profile)]
            made |= {(table.name, profile): table for table in own}

    def replace(match: re.Match) -> str:
        table = made.get((match["name"], match["profile"] or ""))
        return f"{match['start']}\n{tables.markdown(table)}{match['end']}" if table else match[0]

    return re.sub(mark, replace, text, flags=re.S)
