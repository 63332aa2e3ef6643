"""Contrastive pretraining on one process or several: `launch(cfg)`, or by hand

    python -m torch.distributed.run --standalone --nproc-per-node 1 -m matalign.train --config pretrain.json

The ranks share each global batch; every rank gathers all embeddings and computes the whole loss. Gradients are averaged
in one flat reduction, not by DistributedDataParallel, because a rank may hold no row of a modality.

All state lives in a scratch folder: `state.safetensors` (weights, optimiser, position), `best.safetensors`,
`log.jsonl`, at the end `model/`, which `launch` copies to `results/<profile>/model`. On one CPU process a killed and
resumed run ends with the same bytes.
"""

import argparse
import codecs
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from matalign import align, checkpoints, config, dataset, imaging, losses, paths, scratch
from matalign.checkpoints import Progress
from matalign.config import Pretrain
from matalign.examples import VALIDATION, Examples, Views, rank, world

DRY_RUN_STEPS = 2
LAUNCHER = (  # torchrun, ending with the process that started it
    "import sys; from matalign import scratch; scratch.die_with_parent(int(sys.argv.pop(1))); "
    "from torch.distributed.run import main; main()"
)


def train_step(examples: Examples, views: Views, optimizer: torch.optim.Optimizer) -> float:
    """One step on a global batch.

    Returns:
        The loss before the step.

    Raises:
        FloatingPointError: loss or gradient is not finite; the message names the materials, the weights are as before.
    """
    model = examples.model
    batch = examples.embed(views)
    loss = losses.LOSSES[examples.cfg.loss](**batch, log_temperature=model.log_temperature)
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Zero, not None, for a modality that the batch lacks: else the number of ranks would tell whether Adam skips it.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if world() > 1:
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        grads = [g.view_as(p) for g, p in zip((flat / world()).split([p.numel() for p in parameters]), parameters)]
    if not math.isfinite(loss.item()) or not torch.nn.utils.get_total_norm(grads).isfinite():
        ids = ", ".join(examples.curated.materials.mp_id.to_numpy()[views.rows])
        raise FloatingPointError(f"loss {loss.item()} or its gradient is not finite; the batch holds {ids}")
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    optimizer.step()
    losses.clamp_temperature(model.log_temperature)
    return loss.item()


@torch.no_grad()
def validate(examples: Examples, *, batches: int | None = None) -> dict[str, Any]:
    """Loss, and Recall@1 within the global batch, of the validation materials.

    Returns:
        `loss_val`, mean over the materials; `recall_val`: one row per pair of modalities {query, target, value,
        n_queries, n_gallery (mean)}.
    """
    cfg, model = examples.cfg, examples.model
    model.eval()
    views = examples.views("val", VALIDATION)[: batches and batches * cfg.batch_size]
    total, counts = 0.0, []
    for start in range(0, len(views), cfg.batch_size):
        part = views[start : start + cfg.batch_size]
        batch = examples.embed(part)
        total += losses.LOSSES[cfg.loss](**batch, log_temperature=model.log_temperature).item() * len(part)
        counts.append(losses.recall_at_1(**batch))
    model.train()
    if not math.isfinite(total):
        raise FloatingPointError(f"the validation loss is {total}")
    sums = {pair: [sum(c[pair][i] for c in counts) for i in range(3)] for pair in counts[0]}
    recall = [
        {"query": m, "target": n, "value": hits / queries, "n_queries": queries, "n_gallery": gallery / queries}
        for (m, n), (hits, queries, gallery) in sums.items()
        if queries
    ]
    return {"loss_val": total / len(views), "recall_val": recall}


