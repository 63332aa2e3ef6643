"""Telling defects apart in simulated micrographs, with and without knowing what the host should look like.

Every host gives all five classes equally and from the same views, so nothing but the image can tell a class: an arm
without the image must be at chance. One image network is trained on images alone; arms that are told the host as a
vector fit the same small head to its features, which the vector modulates; two of them (`VECTORS`) have a network of
their own that is told the vector while it trains. Arms that are shown the host (`pictures`) have each one of their own,
trained and tested with their own reference, right or wrong: a network could learn to pass over a wrong one. All share
images, widths and schedules; zone axis and pixel size are part of every arm's context.

What a network sees is the micrograph, what of it does not repeat (`defect_images.aperiodic`) and, in those arms, the
reference and what it leaves of the micrograph.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matalign import cache, config, paths
from matalign.config import Defects
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.pretrain import encode
from matalign.tasks.defects import networks
from matalign.tasks.defects.hosts import SPLITS, DefectSet, Hosts, choose_hosts, listed, others, render
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import ZONE_AXES

VECTORS = ("image_vector", "image_vector_other")  # whose image networks are told the host's vector while they train
ARMS = ("majority", "context", "image", "image_composition", "image_structure", "image_other", *VECTORS)
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
    """Arm -> what it is told of n hosts, (n, c), besides zone axis, pixel size and, of `PICTURES`, a reference.

    In the aligned space lie their structures' embeddings (n, d), and the texts (n, d) of their protocols, zeros
    without one; None leaves out the arms that read them.
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


@dataclass(frozen=True)
class Predictions:
    """Class probabilities that each arm gives to the test images."""

    test: DefectSet
    mp_id: np.ndarray  # (N,) of each image's host
    has_text: np.ndarray  # (N,) whether the host has a protocol
    probability: dict[str, np.ndarray]  # arm -> (seeds, N, 5)
    validation: dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> per seed (N_val, 5), and (N_val,) the truth
    axis: np.ndarray  # (seeds, N, 2) of the arm that looks for the zone axis: `DefectSet.right`; no seed without it
    n_hosts: dict[str, int]  # split -> number
    polymorphs: float  # share of the hosts whose wrong structure is another of the set
    synthetic: bool  # the hosts are of the embedded sample


@dataclass(frozen=True)
class Seed:
    """One seed of a run: its image networks, trained only where a head is still to be fitted, and the heads."""

    hosts: Hosts
    cfg: Defects
    number: int
    key: dict[str, Any]  # all that the network depends on
    device: str

    def network(self, arm: str, context: np.ndarray, made_of: dict[str, str]) -> cache.Result:
        """Features and zone axes of all images, as `_network` makes them, for what an arm is shown and told."""
        reference, told = PICTURES.get(arm, ""), np.zeros((len(context), 0))
        key = {**self.key, "reference": reference}
        if arm in VECTORS:
            told = networks.scaled(context, context[self.hosts.split == "train"])
            key |= {**made_of, "told": arm}
        state = cache.folder("defects-network", key) / "state.pt"
        options = {"seed": self.number, "reference": reference, "told": told, "device": self.device, "state": state}
        return cache.memo("defects-network", key, partial(_network, self.hosts, self.cfg, **options))

    def head(self, arm: str, context: np.ndarray, made_of: dict[str, str]) -> cache.Result:
        """Class probabilities of validation and test images, and the test's `right`; an arm knows `context` (n, c)."""
        kind = {s: listed(self.hosts, s, self.cfg)[2] for s in SPLITS}

        def fit() -> cache.Result:
            network = self.network(arm, context, made_of)
            images = {s: network[f"features_{s}"] for s in SPLITS}
            view = {s: view_context(network[f"axis_{s}"], pixel_A=self.cfg.pixel_A) for s in SPLITS}
            of_host = {s: context[listed(self.hosts, s, self.cfg)[0]] for s in SPLITS}
            known = {s: np.concatenate([view[s], of_host[s]], axis=1) for s in SPLITS}
            seen = {s: np.zeros_like(x) for s, x in images.items()} if arm == "context" else images
            schedule = {"epochs": self.cfg.head_epochs, "learning_rate": self.cfg.learning_rate}
            judged = networks.fit_head(seen, known, kind, **schedule, seed=self.number, device=self.device)
            return {**judged, "right": network["right"]}

        key = {**self.key, **made_of, "arm": arm, "head_epochs": self.cfg.head_epochs}
        return cache.memo("defects-head", key, fit)


def predict(cfg: Defects) -> Predictions:
    """Render, train, and let every arm judge the test images; what an earlier run has fitted is not fitted again.

    A network, with the features of all images, is asked for only where a head is still to be fitted. Heads that a GPU
    has fitted judged test images of the same views, but of other noise than a processor draws.
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
    made_of = {"weights": encode.fingerprint(cfg.profile, "pretrained")}
    made_of |= {"text": text_model} if texts is not None else {}

    test = render(hosts, "test", cfg, epoch=0, seed=cfg.seed, device=device)
    kind = {s: listed(hosts, s, cfg)[2] for s in SPLITS}
    share = np.bincount(kind["train"], minlength=len(DEFECTS)) / len(kind["train"])
    majority = {s: np.tile(share, (len(kind[s]), 1)) for s in ("val", "test")}
    judged: dict[str, list[cache.Result]] = {arm: [] for arm in ("majority", *arms)}  # one a seed
    for number in range(cfg.seed, cfg.seed + cfg.seeds):
        seed = Seed(hosts, cfg, number, {**key, "fit_seed": number}, device)
        judged["majority"].append(majority)
        for arm, context in arms.items():
            judged[arm].append(seed.head(arm, context, made_of))
    return Predictions(
        test=test,
        mp_id=hosts.mp_id[test.host],
        has_text=np.isin(hosts.mp_id, curated.protocols.mp_id.to_numpy(str))[test.host],
        probability={arm: np.stack([p["test"] for p in seeds]) for arm, seeds in judged.items()},
        validation={arm: [(p["val"], kind["val"]) for p in seeds] for arm, seeds in judged.items()},
        axis=np.stack([p["right"] for p in judged["reference_unknown"]]),
        n_hosts={s: int((hosts.split == s).sum()) for s in SPLITS},
        polymorphs=float(hosts.polymorph.mean()),
        synthetic=curated.synthetic,
    )


def _network(
    hosts: Hosts, cfg: Defects, *, seed: int, reference: str, told: np.ndarray, device: str, state: Path
) -> cache.Result:
    """Train an image network, told (n, c) of the hosts, c may be 0; features, zone axes of all, the test's `right`."""
    make = partial(render, hosts, cfg=cfg, reference=reference, device=device)
    train = make("train", epoch=0, seed=seed)
    net = networks.fit_network(train, cfg, seed=seed, told=told[train.host], device=device, state=state)
    # Heads learn on views that the network has not been trained on, as those of the test are.
    sets = {s: make(s, epoch=1, seed=seed) for s in ("train", "val")} | {"test": make("test", epoch=0, seed=cfg.seed)}
    features = {f"features_{s}": networks.features(net, x.images, told[x.host], device=device) for s, x in sets.items()}
    return features | {f"axis_{s}": x.axis for s, x in sets.items()} | {"right": sets["test"].right}
