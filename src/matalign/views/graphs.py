"""Crystals as periodic neighbour graphs, and their batching.

Each atom v has its own cutoff, `r_c(v) = min(cutoff, distance of the (k+1)-th neighbour)`; its neighbours are the
images u with `d_uv < r_c(v)`. A fixed number of neighbours would cut through shells of equal distance, so the graph
would depend on the order of the atoms; this one does not, and with an envelope that is zero at r_c(v) no neighbour
enters or leaves with a jump.

Graphs of a small set are kept, a `GraphStore`; those of a large one are made for each batch, `GraphsOnDemand`. The
batches are the same. A `Batch` has PyG's field names, but needs no `torch_geometric`, whose import takes longer than a
prediction.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from matalign.data.structures import Structures
from matalign.views.neighbours import Graph, neighbour_lists

CHUNK = 1024  # crystals whose graphs are made at once
KEPT_BYTES = 1 << 29  # graphs that may take more than this are made for each batch


@dataclass(frozen=True)
class Batch:
    """Graphs of B crystals with N atoms and E edges in all."""

    z: Int[Tensor, " N"]  # int64, atomic number
    edge_index: Int[Tensor, "2 E"]  # int64; row 0: neighbour u, row 1: centre v; sorted by v
    edge_vec: Float[Tensor, "E 3"]  # float32, from v to the image of u, angstrom
    edge_cutoff: Float[Tensor, " N"]  # float32, r_c(v), angstrom
    batch: Int[Tensor, " N"]  # int64, crystal of the atom
    ptr: Int[Tensor, " B_plus_1"]  # int64, first atom of each crystal


@dataclass(frozen=True)
class GraphStore:
    """Graphs of many crystals in flat tensors (A atoms, E edges, M crystals), batched by index."""

    z: Int[Tensor, " A"]  # int16
    edge_cutoff: Float[Tensor, " A"]
    neighbour: Int[Tensor, " E"]  # int32, index within the crystal
    edge_vec: Float[Tensor, "E 3"]
    ptr: Int[Tensor, " M_plus_1"]  # first atom of each crystal
    edge_ptr: Int[Tensor, " A_plus_1"]  # first edge of each atom

    @classmethod
    def build(cls, structures: Structures, *, cutoff_A: float, neighbours: int, workers: int = 1) -> "GraphStore":
        """Graphs of all structures.

        Args:
            structures: the crystals.
            cutoff_A: see `neighbour_lists`.
            neighbours: see `neighbour_lists`.
            workers: threads; the result does not depend on their number.

        Raises:
            ValueError: see `neighbour_lists`; the message names the rows.
        """
        starts = range(0, len(structures), CHUNK)

        def chunk(start: int) -> Graph:
            rows = range(start, min(start + CHUNK, len(structures)))
            try:
                graph = neighbour_lists(structures.take(rows), cutoff_A=cutoff_A, neighbours=neighbours)
            except ValueError as error:
                raise ValueError(f"structures {rows.start}–{rows.stop - 1}: {error}") from None
            return graph._replace(
                edge_vec=graph.edge_vec.astype(np.float32), edge_cutoff=graph.edge_cutoff.astype(np.float32)
            )

        with ThreadPoolExecutor(workers) as pool:  # the search runs outside the interpreter's lock
            parts = Graph(*(np.concatenate(column) for column in zip(*pool.map(chunk, starts))))
        return cls(
            z=torch.from_numpy(structures.numbers.astype(np.int16)),
            edge_cutoff=torch.from_numpy(parts.edge_cutoff),
            neighbour=torch.from_numpy(parts.neighbour),
            edge_vec=torch.from_numpy(parts.edge_vec),
            ptr=torch.from_numpy(structures.ptr.astype(np.int64)),
            edge_ptr=torch.from_numpy(np.concatenate([[0], np.cumsum(parts.edges_of)])),
        )

    def to(self, device: torch.device | str) -> "GraphStore":
        """The same graphs on a device, where their batches are made then."""
        return GraphStore(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def batch(self, rows: Int[Tensor, " B"]) -> Batch:
        """The crystals of these rows, in this order, as one batch."""
        device = self.ptr.device
        atoms, atom_ptr = _ragged(self.ptr, rows.to(device))
        edges, edge_ptr = _ragged(self.edge_ptr, atoms)
        batch = torch.repeat_interleave(torch.arange(len(rows), device=device), atom_ptr.diff())
        centre = torch.repeat_interleave(torch.arange(len(atoms), device=device), edge_ptr.diff())
        neighbour = self.neighbour[edges].long() + atom_ptr[batch[centre]]
        return Batch(
            z=self.z[atoms].long(),
            edge_index=torch.stack([neighbour, centre]),
            edge_vec=self.edge_vec[edges],
            edge_cutoff=self.edge_cutoff[atoms],
            batch=batch,
            ptr=atom_ptr,
        )


@dataclass(frozen=True)
class GraphsOnDemand:
    """Graphs of many crystals, made anew for each batch: memory does not grow with their number."""

    structures: Structures
    cutoff_A: float
    neighbours: int
    device: torch.device | str = "cpu"

    def to(self, device: torch.device | str) -> "GraphsOnDemand":
        """The same graphs, whose batches go to a device."""
        return replace(self, device=device)

    def __len__(self) -> int:
        return len(self.structures)

    def batch(self, rows: Int[Tensor, " B"]) -> Batch:
        """See `GraphStore.batch`."""
        crystals = self.structures.take(rows.cpu().numpy())
        store = GraphStore.build(crystals, cutoff_A=self.cutoff_A, neighbours=self.neighbours)
        return store.to(self.device).batch(torch.arange(len(rows)))


Graphs = GraphStore | GraphsOnDemand


def graphs(
    structures: Structures, *, cutoff_A: float, neighbours: int, workers: int = 1, kept_bytes: int = KEPT_BYTES
) -> Graphs:
    """Graphs of all structures, kept if they cannot take more than `kept_bytes`; else made for each batch."""
    edge, atom = 4 * 4, 2 + 4 + 8  # bytes of a `GraphStore`
    if structures.ptr[-1] * (neighbours * edge + atom) > kept_bytes:
        return GraphsOnDemand(structures, cutoff_A, neighbours)
    return GraphStore.build(structures, cutoff_A=cutoff_A, neighbours=neighbours, workers=workers)


def _ragged(ptr: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the entries of ragged `rows`, one row after the other, and the first entry of each."""
    size = ptr[rows + 1] - ptr[rows]
    new_ptr = torch.zeros(len(rows) + 1, dtype=torch.long, device=ptr.device)
    torch.cumsum(size, 0, out=new_ptr[1:])
    first = torch.repeat_interleave(ptr[rows] - new_ptr[:-1], size)
    return torch.arange(int(new_ptr[-1]), device=ptr.device) + first, new_ptr
