"""The model card of a released model, from what was measured on it and from the metrics of earlier stages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matalign.data import sources
from matalign.release.predictors import LEVEL
from matalign.tasks.properties.properties import unit

TEXT = """# matalign, profile {profile}

Crystal structures, synthesis protocols and micrographs as vectors of one space, and predictors of properties.
{warning}
## Use

```python
import matalign

model = matalign.load("{profile}")  # or the path of this folder
model.predict(["NaCl.cif"])  # formation energy, gap, P(metal), K, G; each with an interval
model.neighbours("NaCl.cif", 10)  # materials; with among="protocol" protocols
model.recommend("NaCl.cif", 5)  # protocols, and precursor sets with temperatures
```

For screening and search. No decision should rest on one prediction: look at its interval, compute, measure.

## Data and training

- {materials:,} materials and {protocols:,} protocols (digest `{data}`), {origin}.
- Towers: {modalities}, aligned by the loss `{loss}` on {n_train:,} materials outside both test sets; epoch {best_epoch}
  of {epochs} was kept. Micrographs are simulated from the structures.
- Text model `{text_model}`, whose frozen layers are not stored here: hash `{text_model_hash}`, checked on loading.
{predictors}
{compute}

## How good it is

Test part of the random split, read back from this folder; 95 % intervals over chemical systems. *New chemical systems*:
test materials whose set of elements no training material has.

{results}

Of the test labels, the intervals of {level:.0%} hold the share below (split-conformal by chemical system, scaled by the
members' spread, the distance from training and the error of training nearby). *Out of depth*: `predict` warns of them.

{coverage}

{image}The index keeps {size} components of each vector, as int8. Share of the nearest by full vectors that it finds:
{agreement}.

Recall@1 within a batch of unseen materials: {recall}.
Retrieval, recommendation and defects have stages of their own, with their metrics in `results/{profile}/metrics/`.

## Limits

- Energies, gaps and moduli are those of one level of theory; gaps are known to come out too small.
- Intervals are calibrated on materials like those of the random split. They widen with distance from training, by
  a rule that can be checked no farther away than the test part goes.
- The range given for P(metal) is that of the {members} members, not a calibrated interval.
- Micrographs are simulated; the model has never seen a measured one.
- A protocol knows a composition, not a polymorph. No recipe is part of the model: `matalign fetch` brings them.
- The column `warning` names elements that training hardly has, volumes that it has not, and crystals farther from it
  than 98 % of validation. No warning is no promise.

## Licence

The weights are under the MIT licence, as the code is. Cite `CITATION.cff` and the sources:

{licences}
"""
WARNING = "\n**Trained on the embedded sample, which is synthetic: it shows that the software runs, no more.**\n"
PREDICTORS = """- {targets}: {members} members of the arm `{arm}`, which was best on validation of those that see the
  structure alone ({percent:g} % of labels, {split} split). They are trained on the random split's training part."""
IMAGE = """The image tower's convolutions are stored as int8: the cosine between its embeddings and those at full
precision, over {n} unseen micrographs, is {cosine_mean:.4f} in the mean and {cosine_min:.4f} at least.

"""


def text(folder: Path, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card.

    Args:
        folder: `results/<profile>`, with the metrics of `curate` and `pretrain`.
        about: the model's `config.json`.
        metrics: of the stage `release`, less its files.
    """
    curate, pretrain = (json.loads((folder / "metrics" / f"{s}.json").read_text()) for s in ("curate", "pretrain"))
    synthetic, recall = metrics["synthetic"], pretrain["history"][pretrain["best_epoch"] - 1]["recall_val"]
    found = metrics["index"]["agreement"]
    return TEXT.format(
        **{name: pretrain[name] for name in ("modalities", "loss", "n_train", "best_epoch")},
        **{name: about[name] for name in ("profile", "data", "text_model_hash")},
        **{name: curate["counts"][name] for name in ("materials", "protocols")},
        warning=WARNING if synthetic else "",
        origin="the embedded sample" if synthetic else "from the sources named below",
        epochs=len(pretrain["history"]),
        text_model=about["pretrain"]["text_model"],
        predictors="\n".join(_predictor(row, metrics["members"]) for row in metrics["arms"]),
        compute="\n".join(_compute(folder)),
        results=_results(metrics["results"]),
        level=LEVEL,
        coverage=_coverage(metrics["coverage"]),
        image=IMAGE.format(**metrics["image"]) if metrics["image"] else "",
        size=metrics["index"]["size"],
        agreement=", ".join(f"{r['query']} to {r['among']} {r['agreement']:.3f} of {r['top']}" for r in found),
        recall=", ".join(f"{r['query']} to {r['target']} {r['value']:.2f}" for r in recall),
        members=metrics["members"],
        licences="\n".join(_licences(synthetic=synthetic)),
    )


def _predictor(row: Mapping[str, Any], members: int) -> str:
    targets = ", ".join(row["targets"])
    place = {"arm": row["arm"], "percent": row["label_percent"], "split": row["split"]}
    return PREDICTORS.format(targets=targets, members=members, **place)


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
    header = ("target", "materials", "metric", "value", "unit", "n")
    return _table(
        header, [(r["target"], r["materials"], r["metric"], _interval(r), r["unit"], f"{r['n_test']:,}") for r in rows]
    )


def _coverage(rows: Iterable[Mapping[str, Any]]) -> str:
    header = ("target", "materials", "share held", "half width, median", "mean", "n")
    return _table(
        header,
        [
            (
                r["target"],
                r["materials"],
                _interval(r),
                f"{r['half_width']:.3g} {unit(r['target'])}",
                f"{r['half_width_mean']:.3g}",
                f"{r['n_test']:,}",
            )
            for r in rows
            if r["nominal"] == LEVEL
        ],
    )


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
