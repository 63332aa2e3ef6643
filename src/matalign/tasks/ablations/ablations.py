"""Ablations: what each part of the method buys, one factor at a time from a base variant.

A variant trains a crystal tower and the heads of all modalities as pretraining does (`train.optimise`: same steps, same
keyed draws), but on features made beforehand: a few views of each material through the image tower of the profile's
pretrained model, and its texts through the frozen language model. So the variants differ in nothing but what they name,
and cost minutes. Two of them are controls: `pairs:shuffled` trains on texts and images of other materials and must
lose the gain; `objective:none` is not trained and is the lower end.

Each variant is tested on the test set of the split by chemical system, several seeds each: retrieval as in `retrieval`
(full gallery), and the tower on formation energy at a few labels, fine-tuned and frozen, as in `properties`.

The image tower itself has been trained with other modalities, as `pretrain.loss` says, and carries that into every
variant; where that loss is `anchored`, no image has ever met a text but through structures.
"""

import copy
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from matalign import cache, config, paths, towers
from matalign.config import Ablations, Pretrain
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.data.splits import unit_hash
from matalign.pretrain import align, encode, losses, train
from matalign.pretrain.batches import VALIDATION, Examples, Views
from matalign.tasks import regression, workers
from matalign.tasks.fit import on_threads
from matalign.tasks.properties import fits
from matalign.tasks.retrieval import matchers
from matalign.tasks.retrieval.galleries import Gallery
from matalign.tasks.retrieval.ranking import Ranks
from matalign.views import draws

LEVELS = (1, 2)  # mask levels of the texts that are retrieved
BATCH = 128  # of the base, and of what is measured on validation materials
ROWS = 128  # images at once
WORTH_A_PROCESS = 20_000  # crystals shown in training; below, starting processes costs more than it saves


@dataclass(frozen=True)
class Variant:
    """How a tower is trained; what is not said is as in the base."""

    loss: str = "pairwise"
    crystal_tower: str = "ild"
    order: int = 3
    modalities: str = "crystal text image"
    missing: float = 0.0  # share of the shown materials without their image, and of those without their text
    batch_size: int = BATCH
    mask_level: int = 1
    shuffled: bool = False  # texts and images of other materials
    auxiliary_weight: float = 1.0
    trained: bool = True


BASE = Variant()
GROUPS: dict[str, dict[str, Variant]] = {  # in each the base first
    "loss": {
        "pairwise": BASE,
        **{name: Variant(loss=name) for name in ("proposal", "proposal-noself", "anchored", "sigmoid")},
    },
    "descriptors": {
        "ILD-3": BASE,
        **{f"ILD-{order}": Variant(order=order) for order in (1, 0)},
        "no-ILD": Variant(order=-1),
        "CGConv": Variant(crystal_tower="cgconv"),
    },
    "modalities": {
        "all-three": BASE,
        "no-image": Variant(modalities="crystal text"),
        "no-text": Variant(modalities="crystal image"),
        "with-composition": Variant(modalities="crystal text image composition"),
        "with-xrd": Variant(modalities="crystal text image xrd"),
    },
    "missing": {"0%": BASE, **{f"{percent}%": Variant(missing=percent / 100) for percent in (30, 60, 90)}},
    "batch": {"128": BASE, **{str(size): Variant(batch_size=size) for size in (32, 512)}},
    "mask": {"L1": BASE, **{f"L{level}": Variant(mask_level=level) for level in (0, 2, 3)}},
    "pairs": {"true": BASE, "shuffled": Variant(shuffled=True)},
    "objective": {  # the auxiliary objective is the crystal's own
        "both": BASE,
        "contrastive": Variant(auxiliary_weight=0.0),
        "auxiliary": Variant(modalities="crystal"),
        "none": Variant(trained=False),
    },
}


