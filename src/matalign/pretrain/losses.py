"""Contrastive losses over any number of modalities, side by side, with missing modalities and repeated materials.

Every loss takes the batch as one row per shown material: `embeddings` holds a unit vector per modality and row,
`present` says which of them exist. Rows of one material are positives of one another, and so are rows whose input in a
modality is the same thing (`identical`: two materials made by word-for-word the same protocol). Similarities are
divided by exp(log_temperature). The logits between two modalities are made a block of rows at a time, for both
directions at once, and made again in the backward pass: no more than a block is ever held.

References: InfoNCE, van den Oord et al. 2018 (arXiv:1807.03748); several positives, the log outside the sum over them,
Khosla et al. 2020, eq. 2 (arXiv:2004.11362); two directions and a learned temperature, Radford et al. 2021
(arXiv:2103.00020); one modality in the centre, Girdhar et al. 2023 (arXiv:2305.05665); binary decisions, Zhai et al.
2023 (arXiv:2303.15343).
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

TEMPERATURES = (0.01, 1.0)  # a learned temperature stays within
ANCHOR = "crystal"  # the modality in the centre of `anchored`
BLOCK = 256  # rows of logits made at once
LOWEST = -3e38  # instead of −inf: its exponential is 0, and what holds nothing else has a gradient (0), not NaN

Embeddings = Mapping[str, Float[Tensor, "batch dim"]]
Present = Mapping[str, Bool[Tensor, " batch"]]
Numbers = Int[Tensor, " batch"]
Identical = Mapping[str, Int[Tensor, " batch"]] | None
Scalar = Float[Tensor, ""]


def pairwise(
    embeddings: Embeddings, present: Present, material: Numbers, log_temperature: Scalar, *, identical: Identical = None
) -> Scalar:
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

    Raises:
        ValueError: fewer than two modalities.
    """
    batch = _Batch.of(embeddings, present, material, identical)
    return _info_nce(batch, combinations(batch.z, 2), log_temperature)


def anchored(
    embeddings: Embeddings, present: Present, material: Numbers, log_temperature: Scalar, *, identical: Identical = None
) -> Scalar:
    """`pairwise` over the pairs with the structure on one side; the other modalities meet through it.

    Arguments as there.

    Raises:
        ValueError: fewer than two modalities, or no structure among them.
    """
    batch = _Batch.of(embeddings, present, material, identical)
    if ANCHOR not in batch.z:
        raise ValueError(f"the loss 'anchored' needs the modality {ANCHOR!r}, got {', '.join(batch.z)}")
    return _info_nce(batch, ((ANCHOR, n) for n in batch.z if n != ANCHOR), log_temperature)


def _info_nce(batch: "_Batch", pairs: Iterable[tuple[str, str]], log_temperature: Tensor) -> Tensor:
    total, directions = 0.0, 0.0
    for m, n in pairs:
        positive = functools.partial(batch.positive, m, n)
        log_sums, attractions = batch.reduce(m, n, log_temperature, (LOG_SUM_EXP, None), (SUM, positive))
        for log_sum, attraction, count in zip(log_sums, attractions, batch.counts(m, n), strict=True):
            query = count > 0
            row = log_sum - attraction / count.clamp(min=1)
            total = total + torch.where(query, row, 0.0).sum() / query.sum().clamp(min=1)
            directions = directions + query.any()
    return total / directions.clamp(min=1)


def proposal(
    embeddings: Embeddings, present: Present, material: Numbers, log_temperature: Scalar, *, identical: Identical = None
) -> Scalar:
    """The formula as the proposal has it::

        L = -1/N Σ_i log[ Σ_{m≠n} exp(s_ii^mn) / Σ_j Σ_{m,n} exp(s_ij^mn) ],    s_ij^mn = z_i^m · z_j^n / τ

    The denominator holds the pairs of a vector with itself, each exp(1/τ): with M modalities, perfectly aligned and
    apart from all other materials, the loss is log(M/(M−1)), not 0. Sums run over what is present; j in the numerator
    runs over the positives of i (i alone if the batch repeats nothing); N counts the rows that have one. Arguments and
    errors as `pairwise`.
    """
    return _proposal(_Batch.of(embeddings, present, material, identical), log_temperature, self_pairs=True)


def proposal_noself(
    embeddings: Embeddings, present: Present, material: Numbers, log_temperature: Scalar, *, identical: Identical = None
) -> Scalar:
    """`proposal` without the pairs of a vector with itself in the denominator.

    Perfectly aligned and apart, it is 0 if the batch repeats nothing. A material on k rows leaves pairs of two rows in
    one modality in the denominator, so for it the floor is log(1 + (k−1) / (k(M−1))). Arguments and errors as
    `pairwise`.
    """
    return _proposal(_Batch.of(embeddings, present, material, identical), log_temperature, self_pairs=False)


