"""Precursor sets for a target composition: baselines that count, and a learned scorer that assembles sets.

A set is assembled element by element, from the most electronegative to the least. For each telling element of the
target the next choice is one of the known precursors that bring it and no element foreign to the target, or to go on,
which is open once the element is brought. A choice has the probability

    p(precursor | target, element, chosen) = softmax over candidates of q(target, element, chosen) · k(precursor) + b

with two towers q and k: a contrastive loss whose negatives are the element's other precursors. k sees the precursor's
own composition, so what is learned of carbonates or sulfides serves those that are rare. Beam search adds up the ways
to the same set.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn import functional as F

from matalign import elements
from matalign.config import Recommendation
from matalign.data import formulas
from matalign.data.formulas import COMMON, telling
from matalign.data.protocols import Protocol
from matalign.elements import NUMBER
from matalign.tasks import fit

TOP = (1, 5, 10)
PROPERTIES = elements.standardised()
LIGANDS = [NUMBER[symbol] for symbol in sorted(COMMON)]
FRESH = 3  # precursors that one element may add
RANKS = 60  # k of the fusion by reciprocal rank
KNOWN = 200  # nearest targets that a copied set may come from
QUERIES = 4096  # scored at once
Composition = Sequence[tuple[str, float]]
Query = tuple[int, str, frozenset[int]]  # target's row, element, precursors chosen
Scorer = Callable[[Sequence[Query]], np.ndarray]  # -> (n, vocabulary + 1) scores, the last of going on


@dataclass(frozen=True)
class Vocabulary:
    """The precursors of the training formulas."""

    names: tuple[str, ...]
    counts: np.ndarray  # (V,) recipes of each

    @classmethod
    def of(cls, training: Sequence[Protocol]) -> "Vocabulary":
        """Those of the recipes, sorted."""
        counts = Counter(p for r in training for p in r.precursor_set)
        names = tuple(sorted(counts))
        return cls(names, np.array([counts[name] for name in names], dtype=np.int64))

    @cached_property
    def brings(self) -> list[frozenset[str]]:
        """The telling elements of each."""
        return [telling(formulas.symbols(name)) for name in self.names]

    @cached_property
    def by_element(self) -> dict[str, list[int]]:
        """Element -> its precursors."""
        rows: dict[str, list[int]] = defaultdict(list)
        for i, brought in enumerate(self.brings):
            for symbol in sorted(brought):
                rows[symbol].append(i)
        return rows

    @cached_property
    def features(self) -> np.ndarray:
        """(V, 119 · 2 + F) float32: fractions, presence; kind, ligands to metals, mean elemental properties."""
        share = np.stack([formulas.vector(formulas.fractions(name)) for name in self.names]).astype(np.float32)
        ligands = share[:, LIGANDS]
        kind = (ligands > 0) @ (2 ** np.arange(len(LIGANDS)))
        one_hot = np.eye(2 ** len(LIGANDS), dtype=np.float32)[kind]
        ratio = np.minimum(ligands / np.maximum(1e-6, 1 - ligands.sum(1, keepdims=True)), 6) / 3
        return np.concatenate([share, share > 0, one_hot, ratio, share @ PROPERTIES], 1).astype(np.float32)

    def candidates(self, system: frozenset[str], element: str, chosen: frozenset[int]) -> list[int]:
        """Rows that may be chosen next; `len(names)`, to go on, comes last and only if the element is brought."""
        allowed = telling(system)
        free = [i for i in self.by_element.get(element, ()) if self.brings[i] <= allowed and i not in chosen]
        brought = any(element in self.brings[i] for i in chosen)
        return [*free, len(self.names)] if brought else free


def order(system: frozenset[str]) -> list[str]:
    """Telling elements, the most electronegative first: an anion is settled before what it binds."""
    return sorted(telling(system), key=lambda s: (-np.nan_to_num(elements.ELECTRONEGATIVITY[NUMBER[s]]), s))


def assemble(
    targets: Sequence[Composition], vocabulary: Vocabulary, score: Scorer, *, beam: int, k: int
) -> list[list[tuple[frozenset[str], float]]]:
    """The k most probable sets of each target with their log-probabilities, best first.

    A choice's score counts before the softmax over the candidates; `beam` partial sets are kept at each step.
    """
    systems = [frozenset(symbol for symbol, _ in t) for t in targets]
    steps = [order(system) for system in systems]
    beams: list[dict[frozenset[int], float]] = [{frozenset(): 0.0} for _ in targets]
    for depth in range(max(map(len, steps), default=0)):
        rows = [i for i, step in enumerate(steps) if depth < len(step)]
        open_, done = {i: beams[i] for i in rows}, {i: {} for i in rows}
        for _ in range(FRESH + 1):
            queries = [(i, steps[i][depth], chosen) for i in rows for chosen in open_[i]]
            scored = itertools.chain(*(score(queries[i : i + QUERIES]) for i in range(0, len(queries), QUERIES)))
            grown: dict[int, dict] = {i: {} for i in rows}
            for row, (i, element, chosen) in zip(scored, queries):
                free, so_far = vocabulary.candidates(systems[i], element, chosen), open_[i][chosen]
                if not free:  # nobody knows how to bring it
                    _add(done[i], chosen, so_far)
                    continue
                chances = so_far + log_softmax(row[free].astype(np.float64))
                for j in np.argsort(-chances, kind="stable")[:beam]:
                    last = free[j] == len(vocabulary.names)
                    _add(done[i] if last else grown[i], chosen if last else chosen | {free[j]}, float(chances[j]))
            open_ = {i: _best(grown[i], beam) for i in rows}
        for i in rows:
            beams[i] = _best(done[i], beam)
    return [
        [(frozenset(vocabulary.names[j] for j in chosen), value) for chosen, value in _best(best, k).items()]
        for best in beams
    ]


def _add(beam: dict, key: Any, value: float) -> None:
    beam[key] = float(np.logaddexp(beam[key], value)) if key in beam else value


def _best(beam: dict, size: int) -> dict:
    return dict(sorted(beam.items(), key=lambda item: (-item[1], sorted(item[0])))[:size])


def popular(training: Sequence[Protocol]) -> dict[str, Counter]:
    """Element -> how many recipes bring it with which precursor."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for recipe in training:
        for name in recipe.precursor_set:
            for symbol in telling(formulas.symbols(name)) & telling(recipe.system):
                counts[symbol][name] += 1
    return counts


