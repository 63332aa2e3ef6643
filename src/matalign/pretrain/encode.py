"""The public way to embeddings: `load("laptop").embed_structures(structures)`.

A model reads what the curated set holds: structures (numbers, fractional coordinates, lattice), protocols as text, and
standardised micrographs. What it returns lies in one space: unit vectors, compared by their dot product.
"""

import functools
import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from matalign import cache, config, paths, towers
from matalign.config import Pretrain
from matalign.data import dataset
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import align
from matalign.towers import crystal
from matalign.views import draws
from matalign.views.graphs import Graphs

ROWS = 128  # in a batch
EVALUATION = -2  # the epoch whose key the views of evaluation have: never trained or validated on
LONG = 100  # more items than this show a progress bar
THUMBNAIL_PX = 32
SPREAD = 2.5  # standard deviations from a thumbnail's mean grey to black or white
ENCODED = ("crystal", "image", "text")  # modalities that have features
CHUNK = 4096  # vectors that `nearest` compares with at a time


@dataclass(frozen=True)
class Model:
    """A trained model, in evaluation mode."""

    config: Pretrain
    aligned: align.AlignModel

    @property
    def towers(self) -> nn.ModuleDict:
        """Modality -> tower."""
        return self.aligned.towers

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.aligned.log_temperature.device

    def graphs(self, structures: Structures) -> Graphs:
        """Neighbour graphs as this model's crystal tower takes them, where the model is."""
        return crystal.graphs(self.config, structures, self.device)

    def embed_structures(self, structures: Structures) -> Float[np.ndarray, "crystals dim"]:
        """(M, embed_dim) float32 unit vectors of M crystals."""
        return self._crystals(structures, lambda batch: self.aligned.encode("crystal", batch))

    def crystal_features(self, structures: Structures) -> Float[np.ndarray, "crystals width"]:
        """(M, width) float32: the crystal tower's pooled features, before the head."""
        return self._crystals(structures, lambda batch: self._tower("crystal")(batch)[0])

    def crystal_readout(self, structures: Structures) -> Float[np.ndarray, "crystals features"]:
        """(M, features) float32: `crystal.statistics` of all layers of the crystal tower."""
        return self._crystals(structures, lambda b: crystal.statistics(self._tower("crystal")(b)[1]["layers"], b))

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """(n, embed_dim) float32 unit vectors of protocols; frozen layers' features are cached in scratch."""
        features = self._tower("text").features(texts, progress=len(texts) > LONG).to(self.device)
        return self._batched(len(texts), lambda rows: self.aligned.encode("text", features[rows]), "texts")

    def micrographs(
        self, curated: Curated, rows: Int[np.ndarray, " n"], *, seed: int, epoch: int
    ) -> Float[Tensor, "n 1 height width"]:
        """One micrograph of each of some materials of a curated set, as the image tower takes them.

        Seed, epoch (`EVALUATION` for a view that no training shows) and mp-id are the key of the view.
        """
        inputs = towers.load("image").Inputs(self.config, curated, self._tower("image"), self.device)
        return inputs(rows, view_keys(curated, rows, seed=seed, epoch=epoch))

    def embed_images(self, images: Float[Tensor, "images 1 height width"]) -> Float[np.ndarray, "images dim"]:
        """(n, embed_dim) float32 unit vectors of micrographs as `micrographs.render` returns them."""
        self._tower("image")
        encode = lambda rows: self.aligned.encode("image", images[rows].to(self.device))  # noqa: E731
        return self._batched(len(images), encode, "images")

    def _tower(self, modality: str) -> nn.Module:
        if modality not in self.towers:
            raise ValueError(f"this model has no {modality} tower; it was trained on {self.config.modalities}")
        return self.towers[modality]

    def _crystals(self, structures: Structures, encode: Callable) -> np.ndarray:
        self._tower("crystal")
        store = self.graphs(structures) if len(structures) else None
        return self._batched(len(structures), lambda rows: encode(store.batch(rows)), "structures")

    @torch.no_grad()
    def _batched(self, n: int, encode: Callable[[Tensor], Tensor], what: str) -> np.ndarray:
        out = np.zeros((0, self.config.embed_dim), np.float32)
        quiet = n <= LONG or multiprocessing.current_process().name != "MainProcess"
        with tqdm(total=n, desc=what, mininterval=1, disable=quiet) as bar:
            for rows in torch.arange(n).split(ROWS) if n else ():
                made = encode(rows).float().cpu().numpy()
                out = out if len(out) else np.empty((n, made.shape[1]), np.float32)
                out[rows] = made
                bar.update(len(rows))
        return out


