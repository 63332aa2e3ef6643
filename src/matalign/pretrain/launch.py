"""Pretraining from a process that never touches a GPU: its ranks run in processes of their own."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from matalign import cache, config, paths
from matalign.config import Pretrain
from matalign.data import dataset
from matalign.pretrain import align, checkpoint

DRY_RUN_STEPS = 2
CONTROL = "control"  # subfolder of the model


def pretrain(cfg: Pretrain, *, dry_run_ranks: int = 0) -> Path:
    """The folder of a model trained in subprocesses; a run finished earlier, by hand on several nodes too, stands.

    Args:
        cfg: parameters; `results/<profile>/pretrained` is where the model goes, what each epoch took, to
            `results/<profile>/provenance/pretrain_epochs.json`, and the control, if `cfg.control` asks for it, to
            `pretrained/control`.
        dry_run_ranks: instead, two steps in scratch on so many CPU processes: several ranks where there are no GPUs.

    Raises:
        ValueError: `cfg.gpus` asks for more GPUs than there are.
        RuntimeError: training failed; the message is the traceback of the rank that failed first, or which was killed.
    """
    if dry_run_ranks:
        shutil.rmtree(folder(cfg, stage="dry-run"))
        run = folder(cfg, stage="dry-run")
        torchrun(cfg, run, ranks=dry_run_ranks, max_steps=DRY_RUN_STEPS, on_cpu=True)
        return run / "model"
    run, ranks = folder(cfg), rank_count(cfg.gpus)
    target = paths.results(cfg.profile) / "pretrained"
    temporary = target.with_name(".pretrained")
    with cache.held(cache.folder("pretrained", {"profile": cfg.profile})):
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        _train(cfg, run, temporary, ranks=ranks)
        if cfg.control:
            control = alone(cfg)
            _train(control, folder(control), temporary / CONTROL, ranks=ranks)
        (target.parent / "provenance").mkdir(parents=True, exist_ok=True)
        cache.write_json(target.parent / "provenance" / "pretrain_epochs.json", checkpoint.epochs(run))
        shutil.rmtree(target, ignore_errors=True)
        return temporary.rename(target)


def alone(cfg: Pretrain) -> Pretrain:
    """The control of a config: the tower with the auxiliary objective alone, shown as many crystals, to the end."""
    return dataclasses.replace(cfg, modalities=align.CRYSTAL, control=False, patience=cfg.epochs)


def _train(cfg: Pretrain, run: Path, target: Path, *, ranks: int) -> None:
    """Train in `run` what is not trained yet, and copy the model to `target`."""
    with cache.held(run):  # another process may be training the same
        fresh = not (run / "model").exists()
    if fresh:
        here = torch.cuda.device_count()  # asks the driver, without making a context
        if ranks > max(here, 1):
            raise ValueError(
                f"gpus is {cfg.gpus!r} on a machine with {here}; several nodes: see matalign.pretrain.train; "
                "launch.pretrain(cfg, dry_run_ranks=4) tries four ranks on the CPU"
            )
        torchrun(cfg, run, ranks=ranks, on_cpu=not here)
    cache.note("pretrain", "computed" if fresh else "loaded", checkpoint.seconds(run))
    shutil.copytree(run / "model", target)
    about = json.loads((target / "config.json").read_text())
    about["pretrain"]["profile"] = cfg.profile  # profiles of one content share a run
    cache.write_json(target / "config.json", about)


def folder(cfg: Pretrain, *, stage: str = "pretrain") -> Path:
    """The scratch folder of a run, with its `pretrain.json`: found by the parameters, the data and the version.

    Not on the ranks, which change nothing but rounding: a run goes on, and is found, on a machine of other GPUs.
    """
    key = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in ("profile", "control", "gpus")}
    curated, modalities = dataset.read(paths.curated(cfg.profile)), cfg.modalities.split()
    key |= {f"data_{name}": digest for name, digest in curated.extra_digests.items() if name in modalities}
    key["data"] = curated.digest
    path = cache.folder(stage, key | {"version": config.version("pretrain")})
    cache.write_json(path / "pretrain.json", dataclasses.asdict(cfg))
    return path


def rank_count(gpus: str) -> int:
    """How many processes `gpus` means: `auto`, those of this machine."""
    if gpus == "auto":
        return max(torch.cuda.device_count(), 1)
    if not gpus.isdigit() or int(gpus) < 1:
        raise ValueError(f"gpus must be 'auto' or a number of at least 1, got {gpus!r}")
    return int(gpus)


def command(run: Path, *, max_steps: int = 0) -> list[str]:
    """Arguments of Python in which it is a rank."""
    return ["-m", "matalign.pretrain.train", "--config", f"{run}/pretrain.json", "--max-steps", str(max_steps)]


def torchrun(cfg: Pretrain, run: Path, *, ranks: int, max_steps: int = 0, on_cpu: bool) -> None:
    """Train in `run` with so many ranks on this machine, which end with this process; raises as `pretrain`."""
    error = run / "error.json"  # where `record` writes what a rank dies of that needs no agent
    env = {
        "OMP_NUM_THREADS": str(max(1, cfg.threads // ranks) if on_cpu else cfg.threads),
        "MATALIGN_ROOT": str(paths.ROOT),
        "MATALIGN_SCRATCH": str(paths.SCRATCH),
        **({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {}),
        **({"TORCHELASTIC_ERROR_FILE": str(error)} if ranks == 1 else {}),
    }
    error.unlink(missing_ok=True)
    with mock.patch.dict(os.environ, env):
        if ranks > 1:
            _elastic(run, ranks=ranks, max_steps=max_steps)
        elif code := subprocess.run([sys.executable, *command(run, max_steps=max_steps)], check=False).returncode:
            why = f"rank 0 was killed: {signal.Signals(-code).name}" if code < 0 else "no message was left"
            if error.exists():
                why = json.loads(error.read_text())["message"]["extraInfo"]["py_callstack"]
            raise RuntimeError(f"training ended with exit code {code}; its state is in {run}\n{why}")


def _elastic(run: Path, *, ranks: int, max_steps: int) -> None:
    """Several ranks, under an elastic agent in this process."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": ranks, "local_addr": "localhost"}
    meeting = {"run_id": "pretrain", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    try:
        elastic_launch(LaunchConfig(**place, **meeting), sys.executable)(*command(run, max_steps=max_steps))
    except ChildFailedError as error:
        why = reason(error.failures)
        raise RuntimeError(f"training ended with exit code 1; its state is in {run}\n{why}") from None


def reason(failures: Mapping[int, Any]) -> str:
    """Which ranks were killed, and the first traceback: a killed rank leaves none, those that waited for it do."""
    killed = [
        f"rank {rank} was killed: {failure.message}"
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # by which the agent itself ends ranks
    ]
    raised = [failure for failure in failures.values() if isinstance(failure.message, Mapping)]
    first = min(raised, key=lambda failure: failure.timestamp, default=None)
    return "\n".join([*killed, *([first.message["extraInfo"]["py_callstack"]] if first else [])])
