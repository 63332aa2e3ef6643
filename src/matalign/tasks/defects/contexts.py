"""What the arms know of the hosts besides the image, and of the view."""

import numpy as np

from matalign.data.dataset import Curated
from matalign.tasks.defects.hosts import Hosts, others
from matalign.views.micrographs import ZONE_AXES

ARMS = ("majority", "context", "image", "image_composition", "image_structure", "image_other")
VECTORS = (
    "image_vector",
    "image_vector_other",
)  # their image networks are told the host's vector, too, while they train
ARMS += VECTORS
TEXT_ARMS = ("image_text", "image_text_other")  # of a model with a text tower
PICTURES = {  # arm -> the reference that it sees beside the image
    "image_reference": "own",
    "reference_other": "other",
    "reference_structure": "wrong_structure",
    "reference_axis": "wrong_axis",
    "reference_unknown": "unknown_axis",
    "reference_view": "true_view",
    "reference_text": "own",  # of a model with a text tower
}


def host_texts(hosts: Hosts, curated: Curated, vectors: np.ndarray) -> np.ndarray:
    """(n, d) mean of a host's protocols' aligned vectors, (protocols, d); zeros for a host without one."""
    shown = curated.protocols.mp_id.isin(set(hosts.mp_id)).to_numpy()
    out = np.zeros((len(hosts.mp_id), vectors.shape[1]), np.float32)
    row = np.searchsorted(hosts.mp_id, curated.protocols.mp_id[shown].to_numpy(str))
    np.add.at(out, row, vectors[shown])
    return out / np.maximum(np.bincount(row, minlength=len(out)), 1)[:, None]


def contexts(hosts: Hosts, embeddings: np.ndarray, texts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Arm -> what it is told of the hosts, (n, c), besides zone axis, pixel size and, of `PICTURES`, a reference.

    Args:
        hosts: n crystals.
        embeddings: (n, d) of their structures in the aligned space.
        texts: (n, d) of their protocols, zeros without one; None leaves out the arms that read them.
    """
    none = np.zeros((len(hosts.mp_id), 0))
    arms = {
        "context": embeddings,
        "image": none,
        "image_composition": hosts.structures.fractions(),
        "image_structure": embeddings,
        "image_other": others(embeddings),
        "image_vector": embeddings,
        "image_vector_other": others(embeddings),
    } | dict.fromkeys(PICTURES, none)
    del arms["reference_text"]
    if texts is not None:
        has = texts.any(1)
        swapped = texts.copy()
        swapped[has] = others(texts[has])
        for arm, read in zip(TEXT_ARMS, (texts, swapped), strict=True):
            arms[arm] = np.concatenate([embeddings, read, has[:, None]], axis=1)
        arms["reference_text"] = np.concatenate([texts, has[:, None]], axis=1)
    return arms


def view_context(axis: np.ndarray, *, pixel_A: float) -> np.ndarray:
    """(N, 14): zone axis one-hot, log of the pixel size."""
    return np.concatenate([np.eye(len(ZONE_AXES))[axis], np.full((len(axis), 1), np.log(pixel_A))], axis=1)
