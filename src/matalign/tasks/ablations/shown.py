"""What a variant is trained on: features of images and texts made beforehand, crystals as in pretraining.

The image tower itself has been trained with other modalities, as `pretrain.loss` says, and carries that into every
variant; where that loss is `anchored`, no image has ever met a text but through structures.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from matalign import cache, config, paths, towers
from matalign.config import Ablations, Pretrain
from matalign.data import dataset
from matalign.data.dataset import Curated
from matalign.data.splits import unit_hash
from matalign.pretrain import align, encode
from matalign.pretrain.batches import Examples, Part, Views
from matalign.tasks.ablations import objectives
from matalign.tasks.ablations.variants import Variant, chosen
from matalign.views import draws

LEVELS = (1, 2)  # mask levels of the texts that are retrieved
ROWS = 128  # images at once


@dataclass(frozen=True)
class Source:
    """Parameters and the place of the features: small enough to be sent to a worker."""

    cfg: Ablations
    pretrain: Pretrain  # of the profile's model
    schedule: config.Properties  # of fine-tuning
    features: Path
    digest: str  # of data and weights, with the version of their kind
    extras: tuple[tuple[str, str], ...] = ()  # modality -> hash of what is not in that digest
    tokens: Path | None = None  # if a variant attends to them


@dataclass(frozen=True)
class Task:
    """What the fits of one process share."""

    curated: Curated
    images: np.ndarray  # (M, views, dim) features of each material's images
    held_out: np.ndarray  # (M, dim) of one more, which is never trained on
    texts: Mapping[str, Tensor]  # text -> its features (dim,)


def source(cfg: Ablations) -> Source:
    """Make the features of a profile's images and texts with its pretrained model, or find them.

    Raises:
        FileNotFoundError: no curated set, or no pretrained model.
        ValueError: the model lacks a tower.
    """
    curated = dataset.read(paths.curated(cfg.profile))
    pretrain, text_model = encode.settings(paths.results(cfg.profile) / "pretrained")
    levels = sorted({v.mask_level for group in chosen(cfg).values() for v in group.values()} | {*LEVELS})
    key = {"data": curated.digest, "weights": encode.fingerprint(cfg.profile, "pretrained"), "text_model": text_model}
    key |= {"levels": levels, "version": config.version("ablations")}
    key |= {name: getattr(pretrain, name) for name in ("image_px", "pixel_A")}
    key |= {name: getattr(cfg, name) for name in ("seed", "views")}
    cache.memo("ablations-features", key, lambda: features(cfg, curated, levels))
    file = cache.folder("ablations-features", key) / "result.safetensors"
    tokens = None
    if any(v.attends for group in chosen(cfg).values() for v in group.values()):
        cache.memo("ablations-tokens", key, lambda: objectives.tokens(cfg, curated, rows=ROWS))
        tokens = cache.folder("ablations-tokens", key) / "result.safetensors"
    extras = tuple(curated.extra_digests.items())
    return Source(cfg, pretrain, config.load("properties", cfg.profile), file, cache.digest(key), extras, tokens)


@torch.no_grad()
def features(cfg: Ablations, curated: Curated, levels: Iterable[int]) -> cache.Result:
    """Features of images and texts from the towers of the profile's model, before its heads.

    View v of a material is the one that pretraining shows first in epoch v.

    Returns:
        `images` (M, views + 1, dim), the last that of evaluation; `texts_L<level>` (protocols, dim).
    """
    torch.set_num_threads(cfg.threads)
    model = encode.load(cfg.profile)
    if missing := {"image", "text"} - set(model.towers):
        raise ValueError(f"ablations of {cfg.profile}: its model has no {' and no '.join(sorted(missing))} tower")
    tower, everything = model.towers["image"], np.arange(len(curated.materials))
    out = {"images": np.empty((len(everything), cfg.views + 1, tower.dim), np.float32)}
    out["images"][:, -1] = encode.features(cfg.profile, modality="image")["pooled"]
    with tqdm(total=len(everything) * cfg.views, desc="images", unit="image", mininterval=1) as bar:
        for rows in np.array_split(everything, -(-len(everything) // ROWS)):
            for view in range(cfg.views):
                images = model.micrographs(curated, rows, seed=cfg.seed, epoch=view)
                out["images"][rows, view] = tower(images)[0].numpy()
                bar.update(len(rows))
    for level in levels:
        texts = curated.protocols[f"text_L{level}"].tolist()
        out[f"texts_L{level}"] = model.towers["text"].features(texts, progress=True).numpy()
    return out


@functools.cache
def task(source: Source) -> Task:
    """Read what the fits need, once a process."""
    curated, found = dataset.read(paths.curated(source.cfg.profile)), cache.load(source.features)
    texts = {}
    for name in sorted(found.keys() - {"images"}):
        texts |= zip(curated.protocols[name.replace("texts", "text")], torch.from_numpy(found[name]), strict=True)
    return Task(curated, found["images"][:, :-1], found["images"][:, -1], texts)


class Cached(nn.Module):
    """Stands in for a frozen tower: passes on features that were made with it."""

    def __init__(self, dim: int, texts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.dim, self.texts = dim, texts

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(n, dim) as it came."""
        return features, {}

    def features(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        """(n, dim) features of n texts."""
        return torch.stack([self.texts[text] for text in texts]) if len(texts) else torch.zeros(0, self.dim)


class CachedImages:
    """Every material has its views; the key chooses one of them. `owner` (M,): whose views a material shows."""

    def __init__(self, images: np.ndarray, owner: np.ndarray) -> None:
        self.images, self.owner, self.has = images, owner, np.ones(len(owner), bool)

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Tensor:
        """(n, dim) features."""
        view = (keys % np.uint64(self.images.shape[1])).astype(int)
        return torch.from_numpy(self.images[self.owner[rows], view])


@dataclass(frozen=True)
class Shown(Examples):
    """What a variant is shown: image features looked up, and texts dropped (images: `cfg.image_fraction`)."""

    images: CachedImages
    missing: float  # share of the views without their text

    def context(self, part: Part) -> tuple[Any, ...]:
        """For an objective of `objectives`, which materials are shown, and what of them."""
        return () if isinstance(self.model.denoiser, align.Denoiser) else (part.numbers,)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """As in pretraining, but for the images."""
        inputs = super().inputs
        return {m: self.images if m == "image" else made for m, made in inputs.items()}

    def views(self, split: str, epoch: int) -> Views:
        """As in pretraining; whether a view lacks its text is one more draw from its key."""
        views = super().views(split, epoch)
        dropped = draws.uniforms(~views.keys, 4)[:, 3] < self.missing  # the first three draws are pretraining's
        return replace(views, text=np.where(dropped, -1, views.text))


def shuffled(curated: Curated, *, seed: int) -> tuple[Curated, np.ndarray]:
    """Give every material outside the test sets the texts and the images of others, by a permutation drawn once.

    In an order drawn by hash, a material takes the texts of the next one that has any to train on, and the images of
    the one before it: so no two of its modalities belong together.

    Returns:
        The set with its protocols moved; and (M,) the row whose images each material shows.
    """
    ids, split = curated.materials.mp_id.to_numpy(), curated.splits.pretrain.to_numpy()
    order = np.argsort([unit_hash(seed, f"pair|{mp_id}") for mp_id in ids], kind="stable")
    order = order[split[order] != "excluded"]
    owner = np.arange(len(ids))
    owner[order] = np.roll(order, 1)
    ok = curated.protocols.train_ok.to_numpy(bool)
    with_text = [mp_id for mp_id in ids[order] if mp_id in set(curated.protocols.mp_id[ok])]
    moved = dict(zip(with_text, np.roll(with_text, 1), strict=True))
    mp_id = np.where(ok, curated.protocols.mp_id.map(lambda own: moved.get(own, own)), curated.protocols.mp_id)
    return replace(curated, protocols=curated.protocols.assign(mp_id=mp_id)), owner


@functools.cache
def kept_tokens(file: Path) -> Mapping[str, Tensor]:
    """What `objectives.tokens` made, once a process."""
    return {name: torch.from_numpy(values) for name, values in cache.load(file).items()}


def extended(source: Source, variant: Variant, model: align.AlignModel, cfg: Pretrain) -> nn.Module:
    """The denoiser of a model with what a variant adds to its objective."""
    width, names = model.towers["crystal"].dim, model.modalities
    if variant.attends:
        column = 2 + names.index("image") if "image" in names else None
        return objectives.Attending(
            model.denoiser, width, objectives.Tokens(**kept_tokens(source.tokens), column=column)
        )
    curated = task(source).curated
    inputs = towers.load(variant.supervised).Inputs(cfg, curated, None, torch.device("cpu"))
    every = np.arange(len(curated.materials))
    return objectives.Supervised(model.denoiser, width, inputs(every, every))


def examples(source: Source, variant: Variant, seed: int) -> Shown:
    """A variant's model, its random weights drawn from the seed alone, and what it is shown."""
    t = task(source)
    cfg = replace(
        source.pretrain,
        **{name: getattr(variant, name) for name in asdict(variant).keys() & asdict(source.pretrain).keys()},
        **{"seed": seed, "threads": 1, "gpus": "1", "micro_batch": 0, "checkpoint_steps": 0, "unfreeze_layers": 0},
        **{"epochs": source.cfg.epochs, "patience": source.cfg.epochs, "learning_rate": source.cfg.learning_rate},
        image_fraction=1 - variant.missing,
    )
    dims = {"image": t.images.shape[-1], "text": len(next(iter(t.texts.values())))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = {m: Cached(dims[m], t.texts) if m in dims else towers.build(m, cfg) for m in variant.modalities.split()}
        model = align.assemble(cfg, built)
        if variant.supervised or variant.attends:
            model.denoiser = extended(source, variant, model, cfg)
    curated, owner = t.curated, np.arange(len(t.curated.materials))
    if variant.shuffled:
        curated, owner = shuffled(curated, seed=source.cfg.seed)
    images = CachedImages(t.images, owner)
    return Shown(cfg, curated, model, torch.device("cpu"), images, variant.missing)
