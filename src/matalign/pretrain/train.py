"""Contrastive pretraining on one process or several: `launch.pretrain(cfg)`, or by hand

    torchrun --standalone --nproc-per-node 4 -m matalign.pretrain.train --config <folder>/pretrain.json

`launch.folder(cfg)` makes that folder, where all state lives: `state.pt` (weights, optimiser,
position), `best.pt`, `log.jsonl`, `times.jsonl`, at the end `model/`. With the folder where all nodes see it,
several nodes train one model; on node i of two, with eight ranks in all,

    torchrun --nnodes 2 --node-rank <i> --nproc-per-node 4 --rdzv-backend c10d --rdzv-id pretrain \\
        --rdzv-endpoint <node 0>:29500 -m matalign.pretrain.train --config <folder>/pretrain.json

The ranks share each global batch; every rank gathers all embeddings and computes the whole loss. Gradients are averaged
in one flat reduction, not by DistributedDataParallel, because a rank may hold no row of a modality. A batch too large
for the graph of its towers is embedded in micro-batches, twice: gradient caching (Gao et al. 2021, arXiv:2101.06983).
On one CPU process a killed and resumed run ends with the same bytes.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm

from matalign import cache, config, paths
from matalign.config import Pretrain
from matalign.data import dataset
from matalign.pretrain import align, checkpoint, losses
from matalign.pretrain.batches import VALIDATION, Examples, Part, rank, world
from matalign.pretrain.checkpoint import Progress

STATE = ("state.pt", "best.pt")  # to go on from; weights best on validation


def train_step(examples: Examples, parts: Sequence[Part], optimizer: torch.optim.Optimizer) -> float:
    """One step on a global batch, of which this rank has `parts`; gives the loss before it, auxiliary one included.

    The loss is differentiated with respect to the embeddings, and these then with respect to the weights. If there is
    more than one part, the embeddings are computed without a graph at first, and each part's again, with its graph,
    when its gradient is known: memory is that of one part. The auxiliary loss, a mean over the batch's crystals, is
    differentiated part by part.

    Raises:
        FloatingPointError: loss or gradient is not finite; the message names the materials, the weights are as before.
    """
    model, caching = examples.model, len(parts) > 1
    with torch.set_grad_enabled(not caching):
        embedded = [examples.embed(part) for part in parts]
    z = torch.cat(embedded).detach().requires_grad_()
    batch = examples.gather(z, parts)
    contrastive = examples.contrastive(batch)
    optimizer.zero_grad()
    contrastive.backward()
    weight, auxiliary = _share(examples, batch), z.new_zeros(())
    for part, out, grad in zip(parts, embedded, z.grad.split([len(part) for part in parts]), strict=True):
        out = examples.embed(part) if caching else out
        if out.requires_grad:  # else no row of the part has a modality
            out.backward(grad)
        if part.corrupted is not None:
            share = weight * examples.auxiliary(part)
            share.backward()
            auxiliary += share.detach()
    loss = contrastive.item() + _mean(auxiliary)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Zero, not None, for a modality that the batch lacks: else the number of ranks would tell whether Adam skips it.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if world() > 1:
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        grads = [g.view_as(p) for g, p in zip((flat / world()).split([p.numel() for p in parameters]), parameters)]
    if not math.isfinite(loss) or not torch.nn.utils.get_total_norm(grads).isfinite():
        shown = batch["material"][torch.stack([*batch["present"].values()]).any(0)].cpu()
        ids = ", ".join(examples.curated.materials.mp_id.to_numpy()[shown])
        raise FloatingPointError(f"loss {loss} or its gradient is not finite; the batch holds {ids}")
    for p, g in zip(parameters, grads, strict=True):
        p.grad = g
    optimizer.step()
    losses.clamp_temperature(model.log_temperature)
    return loss


def _share(examples: Examples, batch: dict[str, Any]) -> float:
    """What a crystal's auxiliary loss counts on this rank, so that the ranks' mean is weight times the batch's mean."""
    crystals = int(torch.stack([*batch["present"].values()]).any(0).sum())
    return examples.cfg.auxiliary_weight * world() / max(crystals, 1)


