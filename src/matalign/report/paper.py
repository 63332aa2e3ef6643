"""The last stage: metrics of all others in; tables, figures and the typeset paper out."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typst

from matalign import config, paths
from matalign.pretrain import losses
from matalign.report import ablations, figures, micrographs

STAGES = ("curate", "pretrain", "properties", "release", "retrieval", "recommendation", "defects", "ablations")
LATER = ("micrographs",)  # of these, results of earlier commits have none
SOURCE = paths.ROOT / "paper"
EPOCH = 1_735_689_600  # 2025-01-01, the time every PDF is stamped with: the same input gives the same bytes

Metrics = Mapping[str, Any]


def read(folder: Path, *, ablations: str = "") -> dict[str, Metrics]:
    """Metrics of the stages, ablations perhaps from another profile; FileNotFoundError: a stage has not written."""
    files = {stage: folder / f"{stage}.json" for stage in STAGES}
    if ablations:
        files["ablations"] = folder.parents[1] / ablations / "metrics" / "ablations.json"
    for stage, file in files.items():
        if not file.exists():
            raise FileNotFoundError(f"no {file}; run the stage {stage} first")
    files |= {stage: folder / f"{stage}.json" for stage in LATER if (folder / f"{stage}.json").exists()}
    return {stage: json.loads(file.read_text()) for stage, file in files.items()}


def drawings(metrics: Mapping[str, Metrics]) -> dict[str, figures.Figure]:
    """Every figure of the paper by name; one whose rows a profile leaves out is an empty panel."""
    of = {"curate": ("curation",), "pretrain": ("training",), "properties": ("learning_curve", "parity", "fusion")}
    of |= {"retrieval": ("retrieval", "gallery_curve"), "defects": ("defects", "dose", "reliability")}
    of |= {"release": ("calibration",), "recommendation": ("recommendation",)}
    drawn = {name: getattr(figures, name)(metrics[stage]) for stage, names in of.items() for name in names}
    drawn["proposal_loss_faults"] = figures.proposal_loss_faults(losses.proposal_loss_faults())
    if "micrographs" in metrics:
        drawn |= micrographs.drawings(metrics["micrographs"])
    own = metrics["ablations"]["profile"] == metrics["curate"]["profile"]
    return drawn | (ablations.figures(metrics["ablations"]) if own else {})


def document(
    folder: Path, *, title: str, source: Path = SOURCE, format: str = "pdf", ppi: float | None = None
) -> list[bytes]:
    """The paper from `metrics/`, `tables/` and `figures/` of a results folder.

    Needs no network and none of the machine's fonts: typst brings its own, packages are not used.

    Args:
        folder: `results/<profile>`, with tables and figures made.
        source: folder of `main.typ`, `references.bib` and `deviations.csv`.
        format: pdf, or png for a page an item.

    Raises:
        ValueError: the source does not compile, with the place; or typst warns (unknown font, unsettled layout).
    """
    options = {"format": format, "ppi": ppi, "timestamp": EPOCH}
    try:
        out, warnings = compiler(folder, title=title, source=source).compile_with_warnings(**options)
    except typst.TypstError as error:
        raise ValueError(error.diagnostic) from None
    if warnings:
        raise ValueError("; ".join(w.diagnostic for w in warnings))
    return out if isinstance(out, list) else [out]


def typeset(folder: Path, *, title: str, source: Path = SOURCE) -> Path:
    """Write the paper as `folder / "paper.pdf"`; arguments and errors as `document`."""
    pdf = folder / "paper.pdf"
    pdf.write_bytes(document(folder, title=title, source=source)[0])
    return pdf


def compiler(folder: Path, *, title: str, source: Path = SOURCE) -> typst.Compiler:
    """Typst set up for a results folder; all paths in the document are relative to what it and `source` share."""
    folder, source = folder.resolve(), source.resolve()
    root = Path(os.path.commonpath([folder, source]))
    inputs = {"results": f"/{folder.relative_to(root)}", "title": title, "minutes": f"{minutes(folder):.0f}"}
    inputs["later"] = " ".join(stage for stage in LATER if (folder / "metrics" / f"{stage}.json").exists())
    return typst.Compiler(source / "main.typ", root=root, ignore_system_fonts=True, sys_inputs=inputs)


def provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """What the stages have left in `results/<profile>/provenance`; none of one whose notebook was run by hand.

    Of a stage that was run again and loaded all its fits: minutes, machine and commit of the run that computed them.
    """
    files = {stage: folder / "provenance" / f"{stage}.json" for stage in config.STAGES if stage != "paper"}
    made = {stage: json.loads(file.read_text()) for stage, file in files.items() if file.exists()}
    return {stage: {**record, **record.get("computed", {})} for stage, record in made.items()}


def minutes(folder: Path) -> float:
    """Wall time of the last runs of all stages that left a record; 0 for the synthetic sample: two runs print alike.

    Without the atlas, which the paper does not read, and the ablations where the profile ran none.
    """
    metrics = folder / "metrics"
    made = provenance(folder)
    if not made or json.loads((metrics / "curate.json").read_text())["synthetic"]:
        return 0.0
    ran = json.loads((metrics / "ablations.json").read_text())["results"]
    left_out = {"atlas"} if ran else {"atlas", "ablations"}
    return sum(record["minutes"] for stage, record in made.items() if stage not in left_out)
