"""The training loop of every task: a model, the loss of a step, a schedule; the weights best on validation are kept.

What is drawn at random is the caller's: `loss` is given the number of the step, from 0, and draws what it shows. Where
the batches of an epoch are drawn together, `Epochs` does it. A fit with a `Checkpoint` that is killed and started
again ends with the same weights.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from matalign.pretrain.checkpoint import load, save

CYCLE_START = 0.2  # share of the steps in which the learning rate of `one_cycle` rises
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Checkpoint:
    """Where a killed fit goes on."""

    file: Path  # a `.pt`; deleted when the fit is finished
    every: int  # steps from one to the next; whole epochs, where `Epochs` draws the batches
    rng: np.random.Generator | None = None  # that `loss` draws from, if it keeps one


class Epochs(Generic[Batch]):
    """The batch of a step, of those that `draw` gives together when an epoch begins, always as many."""

    def __init__(self, draw: Callable[[], Sequence[Batch]], length: int) -> None:
        self.draw, self.length = draw, length
        self.batches: Sequence[Batch] = ()

    def __call__(self, step: int) -> Batch:
        """The batch of a step; steps are asked for in their order, from the first of an epoch."""
        if step % self.length == 0:
            self.batches = self.draw()
        return self.batches[step % self.length]


def train(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    optimizer: Optimizer,
    schedule: LRScheduler,
    max_norm: float = math.inf,
    after_step: Callable[[], None] = lambda: None,
    validate: Callable[[], float] | None = None,
    checks: Collection[int] = (),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> float:
    """Train a model in place; where it is validated, to the weights that are best on validation.

    Args:
        loss: step -> its loss, with a graph.
        schedule: of `optimizer`, stepped after each step.
        validate: a score, lower is better; leaves the model in training mode.
        checks: numbers of steps after which to validate; none: the last weights are kept.
        checkpoint: where to go on from; None: from the start.
        progress: called with the number of steps done since the last call (first those of an earlier run).

    Returns:
        The best score on validation; infinite where there is none.
    """
    done, best, kept = 0, math.inf, weights(model) if checks else None
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint and checkpoint.file.exists():
        state = load(checkpoint.file)
        done, best, kept = (state[name] for name in ("step", "best", "kept"))
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if checkpoint.rng:
            checkpoint.rng.bit_generator.state = state["rng"]
    progress(done)
    for step in range(done, steps):
        error = loss(step)
        optimizer.zero_grad()
        error.backward()
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        after_step()
        if step + 1 in checks and (reached := validate()) < best:
            best, kept = reached, weights(model)
        if checkpoint and (step + 1) % checkpoint.every == 0:
            _save(checkpoint, parts, step=step + 1, best=best, kept=kept)
        progress(1)
    if kept is not None:
        model.load_state_dict(kept)
    if checkpoint:
        checkpoint.file.unlink(missing_ok=True)
    return best


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state, on the CPU."""
    return {name: w.detach().cpu().clone() for name, w in model.state_dict().items()}


def _save(checkpoint: Checkpoint, parts: Mapping[str, Any], **position: Any) -> None:
    """Write where training stands."""
    rng = checkpoint.rng.bit_generator.state if checkpoint.rng else None
    save(checkpoint.file, {**position, **{name: part.state_dict() for name, part in parts.items()}, "rng": rng})


def rate(step: int, steps: int) -> float:
    """One cycle: the learning rate at a step, of its maximum; cosine up from 1/25, cosine down to nothing."""
    top = CYCLE_START * steps
    if step < top:
        return 1 - (1 - 1 / 25) * (1 + math.cos(math.pi * step / top)) / 2
    return (1 + math.cos(math.pi * (step - top) / (steps - top))) / 2


def one_cycle(optimizer: Optimizer, highest: float, steps: int, *, shares: Sequence[float] = (1.0,)) -> LRScheduler:
    """`rate` as a schedule of an optimiser of rate 1; `shares` are of the learning rate, one a group of parameters."""
    return LambdaLR(optimizer, [lambda step, share=share: highest * rate(step, steps) * share for share in shares])
