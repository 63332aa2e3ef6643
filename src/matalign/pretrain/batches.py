"""What contrastive training is shown, and in which order.

An epoch shows each training material once, one with a protocol `protocol_repeats` times (on real data one material in
seven has any, and pairs with a text would else be few). Shown are the crystal; for a share `image_fraction` an image,
rendered in the step; one of its protocols that may be trained on, if it has any. A material without image and text
still serves the others to be told apart from. Each draw is keyed by (seed, epoch, mp-id, view): the same on any number
of ranks, and after a resume. A set too large for one file of structures is shuffled by block: blocks of neighbouring
rows in random order, the rows of `TOGETHER` of them mixed, so that what is read at a time lies in few places.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from matalign import config, towers
from matalign.config import Pretrain
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pretrain import losses
from matalign.pretrain.align import AlignModel
from matalign.towers.text import Texts
from matalign.views import draws

BLOCK, TOGETHER = 4096, 32  # rows of a block; blocks whose rows are mixed
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
class Part:
    """n rows of a global batch, as the towers of one rank take them at once."""

    inputs: dict[str, Any]  # modality -> inputs of the rows that have it; of images, what renders them in the step
    numbers: Tensor  # (n, 2 + modalities): material, text, whether the row has each modality; a row that fills up: none
    seed: int  # of what a tower may draw by itself
    corrupted: Any = None  # crystals of the auxiliary objective, if there is one

    def __len__(self) -> int:
        return len(self.numbers)


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
        config.known(self.cfg.loss, losses.LOSSES, "unknown loss")
        if self.cfg.loss == "anchored" and losses.ANCHOR not in self.model.modalities:
            raise ValueError(f"loss anchored needs the modality {losses.ANCHOR}, got {self.cfg.modalities!r}")
        least = dict.fromkeys(("epochs", "patience", "batch_size", "protocol_repeats", "val_materials"), 1)
        for name, value in {**least, "micro_batch": 0}.items():
            if getattr(self.cfg, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self.cfg, name)}")
        divided = self.cfg.micro_batch or world() > 1
        if divided and any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in self.model.modules()):
            raise ValueError("a tower with batch statistics (cgconv) takes its batch whole: one rank, micro_batch 0")
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
                    m: towers.load(m).Inputs(self.cfg, self.curated, tower, self.device)
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
        draw = (draws.view_seed(self.cfg.seed, epoch, ids[row], int(v)) for row, v in zip(rows, view, strict=True))
        keys = np.fromiter(draw, np.uint64, len(rows))
        u = draws.uniforms(~keys, 3)  # not of the keys themselves: those make the image; the second chooses the text
        text = self.texts.chosen(rows, keys)
        place = u[:, 2]
        if len(ids) > dataset.SHARD:
            block = np.arange(-(-len(ids) // BLOCK)) ^ draws.view_seed(self.cfg.seed, epoch, "block", 0)
            place = place + (draws.uniforms(block, 1)[:, 0].argsort().argsort() // TOGETHER)[rows // BLOCK]
        views = Views(rows, keys, u[:, 0] < self.cfg.image_fraction, text)[np.argsort(place, kind="stable")]
        return views if split == "train" else views[: self.cfg.val_materials]

    def parts(self, views: Views) -> list[Part]:
        """This rank's share of a global batch, in micro-batches of `cfg.micro_batch` rows (0: in one piece).

        The shares of all ranks have the same number of rows: rows that fill up the last have no modality.
        """
        size = -(-len(views) // world())
        mine = views[rank() * size : (rank() + 1) * size]
        step = self.cfg.micro_batch or size
        return [self._part(mine[i : i + step], min(step, size - i)) for i in range(0, size, step)]

    def _part(self, views: Views, size: int) -> Part:
        has = {m: made.has[views.rows] for m, made in self.inputs.items()}
        for m, shown in {"image": views.image, "text": views.text >= 0}.items():
            if m in has:
                has[m] &= shown
        made = {m: (self.inputs[m], views.rows[has[m]], views.keys[has[m]]) for m in has if has[m].any()}
        inputs = {m: partial(*call) if m == "image" else call[0](*call[1:]) for m, call in made.items()}
        numbers = np.stack([views.rows, views.text, *has.values()], 1)
        numbers = torch.from_numpy(np.pad(numbers, ((0, size - len(views)), (0, 0)))).to(self.device)
        auxiliary = self.model.denoiser is not None and len(views) > 0
        corrupted = self.inputs["crystal"].corrupted(views.rows, views.keys) if auxiliary else None
        return Part(inputs, numbers, int(views.keys[0]) if len(views) else 0, corrupted)

    @property
    def _precision(self) -> AbstractContextManager:
        """What towers multiply in: bfloat16 on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def embed(self, part: Part) -> Tensor:
        """Unit vectors (n, modalities, d) of a part's rows, zeros where a row lacks the modality.

        A second call gives the same: what a tower draws by itself is keyed too.
        """
        torch.manual_seed(part.seed)
        inputs = {m: x() if m == "image" else x for m, x in part.inputs.items()}
        with self._precision:
            z = self.model(inputs, self._present(part.numbers))
        return torch.stack([z[m] for m in self.model.modalities], 1)

    def auxiliary(self, part: Part) -> Tensor:
        """The auxiliary loss of a part's crystals, their sum: a scalar, 0 without such an objective."""
        if part.corrupted is None:
            return torch.zeros((), device=self.device)
        with self._precision:
            _, made = self.model.towers["crystal"](part.corrupted.batch)
        atoms = made["atoms"].to(self.model.log_temperature.dtype)
        return self.model.denoiser(atoms, part.corrupted, *self.context(part)).sum()

    def context(self, part: Part) -> tuple[Any, ...]:
        """What the denoiser takes besides a part's crystals: nothing."""
        return ()

    def contrastive(self, batch: dict[str, Any]) -> Tensor:
        """The contrastive loss of a global batch from `gather`: a scalar, 0 for a single modality."""
        if len(self.model.modalities) < 2:
            return batch["embeddings"][self.model.modalities[0]].sum() * 0
        return losses.LOSSES[self.cfg.loss](**batch, log_temperature=self.model.log_temperature)

    def gather(self, z: Tensor, parts: Sequence[Part]) -> dict[str, Any]:
        """The arguments of a loss for the *global* batch, the same on every rank, from this rank's parts.

        Args:
            z: (rows of the parts, modalities, d) from `embed`.
            parts: of this rank.
        """
        z, numbers = losses.all_gather(z), losses.all_gather(torch.cat([part.numbers for part in parts]))
        return {
            "embeddings": dict(zip(self.model.modalities, z.unbind(1), strict=True)),
            "present": self._present(numbers),
            "material": numbers[:, 0],
            "identical": {"text": numbers[:, 1]},
        }

    def _present(self, numbers: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.model.modalities, numbers[:, 2:].bool().unbind(1), strict=True))
