"""Speed and memory against the number of structures and the batch: the cost of a structure should be flat.

    cd tests && python -m benchmarks.scale --profile full

Timed are the crystal tower's training step, of a fit of one property, and its embedding without gradients, on a GPU if
there is one. More structures than the profile has are its own, repeated. It needs no peer, so it runs with the package
alone, on any machine; `results/bench/scale.json` keeps the rows of each device, `scale.png` shows all.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from matalign import checkpoints, config, dataset, encoders, figures, paths, provenance, regression, scratch
from matalign.encoders import crystal
from matalign.graphs import GraphStore

SIZES = (1_000, 4_000, 16_000, 64_000, 1_000_000)
BATCHES = (64, 256, 1024)
STEPS, SECONDS = 5, 3.0  # at least so many steps, and so long
COLOURS = ("#0072B2", "#D55E00", "#000000", "#888888")  # a batch each
FOLDER = paths.ROOT / "results" / "bench"


def main() -> None:
    """Measure, and draw the figure anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="sample", help="whose curated crystals to take")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of structures")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    args = parser.parse_args()
    file = FOLDER / "scale.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    machine = provenance.machine()
    made = {
        "profile": args.profile,
        "machine": machine,
        "torch": torch.__version__,
        "rows": measure(args.profile, args.sizes, args.batches),
    }
    found = json.loads(file.read_text()) if file.exists() else {}
    found |= {(machine["gpus"] or [f"{machine['cpu']}, {torch.get_num_threads()} threads"])[0]: made}
    scratch.write_json(file, found)
    figures.save(figure(found), FOLDER, "scale")


def measure(profile: str, sizes: list[int], batches: list[int]) -> list[dict]:
    """Rows {what, structures, batch, structures_per_s, atoms_per_s, peak_memory_GiB}, a line printed for each.

    Memory is the GPU's, and without one the most that the process has held so far.
    """
    cfg, device = config.load("pretrain", profile), "cuda" if torch.cuda.is_available() else "cpu"
    structures, rows = dataset.read(paths.curated(profile)).structures, []
    rng = np.random.default_rng(0)
    order = rng.permutation(len(structures))
    for size in sizes:
        if size <= len(structures):
            store = crystal.graphs(cfg, structures.take(order[:size]), device)
        else:
            store = repeated(crystal.graphs(cfg, structures, device), -(-size // len(structures)))
        for batch in batches:
            tower = encoders.build("crystal", cfg)
            model = regression.Regressor(tower, 1).to(device)
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

            for what, step in {"training": train, "embedding": embed}.items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                speed = timed(step, lambda: torch.from_numpy(rng.integers(0, len(store), batch)))  # noqa: B023
                place = {"what": what, "structures": len(store), "batch": batch}
                rows.append(place | speed | {"peak_memory_GiB": checkpoints.peak_memory_GiB()})
                print("{what} {structures:,} batch {batch}: {atoms_per_s:,.0f} atoms/s".format(**rows[-1]), flush=True)
    return rows


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


def figure(found: dict) -> figures.Drawing:
    """Structures a second and memory against the number of structures; a colour a batch, a column a device."""
    figures.style()
    fig = figures.Drawing(figsize=(figures.PAGE_IN, 3.4), layout="constrained")
    axes = fig.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for (device, made), (above, below) in zip(found.items(), axes.T, strict=True):
        places = {(row["what"], row["batch"]): [] for row in made["rows"]}
        for row in made["rows"]:
            places[row["what"], row["batch"]].append(row)
        batches = sorted({batch for _, batch in places})
        for (what, batch), rows in places.items():
            style = {"color": COLOURS[batches.index(batch)], "marker": "o", "ls": "-" if what == "training" else ":"}
            for ax, name in ((above, "structures_per_s"), (below, "peak_memory_GiB")):
                ax.plot(
                    [r["structures"] for r in rows], [r[name] for r in rows], label=f"{what}, batch {batch}", **style
                )
        above.set(xscale="log", yscale="log", title=device)
        below.set(xscale="log", yscale="log", xlabel="structures")
    axes[0, 0].set_ylabel("structures/s")
    axes[1, 0].set_ylabel("peak memory (GiB)")
    axes[0, 0].legend(ncols=2)
    return fig


if __name__ == "__main__":
    main()
