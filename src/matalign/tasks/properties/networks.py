"""Networks on a crystal tower that predict properties, and how they are trained.

Each takes a batch of graphs and then the features of other modalities, (B, tokens, dim) each.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from matalign.config import Properties
from matalign.quantities import ENERGY, METAL
from matalign.tasks import fit
from matalign.tasks.properties.labels import Parts, Predictions, masked_error, standard
from matalign.towers.crystal import pool
from matalign.views.graphs import Batch, Graphs

CHECKS = 10  # validations in a fit
CHECKPOINT_STEPS = 250
HEADS = 4  # of the attention


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

    `others` are (n, dim) of each other modality, pooled, of the materials trained on.
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


def _dense(x: Float[Tensor, "atoms width"], batch: Batch) -> tuple[Tensor, Tensor]:
    """Values of the atoms, zero beyond each crystal's last, (B, A, width), and where there are atoms, (B, A)."""
    sizes = batch.ptr.diff()
    longest = int(sizes.max())
    place = torch.arange(len(x), device=x.device) - batch.ptr.index_select(0, batch.batch)
    flat = x.new_zeros(len(sizes) * longest, x.shape[1]).index_copy(0, batch.batch * longest + place, x)
    return flat.view(len(sizes), longest, -1), torch.arange(longest, device=x.device) < sizes[:, None]


class CrossAttention(nn.Module):
    """The atoms attend, in one block with residual, over the other modalities' tokens and themselves; as `Fusion`."""

    def __init__(self, tower: nn.Module, targets: int, others: Sequence[Float[Tensor, "n _"]]):
        super().__init__()
        self.tower, width = tower, tower.dim
        self.others = nn.ModuleList(Projection(x, width) for x in others)
        self.query, self.key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head = nn.Linear(width, targets)

    def forward(self, batch: Batch, *others: Float[Tensor, "crystals _ _"]) -> Float[Tensor, "crystals targets"]:
        """Standardised predictions; they depend neither on the order of the atoms nor on the size of other crystals."""
        atoms, there = _dense(self.tower(batch)[1]["atoms"], batch)
        tokens = [project(x) for project, x in zip(self.others, others, strict=True)]
        keys = self.key(torch.cat([atoms, *tokens], 1))  # (B, A + T, width)
        absent = F.pad(~there, (0, keys.shape[1] - atoms.shape[1]))
        # With its weights asked for, attention has a repeatable backward on a GPU.
        update, _ = self.attention(self.query(atoms), keys, keys, key_padding_mask=absent, need_weights=True)
        return self.head(pool((atoms + update)[there], batch))


class Inputs:
    """What a network takes, by rows of materials."""

    def __init__(
        self,
        store: Graphs,
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


def draw(train: Int[np.ndarray, " n"], step: int, *, batch_size: int, seed: int) -> Int[Tensor, " b"]:
    """The training rows of a step: a function of the seed and the step alone, every epoch in another order."""
    per_epoch = max(len(train) // batch_size, 1)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(train)
    return torch.from_numpy(order[place * batch_size : (place + 1) * batch_size])


def train(
    model: nn.Module,
    inputs: Callable[[Tensor], list[Any]],
    labels: Float[np.ndarray, "materials targets"],
    parts: Parts,
    *,
    targets: Mapping[str, float],
    schedule: Properties,
    steps: int,
    seed: int,
    state: Path,
    tower_rate: float = 1.0,
) -> Predictions:
    """Train a network (AdamW, one cycle); keep the weights that are best on validation.

    That is decided by the error of E_f where it is among the targets, else by the loss.

    Args:
        targets: name -> weight in the loss.
        state: file of the training state, from which a killed fit goes on to the same weights.
        tower_rate: the rate of `model.tower`, of the learning rate.
    """
    device, names = next(model.parameters()).device, list(targets)
    classes = np.array([name == METAL for name in names])
    mean, std = standard(labels[parts["train"]], names)
    scaled = torch.from_numpy((labels - mean) / std).float()
    weights, kinds = torch.tensor(list(targets.values())), torch.from_numpy(classes)
    deciding = torch.tensor([name == ENERGY or ENERGY not in names for name in names])
    loss = partial(masked_error, weights=weights.to(device), classes=kinds.to(device))
    score = partial(masked_error, weights=weights * deciding, classes=kinds)
    named = list(model.named_parameters())
    groups = [{"params": [p for name, p in named if name.startswith("tower.") == tower]} for tower in (True, False)]
    fused = True if device.type == "cuda" else None  # one kernel a step, where a GPU would wait for many
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=schedule.weight_decay, fused=fused)

    def error(step: int) -> Tensor:
        chosen = draw(parts["train"], step, batch_size=schedule.batch_size, seed=seed)
        return loss(model(*inputs(chosen)), scaled[chosen].to(device))

    fit.train(
        model,
        error,
        steps=steps,
        optimizer=optimizer,
        schedule=fit.one_cycle(optimizer, schedule.learning_rate, steps, shares=(tower_rate, 1.0)),
        max_norm=1.0,
        validate=lambda: float(score(predict(model, inputs, parts["val"]), scaled[parts["val"]])),
        checks={round(steps * (i + 1) / CHECKS) for i in range(CHECKS)},
        checkpoint=fit.Checkpoint(state, CHECKPOINT_STEPS),
    )
    found = {name: predict(model, inputs, parts[name]).double() for name in ("val", "test")}
    return {name: np.where(classes, torch.sigmoid(x).numpy(), x.numpy() * std + mean) for name, x in found.items()}


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Callable[[Tensor], list[Any]], rows: Int[np.ndarray, " n"]
) -> Float[Tensor, "n targets"]:
    """Standardised predictions for some materials, on the CPU."""
    model.eval()
    out = [model(*inputs(part)).cpu() for part in torch.from_numpy(rows).split(256)]
    model.train()
    return torch.cat(out)
