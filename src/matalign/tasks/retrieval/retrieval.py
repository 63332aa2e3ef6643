"""Retrieval between structures, protocols and micrographs, beside baselines that only count elements.

Materials are ranked, each by the best of its protocols. Queries are the materials of the chemsys test set that have a
protocol; the gallery holds all materials with one. A protocol that asks for its structure is a query of its own, and a
material's score is the mean over its protocols. Every arm maps both sides to features and compares them:

    random, formula, jaccard, stoichiometry, tfidf   nothing is fitted
    composition   heads on element fractions and on the text, trained here
    structure     the same, with the pretrained crystal tower's features beside the fractions
    structure_hybrid, composition_hybrid   element Jaccard + weight · similarity of these; the weight of most MRR on
                  validation, from structure to protocol, level by level
    pretrained    the aligned model as pretraining left it
    image         the same, where a micrograph is one side
    registration  of some of these micrographs: the crystals of the gallery are fitted to it, scale known, nothing
                  learned (`views.identification`)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from matalign import cache, config, paths, stats
from matalign.claims import ALPHA, claim, locate
from matalign.config import Retrieval
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pretrain import encode, losses
from matalign.tasks.retrieval import matchers
from matalign.tasks.retrieval.galleries import Gallery
from matalign.tasks.retrieval.matchers import Arm
from matalign.tasks.retrieval.ranking import Ranks, rank
from matalign.views import identification
from matalign.views.micrographs import Optics

METRICS = ("R@1", "R@5", "R@10", "R@50", "MRR")
FITTED = ("composition", "structure")
HYBRIDS = {"structure_hybrid": "structure", "composition_hybrid": "composition"}  # and whose similarity they weigh
COMPARED = {  # arm -> what it is compared with
    "structure": ("jaccard", "composition"),
    "structure_hybrid": ("jaccard", "composition_hybrid"),
    "registration": ("image",),
}
BATCH = 256  # images rendered at once
CURVE = ("jaccard", "composition", "structure", "pretrained")  # arms shown by size of the gallery, and where:
CURVE_LEVELS, CURVE_METRICS, CURVE_SIZES = (1, 2), ("R@10", "MRR"), (50, 100, 200, 500, 1000)
MODALITY = {"structure": "crystal", "text": "text", "image": "image"}  # as pretraining calls them
THRESHOLD = 0.80  # of the proposal's claim


@dataclass(frozen=True)
class Study:
    """What is evaluated: the curated set, the pretrained model, and the galleries of all mask levels."""

    cfg: Retrieval
    curated: Curated
    model: encode.Model

    def gallery(self, level: int) -> Gallery:
        """The gallery at a mask level."""
        return Gallery(self.curated, level, self.cfg.hard_gallery, self.cfg.protocols_per_material)

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,) rows of the curated set that are in the gallery, the same at every level."""
        return self.gallery(0).rows

    def crystals(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, width) pooled features of the crystal tower; (N, embed_dim) where its head puts them."""
        made = encode.features(self.cfg.profile, modality="crystal")
        return made["pooled"][self.rows], made["embeddings"][self.rows]

    def images(self) -> np.ndarray:
        """(N, embed_dim) one micrograph of each material, a view that pretraining never showed."""
        return encode.features(self.cfg.profile, modality="image")["embeddings"][self.rows]

    def fitted(self, name: str, gallery: Gallery) -> Arm:
        """An arm that is trained here: composition or structure."""
        texts = self.model.towers["text"].features(gallery.texts[0], progress=True)
        # The root spreads small fractions apart; on validation it was worth 0.01 of MRR to both arms.
        material = np.sqrt(gallery.fractions)
        if name == "structure":
            material = np.concatenate([material, self.crystals()[0]], axis=1)
        cfg = self.cfg
        options = {k: getattr(cfg, k) for k in ("epochs", "batch_size", "learning_rate", "seed")}
        key = {"arm": name, "level": gallery.level, **options, "threads": cfg.threads, "data": self.curated.digest}
        key |= {"model": encode.fingerprint(cfg.profile, "pretrained"), "text": self.model.towers["text"].fingerprint}
        key |= {"per_material": cfg.protocols_per_material, "version": config.version("retrieval")}
        material = torch.from_numpy(material).float()
        stored = cache.memo("retrieval", key, lambda: matchers.train(material, texts, gallery, **options))
        return Arm(stored["materials"], stored["texts"])

    def hybrid(self, gallery: Gallery, counted: Arm, learned: Arm) -> Arm:
        """Jaccard and a fitted arm, weighed by what is best on validation; of equals the least weight."""
        scores = matchers.validated(gallery, counted, learned)
        return matchers.hybrid(counted, learned, float(matchers.WEIGHTS[scores.argmax()]))

    @cached_property
    def registering(self) -> Gallery:
        """The gallery where a few images ask, each of which takes seconds."""
        return replace(self.gallery(0), asking=self.cfg.registered)

    def registered(self) -> np.ndarray:
        """(Q, N) how well each material fits the micrograph that `images` embeds, of each query of `registering`."""
        about, gallery = self.model.config, self.registering
        structures = self.curated.structures.take(gallery.rows)
        key = {"arm": "registration", "data": self.curated.digest, "queries": len(gallery.queries)}
        key |= {name: getattr(about, name) for name in ("seed", "image_px", "pixel_A")}
        key |= {"threads": self.cfg.threads, "version": config.version("retrieval")}
        optics = Optics(image_px=about.image_px, pixel_A=about.pixel_A)

        def compute() -> cache.Result:
            rows = gallery.rows[gallery.queries]
            images = self.model.micrographs(self.curated, rows, seed=about.seed, epoch=encode.EVALUATION)
            refs = identification.library(structures, optics=optics)
            found = identification.identify(images, structures, refs, pixel_A=about.pixel_A, optics=optics)
            return {"correlation": np.stack([each.correlation for each in found])}

        return cache.memo("retrieval", key, compute)["correlation"]

    def paired(self, query: str, target: str, arm: str) -> bool | None:
        """Whether pretraining pulled the two modalities together itself; None for an arm that is not as it left them.

        `anchored` pairs each modality with the structure alone: what it aligns beyond is emergent.
        """
        if arm not in ("pretrained", "image"):
            return None
        return self.model.config.loss != "anchored" or losses.ANCHOR in (MODALITY[query], MODALITY[target])

    def arms(self, gallery: Gallery) -> dict[str, Arm]:
        """All arms between structures and protocols at the gallery's level."""
        arms = matchers.baselines(gallery)
        if str(gallery.level) in self.cfg.learned_levels.split():
            arms |= {name: self.fitted(name, gallery) for name in FITTED}
            arms |= {name: self.hybrid(gallery, arms["jaccard"], arms[own]) for name, own in HYBRIDS.items()}
            arms["pretrained"] = Arm(self.crystals()[1], self.model.embed_texts(gallery.texts[0]))
        return arms