def view_keys(curated: Curated, rows: Int[np.ndarray, " n"], *, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """The keys of the views in `Model.micrographs`."""
    ids = curated.materials.mp_id.to_numpy()[rows]
    return np.array([draws.view_seed(seed, epoch, mp_id, 0) for mp_id in ids], np.uint64)


def load(profile_or_path: str | Path, *, modalities: Iterable[str] = (), device: str = "cpu") -> Model:
    """Load a trained model, without what only pretraining needs.

    Args:
        profile_or_path: a profile whose model is in `results/<profile>/pretrained`, or a folder of that kind.
        modalities: whose towers are loaded (a text model takes seconds); none named: all.

    Raises:
        FileNotFoundError: there is no model; the message says how to make it.
        ValueError: the weights do not fit the config, or the text model here is not the one it was trained with.
    """
    folder = Path(profile_or_path)
    if not (folder / "config.json").exists():
        folder = paths.results(str(profile_or_path)) / "pretrained"
    cfg, text_model = settings(folder)
    names = [name for name in cfg.modalities.split() if name in modalities or not modalities]
    model = align.part(cfg, names)
    align.load(model, folder)
    if "text" in model.towers and (here := model.towers["text"].fingerprint) != text_model:
        raise ValueError(f"text model {cfg.text_model!r} has hash {here}; {folder} was trained with {text_model}")
    return Model(cfg, model.to(device).eval())


def settings(folder: Path) -> tuple[Pretrain, str | None]:
    """Parameters that the model in a folder was trained with, and the hash of its text model, if it has one.

    Raises:
        FileNotFoundError: there is no model; the message says how to make it.
        ValueError: its `config.json` is not one of pretraining.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model in {folder}; the stage `pretrain` makes it, or give its folder")
    about = cache.read_json(folder / "config.json")
    if not isinstance(about.get("pretrain"), dict):
        raise ValueError(f"{folder}: not a pretrained model, its config.json has no parameters of pretraining")
    return config.build(Pretrain, about["pretrain"], where=str(folder / "config.json")), about.get("text_model_hash")


def features(profile: str, *, modality: str) -> cache.Result:
    """What `encoded` makes of a modality with a profile's pretrained model and set, made once: the stage `embed`.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model has no such tower.
    """
    curated, weights = dataset.read(paths.curated(profile)), fingerprint(profile, "pretrained")
    file = paths.results(profile) / "features" / f"{modality}.safetensors"
    _, text_model = settings(paths.results(profile) / "pretrained")
    key = {"data": curated.digest, "weights": weights, "text": text_model, "version": version(modality)}
    if not file.exists() or (made := cache.load(file)).pop("key") != cache.digest(key):
        tower = "crystal" if modality == crystal.READOUT else modality
        model = load(profile, modalities=[tower], device="cuda" if torch.cuda.is_available() else "cpu")
        made = encoded(model, curated, modality=modality)
        file.parent.mkdir(parents=True, exist_ok=True)
        cache.save(file, {**made, "key": cache.digest(key)})
    return made


def embed(profile: str) -> None:
    """Make the features of every modality that has some, for the stages that read them."""
    modalities = settings(paths.results(profile) / "pretrained")[0].modalities.split()
    for modality in [m for m in modalities if m in ENCODED] + [crystal.READOUT] * ("crystal" in modalities):
        features(profile, modality=modality)


def version(modality: str) -> int | str:
    """Of the features of a modality, for keys; the readout, which came later, has its own."""
    return config.version("readout" if modality == crystal.READOUT else "embed")


@torch.no_grad()
def encoded(model: Model, curated: Curated, *, modality: str) -> cache.Result:
    """What a model makes of a modality of a curated set (one of `ENCODED`, or `crystal.READOUT`), as in evaluation.

    Returns:
        `pooled` (n, width), the tower's, and `embeddings` (n, embed_dim), unit vectors of the aligned space, both
        float32, of the n materials, or of the n protocols at the model's mask level. Of images also `map`
        (n, cells, channels) float16, the last feature map, and `thumbnails` (n, px, px) uint8. Of the readout
        `pooled` alone, which is `Model.crystal_readout`.
    """
    if modality == crystal.READOUT:
        return {"pooled": model.crystal_readout(curated.structures)}
    tower, out = model._tower(modality), {}
    if modality == "crystal":
        out["pooled"] = model.crystal_features(curated.structures)
    elif modality == "text":
        texts = curated.protocols[f"text_L{model.config.mask_level}"].tolist()
        out["pooled"] = tower.features(texts, progress=True).cpu().numpy()
    else:
        out = _images(model, curated)
    z = model.aligned.heads[modality](torch.from_numpy(out["pooled"]).to(model.device))
    return {**out, "embeddings": F.normalize(z, dim=1).cpu().numpy()}


def _images(model: Model, curated: Curated) -> cache.Result:
    everything, parts = np.arange(len(curated.materials)), []
    for rows in tqdm(np.array_split(everything, -(-len(everything) // ROWS)), desc="images", mininterval=1):
        images = model.micrographs(curated, rows, seed=model.config.seed, epoch=EVALUATION)
        pooled, out = model.towers["image"](images)
        small = F.adaptive_avg_pool2d(images, THUMBNAIL_PX)[:, 0]
        grey = 0.5 + small / small.std((1, 2), keepdim=True).clamp(min=1e-6) / (2 * SPREAD)
        cells = out["map"].flatten(2).transpose(1, 2).half()  # of 21,000 materials at 64 px, a fifth of a GB
        parts.append((pooled, cells, (grey.clamp(0, 1) * 255).round().byte()))
    parts = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return dict(zip(("pooled", "map", "thumbnails"), parts, strict=True))


@functools.cache
def fingerprint(profile: str, folder: str, modality: str = "") -> str:
    """Hash of the saved weights of a model's tower, or of all its towers and heads."""
    files = sorted((paths.results(profile) / folder).glob(f"{modality}*.safetensors"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


@torch.no_grad()
def nearest(
    queries: Float[np.ndarray, "queries dim"], vectors: Float[np.ndarray, "vectors dim"], k: int
) -> tuple[Int[np.ndarray, "queries k"], Float[np.ndarray, "queries k"]]:
    """The k vectors of largest inner product with each query: exact, in memory of one chunk beside the arguments.

    Returns:
        Indices (n, k) of vectors, the most similar first, of equals the one with the smaller index; and the inner
        products (n, k).

    Raises:
        ValueError: k is not between 1 and the number of vectors.
    """
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k must be between 1 and the {len(vectors)} vectors, got {k}")
    queries, vectors = torch.from_numpy(queries), torch.from_numpy(vectors)
    value, index = torch.full((len(queries), k), -torch.inf), torch.zeros((len(queries), k), dtype=torch.long)
    # products by oneDNN: on AMD's processors twice as fast as by MKL, which `@` takes
    queries = queries.to_mkldnn() if torch.backends.mkldnn.is_available() and len(queries) else queries
    for chunk, where in zip(vectors.split(CHUNK), torch.arange(len(vectors)).split(CHUNK)):
        product = F.linear(queries, chunk).to_dense()  # (n, chunk)
        rows = (product.amax(1) > value[:, -1]).nonzero().squeeze(1)  # an equal in a later chunk has a larger index
        v, i = _top(product[rows], min(k, len(chunk)))
        v, i = torch.cat([value[rows], v], 1), torch.cat([index[rows], where[i]], 1)
        v, order = v.sort(dim=1, descending=True, stable=True)
        value[rows], index[rows] = v[:, :k], i.gather(1, order)[:, :k]
    return index.numpy(), value.numpy()


def _top(product: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row in falling order, and where; a row with equals is sorted, the first of them first."""
    value, index = product.topk(min(k + 1, product.shape[1]), 1)
    tied = (value[:, 1:] == value[:, :-1]).any(1)
    if tied.any():
        v, i = product[tied].sort(dim=1, descending=True, stable=True)
        value[tied], index[tied] = v[:, : value.shape[1]], i[:, : value.shape[1]]
    return value[:, :k], index[:, :k]
