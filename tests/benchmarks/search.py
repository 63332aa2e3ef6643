"""The nearest of a million vectors by inner product, against faiss's exact index.

faiss takes its products from the OpenBLAS in its package, unless a batch has fewer queries than a threshold: then from
kernels of its own, which are faster on some processors. Both are timed.
"""

import faiss
import numpy as np
from benchmarks.comparison import Settings, alternate, rates

from matalign.pretrain import encode

VECTORS, DIM, QUERIES, K, REPEATS = 1_000_000, 256, 100, 10, 5
OWN = "faiss IndexFlatIP, own kernels"


def unit(n: int, seed: int) -> np.ndarray:
    """Random unit vectors, (n, DIM) float32."""
    x = np.random.default_rng(seed).standard_normal((n, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def measure(settings: Settings) -> dict:
    """Queries a second."""
    vectors, queries = unit(VECTORS, 0), unit(QUERIES, 1)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    faiss.omp_set_num_threads(settings.threads)
    threshold = faiss.cvar.distance_compute_blas_threshold

    def own_kernels():
        faiss.cvar.distance_compute_blas_threshold = QUERIES + 1
        found = index.search(queries, K)
        faiss.cvar.distance_compute_blas_threshold = threshold
        return found

    sides = {
        "embed.nearest": lambda: encode.nearest(queries, vectors, K),
        "faiss IndexFlatIP": lambda: index.search(queries, K),
        OWN: own_kernels,
    }
    (ours, _), (_, theirs), (_, again) = (side() for side in sides.values())
    if (ours != theirs).any() or (ours != again).any():
        raise ValueError(f"{(ours != theirs).sum()} of {ours.size} neighbours differ from faiss's")
    seconds = alternate(sides, repeats=REPEATS, desc="search")
    what = f"exact search, {VECTORS:,} × {DIM}, k = {K}, {QUERIES} queries"
    return {"comparisons": rates(what, "queries/s", QUERIES, seconds, "embed.nearest")}
