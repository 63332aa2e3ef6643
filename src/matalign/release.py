"""The stage `release`: predictors are fitted, the model is written, and what it then says is measured.

All that is measured (errors, what intervals cover, what few bits cost) is measured on what is released, read back from
the folder. The folder holds weights, vectors, mp-ids with formula and predictions, and protocol ids; no structure, no
label of a source, no recipe and no DOI.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import matalign
from matalign import config, embed, fits, index, packed, paths, predictors, released, scratch, sources, stats
from matalign.config import Release
from matalign.fits import E_F, Fit
from matalign.predictors import LEVEL, LEVELS, Calibration
from matalign.properties import unit
from matalign.regression import METAL, THRESHOLD

SIGNIFICANT = 4  # digits of a prediction in the table of crystals
NEW = "new chemical systems"  # test materials of elements that no training material combines
EVERY = "all"


def arms(cfg: Release) -> list[dict[str, Any]]:
    """Which arm each group of targets is released with; rows as from `predictors.chosen`.

    Raises:
        FileNotFoundError: the stage properties has not been run.
    """
    file = paths.results(cfg.profile) / "metrics" / "properties.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; the stage `properties` makes it")
    rows = json.loads(file.read_text())["fits"]
    groups = dict.fromkeys(row["targets"] for row in rows)
    return [predictors.chosen(rows, targets) for targets in groups]


def plan(cfg: Release) -> tuple[config.Properties, list[Fit]]:
    """The fits of the members, with the schedule of the stage properties; and the config that they belong to."""
    found = {row["targets"]: row["arm"] for row in arms(cfg)}
    return predictors.plan(config.load("properties", cfg.profile), found, members=cfg.members)


def build(cfg: Release) -> dict[str, Any]:
    """The whole stage: fit what is not fitted yet, write `results/<profile>/model`, measure it.

    Returns:
        What `metrics/release.json` holds: {arms, results, coverage, reliability, image, index, files} and the head that
        every stage has.
    """
    properties, planned = plan(cfg)
    t = fits.task(properties)
    fitted = predictors.fit_all(properties, planned)
    folder = scratch.folder("release-model", {"profile": cfg.profile}) / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.set_num_threads(cfg.threads)
    about = write_weights(cfg, folder, t, fitted)
    model, ensembles = released.towers(folder, about), released.ensembles(folder, about)
    store, tables = model.graphs(t.curated.structures), []
    members = predictors.said(ensembles, store)
    rows = {target: fits.rows(t, fit) for fit in planned for target in fit.weights}
    calibrations: dict[str, Calibration] = {}
    for target, parts in rows.items():
        if target != METAL:
            val, true = known(t, target, parts["val"])
            calibrations[target] = predictors.calibrate(members[target][:, val], true)
        tables.append(scores(cfg, t, target, members[target], parts))
    vectors, names = contents(t, model, predictors.values(members, calibrations))
    built = index.build(vectors, names, size=cfg.index_size)
    about["files"] |= hashes(folder, index.write(folder, built))
    about["calibrations"] = {target: asdict(c) for target, c in calibrations.items()}
    metrics = {
        **{"stage": "release", "profile": cfg.profile, "synthetic": t.curated.synthetic, "seed": cfg.seed},
        **{"arms": arms(cfg), "members": cfg.members},
        **{name: [row for table in tables for row in table[name]] for name in ("results", "coverage", "reliability")},
        "image": image_error(cfg, t, model),
        "index": compared(cfg, built, vectors),
    }
    (folder / "README.md").write_text(card(cfg, about, metrics))
    scratch.write_json(folder / "config.json", about)
    metrics["files"] = [
        {"file": f.name, "MB": round(f.stat().st_size / 1e6, 3)} for f in sorted(folder.iterdir()) if f.suffix != ".md"
    ]
    target = paths.results(cfg.profile) / "model"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return metrics


def hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """File -> its sha256."""
    return {name: sources.file_hash(folder / name) for name in names}


def write_weights(
    cfg: Release, folder: Path, t: fits.Task, fitted: Mapping[Fit, Mapping[str, Any]]
) -> dict[str, Any]:
    """Write the weights of towers, heads and predictors; what `config.json` will say of them."""
    pretrained = json.loads((paths.results(cfg.profile) / "pretrained" / "config.json").read_text())
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in packed.stored(t.model.aligned.weights(), bits=cfg.image_bits).items():
        tower = name.split(".")[1] if name.startswith("towers.") else "heads"
        parts.setdefault(tower, {})[name] = weight
    weights = [file for tower, tensors in sorted(parts.items()) for file in packed.write(folder, tower, tensors)]
    groups: dict[str, list[Fit]] = {}
    for fit in fitted:
        groups.setdefault(fit.targets, []).append(fit)
    rows, tensors = [], {}
    for number, (targets, same) in enumerate(groups.items()):
        first = fitted[same[0]]
        rows.append({"targets": list(same[0].weights), "members": len(same), "arm": same[0].arm, "steps": same[0].steps})
        rows[-1] |= {"tower": fits.NETWORKS[same[0].arm].tower, "mean": first["mean"], "std": first["std"]}
        for i, fit in enumerate(same):
            own = {k: torch.from_numpy(w) for k, w in fitted[fit].items() if k.startswith("weight.")}
            for name, weight in packed.stored(own, bits=cfg.image_bits).items():
                tensors[f"{number}.{i}.{name.removeprefix('weight.')}"] = weight
    members = packed.write(folder, "predictors", tensors)
    return {
        "format": released.FORMAT,
        "matalign": matalign.__version__,
        "profile": cfg.profile,
        "synthetic": t.curated.synthetic,
        "pretrain": pretrained["pretrain"],
        "text_model_hash": pretrained["text_model_hash"],
        "image_init": pretrained["image_init"],
        "image_bits": cfg.image_bits,
        "data": t.curated.digest,
        "recommendation": asdict(config.load("recommendation", cfg.profile)),
        "weights": weights,
        "predictors": json.loads(json.dumps(rows, default=lambda values: values.tolist())),
        "predictor_weights": members,
        "files": hashes(folder, [*weights, *members]),
    }


# Measured


def known(t: fits.Task, target: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some materials those with a label, and the labels."""
    labels = t.labels[target].to_numpy()
    rows = rows[~np.isnan(labels[rows])]
    return rows, labels[rows]


