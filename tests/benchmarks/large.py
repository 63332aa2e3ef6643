"""A curated set larger than a training process may hold: memory of each process, and seconds, of the real commands.

    cd tests && python -m benchmarks.large --profile laptop

The crystals are those of the profile, repeated and each displaced a little, with tables of their own; the protocols are
the profile's. A rank of pretraining (`pretrain.train`, crystals and texts, the profile's batch) takes some steps, then
`matalign embed` makes a file of vectors for each shard of the same set. Memory is what the system cannot take back
(anonymous), at most, of each process; pages of mapped files, which it can, stand apart.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import yaml
from benchmarks.memory import DISPLACED
from benchmarks.scale import FOLDER

from matalign import cache, config, paths
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pipeline import provenance, run

SIZES, STEPS, NAME = (21_764, 1_000_000), 200, "large"
MEMORY = {"RssAnon": "GiB", "RssFile": "file_GiB"}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="sample", help="whose curated set, and whose released model")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of crystals")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=paths.SCRATCH / "bench" / NAME)
    args = parser.parse_args()
    made = {"profile": args.profile, "machine": provenance.machine(), "git": provenance.commit(), "steps": STEPS}
    rows = []
    for size in args.sizes:
        write(args.folder, args.profile, size)
        rows += measure(args.folder, args.profile, size, args.ranks)
        print(*rows, sep="\n", flush=True)
    cache.write_json(args.folder / f"{NAME}.json", made | {"rows": rows})


def write(folder: Path, profile: str, size: int) -> None:
    """A project with the curated set `large`."""
    params = yaml.safe_load(paths.PARAMS.read_text())
    params[NAME] = {"pretrain": params.get(profile, {}).get("pretrain", {}) | {"modalities": "crystal text"}}
    target = folder / "data" / "curated" / NAME
    target.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    part = dataset.read(paths.curated(profile))
    order, rng = np.arange(size) % len(part.materials), np.random.default_rng(0)
    structures = part.structures.take(order)
    structures = dataclasses.replace(
        structures, frac_coords=structures.frac_coords + rng.normal(0, DISPLACED, structures.frac_coords.shape)
    )
    ids = pd.Series([f"c{row:09d}" for row in range(size)])
    tables = {name: getattr(part, name).iloc[order].reset_index(drop=True) for name in ("materials", "splits")}
    tables = {name: table.assign(mp_id=ids) for name, table in tables.items()}
    known = dict(zip(part.materials.mp_id, ids))
    protocols = part.protocols[part.protocols.mp_id.isin(list(known))]
    protocols = protocols.assign(mp_id=protocols.mp_id.map(known))
    dataset.write(target, Curated(structures=structures, protocols=protocols, audit={}, **tables))


def measure(folder: Path, profile: str, size: int, ranks: int) -> list[dict[str, Any]]:
    """Rows of training and of embedding."""
    env = {**run.ENVIRONMENT, **os.environ, "MATALIGN_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    about, target = folder / f"run-{size}-{ranks}", folder / "data" / "curated" / NAME
    about.mkdir(exist_ok=True)
    cfg = dataclasses.replace(config.load("pretrain", profile), profile=NAME, modalities="crystal text")
    cache.write_json(about / "pretrain.json", dataclasses.asdict(cfg))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] * (ranks > 1)
    command = [*torchrun, "-m", "matalign.pretrain.train", "--config", about / "pretrain.json", "--max-steps", STEPS]
    rows = [{"what": "training", "crystals": size, "ranks": ranks, **watched(command, env)}]
    times = pd.read_json(about / "times.jsonl", lines=True)
    steps = times[times.what == "step"]
    rows[0] |= {"start_s": rows[0]["seconds"] - float(times.seconds[1:].sum())}
    rows[0] |= {"step_s": float(steps.seconds.median()), "waited_s": float(steps.waited_s.median())}
    out = folder / f"vectors-{size}"
    ask = ["embed", dataset.shards(target)[0].parent, "--out", out, "--model", paths.results(profile) / "model"]
    found = watched(["-m", "matalign.release.cli", *ask, "--workers", ranks], env)
    return [*rows, {"what": "embedding", "crystals": size, "ranks": ranks, **found}]


def watched(command: list[Any], env: dict[str, str]) -> dict[str, Any]:
    """Seconds of a command, and GiB at most of each of its processes that takes any."""
    start, most = time.perf_counter(), {}
    with subprocess.Popen([sys.executable, *map(str, command)], env=env) as process:
        while process.poll() is None:
            for each in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
                try:
                    text = Path(f"/proc/{each}/status").read_text()
                except OSError:  # it has ended
                    continue
                status = dict(line.split(":", 1) for line in text.splitlines())
                for name, kept in MEMORY.items():
                    if name in status:
                        peaks = most.setdefault(each, {})
                        peaks[kept] = max(peaks.get(kept, 0), int(status[name].split()[0]) / 2**20)
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}")
    return {"seconds": time.perf_counter() - start, "processes": list(most.values())}


if __name__ == "__main__":
    main()
