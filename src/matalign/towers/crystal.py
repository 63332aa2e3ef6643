"""Crystal towers: message passing with invariant local descriptors (ILD), and CGConv.

The layer of the ILD tower is the proposal's

    h_v' = σ( W · AGG_u { h_u ⊕ e_uv ⊕ ILD(u, v) } )

where AGG is a gated sum over the neighbours and the ILD carry the bond angles. For channel c and order l

    ILD_cl(u, v) = Σ_{w ∈ N(v)} a_c(h_w, r_vw) P_l(cos θ_wvu)          (the sum includes w = u)
                 = Σ_m A_v[c, l, m] Y_lm(r̂_vu),   A_v[c, l, m] = Σ_w a_c(h_w, r_vw) Y_lm(r̂_vw)

by the addition theorem, with Racah-normalised real harmonics (Σ_m Y_lm(a) Y_lm(b) = P_l(a·b)). So all angles cost one
pass over the edges: no line graph, no list of triplets. Everything an edge adds is multiplied by an envelope that is
zero at r_c(v).

An atom has few neighbours (at most 16 by default, 15 on average), so edges are kept as a table (N atoms, K neighbours)
and every sum over neighbours is a dense one; an empty slot lies at r_c(v), where the envelope makes it nothing.

References: the gate is CGCNN's (Xie and Grossman, Phys. Rev. Lett. 120, 145301, 2018); the descriptors are those of
Bartók et al., Phys. Rev. B 87, 184115, 2013, contracted with one more direction; the envelope is DimeNet's (Gasteiger
et al., ICLR 2020).
"""

import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from matalign import elements
from matalign.config import Pretrain
from matalign.data.structures import Structures
from matalign.views import draws
from matalign.views import graphs as neighbour_graphs
from matalign.views.graphs import Batch, Graphs

READOUT = "readout"  # name of the features of all layers, for probes
CORRUPTION = np.uint64(0x9E3779B97F4A7C15)  # sets the draws of `corrupt` apart from others of the same key


def harmonics(unit: Float[Tensor, "*n 3"], order: int) -> Float[Tensor, "*n m"]:
    """Real spherical harmonics in Racah's normalisation, l = 0 … order (at most 3), m = −l … l within l.

    Returns:
        (*n, (order + 1)²), such that the products of one l for two vectors sum to the Legendre polynomial P_l of their
        cosine.
    """
    if not 0 <= order <= 3:
        raise ValueError(f"order must be 0 to 3, got {order}")
    x, y, z = unit.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    out = [torch.ones_like(x)]
    if order >= 1:
        out += [y, z, x]
    if order >= 2:
        s = math.sqrt(3)
        out += [s * x * y, s * y * z, (3 * zz - 1) / 2, s * x * z, s / 2 * (xx - yy)]
    if order >= 3:
        p, q, r = math.sqrt(5 / 8), math.sqrt(15), math.sqrt(3 / 8)
        out += [
            p * y * (3 * xx - yy),
            q * x * y * z,
            r * y * (5 * zz - 1),
            z * (5 * zz - 3) / 2,
            r * x * (5 * zz - 1),
            q / 2 * z * (xx - yy),
            p * x * (xx - 3 * yy),
        ]
    return torch.stack(out, -1)


def descriptors(
    amplitude: Float[Tensor, "atoms k channels"], sphere: Float[Tensor, "atoms k m"]
) -> Float[Tensor, "atoms k features"]:
    """Invariant local descriptors of every (atom, neighbour): for each order l the channels c of `ILD_cl(u, v)`.

    Of amplitudes a_c(h_w, r_vw), zero in empty slots, and `harmonics` of the directions v → w of all orders:
    (N, K, (order + 1) · C), orders outermost.
    """
    moments = amplitude.transpose(1, 2) @ sphere  # (N, C, M)
    parts = [slice(order**2, (order + 1) ** 2) for order in range(math.isqrt(sphere.shape[-1]))]
    return torch.cat([sphere[..., part] @ moments[..., part].transpose(1, 2) for part in parts], -1)


