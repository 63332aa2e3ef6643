"""The auxiliary objective of the crystal tower: heads on its atoms, beside the contrastive loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from matalign import elements
from matalign.towers.crystal import Corrupted, envelope, gather, gaussians, pool, radial_linear, table


class Denoiser(nn.Module):
    """Heads that tell from a tower's atoms what `corrupt` did: learning from crystals without labels.

    Hidden elements are classified (Hu et al., Strategies for pre-training graph neural networks, ICLR 2020), and
    displacements found as sums of directions to the neighbours, each with an invariant weight (Zaidi et al.,
    Pre-training via denoising, ICLR 2023).

    Args:
        width: of the tower.
        cutoff_A: of its graphs, angstrom.
        noise_A: unit of the displacements, angstrom.
        radial: Gaussians on the distance.
    """

    def __init__(self, width: int, *, cutoff_A: float, noise_A: float, radial: int = 32) -> None:
        super().__init__()
        self.cutoff_A, self.noise_A, self.radial = cutoff_A, noise_A, radial
        self.element = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, elements.VALUES.shape[0]))
        self.source, self.centre = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.distance = radial_linear(radial, width)
        self.push = nn.Linear(width, 1, bias=False)

    def forward(self, atoms: Float[Tensor, "atoms width"], made: Corrupted) -> Float[Tensor, " crystals"]:
        """Loss of each crystal: mean cross-entropy of its hidden atoms, and mean squared error of its displacements.

        The errors of displacement are in units of the noise, a mean over directions. A crystal without hidden atoms has
        no cross-entropy.
        """
        wrong = F.cross_entropy(self.element(atoms), made.z, reduction="none") * made.hidden
        hidden = pool(torch.stack([wrong, made.hidden.to(wrong)], 1), made.batch)
        neighbour, vec = table(made.batch)
        d = vec.norm(dim=-1)
        weight = envelope(d / made.batch.edge_cutoff[:, None])[..., None]
        radial = self.distance(gaussians(d, cutoff_A=self.cutoff_A, count=self.radial))
        push = self.push(F.silu(gather(self.source(atoms), neighbour) + self.centre(atoms)[:, None] + radial))
        found = (push * weight * vec / d.clamp(min=1e-3)[..., None]).sum(1)
        error = ((found - made.displacement / self.noise_A) ** 2).mean(1, keepdim=True)
        return hidden[:, 0] / hidden[:, 1].clamp(min=1e-9) + pool(error, made.batch)[:, 0]
