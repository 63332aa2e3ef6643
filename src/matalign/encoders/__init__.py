"""One file a modality; to switch one on is to name its file in `modalities` of params.yaml. A module here holds

    build(cfg, *, initialise=True)      the tower: a torch module with `dim`, whose forward returns the pooled features
                                        (n, dim) and a dict of named intermediates; with `initialise` False trained
                                        weights will be loaded into it, so it need not read any
    Inputs(cfg, curated, tower, device) what the tower is shown of a curated set: `has` (M,) bool, which materials have
                                        the modality, and a call (rows (n,), keys (n,)) that gives the tower's inputs
                                        for n of those; all that is random in them is drawn from the keys
    curate(numbers, frac_coords, lattice)
                                        if the modality needs a crystallography package: an array of floats, of one
                                        shape for all crystals, made where the set is curated and found as
                                        `curated.extra(<name>)`; ValueError where a crystal has none

Modules are loaded by their names when they are asked for, so none is imported that is not used.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from matalign.config import Pretrain

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """The modalities there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a modality.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in names():
        raise ValueError(f"no modality {name!r}; one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def build(name: str, cfg: Pretrain, *, initialise: bool = True) -> "nn.Module":
    """The tower of a modality; see `load`."""
    return load(name).build(cfg, initialise=initialise)
