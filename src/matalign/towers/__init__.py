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
                                        `curated.extra(<name>)`; ValueError where a crystal has none. Parameters
                                        after these are numbers that the source gives of the cell, by their names in
                                        `sources.OTHERS`: floats, NaN where it gives none

Modules are loaded by their names when they are asked for, so none is imported that is not used.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from matalign.config import Pretrain

if TYPE_CHECKING:
    from torch import nn

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The modalities there are, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file != Path(__file__))


def load(name: str) -> ModuleType:
    """The module of a modality. Raises ValueError: there is none of that name."""
    return importlib.import_module(f"{__name__}.{_file(name).stem}")


def needs_curation(name: str) -> bool:
    """Whether a modality has a function `curate`, by its source: importing all takes seconds; raises as `load`."""
    return bool(re.search(r"^def curate\(", _file(name).read_text(), flags=re.M))


def makers(names: Iterable[str]) -> dict[str, Callable]:
    """Modality -> its `curate`, of those that have one: what `data.curate.run` is given; raises as `load`."""
    return {name: load(name).curate for name in names if needs_curation(name)}


def build(name: str, cfg: Pretrain, *, initialise: bool = True) -> "nn.Module":
    """The tower of a modality; see `load`."""
    return load(name).build(cfg, initialise=initialise)


def _file(name: str) -> Path:
    if name not in names():
        raise ValueError(f"no modality {name!r}; one of {', '.join(names())}")
    return FOLDER / f"{name}.py"
