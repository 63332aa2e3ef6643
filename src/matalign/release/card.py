"""The model card of a released model, from what was measured on it and from the metrics of earlier stages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matalign import quantities
from matalign.data import sources
from matalign.release.predictors import LEVEL

WARNING = "\n**Trained on the embedded sample, which is synthetic: it shows that the software runs, no more.**\n"
PREDICTORS = """- {targets}: {members} members of the arm `{arm}`, which was best on validation of those that see the
  structure alone ({percent:g} % of labels, {split} split). They are trained on the random split's training part."""
IMAGE = """The image tower's convolutions are stored as int8: the cosine between its embeddings and those at full
precision, over {n} unseen micrographs, is {cosine_mean:.4f} in the mean and {cosine_min:.4f} at least.

"""
FOREIGN = """The sources hold crystals that this profile leaves out and the model has never seen. On {n:,} of them,
drawn at random ({least:g} to {most:g} atoms in the cell, in the middle {middle:g}):

{results}

{coverage}

"""


def text(folder: Path, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card, from the metrics of `curate` and `pretrain` in `folder`, its `config.json`, and its own metrics."""
    curate, pretrain = (json.loads((folder / "metrics" / f"{s}.json").read_text()) for s in ("curate", "pretrain"))
    synthetic, recall = metrics["synthetic"], pretrain["history"][pretrain["best_epoch"] - 1]["recall_val"]
    found = metrics["index"]["agreement"]
    arms = [row | {"targets": ", ".join(row["targets"]), "percent": row["label_percent"]} for row in metrics["arms"]]
    return (
        Path(__file__)
        .with_suffix(".md")
        .read_text(encoding="utf-8")
        .format(
            **{name: pretrain[name] for name in ("modalities", "loss", "n_train", "best_epoch")},
            **{name: about[name] for name in ("profile", "data", "text_model_hash")},
            **{name: curate["counts"][name] for name in ("materials", "protocols")},
            warning=WARNING if synthetic else "",
            origin="the embedded sample" if synthetic else "from the sources named below",
            epochs=len(pretrain["history"]),
            text_model=about["pretrain"]["text_model"],
            predictors="\n".join(PREDICTORS.format(**row, members=metrics["members"]) for row in arms),
            compute="\n".join(_compute(folder)),
            results=_results(metrics["results"]),
            level=LEVEL,
            coverage=_coverage(metrics["coverage"]),
            foreign=_foreign(metrics["foreign"]),
            image=IMAGE.format(**metrics["image"]) if metrics["image"] else "",
            size=metrics["index"]["size"],
            agreement=", ".join(f"{r['query']} to {r['among']} {r['agreement']:.3f} of {r['top']}" for r in found),
            recall=", ".join(f"{r['query']} to {r['target']} {r['value']:.2f}" for r in recall),
            members=metrics["members"],
            licences="\n".join(_licences(synthetic=synthetic)),
        )
    )


def _compute(folder: Path) -> list[str]:
    """What training took, by the stages whose provenance is at hand; that of the release is not there yet."""
    lines = []
    for stage in ("pretrain", "properties"):
        file = folder / "provenance" / f"{stage}.json"
        if file.exists():
            made = json.loads(file.read_text())
            made |= made.get("computed", {})
            here = made["machine"]
            lines.append(
                f"- The stage `{stage}` took {made['minutes']:.1f} minutes: {here['cores']} cores ({here['cpu']}), "
                f"GPUs: {', '.join(here['gpus']) or 'none'}."
            )
    return lines


def _results(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = [(r["target"], r["materials"], r["metric"], _interval(r), r["unit"], f"{r['n_test']:,}") for r in rows]
    return _table(("target", "materials", "metric", "value", "unit", "n"), cells)


def _coverage(rows: Iterable[Mapping[str, Any]]) -> str:
    cells = []
    for r in (r for r in rows if r["nominal"] == LEVEL):
        widths = f"{r['half_width']:.3g} {quantities.of(r['target']).fitted_unit}", f"{r['half_width_mean']:.3g}"
        cells.append((r["target"], r["materials"], _interval(r), *widths, f"{r['n_test']:,}"))
    return _table(("target", "materials", "share held", "half width, median", "mean", "n"), cells)


def _foreign(found: Mapping[str, Any]) -> str:
    if not found["results"]:
        return ""
    tables = {"results": _results(found["results"]), "coverage": _coverage(found["coverage"])}
    return FOREIGN.format(n=found["n"], **dict(zip(("least", "middle", "most"), found["atoms"])), **tables)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _licences(*, synthetic: bool) -> list[str]:
    if synthetic:
        return ["- `data/sample`, made by this project"]
    return [
        f"- `{name}` ({' '.join(str(entry['licence']).split())}): {' '.join(str(entry['citation']).split())}"
        for name, entry in sources.catalogue().items()
    ]
