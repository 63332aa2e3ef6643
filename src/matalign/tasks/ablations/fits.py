"""Ablations: what each part of the method buys, one factor at a time from a base variant.

A variant trains a crystal tower and the heads of all modalities as pretraining does (`train.optimise`: same steps, same
keyed draws), but on features made beforehand: a few views of each material through the image tower of the profile's
pretrained model, and its texts through the frozen language model. So the variants differ in nothing but what they name,
and cost minutes. Two of them are controls: `pairs:shuffled` trains on texts and images of other materials and must
lose the gain; `objective:none` is not trained and is the lower end. `objective:profile-supervised` is what
`modalities:with-profile` must beat: the same numbers, predicted instead of aligned.

Each variant is tested on the test set of the split by chemical system, several seeds each: retrieval as in `retrieval`
(full gallery), and the tower on formation energy at a few labels, fine-tuned and frozen, as in `properties`.
"""

import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from matalign import cache, paths
from matalign.config import Ablations
from matalign.data import dataset
from matalign.pretrain import encode, losses, train
from matalign.pretrain.batches import VALIDATION
from matalign.pretrain.checkpoint import on_threads
from matalign.quantities import ENERGY
from matalign.tasks.ablations.shown import LEVELS, ROWS, Shown, Source, examples, source, task
from matalign.tasks.ablations.variants import BATCH, Variant, chosen, lacking
from matalign.tasks.properties import arms, baselines, networks
from matalign.tasks.properties import task as properties
from matalign.tasks.retrieval import matchers
from matalign.tasks.retrieval.galleries import Gallery
from matalign.tasks.retrieval.ranking import Ranks
from matalign.towers.crystal import Regressor

LATER = ("supervised", "attends")  # factors that keys have only where a variant has them
WORTH_A_PROCESS = 20_000  # crystals shown in training; below, starting processes costs more than it saves


@dataclass(frozen=True)
class Fit:
    """One training and its tests."""

    variant: Variant
    seed: int


def key(source: Source, fit: Fit) -> dict[str, Any]:
    """All that a fit depends on."""
    cfg, schedule = source.cfg, source.schedule
    variant = {name: value for name, value in asdict(fit.variant).items() if value or name not in LATER}
    out = {"fit": {"variant": variant, "seed": fit.seed}, "source": source.digest, "seed": cfg.seed}
    out |= {f"data_{modality}": digest for modality, digest in source.extras if modality in fit.variant.read}
    out |= {name: value for name, value in asdict(source.pretrain).items() if name != "profile"}
    out |= {name: getattr(cfg, name) for name in ("epochs", "learning_rate", "label_percent", "steps")}
    return out | {f"tuning_{name}": getattr(schedule, name) for name in ("batch_size", "learning_rate", "weight_decay")}


def fit_or_load(source: Source, fit: Fit) -> cache.Result:
    """Train a variant and test it, from scratch (the folder) if an earlier run did.

    Returns:
        `<task>/<metric>`: score of each query, or error of each test material; `query_rows`, `test_rows`: which
        materials these are; `loss`, `pairs`: see `aligned`.
    """

    def compute() -> cache.Result:
        folder = cache.folder("ablations", key(source, fit))
        shown = examples(source, fit.variant, fit.seed)
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
    """Errors of E_f (eV/atom) on the chemsys test set: of the tower fine-tuned, of its features (M, width) by ridge."""
    cfg, schedule, curated = source.cfg, source.schedule, shown.curated
    fit = arms.Fit(((ENERGY, 1.0),), "pretrained", "A", "chemsys", cfg.label_percent, shown.cfg.seed)
    known = curated.materials[[ENERGY]]
    model = encode.Model(shown.cfg, shown.model)
    parts = properties.rows(properties.Task(schedule, curated, model, known, shown.device), fit)
    labels = known.to_numpy(np.float64)
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        network = Regressor(copy.deepcopy(shown.model.towers["crystal"]), 1)
    inputs = networks.Inputs(shown.inputs["crystal"].store)
    how = {"targets": fit.weights, "steps": cfg.steps, "seed": shown.cfg.seed, "state": folder / "state.pt"}
    tuned = networks.train(network, inputs, labels, parts, schedule=schedule, **how)
    frozen = baselines.each_target(baselines.ridge, crystals.numpy(), [ENERGY], labels, parts)
    true = labels[parts["test"], 0]
    errors = {f"{n}/MAE": np.abs(p["test"][:, 0] - true) for n, p in (("finetuned", tuned), ("ridge", frozen))}
    return {**errors, "test_rows": parts["test"], "n_labels": len(parts["train"])}


def fit_all(cfg: Ablations) -> dict[Fit, cache.Result]:
    """All variants and seeds that the curated set allows, up to `cfg.threads` at a time; see `fit_or_load`."""
    wanted = chosen(cfg)
    if not wanted:
        return {}
    start, curated = source(cfg), dataset.read(paths.curated(cfg.profile))
    variants = {v: None for group in wanted.values() for v in group.values() if not lacking(v, curated.extras)}
    fits = [Fit(v, cfg.seed + s) for s in range(cfg.seeds) for v in variants]
    pending = [fit for fit in fits if not cache.has("ablations", key(start, fit))]
    work = cfg.epochs * int((curated.splits.pretrain == "train").sum()) * len(pending)
    processes = 1 if work < WORTH_A_PROCESS else min(cfg.threads, len(pending))
    return dict(zip(fits, cache.each(partial(fit_or_load, start), fits, processes=processes, title="variants")))