def popularity(target: Composition, counts: dict[str, Counter], *, beam: int, k: int) -> list[frozenset[str]]:
    """The k sets with the greatest product, over the telling elements, of each one's share among its precursors.

    Precursors with an element foreign to the target are left out, so that the baseline is not weakened by them.
    """
    allowed = telling(symbol for symbol, _ in target)
    sets: dict[frozenset[str], float] = {frozenset(): 0.0}
    for symbol in sorted(allowed):
        shares = {p: n for p, n in counts.get(symbol, Counter()).items() if telling(formulas.symbols(p)) <= allowed}
        total, grown = sum(shares.values()), {}
        for chosen, value in sets.items():
            for name, count in shares.items():
                key = chosen | {name}
                grown[key] = max(grown.get(key, -math.inf), value + math.log(count / total))
        sets = _best(grown, beam) if grown else sets
    return list(_best(sets, k))


def nearest(targets: Sequence[Composition], training: Sequence[Protocol], *, k: int) -> list[list[frozenset[str]]]:
    """The sets of the known targets of nearest composition (sum of differences in atomic fraction), each once."""
    rows = np.stack([formulas.vector(r.fractions) for r in training])
    distance = cdist(np.stack([formulas.vector(t) for t in targets]), rows, "cityblock")
    closest = np.argsort(distance, 1, kind="stable")[:, :KNOWN]
    return [list(dict.fromkeys(training[j].precursor_set for j in row))[:k] for row in closest]


def random_sets(targets: Sequence[Composition], vocabulary: Vocabulary, *, k: int, seed: int) -> list[list[frozenset]]:
    """k sets with a precursor for each telling element, drawn with equal chances from those known to bring it."""
    rng = np.random.default_rng(seed)
    sets = []
    for target in targets:
        system = frozenset(symbol for symbol, _ in target)
        free = [c for symbol in order(system) if (c := vocabulary.candidates(system, symbol, frozenset()))]
        sets.append([frozenset(vocabulary.names[rng.choice(c)] for c in free) for _ in range(k)])
    return sets


def fused(arms: Sequence[Sequence[Sequence[frozenset[str]] | None]]) -> list[list[frozenset[str]] | None]:
    """Reciprocal-rank fusion of ranked sets (Cormack, Clarke and Buettcher, SIGIR 2009): by Σ 1 / (60 + rank).

    Of each target; None where an arm has None. Equals keep the order of the arms.
    """
    found: list[list[frozenset[str]] | None] = []
    for lists in zip(*arms, strict=True):
        score: dict[frozenset[str], float] = defaultdict(float)
        for ranked in () if None in lists else lists:
            for rank, each in enumerate(ranked, start=1):
                score[each] += 1 / (RANKS + rank)
        found.append(None if None in lists else sorted(score, key=score.__getitem__, reverse=True))
    return found


def hits(ranked: Sequence[Sequence[frozenset[str]]], truth: Sequence[frozenset[str]]) -> np.ndarray:
    """(3, N) whether the exact set, in any order, is among the first 1, 5 and 10."""
    return np.array([[t in sets[:k] for sets, t in zip(ranked, truth, strict=True)] for k in TOP], dtype=float)