def envelope(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 at x = 0, falling to 0 at x = 1 with zero first and second derivative (DimeNet's polynomial, p = 6)."""
    return torch.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, 0)


def gaussians(d: Float[Tensor, "*n"], *, cutoff_A: float, count: int) -> Float[Tensor, "*n g"]:
    """Distances (angstrom) on `count` Gaussians, evenly spaced from 0 to the cutoff, as wide as their spacing."""
    centres = torch.linspace(0, cutoff_A, count, dtype=d.dtype, device=d.device)
    return torch.exp(-0.5 * ((d[..., None] - centres) * ((count - 1) / cutoff_A)) ** 2)


def table(batch: Batch) -> tuple[Int[Tensor, "atoms k"], Float[Tensor, "atoms k 3"]]:
    """Edges sorted by centre as a table of neighbours.

    Returns:
        neighbour (N, K) and vector v → u (N, K, 3), K the largest number of neighbours in the batch (at least 1). An
        empty slot points to the atom itself at the distance r_c(v).
    """
    n = len(batch.z)
    neighbour, centre = batch.edge_index
    count = torch.bincount(centre, minlength=n)
    first = torch.cumsum(count, 0) - count
    k = max(int(count.max()), 1)
    slot = centre * k + torch.arange(len(centre), device=centre.device) - first[centre]
    index = torch.arange(n, device=centre.device).repeat_interleave(k)
    vec = torch.stack([batch.edge_cutoff, *2 * [torch.zeros_like(batch.edge_cutoff)]], -1).repeat_interleave(k, 0)
    index[slot], vec[slot] = neighbour, batch.edge_vec
    return index.view(n, k), vec.view(n, k, 3)


def pool(atoms: Float[Tensor, "atoms dim"], batch: Batch) -> Float[Tensor, "crystals dim"]:
    """Mean over the atoms of each crystal; batches hold atoms in crystal order.

    Under autocast too in the precision of the graph: its sum would else be one of bfloat16.
    """
    return torch.segment_reduce(atoms.to(batch.edge_vec.dtype), "mean", offsets=batch.ptr, axis=0)


def statistics(layers: Sequence[Float[Tensor, "atoms _"]], batch: Batch) -> Float[Tensor, "crystals features"]:
    """Mean, standard deviation and maximum over the atoms of each crystal, of all layers: (B, 3 · layers · dim)."""
    atoms = torch.cat(list(layers), 1)
    mean = pool(atoms, batch)
    spread = pool((atoms - mean.index_select(0, batch.batch)).square(), batch).sqrt()
    return torch.cat([mean, spread, torch.segment_reduce(atoms, "max", offsets=batch.ptr, axis=0)], 1)


class ElementEmbedding(nn.Module):
    """Features of an atom before any message: a linear map of its elemental properties, plus a learned vector.

    The learned vectors start small: an element that training has not seen is then placed by its properties.
    """

    def __init__(self, width: int):
        super().__init__()
        properties = torch.from_numpy(elements.standardised())
        self.register_buffer("properties", properties, persistent=False)
        self.own = nn.Embedding(*properties.shape[:1], width)
        self.shared = nn.Linear(properties.shape[1], width)
        nn.init.normal_(self.own.weight, std=0.1)

    def forward(self, z: Int[Tensor, " atoms"]) -> Float[Tensor, "atoms dim"]:
        """Features of atoms by their atomic number."""
        return self.own(z) + self.shared(self.properties).index_select(0, z)


def radial_linear(edge_dim: int, out_dim: int) -> nn.Linear:
    """Linear map of `gaussians`; few of them are non-zero at a time, so its weights start larger than usual."""
    linear = nn.Linear(edge_dim, out_dim, bias=False)
    nn.init.normal_(linear.weight, std=0.5)
    return linear


class ILD(nn.Module):
    """W applied to the local descriptors, W · ILD(u, v), without forming them; W has `out_dim` rows, C is `channels`.

    W acts on the moments A_v before they meet the direction of u, once an atom instead of once a neighbour.
    """

    def __init__(self, width: int, *, edge_dim: int, order: int, channels: int, out_dim: int):
        super().__init__()
        self.source = nn.Linear(width, channels, bias=False)  # a_c(h, r) = (source h)_c (radial r)_c · envelope
        self.radial = radial_linear(edge_dim, channels)
        self.weight = nn.Parameter(torch.randn(order + 1, channels, out_dim) / math.sqrt((order + 1) * channels))
        order_of = torch.arange(order + 1).repeat_interleave(2 * torch.arange(order + 1) + 1)
        self.register_buffer("order_of", order_of, persistent=False)  # l of each harmonic

    def amplitude(self, x: Tensor, neighbour: Tensor, radial: Tensor, weight: Tensor) -> Float[Tensor, "atoms k c"]:
        """a_c(h_w, r_vw), zero in empty slots."""
        return gather(self.source(x), neighbour) * self.radial(radial) * weight

    def forward(
        self, x: Tensor, neighbour: Tensor, radial: Tensor, weight: Tensor, sphere: Tensor
    ) -> Float[Tensor, "atoms k out"]:
        """W · ILD(u, v) of every (atom, neighbour); empty slots hold what their direction would give, unweighted."""
        moments = sphere.transpose(1, 2) @ self.amplitude(x, neighbour, radial, weight)  # (N, M, C)
        mixed = moments.transpose(0, 1) @ self.weight.index_select(0, self.order_of)  # (M, N, out)
        return sphere @ mixed.transpose(0, 1)


def gather(x: Float[Tensor, "atoms dim"], neighbour: Int[Tensor, "atoms k"]) -> Float[Tensor, "atoms k dim"]:
    """Rows of x at each neighbour (`index_select`: its backward is repeatable)."""
    return x.index_select(0, neighbour.reshape(-1)).view(*neighbour.shape, -1)


class ILDLayer(nn.Module):
    """One step of message passing: h + σ(W · Σ_u gate ⊙ value), then a residual two-layer update of the atom."""

    def __init__(self, width: int, *, edge_dim: int, order: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.source = nn.Linear(width, 2 * width, bias=False)
        self.centre = nn.Linear(width, 2 * width)
        self.radial = radial_linear(edge_dim, 2 * width)
        kwargs = {"edge_dim": edge_dim, "order": order, "channels": channels, "out_dim": 2 * width}
        self.ild = ILD(width, **kwargs) if order >= 0 else None
        self.out = nn.Linear(width, width)
        self.update = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, neighbour: Tensor, radial: Tensor, weight: Tensor, sphere: Tensor | None) -> Tensor:
        """New features (N, width) of the atoms from h (N, width); tables (N, K, …) as in `CrystalTower.forward`."""
        x = self.norm(h)  # (N, F)
        message = gather(self.source(x), neighbour) + self.radial(radial) + self.centre(x)[:, None]  # (N, K, 2F)
        if self.ild is not None:
            message = message + self.ild(x, neighbour, radial, weight, sphere)
        gate, value = message.chunk(2, -1)
        total = torch.sum(torch.sigmoid(gate) * F.silu(value) * weight, 1)  # (N, F)
        h = h + F.silu(self.out(total))
        return h + self.update(h)


@cache
def compiled_layer() -> Callable[..., Tensor]:
    """`ILDLayer.forward` by `torch.compile`, for batches of any size; raises ValueError where no C++ compiler is."""
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise ValueError(f"`compiled: true` needs a C++ compiler, and there is no {compiler}; CXX may name another")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # would say that no CUDA is found
    from torch._inductor import config  # here: takes seconds, and few fits are compiled

    config.compile_threads = 1  # else a pool of processes stays beside every fit
    return torch.compile(ILDLayer.forward, dynamic=True)


class CrystalTower(nn.Module):
    """The ILD tower: element embedding, message passing, mean over the atoms.

    Where `compiled` is set, its layers are compiled and multiply in bfloat16 while it trains, not when it predicts.

    Args:
        width: channels of an atom; also the tower's dimension.
        order: highest Legendre order of the descriptors, at most 3; −1: none.
        channels: C of the descriptors.
    """

    compiled = False

    def __init__(
        self, *, width: int, layers: int, order: int, cutoff_A: float, channels: int = 16, radial: int = 32
    ) -> None:
        super().__init__()
        self.dim, self.order, self.cutoff_A, self.radial = width, order, cutoff_A, radial
        self.element = ElementEmbedding(width)
        self.layers = nn.ModuleList(
            ILDLayer(width, edge_dim=radial, order=order, channels=channels) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU())

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "crystals dim"], dict[str, Tensor]]:
        """Pooled features (B, dim) of a batch of graphs, `atoms` (N, dim), and `layers` (N, dim) each, up to these."""
        neighbour, vec = table(batch)
        d = vec.norm(dim=-1)  # (N, K)
        weight = envelope(d / batch.edge_cutoff[:, None])[..., None]  # (N, K, 1)
        radial = gaussians(d, cutoff_A=self.cutoff_A, count=self.radial)
        sphere = harmonics(vec / d[..., None], self.order) if self.order >= 0 else None
        layers, fast = [self.element(batch.z)], self.compiled and self.training
        step = compiled_layer() if fast else ILDLayer.__call__
        with torch.autocast(d.device.type, torch.bfloat16) if fast else nullcontext():
            for layer in self.layers:
                layers.append(step(layer, layers[-1], neighbour, radial, weight, sphere))
        atoms = self.readout(self.norm(layers[-1]))
        return pool(atoms, batch), {"atoms": atoms, "layers": [*layers, atoms]}


