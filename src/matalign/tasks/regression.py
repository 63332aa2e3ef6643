"""Models that predict properties and how they are fitted: baselines without a network, networks on a crystal tower.

A fit sees arrays alone: features or batches of graphs, labels with NaN where there is none, and the rows to train and
validate on. The target `is_metal` is a class: a network gives its logit and is trained by binary cross-entropy, every
other model gives a number that means metal above one half. All other targets are fitted by absolute error.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import to_dense_batch

from matalign import elements
from matalign.data.dataset import Structures
from matalign.tasks import fit
from matalign.towers.crystal import Regressor as Regressor  # the plain network, beside those of fusion
from matalign.towers.crystal import pool
from matalign.views.graphs import Batch, GraphStore

METAL = "is_metal"
THRESHOLD = 0.5  # above: a metal
CHECKS = 10  # validations in a fit
CHECKPOINT_STEPS = 250
TREES, TREE_RATE = 600, 0.05
PENALTIES = np.logspace(-4, 8, 25)
HEADS = 4  # of the attention
Parts = Mapping[str, Int[np.ndarray, " _"]]  # train, val, test -> rows of materials
Predictions = dict[str, Float[np.ndarray, "_ targets"]]  # val, test -> values; of a class, that of being a metal


def errors(predicted: Float[np.ndarray, "*n"], true: Float[np.ndarray, "*n"], target: str) -> Float[np.ndarray, "*n"]:
    """Absolute error of each prediction; of a class 1 where it is wrong, else 0; NaN where there is no label."""
    if target == METAL:
        return np.where(np.isnan(true), np.nan, (predicted > THRESHOLD) != (true > THRESHOLD))
    return np.abs(predicted - true)


# Baselines


def composition_features(structures: Structures) -> Float[np.ndarray, "crystals features"]:
    """Magpie-like features of the composition: element fractions and five statistics of each elemental property.

    They are mean, mean deviation, minimum, maximum and range over the atoms, NaN where an element's is unknown.

    Returns:
        (M, 119 + 5 · 14).
    """
    crystal = np.repeat(np.arange(len(structures)), np.diff(structures.ptr))
    per_atom, first = elements.VALUES[structures.numbers], structures.ptr[:-1]
    size = np.diff(structures.ptr)[:, None]
    mean = np.add.reduceat(per_atom, first) / size
    deviation = np.add.reduceat(np.abs(per_atom - mean[crystal]), first) / size
    low, high = np.minimum.reduceat(per_atom, first), np.maximum.reduceat(per_atom, first)
    return np.concatenate([structures.fractions(), mean, deviation, low, high, high - low], 1)


def each_target(
    solve: Callable[..., dict[str, np.ndarray]],
    targets: Sequence[str],
    labels: Float[np.ndarray, "materials targets"],
    parts: Parts,
    features: Float[np.ndarray, "materials features"],
) -> Predictions:
    """Fit each target by itself.

    Args:
        solve: one of those below; takes features by part, known labels of training, a function from predictions for
            validation to their error, and whether the target is a class.
        targets: names.
        labels: NaN where absent.
        parts: rows.
        features: of all materials.
    """
    found: list[dict[str, np.ndarray]] = []
    for target, column in zip(targets, labels.T, strict=True):
        known = parts["train"][~np.isnan(column[parts["train"]])]
        x = {"train": features[known], "val": features[parts["val"]], "test": features[parts["test"]]}

        def score(predicted: np.ndarray, target: str = target, true: np.ndarray = column[parts["val"]]) -> float:
            return float(np.nanmean(errors(predicted, true, target)))

        found.append(solve(x, column[known], score, target == METAL))
    return {name: np.stack([f[name] for f in found], 1) for name in ("val", "test")}


def constant(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """Median of the training labels, for everybody; of a class the one that most have."""
    value = float(y.mean() > THRESHOLD) if classes else float(np.median(y))
    return {name: np.full(len(x[name]), value) for name in ("val", "test")}


def boosting(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """A boosted ensemble; its loss and its number of trees are those of least error on validation.

    Where most labels are equal, as the gaps of metals are, absolute error starts there and finds nothing to split on.
    """
    if len(np.unique(y)) < 2:
        return constant(x, y, score, classes)
    options = {"max_iter": TREES, "learning_rate": TREE_RATE, "early_stopping": False, "random_state": 0}
    if classes:
        models = [HistGradientBoostingClassifier(**options)]
    else:
        models = [HistGradientBoostingRegressor(loss=loss, **options) for loss in ("absolute_error", "squared_error")]

    def stages(model: Any, features: np.ndarray) -> Iterator[np.ndarray]:
        return (p[:, 1] for p in model.staged_predict_proba(features)) if classes else model.staged_predict(features)

    least, best = math.inf, {}
    for model in models:
        staged = list(stages(model.fit(x["train"], y), x["val"]))
        found = [score(predicted) for predicted in staged]
        i = int(np.argmin(found))
        if found[i] < least:
            least, best = found[i], {"val": staged[i], "test": next(islice(stages(model, x["test"]), i, None))}
    return best


def ridge(x: Mapping[str, np.ndarray], y: np.ndarray, score: Callable, classes: bool) -> dict[str, np.ndarray]:
    """Ridge regression, standardised on training; the penalty is that of least error on validation.

    On the labels 0 and 1 of a class, cut at one half, it is the ridge classifier.
    """
    mean, std = x["train"].mean(0, dtype=np.float64), x["train"].std(0, dtype=np.float64) + 1e-8
    x = {name: (values - mean) / std for name, values in x.items()}
    left, size, right = np.linalg.svd(x["train"], full_matrices=False)  # one decomposition for all penalties
    along = left.T @ (y - y.mean())
    found = [right.T @ (size / (size**2 + penalty) * along) for penalty in PENALTIES]
    best = min(found, key=lambda slope: score(x["val"] @ slope + y.mean()))
    return {name: x[name] @ best + y.mean() for name in ("val", "test")}


# Networks; each takes a batch of graphs and then the features of other modalities, (B, tokens, dim) each


class Projection(nn.Module):
    """Frozen features of another modality, standardised on the materials trained on, to the tower's width."""

    def __init__(self, pooled: Float[Tensor, "n dim"], width: int):
        super().__init__()
        self.register_buffer("mean", pooled.mean(0))
        self.register_buffer("std", pooled.std(0, correction=0) + 1e-3)
        self.linear = nn.Linear(pooled.shape[1], width)

    def forward(self, tokens: Float[Tensor, "crystals t dim"]) -> Float[Tensor, "crystals t width"]:
        """Each token by itself."""
        return self.linear((tokens - self.mean) / self.std)


