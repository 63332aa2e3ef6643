"""Telling defects apart in simulated micrographs, with and without knowing what the host should look like.

Every host gives all five classes equally and from the same views, so nothing but the image can tell a class: an arm
without the image must be at chance. One image network is trained on images alone; every arm then fits the same small
head to its features; arms differ in the context that modulates them and share the network, the images, the head's width
and its schedule. The zone axis and the pixel size are part of every arm's context.

What the network sees is the micrograph and, beside it, what of it does not repeat (`defect_images.aperiodic`).
"""

import functools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from matalign import cache, config, paths
from matalign.config import Defects
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pretrain import encode
from matalign.tasks.defects import networks
from matalign.tasks.defects.hosts import SPLITS, DefectSet, Hosts, choose_hosts, listed, render
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import ZONE_AXES

ARMS = ("majority", "context", "image", "image_composition", "image_structure", "image_other")
TEXT_ARMS = ("image_text", "image_text_other")  # of a model with a text tower


def host_texts(hosts: Hosts, curated: Curated, vectors: np.ndarray) -> np.ndarray:
    """(n, d) mean of a host's protocols' aligned vectors, (protocols, d); zeros for a host without one."""
    shown = curated.protocols.mp_id.isin(set(hosts.mp_id)).to_numpy()
    out = np.zeros((len(hosts.mp_id), vectors.shape[1]), np.float32)
    row = np.searchsorted(hosts.mp_id, curated.protocols.mp_id[shown].to_numpy(str))
    np.add.at(out, row, vectors[shown])
    return out / np.maximum(np.bincount(row, minlength=len(out)), 1)[:, None]