def prepare(cfg: Retrieval) -> Study:
    """Read the curated set and the model of a profile.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: no test material has a protocol.
    """
    torch.set_num_threads(cfg.threads)
    study = Study(cfg, dataset.read(paths.curated(cfg.profile)), encode.load(cfg.profile))
    gallery = study.gallery(0)
    if not len(gallery.queries):
        raise ValueError(
            f"{paths.curated(cfg.profile)}: none of the {len(gallery.rows)} materials with a protocol is in the test "
            "set of the split by chemical system; expected one at least"
        )
    return study


@dataclass(frozen=True)
class Outcome:
    """What each query of one arm scored: a structure, an image, or each of a material's protocols on its own."""

    query: str  # structure, text or image
    target: str
    level: int  # mask level of the text; 0 where there is none
    gallery: str  # full or hard
    arm: str
    weight: float | None  # of a hybrid
    chemsys: np.ndarray  # (Q,) chemical system of each query
    n_gallery: int
    ranks: Ranks
    scores: dict[str, np.ndarray]  # metric -> (Q,) ties in expectation
    pessimistic: dict[str, np.ndarray]  # metric -> (Q,) ties against the arm


def outcomes(study: Study, *, level: int) -> list[Outcome]:
    """Rank structures and protocols, and images and protocols where the model has images, at a mask level."""
    gallery = study.gallery(level)
    arms = study.arms(gallery)
    ranked: list[Outcome] = []
    for name, arm in tqdm(arms.items(), desc=f"ranking at L{level}", mininterval=1):
        ways = {("structure", "text"): matchers.rank_protocols, ("text", "structure"): matchers.rank_materials}
        for (query, target), way in ways.items():
            ranks = way(gallery, arm)
            ranked += outcome(gallery, ranks, query=query, target=target, arm=name, weight=arm.weight)
    if "image" in study.model.towers and "pretrained" in arms:
        for name, arm in {"random": arms["random"], "image": Arm(study.images(), arms["pretrained"].texts)}.items():
            ranked += outcome(gallery, matchers.rank_protocols(gallery, arm), query="image", target="text", arm=name)
            ranked += outcome(gallery, matchers.rank_materials(gallery, arm), query="text", target="image", arm=name)
    return ranked


