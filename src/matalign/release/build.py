"""The stage `release`: predictors are fitted, the model is written, and what it then says is measured.

All that is measured (errors, what intervals cover, what few bits cost) is measured on what is released, read back from
the folder. The folder holds weights, vectors, mp-ids with formula and predictions, and protocol ids; no structure, no
label of a source, no recipe and no DOI.
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import matalign
from matalign import cache, config, paths, quantities, stats
from matalign.config import Release, Run
from matalign.data import curate, sources
from matalign.data.structures import Structures
from matalign.pretrain import encode
from matalign.quantities import ENERGY, METAL
from matalign.release import card, depth, index, integrity, predictors, released, weights
from matalign.release.predictors import LEVELS, Calibration
from matalign.release.released import Released
from matalign.tasks.properties import fits
from matalign.tasks.properties.arms import NETWORKS, STRUCTURE_ONLY, Fit, groups
from matalign.tasks.properties.labels import THRESHOLD
from matalign.tasks.properties.task import Task, rows, task

SIGNIFICANT = 4  # digits of a prediction in the table of crystals
NEW = "new chemical systems"  # test materials of elements that no training material combines
WARNED = "out of depth"  # test materials that predictions warn of
EVERY = "all"
LEFT_OUT = "left out"  # materials of the raw files that the profile has not
FEWEST = 20  # labels of these that an error is told of
SPLIT, PERCENT = "random", 100.0  # what the released predictors are trained on: all labels of its training part
CANDIDATES = tuple(arm for arm in STRUCTURE_ONLY if arm in NETWORKS)


def arms(cfg: Release) -> list[dict[str, Any]]:
    """Which arm each group of targets is released with, as `chosen`; FileNotFoundError without the stage properties."""
    file = paths.results(cfg.profile) / "metrics" / "properties.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; the stage `properties` makes it")
    rows = json.loads(file.read_text())["fits"]
    groups = [dict(targets) for _, targets in config.load("properties", cfg.profile).targets]
    return [chosen(rows, targets) for targets in groups if any(row["targets"] == targets for row in rows)]


def plan(cfg: Release) -> tuple[config.Properties, list[Fit]]:
    """The fits of the members, with the schedule of the stage properties; and the config that they belong to.

    A fit that the tables of properties hold too is theirs: its weights lie in scratch, and are not trained again.
    """
    arm_of = {tuple(row["targets"].items()): row["arm"] for row in arms(cfg)}
    base = config.load("properties", cfg.profile)
    names = {targets: name for name, targets in base.targets}
    runs = tuple((names[targets], (Run(SPLIT, PERCENT, cfg.members, also=(arm,)),)) for targets, arm in arm_of.items())
    mine = replace(base, targets=tuple((names[targets], targets) for targets in arm_of), arms=(), runs=runs)
    return mine, fits.plan(mine)


def chosen(rows: Sequence[Mapping[str, Any]], targets: Mapping[str, float]) -> dict[str, Any]:
    """For a group of targets, the arm of least error on validation of those that train a tower on the structure alone.

    Looked for where the predictors are trained (all labels, random split), else at the largest share of labels of the
    other split. The error is that of E_f where it is among the targets, else the mean over them. Rows are `fits` of
    `metrics/properties.json`; the answer is {targets, arm, split, label_percent, val_error}, a mean over seeds.

    Raises:
        ValueError: no such fit.
    """
    there = [r for r in rows if (r["targets"], r["cohort"]) == (targets, "A") and r["arm"] in CANDIDATES]
    if not there:
        names, arms = ", ".join(targets), ", ".join(CANDIDATES)
        raise ValueError(f"no fit of {names} by any of {arms} in the metrics of properties")
    cells = {(r["split"], r["label_percent"]) for r in there}
    split, percent = max(cells, key=lambda cell: (cell[0] == SPLIT, cell[1]))
    found: dict[str, list[float]] = {}
    for r in there:
        if (r["split"], r["label_percent"]) == (split, percent):
            error = r["val_error"]
            mean = error[ENERGY] if ENERGY in error else float(np.mean(list(error.values())))
            found.setdefault(r["arm"], []).append(mean)
    arm = min(found, key=lambda name: (np.mean(found[name]), name))
    place = {"targets": targets, "arm": arm, "split": split, "label_percent": percent}
    return {**place, "val_error": float(np.mean(found[arm]))}


def build(cfg: Release) -> dict[str, Any]:
    """The whole stage: fit what is not fitted yet, write `results/<profile>/model`, measure it; gives the metrics."""
    properties, planned = plan(cfg)
    t = task(properties)
    fitted = fits.fit_all(properties, planned)
    folder = cache.folder("release-model", {"profile": cfg.profile}) / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.set_num_threads(cfg.threads)
    about = write_weights(cfg, folder, t, fitted)
    model = released.towers(folder, about, about["pretrain"]["modalities"].split())
    store, tables = model.graphs(t.curated.structures), []
    ensembles = released.ensembles(folder, about)
    members, features = predictors.member_predictions(ensembles, store)
    parts_of = {target: rows(t, fit) for fit in planned for target in fit.weights}
    depths, around, warned = [], {}, {}
    for predictor, z in zip(ensembles, features, strict=True):
        parts = parts_of[predictor.targets[0]]
        errors = np.stack([np.abs(members[name].mean(0) - t.labels[name]) for name in predictor.targets], 1)
        depths.append(depth.Depth.fit(z, errors, t.curated.structures, train=parts["train"], val=parts["val"]))
        found, reasons = depths[-1](z, t.curated.structures)
        around |= dict(zip(predictor.targets, found, strict=True))
        warned |= dict.fromkeys(predictor.targets, np.array([bool(each) for each in reasons]))
    calibrations: dict[str, Calibration] = {}
    for target, parts in ((target, parts_of[target]) for target in members):
        if target != METAL:
            calibrations[target] = calibrate(t, target, members[target], around[target], parts["val"])
        tables.append(scores(cfg, t, target, members[target], around[target], warned[target], parts))
    vectors, names = contents(t, model, predictors.values(members, calibrations, around))
    built = index.build(vectors, names, size=cfg.index_size)
    about["files"] |= hashes(folder, [*index.write(folder, built), *depth.write(folder, depths)])
    about["calibrations"] = {target: asdict(c) for target, c in calibrations.items()}
    metrics = {
        **cfg.head(synthetic=t.curated.synthetic),
        **{"arms": arms(cfg), "members": cfg.members},
        **{name: [row for table in tables for row in table[name]] for name in ("results", "coverage", "reliability")},
        "image": image_error(cfg, t, model),
        "index": compared(cfg, built, vectors),
    }
    cache.write_json(folder / "config.json", integrity.sealed(about))
    trained = t.curated.materials.chemsys[(t.curated.splits.random == "train").to_numpy()]
    left_out = curate.left_out(config.load("curate", cfg.profile), t.curated, cfg.foreign)
    metrics["foreign"] = foreign(cfg, released.load(folder), *left_out, known=set(trained))
    (folder / "README.md").write_text(card.text(paths.results(cfg.profile), about, metrics))
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


def write_weights(cfg: Release, folder: Path, t: Task, fitted: Mapping[Fit, Mapping[str, Any]]) -> dict[str, Any]:
    """Write the weights of towers, heads and predictors; what `config.json` will say of them."""
    pretrained = json.loads((paths.results(cfg.profile) / "pretrained" / "config.json").read_text())
    parts: dict[str, dict[str, torch.Tensor]] = {}
    own = {name: weight.cpu() for name, weight in encode.load(cfg.profile).aligned.weights().items()}
    for name, weight in weights.stored(own).items():
        tower = name.split(".")[1] if name.startswith("towers.") else "heads"
        parts.setdefault(tower, {})[name] = weight
    files = [file for tower, tensors in sorted(parts.items()) for file in weights.write(folder, tower, tensors)]
    rows, tensors = [], {}
    for number, targets in enumerate(groups(t.cfg)):
        same = [fit for fit in fitted if fit.targets == targets]
        fit, scale = same[0], {name: fitted[same[0]][name].tolist() for name in ("mean", "std")}
        row = {"targets": list(fit.weights), "members": len(same), "arm": fit.arm, "steps": fit.steps}
        rows.append(row | {"tower": NETWORKS[fit.arm].tower} | scale)
        for i, fit in enumerate(same):
            own = {k: torch.from_numpy(w) for k, w in fitted[fit].items() if k.startswith("weight.")}
            for name, weight in weights.stored(own).items():
                tensors[f"{number}.{i}.{name.removeprefix('weight.')}"] = weight
    members = weights.write(folder, "predictors", tensors)
    return {
        "format": integrity.FORMAT,
        "matalign": matalign.__version__,
        "profile": cfg.profile,
        "synthetic": t.curated.synthetic,
        **{name: pretrained[name] for name in ("pretrain", "text_model_hash", "image_init")},
        "data": t.curated.digest,
        "recommendation": asdict(config.load("recommendation", cfg.profile)),
        "weights": files,
        "predictors": rows,
        "predictor_weights": members,
        "files": hashes(folder, [*files, *members]),
    }


def known(t: Task, target: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some materials those with a label, and the labels."""
    labels = t.labels[target].to_numpy()
    rows = rows[~np.isnan(labels[rows])]
    return rows, labels[rows]