def contexts(hosts: Hosts, embeddings: np.ndarray, texts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Arm -> what it knows of the hosts, (n, c), besides zone axis and pixel size.

    Args:
        hosts: n crystals.
        embeddings: (n, d) of their structures in the aligned space.
        texts: (n, d) of their protocols, zeros without one; None leaves out the arms that read them.
    """
    arms = {
        "context": embeddings,
        "image": np.zeros((len(hosts.mp_id), 0)),
        "image_composition": hosts.structures.fractions(),
        "image_structure": embeddings,
        "image_other": _others(embeddings),
    }
    if texts is not None:
        has = texts.any(1)
        swapped = texts.copy()
        swapped[has] = _others(texts[has])
        for arm, read in zip(TEXT_ARMS, (texts, swapped), strict=True):
            arms[arm] = np.concatenate([embeddings, read, has[:, None]], axis=1)
    return arms


def _others(rows: np.ndarray) -> np.ndarray:
    """Each row a fixed other host's: of two or more, nobody keeps its own."""
    return np.roll(rows, len(rows) // 2, axis=0)


def view_context(axis: np.ndarray, *, pixel_A: float) -> np.ndarray:
    """(N, 14): zone axis one-hot, log of the pixel size."""
    return np.concatenate([np.eye(len(ZONE_AXES))[axis], np.full((len(axis), 1), np.log(pixel_A))], axis=1)


@dataclass(frozen=True)
class Predictions:
    """Class probabilities that each arm gives to the test images."""

    test: DefectSet
    mp_id: np.ndarray  # (N,) of each image's host
    has_text: np.ndarray  # (N,) whether the host has a protocol
    probability: dict[str, np.ndarray]  # arm -> (seeds, N, 5)
    validation: dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> per seed (N_val, 5), and (N_val,) the truth
    n_hosts: dict[str, int]  # split -> number
    synthetic: bool  # the hosts are of the embedded sample


def _seed(
    hosts: Hosts, test: DefectSet, cfg: Defects, arms: dict[str, np.ndarray], *, number: int, key: dict, device: str
) -> dict[str, cache.Result]:
    """Class probabilities of validation and test images by each arm's head, on the image network of one seed.

    The network is trained, and asked for, only where a head is still to be fitted.
    """
    at = {s: listed(hosts, s, cfg) for s in SPLITS}
    own = {name: value for name, value in key.items() if name not in ("weights", "text")}

    @functools.cache
    def network() -> cache.Result:
        options = {"seed": number, "device": device, "state": cache.folder("defects-network", own) / "state.pt"}
        return cache.memo("defects-network", own, partial(_network, hosts, test, cfg, **options))

    def head(arm: str, context: np.ndarray) -> cache.Result:
        images = {s: network()[f"features_{s}"] for s in SPLITS}
        view = {s: view_context(network()[f"axis_{s}"], pixel_A=cfg.pixel_A) for s in SPLITS}
        known = {s: np.concatenate([view[s], context[at[s][0]]], axis=1) for s in SPLITS}
        seen = {s: np.zeros_like(x) for s, x in images.items()} if arm == "context" else images
        schedule = {"epochs": cfg.head_epochs, "learning_rate": cfg.learning_rate}
        kind = {s: at[s][2] for s in SPLITS}
        return networks.fit_head(seen, known, kind, **schedule, seed=number, device=device)

    about = {**key, "head_epochs": cfg.head_epochs}
    return {a: cache.memo("defects-head", {**about, "arm": a}, partial(head, a, c)) for a, c in arms.items()}


def predict(cfg: Defects) -> Predictions:
    """Render, train, and let every arm judge the test images; what an earlier run has fitted is not fitted again.

    A network, with the features of all images, is asked for only where a head is still to be fitted. Heads that a GPU
    has fitted judged test images of the same views, but of other noise than a processor draws.

    Args:
        cfg: the stage's parameters; the curated set and the model of its profile must be there.
    """
    torch.set_num_threads(cfg.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curated = dataset.read(paths.curated(cfg.profile))
    hosts = choose_hosts(curated, hosts=cfg.hosts, seed=cfg.seed)
    pretrain, text_model = encode.settings(paths.results(cfg.profile) / "pretrained")
    texts = None
    if "text" in pretrain.modalities.split():
        texts = host_texts(hosts, curated, encode.features(cfg.profile, modality="text")["embeddings"])
    crystals = encode.features(cfg.profile, modality="crystal")["embeddings"]
    arms = contexts(hosts, crystals[curated.materials.mp_id.searchsorted(hosts.mp_id)], texts)
    key = {name: value for name, value in vars(cfg).items() if name not in ("profile", "bootstrap", "head_epochs")}
    key |= {"data": curated.digest, "version": config.version("defects")}
    key["weights"] = encode.fingerprint(cfg.profile, "pretrained")  # of what heads are told, as the next
    key |= {"text": text_model} if texts is not None else {}

    test = render(hosts, "test", cfg, epoch=0, seed=cfg.seed, device=device)
    kind = {s: listed(hosts, s, cfg)[2] for s in SPLITS}
    share = np.bincount(kind["train"], minlength=len(DEFECTS)) / len(kind["train"])
    majority = {s: np.tile(share, (len(kind[s]), 1)) for s in ("val", "test")}
    judged: dict[str, list[cache.Result]] = {arm: [] for arm in ("majority", *arms)}  # one a seed
    for number in range(cfg.seed, cfg.seed + cfg.seeds):
        own = {**key, "fit_seed": number}
        made = _seed(hosts, test, cfg, arms, number=number, key=own, device=device)
        for arm, found in {"majority": majority, **made}.items():
            judged[arm].append(found)
    return Predictions(
        test=test,
        mp_id=hosts.mp_id[test.host],
        has_text=np.isin(hosts.mp_id, curated.protocols.mp_id.to_numpy(str))[test.host],
        probability={arm: np.stack([p["test"] for p in seeds]) for arm, seeds in judged.items()},
        validation={arm: [(p["val"], kind["val"]) for p in seeds] for arm, seeds in judged.items()},
        n_hosts={s: int((hosts.split == s).sum()) for s in SPLITS},
        synthetic=curated.synthetic,
    )


def _network(
    hosts: Hosts, test: DefectSet, cfg: Defects, *, seed: int, device: str, state: Path
) -> dict[str, np.ndarray]:
    """Train one image network; of each split the features of its images, and their zone axes."""
    images = render(hosts, "train", cfg, epoch=0, seed=seed, device=device)
    tower = networks.fit_network(images, cfg, seed=seed, device=device, state=state)
    # Heads learn on views that the network has not been trained on, as those of the test are.
    sets = {s: render(hosts, s, cfg, epoch=1, seed=seed, device=device) for s in ("train", "val")} | {"test": test}
    features = {f"features_{s}": networks.features(tower, of.images, device=device) for s, of in sets.items()}
    return features | {f"axis_{s}": of.axis for s, of in sets.items()}
