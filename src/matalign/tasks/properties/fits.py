"""The fits behind the tables of properties: which there are, what each sees, and running them side by side.

Arms from the structure alone. `dummy`: the median of the training labels, or the majority's class. `composition`:
gradient boosting on Magpie-like statistics of elemental properties (Ward et al., npj Comput. Mater. 2, 16028, 2016),
blind to structure. `cgconv`, `scratch`: CGConv and ILD tower from random weights. `scratch_long`: `scratch` with three
times the steps. `pretrained`: the ILD tower from contrastive pretraining, fine-tuned. `slow_tower`: the same with the
tower at three tenths of the learning rate. `auxiliary`: `pretrained` from its control, which was pretrained by the
auxiliary objective alone. `ridge`: ridge regression on the frozen pretrained tower.

Arms of fused inference, which also see a micrograph of the material, and in cohort B its protocols, through the frozen
towers. `early_fusion`: ILD tower from random weights, its pooled features beside theirs. `cross_attention`: the same,
its atoms attending to their tokens. `pretrained_fusion`: the pretrained ILD tower beside their aligned embeddings.
`text`, `image`: ridge regression on the frozen features of that modality alone.

Cohort A holds all materials with a label, cohort B those that have a protocol too; its parts are all within B.

All networks share one schedule (AdamW, one cycle, as many steps), one labelled set and one validation set; labelled
sets of one seed are nested, and validation shrinks with them. Targets of a group are fitted together, each with its
weight in the loss. A fit keeps the weights (of a network, by the error of E_f where that is among its targets), the
iteration or the penalty that is best on validation and then predicts the test set once. Fits are single-threaded and
run beside one another, so the number of threads changes no result; each is kept in scratch, and a training one resumes
where it was killed.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from matalign import cache, config, paths, towers
from matalign.config import Properties
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.data.splits import unit_hash
from matalign.pretrain import encode
from matalign.tasks import regression, workers
from matalign.tasks.fit import on_threads
from matalign.views.graphs import GraphStore


@dataclass(frozen=True)
class Network:
    """An arm that trains a crystal tower."""

    tower: str = ""  # of encoders.crystal; "": the one that was pretrained
    weights: str = ""  # folder in results/<profile> with the tower's weights; "": random ones
    model: type[nn.Module] = regression.Regressor
    others: str = ""  # what it sees of the other modalities: tokens or embeddings; "": nothing
    length: int = 1  # steps, of the schedule's
    tower_rate: float = 1.0  # learning rate of the tower, of the schedule's


NETWORKS = {
    "cgconv": Network("cgconv"),
    "scratch": Network("ild"),
    "scratch_long": Network("ild", length=3),
    "pretrained": Network(weights="pretrained"),
    "slow_tower": Network(weights="pretrained", tower_rate=0.3),
    "auxiliary": Network(weights="pretrained/control"),
    "early_fusion": Network("ild", model=regression.Fusion, others="tokens"),
    "cross_attention": Network("ild", model=regression.CrossAttention, others="tokens"),
    "pretrained_fusion": Network(weights="pretrained", model=regression.Fusion, others="embeddings"),
}
SINGLE = ("text", "image")
FUSED = tuple(name for name, network in NETWORKS.items() if network.others)
ARMS = ("dummy", "composition", "ridge", *NETWORKS, *SINGLE)
STRUCTURE_ONLY = tuple(arm for arm in ARMS if arm not in (*FUSED, *SINGLE))
COHORTS = {"A": ("image",), "B": ("image", "text")}  # and the modalities that fused arms see beside the structure
PARTS = ("train", "val", "test")
FEWEST = 0.01  # share of the labels that `min_steps` is for
IMAGES = 128  # rendered at once
WORTH_A_PROCESS = 100_000  # crystals shown in training; below, starting processes costs more than it saves
E_F = "formation_energy_eV_atom"


@dataclass(frozen=True)
class Cell:
    """One place in the table: a cohort, a split and a share of its labels."""

    cohort: str
    split: str
    percent: float
    seeds: int
    without: tuple[str, ...] = ()  # arms left out
    also: tuple[str, ...] = ()  # arms besides those of the config


@dataclass(frozen=True)
class Fit:
    """One model to fit; with the data and the version of `properties`, all that its predictions depend on."""

    targets: str  # name:weight, fitted together
    arm: str
    cohort: str
    split: str
    percent: float
    seed: int
    steps: int = 0  # of the optimiser; 0 where there is none

    @property
    def weights(self) -> dict[str, float]:
        """Target -> weight in the loss."""
        return {name: float(weight) for name, weight in (target.split(":") for target in self.targets.split())}


def groups(cfg: Properties) -> dict[str, list[Cell]]:
    """The targets that are fitted together, as in `Fit.targets`, and the cells they are fitted in.

    Groups stand in the same order in `cfg.targets` and `cfg.runs`, separated by semicolons.

    Raises:
        ValueError: a malformed target or run, a target in two groups, or as many groups in one as not in the other.
    """
    targets, runs = cfg.targets.split(";"), cfg.runs.split(";")
    if len(targets) != len(runs):
        raise ValueError(f"targets: {len(targets)} groups, but runs: {len(runs)}; both are separated by semicolons")
    out, seen = {}, set()
    for group, cells_ in zip(targets, runs):
        named = []
        for target in group.split():
            name, _, weight = target.partition(":")
            try:
                named.append(f"{name}:{float(weight or 1):g}")
            except ValueError:
                raise ValueError(f"target {target!r}: expected name or name:weight, for example is_metal:0.1") from None
            if name in seen or not float(weight or 1) > 0:
                raise ValueError(f"target {target!r}: expected once, with a weight above 0")
            seen.add(name)
        if not named:
            raise ValueError("targets: none given")
        out[" ".join(named)] = cells(cells_)
    return out


def cells(runs: str) -> list[Cell]:
    """Read `cohort:split:percent:seeds`, cohort A where none is named, separated by blanks.

    After the seeds `:-arm` for each arm left out, `:+arm` for each besides.

    Raises:
        ValueError: another form, an unknown cohort, split or arm, a share outside (0, 100].
    """
    out = []
    for run in runs.split():
        parts = run.split(":")
        cohort = parts.pop(0) if parts[0] in COHORTS else "A"
        try:
            split, percent, seeds = parts[0], float(parts[1]), int(parts[2])
        except (IndexError, ValueError):
            raise ValueError(f"run {run!r}: expected cohort:split:percent:seeds, for example A:chemsys:5:5") from None
        if split not in ("random", "chemsys") or not 0 < percent <= 100 or seeds < 1:
            raise ValueError(f"run {run!r}: split random or chemsys, 0 < percent ≤ 100, seeds ≥ 1")
        if any(part[:1] not in ("-", "+") or part[1:] not in ARMS for part in parts[3:]):
            raise ValueError(f"run {run!r}: after the seeds only :-arm or :+arm, of {', '.join(ARMS)}")
        without, also = (tuple(part[1:] for part in parts[3:] if part[0] == sign) for sign in "-+")
        out.append(Cell(cohort, split, percent, seeds, without, also))
    if not out:
        raise ValueError("runs: none given")
    return out


@dataclass(frozen=True)
class Task:
    """What the fits of one process share."""

    cfg: Properties
    curated: Curated
    model: encode.Model
    labels: pd.DataFrame  # a column a target, NaN where absent; moduli as log10
    device: torch.device

    @cached_property
    def protocols(self) -> pd.DataFrame:
        """The protocols that a material shows: of one that has any to train on those, else all.

        A test material has none to train on.
        """
        table = self.curated.protocols
        return table[table.train_ok | ~table.mp_id.isin(set(table.mp_id[table.train_ok]))]

    def members(self, fit: Fit, part: str) -> np.ndarray:
        """(M,) bool: materials of the fit's cohort and part of the split that have a label.

        In cohort B those to train or validate on have a protocol to train on, those to test on any.
        """
        some = self.labels[list(fit.weights)].notna().any(axis=1).to_numpy()
        if fit.cohort == "B":
            protocols = self.protocols if part == "test" else self.protocols[self.protocols.train_ok]
            some = some & self.curated.materials.mp_id.isin(set(protocols.mp_id)).to_numpy()
        return some & (self.curated.splits[fit.split] == part).to_numpy()


@functools.cache
def task(cfg: Properties) -> Task:
    """Read what the fits need, once a process.

    Raises:
        ValueError: an unknown target.
        FileNotFoundError: no curated set, or no pretrained model.
    """
    curated = dataset.read(paths.curated(cfg.profile))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = encode.load(cfg.profile, device=str(device))
    targets = [target.partition(":")[0] for group in groups(cfg) for target in group.split()]
    if unknown := [t for t in targets if t not in curated.materials]:
        raise ValueError(f"targets: no column {unknown[0]!r} in materials; there are {', '.join(curated.materials)}")
    columns = {t: curated.materials[t].to_numpy(np.float64) for t in targets}
    labels = pd.DataFrame({t: np.log10(c) if t.endswith("_GPa") else c for t, c in columns.items()})
    return Task(cfg, curated, model, labels, device)


def plan(cfg: Properties) -> list[Fit]:
    """All fits of a config, the longest first.

    Steps follow the number of labelled materials, straight in the logarithms: `steps` at all of cohort A's, `min_steps`
    at a hundredth of those or fewer.

    Raises:
        ValueError: see `task`, `groups`; an unknown arm, or one that needs a modality that is not there.
    """
    t = task(cfg)
    arms = cfg.arms.split()
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"arms: unknown {unknown[0]!r}; of {', '.join(ARMS)}")
    fits = []
    for targets, table in groups(cfg).items():
        for cell in table:
            place = (cell.cohort, cell.split, cell.percent)
            labelled = sum(t.members(Fit(targets, "", *place, 0), part).sum() for part in PARTS)
            share = max(labelled / len(t.labels.dropna(how="all")) * cell.percent / 100, FEWEST)
            steps = round(cfg.steps * (cfg.min_steps / cfg.steps) ** (math.log(share) / math.log(FEWEST)))
            for arm in dict.fromkeys((*(arm for arm in arms if arm not in cell.without), *cell.also)):
                read(t, arm, cell.cohort)
                mine = steps * NETWORKS[arm].length if arm in NETWORKS else 0
                fits += [Fit(targets, arm, *place, cfg.seed + s, mine) for s in range(cell.seeds)]
    return sorted(set(fits), key=lambda f: (-f.steps, *list(asdict(f).values())[:-1]))


def read(t: Task, arm: str, cohort: str) -> list[str]:
    """The modalities of which an arm reads frozen features.

    Raises:
        ValueError: the cohort or the model has none of those that it needs.
    """
    if arm == "ridge":
        return ["crystal"]
    wanted = [arm] if arm in SINGLE else list(COHORTS[cohort]) if arm in FUSED else []
    found = [m for m in wanted if m in COHORTS[cohort] and m in t.model.towers]
    if wanted and not found:
        has = ", ".join(t.model.towers)
        raise ValueError(
            f"{arm} in cohort {cohort}: needs {' or '.join(wanted)}; the model has {has}, text is in B only"
        )
    return found


@functools.cache
def graphs(cfg: Properties) -> GraphStore:
    """Graphs of the profile's materials as its pretrained tower takes them, once a process."""
    t = task(cfg)
    return t.model.graphs(t.curated.structures)


