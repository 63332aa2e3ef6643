"""Training of a crystal tower on formation energies: steps a second, and error after equal wall time.

Ours are the tower with invariant local descriptors and the same without them (no angles). Peers are PyG's CGConv and
matgl's MEGNet and M3GNet with matgl's defaults. All get the same batches of the same graphs (6 Å, each atom's cutoff at
its 17th neighbour), made by `GraphStore.batch`, for matgl too, whose own data loader is not timed; with every pair
within 6 Å its graphs would have four times the edges. All are trained as `properties.networks.train` does: AdamW, mean
absolute error, clipped gradients, and one cycle of the learning rate, here over the wall time instead of the steps.
Each tower's learning rate is the best of three on validation after runs of a sixth of the time.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from benchmarks.comparison import Settings, alternate, compare, rates
from matgl.graph._compute import create_line_graph_torch
from matgl.models import M3GNet, MEGNet
from pymatgen.core import Element
from torch import nn
from tqdm import tqdm

from matalign import cache, config, paths, towers
from matalign.data import dataset
from matalign.quantities import ENERGY
from matalign.tasks.fit import rate as one_cycle
from matalign.tasks.properties import labels, networks
from matalign.towers.crystal import Regressor
from matalign.views.graphs import GraphStore

OURS = ("ILD", "ILD, no angles")
RATES = (1e-3, 3e-3, 1e-2)
STEPS, REPEATS = 8, 5  # of the comparison in steps a second
SYMBOLS = tuple(Element.from_Z(z).symbol for z in range(1, 119))  # an atom's type is its place here


class Peer(nn.Module):
    """A model of matgl on our batches: its edges go from the centre to the neighbour."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch):
        """Predictions, (B, 1)."""
        graph = SimpleNamespace(
            node_type=batch.z - 1,
            pos=batch.edge_vec.new_zeros(len(batch.z), 3),  # edge vectors are all in the offsets
            pbc_offshift=batch.edge_vec,
            edge_index=batch.edge_index.flip(0),
            batch=batch.batch,
            num_graphs=len(batch.ptr) - 1,
        )
        if isinstance(self.model, MEGNet):
            return self.model(graph, state_attr=torch.zeros(graph.num_graphs, 2)).view(-1, 1)
        distance, cutoff_A = batch.edge_vec.norm(dim=1), self.model.threebody_cutoff
        triplets = create_line_graph_torch(graph.edge_index, distance, batch.edge_vec, len(batch.z), cutoff_A)
        return self.model(graph, l_g=triplets).view(-1, 1)


class Task:
    """The profile's crystals with a formation energy, its random split, and the settings of its fits, or others."""

    def __init__(self, profile: str, **changes):
        self.tower, self.fit = (
            replace(cfg, **{name: value for name, value in changes.items() if hasattr(cfg, name)})
            for cfg in (config.load("pretrain", profile), config.load("properties", profile))
        )
        curated = dataset.read(paths.curated(profile))
        self.data, self.clusters = curated.digest, curated.materials.chemsys.to_numpy()
        self.store = GraphStore.build(
            curated.structures, cutoff_A=self.tower.cutoff_A, neighbours=self.tower.neighbours, workers=2
        )
        labels, split = curated.materials[ENERGY].to_numpy(), curated.splits.random.to_numpy()
        self.rows = {part: np.flatnonzero((split == part) & ~np.isnan(labels)) for part in ("train", "val", "test")}
        known = labels[self.rows["train"]]
        self.std = known.std()
        self.labels = torch.from_numpy((labels - known.mean()) / self.std).float()[:, None]

    def models(self) -> dict:
        """Name -> function that makes the model."""

        def ours(**changes):
            return Regressor(towers.build("crystal", replace(self.tower, **changes)), 1)

        matgl = {"element_types": SYMBOLS, "cutoff": self.tower.cutoff_A}
        return {
            OURS[0]: partial(ours, crystal_tower="ild"),
            OURS[1]: partial(ours, crystal_tower="ild", order=-1),
            "PyG CGConv": partial(ours, crystal_tower="cgconv"),
            "matgl MEGNet": lambda: Peer(MEGNet(**matgl)),
            "matgl M3GNet": lambda: Peer(M3GNet(**matgl)),
        }

    def step(self, model, optimizer, step: int, *, seed: int, rate: float) -> None:
        """One step of training."""
        chosen = networks.draw(self.rows["train"], step, batch_size=self.fit.batch_size, seed=seed)
        loss = labels.masked_error(model(self.store.batch(chosen)), self.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def start(self, make, seed: int) -> tuple:
        """A new model and its optimiser."""
        torch.manual_seed(seed)
        model = make()
        return model, torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=self.fit.weight_decay)

    def cycle(self, make, *, length: float, at: Callable[[int], float], rate: float, seed: int) -> tuple:
        """The model after one cycle, and the steps taken; `at` of the steps so far says where in its length it is."""
        model, optimizer = self.start(make, seed)
        steps = 0
        while (place := at(steps)) < length:
            self.step(model, optimizer, steps, seed=seed, rate=rate * one_cycle(place, length))
            steps += 1
        return model, steps

    def train(self, make, *, seconds: float, rate: float, seed: int, part: str) -> dict:
        """Train for a wall time; steps taken, and mean absolute error of a part, eV/atom; None: it diverged."""
        start = time.perf_counter()
        model, steps = self.cycle(
            make, length=seconds, at=lambda step: time.perf_counter() - start, rate=rate, seed=seed
        )
        error = float(self.errors(model, part).mean())
        return {"steps": steps, "error": error if math.isfinite(error) else None}

    def errors(self, model, part: str) -> np.ndarray:
        """Absolute errors of a part's crystals, eV/atom."""
        predicted = networks.predict(model, networks.Inputs(self.store), self.rows[part])
        return ((predicted - self.labels[self.rows[part]]).abs() * self.std).squeeze(1).double().numpy()