def chosen(variants: str) -> dict[str, dict[str, Variant]]:
    """Read groups, and single variants as `group:variant`, separated by blanks; a group always has its base.

    Returns:
        Group -> name -> variant, in the order of `GROUPS`.

    Raises:
        ValueError: an unknown group or variant; the message lists those there are.
    """
    wanted: dict[str, set[str]] = {}
    for word in variants.split():
        group, _, name = word.partition(":")
        if group not in GROUPS:
            raise ValueError(f"variants: unknown group {group!r}; of {', '.join(GROUPS)}")
        if name and name not in GROUPS[group]:
            raise ValueError(f"variants: unknown variant {name!r} of {group}; of {', '.join(GROUPS[group])}")
        wanted.setdefault(group, {next(iter(GROUPS[group]))}).update([name] if name else GROUPS[group])
    return {
        group: {name: variant for name, variant in GROUPS[group].items() if name in wanted[group]}
        for group in GROUPS
        if group in wanted
    }


@dataclass(frozen=True)
class Fit:
    """One training and its tests."""

    variant: Variant
    seed: int


# What the fits share


@dataclass(frozen=True)
class Source:
    """Parameters and the place of the features: small enough to be sent to a worker."""

    cfg: Ablations
    pretrain: Pretrain  # of the profile's model
    schedule: config.Properties  # of fine-tuning
    features: Path
    digest: str  # of data and weights, with the version of their kind


@dataclass(frozen=True)
class Task:
    """What the fits of one process share."""

    curated: Curated
    images: np.ndarray  # (M, views, dim) features of each material's images
    held_out: np.ndarray  # (M, dim) of one more, which is never trained on
    texts: Mapping[str, Tensor]  # text -> its features (dim,)


def source(cfg: Ablations) -> Source:
    """Make the features of a profile's images and texts with its pretrained model, or find them.

    Raises:
        FileNotFoundError: no curated set, or no pretrained model.
        ValueError: the model lacks a tower.
    """
    curated, model = dataset.read(paths.curated(cfg.profile)), paths.results(cfg.profile) / "pretrained"
    if not (model / "config.json").exists():
        raise FileNotFoundError(f"no model in {model}; the stage `pretrain` makes it")
    about = json.loads((model / "config.json").read_text())
    pretrain = config.build(Pretrain, about["pretrain"], where=str(model / "config.json"))
    weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in model.glob("*.safetensors")}
    levels = sorted({v.mask_level for group in chosen(cfg.variants).values() for v in group.values()} | {*LEVELS})
    key = {"data": curated.digest, "weights": weights, "text_model": about["text_model_hash"], "levels": levels}
    key |= {name: getattr(pretrain, name) for name in ("image_px", "pixel_A")}
    key |= {name: getattr(cfg, name) for name in ("seed", "views", "threads")}
    key["version"] = config.version("ablations")
    cache.memo("ablations-features", key, lambda: features(cfg, curated, levels))
    file = cache.folder("ablations-features", key) / "result.safetensors"
    return Source(cfg, pretrain, config.load("properties", cfg.profile), file, cache.digest(key))


