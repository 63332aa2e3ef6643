"""Micrographs registered with crystals: rendered ones, of which everything is known, and experimental patches.

Where the patches are not there (`data/raw/stem_patches`; the embedded sample has none) only the first part is made.
"""

import base64
import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from matalign import cache, config, paths, stats
from matalign.claims import claim, locate
from matalign.config import Micrographs
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.data.readers.micrographs import Micrograph, model_image
from matalign.pretrain import encode
from matalign.tasks.defects import patches, pictures
from matalign.tasks.defects.patches import BULK, Measured, Patches, Places
from matalign.tasks.defects.transfer import NOISES, Noise, Task, radial
from matalign.views import anomalies, defect_images, draws, identification, micrographs, references, registration
from matalign.views.micrographs import Optics

ARCHIVE = "stem_patches/stem_patches.tar.gz"
OPTICS = Optics(image_px=64, pixel_A=0.2, axes=3)  # of rendered pictures
PIXEL_RIGHT = 0.02  # of a pixel size
CALIBRATED = 0.9  # share of pictures
CHANCE_AUC = 0.5
TRUE = {"CdTe": "mp-406", "SrTiO3": "mp-4651"}  # in the curated set
LEAVES: dict[str, Callable[[registration.Registration], Tensor]] = {  # scores of what registration leaves
    "largest residual": anomalies.score,
    "largest significance": lambda f: anomalies.significance(f, anomalies.smoothed(f)).abs().amax((1, 2, 3)),
    "correlation lost": lambda found: 1 - found.correlation,
    "residual": lambda found: found.residual.square().mean((1, 2, 3)) / found.gain**2,
}
NO_CRYSTAL = "largest of what does not repeat"  # the same score, and no crystal to register: the control
UNPAINTED, THIN = "window before painting", 3  # of every third painted patch


def run(cfg: Micrographs) -> dict[str, Any]:
    """The whole stage: what `results/<profile>/metrics/micrographs.json` holds."""
    torch.set_num_threads(cfg.threads)
    curated = dataset.read(paths.curated(cfg.profile))
    rendered = calibration(curated, cfg)
    archive, real = paths.ROOT / cfg.raw / ARCHIVE, {}
    if archive.exists():
        key = {name: value for name, value in vars(cfg).items() if name not in ("profile", "raw", "threads")}
        key |= {"data": curated.digest, "weights": encode.fingerprint(cfg.profile, "pretrained")}
        key |= {"version": config.version("micrographs")}
        real = cache.memo("micrographs", key, partial(experimental, curated, cfg))
    return {
        **cfg.head(synthetic=curated.synthetic),
        **rendered,
        "experimental": real,
        "claims": _claims(rendered, real, cfg),
    }


def calibration(curated: Curated, cfg: Micrographs) -> dict[str, Any]:
    """Find pixel size, zone axis and place of crystals in pictures of them, and the crystals among all of the set.

    Returns:
        `pictures`: rows {mp_id, axis_right, axis_chance, pixel_error (relative), stated (standard error), agreement
        (correlation with the noiseless picture), right}; `ranks`: rows {mp_id, registration, embedding}; `crystals`.
    """
    ids = curated.materials.mp_id.to_numpy(str)
    order = np.argsort([draws.view_seed(cfg.seed, 2, mp_id, 0) for mp_id in ids], kind="stable")[: cfg.pictures]
    keys = [draws.view_seed(cfg.seed, 2, mp_id, 1) for mp_id in ids[order]]
    view = micrographs.draw_views(curated.structures.lattice[order], keys, optics=OPTICS)
    clean = micrographs.expose(micrographs.project(curated.structures, order, view, optics=OPTICS), view, optics=OPTICS)
    images = micrographs.standardise(micrographs.stabilise(micrographs.detect(clean, keys)))
    truth = micrographs.standardise(micrographs.stabilise(clean))
    rows = []
    for i, row in enumerate(order):
        refs = references.low_index(curated.structures, int(row))
        found = registration.register(images[i : i + 1], refs, np.arange(len(refs))[None], pixel_A=patches.RANGE_A)
        alike = pictures.alike(curated.structures.take(order[i : i + 1]))[0, int(view.axis[i])]
        error = found.pixel_A.item() / OPTICS.pixel_A - 1
        axis = bool(alike[refs.axis[found.choice.item()]])
        rows.append(
            {
                "mp_id": ids[row],
                "axis_right": axis,
                "axis_chance": float(alike[refs.axis].mean()),
                "pixel_error": error,
                "stated": found.pixel_error.item(),
                "agreement": (found.reference * truth[i]).mean().item(),
                "right": bool(axis and abs(error) < PIXEL_RIGHT),
            }
        )
    few, space = order[: cfg.ranked], Space(curated, cfg)
    known = space.registered(images[: len(few)], pixel_A=OPTICS.pixel_A)
    near = space.embedded(images[: len(few)], pixel_A=OPTICS.pixel_A)
    ranks = [
        {"mp_id": ids[row], "registration": one.rank(row), "embedding": _rank(two, row)}
        for row, one, two in zip(few, known, near, strict=True)
    ]
    return {"pictures": rows, "ranks": ranks, "crystals": len(ids)}