class Fusion(nn.Module):
    """Early fusion: the tower's pooled features beside those of the other modalities, then two layers.

    Args:
        tower: trained with the rest.
        targets: how many.
        others: (n, dim) of each other modality, pooled, of the materials trained on.
    """

    def __init__(self, tower: nn.Module, targets: int, others: Sequence[Float[Tensor, "n _"]]):
        super().__init__()
        self.tower, width = tower, tower.dim
        self.others = nn.ModuleList(Projection(x, width) for x in others)
        joined = (1 + len(others)) * width
        self.head = nn.Sequential(nn.Linear(joined, width), nn.SiLU(), nn.Linear(width, targets))

    def forward(self, batch: Batch, *others: Float[Tensor, "crystals _ _"]) -> Float[Tensor, "crystals targets"]:
        """Standardised predictions."""
        pooled = [project(x).mean(1) for project, x in zip(self.others, others, strict=True)]
        return self.head(torch.cat([self.tower(batch)[0], *pooled], 1))


class CrossAttention(nn.Module):
    """The atoms attend, in one block with residual, over the other modalities' tokens and over themselves.

    Arguments as in `Fusion`.
    """

    def __init__(self, tower: nn.Module, targets: int, others: Sequence[Float[Tensor, "n _"]]):
        super().__init__()
        self.tower, width = tower, tower.dim
        self.others = nn.ModuleList(Projection(x, width) for x in others)
        self.query, self.key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head = nn.Linear(width, targets)

    def forward(self, batch: Batch, *others: Float[Tensor, "crystals _ _"]) -> Float[Tensor, "crystals targets"]:
        """Standardised predictions; they depend neither on the order of the atoms nor on the size of other crystals."""
        atoms, there = to_dense_batch(self.tower(batch)[1]["atoms"], batch.batch)  # (B, A, width), (B, A)
        tokens = [project(x) for project, x in zip(self.others, others, strict=True)]
        keys = self.key(torch.cat([atoms, *tokens], 1))  # (B, A + T, width)
        absent = F.pad(~there, (0, keys.shape[1] - atoms.shape[1]))
        # With its weights asked for, attention has a repeatable backward on a GPU.
        update, _ = self.attention(self.query(atoms), keys, keys, key_padding_mask=absent, need_weights=True)
        return self.head(pool((atoms + update)[there], batch))


