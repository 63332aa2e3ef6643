"""How far a crystal is from those that a predictor was trained on, and how well those around it are known.

Its distance is the mean Euclidean one to the nearest training crystals, in the features that the first member of the
ensemble pools, each over its standard deviation there: of index vectors, compositions and these, they tell most of the
error (on validation, by chemical systems). Features of elements that training hardly has, and of cells of a volume that
it has not, are extrapolated, and may lie anywhere; such a crystal counts as no nearer than the farthest of validation.
What is kept of training errors are means over neighbours, from which no label can be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor

from matalign.data.structures import Structures
from matalign.elements import SYMBOLS
from matalign.release import weights

FILE = "depth.safetensors"
NEAREST = 5
RARE = 5e-4  # share of the training crystals; an element of fewer is hardly known
MIDDLE = (0.005, 0.995)  # quantiles on training; a volume between them is usual
FAR = 0.98  # quantile of the distances on validation
ROWS = 256  # queries at once
STRANGE, UNLIKE = "unusual volume per atom", "unlike any training crystal"


@dataclass(frozen=True)
class Around:
    """What training is around n crystals, for one target."""

    distance: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]  # of training crystals nearby
    holds: Bool[np.ndarray, "n 119"]  # the elements of each crystal

    def take(self, rows: Int[np.ndarray, " k"]) -> "Around":
        """The same of some crystals."""
        return Around(self.distance[rows], self.error[rows], self.holds[rows])


@dataclass(frozen=True)
class Depth:
    """Crystals that a predictor was trained on."""

    features: Float[Tensor, "n d"]  # over `scale`; as int8 on disk
    errors: Float[Tensor, "n targets"]  # mean over the nearest of each
    scale: Float[Tensor, " d"]
    share: Float[Tensor, " 119"]  # of the training crystals, by the element that they hold
    volume: Float[Tensor, " 119"]  # Å³ of an atom of each element, by least squares
    usual: Float[Tensor, " 2"]  # least and greatest usual volume over the sum of its elements'
    reach: Float[Tensor, " 2"]  # distances of validation: the quantile `FAR`, and the greatest

    @classmethod
    def fit(
        cls,
        features: Float[np.ndarray, "m d"],
        errors: Float[np.ndarray, "m targets"],
        crystals: Structures,
        *,
        train: Int[np.ndarray, " n"],
        val: Int[np.ndarray, " v"],
    ) -> "Depth":
        """Of m crystals those of the rows `train`; `val` tells which distances are common. Errors may be NaN."""
        scale = torch.from_numpy(features[train].std(0)).clamp(min=1e-6)
        rounded = weights.dequantise(*weights.quantise(torch.from_numpy(features[train]) / scale))
        fractions, volumes = crystals.fractions()[train], _volumes(crystals)[train]
        volume = np.linalg.lstsq(fractions, volumes, rcond=None)[0]
        own = np.where(np.isnan(errors[train]), np.nanmean(errors[train], 0), errors[train])
        parts = {
            "features": rounded,
            "errors": torch.from_numpy(own).half(),
            "scale": scale,
            "share": torch.from_numpy((fractions > 0).mean(0)).float(),
            "volume": torch.from_numpy(volume),
            "usual": torch.from_numpy(np.quantile(volumes / _expected(fractions, volume), MIDDLE)),
            "reach": torch.zeros(2),
        }
        parts["errors"] = torch.from_numpy(cls(**parts).around(features[train])[1]).half()
        distance, _ = cls(**parts).around(features[val])
        return cls(**parts | {"reach": torch.from_numpy(np.quantile(distance, [FAR, 1]))})

    def around(
        self, features: Float[np.ndarray, "m d"]
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m targets"]]:
        """Mean distance to the nearest training crystals, and mean of their errors."""
        k, distance, errors = min(NEAREST, len(self.features)), [], []
        for part in (torch.from_numpy(features) / self.scale).split(ROWS):
            # no matrix product: what it rounds depends on the other rows
            apart = torch.cdist(part, self.features, compute_mode="donot_use_mm_for_euclid_dist")
            near, rows = apart.topk(k, largest=False)
            distance.append(near.mean(1).double())
            errors.append(self.errors[rows].double().mean(1))
        return torch.cat(distance).numpy(), torch.cat(errors).numpy()

    def __call__(
        self, features: Float[np.ndarray, "m d"], crystals: Structures
    ) -> tuple[list[Around], list[list[str]]]:
        """What training is around crystals, for each target; and what is out of depth about each of them."""
        (distance, errors), fractions = self.around(features), crystals.fractions()
        far, farthest = self.reach.tolist()
        rare = (fractions > 0) & (self.share.numpy() < RARE)
        ratio = _volumes(crystals) / _expected(fractions, self.volume.numpy())
        strange = ~rare.any(1) & ((ratio < self.usual[0].item()) | (ratio > self.usual[1].item()))
        reasons = [
            [f"hardly any training with {SYMBOLS[z]}" for z in np.flatnonzero(elements)]
            + [STRANGE] * bool(volume)
            + [UNLIKE] * bool(d > far)
            for elements, volume, d in zip(rare, strange, distance, strict=True)
        ]
        distance = np.where(rare.any(1) | strange, np.maximum(distance, farthest), distance)
        return [Around(distance, error, fractions > 0) for error in errors.T], reasons


def _volumes(crystals: Structures) -> np.ndarray:
    return np.abs(np.linalg.det(crystals.lattice)) / np.diff(crystals.ptr)


def _expected(fractions: np.ndarray, volume: np.ndarray) -> np.ndarray:
    return np.maximum(fractions @ volume, 1)


def warnings(reasons: Mapping[tuple[str, ...], Sequence[Sequence[str]]]) -> list[str]:
    """What to say of each crystal: a reason that holds for some groups of targets (the keys) alone names them."""
    out = []
    for each in zip(*reasons.values(), strict=True):
        whose: dict[str, list[str]] = {}
        for targets, found in zip(reasons, each, strict=True):
            for reason in found:
                whose.setdefault(reason, []).extend(targets)
        everyone = sum(map(len, reasons))
        said = (f"{', '.join(t) + ': ' if len(t) < everyone else ''}{reason}" for reason, t in whose.items())
        out.append("; ".join(said))
    return out


def write(folder: Path, depths: Sequence[Depth]) -> list[str]:
    """Write those of a model's predictors; the file's name."""
    tensors = {
        f"{number}.{name}": tensor for number, depth in enumerate(depths) for name, tensor in asdict(depth).items()
    }
    for name in [name for name in tensors if name.endswith(".features")]:
        tensors[name], tensors[name + weights.SCALE] = weights.quantise(tensors[name])
    save_file(tensors, folder / FILE)
    return [FILE]


def read(folder: Path) -> list[Depth]:
    """Read what `write` wrote."""
    kept, out = weights.read(folder, [FILE]), []
    while f"{len(out)}.features" in kept:
        start = f"{len(out)}."
        mine = {name.removeprefix(start): tensor for name, tensor in kept.items() if name.startswith(start)}
        features = weights.dequantise(mine["features"], mine.pop("features" + weights.SCALE))
        out.append(Depth(**{**mine, "features": features}))
    return out
