"""Telling defects apart in simulated micrographs, with and without knowing what the host should look like.

Every host gives all five classes equally and from the same views, so nothing but the image can tell a class: an arm
without the image must be at chance. One image network is trained on images alone; every arm then fits the same small
head to its features; arms differ in the context that modulates them and share the network, the images, the head's width
and its schedule. The zone axis and the pixel size are part of every arm's context.

What the network sees is the micrograph and, beside it, what of it does not repeat (`defect_images.aperiodic`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from matalign import cache, config, paths
from matalign.config import Defects
from matalign.data import dataset
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import encode
from matalign.towers.image import ImageTower
from matalign.views import defect_images, draws
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import ZONE_AXES, Optics

ARMS = ("majority", "context", "image", "image_composition", "image_structure", "image_other")
TEXT_ARMS = ("image_text", "image_text_other")  # of a model with a text tower
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the hosts
FULL_DOSE_E_A2 = (1e3, 1e5)  # of test images; the others leave out the lowest and highest decile (of the logarithm)
DOSE_DECILES_E_A2 = (10**3.2, 10**4.8)
CHUNK = 125  # images rendered at once
TOLD = 20  # steps of which one tells its loss: a GPU is then waited for


@dataclass(frozen=True)
class Hosts:
    """n crystals that defects are put in."""

    structures: Structures
    mp_id: np.ndarray  # (n,)
    split: np.ndarray  # (n,) train, val or test, by chemical system


@dataclass(frozen=True)
class DefectSet:
    """Labelled micrographs of hosts, all classes from each view."""

    images: Tensor  # (N, 2, px, px) float16: the micrograph, and what of it does not repeat
    kind: np.ndarray  # (N,) row of DEFECTS
    host: np.ndarray  # (N,) row of the hosts
    axis: np.ndarray  # (N,) row of ZONE_AXES
    dose_e_A2: np.ndarray  # (N,)
    visibility: np.ndarray  # (N,) signal to noise of the difference to pristine


@dataclass(frozen=True)
class Predictions:
    """What each arm says about the test images."""

    shots: DefectSet
    mp_id: np.ndarray  # (N,) of each image's host
    has_text: np.ndarray  # (N,) whether the host has a protocol
    probability: dict[str, np.ndarray]  # arm -> (seeds, N, 5)
    validation: dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> per seed (N_val, 5), and (N_val,) the truth
    n_hosts: dict[str, int]  # split -> number
    synthetic: bool  # the hosts are of the embedded sample


def choose_hosts(curated: Curated, *, hosts: int, seed: int) -> Hosts:
    """Choose hosts by hash, 70/10/20 of train, val and test of the split by chemical system.

    Args:
        curated: the materials.
        hosts: how many at most.
        seed: of the hash.

    Raises:
        ValueError: no material to train on, or none to test on.
    """
    ids, split = curated.materials.mp_id.to_numpy(str), curated.splits.chemsys.to_numpy(str)
    order = np.argsort([draws.view_seed(seed, 0, i, -1) for i in ids], kind="stable")
    rows = np.sort(np.concatenate([order[split[order] == s][: max(1, round(f * hosts))] for s, f in SPLITS.items()]))
    for needed in ("train", "test"):
        if needed not in split[rows]:
            raise ValueError(f"no {needed} host among {len(ids)} materials; the split by chemical system has none")
    return Hosts(curated.structures.take(rows), ids[rows], split[rows])


def listed(hosts: Hosts, split: str, cfg: Defects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a split, all classes from each view: (N,) rows of hosts, numbers of views, rows of DEFECTS."""
    chosen = np.flatnonzero(hosts.split == split)
    host = np.repeat(chosen, cfg.images_per_class * len(DEFECTS))
    view = np.tile(np.repeat(np.arange(cfg.images_per_class), len(DEFECTS)), len(chosen))
    return host, view, np.tile(np.arange(len(DEFECTS)), len(chosen) * cfg.images_per_class)


