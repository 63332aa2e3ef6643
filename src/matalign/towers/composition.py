"""Composition: elements with their fractions, a set without order (Zaheer et al., Deep Sets, NeurIPS 2017)."""

import numpy as np
import torch
from torch import Tensor, nn

from matalign.config import Pretrain
from matalign.data.dataset import Curated
from matalign.towers.crystal import ElementEmbedding


class CompositionTower(nn.Module):
    """Atomic fractions x (B, 119), by atomic number, to (B, dim): ρ(Σ_Z x_Z φ(Z))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim = width
        self.phi = nn.Sequential(ElementEmbedding(width), nn.SiLU(), nn.Linear(width, width))
        self.rho = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, fractions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pooled features (B, dim), and `elements` (119, dim), φ of each."""
        phi = self.phi(torch.arange(fractions.shape[1], device=fractions.device))
        return self.rho(fractions @ phi), {"elements": phi}


def build(cfg: Pretrain, *, initialise: bool = True) -> CompositionTower:
    """As wide as the crystal tower; its weights are random either way."""
    return CompositionTower(cfg.width)


class Inputs:
    """Every material has its composition, counted in its cell."""

    def __init__(self, cfg: Pretrain, curated: Curated, tower: nn.Module, device: torch.device) -> None:
        self.has = np.ones(len(curated.structures), bool)
        self.fractions = torch.from_numpy(curated.structures.fractions()).float().to(device)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Tensor:
        """(n, 119) fractions."""
        return self.fractions[rows]
