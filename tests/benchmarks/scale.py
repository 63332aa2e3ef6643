"""Speed and memory against the number of structures and the batch: the cost of a structure should be flat.

    cd tests && python -m benchmarks.scale --profile full

Timed are the crystal tower's training step, of a fit of one property, and its embedding without gradients, on a GPU if
there is one. More structures than the profile has are its own, repeated. It needs no peer, so it runs with the package
alone, on any machine; `results/bench/scale.json` keeps what each device gave, `scale.png` shows it, and `scale.csv`
says what a million and a hundred million structures would take, if all devices ran at the rate of that one.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from matalign import cache, config, paths, towers
from matalign.data import dataset
from matalign.pipeline import provenance, run
from matalign.report import style
from matalign.towers import crystal
from matalign.views import draws
from matalign.views.graphs import GraphStore

SIZES = (1_000, 4_000, 16_000, 38_000, 1_000_000)
BATCHES = (64, 256, 1024)
STEPS, SECONDS = 5, 3.0  # at least so many steps, and so long
COLOURS = ("#0072B2", "#D55E00", "#000000", "#888888")  # a batch each
FOLDER = paths.ROOT / "results" / "bench"
MANY, DEVICES = (10**6, 10**8), (4, 64)  # structures and devices that `outlook` is for
GOAL_ATOMS_PER_S = 200_000  # of a training step on one GPU of the H200's class: what is aimed at, not measured


def main() -> None:
    """Measure; draw the figure and write the table anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="sample", help="whose curated crystals to take")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of structures")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    args = parser.parse_args()
    if not torch.cuda.is_available() and not run.ENVIRONMENT.items() <= os.environ.items():  # as the stages have it
        os.execve(sys.executable, sys.orig_argv, os.environ | run.ENVIRONMENT)
    file = FOLDER / "scale.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    machine = provenance.machine()
    made = {"profile": args.profile, "machine": machine, "torch": torch.__version__, "git": provenance.commit()}
    made |= measure(args.profile, args.sizes, args.batches)
    found = json.loads(file.read_text()) if file.exists() else {}
    found |= {(machine["gpus"] or [f"{machine['cpu']}, {torch.get_num_threads()} threads"])[0]: made}
    cache.write_json(file, found)
    style.save(figure(found), FOLDER, "scale")
    outlook(found).to_csv(FOLDER / "scale.csv", index=False)