def speed(task: Task, models: dict) -> list:
    """Crystals a second in training."""
    sides = {}
    for name, make in models.items():
        model, optimizer = task.start(make, 0)
        sides[name] = partial(steps, task, model, optimizer)
    seconds = alternate(sides, repeats=REPEATS, desc="towers, steps")
    what, work = f"training, batch {task.fit.batch_size}", STEPS * task.fit.batch_size
    return [
        row
        for ours in OURS
        for row in rates(
            what, "structures/s", work, {n: s for n, s in seconds.items() if n == ours or n not in OURS}, ours
        )
    ]


def steps(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Some steps of training."""
    for step in range(STEPS):
        task.step(model, optimizer, step, seed=0, rate=1e-3)


def measure(settings: Settings) -> dict:
    """Steps a second, then error at equal wall time; each training is kept in scratch as it ends."""
    task = Task(settings.profile)
    models = task.models()
    comparisons = speed(task, models)
    short = settings.seconds / 6
    total = len(models) * (short * len(RATES) + settings.seconds * settings.seeds)
    bar = tqdm(desc="towers, training", unit="s", total=round(total))

    def train(name, **kwargs):
        key = {"run": settings.started, "tower": name, "profile": settings.profile, **kwargs}
        out = cache.memo("bench", key, lambda: task.train(models[name], **kwargs))
        bar.update(round(kwargs["seconds"]))
        return out

    trials = {}
    for rate in RATES:
        for name in models:
            run = train(name, seconds=short, rate=rate, seed=0, part="val")
            trials.setdefault(name, {})[rate] = run["error"]
    chosen = {name: min((r for r in RATES if tried[r] is not None), key=tried.get) for name, tried in trials.items()}
    runs = {name: [] for name in models}
    for seed in range(settings.seeds):
        for name in models:
            kwargs = {"seconds": settings.seconds, "rate": chosen[name], "seed": seed, "part": "test"}
            runs[name].append(train(name, **kwargs))
    bar.close()
    what = f"test error of E_f after {settings.seconds:g} s of training"
    tested = {name: [run["error"] for run in runs[name]] for name in models}
    comparisons += [
        compare(what, "eV/atom", better="less", ours=(ours, tested[ours]), peer=(peer, tested[peer]))
        for ours in OURS
        for peer in models
        if peer not in OURS
    ]
    return {
        "crystals": {part: len(rows) for part, rows in task.rows.items()},
        "parameters": {name: sum(p.numel() for p in make().parameters()) for name, make in models.items()},
        "validation_error_by_rate": trials,
        "rate": chosen,
        "trainings": runs,
        "comparisons": comparisons,
    }
