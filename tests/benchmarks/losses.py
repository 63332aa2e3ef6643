"""Measure the contrastive losses on a large batch: memory beyond embeddings and their gradients, and time.

    python tests/benchmarks/losses.py

Three modalities, 256 dimensions, all present, no material twice; forward and backward, each loss in a process of its
own. Memory is the highest resident set less that before the loss and less the gradients. Where `open_clip` can be
imported, its `ClipLoss` (what two modalities cost on one process) stands beside `pairwise` on two modalities.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from matalign import losses

MODALITIES = ("crystal", "text", "image")


def clip_loss():
    """open_clip's loss class, or None where it is not installed."""
    try:
        from open_clip.loss import ClipLoss
    except ImportError:
        return None
    return ClipLoss


def batch(rows, dim, modalities):
    """Arguments of a loss: random unit vectors, all present, each material once."""
    g = torch.Generator().manual_seed(0)
    z = {m: F.normalize(torch.randn(rows, dim, generator=g), dim=1).requires_grad_() for m in MODALITIES[:modalities]}
    present = dict.fromkeys(z, torch.ones(rows, dtype=torch.bool))
    return z, present, torch.arange(rows), torch.tensor(0.07).log().requires_grad_()


def measure(name, *, rows, dim, modalities, repeats):
    """Seconds of forward and backward (median), and peak bytes, of a loss or of `ClipLoss` in this process."""
    if name == "ClipLoss":
        theirs = clip_loss()()
        loss = lambda z, present, material, log_temperature: theirs(*z.values(), torch.exp(-log_temperature))  # noqa: E731
    else:
        loss = losses.LOSSES[name]
    loss(*batch(4, dim, modalities)).backward()  # what only the first call costs
    inputs = batch(rows, dim, modalities)
    leaves = [*inputs[0].values(), inputs[-1]]
    seconds, before = [], peak()
    for _ in range(repeats):
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        loss(*inputs).backward()
        seconds.append(time.perf_counter() - start)
    gradients = sum(leaf.grad.nbytes for leaf in leaves)
    return {"seconds": statistics.median(seconds), "bytes": peak() - before - gradients}


def peak():
    """Highest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    """Print a line for each loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--losses", nargs="+", default=["pairwise"], choices=list(losses.LOSSES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a loss and its number of modalities
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        name, modalities = args.one[0], int(args.one[1])
        print(json.dumps(measure(name, rows=args.rows, dim=args.dim, modalities=modalities, repeats=args.repeats)))
        return
    runs = [(name, 3) for name in args.losses]
    runs += [("pairwise", 2), ("ClipLoss", 2)] if clip_loss() else []
    print(f"{args.rows} rows, {args.dim} dimensions, {args.threads} thread(s), median of {args.repeats}")
    for name, modalities in runs:
        command = [sys.executable, __file__, "--one", name, str(modalities), "--rows", str(args.rows)]
        command += ["--dim", str(args.dim), "--repeats", str(args.repeats), "--threads", str(args.threads)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{name:12s} {modalities} modalities  {found['seconds']:9.2f} s  {found['bytes'] / 1e9:6.2f} GB")
    if not clip_loss():
        print("open_clip is not installed here: no ClipLoss to compare with")


if __name__ == "__main__":
    main()