class Regressor(nn.Module):
    """A tower and one linear layer on its pooled features; targets standardised on training."""

    def __init__(self, tower: nn.Module, targets: int):
        super().__init__()
        self.tower, self.head = tower, nn.Linear(tower.dim, targets)

    def forward(self, batch: Batch) -> Float[Tensor, "crystals targets"]:
        """Standardised predictions for a batch of graphs."""
        return self.head(self.tower(batch)[0])


class CGConvTower(nn.Module):
    """CGCNN's convolution as PyG has it (`torch_geometric.nn.CGConv`, batch norm), on the same graph; no angles.

    The envelope multiplies the Gaussians, so that a neighbour's distance fades out at r_c(v); the convolution's own
    sum is unweighted.
    """

    def __init__(self, *, width: int, layers: int, cutoff_A: float, radial: int = 32) -> None:
        from torch_geometric.nn import CGConv  # here: its import takes seconds, and only this baseline needs it

        super().__init__()
        self.dim, self.cutoff_A, self.radial = width, cutoff_A, radial
        self.element = ElementEmbedding(width)
        self.layers = nn.ModuleList(CGConv(width, dim=radial, aggr="add", batch_norm=True) for _ in range(layers))
        self.readout = nn.Sequential(nn.Linear(width, width), nn.SiLU())

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "crystals dim"], dict[str, Tensor]]:
        """Pooled features (B, dim) of a batch of graphs, `atoms` (N, dim), and `layers` (N, dim) each, up to these."""
        d = batch.edge_vec.norm(dim=-1)
        edge = gaussians(d, cutoff_A=self.cutoff_A, count=self.radial)
        edge = edge * envelope(d / batch.edge_cutoff.index_select(0, batch.edge_index[1]))[:, None]
        layers = [self.element(batch.z)]
        for layer in self.layers:
            layers.append(F.softplus(layer(layers[-1], batch.edge_index, edge)))
        atoms = self.readout(layers[-1])
        return pool(atoms, batch), {"atoms": atoms, "layers": [*layers, atoms]}


