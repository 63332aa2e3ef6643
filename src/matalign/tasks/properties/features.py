"""What fits see besides labels: graphs, and what the frozen towers have made of every material."""

import functools
from typing import Any

import numpy as np

from matalign import config
from matalign.config import Properties
from matalign.pretrain import encode
from matalign.tasks.properties.task import Task, task
from matalign.views.graphs import GraphStore


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