def fit(cfg: Pretrain, folder: Path, *, max_steps: int = 0) -> Path:
    """Train on this rank, from where `folder` stands; the caller holds the folder and has set up the process group.

    Args:
        cfg: parameters.
        folder: scratch folder of this run.
        max_steps: stop after so many steps, and validate on one batch; 0: train in full.

    Returns:
        The finished model's folder.
    """
    if (folder / "model").exists():
        return folder / "model"
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    curated = dataset.read(paths.curated(cfg.profile))
    model = align.build(cfg).to(device).train()
    examples = Examples(cfg, curated, model, device)
    decay, plain = (
        [p for p in model.parameters() if p.requires_grad and (p.ndim > 1) is many] for many in (True, False)
    )
    groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    examples.inputs  # noqa: B018, here and not in the first step, as the ranks wait for one another
    state, best, log = folder / "state.safetensors", folder / "best.safetensors", folder / "log.jsonl"
    at = checkpoints.restore(state, model, optimizer) if state.exists() else Progress()
    if rank() == 0:
        log.touch()
        os.truncate(log, at.log_bytes)

    def record(**line: Any) -> None:
        if rank() == 0:
            with open(log, "a") as file:
                file.write(json.dumps(line) + "\n")
                at.log_bytes = file.tell()

    while at.epoch < cfg.epochs and at.epoch - at.best_epoch < cfg.patience and not 0 < max_steps <= at.steps:
        views = examples.views("train", at.epoch)
        n_steps = -(-len(views) // cfg.batch_size)
        title = f"epoch {at.epoch + 1}/{cfg.epochs}"
        with tqdm(total=n_steps, initial=at.step, desc=title, unit="step", mininterval=1, disable=rank() > 0) as bar:
            while at.step < n_steps and not 0 < max_steps <= at.steps:
                part = views[at.step * cfg.batch_size : (at.step + 1) * cfg.batch_size]
                # All draws are keyed; this covers whatever a tower may draw by itself.
                torch.manual_seed(imaging.view_seed(cfg.seed, at.epoch, "step", at.step))
                loss = train_step(examples, part, optimizer)
                at.step, at.steps, at.loss_sum = at.step + 1, at.steps + 1, at.loss_sum + loss
                record(epoch=at.epoch + 1, step=at.steps, loss=loss, temperature=model.temperature, rows=len(part))
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if cfg.checkpoint_steps and at.steps % cfg.checkpoint_steps == 0:
                    checkpoints.save(state, model, at, optimizer)
        result = validate(examples, batches=1 if max_steps else None)
        at.epoch += 1
        at.history.append(
            {"epoch": at.epoch, "loss_train": at.loss_sum / at.step, **result, "temperature": model.temperature}
        )
        at.step, at.loss_sum = 0, 0.0
        record(**at.history[-1])
        if result["loss_val"] < at.best:
            at.best, at.best_epoch = result["loss_val"], at.epoch
            checkpoints.save(best, model, at)
        checkpoints.save(state, model, at, optimizer)
    if rank() == 0:
        checkpoints.restore(best, model)
        checkpoints.export(examples, at, folder)
        state.unlink()
        best.unlink()
    return folder / "model"


def metrics(folder: Path) -> dict[str, Any]:
    """What results/<profile>/metrics/pretrain.json holds, from a finished model's folder.

    Returns:
        Contents of its `config.json`, rearranged, and `steps`: {step, epoch, loss, temperature, rows} of each step.
    """
    about = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    cfg = about.pop("pretrain")
    head = {"stage": "pretrain", "profile": cfg["profile"], "synthetic": about.pop("synthetic"), "seed": cfg["seed"]}
    made_of = {"modalities": cfg["modalities"], "loss": cfg["loss"], "text_model": cfg["text_model"]}
    return {**head, **made_of, **about, "steps": [line for line in lines if "step" in line]}


def launch(cfg: Pretrain, *, dry_run_ranks: int = 0) -> Path:
    """Train in subprocesses, so that this process never touches a GPU; a run finished earlier is not done again.

    Args:
        cfg: parameters; `results/<profile>/model` is where the model goes.
        dry_run_ranks: instead, two steps on so many CPU processes: a run of several ranks where there are no GPUs.

    Returns:
        The model's folder; of a dry run, one in scratch.

    Raises:
        ValueError: `cfg.gpus` asks for more GPUs than there are.
        RuntimeError: training failed; the message is the traceback of the rank that failed first.
    """
    curated = dataset.read(paths.curated(cfg.profile))
    ranks = dry_run_ranks or rank_count(cfg.gpus)
    key = {k: v for k, v in dataclasses.asdict(cfg).items() if k != "profile"}
    key |= {"ranks": ranks, "data": curated.digest, "code": scratch.code_digest("train")}
    folder = scratch.folder("dry-run" if dry_run_ranks else "pretrain", key)
    if dry_run_ranks:
        shutil.rmtree(folder)
        folder.mkdir()
    fresh = not (folder / "seconds.json").exists()
    if fresh:
        start = time.monotonic()
        scratch.write_json(folder / "pretrain.json", dataclasses.asdict(cfg))
        _torchrun(cfg, folder, ranks=ranks, dry_run=bool(dry_run_ranks))
        scratch.write_json(folder / "seconds.json", time.monotonic() - start)
    if dry_run_ranks:
        return folder / "model"
    scratch.note("pretrain", "computed" if fresh else "loaded", json.loads((folder / "seconds.json").read_text()))
    target = paths.results(cfg.profile) / "model"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".model.{os.getpid()}")
    shutil.copytree(folder / "model", temporary)
    about = json.loads((temporary / "config.json").read_text())
    about["pretrain"]["profile"] = cfg.profile  # profiles of one content share a run
    scratch.write_json(temporary / "config.json", about)
    shutil.rmtree(target, ignore_errors=True)
    return temporary.rename(target)


