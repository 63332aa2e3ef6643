"""What a released model's queries are compared with: small vectors of crystals and protocols, not what they are of.

Unit vectors z (dim,) are kept as C z in the space of the first principal axes C (d, dim), uncentred, so that inner
products stay as near as they can; each as int8 with a scale of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file

from matalign.pretrain import encode
from matalign.release import weights

TOP = 10  # nearest that the agreement is taken on
FILE = "index.safetensors"
NAMES = ("crystal", "protocol")  # what may be in it


@dataclass(frozen=True)
class Index:
    """Vectors by modality, and a table of what is known of each row."""

    axes: Float[np.ndarray, "d dim"]
    vectors: Mapping[str, Float[np.ndarray, "n d"]]
    tables: Mapping[str, pd.DataFrame]  # rows as `vectors`

    def nearest(
        self, queries: Float[np.ndarray, "q dim"], k: int, *, among: str
    ) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
        """Rows of the k most similar, best first, and cosines; ValueError: no such modality, or k beyond its rows."""
        if among not in self.vectors:
            raise ValueError(f"among must be one of {', '.join(self.vectors)}, got {among!r}")
        rows, similarity = encode.nearest((queries @ self.axes.T).astype(np.float32), self.vectors[among], k)
        return rows, np.minimum(similarity, 1)  # int8 may round to a little more


def build(vectors: Mapping[str, Float[np.ndarray, "n dim"]], tables: Mapping[str, pd.DataFrame], *, size: int) -> Index:
    """The index of unit vectors (n, dim) in `size` dimensions, at most their own, rounded as `write` keeps it."""
    everything = np.concatenate(list(vectors.values())).astype(np.float64)
    axes = np.ascontiguousarray(np.linalg.eigh(everything.T @ everything)[1][:, ::-1].T[:size])
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # the same sign on every machine
    axes = axes.astype(np.float16).astype(np.float32)
    short = {name: torch.from_numpy((z @ axes.T).astype(np.float32)) for name, z in vectors.items()}
    return Index(axes, {name: weights.dequantise(*weights.quantise(z)).numpy() for name, z in short.items()}, tables)


def agreement(
    index: Index, queries: Float[np.ndarray, "q dim"], vectors: Float[np.ndarray, "n dim"], *, among: str
) -> float:
    """Share of the `TOP` nearest by full vectors that are among the `TOP` nearest by the index; mean over queries."""
    k = min(TOP, len(vectors))
    full, short = encode.nearest(queries, vectors, k)[0], index.nearest(queries, k, among=among)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(full.tolist(), short.tolist())]))


def write(folder: Path, index: Index) -> list[str]:
    """Write the vectors and `<modality>s.parquet` for each table; the files' names."""
    tensors = {"axes": torch.from_numpy(index.axes).half()}
    for name, vectors in index.vectors.items():
        tensors[name], tensors[name + weights.SCALE] = weights.quantise(torch.from_numpy(vectors))
    save_file(tensors, folder / FILE)
    for name, table in index.tables.items():
        table.to_parquet(folder / f"{name}s.parquet", compression="zstd", index=False)
    return [FILE, *(f"{name}s.parquet" for name in index.tables)]


def read(folder: Path) -> Index:
    """Read what `write` wrote."""
    kept = weights.read(folder, [FILE])
    names = [name for name in NAMES if name in kept]
    vectors = {name: weights.dequantise(kept[name], kept[name + weights.SCALE]).numpy() for name in names}
    tables = {name: pd.read_parquet(folder / f"{name}s.parquet") for name in names}
    return Index(kept["axes"].float().numpy(), vectors, tables)
