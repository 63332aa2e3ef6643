"""The fits behind the tables of properties: which there are, and running them side by side.

All networks share one schedule (AdamW, one cycle, as many steps). A fit keeps the weights (of a network, by the error
of E_f where that is among its targets), the iteration or the penalty that is best on validation and then predicts the
test set once. Fits are single-threaded and run beside one another, so the number of threads changes no result; each is
kept in scratch with the weights of its network, and a training one resumes where it was killed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matalign import cache, config, paths, towers
from matalign.config import Properties
from matalign.pretrain import encode
from matalign.pretrain.checkpoint import on_threads
from matalign.tasks.fit import weights
from matalign.tasks.properties import baselines, networks
from matalign.tasks.properties.arms import NETWORKS, PROBES, Fit, groups, read
from matalign.tasks.properties.labels import standard
from matalign.tasks.properties.task import PARTS, Task, frozen, graphs, rows, task

FEWEST = 0.01  # share of the labels that `min_steps` is for
WORTH_A_PROCESS = 100_000  # crystals shown in training; below, starting processes costs more than it saves


def plan(cfg: Properties) -> list[Fit]:
    """All fits of a config, the longest first.

    Steps follow the number of labelled materials, straight in the logarithms: `steps` at all of cohort A's, `min_steps`
    at a hundredth of those or fewer.

    Raises:
        ValueError: see `task`, `groups`; or an arm that needs a modality that is not there.
    """
    t, fits = task(cfg), []
    for targets, runs in groups(cfg).items():
        for run in runs:
            place = (run.cohort, run.split, run.percent)
            labelled = sum(t.members(Fit(targets, "", *place, 0), part).sum() for part in PARTS)
            share = max(labelled / len(t.labels.dropna(how="all")) * run.percent / 100, FEWEST)
            steps = round(cfg.steps * (cfg.min_steps / cfg.steps) ** (math.log(share) / math.log(FEWEST)))
            for arm in dict.fromkeys((*(arm for arm in cfg.arms if arm not in run.without), *run.also)):
                read(arm, run.cohort, t.modalities)
                mine = steps * NETWORKS[arm].length if arm in NETWORKS else 0
                fits += [Fit(targets, arm, *place, cfg.seed + s, mine) for s in range(run.seeds)]
    return sorted(set(fits), key=lambda f: (-f.steps, *list(asdict(f).values())[:-1]))


def key(t: Task, fit: Fit) -> dict[str, Any]:
    """All that a fit depends on; the pretrained weights only where they are used."""
    out = {"fit": asdict(fit), "data": t.curated.digest, "version": config.version("properties")}
    if network := NETWORKS.get(fit.arm):
        names = ("cutoff_A", "neighbours", "width", "layers", "order", "channels")
        out |= {name: getattr(t.model.config, name) for name in names}
        out |= {name: getattr(t.cfg, name) for name in ("batch_size", "learning_rate", "weight_decay")}
        if t.cfg.compiled:
            out["compiled"] = True
        if network.weights:
            out["weights"] = encode.fingerprint(t.cfg.profile, network.weights, "crystal")
    made_of = {"weights": encode.fingerprint(t.cfg.profile, "pretrained"), "data": t.curated.digest}
    for modality in read(fit.arm, fit.cohort, t.modalities):
        out[modality] = cache.digest({"modality": modality, **made_of, "version": encode.version(modality)})
    return out


def network(t: Task, fit: Fit, pooled: Sequence[Tensor] = ()) -> nn.Module:
    """The arm's model before training, its random weights drawn from the seed alone.

    `pooled` are the features (n, dim) of each other modality, of the materials trained on. Raises FileNotFoundError:
    the arm's pretrained tower is not there.
    """
    arm, cfg = NETWORKS[fit.arm], t.model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        tower = towers.build("crystal", replace(cfg, crystal_tower=arm.tower) if arm.tower else cfg)
        tower.compiled = t.cfg.compiled
        out = arm.model(tower, len(fit.weights), *([pooled] if arm.others else []))
    if arm.weights:
        folder = paths.results(t.cfg.profile) / arm.weights
        if not (files := sorted(folder.glob("crystal*.safetensors"))):
            raise FileNotFoundError(f"no crystal tower in {folder}; a pretraining makes it")
        saved = {k.removeprefix("towers.crystal."): v for file in files for k, v in cache.tensors(file).items()}
        tower.load_state_dict(saved)
    return out.to(t.device)


def fit_or_load(cfg: Properties, fit: Fit) -> dict[str, Any]:
    """A fit's predictions, from scratch if an earlier run made them.

    Returns:
        `val` and `test` (n, targets) in the targets' units, of a class how sure it is (above one half: a metal);
        `train_rows`, `val_rows`, `test_rows`, their rows of materials. Of a network `weight.<name>`, and `mean` and
        `std` (targets,) that its standardised output is of.
    """
    t = task(cfg)
    parts, labels = rows(t, fit), t.labels[list(fit.weights)].to_numpy()

    def compute() -> dict[str, Any]:
        made = _network(t, fit, labels, parts) if fit.arm in NETWORKS else _baseline(t, fit, labels, parts)
        return made | {f"{name}_rows": r for name, r in parts.items()}

    with on_threads(1):
        return cache.memo("properties", key(t, fit), compute)


def _network(t: Task, fit: Fit, labels: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    arm, targets = NETWORKS[fit.arm], list(fit.weights)
    others = [frozen(t.cfg, modality)[arm.others] for modality in read(fit.arm, fit.cohort, t.modalities)]
    inputs = networks.Inputs(graphs(t.cfg), others, t.device)
    model, state = network(t, fit, inputs.pooled(parts["train"])), cache.folder("properties", key(t, fit)) / "state.pt"
    how = {"targets": fit.weights, "steps": fit.steps, "seed": fit.seed, "tower_rate": arm.tower_rate, "state": state}
    predicted = networks.train(model, inputs, labels, parts, schedule=t.cfg, **how)
    scale = dict(zip(("mean", "std"), standard(labels[parts["train"]], targets)))
    return predicted | scale | {f"weight.{name}": w.numpy() for name, w in weights(model).items()}


def _baseline(t: Task, fit: Fit, labels: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """An arm without a network, on the features of all materials that it sees."""
    how = {"dummy": baselines.constant, "composition": baselines.boosting}
    how = (how | dict.fromkeys(PROBES, baselines.kernel_ridge)).get(fit.arm, baselines.ridge)
    seen = [frozen(t.cfg, m)["tokens"].mean(1, dtype=np.float32) for m in read(fit.arm, fit.cohort, t.modalities)]
    if fit.arm in ("composition", "composition_probe"):
        seen.append(baselines.composition_features(t.curated.structures))
    features = np.concatenate(seen, axis=1) if seen else np.zeros((len(labels), 1))
    return baselines.each_target(how, features, list(fit.weights), labels, parts)


def fit_all(cfg: Properties, fits: Sequence[Fit]) -> dict[Fit, dict[str, Any]]:
    """What `fit_or_load` gives, up to `cfg.threads` fits at a time (one on a GPU); frozen features are made before."""
    t = task(cfg)
    pending = [fit for fit in fits if not cache.has("properties", key(t, fit))]
    for modality in sorted({m for fit in pending for m in read(fit.arm, fit.cohort, t.modalities)}):
        frozen(cfg, modality)
    short = sum(fit.steps for fit in pending) * cfg.batch_size < WORTH_A_PROCESS
    processes = 1 if t.device.type == "cuda" or short else min(cfg.threads, len(pending))
    return dict(zip(fits, cache.each(partial(fit_or_load, cfg), fits, processes=processes, title="fits")))
