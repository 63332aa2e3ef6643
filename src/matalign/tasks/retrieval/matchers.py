"""What compares a material with a protocol: features of both sides, counted or learned, and the ranking by them.

random, formula, jaccard, stoichiometry, tfidf   nothing is fitted
a `Matcher`                                      heads on fixed features of both sides, trained here
a hybrid                                         Jaccard + weight · the similarity of a `Matcher`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn import functional as F

from matalign import cache
from matalign.data import formulas
from matalign.elements import NUMBER
from matalign.pretrain import losses
from matalign.pretrain.align import Head
from matalign.tasks import fit
from matalign.tasks.retrieval.galleries import COMMON, Gallery, jaccard, telling
from matalign.tasks.retrieval.ranking import Ranks, rank

TEMPERATURE = 0.07  # initial
WEIGHTS = np.logspace(-2, 1, 7)  # of a similarity beside Jaccard; the first does little more than break ties
FLOOR = 0.02  # of a feature's standard deviation: an element absent from training is not blown up


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products of unit vectors."""
    return np.asarray((a @ b.T).todense()) if sparse.issparse(a) else a @ b.T


def stoichiometry(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Minus the sum of absolute differences of atomic fractions."""
    return -cdist(a, b, "cityblock")


def text_fractions(texts: Sequence[str]) -> np.ndarray:
    """(n, 119) atomic fractions of the formulas in a text, each formula counted once; zeros without any."""
    out = np.zeros((len(texts), 119))
    for row, text in zip(out, texts, strict=True):
        for formula in formulas.in_text(text):
            for symbol, amount in formulas.composition(formula).items():
                row[NUMBER[symbol]] += float(amount)
    return out / np.maximum(out.sum(1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Arm:
    """Features of both sides and how to compare them."""

    materials: np.ndarray  # (N, d)
    texts: np.ndarray  # (distinct texts, d)
    score: Callable[[np.ndarray, np.ndarray], np.ndarray] = cosine
    weight: float | None = None  # of a hybrid


def baselines(gallery: Gallery) -> dict[str, Arm]:
    """The arms without parameters: they read the elements' numbers and the text, nothing else."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here: its import takes a second

    texts, _ = gallery.texts
    formula = gallery.curated.materials.formula.to_numpy()[gallery.rows]
    of_text = text_fractions(texts)
    named = [next(map(formulas.reduced, formulas.in_text(text)), "") for text in texts]  # the title's comes first
    _, code = np.unique([*map(formulas.reduced, formula), *named], return_inverse=True)
    code = code[:, None].astype(float)
    without_common = [f.copy() for f in (gallery.fractions, of_text)]
    for f in without_common:
        f[:, COMMON] = 0
        f /= np.maximum(f.sum(1, keepdims=True), 1e-12)
    words = TfidfVectorizer(token_pattern=r"[^\s,()]*[^\s,().:]", lowercase=False).fit(texts)
    described = [formulas.with_names(f) for f in formula]
    nothing = np.zeros((1, 1))
    return {
        "random": Arm(nothing.repeat(len(formula), 0), nothing.repeat(len(texts), 0)),
        "formula": Arm(code[: len(formula)], code[len(formula) :], lambda a, b: (a == b.T).astype(float)),
        "jaccard": Arm(telling(gallery.fractions), telling(of_text), jaccard),
        "stoichiometry": Arm(*without_common, stoichiometry),
        "tfidf": Arm(words.transform(described), words.transform(texts)),
    }


class Matcher(nn.Module):
    """Two heads into one space, over fixed features of a material and of a text."""

    def __init__(self, material_dim: int, text_dim: int, *, embed_dim: int = 256) -> None:
        super().__init__()
        self.material = nn.Sequential(nn.Linear(material_dim, embed_dim), Head(embed_dim, embed_dim))
        self.text = Head(text_dim, embed_dim)
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())

    def forward(self, material: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (n, embed_dim) of both."""
        return F.normalize(self.material(material), dim=1), F.normalize(self.text(text), dim=1)


def train(
    material: Tensor, text: Tensor, gallery: Gallery, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> cache.Result:
    """Train a `Matcher` with the pairwise contrastive loss; an epoch shows each training material with one protocol.

    Args:
        material: (N, d) features of the gallery's materials.
        text: (distinct texts, e) features of its texts.
        learning_rate: at the start; falls to zero as a cosine.

    Returns:
        `materials` (N, 256) and `texts` (distinct texts, 256) unit vectors, `loss` of each epoch.

    Raises:
        ValueError: fewer than two materials to train on.
    """
    trained, allowed = gallery.training
    if len(trained) < 2:
        raise ValueError(f"{len(trained)} materials with a protocol that may be trained on; expected two at least")
    number = gallery.texts[1][allowed]
    first = np.searchsorted(gallery.owner[allowed], trained)
    count = np.append(first[1:], allowed.sum()) - first
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Matcher(material.shape[1], text.shape[1])
    # Each feature with zero mean and unit variance over the materials trained on.
    mean, std = material[trained].mean(0), material[trained].std(0)
    material = (material - mean) / std.clamp(min=FLOOR)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    batches = -(-len(trained) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    rng, history = np.random.default_rng(seed), np.zeros(epochs)
    batch = fit.Epochs(lambda: np.array_split(rng.permutation(len(trained)), batches), batches)

    def loss(step: int) -> Tensor:
        drawn = batch(step)
        chosen = torch.from_numpy(number[first[drawn] + (rng.random(len(drawn)) * count[drawn]).astype(int)])
        rows = torch.from_numpy(trained[drawn])
        z = dict(zip(("structure", "text"), model(material[rows], text[chosen])))
        present = {m: torch.ones(len(drawn), dtype=torch.bool) for m in z}
        error = losses.pairwise(z, present, rows, model.log_temperature, identical={"text": chosen})
        history[step // batches] += error.item() * len(drawn) / len(trained)
        return error

    def clamp() -> None:
        losses.clamp_temperature(model.log_temperature)

    fit.train(model, loss, steps=epochs * batches, optimizer=optimizer, schedule=schedule, after_step=clamp)
    with torch.no_grad():
        a, b = model(material, text)
    return {"materials": a.numpy(), "texts": b.numpy(), "loss": history.tolist()}


def hybrid(counted: Arm, learned: Arm, weight: float) -> Arm:
    """The arm whose score is that of `counted` plus a weight times that of `learned`."""
    width = counted.materials.shape[1]

    def score(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return counted.score(a[:, :width], b[:, :width]) + weight * learned.score(a[:, width:], b[:, width:])

    sides = ((getattr(counted, side), getattr(learned, side)) for side in ("materials", "texts"))
    return Arm(*(np.concatenate(pair, axis=1) for pair in sides), score, weight)


def validated(gallery: Gallery, counted: Arm, learned: Arm) -> np.ndarray:
    """(weights,) MRR, structure to protocol, on validation, of the hybrid with each of `WEIGHTS`; 0 without any."""
    asked = gallery.validation
    right = np.arange(len(gallery.rows)) == asked[:, None]
    one, other = (arm.score(arm.materials[asked], arm.texts) for arm in (counted, learned))
    found = [Ranks.of(_best(gallery, one + weight * other), right).metric("MRR") for weight in WEIGHTS]
    return np.array([scores.sum() / max(len(asked), 1) for scores in found])


def rank_protocols(gallery: Gallery, arm: Arm) -> dict[str, Ranks]:
    """For each query's structure, rank the materials by the best of their protocols."""

    def score(queries: np.ndarray) -> np.ndarray:
        return _best(gallery, arm.score(arm.materials[queries], arm.texts))

    return rank(score, gallery.queries, gallery.queries, gallery.neighbours)


def _best(gallery: Gallery, scores: np.ndarray) -> np.ndarray:
    """(Q, N) the best score among each material's protocols, of scores (Q, distinct texts)."""
    first = np.searchsorted(gallery.owner, np.arange(len(gallery.rows)))
    return np.maximum.reduceat(scores[:, gallery.texts[1]], first, axis=1)


def rank_materials(gallery: Gallery, arm: Arm) -> dict[str, Ranks]:
    """For each protocol of `gallery.asked`, rank the materials."""
    own = gallery.owner[gallery.asked]
    hard = gallery.neighbours[np.searchsorted(gallery.queries, own)]
    return rank(lambda texts: arm.score(arm.texts[texts], arm.materials), gallery.texts[1][gallery.asked], own, hard)
