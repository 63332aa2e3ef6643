"""One tower per modality; a new modality is one new file here and one line below.

A tower has `dim`, and its forward returns the pooled features (n, dim) and a dict of named intermediates.
"""

from torch import nn

from matalign.config import Pretrain
from matalign.encoders.crystal import CGConvTower, CrystalTower
from matalign.encoders.image import ImageTower
from matalign.encoders.text import TextTower

NAMES = ("crystal", "text", "image")


def build(name: str, cfg: Pretrain, *, initialise: bool = True) -> nn.Module:
    """The tower of a modality.

    Args:
        name: crystal, text or image.
        cfg: its parameters.
        initialise: read `cfg.image_weights`; False for a tower into which trained weights will be loaded.

    Raises:
        ValueError: an unknown modality or crystal tower.
    """
    if name == "crystal" and cfg.crystal_tower == "ild":
        return CrystalTower(width=cfg.width, layers=cfg.layers, order=cfg.order, cutoff_A=cfg.cutoff_A)
    if name == "crystal" and cfg.crystal_tower == "cgconv":
        return CGConvTower(width=cfg.width, layers=cfg.layers, cutoff_A=cfg.cutoff_A)
    if name == "crystal":
        raise ValueError(f"crystal_tower must be ild or cgconv, got {cfg.crystal_tower!r}")
    if name == "text":
        return TextTower(cfg.text_model, unfreeze_layers=cfg.unfreeze_layers)
    if name == "image":
        return ImageTower(weights=cfg.image_weights if initialise else "", frozen_statistics=bool(cfg.image_weights))
    raise ValueError(f"no modality {name!r}; one of {', '.join(NAMES)}")
