"""What variants add to the auxiliary objective: numbers of the crystal to predict, tokens that atoms attend to.

Each takes the place of the denoiser, which it holds, and is left behind with it: what is tested is the crystal tower.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from matalign import cache
from matalign.config import Ablations
from matalign.data.dataset import Curated
from matalign.pretrain import encode
from matalign.pretrain.align import Denoiser
from matalign.tasks.ablations.variants import BASE
from matalign.tasks.properties.networks import HEADS
from matalign.towers.crystal import Corrupted, pool
from matalign.towers.text import MAX_TOKENS, Texts

Shown = Int[Tensor, "crystals _"]  # `Part.numbers`: material, text (−1: none), whether each modality is shown


class Supervised(nn.Module):
    """The denoiser, and a linear layer from pooled corrupted atoms to `numbers`: a row a material, or NaN."""

    def __init__(self, denoiser: Denoiser, width: int, numbers: Float[Tensor, "M n"]) -> None:
        super().__init__()
        self.denoiser, self.head = denoiser, nn.Linear(width, numbers.shape[1])
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, atoms: Float[Tensor, "atoms width"], made: Corrupted, shown: Shown) -> Float[Tensor, " crystals"]:
        """The denoiser's loss of each crystal, and the mean squared error of its numbers, if all are known."""
        true = self.numbers.index_select(0, shown[:, 0])
        error = (self.head(pool(atoms, made.batch)) - true.nan_to_num()).square().mean(1)
        return self.denoiser(atoms, made) + error * true.isfinite().all(1)


@dataclass(frozen=True)
class Tokens:
    """Of each text that is trained on, and of one image of each material."""

    text: Float16[Tensor, "texts length dim"]
    length: Int[Tensor, " texts"]
    image: Float16[Tensor, "M cells channels"]
    column: int | None  # of `Shown`: whether the image is shown

    def __call__(self, shown: Shown) -> tuple[list[Tensor], Bool[Tensor, "crystals tokens"]]:
        """Tokens (crystals, n, dim) of text and image, and which of them, texts first, are there."""
        text = shown[:, 1].clamp(min=0)
        words = torch.arange(self.text.shape[1]) < (self.length[text] * (shown[:, 1] >= 0))[:, None]
        seen = torch.zeros(len(shown)) if self.column is None else shown[:, self.column]
        cells = seen.bool()[:, None].expand(-1, self.image.shape[1])
        return [self.text[text].float(), self.image[shown[:, 0]].float()], torch.cat([words, cells], 1)


class Attending(nn.Module):
    """The denoiser, for which hidden atoms have attended, in one block with residual, to tokens of their material.

    A material without text and image is denoised as if there were none.
    """

    def __init__(self, denoiser: Denoiser, width: int, tokens: Tokens) -> None:
        super().__init__()
        self.denoiser, self.tokens, self.query = denoiser, tokens, nn.LayerNorm(width)
        dims = [x.shape[-1] for x in (tokens.text, tokens.image)]
        self.keys = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, width), nn.LayerNorm(width)) for d in dims
        )
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)

    def forward(self, atoms: Float[Tensor, "atoms width"], made: Corrupted, shown: Shown) -> Float[Tensor, " crystals"]:
        """The denoiser's loss of each crystal, its hidden elements told from atoms that have attended."""
        tokens, there = self.tokens(shown)
        hidden = (made.hidden & there.any(1).index_select(0, made.batch.batch)).nonzero().flatten()
        crystal = made.batch.batch[hidden]
        keys = torch.cat([key(x) for key, x in zip(self.keys, tokens, strict=True)], 1).index_select(0, crystal)
        query = self.query(atoms.index_select(0, hidden))[:, None]
        update, _ = self.attention(query, keys, keys, key_padding_mask=~there[crystal], need_weights=True)
        return self.denoiser(atoms, made, atoms.index_add(0, hidden, update[:, 0]))


@torch.no_grad()
def tokens(cfg: Ablations, curated: Curated, *, rows: int) -> cache.Result:
    """Tokens from the towers of a profile's model, so many rows at once: what `Tokens` has, but for its column.

    Texts are those of the base's mask level; an image is the one that pretraining shows first in epoch 0.
    """
    torch.set_num_threads(cfg.threads)
    model, texts = encode.load(cfg.profile), Texts(curated, mask_level=BASE.mask_level).distinct
    made = [model.towers["text"](texts[i : i + rows])[1] for i in range(0, len(texts), rows)]
    padded = [F.pad(m["tokens"].half(), (0, 0, 0, MAX_TOKENS - m["mask"].shape[1])) for m in made]
    maps = []
    every = torch.arange(len(curated.materials))
    for part in tqdm(every.split(rows), desc="tokens", mininterval=1):
        images = model.micrographs(curated, part.numpy(), seed=cfg.seed, epoch=0)
        maps.append(model.towers["image"](images)[1]["map"].flatten(2).transpose(1, 2).half())
    length = torch.cat([m["mask"].sum(1) for m in made])
    found = {"text": torch.cat(padded), "length": length, "image": torch.cat(maps)}
    return {name: np.ascontiguousarray(tensor) for name, tensor in found.items()}