def image_outcomes(study: Study) -> list[Outcome]:
    """Rank structures and micrographs; nothing if the model has no image tower."""
    if "image" not in study.model.towers:
        return []
    gallery = study.gallery(0)
    structures, images, same = study.crystals()[1], study.images(), np.zeros((len(gallery.rows), 1))
    ranked: list[Outcome] = []
    for name, a, b in (("random", same, same), ("image", structures, images)):
        for query, target, left, right in (("structure", "image", a, b), ("image", "structure", b, a)):
            products = partial(lambda left, right, queries: left[queries] @ right.T, left, right)
            ranks = rank(products, gallery.queries, gallery.queries, gallery.neighbours)
            ranked += outcome(gallery, ranks, query=query, target=target, arm=name)
    return ranked


def registered(study: Study) -> list[Outcome]:
    """Rank structures for some micrographs: by registration, by the aligned embedding and by chance."""
    gallery = study.registering
    if "image" not in study.model.towers:
        return []
    asked, structures = gallery.queries, study.crystals()[1]
    scores = {"random": np.zeros((len(asked), len(structures))), "image": study.images()[asked] @ structures.T}
    ranked: list[Outcome] = []
    for name, fit in (scores | {"registration": study.registered()}).items():
        ranks = rank(fit.__getitem__, np.arange(len(asked)), asked, gallery.neighbours)
        ranked += outcome(gallery, ranks, query="image", target="structure", arm=name)
    return ranked


def outcome(
    gallery: Gallery, ranks: dict[str, Ranks], *, query: str, target: str, arm: str, weight: float | None = None
) -> list[Outcome]:
    """Score the ranks in both galleries; where protocols asked, a material has the mean over its protocols."""
    number = np.searchsorted(gallery.queries, gallery.owner[gallery.asked])

    def per_material(scores: np.ndarray) -> np.ndarray:
        return np.bincount(number, weights=scores) / np.bincount(number) if query == "text" else scores

    level = gallery.level if "text" in (query, target) else 0
    sizes = {"full": len(gallery.rows), "hard": gallery.neighbours.shape[1]}
    return [
        Outcome(
            *(query, target, level, name, arm, weight, gallery.chemsys, sizes[name], r),
            *({m: per_material(r.metric(m, pessimistic=p)) for m in METRICS} for p in (False, True)),
        )
        for name, r in ranks.items()
    ]