class Inputs:
    """What a network takes, by rows of materials.

    Args:
        store: graphs of all materials.
        others: (M, tokens, dim) of each other modality.
        device: where the network is.
    """

    def __init__(
        self,
        store: GraphStore,
        others: Sequence[Float16[np.ndarray, "M _ _"] | Float32[np.ndarray, "M _ _"]] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.store, self.others, self.device = store.to(device), [torch.from_numpy(x) for x in others], device

    def __call__(self, rows: Int[Tensor, " B"]) -> list[Any]:
        """A batch of graphs and the others' tokens."""
        return [self.store.batch(rows), *(x[rows].float().to(self.device) for x in self.others)]

    def pooled(self, rows: Int[np.ndarray, " n"]) -> list[Float[Tensor, "n _"]]:
        """Of each other modality, the mean over its tokens."""
        return [x[torch.from_numpy(rows)].mean(1, dtype=torch.float32) for x in self.others]


# Training


def draw(train: Int[np.ndarray, " n"], step: int, *, batch_size: int, seed: int) -> Int[Tensor, " b"]:
    """The training rows of a step: a function of the seed and the step alone, every epoch in another order."""
    per_epoch = max(len(train) // batch_size, 1)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(train)
    return torch.from_numpy(order[place * batch_size : (place + 1) * batch_size])


def masked_error(
    predicted: Float[Tensor, "b targets"],
    true: Float[Tensor, "b targets"],
    *,
    weights: Float[Tensor, " targets"] | None = None,
    classes: Bool[Tensor, " targets"] | None = None,
) -> Float[Tensor, ""]:
    """Error of each target over the rows that have it, then the weighted mean over targets that any row has.

    Args:
        predicted: values, or the logit of a class.
        true: values or 0 and 1, NaN where there is no label.
        weights: of the targets; None: equal.
        classes: which targets' error is the binary cross-entropy, nat; the others' is absolute. None: no target's.
    """
    known, true = ~true.isnan(), true.nan_to_num()
    error = (predicted - true).abs()
    if classes is not None and classes.any():
        entropy = F.binary_cross_entropy_with_logits(predicted, true, reduction="none")
        error = torch.where(classes, entropy, error)
    error = torch.where(known, error, 0).sum(0) / known.sum(0).clamp(min=1)
    weights = known.any(0).to(error) * (1 if weights is None else weights)
    return (error * weights).sum() / weights.sum().clamp(min=1e-12)


def standard(
    labels: Float[np.ndarray, "n targets"], targets: Sequence[str]
) -> tuple[Float[np.ndarray, " targets"], Float[np.ndarray, " targets"]]:
    """Mean and deviation that `train` standardises by; a class is left as it is."""
    classes = np.array([target == METAL for target in targets])
    mean, std = np.nanmean(labels, 0), np.nanstd(labels, 0)
    return np.where(classes, 0.0, mean), np.where(classes | ~(std > 0), 1.0, std)


def train(
    model: nn.Module,
    inputs: Callable[[Tensor], list[Any]],
    labels: Float[np.ndarray, "materials targets"],
    parts: Parts,
    *,
    targets: Mapping[str, float],
    kept_by: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    state: Path,
    tower_rate: float = 1.0,
    tell: Callable[[int], None] = lambda steps: None,
) -> Predictions:
    """Train a network; keep the weights that are best on validation.

    Args:
        model: before training.
        inputs: rows -> what it takes.
        labels: of all materials, NaN where absent.
        parts: rows.
        targets: name -> weight in the loss.
        kept_by: the target whose error on validation decides which weights are kept; "": the loss does.
        steps: of the optimiser.
        batch_size: rows in a step.
        learning_rate: the highest of the cycle.
        weight_decay: of AdamW.
        seed: of the order of the rows.
        state: file of the training state, from which a killed fit goes on to the same weights.
        tower_rate: the rate of `model.tower`, of `learning_rate`.
        tell: called with the number of steps done since the last call.
    """
    device = next(model.parameters()).device
    names = list(targets)
    classes = np.array([name == METAL for name in names])
    mean, std = standard(labels[parts["train"]], names)
    scaled = torch.from_numpy((labels - mean) / std).float()
    deciding = [kept_by == name or not kept_by for name in names]
    loss, score = (
        partial(masked_error, weights=torch.tensor(w, device=where), classes=torch.from_numpy(classes).to(where))
        for w, where in (
            (list(targets.values()), device),
            ([weight * decides for weight, decides in zip(targets.values(), deciding)], "cpu"),
        )
    )
    optimizer, schedule = _one_cycle(model, learning_rate, tower_rate, weight_decay=weight_decay, steps=steps)

    def error(step: int) -> Tensor:
        chosen = draw(parts["train"], step, batch_size=batch_size, seed=seed)
        return loss(model(*inputs(chosen)), scaled[chosen].to(device))

    fit.train(
        model,
        error,
        steps=steps,
        optimizer=optimizer,
        schedule=schedule,
        max_norm=1.0,
        validate=lambda: float(score(predict(model, inputs, parts["val"]), scaled[parts["val"]])),
        checks={round(steps * (i + 1) / CHECKS) for i in range(CHECKS)},
        checkpoint=fit.Checkpoint(state, CHECKPOINT_STEPS),
        progress=tell,
    )
    found = {name: predict(model, inputs, parts[name]).double() for name in ("val", "test")}
    return {name: np.where(classes, torch.sigmoid(x).numpy(), x.numpy() * std + mean) for name, x in found.items()}


def _one_cycle(
    model: nn.Module, learning_rate: float, tower_rate: float, *, weight_decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one cycle, in which the tower learns at its share of the rate."""
    named = list(model.named_parameters())
    groups = [[p for name, p in named if name.startswith("tower.") == inside] for inside in (True, False)]
    fused = True if named[0][1].device.type == "cuda" else None  # one kernel a step, where a GPU would wait for many
    optimizer = torch.optim.AdamW([{"params": g} for g in groups], lr=1.0, weight_decay=weight_decay, fused=fused)
    return optimizer, fit.one_cycle(optimizer, learning_rate, steps, shares=(tower_rate, 1.0))


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Callable[[Tensor], list[Any]], rows: Int[np.ndarray, " n"]
) -> Float[Tensor, "n targets"]:
    """Standardised predictions for some materials, on the CPU."""
    model.eval()
    out = [model(*inputs(part)).cpu() for part in torch.from_numpy(rows).split(256)]
    model.train()
    return torch.cat(out)