@torch.no_grad()
def features(cfg: Ablations, curated: Curated, levels: Iterable[int]) -> cache.Result:
    """Features of images and texts from the towers of the profile's model, before its heads.

    View v of a material is the one that pretraining shows first in epoch v.

    Returns:
        `images` (M, views + 1, dim), the last that of evaluation; `texts_L<level>` (protocols, dim).
    """
    torch.set_num_threads(cfg.threads)
    model = encode.load(cfg.profile)
    if missing := {"image", "text"} - set(model.towers):
        raise ValueError(f"ablations of {cfg.profile}: its model has no {' and no '.join(sorted(missing))} tower")
    tower, everything = model.towers["image"], np.arange(len(curated.materials))
    out = {"images": np.empty((len(everything), cfg.views + 1, tower.dim), np.float32)}
    out["images"][:, -1] = encode.features(cfg.profile, modality="image")["pooled"]
    with tqdm(total=len(everything) * cfg.views, desc="images", unit="image", mininterval=1) as bar:
        for rows in np.array_split(everything, -(-len(everything) // ROWS)):
            for view in range(cfg.views):
                images = model.micrographs(curated, rows, seed=cfg.seed, epoch=view)
                out["images"][rows, view] = tower(images)[0].numpy()
                bar.update(len(rows))
    for level in levels:
        texts = curated.protocols[f"text_L{level}"].tolist()
        out[f"texts_L{level}"] = model.towers["text"].features(texts, progress=True).numpy()
    return out


@functools.cache
def task(source: Source) -> Task:
    """Read what the fits need, once a process."""
    curated, found = dataset.read(paths.curated(source.cfg.profile)), cache.load(source.features)
    texts = {}
    for name in sorted(found.keys() - {"images"}):
        texts |= zip(curated.protocols[name.replace("texts", "text")], torch.from_numpy(found[name]), strict=True)
    return Task(curated, found["images"][:, :-1], found["images"][:, -1], texts)


# What a variant is shown


class Cached(nn.Module):
    """Stands in for a frozen tower: passes on features that were made with it."""

    def __init__(self, dim: int, texts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim, self.texts = dim, texts

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(n, dim) as it came."""
        return features, {}

    def features(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """(n, dim) features of n texts."""
        return torch.stack([self.texts[text] for text in texts]) if len(texts) else torch.zeros(0, self.dim)


class CachedImages:
    """Every material has its views; the key chooses one of them. `owner` (M,): whose views a material shows."""

    def __init__(self, images: np.ndarray, owner: np.ndarray) -> None:
        self.images, self.owner, self.has = images, owner, np.ones(len(owner), bool)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Tensor:
        """(n, dim) features."""
        view = (keys % np.uint64(self.images.shape[1])).astype(int)
        return torch.from_numpy(self.images[self.owner[rows], view])


@dataclass(frozen=True)
class Shown(Examples):
    """What a variant is shown: image features looked up, and texts dropped (images: `cfg.image_fraction`)."""

    images: CachedImages
    missing: float  # share of the views without their text

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """As in pretraining, but for the images."""
        inputs = super().inputs
        return {m: self.images if m == "image" else made for m, made in inputs.items()}

    def views(self, split: str, epoch: int) -> Views:
        """As in pretraining; whether a view lacks its text is one more draw from its key."""
        views = super().views(split, epoch)
        dropped = draws.uniforms(~views.keys, 4)[:, 3] < self.missing  # the first three draws are pretraining's
        return replace(views, text=np.where(dropped, -1, views.text))


def shuffled(curated: Curated, *, seed: int) -> tuple[Curated, np.ndarray]:
    """Give every material outside the test sets the texts and the images of others, by a permutation drawn once.

    In an order drawn by hash, a material takes the texts of the next one that has any to train on, and the images of
    the one before it: so no two of its modalities belong together.

    Returns:
        The set with its protocols moved; and (M,) the row whose images each material shows.
    """
    ids, split = curated.materials.mp_id.to_numpy(), curated.splits.pretrain.to_numpy()
    order = np.argsort([unit_hash(seed, f"pair|{mp_id}") for mp_id in ids], kind="stable")
    order = order[split[order] != "excluded"]
    owner = np.arange(len(ids))
    owner[order] = np.roll(order, 1)
    ok = curated.protocols.train_ok.to_numpy(bool)
    with_text = [mp_id for mp_id in ids[order] if mp_id in set(curated.protocols.mp_id[ok])]
    moved = dict(zip(with_text, np.roll(with_text, 1), strict=True))
    mp_id = np.where(ok, curated.protocols.mp_id.map(lambda own: moved.get(own, own)), curated.protocols.mp_id)
    return replace(curated, protocols=curated.protocols.assign(mp_id=mp_id)), owner


def examples(source: Source, fit: Fit) -> Shown:
    """A variant's model, its random weights drawn from the seed alone, and what it is shown."""
    t, variant = task(source), fit.variant
    cfg = replace(
        source.pretrain,
        **{name: getattr(variant, name) for name in asdict(variant).keys() & asdict(source.pretrain).keys()},
        **{"seed": fit.seed, "threads": 1, "gpus": "1", "micro_batch": 0, "checkpoint_steps": 0, "unfreeze_layers": 0},
        **{"epochs": source.cfg.epochs, "patience": source.cfg.epochs, "learning_rate": source.cfg.learning_rate},
        image_fraction=1 - variant.missing,
    )
    dims = {"image": t.images.shape[-1], "text": len(next(iter(t.texts.values())))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        built = {m: Cached(dims[m], t.texts) if m in dims else towers.build(m, cfg) for m in variant.modalities.split()}
        model = align.assemble(cfg, built)
    curated, owner = t.curated, np.arange(len(t.curated.materials))
    if variant.shuffled:
        curated, owner = shuffled(curated, seed=source.cfg.seed)
    images = CachedImages(t.images, owner)
    return Shown(cfg, curated, model, torch.device("cpu"), images, variant.missing)


# One fit


def key(source: Source, fit: Fit) -> dict[str, Any]:
    """All that a fit depends on."""
    cfg, schedule = source.cfg, source.schedule
    out = {"fit": asdict(fit), "source": source.digest, "seed": cfg.seed}
    out |= {name: value for name, value in asdict(source.pretrain).items() if name != "profile"}
    out |= {name: getattr(cfg, name) for name in ("epochs", "learning_rate", "label_percent", "steps")}
    return out | {f"tuning_{name}": getattr(schedule, name) for name in ("batch_size", "learning_rate", "weight_decay")}


def solve(source: Source, fit: Fit) -> cache.Result:
    """Train a variant and test it, from scratch (the folder) if an earlier run did.

    Returns:
        `<task>/<metric>`: score of each query, or error of each test material; `query_rows`, `test_rows`: which
        materials these are; `loss`, `pairs`: see `aligned`.
    """

    def compute() -> cache.Result:
        folder = cache.folder("ablations", key(source, fit))
        shown = examples(source, fit)
        if fit.variant.trained:
            train.optimise(shown, folder, quiet=True)
        shown.model.eval()
        rows = np.arange(len(shown.curated.materials))
        with torch.no_grad():
            tower, inputs = shown.model.towers["crystal"], shown.inputs["crystal"]
            crystals = torch.cat([tower(inputs(r, r))[0] for r in np.array_split(rows, -(-len(rows) // ROWS))])
        made = aligned(shown) | retrieved(source, shown, crystals)
        made |= predicted(source, shown, crystals, folder / "tuning")
        for state in train.STATE:
            (folder / state).unlink(missing_ok=True)
        return made

    with on_threads(1):
        return cache.memo("ablations", key(source, fit), compute)


@torch.no_grad()
def aligned(shown: Shown) -> cache.Result:
    """How well each pair of modalities is aligned on the validation materials, whatever the loss that was trained.

    Returns:
        `loss`: the variant's own; `pairs`: {pair, loss (InfoNCE of the two), recall (at 1, within the batch, mean of
        both directions)}, in batches of `BATCH`; a pair that no validation material has is left out.
    """
    views, model = shown.views("val", VALIDATION), shown.model
    own, pairs = 0.0, {pair: np.zeros(4) for pair in combinations(model.modalities, 2)}
    for start in range(0, len(views), BATCH):
        part = shown.parts(views[start : start + BATCH])
        batch = shown.gather(torch.cat([shown.embed(p) for p in part]), part)
        at = {"log_temperature": model.log_temperature}
        own += shown.contrastive(batch).item() * len(batch["material"])
        recall = losses.recall_at_1(**batch) if pairs else {}
        for m, n in pairs:
            two = {k: {j: batch[k][j] for j in (m, n)} for k in ("embeddings", "present")}
            both = int((two["present"][m] & two["present"][n]).sum())
            loss = losses.pairwise(**{**batch, **two}, **at).item()
            hits, queries, _ = np.add(recall[m, n], recall[n, m])
            pairs[m, n] += [loss * both, both, hits, queries]
    rows = [
        {"pair": f"{m}–{n}", "loss": total / both, "recall": hits / queries}
        for (m, n), (total, both, hits, queries) in pairs.items()
        if both
    ]
    return {"loss": own / len(views), "pairs": rows}


@torch.no_grad()
def retrieved(source: Source, shown: Shown, crystals: Tensor) -> cache.Result:
    """Scores of each query in the full gallery.

    Structure to protocol, structure to an image that was never trained on, and that image to protocol; `crystals` are
    the tower's features (M, width).
    """
    t, model = task(source), shown.model
    galleries = {level: Gallery(t.curated, level, hard=1) for level in LEVELS}
    gallery = galleries[LEVELS[0]]
    structures = F.normalize(model.heads["crystal"](crystals[gallery.rows]), dim=1)
    z = {"structure": structures.numpy()}
    if "image" in model.towers:
        z["image"] = model.encode("image", torch.from_numpy(t.held_out[gallery.rows])).numpy()
    ranks = {}
    if "text" in model.towers:
        for level, here in galleries.items():
            texts = model.encode("text", model.towers["text"].features(here.texts[0])).numpy()
            for query in z if level == LEVELS[0] else ("structure",):
                arm = matchers.Arm(z[query], texts)
                ranks[f"{query}_text_L{level}"] = matchers.rank_protocols(here, arm)["full"]
    if "image" in z:
        right = gallery.queries[:, None] == np.arange(len(gallery.rows))
        ranks["structure_image"] = Ranks.of(z["structure"][gallery.queries] @ z["image"].T, right)
    out = {f"{name}/{metric}": r.metric(metric) for name, r in ranks.items() for metric in ("MRR", "R@10")}
    return out | {"query_rows": gallery.rows[gallery.queries]}


def predicted(source: Source, shown: Shown, crystals: Tensor, folder: Path) -> cache.Result:
    """Errors of formation energy (eV/atom) on the chemsys test set: the tower fine-tuned, and frozen under ridge.

    Args:
        source: says the schedule and the share of the labels.
        shown: the trained model.
        crystals: (M, width) its tower's features.
        folder: of the state of fine-tuning.
    """
    cfg, schedule, curated = source.cfg, source.schedule, shown.curated
    fit = fits.Fit(f"{fits.E_F}:1", "pretrained", "A", "chemsys", cfg.label_percent, shown.cfg.seed)
    known = curated.materials[[fits.E_F]]
    model = encode.Model(shown.cfg, shown.model)
    parts = fits.rows(fits.Task(schedule, curated, model, known, "", shown.device), fit)
    labels = known.to_numpy(np.float64)
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        network = regression.Regressor(copy.deepcopy(shown.model.towers["crystal"]), 1)
    tuned = regression.train(
        network,
        regression.Inputs(shown.inputs["crystal"].store),
        labels,
        parts,
        targets=fit.weights,
        kept_by=fits.E_F,
        steps=cfg.steps,
        **{name: getattr(schedule, name) for name in ("batch_size", "learning_rate", "weight_decay")},
        seed=shown.cfg.seed,
        state=folder / "state.pt",
    )
    frozen = regression.each_target(regression.ridge, [fits.E_F], labels, parts, crystals.numpy())
    true = labels[parts["test"], 0]
    errors = {
        f"{name}/MAE": np.abs(p["test"][:, 0] - true) for name, p in {"finetuned": tuned, "ridge": frozen}.items()
    }
    return {**errors, "test_rows": parts["test"], "n_labels": len(parts["train"])}


def fit_all(cfg: Ablations) -> dict[Fit, cache.Result]:
    """All variants and seeds that the curated set allows, up to `cfg.threads` at a time; see `solve`."""
    wanted = chosen(cfg.variants)
    if not wanted:
        return {}
    start, extras = source(cfg), dataset.read(paths.curated(cfg.profile)).extras
    variants = {v: None for group in wanted.values() for v in group.values() if not lacking(v, extras)}
    fits = [Fit(v, cfg.seed + s) for s in range(cfg.seeds) for v in variants]
    finished = [f for f in fits if (cache.folder("ablations", key(start, f)) / "result.safetensors").exists()]
    pending = [f for f in fits if f not in finished]
    out = {fit: solve(start, fit) for fit in finished}
    work = cfg.epochs * int((task(start).curated.splits.pretrain == "train").sum()) * len(pending)
    processes = 1 if work < WORTH_A_PROCESS else min(cfg.threads, len(pending))
    with tqdm(total=len(fits), initial=len(finished), desc="variants", unit="fit", mininterval=1) as bar:
        for fit, result in workers.solved(partial(solve, start), pending, processes):
            out[fit] = result
            bar.update()
    return {fit: out[fit] for fit in fits}


def lacking(variant: Variant, extras: Iterable[str]) -> list[str]:
    """Modalities of a variant that the curated set has not been made for."""
    return [m for m in variant.modalities.split() if towers.needs_curation(m) and m not in extras]
