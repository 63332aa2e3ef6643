"""Peak memory of training, and seconds to its first step, against the number of crystals: graphs kept, or per batch.

    cd tests && python -m benchmarks.memory --profile laptop

"Kept" is how it was for every set: all graphs are made before the first step. "Per batch" is what `views.graphs.graphs`
does for large sets. The crystals are those of the profile, repeated and each displaced a little, in one file that is
mapped, not read. Each point is a process of its own, forked, that trains the crystal tower for some steps. Its peak is
of memory that the system cannot take back (anonymous); pages of the mapped file, which it can, stand apart. What a step
costs is processor time, both ways in turn, on the same rows.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from benchmarks.scale import FOLDER
from safetensors.numpy import save_file
from torch import nn

from matalign import cache, config, paths, towers
from matalign.data import dataset
from matalign.data.structures import Structures
from matalign.pipeline import provenance
from matalign.report import style
from matalign.towers import crystal
from matalign.views import graphs

SIZES = (1_000, 10_000, 38_000, 100_000, 1_000_000)
WAYS = {"kept": 1 << 62, "per batch": 0}  # bytes of graphs that may be kept
MOST_KEPT = 100_000  # crystals: a million would need more memory than is asked for here
BATCH, STEPS, DISPLACED = 64, 12, 0.002  # of a lattice vector
COLOURS = {"kept": "#D55E00", "per batch": "#0072B2"}


def main() -> None:
    """Measure; draw the figure anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="sample", help="whose curated crystals to take")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of crystals")
    args = parser.parse_args()
    file = paths.SCRATCH / "bench" / "crystals.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    points = [(way, size) for size in args.sizes for way in WAYS if way != "kept" or size <= MOST_KEPT]
    calls = [(peak, file, args.profile, *point) for point in points]
    rows = []
    for call in [(write, file, args.profile, max(args.sizes)), (cost, file, args.profile), *calls]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
            rows.append(process.submit(*call).result())
        print(rows[-1], flush=True)
    file.unlink()
    made = {"profile": args.profile, "machine": provenance.machine(), "git": provenance.commit(), "batch": BATCH}
    made |= {"rows": rows[2:], "step": rows[1]}
    cache.write_json(FOLDER / "memory.json", made)
    style.save(figure(made["rows"]), FOLDER, "memory")


def write(file: Path, profile: str, size: int) -> None:
    """So many crystals, a profile's again and again, all atoms displaced."""
    structures, rng = dataset.mapped(paths.curated(profile) / dataset.STRUCTURES), np.random.default_rng(0)
    more = structures.take(np.arange(size) % len(structures))
    frac_coords = more.frac_coords + rng.normal(0, DISPLACED, more.frac_coords.shape)
    save_file({"numbers": more.numbers, "frac_coords": frac_coords, "lattice": more.lattice, "ptr": more.ptr}, file)


def first(file: Path, size: int) -> Structures:
    """The first crystals of a file, mapped."""
    s = dataset.mapped(file)
    atoms = s.ptr[size]
    return Structures(s.numbers[:atoms], s.frac_coords[:atoms], s.lattice[:size], s.ptr[: size + 1])


class Training:
    """The crystal tower with a head, and its steps."""

    def __init__(self, cfg: config.Pretrain) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = crystal.Regressor(towers.build("crystal", cfg), 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)

    def step(self, made: graphs.Graphs, rows: torch.Tensor) -> None:
        """One."""
        self.optimizer.zero_grad()
        self.model(made.batch(rows)).abs().mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def made(cfg: config.Pretrain, structures: Structures, way: str) -> graphs.Graphs:
    """Graphs of all structures, one way or the other."""
    return graphs.graphs(structures, cutoff_A=cfg.cutoff_A, neighbours=cfg.neighbours, kept_bytes=WAYS[way])


def peak(file: Path, profile: str, way: str, size: int) -> dict[str, Any]:
    """What training takes: GiB at most, and seconds of wall and processor to its first step."""
    cfg, structures = config.load("pretrain", profile), first(file, size)
    training, rng, most, ended = Training(cfg), np.random.default_rng(0), {"RssAnon": 0, "RssFile": 0}, Event()

    def sample() -> None:
        while not ended.wait(0.01):
            status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            most.update({name: max(kib, int(status[name].split()[0])) for name, kib in most.items()})

    sampler = Thread(target=sample)
    sampler.start()
    start = time.perf_counter(), time.process_time()
    found = made(cfg, structures, way)
    for step in range(STEPS):
        training.step(found, torch.from_numpy(rng.integers(0, size, BATCH)))
        if not step:
            seconds, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    ended.set()
    sampler.join()
    row = {"graphs": way, "crystals": size, "seconds": seconds, "processor_s": processor}
    return row | {"GiB": most["RssAnon"] / 2**20, "file_GiB": most["RssFile"] / 2**20}


def cost(file: Path, profile: str) -> dict[str, Any]:
    """Processor seconds of a step, kept and per batch, and how many times more the latter takes."""
    cfg, structures = config.load("pretrain", profile), first(file, 1000)
    both, rng, seconds = {way: made(cfg, structures, way) for way in WAYS}, np.random.default_rng(1), []
    training = {way: Training(cfg) for way in WAYS}
    for _ in range(STEPS + 2):
        rows, taken = torch.from_numpy(rng.integers(0, 1000, BATCH)), {}
        for way, found in both.items():
            start = time.process_time()
            training[way].step(found, rows)
            taken[way] = time.process_time() - start
        seconds.append(taken)
    seconds = seconds[2:]
    weights = [[p.detach() for p in t.model.parameters()] for t in training.values()]
    if not all(torch.equal(a, b) for a, b in zip(*weights, strict=True)):
        raise ValueError("graphs kept and per batch train to different weights")
    ratios = [taken["per batch"] / taken["kept"] for taken in seconds]
    return {**{way: [taken[way] for taken in seconds] for way in WAYS}, "ratios": ratios, "ratio": median(ratios)}


def figure(rows: list[dict[str, Any]]) -> style.Drawing:
    """Memory, and processor seconds to the first step, against the number of crystals."""
    style.use()
    fig = style.Drawing(figsize=(style.PAGE_IN, 2.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    for way, colour in COLOURS.items():
        points = [row for row in rows if row["graphs"] == way]
        sizes = [row["crystals"] for row in points]
        left.plot(sizes, [row["GiB"] for row in points], color=colour, marker="o", label=f"graphs {way}")
        right.plot(sizes, [row["processor_s"] for row in points], color=colour, marker="o")
    left.set(xscale="log", xlabel="crystals", ylabel="peak memory (GiB)", ylim=(0, None))
    right.set(xscale="log", yscale="log", xlabel="crystals", ylabel="processor s to the first step")
    left.legend()
    return fig


if __name__ == "__main__":
    main()