@functools.cache
def frozen(cfg: Properties, modality: str) -> dict[str, np.ndarray]:
    """What the frozen towers make of every material, of the stage `embed`.

    Of an image, rendered with a fixed key at the model's optics: the cells of the last feature map. Of a text: its
    pooled features at the model's mask level, the mean over the protocols that the material shows. Of a crystal: its
    pooled features.

    Returns:
        `tokens` (M, tokens, dim) and `embeddings` (M, 1, embed_dim) of the aligned space; NaN where a material has no
        protocol.
    """
    t, made = task(cfg), encode.features(cfg.profile, modality=modality)
    if modality == "text":
        return {"tokens": _shown(t, made["pooled"]), "embeddings": _shown(t, made["embeddings"])}
    tokens = made["map"] if modality == "image" else made["pooled"][:, None]
    return {"tokens": tokens, "embeddings": made["embeddings"][:, None]}


def features_key(t: Task, modality: str) -> dict[str, Any]:
    """All that `frozen` depends on."""
    out = {"modality": modality, "weights": encode.fingerprint(t.cfg.profile, "pretrained")}
    return out | {"data": t.curated.digest, "version": config.version("embed")}


def _shown(t: Task, values: np.ndarray) -> np.ndarray:
    """(M, 1, d) mean of values (protocols, d) over the protocols that a material shows; NaN where it shows none."""
    shown = np.flatnonzero(t.curated.protocols.index.isin(t.protocols.index))
    material = t.curated.materials.mp_id.searchsorted(t.protocols.mp_id)
    out = np.zeros((len(t.labels), values.shape[1]))
    np.add.at(out, material, values[shown])
    count = np.bincount(material, minlength=len(out)).astype(float)[:, None]
    return np.divide(out, count, out=np.full_like(out, np.nan), where=count > 0).astype(np.float32)[:, None]


