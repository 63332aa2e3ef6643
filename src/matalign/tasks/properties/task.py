"""Which materials a fit of properties is trained, validated and tested on.

Cohort A holds all materials with a label, cohort B those that have a protocol too; its parts are all within B. All
arms of a run see one labelled set and one validation set; labelled sets of one seed are nested, and validation shrinks
with them.
"""

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from matalign import paths, quantities
from matalign.config import Properties
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.data.splits import unit_hash
from matalign.pretrain import encode
from matalign.tasks.properties.arms import Fit, groups
from matalign.views.graphs import Graphs

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Task:
    """What the fits of one process share."""

    cfg: Properties
    curated: Curated
    model: encode.Model  # its crystal tower
    labels: pd.DataFrame  # a column a target, NaN where absent; moduli as log10
    device: torch.device

    @property
    def modalities(self) -> list[str]:
        """Those that the model was trained on."""
        return self.model.config.modalities.split()

    @cached_property
    def protocols(self) -> pd.DataFrame:
        """The protocols that a material shows: if it has any to train on those, else (a test material) all."""
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
    model = encode.load(cfg.profile, modalities=["crystal"], device=str(device))
    targets = [target for group in groups(cfg) for target, _ in group]
    if unknown := [t for t in targets if t not in curated.materials]:
        raise ValueError(f"targets: no column {unknown[0]!r} in materials; there are {', '.join(curated.materials)}")
    columns = {t: curated.materials[t].to_numpy(np.float64) for t in targets}
    labels = pd.DataFrame({t: np.log10(c) if quantities.of(t).logarithmic else c for t, c in columns.items()})
    return Task(cfg, curated, model, labels, device)


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


@functools.cache
def graphs(cfg: Properties) -> Graphs:
    """Graphs of the profile's materials as its pretrained tower takes them, once a process."""
    return task(cfg).model.graphs(task(cfg).curated.structures)


@functools.cache
def frozen(cfg: Properties, modality: str) -> dict[str, np.ndarray]:
    """What the frozen towers make of every material, of the stage `embed`.

    Of an image, rendered with a fixed key at the model's optics: the cells of the last feature map. Of a text: its
    pooled features at the model's mask level, the mean over the protocols that the material shows. Of a crystal: its
    pooled features, or the readout of all layers.

    Returns:
        `tokens` (M, tokens, dim) and, but of a readout, `embeddings` (M, 1, embed_dim) of the aligned space; NaN where
        a material has no protocol.
    """
    t, made = task(cfg), encode.features(cfg.profile, modality=modality)
    if modality == "text":
        return {"tokens": _shown(t, made["pooled"]), "embeddings": _shown(t, made["embeddings"])}
    tokens = made["map"] if modality == "image" else made["pooled"][:, None]
    return {"tokens": tokens} | {name: made[name][:, None] for name in ("embeddings",) if name in made}


def _shown(t: Task, values: np.ndarray) -> np.ndarray:
    """(M, 1, d) mean of values (protocols, d) over the protocols that a material shows; NaN where it shows none."""
    shown = np.flatnonzero(t.curated.protocols.index.isin(t.protocols.index))
    material = t.curated.materials.mp_id.searchsorted(t.protocols.mp_id)
    mean = pd.DataFrame(values[shown].astype(np.float64)).groupby(material).mean()
    return np.array(mean.reindex(range(len(t.labels))), np.float32)[:, None]
