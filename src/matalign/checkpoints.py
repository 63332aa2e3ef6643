"""Training state on disk, and the folder of a finished model.

Files appear under a temporary name and are renamed when whole. Nothing is pickled.
"""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from matalign import align, paths, scratch
from matalign.examples import VALIDATION, Examples, rank, world


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


def save(file: Path, model: align.AlignModel, at: Progress, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write weights, position and, if given, the optimiser's state: temporary name, then rename. First rank only."""
    if rank() > 0:
        return
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.weights().items()}
    if optimizer:
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": t.cpu().contiguous() for name, t in moments.items()}
    temporary = file.with_name(f".{file.name}")
    save_file(tensors, temporary, metadata={"progress": json.dumps(dataclasses.asdict(at))})
    temporary.rename(file)


def restore(file: Path, model: align.AlignModel, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Read what `checkpoint` wrote into the model and, if given, the optimiser."""
    with safe_open(file, framework="pt") as stored:
        tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        at = Progress(**json.loads(stored.metadata()["progress"]))
    model.load_weights({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    if optimizer:
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "optimizer":
                i, _, what = rest.partition(".")
                moments.setdefault(int(i), {})[what] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return at


def export(examples: Examples, at: Progress, folder: Path) -> None:
    """Write the finished model: weights, `config.json` with all that a reader needs to know of them, and the log."""
    model, curated, towers = examples.model, examples.curated, examples.model.towers
    temporary = folder / ".model"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    align.save(model, temporary)
    shutil.copy(folder / "log.jsonl", temporary)
    about = {
        "pretrain": dataclasses.asdict(examples.cfg),
        "data": curated.digest,
        "synthetic": bool((curated.materials.source == paths.SAMPLE.name).all()),
        "n_train": int((curated.splits.pretrain == "train").sum()),
        "n_val": len(examples.views("val", VALIDATION)),
        "ranks": world(),
        "parameters": model.parameter_counts(),
        "image_init": towers["image"].initialisation if "image" in towers else "",
        "text_model_hash": towers["text"].fingerprint if "text" in towers else "",
        "best_epoch": at.best_epoch,
        "history": at.history,
    }
    scratch.write_json(temporary / "config.json", about)
    temporary.rename(folder / "model")