def tower_weights(profile: str, folder: str) -> dict[str, Tensor]:
    """A crystal tower's state, from the folder of a model.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted((paths.results(profile) / folder).glob("crystal*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no crystal tower in {paths.results(profile) / folder}; a pretraining makes it")
    return {k.removeprefix("towers.crystal."): v for file in files for k, v in load_file(file).items()}


def key(t: Task, fit: Fit) -> dict[str, Any]:
    """All that a fit depends on; the pretrained weights only where they are used."""
    out = {"fit": asdict(fit), "data": t.curated.digest, "version": config.version("properties")}
    if network := NETWORKS.get(fit.arm):
        names = ("cutoff_A", "neighbours", "width", "layers", "order", "channels")
        out |= {name: getattr(t.model.config, name) for name in names}
        out |= {name: getattr(t.cfg, name) for name in ("batch_size", "learning_rate", "weight_decay")}
        if network.weights:
            out["weights"] = encode.fingerprint(t.cfg.profile, network.weights, "crystal")
    return out | {modality: cache.digest(features_key(t, modality)) for modality in read(t, fit.arm, fit.cohort)}


def rows(t: Task, fit: Fit) -> dict[str, np.ndarray]:
    """Rows of materials to train, validate and test on; each has at least one label.

    Labelled are the training and validation materials whose hash of (seed, mp-id) is below the share, so smaller sets
    lie in larger ones; the test set is always whole.

    Raises:
        ValueError: a part is empty.
    """
    chosen = np.array([unit_hash(fit.seed, f"label|{i}") < fit.percent / 100 for i in t.curated.materials.mp_id])
    out = {name: np.flatnonzero(t.members(fit, name) & (chosen | (name == "test"))) for name in PARTS}
    if empty := [name for name, r in out.items() if not len(r)]:
        raise ValueError(
            f"{fit.split} split at {fit.percent:g} % of labels, cohort {fit.cohort}, seed {fit.seed}: "
            f"no material in {empty[0]}"
        )
    return out


def network(t: Task, fit: Fit, pooled: Sequence[Tensor] = ()) -> nn.Module:
    """The arm's model before training, its random weights drawn from the seed alone.

    Args:
        t: the task.
        fit: which arm.
        pooled: (n, dim) features of each other modality, of the materials trained on.
    """
    arm, cfg = NETWORKS[fit.arm], t.model.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit.seed)
        tower = towers.build("crystal", replace(cfg, crystal_tower=arm.tower) if arm.tower else cfg)
        out = arm.model(tower, len(fit.weights), *([pooled] if arm.others else []))
    if arm.weights:
        tower.load_state_dict(tower_weights(t.cfg.profile, arm.weights))
    return out.to(t.device)


def train(cfg: Properties, fit: Fit, state: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Train the network of a fit.

    Args:
        cfg: with the schedule.
        fit: which.
        state: file of the training state, from which a killed fit goes on.

    Returns:
        The network with the weights that are best on validation, and what it predicts then.
    """
    t = task(cfg)
    parts = rows(t, fit)
    others = [frozen(cfg, m)[NETWORKS[fit.arm].others] for m in read(t, fit.arm, fit.cohort)]
    inputs = regression.Inputs(graphs(cfg), others, t.device)
    model = network(t, fit, inputs.pooled(parts["train"]))
    predicted = regression.train(
        model,
        inputs,
        t.labels[list(fit.weights)].to_numpy(),
        parts,
        targets=fit.weights,
        kept_by=E_F if E_F in fit.weights else "",
        steps=fit.steps,
        batch_size=cfg.batch_size,
        learning_rate=cfg.learning_rate,
        weight_decay=cfg.weight_decay,
        seed=fit.seed,
        tower_rate=NETWORKS[fit.arm].tower_rate,
        state=state,
        tell=workers.tell,
    )
    return model, predicted


