"""Profile of a material: calculated numbers, as in SPMM (Chang and Ye, Nat. Commun. 15, 2323, 2024).

They are Fermi level, magnetisation and volume, as the source of the structure gives them; no target is among them. The
Fermi level is on the scale of the mean potential in its own cell, so that crystals compare by it but roughly. The
magnetisation is the net one, zero for an antiferromagnet.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from matalign.config import Pretrain
from matalign.data.dataset import Curated

NUMBERS = ("Fermi level, eV", "magnetisation, μB/atom", "volume, Å³/atom")
NOISE_MUB = 0.01  # an atom; magnetisations well below are zero
CENTRE, SCALE = (4.0, -4.0, 2.9), (2.8, 1.3, 0.37)  # of `standardised`; round figures of crystals trained on


def curate(
    numbers: np.ndarray,
    frac_coords: np.ndarray,
    lattice: np.ndarray,
    fermi_level_eV: float,
    magnetisation_muB: float,
    volume_A3: float,
) -> Float64[np.ndarray, " 3"]:
    """`NUMBERS` of a crystal from those of its cell; ValueError: the source does not give all of them."""
    atoms = len(numbers)
    values = np.array([fermi_level_eV, abs(magnetisation_muB) / atoms, volume_A3 / atoms])
    if missing := [name for name, value in zip(NUMBERS, values, strict=True) if not np.isfinite(value)]:
        raise ValueError(f"its source does not give: {'; '.join(missing)}")
    return values


def standardised(values: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """`NUMBERS` on one scale, magnetisation and volume by their logarithms: their tails are heavy. NaN stays."""
    fermi, magnetisation, volume = values.T
    return (np.stack([fermi, np.log(magnetisation + NOISE_MUB), np.log(volume)], 1) - CENTRE) / SCALE


class ProfileTower(nn.Module):
    """Two layers on `standardised` numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim, sizes = width, (len(NUMBERS), width)
        self.layers = nn.Sequential(nn.Linear(*sizes), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, numbers: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "n dim"], dict[str, Tensor]]:
        """Features (n, dim); no intermediates."""
        return self.layers(numbers), {}


def build(cfg: Pretrain, *, initialise: bool = True) -> ProfileTower:
    """As wide as the crystal tower; its weights are random either way."""
    return ProfileTower(cfg.width)


class Inputs:
    """A material has its profile if its source gives all the numbers."""

    def __init__(self, cfg: Pretrain, curated: Curated, tower: nn.Module | None, device: torch.device) -> None:
        values = curated.extra("profile")
        self.has = np.isfinite(values).all(1)
        self.numbers = torch.from_numpy(standardised(values)).float().to(device)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Float[Tensor, "n 3"]:
        """(n, 3) `standardised` numbers; NaN for a material without."""
        return self.numbers[rows]
