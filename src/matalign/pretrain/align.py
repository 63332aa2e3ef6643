"""The aligned model: a tower and a head per modality, one temperature; and its form on disk.

Any number of modalities, any missing: a batch carries presence masks, and a modality's inputs hold only the rows that
have it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from matalign import cache, elements
from matalign import towers as registry
from matalign.config import Pretrain
from matalign.towers.crystal import Corrupted, envelope, gather, gaussians, pool, radial_linear, table

CRYSTAL = "crystal"  # the modality that the auxiliary objective is about


class Head(nn.Sequential):
    """Projection of a tower's pooled features (n, dim) to the shared space (n, embed_dim), before normalisation."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))


class AlignModel(nn.Module):
    """Towers, heads and a learned temperature.

    Args:
        towers: modality -> module with `.dim` whose forward returns (pooled (n, dim), named intermediates).
        denoiser: heads of the auxiliary objective, if there is one (`Denoiser`).
    """

    def __init__(
        self, towers: Mapping[str, nn.Module], *, embed_dim: int, temperature: float, denoiser: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.towers = nn.ModuleDict(towers)
        self.heads = nn.ModuleDict({m: Head(tower.dim, embed_dim) for m, tower in towers.items()})
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.denoiser = denoiser

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of the towers."""
        return list(self.towers)

    @property
    def temperature(self) -> float:
        """τ, which similarities are divided by."""
        return self.log_temperature.exp().item()

    def encode(self, modality: str, inputs: Any) -> Float[Tensor, "rows dim"]:
        """Unit vectors of one modality's inputs, in the precision of the weights (float32) under autocast too."""
        pooled, _ = self.towers[modality](inputs)
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.heads[modality](pooled.to(self.log_temperature.dtype)), dim=1)

    def forward(
        self, inputs: Mapping[str, Any], present: Mapping[str, Bool[Tensor, " batch"]]
    ) -> dict[str, Float[Tensor, "batch dim"]]:
        """Unit vectors per modality; zeros in the rows that lack it.

        Args:
            inputs: modality -> the tower's inputs for the rows where `present` is true, in row order; unread if there
                are none.
            present: modality -> whether the row has it; every modality of the model.
        """
        out = {}
        for m in self.modalities:
            rows = present[m].nonzero().flatten()
            z = self.log_temperature.new_zeros(len(present[m]), self.embed_dim)
            out[m] = z.index_copy(0, rows, self.encode(m, inputs[m])) if len(rows) else z
        return out

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of each tower, of all heads together, of the denoiser if there is one; frozen ones count."""
        parts = {**self.towers, "heads": self.heads, **({"denoiser": self.denoiser} if self.denoiser else {})}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def weights(self) -> dict[str, Tensor]:
        """The state that training makes: all but frozen layers, which come from their own files."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load what `weights` returned. Raises ValueError: a name is missing or unknown; the message says which."""
        wrong = set(weights) ^ set(self.weights())
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights are missing or unknown, first {min(wrong)!r}; another config made them"
            )
        self.load_state_dict(dict(weights), strict=False)