class Towers(nn.Module):
    """q(target, element, chosen) and k(precursor); see the module."""

    def __init__(self, vocabulary: Vocabulary, *, width: int, dropout: float):
        super().__init__()
        known = torch.from_numpy(vocabulary.features)
        n, size, depth = len(known), known.shape[1], len(elements.VALUES)
        self.register_buffer("known", torch.cat([known, torch.zeros(1, size)]))  # the last row: nothing
        self.register_buffer("properties", torch.from_numpy(PROPERTIES))
        self.keys = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
        self.own = nn.Parameter(torch.zeros(n + 1, width))  # what a precursor's composition does not tell
        self.bias = nn.Parameter(torch.cat([torch.from_numpy(np.log(vocabulary.counts)).float(), torch.zeros(1)]))
        self.chosen = nn.EmbeddingBag(n + 1, 32, mode="sum", padding_idx=n)
        nn.init.normal_(self.chosen.weight, 0, 0.05)
        inputs = 4 * depth + PROPERTIES.shape[1] + 32 + size - 2 * depth
        self.queries = nn.Sequential(
            *(nn.Linear(inputs, 2 * width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(2 * width, width),
        )

    def key(self) -> Tensor:
        """(V + 1, width)."""
        return torch.cat([self.keys(self.known[:-1]), self.known.new_zeros(1, self.own.shape[1])]) + self.own

    def forward(self, share: Tensor, element: Tensor, chosen: Tensor, key: Tensor) -> Tensor:
        """(B, V + 1) scores of atomic fractions (B, 119), atomic numbers (B,), chosen rows (B, C) padded with V."""
        depth = share.shape[1]
        taken = self.known[chosen].sum(1)
        brought = taken[:, depth : 2 * depth].clamp(max=2)
        inputs = (3 * share, (share > 0).float(), F.one_hot(element, depth).float(), brought, share @ self.properties)
        query = self.queries(torch.cat([*inputs, self.chosen(chosen), taken[:, 2 * depth :]], 1))
        return query @ key.T + self.bias


def choices(
    recipe: Protocol, vocabulary: Vocabulary, row: dict[str, int]
) -> list[tuple[str, frozenset[int], list, int]]:
    """(element, chosen, candidates, right one) of each choice that leads to a recipe's set; the common come first."""
    chosen: frozenset[int] = frozenset()
    steps, left = [], {row[p] for p in recipe.precursor_set}
    for element in order(recipe.system):
        here = sorted((i for i in left if element in vocabulary.brings[i]), key=lambda i: (-vocabulary.counts[i], i))
        for right in [*here[:FRESH], len(vocabulary.names)]:
            free = vocabulary.candidates(recipe.system, element, chosen)
            if len(free) > 1 and right in free:
                steps.append((element, chosen, free, right))
            if right < len(vocabulary.names):
                chosen |= {right}
        left -= chosen
    return steps


def train(recipes: Sequence[Protocol], vocabulary: Vocabulary, cfg: Recommendation, *, seed: int) -> Towers:
    """Train the two towers on every choice of the recipes (AdamW, one cycle)."""
    torch.manual_seed(seed)
    model = Towers(vocabulary, width=cfg.width, dropout=cfg.dropout)
    row = {name: i for i, name in enumerate(vocabulary.names)}
    made = [(i, *choice) for i, recipe in enumerate(recipes) for choice in choices(recipe, vocabulary, row)]
    inputs = _inputs([r.fractions for r in recipes], [(i, e, c) for i, e, c, _, _ in made], len(row))
    right = torch.tensor([answer for *_, answer in made])
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, weight_decay=0.02)
    batches = math.ceil(len(made) / cfg.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.learning_rate, total_steps=cfg.epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    batch = fit.Epochs(lambda: torch.randperm(len(made), generator=generator).split(cfg.batch_size), batches)

    def loss(step: int) -> Tensor:
        drawn = batch(step)
        scores = model(*(part[drawn] for part in inputs), model.key())
        closed = torch.full_like(scores, -torch.inf)
        for line, j in enumerate(drawn.tolist()):
            closed[line, made[j][3]] = 0
        return F.cross_entropy(scores + closed, right[drawn])

    fit.train(model, loss, steps=cfg.epochs * batches, optimizer=optimizer, schedule=cycle)
    return model.eval()


def _inputs(targets: Sequence[Composition], queries: Sequence[Query], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    share = np.stack([formulas.vector(t) for t in targets]).astype(np.float32)
    chosen = torch.full((len(queries), max([1, *(len(c) for _, _, c in queries)])), padding)
    for line, (_, _, rows) in enumerate(queries):
        chosen[line, : len(rows)] = torch.tensor(sorted(rows), dtype=torch.long)
    element = torch.tensor([NUMBER[symbol] for _, symbol, _ in queries])
    return torch.from_numpy(share[[i for i, _, _ in queries]]), element, chosen


def scorer(models: Sequence[Towers], targets: Sequence[Composition]) -> Scorer:
    """The mean score of several networks, for `assemble`."""
    with torch.no_grad():
        keys = [model.key() for model in models]

    @torch.no_grad()
    def score(queries: Sequence[Query]) -> np.ndarray:
        inputs = _inputs(targets, queries, len(keys[0]) - 1)
        return torch.stack([m(*inputs, key) for m, key in zip(models, keys)]).mean(0).numpy()

    return score
