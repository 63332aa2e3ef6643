"""A curated set larger than a training process may hold: memory of each process, and seconds, of the real commands.

    cd tests && python -m benchmarks.large --profile laptop

The crystals are those of the profile, repeated and each displaced a little, with tables of their own; the protocols are
the profile's. A rank of pretraining (`pretrain.train`, crystals and texts, the profile's batch) takes some steps, then
`matalign embed` makes a file of vectors for each shard of the same set. Memory is what the system cannot take back
(resident less shared), at most, of each process that works; pages of mapped files, which it can, stand apart.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
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
from matalign.data.structures import Sharded
from matalign.pipeline import provenance, run
from matalign.pretrain import batches

SIZES, STEPS, NAME, MANY = (21_764, 1_000_000), 200, "large", 10**8


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="sample", help="whose curated set, and whose released model")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of crystals")
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2), help="processes that train; as many embed")
    parser.add_argument("--folder", type=Path, default=paths.SCRATCH / "bench" / NAME)
    args = parser.parse_args()
    made = {"profile": args.profile, "machine": provenance.machine(), "git": provenance.commit(), "steps": STEPS}
    rows = []
    for size in args.sizes:
        target = write(args.folder, args.profile, size)
        if size > dataset.SHARD:
            rows += reading(target, config.load("pretrain", args.profile).batch_size)
        for ranks in args.ranks:
            rows.append(training(args.folder, args.profile, size, ranks))
            print(rows[-1], flush=True)
        rows.append(embedding(args.folder, args.profile, size, max(args.ranks)))
        cache.write_json(FOLDER / f"{NAME}.json", made | {"rows": rows})
        table(rows).to_csv(FOLDER / f"{NAME}.csv", index=False)


def write(folder: Path, profile: str, size: int) -> Path:
    """A project with the curated set `large`; the folder of the set."""
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
    return target


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each command: memory of the process that holds most, time of all, and what embedding scales to."""
    lines = []
    for row in [row for row in rows if row["what"] != "reading"]:
        most = max(row["processes"], key=lambda process: process["GiB"])
        used = sum(process["processor_s"] for process in row["processes"])
        hours = used / row["crystals"] * MANY / 3600
        line = {
            "what": row["what"] + f", {STEPS} steps" * (row["what"] == "training"),
            "crystals": f"{row['crystals']:,}",
        }
        line |= {"processes": str(row["ranks"]), "GiB in one": f"{most['GiB']:.2f}"}
        line |= {"of mapped files": f"{most['file_GiB']:.2f}", "processor s": f"{used:,.0f}"}
        lines.append(
            line
            | {
                "processor h for 100 M": f"{hours:,.0f}"
                if row["what"] == "embedding" and row["crystals"] > dataset.SHARD
                else ""
            }
        )
    return pd.DataFrame(lines)


def environment(folder: Path) -> dict[str, str]:
    """Of the commands: one thread each, in the project."""
    return {**run.ENVIRONMENT, **os.environ, "MATALIGN_ROOT": str(folder), "OMP_NUM_THREADS": "1"}


def training(folder: Path, profile: str, size: int, ranks: int) -> dict[str, Any]:
    """Some steps on so many ranks; `start_s` is all before the first."""
    about = folder / f"run-{size}-{ranks}"
    shutil.rmtree(about, ignore_errors=True)
    about.mkdir()
    cfg = dataclasses.replace(config.load("pretrain", profile), profile=NAME, modalities="crystal text")
    cache.write_json(about / "pretrain.json", dataclasses.asdict(cfg))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] * (ranks > 1)
    command = [*torchrun, "-m", "matalign.pretrain.train", "--config", about / "pretrain.json", "--max-steps", STEPS]
    row = {"what": "training", "crystals": size, "ranks": ranks, **watched(command, environment(folder))}
    times = pd.read_json(about / "times.jsonl", lines=True)
    steps = times[times.what == "step"]
    row |= {"start_s": row["seconds"] - float(times.seconds[1:].sum())}
    return row | {"step_s": float(steps.seconds.median()), "waited_s": float(steps.waited_s.median())}


def embedding(folder: Path, profile: str, size: int, processes: int) -> dict[str, Any]:
    """`matalign embed` of the set."""
    ask = ["embed", folder / "data" / "curated" / NAME, "--out", folder / f"vectors-{size}"]
    ask += ["--model", paths.results(profile) / "model", "--workers", processes]
    found = watched(["-m", "matalign.release.cli", *ask], environment(folder))
    return {"what": "embedding", "crystals": size, "ranks": processes, **found}


def reading(folder: Path, batch: int) -> list[dict[str, Any]]:
    """Batches from files that are not in memory, some in random order, then all of mixed blocks: MB and ms of each."""
    files, rng, rows = dataset.shards(folder), np.random.default_rng(0), []
    size = len(dataset.read(folder).structures)
    block = rng.permutation(-(-size // batches.BLOCK))[: batches.TOGETHER]
    near = (block[:, None] * batches.BLOCK + np.arange(batches.BLOCK)).ravel()
    for order, among in {"random": np.arange(size), "by block": near[near < size]}.items():
        for file in files:
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        structures, before = Sharded([dataset.mapped(file) for file in files]), resident(files)
        start = time.perf_counter()
        shown = rng.permutation(among)[: size // 1000 if order == "random" else None]
        for at in range(0, len(shown), batch):
            structures.take(shown[at : at + batch])
        ms, read = (time.perf_counter() - start) * 1e3, resident(files) - before
        each = batch / len(shown)
        rows.append({"what": "reading", "order": order, "crystals": size, "ms": ms * each, "MB": read / 1e6 * each})
    return rows


def resident(files: list[Path]) -> int:
    """Bytes of files that are in memory."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)]
    return sum(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def watched(command: list[Any], env: dict[str, str]) -> dict[str, Any]:
    """Seconds of a command, and of each of its processes the GiB at most and the processor's seconds."""
    start, most = time.perf_counter(), {}
    with subprocess.Popen([sys.executable, *map(str, command)], env=env) as process:
        while process.poll() is None:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it has ended
                    memory, used = each.memory_info(), each.cpu_times()
                    row = most.setdefault(each.pid, dict.fromkeys(("GiB", "file_GiB"), 0))
                    row["GiB"] = max(row["GiB"], (memory.rss - memory.shared) / 2**30)
                    row["file_GiB"] = max(row["file_GiB"], memory.shared / 2**30)
                    row["processor_s"] = used.user + used.system
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "processes": [row for row in most.values() if row["processor_s"] > 1],
    }


if __name__ == "__main__":
    main()
