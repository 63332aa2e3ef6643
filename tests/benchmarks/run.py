"""Compare ours with its peers, side by side: `make bench`, or `make bench ONLY=search`.

    cd tests && ../.venv-bench/bin/python -m benchmarks.run [--profile laptop] [--seconds 60] [--seeds 2] [name …]

Each benchmark runs in a process of its own. What it finds goes into `results/bench/bench.json` as soon as it ends, and
table and figure are made anew; a run that was killed goes on after the last one that ended, and within `towers` after
the last training. Named benchmarks are always measured again.
"""

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime

from benchmarks import comparison
from benchmarks.comparison import Settings

from matalign import cache, paths
from matalign.pipeline import provenance
from matalign.pipeline.run import ENVIRONMENT
from matalign.report import style

NAMES = ("neighbours", "towers", "stem", "losses", "search", "energy", "compiled")
LONG = ("energy", "compiled")  # only if named
PEERS = ("faiss-cpu", "jarvis-tools", "matgl", "open_clip_torch", "pymatgen", "vesin")
PEERS += ("matscipy-neighbours", "nvalchemi-toolkit-ops", "torch-sim-atomistic")  # those that are installed
THREADS = 2
FOLDER = paths.ROOT / "results" / "bench"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--profile", default="sample", help="whose curated crystals to take")
    parser.add_argument("--seconds", type=float, default=60.0, help="that each tower trains")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each tower")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; of {', '.join(NAMES)}")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
    # memory is kept from one call to the next, ours and the peers', as in the pipeline
    os.environ |= {name: value for name, value in ENVIRONMENT.items() if name.startswith("MALLOC")}
    state = paths.SCRATCH / "bench" / "run.json"
    given = {"profile": args.profile, "seconds": args.seconds, "seeds": args.seeds, "git": provenance.commit()}
    run = json.loads(state.read_text()) if state.exists() and not args.names else {}
    if run.get("given") != given:
        run = {"given": given, "started": datetime.now(UTC).isoformat(timespec="seconds"), "ended": []}
    wanted = args.names or [name for name in NAMES if name not in LONG]
    for name in [n for n in NAMES if n in wanted and n not in run["ended"]]:
        settings = Settings(args.profile, THREADS, args.seconds, args.seeds, run["started"])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            write({name: process.submit(measure, name, settings).result()})
        run["ended"].append(name)
        if not args.names:
            state.parent.mkdir(parents=True, exist_ok=True)
            cache.write_json(state, run)
    if not args.names:
        state.unlink()
    print(comparison.table(read()).to_string(index=False))


def measure(name: str, settings: Settings) -> dict:
    """One benchmark's comparisons, and what they depend on; no host name, user or path."""
    import torch

    torch.set_num_threads(settings.threads)
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git": provenance.commit(),
        "settings": asdict(settings),
        "machine": provenance.machine(),
        "versions": provenance.versions() | {peer: installed[peer] for peer in PEERS if peer in installed},
        **importlib.import_module(f"benchmarks.{name}").measure(settings),
    }


def read() -> dict:
    """The benchmarks in `bench.json`, in their order."""
    file = FOLDER / "bench.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return {name: found[name] for name in NAMES if name in found}


def write(new: dict) -> None:
    """Put a benchmark into `bench.json`; table and figure from all that are there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = read() | new
    bench = {name: found[name] for name in NAMES if name in found}
    cache.write_json(FOLDER / "bench.json", bench)
    comparison.table(bench).to_csv(FOLDER / "bench.csv", index=False)
    style.save(comparison.figure(bench), FOLDER, "bench")


if __name__ == "__main__":
    main()