class Space:
    """All crystals of a curated set, to find those of pictures among them."""

    def __init__(self, curated: Curated, cfg: Micrographs) -> None:
        self.structures, self.profile = curated.structures, cfg.profile
        self.model = encode.load(cfg.profile)
        self.refs = identification.library(curated.structures, probe_sigma_A=patches.PROBE_A)

    def registered(self, images: Tensor, *, pixel_A: float | tuple[float, float]) -> list[identification.Ranking]:
        """How well each crystal fits each picture (n, 1, px, px)."""
        options = {"pixel_A": pixel_A, "probe_sigma_A": patches.PROBE_A}
        return identification.identify(images, self.structures, self.refs, **options)

    def embedded(self, images: Tensor, *, pixel_A: float) -> np.ndarray:
        """(n, crystals) cosines of pictures (n, 1, px, px) and crystals in the aligned space."""
        look = {"to_pixel_A": self.model.config.pixel_A, "px": self.model.config.image_px}
        shown = [model_image(Micrograph(each, pixel_A), **look) for each in images[:, 0].double().numpy()]
        crystals = encode.features(self.profile, modality="crystal")["embeddings"]
        return self.model.embed_images(torch.as_tensor(np.stack(shown))[:, None]) @ crystals.T


def _rank(score: np.ndarray, row: int) -> int:
    """1 for the largest score."""
    return int(1 + (score > score[row]).sum())


def experimental(curated: Curated, cfg: Micrographs) -> dict[str, Any]:
    """What registration finds in patches, which crystals fit them, and how few labels tell their classes."""
    archive = paths.ROOT / cfg.raw / ARCHIVE
    everything = {material: patches.read(archive, material) for material in patches.MATERIALS}
    places = {material: patches.located(each) for material, each in everything.items()}
    found = {m: patches.measure(with_windows(each, places[m]), m) for m, each in everything.items()}
    out: dict[str, Any] = {"materials": {}, "sources": [], "left": [], "spectra": [], "zero_shot": [], "few": []}
    out |= {"gains": [], "page": page(found)}
    chosen = {m: best_score(found[other]) for m, other in zip(found, reversed(found), strict=True)}
    for material, measured in found.items():
        out["materials"][material] = patches.summary(measured)
        out["sources"] += sources(material, everything[material], places[material])
        region = np.append(places[material].region, places[material].region[windowed(places[material])])
        out["left"] += left(material, measured, region, chosen[material], cfg)
        task = task_of(material, everything[material], places[material], measured, cfg)
        images = {"measured": everything[material].images[everything[material].label == BULK]}
        images |= {f"simulated, {noise} noise": _pristine(task, noise) for noise in NOISES}
        out["spectra"] += [{"material": material, "of": k, "power": radial(each)} for k, each in images.items()]
        out["zero_shot"] += task.zero_shot()
        rows, gains = task.few()
        out["few"] += rows
        out["gains"] += gains
    return out | {"ranks": ranks(everything, found, curated, cfg)}


def _pristine(task: Task, noise: str) -> Tensor:
    made = task.simulated(noise, epoch=0)
    return made.images[torch.as_tensor(made.kind == 0)]


def windowed(places: Places) -> np.ndarray:
    """Rows of painted patches whose windows stand for the pristine frame."""
    return np.flatnonzero(np.nan_to_num(places.painted) > 0)[::THIN]


def with_windows(each: Patches, places: Places) -> Patches:
    """Patches, and as a class of its own the frame's windows that the painted ones were made of."""
    rows = windowed(places)
    if not len(rows):
        return each
    before = patches.windows(each.frame, places.corner[rows], each.images.shape[-1])[:, None]
    label = np.append(each.label, [UNPAINTED] * len(rows))
    return Patches(torch.cat([each.images, before]), label, np.append(each.number, each.number[rows]), each.frame)


def task_of(material: str, each: Patches, places: Places, measured: Measured, cfg: Micrographs) -> Task:
    """The task of telling a material's defects, with the noise of its bulk patches."""
    bulk = torch.as_tensor(measured.patches.label == BULK)
    known = measured.known
    residual = known.residual[bulk] / known.gain[bulk, None, None, None]
    power = torch.fft.rfft2(residual[:, 0]).abs().square().mean(0)
    probe = float(np.sqrt(max(patches.PROBE_A**2 + known.blur_A2[bulk].median().item(), 0.1)))
    return Task(material, each, places, measured.pixel_A, Noise(power, probe), cfg)