def _proposal(batch: "_Batch", log_temperature: Tensor, *, self_pairs: bool) -> Tensor:
    everything, positives = [], []
    for m, n in combinations(batch.z, 2):
        positive = functools.partial(batch.positive, m, n)
        log_sums, log_positives = batch.reduce(m, n, log_temperature, (LOG_SUM_EXP, None), (LOG_SUM_EXP, positive))
        everything += [batch.spread(k, log_sum) for k, log_sum in zip((m, n), log_sums, strict=True)]
        positives += [batch.spread(k, log_sum) for k, log_sum in zip((m, n), log_positives, strict=True)]
    for m in batch.z:
        mask = None if self_pairs else functools.partial(batch.other, m, m)
        ((log_sum, _),) = batch.reduce(m, m, log_temperature, (LOG_SUM_EXP, mask))
        everything.append(batch.spread(m, log_sum))
    numerator, denominator = (torch.logsumexp(torch.stack(terms), 0) for terms in (positives, everything))
    query = numerator > LOWEST / 2
    return torch.where(query, denominator - numerator, 0.0).sum() / query.sum().clamp(min=1)


def sigmoid(
    embeddings: Embeddings, present: Present, material: Numbers, log_temperature: Scalar, *, identical: Identical = None
) -> Scalar:
    """A binary decision for each row i of m and row j of n, averaged over the unordered pairs of modalities::

        L = -1/P Σ_{i has m, j has n} log σ(±(s_ij + b)),    + if j is a positive of i, − if not;    b = log(P/N)

    P and N count the positives and the negatives (at least 1) of m and n in the batch; pairs without a positive are
    left out. SigLIP learns b, from −10, to begin near the prior. Here b is the prior log-odds itself, the constant of
    noise-contrastive estimation (Gutmann & Hyvärinen 2010): at SigLIP's batch of 32,768 it is −10.4, it suits any
    other, and there is nothing to store. Arguments and errors as `pairwise`.
    """
    batch = _Batch.of(embeddings, present, material, identical)
    total, pairs = 0.0, 0.0
    for m, n in combinations(batch.z, 2):
        positive = functools.partial(batch.positive, m, n)
        count = batch.counts(m, n)[0].sum().to(log_temperature)
        bias = torch.log(count.clamp(min=1) / (len(batch.z[m]) * len(batch.z[n]) - count).clamp(min=1))
        # −log σ(−x) = softplus(x) of every pair, and −log σ(x) = softplus(x) − x of the positives
        (all_no, _), (yes, _) = batch.reduce(m, n, log_temperature, (sum_softplus(bias), None), (SUM, positive))
        total = total + torch.where(count > 0, all_no.sum() - yes.sum() - count * bias, 0.0) / count.clamp(min=1)
        pairs = pairs + (count > 0)
    return total / pairs.clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "pairwise": pairwise,
    "anchored": anchored,
    "proposal": proposal,
    "proposal-noself": proposal_noself,
    "sigmoid": sigmoid,
}


def proposal_loss_faults() -> dict[str, list[dict[str, Any]]]:
    """Numbers for the two faults of the proposal's formula, beside `proposal-noself` and `pairwise`; 64 materials.

    Returns:
        `floor`: {loss, modalities, temperature, value} of modalities that are equal within a material and at right
        angles between materials. `starvation`: {loss, cosine, gradient}, the norm of the gradient at the images, which
        are at right angles to all else, as text and crystal of a material come near to one another; τ = 0.07.
    """
    names, n = ("proposal", "proposal-noself", "pairwise"), 64
    crystal, apart, image = torch.eye(3 * n, dtype=torch.double).split(n)
    image = image.clone().requires_grad_()
    rows, everywhere, floor, starvation = torch.arange(n), torch.ones(n, dtype=torch.bool), [], []
    for name, count, tau in product(names, (2, 3, 4), torch.logspace(-2, -0.5, 31)):
        z = dict.fromkeys("abcd"[:count], crystal)
        value = LOSSES[name](z, dict.fromkeys(z, everywhere), rows, tau.log()).item()
        floor.append({"loss": name, "modalities": count, "temperature": tau.item(), "value": value})
    for name, c in product(names, torch.linspace(0, 1, 21)):
        z = {"crystal": crystal, "text": c * crystal + (1 - c**2).sqrt() * apart}
        z["image"] = F.normalize(image, dim=1)  # what would lengthen a vector is lost
        loss = LOSSES[name](z, dict.fromkeys(z, everywhere), rows, torch.tensor(0.07).log())
        (gradient,) = torch.autograd.grad(loss, image)
        starvation.append({"loss": name, "cosine": c.item(), "gradient": gradient.norm().item()})
    return {"floor": floor, "starvation": starvation}


@torch.no_grad()
def recall_at_1(
    embeddings: Embeddings, present: Present, material: Numbers, *, identical: Identical = None
) -> dict[tuple[str, str], tuple[int, int, int]]:
    """How often the nearest vector of another modality in the batch is a positive.

    Returns:
        (query modality, target modality) -> (hits, queries, sum over the queries of the number of vectors to choose
        from); arguments and positives as in `pairwise`.
    """
    batch = _Batch.of(embeddings, present, material, identical)
    counts = {}
    for m, n in permutations(batch.z, 2):
        x, y = batch.z[m], batch.z[n]
        hits = 0
        for block in _blocks(len(x)) if len(y) else ():
            nearest = (x[block] @ y.T).argmax(1, keepdim=True)
            hits += int(batch.positive(m, n, block).gather(1, nearest).sum())
        queries = int((batch.counts(m, n)[0] > 0).sum())
        counts[m, n] = hits, queries, queries * len(y)
    return counts