def scores(
    cfg: Release, t: fits.Task, target: str, members: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[str, list[dict[str, Any]]]:
    """Error of a target on the test part, and how far its uncertainty can be trusted.

    Args:
        cfg: the stage's config.
        t: data.
        target: its name.
        members: (members, M) predictions for all materials.
        parts: rows of materials.
    """
    systems = t.curated.materials.chemsys.to_numpy()
    test, true = known(t, target, parts["test"])
    new = ~np.isin(systems[test], systems[parts["train"]])
    out: dict[str, list[dict[str, Any]]] = {"results": [], "coverage": [], "reliability": []}
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}

    def row(kind: str, values: np.ndarray, which: np.ndarray, about: Mapping[str, Any], **how: Any) -> None:
        found = stats.bootstrap(values[which], systems[test][which], **how, **options)
        size = {"n_test": int(which.sum()), "n_chemsys": len(set(systems[test][which]))}
        out[kind].append({"target": target, **about, **found.bounds(), **size})

    subsets = [(EVERY, np.ones(len(test), bool)), *([(NEW, new)] if new.any() else [])]
    mean = members[:, test].mean(0)
    if target == METAL:
        for name, which in subsets:
            right = ((mean > THRESHOLD) == (true > THRESHOLD)).astype(float)
            row("results", right, which, {"materials": name, "metric": "accuracy", "unit": ""})
            pairs, how = np.stack([mean, true], 1), {"statistic": predictors.calibration_error}
            row("results", pairs[None], which, {"materials": name, "metric": "ECE", "unit": ""}, **how)
        out["reliability"] = predictors.reliability(mean, true)
        return out
    val, val_true = known(t, target, parts["val"])
    for name, which in subsets:
        row("results", np.abs(mean - true), which, {"materials": name, "metric": "MAE", "unit": unit(target)})
    for level in LEVELS:
        calibration = predictors.calibrate(members[:, val], val_true, level=level)
        half = calibration.half_width(members[:, test])
        for name, which in subsets:
            about = {"materials": name, "nominal": level, "half_width": float(np.median(half[which]))}
            row("coverage", (np.abs(mean - true) <= half).astype(float), which, about)
    return out