def results(study: Study, ranked: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Rows {query, target, level, gallery, arm, weight, paired, metric, value, low, high, value_pessimistic, n_…}."""
    options = {"resamples": study.cfg.bootstrap, "seed": study.cfg.seed}
    rows = []
    for o in ranked:
        n = {"n_queries": len(o.chemsys), "n_chemsys": len(set(o.chemsys))}
        key = {k: getattr(o, k) for k in ("query", "target", "level", "gallery", "arm", "weight")}
        key["paired"] = study.paired(o.query, o.target, o.arm)
        for metric in METRICS:
            at = stats.bootstrap(o.scores[metric], o.chemsys, **options)
            rows.append(
                {**key, "metric": metric, **at.bounds()}
                | {"value_pessimistic": float(o.pessimistic[metric].mean()), "n_gallery": o.n_gallery, **n}
            )
    order = ("query", "target", "level", "gallery", "arm")
    return sorted(rows, key=lambda r: (*(r[k] for k in order), METRICS.index(r["metric"])))


def gallery_curve(study: Study, ranked: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Rows {level, arm, n_gallery, metric, value, low, high}: structure to protocol in random galleries by their size.

    Each is the expectation over all galleries of that size that hold the right answer; the last is the full gallery.
    """
    rows = []
    shown = [o for o in ranked if (o.query, o.target, o.gallery) == ("structure", "text", "full")]
    for o in (o for o in shown if o.arm in CURVE and o.level in CURVE_LEVELS):
        for n in (*(n for n in CURVE_SIZES if n < o.n_gallery), o.n_gallery):
            for metric in CURVE_METRICS:
                scores = o.ranks.metric_among(metric, n, gallery=o.n_gallery)
                at = stats.bootstrap(scores, o.chemsys, resamples=study.cfg.bootstrap, seed=study.cfg.seed)
                rows.append({"level": o.level, "arm": o.arm, "n_gallery": n, "metric": metric, **at.bounds()})
    return sorted(rows, key=lambda r: (r["level"], r["arm"], r["n_gallery"], r["metric"]))


def comparisons(study: Study, ranked: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Paired differences in MRR of each arm of `COMPARED` to its baselines, by query, over chemical systems.

    Holm's correction is over the levels and baselines of one arm, direction and gallery.
    """
    options = {"resamples": study.cfg.bootstrap, "seed": study.cfg.seed}
    by = {(o.query, o.target, o.gallery, o.level, o.arm): o for o in ranked}
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for (*way, level, arm), own in sorted(by.items()):
        for baseline in COMPARED.get(arm, ()):
            other = by[*way, level, baseline]
            d = stats.paired(own.scores["MRR"], other.scores["MRR"], own.chemsys, **options)
            row = {"query": own.query, "target": own.target, "gallery": own.gallery, "level": level, "arm": arm}
            row |= {"baseline": baseline, "metric": "MRR", **d.bounds("difference")}
            families.setdefault((*way, arm), []).append(row)
    return [row for family in families.values() for row in stats.adjusted(family)]


def claims(rows: Sequence[dict[str, Any]], differences: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The proposal's claim and those that say more, from structure to protocol in the full gallery.

    A claim passes if the lower bound of its interval is above the threshold; a difference must also have p < 0.05 after
    Holm.
    """
    cell = {"query": "structure", "target": "text", "gallery": "full"}

    def find(table: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
        wanted = {**cell, **wanted}
        return next((r for r in table if all(r[k] == v for k, v in wanted.items())), None)

    tested = []
    if own := find(rows, level=1, arm="structure", metric="R@10"):
        counting = find(rows, level=1, arm="jaccard", metric="R@10")["value"]
        also = "also passes" if counting > THRESHOLD else "does not pass"
        tested.append(
            claim(
                "Recall@10 > 80 % for synthesis retrieval (L1)",
                own,
                question="Is a structure's protocol among the first ten that are found?",
                metric=locate("results", "value", **cell, level=1, arm="structure", metric="R@10"),
                threshold=THRESHOLD,
                passed=own["low"] > THRESHOLD,
                control=f"element Jaccard: {counting:.3f}",
                note=f"element Jaccard, which only counts elements, gets {counting:.3f} and {also}",
            )
        )
    for level, arm, baseline, name, other in (
        (1, "structure", "jaccard", "structure tower", "element Jaccard"),
        (1, "structure", "composition", "structure tower", "composition only"),
        (2, "structure", "composition", "structure tower", "composition only"),
        (1, "structure_hybrid", "jaccard", "Jaccard + structure", "Jaccard"),
        (1, "structure_hybrid", "composition_hybrid", "Jaccard + structure", "Jaccard + composition"),
    ):
        if d := find(differences, level=level, arm=arm, baseline=baseline):
            scores = [find(rows, level=level, arm=a, metric="MRR")["value"] for a in (arm, baseline, "pretrained")]
            note = "MRR {:.3f} against {:.3f}; as pretraining left it {:.3f}; ".format(*scores)
            tested.append(
                claim(
                    f"{name} beats {other} in MRR (L{level})",
                    {**d, "value": d["difference"]},
                    question=f"Does the structure tell more of a protocol than {other} does?",
                    metric=locate("comparisons", "difference", **cell, level=level, arm=arm, baseline=baseline),
                    passed=d["low"] > 0 and d["p_holm"] < ALPHA,
                    control=f"{other}: {scores[1]:.3f}",
                    note=note + f"p = {d['p_holm']:.3g} (Holm)",
                )
            )
    return tested


def metrics(study: Study, ranked: Sequence[Outcome], fitted: Sequence[Outcome] = ()) -> dict[str, Any]:
    """What `results/<profile>/metrics/retrieval.json` holds; `fitted` are those of `registered`."""
    rows, differences = results(study, ranked), comparisons(study, ranked)
    return {
        **study.cfg.head(synthetic=study.curated.synthetic),
        "results": rows,
        "comparisons": [*differences, *comparisons(study, fitted)],
        "registration": results(study, fitted),
        "gallery_curve": gallery_curve(study, ranked),
        "claims": claims(rows, differences),
    }


def run(cfg: Retrieval) -> dict[str, Any]:
    """The whole stage: rank every pair of modalities at every mask level, with baselines, intervals and claims."""
    study = prepare(cfg)
    ranked = [o for level in cfg.levels.split() for o in outcomes(study, level=int(level))]
    return metrics(study, [*ranked, *image_outcomes(study)], registered(study))