def calibrate(
    t: Task,
    target: str,
    members: np.ndarray,
    around: depth.Around,
    rows: np.ndarray,
    *,
    level: float = predictors.LEVEL,
) -> Calibration:
    """The calibration of a target on some materials; members and what is around are of all."""
    rows, true = known(t, target, rows)
    systems = t.curated.materials.chemsys.to_numpy()[rows]
    return predictors.calibrate(members[:, rows], true, around.take(rows), systems, level=level)


def scores(
    cfg: Release,
    t: Task,
    target: str,
    members: np.ndarray,
    around: depth.Around,
    warned: np.ndarray,
    parts: Mapping[str, np.ndarray],
) -> dict[str, list[dict[str, Any]]]:
    """Error of a target on the test part, and how far its uncertainty can be trusted.

    `members` (members, M) predicted all materials, `warned` (M,) says of which predictions warn.
    """
    systems = t.curated.materials.chemsys.to_numpy()
    test, true = known(t, target, parts["test"])
    new = ~np.isin(systems[test], systems[parts["train"]])
    out: dict[str, list[dict[str, Any]]] = {"results": [], "coverage": [], "reliability": []}
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}

    def row(kind: str, values: np.ndarray, which: np.ndarray, about: Mapping[str, Any], **how: Any) -> None:
        found = stats.bootstrap(values[which][None], systems[test][which], **how, **options)
        size = {"n_test": int(which.sum()), "n_chemsys": len(set(systems[test][which]))}
        out[kind].append({"target": target, **about, **found.bounds(), **size})

    subsets = [(EVERY, np.ones(len(test), bool)), *([(NEW, new)] if new.any() else [])]
    mean = members[:, test].mean(0)
    if target == METAL:
        for name, which in subsets:
            right = ((mean > THRESHOLD) == (true > THRESHOLD)).astype(float)
            row("results", right, which, {"materials": name, "metric": "accuracy", "unit": ""})
            pairs, how = np.stack([mean, true], 1), {"statistic": lambda rows: stats.calibration_error(*rows.T)}
            row("results", pairs, which, {"materials": name, "metric": "ECE", "unit": ""}, **how)
        out["reliability"] = stats.reliability(mean, true, names=("probability", "observed"))
        return out
    for name, which in subsets:
        row(
            "results",
            np.abs(mean - true),
            which,
            {"materials": name, "metric": "MAE", "unit": quantities.of(target).fitted_unit},
        )
    subsets += [(WARNED, warned[test])] if warned[test].any() else []
    for level in LEVELS:
        calibration = calibrate(t, target, members, around, parts["val"], level=level)
        half = calibration.half_width(members[:, test], around.take(test))
        for name, which in subsets:
            widths = {"half_width": float(np.median(half[which])), "half_width_mean": float(half[which].mean())}
            held = (np.abs(mean - true) <= half).astype(float)
            row("coverage", held, which, {"materials": name, "nominal": level, **widths})
    return out