def image_error(cfg: Release, t: fits.Task, model: embed.Model) -> dict[str, Any] | None:
    """Cosine between the embeddings by the full image tower and by the released one, of unseen materials' micrographs.

    None where the model has no image tower.
    """
    if "image" not in model.towers:
        return None
    rows = np.flatnonzero(t.curated.splits.pretrain == "excluded")[: cfg.micrographs]
    full = embed.load(cfg.profile)
    images = full.micrographs(t.curated, rows, seed=cfg.seed, epoch=embed.EVALUATION)
    cosine = (full.embed_images(images) * model.embed_images(images)).sum(1)
    return {"bits": cfg.image_bits, "n": len(rows), "cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean())}


def contents(
    t: fits.Task, model: embed.Model, told: Mapping[str, tuple[np.ndarray, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]]:
    """Vectors of the profile's crystals and protocols, and the tables beside them."""
    crystals = t.curated.materials[["mp_id", "formula", "chemsys"]].copy()
    for target, (value, _, _) in told.items():
        name = released.PROBABILITY if target == METAL else target
        digits = SIGNIFICANT - 1 - np.floor(np.log10(np.maximum(np.abs(value), 1e-3))).astype(int)
        crystals[name] = np.array([round(v, d) for v, d in zip(value.tolist(), digits.tolist())], np.float32)
    vectors, tables = {"crystal": model.embed_structures(t.curated.structures)}, {"crystal": crystals}
    if "text" in model.towers and len(t.curated.protocols):
        vectors["protocol"] = model.embed_texts(t.curated.protocols[f"text_L{model.config.mask_level}"].tolist())
        tables["protocol"] = t.curated.protocols[["protocol_id"]].copy()
    return vectors, tables


def compared(cfg: Release, built: index.Index, vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Size of the index, and its agreement with the full vectors."""
    rows = [
        {"query": query, "among": among, "top": min(index.TOP, len(vectors[among]))}
        | {"agreement": index.agreement(built, every(vectors[query], cfg.queries), vectors[among], among=among)}
        for query in vectors
        for among in vectors
    ]
    return {"size": len(built.axes), "rows": {name: len(z) for name, z in vectors.items()}, "agreement": rows}


def every(vectors: np.ndarray, count: int) -> np.ndarray:
    """So many rows, evenly spaced."""
    return vectors[np.linspace(0, len(vectors) - 1, min(count, len(vectors))).astype(int)]


# The model card


def card(cfg: Release, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The model card, `README.md` of the folder, from what was measured and from the metrics of earlier stages."""
    return "\n".join(_card(cfg, about, metrics)) + "\n"


def _card(cfg: Release, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> Iterator[str]:
    folder, profile = paths.results(cfg.profile), cfg.profile
    read = {s: json.loads((folder / "metrics" / f"{s}.json").read_text()) for s in ("curate", "pretrain")}
    counts, trained = read["curate"]["counts"], read["pretrain"]
    yield f"# matalign, profile {profile}\n"
    yield "Crystal structures, synthesis protocols and micrographs as vectors of one space, and predictors of properties."
    if metrics["synthetic"]:
        yield "\n**Trained on the embedded sample, which is synthetic: it shows that the software runs, and nothing else.**"
    yield "\n## Use\n"
    yield f'```python\nimport matalign\n\nmodel = matalign.load("{profile}")  # or the path of this folder'
    yield 'model.predict(["NaCl.cif"])  # E_f, gap, P(metal), K, G; each with an interval'
    yield 'model.neighbours("NaCl.cif", 10)  # crystals; among="protocol": protocols'
    yield 'model.recommend("NaCl.cif", 5)  # protocols and precursor sets\n```\n'
    yield "For screening and for search. Not for decisions that rest on one prediction: look at its interval, compute, measure."
    yield "\n## Data and training\n"
    yield (
        f"- {counts['materials']:,} materials and {counts['protocols']:,} protocols (digest `{about['data']}`), "
        f"{'the embedded sample' if metrics['synthetic'] else 'sources as `data/sources.yaml` lists them'}."
    )
    yield (
        f"- Towers: {trained['modalities']}; aligned by the loss `{trained['loss']}` on {trained['n_train']:,} materials "
        f"outside both test sets, best epoch {trained['best_epoch']}. Micrographs are simulated from the structures."
    )
    yield (
        f"- Text model `{about['pretrain']['text_model']}`, frozen layers not stored: hash `{about['text_model_hash']}`, "
        "checked when the model is loaded."
    )
    for row in metrics["arms"]:
        where = f"{row['label_percent']:g} % of labels, {row['split']} split"
        yield (
            f"- Predictors of {targets_of(row)}: {metrics['members']} members, each the arm `{row['arm']}`, which was "
            f"best on validation of the arms that see the structure alone ({where}); trained on the training part of the "
            "random split, all labels."
        )
    yield from _compute(folder)
    yield "\n## How good it is\n"
    yield (
        "Test part of the random split; 95 % intervals over chemical systems. *New chemical systems*: test materials whose "
        "set of elements no training material has.\n"
    )
    yield "| target | materials | metric | value | unit | n |\n| --- | --- | --- | --- | --- | --- |"
    for r in metrics["results"]:
        yield f"| {r['target']} | {r['materials']} | {r['metric']} | {_interval(r)} | {r['unit']} | {r['n_test']:,} |"
    yield f"\nIntervals of {LEVEL:.0%} (split-conformal, by the spread of the members) hold of the test labels:\n"
    yield "| target | materials | share held | half width, median | n |\n| --- | --- | --- | --- | --- |"
    for r in metrics["coverage"]:
        if r["nominal"] == LEVEL:
            half = f"{r['half_width']:.3g} {unit(r['target'])}"
            yield f"| {r['target']} | {r['materials']} | {_interval(r)} | {half} | {r['n_test']:,} |"
    if image := metrics["image"]:
        yield (
            f"\nThe image tower's convolutions are stored in {image['bits']} bits: cosine between its embeddings and those "
            f"at full precision, over {image['n']} unseen micrographs, {image['cosine_mean']:.4f} in the mean and "
            f"{image['cosine_min']:.4f} at least."
        )
    yield (
        f"\nThe index keeps {metrics['index']['size']} components of a vector in 8 bits; of the {index.TOP} nearest by full "
        "vectors it finds " + ", ".join(f"{r['agreement']:.3f} ({r['query']} to {r['among']})" for r in metrics["index"]["agreement"]) + "."
    )
    best = trained["history"][trained["best_epoch"] - 1]["recall_val"]
    told = ", ".join(f"{r['query']} to {r['target']} {r['value']:.2f} among {r['n_gallery']:.0f}" for r in best)
    yield f"\nRecall@1 within a batch of unseen materials: {told}."
    yield f"Retrieval, recommendation and defects have stages of their own: `results/{profile}/metrics/`, `paper.pdf`."
    yield "\n## Limits\n"
    yield "- Energies, gaps and moduli are those of one level of theory; gaps are known to come out too small."
    yield "- Intervals are calibrated on materials like those of the random split; for new chemical systems see the table."
    yield f"- The interval of P(metal) is the range of the {metrics['members']} members, not a calibrated one."
    yield "- Micrographs are simulated; measured ones were never seen."
    yield "- A protocol knows a composition, not a polymorph. Recipes are not part of the model: `matalign fetch` gets them."
    yield "- Cells of more atoms or elements rarer than those trained on are out of its domain, and it does not tell."
    yield "\n## Licence\n"
    yield "The weights are released as the code is, under the MIT licence. Please cite `CITATION.cff` and the sources:\n"
    if metrics["synthetic"]:
        yield "- `data/sample`, made by this project"
    else:
        for name, entry in sources.catalogue().items():
            yield f"- `{name}`: {' '.join(str(entry['licence']).split())}; {' '.join(str(entry['citation']).split())}"


def _compute(folder: Path) -> Iterator[str]:
    """What training took, where its record is at hand."""
    for stage in ("pretrain", "properties"):
        file = folder / "provenance" / f"{stage}.json"
        if file.exists():
            made = json.loads(file.read_text())
            made |= made.get("computed", {})
            where = made["machine"]
            devices = f"{where['cores']} cores ({where['cpu']})" + f", {len(where['gpus'])} GPUs" * bool(where["gpus"])
            yield f"- The stage `{stage}` took {made['minutes']:.1f} minutes on {devices}."


def targets_of(row: Mapping[str, Any]) -> str:
    """Names of a group's targets, without their weights."""
    return ", ".join(target.partition(":")[0] for target in row["targets"].split())


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