def measure(profile: str, sizes: list[int], batches: list[int]) -> dict[str, Any]:
    """What one device takes; a line is printed for each row.

    Returns:
        `rows` {what, structures, batch, structures_per_s, atoms_per_s, graphs_GiB, step_GiB, flop_per_atom}: memory of
        the graphs, and what a step adds at most; on a CPU, where nobody counts that, what it keeps for its backward
        pass; operations are those of matrix products, which torch counts. And of all
        crystals of the profile, `graphs` {structures, atoms, bytes, seconds, threads, views_seconds}: what building
        them takes, and drawing the keys of an epoch's views.
    """
    cfg, device = config.load("pretrain", profile), "cuda" if torch.cuda.is_available() else "cpu"
    curated, rows = dataset.read(paths.curated(profile)), []
    structures = curated.structures
    start = time.perf_counter()
    everything = crystal.graphs(cfg, structures)
    built = {"structures": len(structures), "atoms": len(everything.z), "bytes": size_of(everything)}
    built |= {"seconds": time.perf_counter() - start, "threads": cfg.threads}
    start = time.perf_counter()
    for name in curated.materials.mp_id:
        draws.view_seed(cfg.seed, 0, name, 0)
    built["views_seconds"] = time.perf_counter() - start
    rng = np.random.default_rng(0)
    order = rng.permutation(len(structures))
    for size in sizes:
        if size <= len(structures):
            store = crystal.graphs(cfg, structures.take(order[:size]), device)
        else:
            store = repeated(everything.to(device), -(-size // len(structures)))
        for batch in batches:
            tower = towers.build("crystal", cfg)
            model = crystal.Regressor(tower, 1).to(device)
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)

            def train(chosen: Tensor, store: GraphStore = store, model: nn.Module = model, optimizer=optimizer) -> int:
                shown = store.batch(chosen)
                optimizer.zero_grad()
                model(shown).abs().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                return len(shown.z)

            @torch.no_grad()
            def embed(chosen: Tensor, store: GraphStore = store, tower: nn.Module = tower) -> int:
                shown = store.batch(chosen)
                tower(shown)
                return len(shown.z)

            def draw(store: GraphStore = store, batch: int = batch) -> Tensor:
                return torch.from_numpy(rng.integers(0, len(store), batch))

            for what, step in {"training": train, "embedding": embed}.items():
                place = {"what": what, "structures": len(store), "batch": batch}
                memory = {"graphs_GiB": size_of(store) / 2**30, "step_GiB": added(step, draw) / 2**30}
                with FlopCounterMode(display=False) as counter:
                    atoms = step(draw())
                work = {"flop_per_atom": counter.get_total_flops() / atoms}
                rows.append(place | timed(step, draw) | memory | work)
                print("{what} {structures:,} batch {batch}: {atoms_per_s:,.0f} atoms/s".format(**rows[-1]), flush=True)
    return {"rows": rows, "graphs": built}


def size_of(store: GraphStore) -> int:
    """Bytes of its tensors."""
    return sum(tensor.nbytes for tensor in vars(store).values())


def added(step: Callable[[Tensor], Any], draw: Callable[[], Tensor]) -> int:
    """Bytes that a step adds at most to what is held already; on a CPU those that it keeps for its backward pass."""
    kept = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if torch.cuda.is_available():
        step(draw())  # the optimiser's state is there after it
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(draw())
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        step(draw())
    return sum(kept.values())


def timed(step: Callable[[Tensor], int], draw: Callable[[], Tensor]) -> dict[str, float]:
    """Structures and atoms a second, after two steps to warm up; a step gives its atoms."""
    atoms = shown = steps = 0
    start = time.perf_counter()
    while steps < STEPS + 2 or time.perf_counter() - start < SECONDS:
        if steps == 2:
            atoms, shown, start = 0, 0, finished()
        chosen = draw()
        atoms, shown, steps = atoms + step(chosen), shown + len(chosen), steps + 1
    seconds = finished() - start
    return {"structures_per_s": shown / seconds, "atoms_per_s": atoms / seconds}


def finished() -> float:
    """The time when the device has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def repeated(store: GraphStore, times: int) -> GraphStore:
    """All crystals of a store, so many times one after the other."""

    def pointers(ptr: Tensor) -> Tensor:
        shift = torch.arange(times, device=ptr.device)[:, None] * ptr[-1]
        return torch.cat([(ptr[:-1] + shift).flatten(), ptr[-1:] * times])

    flat = {name: getattr(store, name) for name in ("z", "edge_cutoff", "neighbour", "edge_vec")}
    flat = {name: tensor.repeat(times, *[1] * (tensor.dim() - 1)) for name, tensor in flat.items()}
    return GraphStore(**flat, ptr=pointers(store.ptr), edge_ptr=pointers(store.edge_ptr))


def figure(found: Mapping[str, Any]) -> style.Drawing:
    """Structures a second and memory against the number of structures; a colour a batch, a column a device."""
    style.use()
    fig = style.Drawing(figsize=(style.PAGE_IN, 3.6), layout="constrained")
    axes = fig.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for (device, made), (above, below) in zip(found.items(), axes.T, strict=True):
        places = {(row["what"], row["batch"]): [] for row in made["rows"]}
        for row in made["rows"]:
            places[row["what"], row["batch"]].append(row)
        batches = sorted({batch for _, batch in places})
        for (what, batch), rows in places.items():
            drawn = {"color": COLOURS[batches.index(batch)], "marker": "o", "ls": "-" if what == "training" else ":"}
            sizes = [row["structures"] for row in rows]
            above.plot(sizes, [row["structures_per_s"] for row in rows], label=f"{what}, batch {batch}", **drawn)
            if what == "training":
                below.plot(sizes, [row["step_GiB"] for row in rows], label=f"a step, batch {batch}", **drawn)
        graphs = {row["structures"]: row["graphs_GiB"] for row in made["rows"]}
        below.plot(list(graphs), list(graphs.values()), color="#009E73", marker="s", label="all graphs")
        above.set(xscale="log", yscale="log", title=device)
        below.set(xscale="log", yscale="log", xlabel="structures")
    axes[0, 0].set_ylabel("structures/s")
    axes[1, 0].set_ylabel("memory (GiB)")
    for ax in axes[:, -1]:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def outlook(found: Mapping[str, Any]) -> pd.DataFrame:
    """What many structures would take, printed: a row a device and need, a column for each number and devices.

    From the training step of the batch that is fastest at the most structures, taken to be as fast on each of many
    devices; all-reduce, start and waiting are left out. Graphs of so many structures are made for each batch, by the
    process that trains on it (`benchmarks.memory` measures that); each process draws all views.
    """
    lines = []
    for device, made in found.items():
        built = made["graphs"]
        atoms = built["atoms"] / built["structures"]
        building, drawing = (built["structures"] / built[name] for name in ("seconds", "views_seconds"))
        rows = [row for row in made["rows"] if row["what"] == "training"]
        most = max(row["structures"] for row in rows)
        best = max((row for row in rows if row["structures"] == most), key=lambda row: row["structures_per_s"])
        rate, aim, flop = best["structures_per_s"], GOAL_ATOMS_PER_S / atoms, best["flop_per_atom"] * atoms / 1e12
        needs = {
            f"{n / 1e6:,.0f} M on {d}": {
                f"hours an epoch, {rate:,.0f} structures/s, {rate * flop:.2g} TFLOP/s": n / d / rate / 3600,
                f"the same, if {GOAL_ATOMS_PER_S:,} atoms/s, {aim * flop:.2g} TFLOP/s": n / d / aim / 3600,
                f"hours an epoch to make graphs, its own on each, {building:,.0f}/s": n / d / building / 3600,
                f"hours to draw an epoch's views, all on each, {drawing:,.0f}/s": n / drawing / 3600,
            }
            for n in MANY
            for d in DEVICES
        }
        table = pd.DataFrame(needs).map(lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.2g}")
        lines.append(table.rename_axis("what").reset_index().assign(device=device))
    return pd.concat(lines).set_index("device").reset_index()


if __name__ == "__main__":
    main()