def foreign(
    cfg: Release, model: Released, materials: pd.DataFrame, structures: Structures, *, known: Collection[str]
) -> dict[str, Any]:
    """Errors of the predictors, and what their intervals hold, on materials that the profile leaves out.

    `known` are the chemical systems that the predictors were trained on; others are told apart.
    """
    out: dict[str, Any] = {"n": len(materials), "results": [], "coverage": []}
    if not len(materials):
        return out
    told, options = model.properties(structures), {"resamples": cfg.bootstrap, "seed": cfg.seed}
    out |= {"atoms": np.quantile(materials.n_atoms, (0, 0.5, 1), method="lower").tolist()}
    new = ~materials.chemsys.isin(known)
    targets = [target for predictor in model.predictors for target in predictor.targets if target != METAL]
    for target, (name, subset) in product(targets, {LEFT_OUT: new | True, f"{LEFT_OUT}, {NEW}": new}.items()):
        rows = np.flatnonzero(materials[target].notna() & subset)
        if len(rows) < FEWEST:
            continue
        columns = np.stack([materials[target], *(told[f"{target}{end}"] for end in ("", "_low", "_high"))], 1)[rows]
        true, value, low, high = (np.log10(columns) if quantities.of(target).logarithmic else columns).T
        systems, half = materials.chemsys.to_numpy()[rows], (high - low) / 2
        about = {"target": target, "materials": name, "n_test": len(rows), "n_chemsys": len(set(systems))}
        found = stats.bootstrap(np.abs(value - true)[None], systems, **options)
        out["results"].append(about | {"metric": "MAE", "unit": quantities.of(target).fitted_unit} | found.bounds())
        found = stats.bootstrap(((low <= true) & (true <= high))[None].astype(float), systems, **options)
        widths = {"half_width": float(np.median(half)), "half_width_mean": float(half.mean())}
        out["coverage"].append(about | {"nominal": predictors.LEVEL, **widths} | found.bounds())
    return out