class Denoiser(nn.Module):
    """Heads that tell from a tower's atoms what `corrupt` did: learning from crystals without labels.

    Hidden elements are classified (Hu et al., Strategies for pre-training graph neural networks, ICLR 2020), and
    displacements, in units of `noise_A`, found as sums of directions to the neighbours, each with an invariant weight
    (Zaidi et al., Pre-training via denoising, ICLR 2023).
    """

    def __init__(self, width: int, *, cutoff_A: float, noise_A: float, radial: int = 32) -> None:
        super().__init__()
        self.cutoff_A, self.noise_A, self.radial = cutoff_A, noise_A, radial
        self.element = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, elements.VALUES.shape[0]))
        self.source, self.centre = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.distance = radial_linear(radial, width)
        self.push = nn.Linear(width, 1, bias=False)

    def forward(
        self,
        atoms: Float[Tensor, "atoms width"],
        made: Corrupted,
        informed: Float[Tensor, "atoms width"] | None = None,
    ) -> Float[Tensor, " crystals"]:
        """Loss of each crystal: mean cross-entropy of its hidden atoms, and mean squared error of its displacements.

        The errors of displacement are in units of the noise, a mean over directions. A crystal without hidden atoms has
        no cross-entropy. Elements are told from `informed`, if there are such features, else from `atoms`.
        """
        seen = atoms if informed is None else informed
        wrong = F.cross_entropy(self.element(seen), made.z, reduction="none") * made.hidden
        hidden = pool(torch.stack([wrong, made.hidden.to(wrong)], 1), made.batch)
        neighbour, vec = table(made.batch)
        d = vec.norm(dim=-1)
        weight = envelope(d / made.batch.edge_cutoff[:, None])[..., None]
        radial = self.distance(gaussians(d, cutoff_A=self.cutoff_A, count=self.radial))
        push = self.push(F.silu(gather(self.source(atoms), neighbour) + self.centre(atoms)[:, None] + radial))
        found = (push * weight * vec / d.clamp(min=1e-3)[..., None]).sum(1)
        error = ((found - made.displacement / self.noise_A) ** 2).mean(1, keepdim=True)
        return hidden[:, 0] / hidden[:, 1].clamp(min=1e-9) + pool(error, made.batch)[:, 0]


def build(cfg: Pretrain, *, initialise: bool = True) -> AlignModel:
    """The model of a config, its random weights drawn from `cfg.seed` alone.

    With `initialise` False, for weights that will be loaded into it, `cfg.image_weights` is not read.

    Raises:
        ValueError: an unknown modality; fewer than two, unless it is the crystal with an auxiliary objective; or such
            an objective without the crystal.
    """
    names = cfg.modalities.split()
    alone = names == [CRYSTAL] and cfg.auxiliary_weight > 0
    if (len(names) < 2 and not alone) or len(set(names)) < len(names):
        raise ValueError(
            f"modalities must name two or more of {', '.join(registry.names())}, each once; got {cfg.modalities!r}"
        )
    if cfg.auxiliary_weight > 0 and CRYSTAL not in names:
        raise ValueError(f"auxiliary_weight {cfg.auxiliary_weight:g} needs the modality {CRYSTAL}, got {names}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        built = {name: registry.build(name, cfg, initialise=initialise) for name in names}
        return assemble(cfg, built)


def assemble(cfg: Pretrain, towers: Mapping[str, nn.Module]) -> AlignModel:
    """The model of a config on given towers; the weights of heads and denoiser are random."""
    denoiser = None
    if cfg.auxiliary_weight > 0:
        denoiser = Denoiser(towers[CRYSTAL].dim, cutoff_A=cfg.cutoff_A, noise_A=cfg.noise_A)
    return AlignModel(towers, embed_dim=cfg.embed_dim, temperature=cfg.temperature, denoiser=denoiser)


def part(cfg: Pretrain, modalities: Iterable[str]) -> AlignModel:
    """Some towers of a config with their heads, without the denoiser: a model into which trained weights are loaded."""
    built = {name: registry.build(name, cfg, initialise=False) for name in modalities}
    return assemble(dataclasses.replace(cfg, auxiliary_weight=0), built)


def save(model: AlignModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write `<modality>.safetensors` for each tower, and `heads.safetensors`; floating-point numbers as `dtype`."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.weights().items():
        part, _, rest = name.partition(".")
        modality = rest.partition(".")[0] if part == "towers" else "heads"
        kept = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        groups.setdefault(modality, {})[name] = tensor.detach().to("cpu", kept).contiguous()
    for modality, tensors in groups.items():
        save_file(tensors, folder / f"{modality}.safetensors")


def load(model: AlignModel, folder: Path) -> None:
    """Read into `model`, in its precision, what `save` wrote of its parts; ValueError: a damaged file, or another's."""
    files = [folder / f"{name}.safetensors" for name in (*model.modalities, "heads")]
    saved = {name: tensor for file in files if file.exists() for name, tensor in cache.tensors(file).items()}
    mine = ("log_temperature", "towers.", *(f"heads.{name}." for name in model.modalities))
    mine += ("denoiser.",) if model.denoiser else ()
    try:
        model.load_weights({name: tensor for name, tensor in saved.items() if name.startswith(mine)})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
