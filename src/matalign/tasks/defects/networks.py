"""The image network of arms that are shown and told the same, and the small head that each fits to its features."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from matalign.config import Defects
from matalign.tasks import fit
from matalign.tasks.defects.hosts import DefectSet
from matalign.towers.image import ImageTower
from matalign.views.defect_images import DEFECTS

CHUNK = 125  # images embedded at once
HEAD_BATCH = 256


class Modulation(nn.Module):
    """Features (B, d) and context (B, c) -> f · (1 + γ(c)) + β(c) (FiLM; Perez et al., AAAI 2018); both start at 0."""

    def __init__(self, dim: int, context: int, *, hidden: int):
        super().__init__()
        self.read = nn.Sequential(nn.Linear(context, hidden), nn.GELU(), nn.Dropout(0.3))
        self.modulate = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Features (B, d)."""
        scale, shift = self.modulate(self.read(context)).chunk(2, dim=1)
        return features * (1 + scale) + shift


class Network(nn.Module):
    """Images (B, channels, px, px) and, where c > 0, context (B, c) -> features (B, dim)."""

    def __init__(self, tower: ImageTower, context: int):
        super().__init__()
        self.tower, self.dim = tower, tower.dim
        self.modulation = Modulation(tower.dim, context, hidden=64) if context else None

    def forward(self, images: Tensor, context: Tensor) -> Tensor:
        """Features (B, dim)."""
        seen = self.tower(images)[0]
        return seen if self.modulation is None else self.modulation(seen, context)


def fit_network(
    images: DefectSet,
    cfg: Defects,
    *,
    seed: int,
    told: np.ndarray | None = None,
    device: str = "cpu",
    state: Path | None = None,
) -> Network:
    """Train an image network: image -> class.

    Defects below the noise are left out of training: their images are those of a pristine crystal with another name.
    Each batch is turned or mirrored as a whole by one of the square's eight symmetries. AdamW, one-cycle learning rate.
    From the file `state`, written after each epoch, a killed training goes on to the same weights. `told` (N, c) is of
    zero mean and unit variance.
    """
    torch.manual_seed(seed)
    tower = ImageTower(depth=cfg.depth, channels=images.images.shape[1])
    decide = nn.Linear(tower.dim, len(DEFECTS))
    told = np.zeros((len(images.kind), 0)) if told is None else told
    net = nn.Sequential(Network(tower, told.shape[1]), decide).to(device)
    context = torch.as_tensor(told, dtype=torch.float32, device=device)
    usable = np.flatnonzero((images.kind == 0) | (images.visibility >= 1))
    pixels, kind = images.images.to(device), torch.as_tensor(images.kind, device=device)
    batches = -(-len(usable) // cfg.batch_size)
    steps = cfg.epochs * batches
    optimizer = torch.optim.AdamW(net.parameters(), lr=cfg.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.learning_rate, total_steps=steps + 1, pct_start=0.2)
    rng = np.random.default_rng(seed)
    batch = fit.Epochs(lambda: np.array_split(rng.permutation(usable), batches), batches)

    def loss(step: int) -> Tensor:
        rows = torch.as_tensor(batch(step), device=device)
        x = torch.rot90(pixels[rows].float(), int(rng.integers(4)), dims=(2, 3))
        x = x.flip(3) if rng.integers(2) else x
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device == "cuda"):
            logits = decide(net[0](x, context[rows]))
        return F.cross_entropy(logits.float(), kind[rows])

    checkpoint = fit.Checkpoint(state, every=batches, rng=rng) if state else None
    with tqdm(total=steps, desc="image network", mininterval=1) as bar:
        fit.train(
            net, loss, steps=steps, optimizer=optimizer, schedule=schedule, checkpoint=checkpoint, progress=bar.update
        )
    return net[0].eval()


@torch.no_grad()
def features(net: Network, images: Tensor, told: np.ndarray | None = None, *, device: str = "cpu") -> np.ndarray:
    """(N, dim) float32 features of (N, channels, px, px) images and (N, c) of what the network is told beside them."""
    told = np.zeros((len(images), 0)) if told is None else told
    chunks = zip(images.split(CHUNK), torch.as_tensor(told, dtype=torch.float32).split(CHUNK), strict=True)
    parts = [net(part.to(device).float(), context.to(device)).cpu() for part, context in chunks]
    return torch.cat(parts).numpy() if parts else np.zeros((0, net.dim), np.float32)


class Head(nn.Module):
    """Features (B, d) and context (B, c) -> class scores (B, 5): two layers after a `Modulation`."""

    def __init__(self, dim: int, context: int, *, hidden: int = 64):
        super().__init__()
        self.modulation = Modulation(dim, context, hidden=hidden)
        layers = (nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, len(DEFECTS)))
        self.decide = nn.Sequential(*layers)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Class scores (B, 5)."""
        return self.decide(self.modulation(features, context))


def fit_head(
    features: dict[str, np.ndarray],
    context: dict[str, np.ndarray],
    kind: dict[str, np.ndarray],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Fit one arm's head; the epoch of lowest validation loss counts (the last, without validation images).

    Given are, by split, features (N, d), context (N, c) and rows of DEFECTS (N,), the test images' unread; what comes
    out are class probabilities of the "val" (N_val, 5) and of the "test" images (N_test, 5).
    """
    torch.manual_seed(seed)
    x, c = _scaled(features, device), _scaled(context, device)
    y = {s: torch.as_tensor(kind[s], device=device) for s in ("train", "val")}
    head = Head(x["train"].shape[1], c["train"].shape[1]).to(device)
    batches = -(-len(y["train"]) // HEAD_BATCH)
    steps = epochs * batches
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    batch = fit.Epochs(lambda: torch.randperm(len(y["train"])).chunk(batches), batches)

    def loss(step: int) -> Tensor:
        rows = batch(step)
        return F.cross_entropy(head(x["train"][rows], c["train"][rows]), y["train"][rows])

    @torch.no_grad()
    def validate() -> float:
        head.eval()
        score = F.cross_entropy(head(x["val"], c["val"]), y["val"]).item()
        head.train()
        return score

    checks = range(batches, steps + 1, batches) if len(y["val"]) else ()
    fit.train(head, loss, steps=steps, optimizer=optimizer, schedule=schedule, validate=validate, checks=checks)
    head.eval()
    with torch.no_grad():
        return {s: head(x[s], c[s]).softmax(1).cpu().numpy() for s in ("val", "test")}


def _scaled(arrays: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Of each split, by mean and spread of the training images'."""
    made = {s: scaled(a, arrays["train"]) for s, a in arrays.items()}
    return {s: torch.as_tensor(a, dtype=torch.float32, device=device) for s, a in made.items()}


def scaled(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Values (n, c) by mean and spread of those of training, of which there may be others."""
    return (values - train.mean(0)) / np.maximum(train.std(0), 1e-3)