def image_error(cfg: Release, t: Task, model: encode.Model) -> dict[str, Any] | None:
    """Cosine of embeddings by the full image tower and the released one, of unseen micrographs; None without."""
    if "image" not in model.towers:
        return None
    rows = np.flatnonzero(t.curated.splits.pretrain == "excluded")[: cfg.micrographs]
    full = encode.load(cfg.profile, modalities=["image"])
    images = full.micrographs(t.curated, rows, seed=cfg.seed, epoch=encode.EVALUATION)
    cosine = (full.embed_images(images) * model.embed_images(images)).sum(1)
    error = {"cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean())}
    return {"bits": 8, "n": len(rows), **error}


def contents(
    t: Task, model: encode.Model, told: Mapping[str, tuple[np.ndarray, ...]]
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
    """Size of the index, and its agreement with the full vectors, for queries evenly spaced."""
    asked = {name: z[np.linspace(0, len(z) - 1, min(cfg.queries, len(z))).astype(int)] for name, z in vectors.items()}
    rows = [
        {"query": query, "among": among, "top": min(index.TOP, len(vectors[among]))}
        | {"agreement": index.agreement(built, asked[query], vectors[among], among=among)}
        for query in vectors
        for among in vectors
    ]
    return {"size": len(built.axes), "rows": {name: len(z) for name, z in vectors.items()}, "agreement": rows}