def solve(cfg: Properties, fit: Fit) -> dict[str, Any]:
    """A fit's predictions, from scratch if an earlier run made them.

    Returns:
        `val` and `test` (n, targets) in the targets' units, of a class how sure it is (above one half: a metal); and
        `train_rows`, `val_rows`, `test_rows`, their rows of materials.
    """
    t = task(cfg)
    parts = rows(t, fit)

    def compute() -> dict[str, Any]:
        if fit.arm in NETWORKS:
            out = train(cfg, fit, cache.folder("properties", key(t, fit)) / "state.pt")[1]
        else:
            baseline, features = _baseline(t, fit)
            labels = t.labels[list(fit.weights)].to_numpy()
            out = regression.each_target(baseline, list(fit.weights), labels, parts, features)
        return out | {f"{name}_rows": r for name, r in parts.items()}

    with on_threads(1):
        return cache.memo("properties", key(t, fit), compute)


def _baseline(t: Task, fit: Fit) -> tuple[Any, np.ndarray]:
    """How an arm without a network is fitted, and the features of all materials that it sees."""
    if fit.arm == "dummy":
        return regression.constant, np.zeros((len(t.labels), 1))
    if fit.arm == "composition":
        return regression.boosting, regression.composition_features(t.curated.structures)
    (modality,) = read(t, fit.arm, fit.cohort)
    return regression.ridge, frozen(t.cfg, modality)["tokens"].mean(1, dtype=np.float32)