class Corrupted(NamedTuple):
    """A batch of crystals, some elements hidden and all atoms displaced, and what was done to them."""

    batch: Batch  # as of `GraphStore.batch`; a hidden atom has the number 0
    hidden: Bool[Tensor, " atoms"]
    z: Int[Tensor, " atoms"]  # true atomic numbers
    displacement: Float[Tensor, "atoms 3"]  # angstrom, less its mean over the crystal, which nobody can tell


def corrupt(batch: Batch, keys: np.ndarray, *, mask_atoms: float, noise_A: float) -> Corrupted:
    """Hide elements and displace atoms; the draws are keyed, the same on every device.

    Args:
        keys: (B,) of the draws.
        mask_atoms: probability that an atom's element is hidden.
        noise_A: standard deviation of the displacement in each direction, angstrom.
    """
    most = int(batch.ptr.diff().max())
    u = draws.uniforms(keys ^ CORRUPTION, 7 * most).reshape(len(keys), most, 7)
    crystal = batch.batch.cpu().numpy()
    u = u[crystal, np.arange(len(crystal)) - batch.ptr.cpu().numpy()[crystal]]  # (N, 7)
    normal = np.sqrt(-2 * np.log1p(-u[:, :3])) * np.cos(2 * np.pi * u[:, 3:6])  # Box-Muller
    hidden = torch.from_numpy(u[:, 6] < mask_atoms).to(batch.z.device)
    displacement = torch.from_numpy(normal * noise_A).to(batch.edge_vec)
    neighbour, centre = batch.edge_index
    moved = batch.edge_vec + displacement.index_select(0, neighbour) - displacement.index_select(0, centre)
    changed = replace(batch, z=torch.where(hidden, 0, batch.z), edge_vec=moved)
    return Corrupted(changed, hidden, batch.z, displacement - pool(displacement, batch).index_select(0, batch.batch))