def render(hosts: Hosts, split: str, cfg: Defects, *, epoch: int, seed: int, device: str = "cpu") -> DefectSet:
    """Render a split's hosts in all five classes.

    Args:
        hosts: the crystals.
        split: train, val or test; test images have doses and element pairs that the others lack.
        cfg: views (`images_per_class`), `image_px`, `pixel_A`.
        epoch: another number gives other views.
        seed: of the views.
        device: where to render.
    """
    test = split == "test"
    dose = FULL_DOSE_E_A2 if test else DOSE_DECILES_E_A2
    optics = Optics(image_px=cfg.image_px, pixel_A=cfg.pixel_A, dose_e_A2=dose)
    host, view, kind = listed(hosts, split, cfg)
    parts = []
    for start in tqdm(range(0, len(host), CHUNK), f"{split} images", mininterval=1, disable=len(host) < 20 * CHUNK):
        at = slice(start, start + CHUNK)
        keys = [draws.view_seed(seed, epoch, hosts.mp_id[h], v) for h, v in zip(host[at], view[at], strict=True)]
        made = defect_images.render(
            hosts.structures, host[at], kind[at], keys, optics=optics, held_out=test, device=device
        )
        images = torch.cat([made.images, defect_images.aperiodic(made.images, pixel_A=cfg.pixel_A)], dim=1).half().cpu()
        parts.append((images, made.view.axis.cpu(), made.view.dose_e_A2.cpu(), made.visibility.cpu()))
    if not parts:
        parts = [(torch.zeros(0, 2, cfg.image_px, cfg.image_px).half(), *(torch.zeros(0) for _ in range(3)))]
    images, axis, doses, visibility = (torch.cat(column) for column in zip(*parts, strict=True))
    return DefectSet(images, kind, host, axis.numpy().astype(np.int64), doses.numpy(), visibility.numpy())


