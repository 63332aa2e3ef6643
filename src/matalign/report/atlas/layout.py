"""The map of a space: t-SNE of one modality, the others placed into it, and how much of the space the map keeps.

t-SNE is openTSNE's (Poličar, Stražar & Zupan, JSS 2024), with a uniform kernel over each point's nearest neighbours
(Böhm, Berens & Kobak, JMLR 2022), from the principal components (Kobak & Berens, Nature Communications 2019): no random
number is drawn but those of the neighbour search, which has a seed.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from openTSNE import TSNEEmbedding, affinity, initialization
from scipy.spatial import cKDTree

EXAGGERATION = 12.0  # of the attraction, in the first third of the iterations
PULLS = 100  # steps of `place`
FEW = 500  # points; the repulsion of fewer is summed by a tree, of more by FFT

Points = Float[np.ndarray, "n 2"]


def principal(vectors: Float[np.ndarray, "n dim"], *, components: int = 2) -> Float[np.ndarray, "n components"]:
    """Principal components; of each axis the sign that makes its largest loading positive."""
    centred = (vectors - vectors.mean(0)).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, : -components - 1 : -1]  # (dim, components), the largest variance first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return centred @ axes


def _embedding(vectors: np.ndarray, points: Points, *, attracted: int) -> TSNEEmbedding:
    near = min(attracted, len(vectors) - 1)
    kernel = affinity.Uniform(vectors, near, method="auto", metric="cosine", n_jobs=1, random_state=0)
    method = "bh" if len(vectors) < FEW else "fft"
    return TSNEEmbedding(points, kernel, negative_gradient_method=method, n_jobs=1, random_state=0)


def tsne(vectors: Float[np.ndarray, "n dim"], *, attracted: int, iterations: int) -> Points:
    """Place points on a map by t-SNE, the same at each call.

    Args:
        attracted: nearest neighbours that each point is drawn towards.
        iterations: steps of gradient descent, a third of them with exaggerated attraction.
    """
    start = initialization.rescale(principal(vectors))
    found = _embedding(vectors, start, attracted=attracted)
    early = iterations // 3
    found = found.optimize(early, exaggeration=EXAGGERATION, momentum=0.5, learning_rate="auto")
    return np.asarray(found.optimize(iterations - early, momentum=0.8, learning_rate="auto"))


def place(
    newcomers: Float[np.ndarray, "m dim"], vectors: Float[np.ndarray, "n dim"], points: Points, *, attracted: int
) -> Float[np.ndarray, "m 2"]:
    """Put what is not on a map where the attraction of its nearest vectors and the repulsion of all leave it."""
    near = min(attracted, len(vectors) - 1)
    there = _embedding(vectors, points, attracted=attracted)
    found = there.prepare_partial(newcomers, initialization="median", k=near, k_neighbors=near)
    return np.asarray(found.optimize(PULLS, learning_rate=0.1, exaggeration=1.5, momentum=0.8))


def kept(
    neighbours: Int[np.ndarray, "n k"], vectors: Float[np.ndarray, "n dim"], points: Points, *, queries: int = 2000
) -> dict[str, float]:
    """How much of a space a map keeps.

    Args:
        neighbours: (n, k) of each point the k nearest in the space, itself not among them.
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
