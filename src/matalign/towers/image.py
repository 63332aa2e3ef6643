"""Image tower: ResNet (He et al., CVPR 2016) on one-channel micrographs, of 50 layers where not said otherwise.

Normalisation follows the initialisation. BatchNorm in training couples the images of a batch, so that ranks no longer
compute what one process would; it is not used. Random initialisation takes GroupNorm(32) (Wu & He, ECCV 2018); loaded
weights keep the statistics they were trained with, frozen. Three-channel filters become one-channel by summing over the
channels, which is the same as showing the grey image in all three. The stem is the standard one (stride 4 in all) at
every size: a 64-px image ends as a 2 x 2 map, a 32-px image as one cell.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from matalign import cache
from matalign.config import Pretrain
from matalign.data.dataset import Curated
from matalign.views import micrographs

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # of each stage: basic ones, bottlenecks at 50


class ImageTower(nn.Module):
    """(B, channels, H, W) standardised micrographs -> (B, dim).

    Args:
        weights: safetensors file of a torchvision state dict of that depth (ImageNet or other, one- or three-channel);
            "" for random initialisation.
        frozen_statistics: build for weights with batch statistics; None: whether `weights` is given. True without
            `weights` makes the modules into which a saved tower of that kind is loaded.
        depth: 50; or 18 or 10 (one basic block a stage), for small budgets.
        channels: 1; others with random initialisation alone.

    Raises:
        FileNotFoundError: there is no such weights file.
        ValueError: the file lacks parameters, or has others; the message names them.

    Attributes:
        dim: 2048; 512 at depths 18 and 10.
        initialisation: "random, GroupNorm(32)" or "<file name>, frozen batch statistics".
    """

    def __init__(self, *, weights: str = "", frozen_statistics: bool | None = None, depth: int = 50, channels: int = 1):
        from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # here: their import takes seconds
        from torchvision.ops import FrozenBatchNorm2d

        super().__init__()
        frozen = bool(weights) if frozen_statistics is None else frozen_statistics
        norm = FrozenBatchNorm2d if frozen else partial(nn.GroupNorm, 32)
        # A residual branch that starts at zero lets a deep net without batch statistics begin as a shallow one.
        block = Bottleneck if depth == 50 else BasicBlock
        resnet = ResNet(block, list(BLOCKS[depth]), norm_layer=norm, zero_init_residual=not frozen)
        self.depth, self.dim = depth, resnet.fc.in_features
        resnet.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.fc = nn.Identity()
        self.resnet = resnet
        self.initialisation = "frozen batch statistics" if frozen else "random, GroupNorm(32)"
        if weights:
            self._load(Path(weights))
            self.initialisation = f"{Path(weights).name}, frozen batch statistics"

    def _load(self, file: Path) -> None:
        if not file.exists():
            raise FileNotFoundError(
                f"no image weights at {file}; expected a ResNet-{self.depth} state dict (safetensors)"
            )
        saved = {key: value for key, value in cache.tensors(file).items() if not key.startswith("fc.")}
        state = {key: value for key, value in saved.items() if not key.endswith("num_batches_tracked")}
        if "conv1.weight" in state:
            state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
        missing, unexpected = self.resnet.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ValueError(
                f"{file}: not a ResNet-{self.depth} with batch statistics: {len(missing)} parameters missing "
                f"(first {missing[:1]}), {len(unexpected)} unknown (first {unexpected[:1]})"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode micrographs (B, channels, H, W).

        Returns:
            pooled: (B, dim) mean of the last feature map.
            out: "map", (B, dim, ceil(H / 32), ceil(W / 32)), the last feature map.
        """
        net = self.resnet
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))  # (B, 64, H/4, W/4)
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))  # (B, dim, H/32, W/32)
        return x.mean((2, 3)), {"map": x}


def build(cfg: Pretrain, *, initialise: bool = True) -> ImageTower:
    """A ResNet-50 with `cfg.image_weights`, or made for weights of that kind."""
    return ImageTower(weights=cfg.image_weights if initialise else "", frozen_statistics=bool(cfg.image_weights))


class Inputs:
    """Every material has images, each rendered when it is shown."""

    def __init__(self, cfg: Pretrain, curated: Curated, tower: nn.Module, device: torch.device) -> None:
        self.structures, self.device = curated.structures, device
        self.optics = micrographs.Optics(image_px=cfg.image_px, pixel_A=cfg.pixel_A)
        self.has = np.ones(len(curated.structures), bool)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Tensor:
        """(n, 1, image_px, image_px) micrographs."""
        return micrographs.render(self.structures, rows, keys, optics=self.optics, device=self.device)