def sources(material: str, each: Patches, places: Places) -> list[dict]:
    """Rows {material, label, n, own, painted (median share of pixels), regions, rows, columns: range of corners}."""
    out = []
    for label in patches.labels(each):
        here = each.label == label
        low, high = places.corner[here].min(0), places.corner[here].max(0)
        painted = float(np.median(places.painted[here])) if places.own[here].all() else None
        row = {"material": material, "label": label, "n": int(here.sum()), "own": float(places.own[here].mean())}
        row |= {"painted": painted, "regions": len(set(places.region[here].tolist()))}
        out.append({**row, "rows": [int(low[0]), int(high[0])], "columns": [int(low[1]), int(high[1])]})
    return out


def best_score(measured: Measured) -> str:
    """Of `LEAVES` the one that tells a material's defects from its bulk best."""
    label = measured.patches.label
    bulk, flawed = label == BULK, ~np.isin(label, (BULK, UNPAINTED))
    areas = {}
    for name, of in LEAVES.items():
        score = of(measured.known).numpy()
        areas[name] = patches.auc(score[bulk], score[flawed])
    return max(areas, key=areas.__getitem__)


def left(material: str, measured: Measured, region: np.ndarray, chosen: str, cfg: Micrographs) -> list[dict]:
    """Areas under the curve of what registration leaves, by class, against the bulk and against unpainted windows.

    Rows {material, score, chosen_on_other, label ("all" too), against, value, low, high, n, regions}; the patches lie
    in `region` (n,), and `chosen` is the score that was best on the other material.
    """
    label, rows = measured.patches.label, []
    flawed = [name for name in patches.labels(measured.patches) if name not in (BULK, UNPAINTED)]
    controls = [name for name in (BULK, UNPAINTED) if name in label]
    unit, known = micrographs.standardise(measured.patches.images[:, 0]), measured.known
    repeats = defect_images.aperiodic(unit, pixel_A=measured.pixel_A)
    values = {score: LEAVES[score](known).numpy() for score in (chosen, "largest residual")}
    values[NO_CRYSTAL] = anomalies.score(replace(known, residual=repeats, gain=torch.ones(len(unit)))).numpy()
    for (score, value), against in itertools.product(values.items(), controls):
        for name in ("all", *flawed):
            high = np.isin(label, flawed) if name == "all" else label == name
            of = high | (label == against)
            items = np.stack([value[of], high[of]], axis=1)
            options = {"resamples": cfg.bootstrap, "seed": cfg.seed}
            area = stats.bootstrap(items[None], region[of], statistic=_area, **options).bounds()
            about = {"material": material, "score": score, "chosen_on_other": score == chosen, "label": name}
            n = {"n": int(high.sum()), "regions": len(set(region[high].tolist()))}
            rows.append({**about, "against": against, **area, **n})
    return rows


def _area(items: np.ndarray) -> float:
    """Of rows (score, flawed); 1/2 where a resample lacks either."""
    flawed = items[:, 1] > 0
    return patches.auc(items[~flawed, 0], items[flawed, 0]) if 0 < flawed.sum() < len(flawed) else CHANCE_AUC