def rank_count(gpus: str) -> int:
    """How many processes `gpus` means on this machine."""
    here = torch.cuda.device_count()  # asks the driver, without making a context
    if gpus == "auto":
        return max(here, 1)
    if not gpus.isdigit() or not 1 <= int(gpus) <= here:
        raise ValueError(
            f"gpus must be 'auto' or 1 to the number of GPUs, got {gpus!r} on a machine with {here}; "
            "launch(cfg, dry_run_ranks=4) tries four ranks on the CPU"
        )
    return int(gpus)


def _torchrun(cfg: Pretrain, folder: Path, *, ranks: int, dry_run: bool) -> None:
    on_cpu = dry_run or not torch.cuda.device_count()
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, cfg.threads // ranks) if on_cpu else cfg.threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS is repeatable with it
        "MATALIGN_ROOT": str(paths.ROOT),
        "MATALIGN_SCRATCH": str(paths.SCRATCH),
        **({"CUDA_VISIBLE_DEVICES": ""} if dry_run else {}),
    }
    command = [sys.executable, "-c", LAUNCHER, str(os.getpid()), "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "matalign.train", "--config", str(folder / "pretrain.json")]
    command += ["--max-steps", str(DRY_RUN_STEPS if dry_run else 0)]
    for old in folder.glob("error-*.txt"):
        old.unlink()
    text, tail = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while chunk := os.read(process.stdout.fileno(), 1 << 14):
            said = text.decode(chunk)
            tail = (tail + said)[-10_000:]
            sys.stderr.write(said)
            sys.stderr.flush()
        process.wait()
    finally:
        process.kill()  # does nothing to a process that has ended; its ranks die with it
        process.wait()
        process.stdout.close()
    if process.returncode:
        errors = sorted(folder.glob("error-*.txt"), key=lambda file: file.stat().st_mtime_ns)
        why = errors[0].read_text() if errors else tail
        raise RuntimeError(f"training ended with exit code {process.returncode}; its state is in {folder}\n{why}")


def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(prog="matalign.train", description="One rank of contrastive pretraining.")
    parser.add_argument("--config", type=Path, required=True, help="JSON with the stage's fields; state goes beside it")
    parser.add_argument("--max-steps", type=int, default=0, help="stop after so many steps; 0: train in full")
    args = parser.parse_args()
    folder = args.config.parent
    scratch.die_with_parent()
    try:
        cfg = config.build(Pretrain, json.loads(args.config.read_text()), where=str(args.config))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cfg.threads)))
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if world() > 1:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        with scratch.held(folder) if rank() == 0 else nullcontext():
            fit(cfg, folder, max_steps=args.max_steps)
        if dist.is_initialized():
            dist.destroy_process_group()
    except Exception:
        (folder / f"error-{rank()}.txt").write_text(traceback.format_exc())
        raise


if __name__ == "__main__":
    main()
