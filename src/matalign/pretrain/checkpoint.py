"""Training state on disk, and the folder of a finished model.

Files appear under a temporary name and are renamed when whole.
"""

import dataclasses
import json
import math
import os
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from matalign import cache, config
from matalign.config import Pretrain
from matalign.pretrain import align
from matalign.pretrain.batches import VALIDATION, Examples, rank, world


@dataclass
class Progress:
    """Where training stands; with the weights and the optimiser, all that a resume needs."""

    epoch: int = 0  # finished
    step: int = 0  # of the epoch
    steps: int = 0  # of all epochs
    loss_sum: float = 0.0  # of the epoch's steps
    best: float = math.inf  # validation loss
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    log_bytes: int = 0  # of log.jsonl; what a killed run wrote after is cut off


def save(file: Path, state: Mapping[str, Any]) -> None:
    """Write a training state, whole or not at all: temporary name, then rename.

    Args:
        file: where to.
        state: `model`, `optimizer`, `progress`: tensors, numbers, strings, and dicts and lists of these, all that
            `load` takes. No numpy arrays.
    """
    temporary = file.with_name(f".{file.name}")  # its folder is held by this process
    torch.save(_on_cpu(dict(state)), temporary)
    temporary.rename(file)


def _on_cpu(value: Any) -> Any:
    """The same with all tensors on the CPU, so that a machine without the device can go on."""
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def load(file: Path) -> dict[str, Any]:
    """Read what `save` wrote, on the CPU; nothing but tensors and plain values is unpickled.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"{file}: no training state ({why}); delete it, and training starts anew") from None


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch and OpenMP on so many threads, deterministic algorithms only."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable with it
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def export(examples: Examples, at: Progress, folder: Path) -> None:
    """Write the finished model: weights, `config.json` with all that a reader needs to know of them, and the log.

    Weights that a GPU has trained are kept in bfloat16, in which it has multiplied them.
    """
    model, curated, towers = examples.model, examples.curated, examples.model.towers
    temporary = folder / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    align.save(model, temporary, dtype=torch.bfloat16 if examples.device.type == "cuda" else None)
    shutil.copy(folder / "log.jsonl", temporary)
    about = {
        "pretrain": dataclasses.asdict(examples.cfg),
        "data": curated.digest,
        "synthetic": curated.synthetic,
        "n_train": int((curated.splits.pretrain == "train").sum()),
        "n_val": len(examples.views("val", VALIDATION)),
        "ranks": world(),
        "parameters": model.parameter_counts(),
        "image_init": towers["image"].initialisation if "image" in towers else "",
        "text_model_hash": towers["text"].fingerprint if "text" in towers else "",
        "best_epoch": at.best_epoch,
        "history": at.history,
    }
    cache.write_json(temporary / "config.json", about)
    temporary.rename(folder / "model")


def metrics(folder: Path) -> dict[str, Any]:
    """What results/<profile>/metrics/pretrain.json holds, from a finished model's folder.

    Returns:
        Contents of its `config.json`, rearranged, and `steps`: {step, epoch, loss, temperature, rows} of each step.
    """
    about = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    cfg = config.build(Pretrain, about.pop("pretrain"), where=str(folder / "config.json"))
    head = cfg.head(synthetic=about.pop("synthetic"))
    made_of = {"modalities": cfg.modalities, "loss": cfg.loss, "text_model": cfg.text_model}
    return {**head, **made_of, **about, "steps": [line for line in lines if "step" in line]}


class Journal:
    """What training says, on the first rank: `log.jsonl`, the same in two runs, and beside it `times.jsonl`.

    A line of times is {what, epoch, rows, seconds since the line before, waited_s: of these, for the batch,
    peak_memory_GiB: of the GPU if there is one, else of the process}. Lines of steps that a resume repeats stay: their
    time was spent; the log is cut back to where the state stands.
    """

    def __init__(self, folder: Path, at: Progress) -> None:
        self.log, self.times, self.at, self.last = folder / "log.jsonl", folder / "times.jsonl", at, time.monotonic()
        if rank() == 0:
            self.log.touch()
            os.truncate(self.log, at.log_bytes)

    def note(self, **line: Any) -> None:
        """Add a line to the log."""
        if rank() == 0:
            self.at.log_bytes = _append(self.log, line)

    def tick(self, what: str, *, epoch: int, rows: int = 0, waited_s: float = 0.0) -> None:
        """Add the line of what ends now to the times."""
        now = time.monotonic()
        line = {"what": what, "epoch": epoch, "rows": rows, "seconds": round(now - self.last, 4)}
        line |= {"waited_s": round(waited_s, 4), "peak_memory_GiB": round(peak_memory_GiB(), 3)}
        self.last = now
        if rank() == 0:
            _append(self.times, line)


def _append(file: Path, line: Mapping[str, Any]) -> int:
    with open(file, "a") as stream:
        stream.write(json.dumps(line) + "\n")
        return stream.tell()


def peak_memory_GiB() -> float:
    """The most memory that this process has held at once: of its GPU if it uses one, else of the machine."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def epochs(folder: Path) -> list[dict[str, float]]:
    """What each epoch took, from `times.jsonl`.

    Returns:
        epoch; minutes, all told; materials_per_s, of its steps; waiting, the share of the steps' time that went into
        graphs and texts of the batch (images are made in the step); peak_memory_GiB so far.
    """
    lines = pd.read_json(folder / "times.jsonl", lines=True)
    whole, steps = lines.groupby("epoch"), lines[lines.rows > 0].groupby("epoch")
    took = steps.seconds.sum()
    table = pd.DataFrame(
        {
            "minutes": (whole.seconds.sum() / 60).round(2),
            "materials_per_s": (steps.rows.sum() / took).round(1),
            "waiting": (steps.waited_s.sum() / took).round(4),
            "peak_memory_GiB": whole.peak_memory_GiB.max(),
        }
    )
    return table.dropna().reset_index().to_dict("records")


def seconds(folder: Path) -> float:
    """What the whole run took."""
    return pd.read_json(folder / "times.jsonl", lines=True).seconds.sum()