def page(found: Mapping[str, Measured]) -> list[dict]:
    """Of each class one patch, quoted: rows {material, label, correlation, verdict, png}.

    The PNG, base64, holds patch, pristine picture and residual (grey: none) side by side.
    """
    out = []
    for material, measured in found.items():
        known, label = measured.known, measured.patches.label
        chosen = [np.flatnonzero(label == name) for name in patches.labels(measured.patches) if name != UNPAINTED]
        chosen = [rows[len(rows) // 2] for rows in chosen]
        axis = np.full(len(label), measured.axis)
        listed = anomalies.anomalies(known, measured.refs, axis, patches.CRYSTALS)
        for i in chosen:
            spread = known.gain[i].abs() + 1e-12
            levels = (measured.patches.images[i, 0] - known.offset[i]) / spread, known.reference[i, 0]
            grey = torch.cat([*levels, known.residual[i, 0] / spread], dim=1)
            stream = io.BytesIO()
            shown = ((grey / 5 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
            Image.fromarray(shown).save(stream, "PNG", optimize=True)
            first = listed[i][0] if listed[i] else None
            verdict = f"{first.kind}, {first.contrast:+.1f}" if first else "no candidate"
            row = {"material": material, "label": str(label[i]), "correlation": known.correlation[i].item()}
            out.append({**row, "verdict": verdict, "png": base64.b64encode(stream.getvalue()).decode()})
    return out


def ranks(
    everything: Mapping[str, Patches], found: Mapping[str, Measured], curated: Curated, cfg: Micrographs
) -> list[dict]:
    """Where a patch's crystal comes among all of the set, by registration and in the aligned space.

    Returns:
        Rows {material, label, scale, rank, alike, correlation, best: lists over patches; first: formulas; embedding:
        ranks at known scale; region; crystals}.
    """
    space, ids = Space(curated, cfg), curated.materials.mp_id.to_numpy(str)
    formulas, rows = curated.materials.formula.to_numpy(str), []
    for material, each in everything.items():
        if TRUE[material] not in ids:
            continue
        true, pixel_A = int(np.flatnonzero(ids == TRUE[material])[0]), found[material].pixel_A
        chosen = patches.evenly(each, cfg.ranked)
        for scale, searched in (("known", pixel_A), ("unknown", patches.RANGE_A)):
            made = patches.ranks(each, space.structures, space.refs, true, pixel_A=searched, per_class=cfg.ranked)
            for label, row in made.items():
                near = [_rank(one, true) for one in space.embedded(each.images[chosen[label]], pixel_A=pixel_A)]
                about = {"material": material, "label": label, "scale": scale, "crystals": len(ids)}
                rows.append({**about, **row, "first": formulas[row["first"]].tolist(), "embedding": near})
    return rows


def _claims(rendered: Mapping[str, Any], real: Mapping[str, Any], cfg: Micrographs) -> list[dict]:
    options = {"resamples": cfg.bootstrap, "seed": cfg.seed}
    right = np.array([row["right"] for row in rendered["pictures"]], float)
    share = stats.bootstrap(right, range(len(right)), **options).bounds()
    made = [
        claim(
            "a crystal calibrates its picture",
            share,
            question="Does a crystal's structure alone tell the scale and the axis of its picture?",
            metric="mean " + locate("pictures", "right"),
            threshold=CALIBRATED,
            passed=share["value"] >= CALIBRATED,
            control=f"zone axis by chance: {np.mean([row['axis_chance'] for row in rendered['pictures']]):.2f}",
            note=f"share of rendered pictures whose zone axis and pixel size (within {PIXEL_RIGHT:.0%}) are found",
        )
    ]
    for material, about in real.get("materials", {}).items():
        made += _of(material, about, real)
    return made


def _of(material: str, about: Mapping[str, Any], real: Mapping[str, Any]) -> list[dict]:
    """The claims on the experimental patches of a material."""
    bulk = next(r for r in about["classes"] if (r["label"], r["scale"]) == (BULK, "unknown"))
    where = {"material": material, "label": "all", "chosen_on_other": True}
    area = [r for r in real["left"] if where.items() <= r.items()][-1]
    other = where | {"chosen_on_other": False, "score": NO_CRYSTAL, "against": area["against"]}
    other = next(r for r in real["left"] if other.items() <= r.items())
    rows = f"experimental.materials.{material}.classes"
    made = [
        claim(
            f"bulk patches of {material} agree on axis and scale",
            {"value": bulk["right"], "low": None, "high": None},
            question="Does a CIF tell the same scale and axis of all experimental patches of one crystal?",
            metric=locate(rows, "right", label=BULK, scale="unknown"),
            threshold=CALIBRATED,
            passed=bulk["right"] >= CALIBRATED,
            note=f"share of {bulk['n']} bulk patches that have their common axis and median pixel size",
        ),
        claim(
            f"what registration leaves shows defects of {material} better than what does not repeat",
            area,
            question="Does registration tell defects of experimental micrographs better than no crystal does?",
            metric=locate("experimental.left", "value", **where, against=area["against"], score=area["score"]),
            threshold=other["value"],
            passed=area["low"] > max(other["value"], CHANCE_AUC),
            control=f"the same of what does not repeat, no crystal known: {other['value']:.3f}",
            note=f"area under the curve against {area['against']}; {area['score']}, chosen on the other material",
        ),
    ]
    for gain in (g for g in real["gains"] if (g["material"], g["split"]) == (material, "apart")):
        where = {"material": material, "split": "apart", "shots": gain["shots"]}
        score = {row["arm"]: row["macro_F1"] for row in real["few"] if where.items() <= row.items()}
        scores = "macro-F1 {image_reference:.3f} against {image:.3f}; nearest spectrum {nearest:.3f}".format(**score)
        made.append(
            claim(
                f"with {gain['shots']} labels a class the reference helps in {material}",
                gain,
                question="Does the reference help where few experimental patches are labelled?",
                metric=locate("experimental.gains", "value", **where),
                passed=gain["low"] > 0,
                unit="macro-F1",
                control=f"nearest spectrum, nothing trained: {score['nearest']:.3f}",
                note=f"image + reference less image only, labelled and tested patches apart: {scores}",
            )
        )
    return made
