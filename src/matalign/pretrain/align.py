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

from matalign import cache
from matalign import towers as registry
from matalign.config import Pretrain
from matalign.pretrain.auxiliary import Denoiser

CRYSTAL = "crystal"  # the modality that the auxiliary objective is about


class Head(nn.Sequential):
    """Projection of a tower's pooled features (n, dim) to the shared space (n, embed_dim), before normalisation."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim))


class AlignModel(nn.Module):
    """Towers, heads and a learned temperature.

    Args:
        towers: modality -> module with `.dim` whose forward returns (pooled (n, dim), named intermediates).
        embed_dim: size of the shared space.
        temperature: its initial value.
        denoiser: heads of the auxiliary objective, if there is one (`auxiliary.Denoiser`).
    """

    def __init__(
        self,
        towers: Mapping[str, nn.Module],
        *,
        embed_dim: int,
        temperature: float,
        denoiser: nn.Module | None = None,
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
        """Load what `weights` returned.

        Raises:
            ValueError: a name is missing or unknown; the message says which.
        """
        wrong = set(weights) ^ set(self.weights())
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights are missing or unknown, first {min(wrong)!r}; another config made them"
            )
        self.load_state_dict(dict(weights), strict=False)


def build(cfg: Pretrain, *, initialise: bool = True) -> AlignModel:
    """The model of a config, its random weights drawn from `cfg.seed` alone.

    Args:
        cfg: its parameters.
        initialise: read `cfg.image_weights`; False for a model into which trained weights will be loaded.

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
    """Write `<modality>.safetensors` for each tower, and `heads.safetensors`.

    Args:
        model: whose weights.
        folder: where to.
        dtype: of the floating-point numbers on disk; None: the model's.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.weights().items():
        part, _, rest = name.partition(".")
        modality = rest.partition(".")[0] if part == "towers" else "heads"
        kept = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        groups.setdefault(modality, {})[name] = tensor.detach().to("cpu", kept).contiguous()
    for modality, tensors in groups.items():
        save_file(tensors, folder / f"{modality}.safetensors")


def load(model: AlignModel, folder: Path) -> None:
    """Read into `model`, in its precision, what `save` wrote of its parts.

    Raises:
        ValueError: a file is no safetensors, or its weights are not the model's.
    """
    files = [folder / f"{name}.safetensors" for name in (*model.modalities, "heads")]
    saved = {name: tensor for file in files if file.exists() for name, tensor in cache.tensors(file).items()}
    mine = ("log_temperature", "towers.", *(f"heads.{name}." for name in model.modalities))
    mine += ("denoiser.",) if model.denoiser else ()
    try:
        model.load_weights({name: tensor for name, tensor in saved.items() if name.startswith(mine)})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