def _mean(x: torch.Tensor) -> float:
    """Mean over the ranks."""
    if world() > 1:
        dist.all_reduce(x)
    return x.item() / world()


@torch.no_grad()
def validate(examples: Examples, *, batches: int | None = None) -> dict[str, Any]:
    """Loss, and Recall@1 within the global batch, of the validation materials.

    Returns:
        `loss_val`, mean over the materials; `auxiliary_val`, the auxiliary loss in it; `recall_val`: one row per pair
        of modalities {query, target, value, n_queries, n_gallery (mean)}.
    """
    cfg, model = examples.cfg, examples.model
    model.eval()
    views = examples.views("val", VALIDATION)[: batches and batches * cfg.batch_size]
    total, auxiliary, counts = 0.0, 0.0, []
    for start in range(0, len(views), cfg.batch_size):
        shown = views[start : start + cfg.batch_size]
        parts = examples.parts(shown)
        batch = examples.gather(torch.cat([examples.embed(part) for part in parts]), parts)
        own = sum((examples.auxiliary(part) for part in parts), torch.zeros((), device=examples.device))
        auxiliary += _mean(own * _share(examples, batch)) * len(shown)
        total += examples.contrastive(batch).item() * len(shown)
        counts.append(losses.recall_at_1(**batch) if len(model.modalities) > 1 else {})
    model.train()
    total += auxiliary
    if not math.isfinite(total):
        raise FloatingPointError(f"the validation loss is {total}")
    sums = {pair: [sum(c[pair][i] for c in counts) for i in range(3)] for pair in counts[0]}
    recall = [
        {"query": m, "target": n, "value": hits / queries, "n_queries": queries, "n_gallery": gallery / queries}
        for (m, n), (hits, queries, gallery) in sums.items()
        if queries
    ]
    return {"loss_val": total / len(views), "auxiliary_val": auxiliary / len(views), "recall_val": recall}


def fit(cfg: Pretrain, folder: Path, *, max_steps: int = 0) -> Path:
    """Train on this rank, from where `folder` (scratch, the same for all ranks) stands, and give the model's folder.

    The caller holds the folder and has set up the process group. Arguments and errors as `optimise`.
    """
    if (folder / "model").exists():
        return folder / "model"
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    curated = dataset.read(paths.curated(cfg.profile))
    model = align.build(cfg).to(device).train()
    examples = Examples(cfg, curated, model, device)
    at = optimise(examples, folder, max_steps=max_steps)
    if rank() == 0:
        checkpoint.export(examples, at, folder)
        for state in STATE:
            (folder / state).unlink()
    return folder / "model"


def optimise(examples: Examples, folder: Path, *, max_steps: int = 0, quiet: bool = False) -> Progress:
    """Train a model to the weights that are best on validation, from where `folder` stands.

    Args:
        folder: scratch folder of this run, the same for all ranks; `STATE`, `log.jsonl` and `times.jsonl` go there.
        max_steps: stop after so many steps, and validate on one batch; 0: train in full.

    Returns:
        Where training ended; on the first rank the model has the best weights.

    Raises:
        RuntimeError: the ranks do not stand at the same step, as they do not see the same folder.
    """
    cfg, model = examples.cfg, examples.model
    optimizer = _optimizer(cfg, model)
    examples.inputs  # noqa: B018, here and not in the first step, as the ranks wait for one another
    state, best = (folder / name for name in STATE)
    at = _resumed(state, model, optimizer) if state.exists() else Progress()
    steps = losses.all_gather(torch.tensor([at.steps], device=examples.device))
    if (steps != at.steps).any():
        raise RuntimeError(f"ranks stand at steps {steps.tolist()}: {folder} is not one folder that all nodes see")
    journal = checkpoint.Journal(folder, at)
    journal.tick("start", epoch=at.epoch + 1)
    while at.epoch < cfg.epochs and at.epoch - at.best_epoch < cfg.patience and not 0 < max_steps <= at.steps:
        _epoch(examples, optimizer, at, journal, folder, max_steps=max_steps, quiet=quiet or rank() > 0)
        result = validate(examples, batches=1 if max_steps else None)
        at.epoch += 1
        loss_train = at.loss_sum / at.step
        at.history.append({"epoch": at.epoch, "loss_train": loss_train, **result, "temperature": model.temperature})
        at.step, at.loss_sum = 0, 0.0
        journal.note(**at.history[-1])
        if result["loss_val"] < at.best:
            at.best, at.best_epoch = result["loss_val"], at.epoch
            _keep(best, model, at)
        _keep(state, model, at, optimizer)
        journal.tick("validation and checkpoint", epoch=at.epoch)
    if rank() == 0:
        _resumed(best, model)
    return at