def freeze(cfg: Properties, planned: Sequence[Fit]) -> None:
    """Make the frozen features that these fits read, on all threads, before several processes ask for them."""
    for modality in sorted({modality for f in planned for modality in read(task(cfg), f.arm, f.cohort)}):
        frozen(cfg, modality)


def fit_all(cfg: Properties) -> dict[Fit, dict[str, Any]]:
    """All fits of the plan, up to `cfg.threads` at a time (one on a GPU); see `solve` for what each gives.

    Raises:
        ValueError: see `plan`, `task`, `rows`.
    """
    fits, t = plan(cfg), task(cfg)
    finished = [f for f in fits if (cache.folder("properties", key(t, f)) / "result.safetensors").exists()]
    pending = [f for f in fits if f not in finished]
    freeze(cfg, pending)
    work = sum(f.steps for f in pending) * cfg.batch_size
    processes = 1 if t.device.type == "cuda" or work < WORTH_A_PROCESS else min(cfg.threads, len(pending))
    out = {fit: solve(cfg, fit) for fit in finished}
    with tqdm(total=sum(f.steps for f in pending), desc="fits", unit="step", mininterval=1) as bar:
        told = (lambda steps: bar.update(steps - bar.n)) if processes > 1 else (lambda steps: None)
        for fit, result in workers.solved(partial(solve, cfg), pending, processes, told=told):
            out[fit] = result
            bar.update(fit.steps if processes == 1 else 0)
            bar.set_postfix_str(f"{len(out)}/{len(fits)} {fit.arm} {fit.cohort} {fit.split} {fit.percent:g} %")
    return {fit: out[fit] for fit in fits}