def fit_network(
    shots: DefectSet, cfg: Defects, *, seed: int, device: str = "cpu", state: Path | None = None
) -> ImageTower:
    """Train the image network that all arms share: image -> class.

    Defects below the noise are left out of training: their images are those of a pristine crystal with another name.
    Each batch is turned or mirrored as a whole by one of the square's eight symmetries. AdamW, one-cycle learning rate.

    Args:
        shots: training images.
        cfg: depth, epochs, batch size, learning rate.
        seed: of initialisation, order and symmetries.
        device: where to train.
        state: file of the training state after an epoch, from which a killed training goes on to the same weights.
    """
    torch.manual_seed(seed)
    tower = ImageTower(depth=cfg.depth, channels=2)
    net = nn.Sequential(tower, nn.Linear(tower.dim, len(DEFECTS))).to(device)
    usable = np.flatnonzero((shots.kind == 0) | (shots.visibility >= 1))
    everything, kind = shots.images.to(device), torch.as_tensor(shots.kind, device=device)
    steps = cfg.epochs * -(-len(usable) // cfg.batch_size)
    optimiser = torch.optim.AdamW(net.parameters(), lr=cfg.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, cfg.learning_rate, total_steps=steps + 1, pct_start=0.2)
    rng = np.random.default_rng(seed)
    done = restore(state, net, optimiser, schedule, rng) if state and state.exists() else 0
    with tqdm(total=steps, initial=done * steps // cfg.epochs, desc="image network", mininterval=1) as bar:
        for epoch in range(done, cfg.epochs):
            for batch in np.array_split(rng.permutation(usable), -(-len(usable) // cfg.batch_size)):
                rows = torch.as_tensor(batch, device=device)
                images = everything[rows].float()
                images = torch.rot90(images, int(rng.integers(4)), dims=(2, 3))
                images = images.flip(3) if rng.integers(2) else images
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device == "cuda"):
                    logits = net[1](tower(images)[0])
                loss = F.cross_entropy(logits.float(), kind[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
                if bar.n % TOLD == 0:
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if state:
                checkpoint(state, net, optimiser, schedule, rng, epochs=epoch + 1)
    if state:
        state.unlink()
    return tower.eval()


def checkpoint(
    file: Path,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rng: np.random.Generator,
    *,
    epochs: int,
) -> None:
    """Write where training stands after so many epochs."""
    tensors = {f"net.{name}": w for name, w in net.state_dict().items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{name}": m for name, m in moments.items()}
    rest = {"epochs": epochs, "groups": optimiser.state_dict()["param_groups"], "schedule": schedule.state_dict()}
    arrays = {name: t.cpu().numpy() for name, t in tensors.items()}
    cache.save(file, arrays | rest | {"rng": rng.bit_generator.state})


def restore(
    file: Path,
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rng: np.random.Generator,
) -> int:
    """Read what `checkpoint` wrote; how many epochs are done."""
    stored, moments = cache.load(file), {}
    tensors = {name: torch.from_numpy(value) for name, value in stored.items() if isinstance(value, np.ndarray)}
    net.load_state_dict({k.removeprefix("net."): t for k, t in tensors.items() if k.startswith("net.")})
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, i, what = name.split(".")
            moments.setdefault(int(i), {})[what] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": stored["groups"]})
    schedule.load_state_dict(stored["schedule"])
    rng.bit_generator.state = stored["rng"]
    return stored["epochs"]


@torch.no_grad()
def features(tower: ImageTower, images: Tensor, *, device: str = "cpu") -> np.ndarray:
    """(N, dim) float32 features of (N, 2, px, px) images."""
    parts = [tower(part.to(device).float())[0].cpu() for part in images.split(CHUNK)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, tower.dim), np.float32)


class Head(nn.Module):
    """Features (B, d) and context (B, c) -> class scores (B, 5): the context scales and shifts the features.

    z = f · (1 + γ(c)) + β(c), then two layers (FiLM; Perez et al., AAAI 2018). γ and β start at zero.
    """

    def __init__(self, dim: int, context: int, *, hidden: int = 64):
        super().__init__()
        self.read = nn.Sequential(nn.Linear(context, hidden), nn.GELU(), nn.Dropout(0.3))
        self.modulate = nn.Linear(hidden, 2 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        layers = (nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, len(DEFECTS)))
        self.decide = nn.Sequential(*layers)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Class scores (B, 5)."""
        scale, shift = self.modulate(self.read(context)).chunk(2, dim=1)
        return self.decide(features * (1 + scale) + shift)


def fit_head(
    features: dict[str, np.ndarray],
    context: dict[str, np.ndarray],
    kind: dict[str, np.ndarray],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Fit one arm's head; the epoch of lowest validation loss counts (the last, without validation images).

    Args:
        features: split -> (N, d).
        context: split -> (N, c).
        kind: split -> (N,) row of DEFECTS; the test images' is not read.
        epochs: passes over the training images, 256 at a time.
        learning_rate: of AdamW, one-cycle.
        seed: of initialisation, order and dropout.
        device: where to fit.

    Returns:
        Class probabilities of the "val" (N_val, 5) and of the "test" images (N_test, 5).
    """
    torch.manual_seed(seed)

    def scaled(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:  # by the training images' mean and spread
        mean, spread = arrays["train"].mean(0), arrays["train"].std(0)
        spread = np.maximum(spread, 1e-3)
        return {s: torch.as_tensor((a - mean) / spread, dtype=torch.float32, device=device) for s, a in arrays.items()}

    x, c = scaled(features), scaled(context)
    y = {s: torch.as_tensor(kind[s], device=device) for s in ("train", "val")}
    head = Head(x["train"].shape[1], c["train"].shape[1]).to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.1)
    batches = -(-len(y["train"]) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * batches + 1)
    best, state = np.inf, None
    for _ in range(epochs):
        head.train()
        for rows in torch.randperm(len(y["train"])).chunk(batches):
            loss = F.cross_entropy(head(x["train"][rows], c["train"][rows]), y["train"][rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if len(y["val"]):
            head.eval()
            with torch.no_grad():
                loss = F.cross_entropy(head(x["val"], c["val"]), y["val"]).item()
            if loss < best:
                best, state = loss, copy.deepcopy(head.state_dict())
    if state is not None:
        head.load_state_dict(state)
    head.eval()
    with torch.no_grad():
        return {s: head(x[s], c[s]).softmax(1).cpu().numpy() for s in ("val", "test")}


def host_texts(hosts: Hosts, curated: Curated, model: encode.Model) -> np.ndarray:
    """(n, d) mean of the aligned embeddings of a host's protocols; zeros for a host without one."""
    own = curated.protocols[curated.protocols.mp_id.isin(set(hosts.mp_id))]
    out = np.zeros((len(hosts.mp_id), model.config.embed_dim), np.float32)
    row = np.searchsorted(hosts.mp_id, own.mp_id.to_numpy(str))
    np.add.at(out, row, model.embed_texts(own[f"text_L{model.config.mask_level}"].tolist()))
    return out / np.maximum(np.bincount(row, minlength=len(out)), 1)[:, None]


def contexts(hosts: Hosts, embeddings: np.ndarray, texts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What each arm is told of the hosts, (n, c), besides zone axis and pixel size.

    Args:
        hosts: n crystals.
        embeddings: (n, d) of their structures in the aligned space.
        texts: (n, d) of their protocols, zeros without one; None leaves out the arms that read them.
    """
    told = {
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
            told[arm] = np.concatenate([embeddings, read, has[:, None]], axis=1)
    return told


def _others(rows: np.ndarray) -> np.ndarray:
    """Each row a fixed other host's: of two or more, nobody keeps its own."""
    return np.roll(rows, len(rows) // 2, axis=0)


def view_context(axis: np.ndarray, *, pixel_A: float) -> np.ndarray:
    """(N, 14): zone axis one-hot, log of the pixel size."""
    return np.concatenate([np.eye(len(ZONE_AXES))[axis], np.full((len(axis), 1), np.log(pixel_A))], axis=1)


@dataclass(frozen=True)
class Seed:
    """One seed of a run: its image network, trained only where a head is still to be fitted, and the heads."""

    hosts: Hosts
    test: DefectSet
    cfg: Defects
    number: int
    key: dict[str, Any]  # all that the network depends on
    device: str

    @cached_property
    def network(self) -> cache.Result:
        """Features and zone axes of all images, as `_network` makes them."""
        state = cache.folder("defects-network", self.key) / "state.safetensors"
        options = {"seed": self.number, "device": self.device, "state": state}
        return cache.memo("defects-network", self.key, partial(_network, self.hosts, self.test, self.cfg, **options))

    def head(self, arm: str, told: np.ndarray, read: dict[str, str]) -> cache.Result:
        """What an arm says of validation and test images told (n, c) of the hosts, made of what `read` names."""
        kind = {s: listed(self.hosts, s, self.cfg)[2] for s in SPLITS}

        def fit() -> cache.Result:
            images = {s: self.network[f"features_{s}"] for s in SPLITS}
            view = {s: view_context(self.network[f"axis_{s}"], pixel_A=self.cfg.pixel_A) for s in SPLITS}
            of_host = {s: told[listed(self.hosts, s, self.cfg)[0]] for s in SPLITS}
            context = {s: np.concatenate([view[s], of_host[s]], axis=1) for s in SPLITS}
            seen = {s: np.zeros_like(x) for s, x in images.items()} if arm == "context" else images
            schedule = {"epochs": self.cfg.head_epochs, "learning_rate": self.cfg.learning_rate}
            return fit_head(seen, context, kind, **schedule, seed=self.number, device=self.device)

        key = {**self.key, **read, "arm": arm, "head_epochs": self.cfg.head_epochs}
        return cache.memo("defects-head", key, fit)


def run(cfg: Defects, *, told_of: Callable[[str], None] = lambda what: None) -> Predictions:
    """Render, train, and let every arm judge the test images; what an earlier run has fitted is not fitted again.

    A network, with the features of all images, is asked for only where a head is still to be fitted. Heads that a GPU
    has fitted judged test images of the same views, but of other noise than a processor draws.

    Args:
        cfg: the stage's parameters; the curated set and the model of its profile must be there.
        told_of: called with the name of each part that is done.
    """
    torch.set_num_threads(cfg.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    curated = dataset.read(paths.curated(cfg.profile))
    hosts = choose_hosts(curated, hosts=cfg.hosts, seed=cfg.seed)
    model = encode.load(cfg.profile, device=device)
    texts = host_texts(hosts, curated, model) if "text" in model.towers else None
    told = contexts(hosts, model.embed_structures(hosts.structures), texts)
    key = {name: value for name, value in vars(cfg).items() if name not in ("profile", "bootstrap", "head_epochs")}
    key |= {"data": curated.digest, "version": config.version("defects")}
    read = {"weights": encode.fingerprint(cfg.profile, "pretrained")}
    read |= {"text": model.towers["text"].fingerprint} if texts is not None else {}

    test = render(hosts, "test", cfg, epoch=0, seed=cfg.seed, device=device)
    kind = {s: listed(hosts, s, cfg)[2] for s in SPLITS}
    probability: dict[str, list[np.ndarray]] = {arm: [] for arm in ("majority", *told)}
    validation: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {arm: [] for arm in probability}
    for number in range(cfg.seed, cfg.seed + cfg.seeds):
        seed = Seed(hosts, test, cfg, number, {**key, "fit_seed": number}, device)
        for arm, context in told.items():
            made = seed.head(arm, context, read)
            told_of(f"{arm} seed {number}")
            probability[arm].append(made["test"])
            validation[arm].append((made["val"], kind["val"]))
        share = np.bincount(kind["train"], minlength=len(DEFECTS)) / len(kind["train"])
        probability["majority"].append(np.tile(share, (len(test.kind), 1)))
        validation["majority"].append((np.tile(share, (len(kind["val"]), 1)), kind["val"]))
    n_hosts = {s: int((hosts.split == s).sum()) for s in SPLITS}
    stacked = {arm: np.stack(p) for arm, p in probability.items()}
    has_text = np.isin(hosts.mp_id, curated.protocols.mp_id.to_numpy(str))[test.host]
    return Predictions(test, hosts.mp_id[test.host], has_text, stacked, validation, n_hosts, curated.synthetic)


def _network(
    hosts: Hosts, test: DefectSet, cfg: Defects, *, seed: int, device: str, state: Path
) -> dict[str, np.ndarray]:
    """Train one image network; of each split the features of its images, and their zone axes."""
    shots = render(hosts, "train", cfg, epoch=0, seed=seed, device=device)
    tower = fit_network(shots, cfg, seed=seed, device=device, state=state)
    # Heads learn on views that the network has not been trained on, as those of the test are.
    seen = {s: render(hosts, s, cfg, epoch=1, seed=seed, device=device) for s in ("train", "val")} | {"test": test}
    result = {f"features_{s}": features(tower, shots.images, device=device) for s, shots in seen.items()}
    return result | {f"axis_{s}": shots.axis for s, shots in seen.items()}