def build(cfg: Pretrain, *, initialise: bool = True) -> nn.Module:
    """The tower that `cfg.crystal_tower` names (ValueError: none); its weights are random either way."""
    if cfg.crystal_tower == "ild":
        return CrystalTower(
            width=cfg.width, layers=cfg.layers, order=cfg.order, channels=cfg.channels, cutoff_A=cfg.cutoff_A
        )
    if cfg.crystal_tower == "cgconv":
        return CGConvTower(width=cfg.width, layers=cfg.layers, cutoff_A=cfg.cutoff_A)
    raise ValueError(f"crystal_tower must be ild or cgconv, got {cfg.crystal_tower!r}")


def graphs(cfg: Pretrain, structures: Structures, device: torch.device | str = "cpu") -> Graphs:
    """Neighbour graphs as the tower of a config takes them, on a device."""
    options = {"cutoff_A": cfg.cutoff_A, "neighbours": cfg.neighbours, "workers": cfg.threads}
    return neighbour_graphs.graphs(structures, **options).to(device)


class Inputs:
    """Every material has its crystal."""

    def __init__(
        self, cfg: Pretrain, curated: "matalign.data.dataset.Curated", tower: nn.Module, device: torch.device
    ) -> None:
        self.cfg, self.structures, self.device = cfg, curated.structures, device
        self.has = np.ones(len(curated.structures), bool)

    @cached_property
    def store(self) -> Graphs:
        """Graphs of all materials, by row."""
        return graphs(self.cfg, self.structures, self.device)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """A batch of graphs."""
        return self.store.batch(torch.from_numpy(rows))

    def corrupted(self, rows: np.ndarray, keys: np.ndarray) -> Corrupted:
        """The same graphs, corrupted."""
        return corrupt(self(rows, keys), keys, mask_atoms=self.cfg.mask_atoms, noise_A=self.cfg.noise_A)