def _optimizer(cfg: Pretrain, model: align.AlignModel) -> torch.optim.Optimizer:
    """AdamW; biases, norms and the temperature do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    groups = [{"params": [p for p in trained if p.ndim > 1]}, plain]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)


def _epoch(
    examples: Examples,
    optimizer: torch.optim.Optimizer,
    at: Progress,
    journal: checkpoint.Journal,
    folder: Path,
    *,
    max_steps: int,
    quiet: bool,
) -> None:
    """What is left of an epoch's steps, or of `max_steps`."""
    cfg, model = examples.cfg, examples.model
    views, title = examples.views("train", at.epoch), f"epoch {at.epoch + 1}/{cfg.epochs}"
    n_steps = -(-len(views) // cfg.batch_size)
    with tqdm(total=n_steps, initial=at.step, desc=title, unit="step", mininterval=1, disable=quiet) as bar:
        while at.step < n_steps and not 0 < max_steps <= at.steps:
            shown = views[at.step * cfg.batch_size : (at.step + 1) * cfg.batch_size]
            waited = time.monotonic()
            parts = examples.parts(shown)
            waited = time.monotonic() - waited
            loss = train_step(examples, parts, optimizer)
            at.step, at.steps, at.loss_sum = at.step + 1, at.steps + 1, at.loss_sum + loss
            journal.note(epoch=at.epoch + 1, step=at.steps, loss=loss, temperature=model.temperature, rows=len(shown))
            journal.tick("step", epoch=at.epoch + 1, rows=len(shown), waited_s=waited)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if cfg.checkpoint_steps and at.steps % cfg.checkpoint_steps == 0:
                _keep(folder / STATE[0], model, at, optimizer)
        if not quiet:
            bar.set_postfix(loss=f"{at.loss_sum / at.step:.3f}", **checkpoint.epochs(folder)[-1])


def _keep(file: Path, model: align.AlignModel, at: Progress, optimizer: torch.optim.Optimizer | None = None) -> None:
    if rank() == 0:
        moments = {"optimizer": optimizer.state_dict()} if optimizer else {}
        checkpoint.save(file, {"model": model.weights(), **moments, "progress": dataclasses.asdict(at)})


def _resumed(file: Path, model: align.AlignModel, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    state = checkpoint.load(file)
    try:
        model.load_weights(state["model"])
        if optimizer:
            optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: a state of another version ({error}); delete it, and training starts anew") from None


@record
def main() -> None:
    """One rank."""
    parser = argparse.ArgumentParser(prog="matalign.pretrain.train", description="One rank of contrastive pretraining.")
    parser.add_argument("--config", type=Path, required=True, help="JSON with the stage's fields; state goes beside it")
    parser.add_argument("--max-steps", type=int, default=0, help="stop after so many steps; 0: train in full")
    args = parser.parse_args()
    folder = args.config.parent
    cache.die_with_parent()
    cfg = config.build(Pretrain, json.loads(args.config.read_text()), where=str(args.config))
    threads = int(os.environ.get("OMP_NUM_THREADS", cfg.threads))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    with checkpoint.on_threads(threads), cache.held(folder) if rank() == 0 else nullcontext():
        if world() > 1:
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        fit(cfg, folder, max_steps=args.max_steps)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
