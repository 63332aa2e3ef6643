"""The map of a space: t-SNE of one modality, the others placed into it, and how much of the space the map keeps.

t-SNE (van der Maaten & Hinton, JMLR 2008) moves the points y so that neighbours in the space attract each other and
all repel each other. The gradient of its loss for point i is

    Σ_j p_ij w_ij (y_i − y_j)  −  Σ_j w_ij² (y_i − y_j) / Σ_kl w_kl,      w_ij = 1 / (1 + |y_i − y_j|²).

- p is uniform over each point's nearest neighbours, symmetrised: as good as the usual Gaussians with a bandwidth each
  (Böhm, Berens & Kobak, JMLR 2022), and the first sum has few terms.
- The second sum and Σ w are convolutions of the points with a kernel, taken on a grid by FFT (Linderman et al., Nature
  Methods 2019): time grows with the number of points, not with its square.
- Starting from the principal components keeps the large distances in order (Kobak & Berens, Nature Communications
  2019) and leaves nothing to chance: no random number is drawn.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import fft, sparse
from scipy.spatial import cKDTree
from tqdm import tqdm

GROWTH = 32  # nodes; the grid grows with the map in such steps
SPACING = 1 / 3  # of the grid; the kernels are of width 1
EXAGGERATION = 12.0  # of the attraction, in the first third of the iterations
START = 1e-4  # standard deviation of the points at the start
PULLS = 50  # steps of `place`
SIMILAR = 0.05  # a cosine less by this weighs e times less in `place`

Points = Float[np.ndarray, "n 2"]


def principal(vectors: Float[np.ndarray, "n dim"], *, components: int = 2) -> Float[np.ndarray, "n components"]:
    """Principal components; of each axis the sign that makes its largest loading positive."""
    centred = (vectors - vectors.mean(0)).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, : -components - 1 : -1]  # (dim, components), the largest variance first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return centred @ axes


def tsne(neighbours: Int[np.ndarray, "n k"], start: Points, *, iterations: int, threads: int = 1) -> Points:
    """Place points on a map by t-SNE.

    Args:
        neighbours: (n, k) of each point the k nearest in the space, itself not among them.
        start: (n, 2) where the points come from; scaled to a small cloud.
        iterations: steps of gradient descent, a third of them with exaggerated attraction.
        threads: of the FFT; the result is the same for any.

    Returns:
        (n, 2), the mean at the origin.
    """
    n, k = neighbours.shape
    rows = np.repeat(np.arange(n), k)
    knn = sparse.csr_array((np.full(n * k, 1 / k), (rows, neighbours.ravel())), shape=(n, n))
    p = ((knn + knn.T) / (2 * n)).tocoo()
    i, j = p.coords
    y = start * (START / start[:, 0].std())
    velocity, gain = np.zeros_like(y), np.ones_like(y)
    early = iterations // 3
    for step in tqdm(range(iterations), desc="t-SNE", mininterval=1, disable=n < 1000):
        strength, momentum = (EXAGGERATION, 0.5) if step < early else (1.0, 0.8)
        difference = y[i] - y[j]
        pull = strength * p.data / (1 + np.square(difference).sum(1))
        gradient = np.stack([np.bincount(i, pull * difference[:, d], n) for d in (0, 1)], axis=1)
        gradient -= repulsion(y, threads=threads)
        # a coordinate that keeps its direction goes faster, one that swings slower (Jacobs, Neural Networks 1988)
        gain = np.where(np.sign(gradient) != np.sign(velocity), gain + 0.2, gain * 0.8).clip(min=0.01)
        # the rate of Belkina et al., Nature Communications 2019
        velocity = momentum * velocity - n / strength * gain * gradient
        y = y + velocity
        y -= y.mean(0)
    return y


def repulsion(y: Points, *, threads: int = 1) -> Points:
    """Σ_j w_ij² (y_i − y_j) / Σ_kl w_kl of every point i, with k ≠ l in the denominator.

    Points are dealt to the 4 × 4 grid nodes around them by cubic Lagrange weights, and read from there by the same:
    forces come out right to a few hundredths.
    """
    extent = np.ptp(y, axis=0).max() / SPACING + 5
    size = fft.next_fast_len(int(np.ceil(extent / GROWTH)) * GROWTH, real=True)
    cell, t = np.divmod((y - y.min(0)) / SPACING + 2, 1)
    t = t[..., None]
    weights = [-t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2]
    weights = np.concatenate([*weights, (t + 1) * t * (t - 1) / 6], axis=2)  # (n, 2, 4)
    nodes = cell.astype(int)[..., None] + np.arange(-1, 3)  # (n, 2, 4)
    node = (nodes[:, 0, :, None] * size + nodes[:, 1, None, :]).reshape(len(y), 16)
    weight = (weights[:, 0, :, None] * weights[:, 1, None, :]).reshape(len(y), 16)
    charge = np.bincount(node.ravel(), weight.ravel(), size * size).reshape(size, size).astype(np.float32)
    spectrum = fft.rfft2(charge, s=(2 * size, 2 * size), workers=threads)
    w, down, right = (
        (
            fft.irfft2(spectrum * kernel, s=(2 * size, 2 * size), workers=threads)[:size, :size].ravel()[node] * weight
        ).sum(1)
        for kernel in kernels(size)
    )
    return np.stack([down, right], axis=1) / (w.sum() - len(y))


@functools.lru_cache(maxsize=1)
def kernels(size: int) -> tuple[np.ndarray, ...]:
    """Spectra of w, and of w² times the distance down and to the right, on a grid of twice the size (no wrapping)."""
    distance = (SPACING * fft.fftfreq(2 * size, d=1 / (2 * size))).astype(np.float32)
    w = 1 / (1 + distance[:, None] ** 2 + distance**2)
    return fft.rfft2(w), fft.rfft2(w**2 * distance[:, None]), fft.rfft2(w**2 * distance)


def place(
    neighbours: Int[np.ndarray, "m k"], similarity: Float[np.ndarray, "m k"], points: Points
) -> Float[np.ndarray, "m 2"]:
    """Put what is not on a map beside its nearest points: where the attraction of t-SNE pulls it, from the nearest.

    Each step goes to the mean of the neighbours, weighted by similarity and w. Far from a neighbour its w is next to
    nothing, so a place is found among those that lie together and not in the void between two groups.

    Args:
        neighbours: (m, k) the nearest points of each newcomer, the most similar first.
        similarity: (m, k) cosine of each.
        points: (n, 2) the map.
    """
    there = points[neighbours]  # (m, k, 2)
    weight = np.exp((similarity - similarity[:, :1]) / SIMILAR)
    y = there[:, 0]
    for _ in range(PULLS):
        pull = weight / (1 + np.square(there - y[:, None]).sum(2))
        y = (pull[..., None] * there).sum(1) / pull.sum(1, keepdims=True)
    return y


def kept(
    neighbours: Int[np.ndarray, "n k"], vectors: Float[np.ndarray, "n dim"], points: Points, *, queries: int = 2000
) -> dict[str, float]:
    """How much of a space a map keeps.

    Args:
        neighbours: (n, k) of each point the k nearest in the space, itself not among them.
        vectors: (n, dim) unit vectors.
        points: (n, 2) the map.
        queries: trustworthiness is taken on so many points, evenly spread over the rows.

    Returns:
        `k` and `n`; `among_k` and `among_5k`: the mean share of a point's k nearest in the space among its k and 5 k
        nearest on the map; `chance`, what a random map would keep; `trustworthiness` (Venna & Kaski, Neural Networks
        2006): 1 where each of the k nearest on the map is one in the space, 0.5 about at random.
    """
    n, k = neighbours.shape
    on_map = cKDTree(points).query(points, min(5 * k, n - 1) + 1)[1]
    on_map = on_map[others(on_map)].reshape(n, -1)
    found = (on_map[:, :, None] == neighbours[:, None]).any(2)  # (n, 5 k)
    rows = np.unique(np.linspace(0, n - 1, min(n, queries)).astype(int))
    ranks = np.empty((len(rows), k))
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 200)):
        product = vectors[rows[part]] @ vectors.T
        product[np.arange(len(part)), rows[part]] = -np.inf
        chosen = np.take_along_axis(product, on_map[rows[part], :k], 1)
        ranks[part] = [(row > each[:, None]).sum(1) + 1 for row, each in zip(product, chosen)]
    penalty = np.clip(ranks - k, 0, None).sum(1).mean()
    return {
        "k": k,
        "n": n,
        "among_k": float(found[:, :k].sum() / (n * k)),
        "among_5k": float(found.sum() / (n * k)),
        "chance": k / (n - 1),
        "trustworthiness": float(1 - penalty * 2 / (k * (2 * n - 3 * k - 1))),
    }


def others(index: Int[np.ndarray, "n k"]) -> Bool[np.ndarray, "n k"]:
    """Mask of k − 1 a row: all but the row's own number, or but the last where that is not in it."""
    keep = index != np.arange(len(index))[:, None]
    keep[keep.all(1), -1] = False
    return keep
