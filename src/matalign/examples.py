"""What contrastive training is shown, and in which order.

An epoch shows each training material once, one with a protocol `protocol_repeats` times (on real data one material in
seven has any, and pairs with a text would else be few). Shown are the crystal; for a share `image_fraction` an image,
rendered in the step; one of its protocols that may be trained on, if it has any. A material without image and text
still serves the others to be told apart from. Each draw is keyed by (seed, epoch, mp-id, view): the same on any number
of ranks, and after a resume.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from matalign import encoders, imaging, losses
from matalign.align import AlignModel
from matalign.config import Pretrain
from matalign.dataset import Curated
from matalign.encoders.text import Texts

VALIDATION = -1  # the epoch whose key the views of validation have: the same each time


def rank() -> int:
    """Number of this process among the ranks, as torchrun tells it."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """Number of ranks."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class Views:
    """n shown materials, in order."""

    rows: np.ndarray  # (n,) row of the curated set
    keys: np.ndarray  # (n,) of the image's draws
    image: np.ndarray  # (n,) bool: with an image
    text: np.ndarray  # (n,) row of the distinct texts; -1: none

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> "Views":
        return Views(*(array[part] for array in vars(self).values()))


@dataclass(frozen=True)
class Examples:
    """The curated set as training takes it, on one rank.

    Raises:
        ValueError: a parameter out of its range, or no material to train or to validate on.
    """

    cfg: Pretrain
    curated: Curated
    model: AlignModel
    device: torch.device

    def __post_init__(self) -> None:
        if self.cfg.loss not in losses.LOSSES:
            raise ValueError(f"loss must be one of {', '.join(losses.LOSSES)}, got {self.cfg.loss!r}")
        for name in ("epochs", "patience", "batch_size", "protocol_repeats", "val_materials"):
            if getattr(self.cfg, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self.cfg, name)}")
        for split in ("train", "val"):
            if not (self.curated.splits.pretrain == split).any():
                raise ValueError(f"splits of {self.cfg.profile}: pretrain has no material in {split!r}")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Modality -> what its tower is shown (see `encoders`); to be asked for on all ranks at once.

        The first rank makes what is cached on disk, then the others find it.
        """
        for first in (True, False):
            if first == (rank() == 0):
                inputs = {
                    m: encoders.load(m).Inputs(self.cfg, self.curated, tower, self.device)
                    for m, tower in self.model.towers.items()
                }
            if world() > 1:
                dist.barrier()
        return inputs

    @cached_property
    def texts(self) -> Texts:
        """Texts to train on."""
        return Texts(self.curated, mask_level=self.cfg.mask_level)

    def views(self, split: str, epoch: int) -> Views:
        """The views of one epoch, permuted; of validation, `val_materials` at most.

        Args:
            split: train or val, of the column `pretrain`.
            epoch: a key of the draws.
        """
        ids = self.curated.materials.mp_id.to_numpy()
        protocols = np.diff(self.texts.first)
        rows = np.flatnonzero(self.curated.splits.pretrain == split)
        repeats = np.where((protocols[rows] > 0) & (split == "train"), self.cfg.protocol_repeats, 1)
        rows = np.repeat(rows, repeats)
        view = np.arange(len(rows)) - np.searchsorted(rows, rows)  # 0, 1, … within a material
        draw = (imaging.view_seed(self.cfg.seed, epoch, ids[row], int(v)) for row, v in zip(rows, view, strict=True))
        keys = np.fromiter(draw, np.uint64, len(rows))
        u = imaging.uniforms(~keys, 3)  # not of the keys themselves: those make the image; the second chooses the text
        text = self.texts.chosen(rows, keys)
        views = Views(rows, keys, u[:, 0] < self.cfg.image_fraction, text)[np.argsort(u[:, 2], kind="stable")]
        return views if split == "train" else views[: self.cfg.val_materials]

    def batch(self, views: Views) -> tuple[dict[str, Any], dict[str, Tensor], Tensor, Tensor]:
        """This rank's share of a global batch.

        Returns:
            inputs of each modality; whether a row has it (B,); material (B,); text (B,). All ranks have the same B:
            rows that fill up the last shares have no modality.
        """
        size = -(-len(views) // world())
        mine = views[rank() * size : (rank() + 1) * size]
        has = {m: made.has[mine.rows] for m, made in self.inputs.items()}
        if "image" in has:  # rendering costs: only a share of the views
            has["image"] &= mine.image
        inputs = {m: self.inputs[m](mine.rows[has[m]], mine.keys[has[m]]) for m in has if has[m].any()}

        def tensor(a: np.ndarray) -> Tensor:
            return torch.from_numpy(np.pad(a, (0, size - len(a)))).to(self.device)

        return inputs, {m: tensor(a) for m, a in has.items()}, tensor(mine.rows), tensor(mine.text)

    def embed(self, views: Views) -> dict[str, Any]:
        """The arguments of a loss for the *global* batch, the same on every rank."""
        model = self.model
        inputs, present, material, text = self.batch(views)
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            z = model(inputs, present)
        z = losses.all_gather(torch.stack([z[m] for m in model.modalities], 1))  # (B, M, d)
        numbers = losses.all_gather(torch.stack([material, text, *(present[m].long() for m in model.modalities)], 1))
        return {
            "embeddings": dict(zip(model.modalities, z.unbind(1), strict=True)),
            "present": {m: numbers[:, 2 + i].bool() for i, m in enumerate(model.modalities)},
            "material": numbers[:, 0],
            "identical": {"text": numbers[:, 1]},
        }
