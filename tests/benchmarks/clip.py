"""The contrastive loss of two modalities, against open_clip's ClipLoss: forward and backward, at equal batch.

With every row present and no material twice, `pairwise` is ClipLoss; that the two and their gradients agree is checked
first.
"""

import ctypes
import gc
import math
import re
from pathlib import Path

import torch
from benchmarks.comparison import Settings, alternate, compare
from open_clip.loss import ClipLoss

from matalign.losses import LOSSES

BATCHES, DIM, REPEATS = (1024, 4096, 8192), 256, 5


def sides(batch: int) -> dict:
    """Loss and gradients of both, as functions without arguments."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2, batch, DIM, generator=generator), dim=2)
    a, b, log_temperature = x[0].requires_grad_(), x[1].requires_grad_(), torch.tensor(math.log(0.07)).requires_grad_()
    present = {"a": torch.ones(batch, dtype=torch.bool), "b": torch.ones(batch, dtype=torch.bool)}
    material, clip = torch.arange(batch), ClipLoss()

    def gradients(loss):
        return [loss.detach(), *torch.autograd.grad(loss, (a, b, log_temperature))]

    return {
        "pairwise": lambda: gradients(
            LOSSES["pairwise"](
                embeddings={"a": a, "b": b}, present=present, material=material, log_temperature=log_temperature
            )
        ),
        "open_clip ClipLoss": lambda: gradients(clip(a, b, torch.exp(-log_temperature))),
    }


def resident(name: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` its peak."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak_MiB(side) -> float:
    """Memory that a call takes at most beside what it was given."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = resident("VmRSS")
    side()
    return resident("VmHWM") - before


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
    return {"largest_relative_difference": differences, "comparisons": comparisons}
