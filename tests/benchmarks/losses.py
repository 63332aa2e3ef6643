"""The contrastive loss against open_clip's ClipLoss, forward and backward at equal batch; then on a large batch alone.

With every row present and no material twice, `pairwise` of two modalities is ClipLoss; that the two and their gradients
agree is checked first. The large batch has three modalities, and a full matrix of its logits alone would take 4 GiB.
Memory is what a call takes at most beside embeddings and gradients.
"""

import ctypes
import gc
import math
import re
import time
from pathlib import Path

import torch
from benchmarks.comparison import Settings, alternate, compare
from open_clip.loss import ClipLoss

from matalign.pretrain.losses import LOSSES

BATCHES, DIM, REPEATS = (1024, 4096, 8192), 256, 5
LARGE = 32768


def embeddings(batch: int, modalities: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random unit vectors (batch, DIM) and ln τ, all with gradients."""
    x = torch.randn(modalities, batch, DIM, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(x, dim=2).unbind(0)
    return [m.clone().requires_grad_() for m in z], torch.tensor(math.log(0.07)).requires_grad_()


def gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """The loss, and its gradients."""
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def pairwise(z: list[torch.Tensor], log_temperature: torch.Tensor) -> torch.Tensor:
    """Ours, every row present, no material twice."""
    named = {str(m): vectors for m, vectors in enumerate(z)}
    present = {m: torch.ones(len(z[0]), dtype=torch.bool) for m in named}
    return LOSSES["pairwise"](named, present, torch.arange(len(z[0])), log_temperature)


def sides(batch: int) -> dict:
    """Loss and gradients of both, as functions without arguments."""
    z, log_temperature = embeddings(batch, 2)
    leaves, clip = [*z, log_temperature], ClipLoss()
    return {
        "pairwise": lambda: gradients(pairwise(z, log_temperature), leaves),
        "open_clip ClipLoss": lambda: gradients(clip(*z, torch.exp(-log_temperature)), leaves),
    }


def resident(name: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` its peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak_MiB(side) -> float:
    """Memory that a call takes at most beside what it was given and what it returns."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = resident("VmRSS")
    returned = side()
    return resident("VmHWM") - before - sum(tensor.nbytes for tensor in returned) / 2**20


def measure(settings: Settings) -> dict:
    """Milliseconds and peak memory."""
    comparisons, differences = [], {}
    for batch in BATCHES:
        both = sides(batch)
        ours, theirs = (side() for side in both.values())
        scale = [t.abs().max() for t in theirs]
        differences[batch] = max(float((o - t).abs().max() / s) for o, t, s in zip(ours, theirs, scale, strict=True))
        if differences[batch] > 1e-4:
            raise ValueError(f"batch {batch}: loss or gradients differ by {differences[batch]:.1e} of their size")
        seconds = alternate(both, repeats=REPEATS, desc=f"losses, batch {batch}")
        memory = {name: [] for name in both}
        for _ in range(3):
            for name, side in both.items():
                memory[name].append(peak_MiB(side))
        for what, unit, values in (
            ("loss and gradients", "ms", {name: [1000 * s for s in v] for name, v in seconds.items()}),
            ("peak memory of the loss", "MiB", memory),
        ):
            pair = dict(zip(("ours", "peer"), values.items(), strict=True))
            comparisons.append(compare(f"{what}, batch {batch:,}", unit, better="less", **pair))
    z, log_temperature = embeddings(LARGE, 3)
    start = time.perf_counter()
    memory = peak_MiB(lambda: gradients(pairwise(z, log_temperature), [*z, log_temperature]))
    large = {"batch": LARGE, "modalities": 3, "peak_MiB": memory, "seconds": time.perf_counter() - start}
    return {"largest_relative_difference": differences, "large": large, "comparisons": comparisons}
