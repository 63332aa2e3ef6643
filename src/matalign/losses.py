"""Contrastive losses over any number of modalities, side by side, with missing modalities and repeated materials.

Every loss takes the batch as one row per shown material: `embeddings` holds a unit vector per modality and row,
`present` says which of them exist. Rows of one material are positives of one another, and so are rows whose input in a
modality is the same thing (`identical`: two materials made by word-for-word the same protocol). Similarities are
divided by exp(log_temperature).

References: InfoNCE, van den Oord et al. 2018 (arXiv:1807.03748); several positives, the log outside the sum over them,
Khosla et al. 2020, eq. 2 (arXiv:2004.11362); two directions and a learned temperature, Radford et al. 2021
(arXiv:2103.00020).
"""

from collections.abc import Callable, Mapping
from itertools import permutations, product

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

TEMPERATURES = (0.01, 1.0)  # a learned temperature stays within


def pairwise(
    embeddings: Mapping[str, Float[Tensor, "batch dim"]],
    present: Mapping[str, Bool[Tensor, " batch"]],
    material: Int[Tensor, " batch"],
    log_temperature: Float[Tensor, ""],
    *,
    identical: Mapping[str, Int[Tensor, " batch"]] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of each ordered pair of modalities, averaged over the pairs.

    For modalities m -> n, a row i that has m, and P(i) the rows that have n and are positives of i::

        L_i = -1/|P(i)| Σ_{p in P(i)} log[ exp(s_ip) / Σ_{j has n} exp(s_ij) ],    s_ij = z_i^m · z_j^n / τ

    The mean is over the rows with a positive, then over the ordered pairs with such a row. Without any, the loss is 0.

    Args:
        embeddings: modality -> L2-normalised vectors; what a row without the modality holds does not matter.
        present: modality -> whether the row has it.
        material: equal numbers are the same material.
        log_temperature: ln τ.
        identical: modality -> number of the input; equal numbers are the same input.
    """
    z = _zero_absent(embeddings, present)
    total, pairs = 0.0, 0.0
    for m, n in permutations(z, 2):
        logits = z[m] @ z[n].T * torch.exp(-log_temperature)  # (batch, batch)
        log_p = logits - torch.logsumexp(_mask(logits, present[n][None, :]), 1, keepdim=True)
        positive = _positives(m, n, present, material, identical)
        count = positive.sum(1)
        query = count > 0
        row = -torch.where(positive, log_p, 0.0).sum(1) / count.clamp(min=1)
        total = total + torch.where(query, row, 0.0).sum() / query.sum().clamp(min=1)
        pairs = pairs + query.any().to(total.dtype)
    return total / pairs.clamp(min=1.0)


def seed(
    embeddings: Mapping[str, Float[Tensor, "batch dim"]],
    present: Mapping[str, Bool[Tensor, " batch"]],
    material: Int[Tensor, " batch"],
    log_temperature: Float[Tensor, ""],
    *,
    identical: Mapping[str, Int[Tensor, " batch"]] | None = None,
) -> Float[Tensor, ""]:
    """The proposal's formula to the letter::

        L = -1/N Σ_i log[ Σ_{m≠n} exp(s_ii^mn) / Σ_j Σ_{m,n} exp(s_ij^mn) ],    s_ij^mn = z_i^m · z_j^n / τ

    The denominator holds the pairs of a vector with itself, each exp(1/τ): with M modalities, perfectly aligned and
    apart from all other materials, the loss is log(M/(M−1)), not 0. Sums run over what is present; j in the numerator
    runs over the positives of i (i alone if the batch repeats nothing); N counts the rows that have one. Arguments as
    `pairwise`.
    """
    z = _zero_absent(embeddings, present)
    everything, positives = [], []
    for m, n in product(z, z):
        logits = z[m] @ z[n].T * torch.exp(-log_temperature)
        exists = present[m][:, None] & present[n][None, :]
        everything.append(_mask(logits, exists))
        if m != n:
            positives.append(_mask(logits, _positives(m, n, present, material, identical)))
    query = torch.stack([_positives(m, n, present, material, identical).any(1) for m, n in permutations(z, 2)]).any(0)
    row = torch.logsumexp(torch.cat(everything, 1), 1) - torch.logsumexp(torch.cat(positives, 1), 1)
    return torch.where(query, row, 0.0).sum() / query.sum().clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {"pairwise": pairwise, "seed": seed}


@torch.no_grad()
def recall_at_1(
    embeddings: Mapping[str, Float[Tensor, "batch dim"]],
    present: Mapping[str, Bool[Tensor, " batch"]],
    material: Int[Tensor, " batch"],
    *,
    identical: Mapping[str, Int[Tensor, " batch"]] | None = None,
) -> dict[tuple[str, str], tuple[int, int, int]]:
    """How often the nearest vector of another modality in the batch is a positive.

    Returns:
        (query modality, target modality) -> (hits, queries, sum over the queries of the number of vectors to choose
        from); arguments and positives as in `pairwise`.
    """
    z = _zero_absent(embeddings, present)
    counts = {}
    for m, n in permutations(z, 2):
        positive = _positives(m, n, present, material, identical)
        query = positive.any(1)
        nearest = _mask(z[m] @ z[n].T, present[n][None, :]).argmax(1)
        hit = positive[torch.arange(len(nearest), device=nearest.device), nearest] & query
        counts[m, n] = int(hit.sum()), int(query.sum()), int(query.sum() * present[n].sum())
    return counts


def _zero_absent(z: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if len(z) < 2:
        raise ValueError(f"a contrastive loss needs two modalities, got {', '.join(z) or 'none'}")
    return {m: torch.where(present[m][:, None], z[m], 0.0) for m in z}


def _mask(logits: Tensor, keep: Tensor) -> Tensor:
    """Lowest finite number where not kept: exp is 0, and a row without anything kept has a gradient (0), not NaN."""
    return logits.masked_fill(~keep, torch.finfo(logits.dtype).min)


def _positives(m: str, n: str, present: Mapping, material: Tensor, identical: Mapping | None) -> Tensor:
    """(batch, batch): row j's n is a positive of row i's m."""
    same = material[:, None] == material[None, :]
    for k in (m, n):
        if identical and k in identical:
            same = same | (identical[k][:, None] == identical[k][None, :]) & present[k][:, None] & present[k][None, :]
    return same & present[m][:, None] & present[n][None, :]


@torch.no_grad()
def clamp_temperature(log_temperature: Tensor) -> None:
    """Bring a learned ln τ back within `TEMPERATURES`, in place, after the optimiser's step.

    A clamp in the forward pass would leave no gradient to come back with.
    """
    log_temperature.clamp_(*torch.tensor(TEMPERATURES).log().tolist())


class _AllGather(torch.autograd.Function):
    """Rows of all ranks in rank order, with gradients.

    Each rank then computes the same global loss L, and parameters take the mean of the ranks' gradients. For that mean
    to be dL/dθ each rank's rows must pass back (number of ranks) · dL/dz; all ranks know dL/dz, so nothing is
    communicated, and a rank that has no row of a modality cannot stall the others.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(out, x.contiguous())
        return torch.cat(out)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def all_gather(x: Tensor) -> Tensor:
    """Concatenate the ranks' rows (the same number on each), in rank order; `x` itself in a single process.

    Gradients flow back to the own rows, scaled so that the *mean* over ranks of a parameter's gradients is the gradient
    of the loss of the global batch. Every rank must compute the same loss from the result.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _AllGather.apply(x)