@dataclass(frozen=True)
class _Batch:
    """The arguments of a loss, absent rows left out; what is made of two modalities m and n."""

    size: int
    rows: dict[str, Tensor]  # modality -> rows that have it, (k,)
    z: dict[str, Tensor]  # modality -> their vectors, (k, dim)
    material: Tensor
    identical: dict[str, Tensor]  # rows without the modality have odd numbers, each its own

    @classmethod
    def of(cls, z: Mapping, present: Mapping, material: Tensor, identical: Mapping | None) -> "_Batch":
        if len(z) < 2:
            raise ValueError(f"a contrastive loss needs two modalities, got {', '.join(z) or 'none'}")
        rows = {m: present[m].nonzero().flatten() for m in z}
        odd = 2 * torch.arange(len(material), device=material.device) + 1
        identical = {m: torch.where(present[m], 2 * same, odd) for m, same in (identical or {}).items() if m in z}
        return cls(len(material), rows, {m: z[m].index_select(0, rows[m]) for m in z}, material, identical)

    def positive(self, m: str, n: str, block: slice) -> Tensor:
        """Whether a row's n is a positive of a row's m, for a block of the rows of m; (block, k_n)."""
        same = [number for k, number in self.identical.items() if k in (m, n)]
        i, j = self.rows[m][block], self.rows[n]
        return functools.reduce(torch.logical_or, (number[i, None] == number[j] for number in [self.material, *same]))

    def other(self, m: str, n: str, block: slice) -> Tensor:
        """Whether a row of n is another than a row of m; (block, k_n)."""
        return self.rows[m][block, None] != self.rows[n]

    def counts(self, m: str, n: str) -> tuple[Tensor, Tensor]:
        """Positives of each row of m, (k_m,), and of each row of n, (k_n,)."""
        across, down = (torch.zeros_like(self.rows[k]) for k in (m, n))
        for block in _blocks(len(across)):
            mask = self.positive(m, n, block)
            across[block] = mask.sum(1)
            down += mask.sum(0)
        return across, down

    def reduce(
        self, m: str, n: str, log_temperature: Tensor, *reductions: tuple["Reduction", Callable | None]
    ) -> list[tuple[Tensor, Tensor]]:
        """Each reduction of the logits that its mask keeps (None: all): for the rows of m, and for the rows of n."""
        x, y = self.z[m] * torch.exp(-log_temperature), self.z[n]

        def reduced(x: Tensor, y: Tensor, block: slice) -> list[tuple[Tensor, Tensor]]:
            logits = x @ y.T
            kept = [logits.masked_fill(~mask(block), r.nothing) if mask else logits for r, mask in reductions]
            return [(r.of(each, 1), r.of(each, 0)) for (r, _), each in zip(reductions, kept, strict=True)]

        run = reduced
        if len(x) > BLOCK:  # one block needs none, and its first call imports torch._dynamo: seconds
            run = functools.partial(checkpoint, reduced, use_reentrant=False, preserve_rng_state=False)
        out = [run(x[block], y, block) for block in _blocks(len(x))]
        parts = [list(zip(*of, strict=True)) for of in zip(*out, strict=True)]
        return [
            (torch.cat(across), functools.reduce(r.join, down))
            for (r, _), (across, down) in zip(reductions, parts, strict=True)
        ]

    def spread(self, m: str, numbers: Tensor) -> Tensor:
        """Numbers of the rows of m among all rows, (size,), `LOWEST` elsewhere."""
        return numbers.new_full((self.size,), LOWEST).index_copy(0, self.rows[m], numbers)


def _blocks(n: int) -> Iterator[slice]:
    """Blocks of n rows, at least one."""
    return (slice(i, i + BLOCK) for i in range(0, max(n, 1), BLOCK))


class Reduction(NamedTuple):
    """How logits become one number for each row and one for each column, a block at a time."""

    of: Callable[[Tensor, int], Tensor]  # logits, dimension -> a number of each of the others
    nothing: float  # what a logit counts as that is not kept
    join: Callable[[Tensor, Tensor], Tensor]  # numbers of two blocks -> of both


SUM = Reduction(torch.sum, 0.0, torch.add)
LOG_SUM_EXP = Reduction(lambda s, dim: s.logsumexp(dim).clamp(min=LOWEST), LOWEST, torch.logaddexp)


def sum_softplus(bias: Tensor) -> Reduction:
    """Σ log(1 + exp(s + bias))."""
    return Reduction(lambda s, dim: F.softplus(s + bias).sum(dim), -math.inf, torch.add)


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
