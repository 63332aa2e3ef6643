"""From a trained model to `atlas.html`: vectors of crystals, protocols and micrographs, their map, their neighbours.

What the page may hold is decided by `Content.open`. The published page of real data has identifiers, formulas, what the
model computed (places, neighbours, predictions) and nothing out of the sources. The page of the sample, and one that is
built for oneself, have cells, labels, simulated micrographs and recipes besides.
"""

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from matalign import cache, config, elements, paths, quantities
from matalign.config import Atlas, Pretrain
from matalign.data import dataset
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import encode
from matalign.report.atlas import layout
from matalign.views import micrographs, references, registration

NAMES = {"crystal": "crystals", "text": "protocols", "image": "micrographs"}  # of modalities, on the page
MAX_BYTES = 15_000_000
TOP = 10  # nearest that the scores are taken on
THUMBNAIL_PX = encode.THUMBNAIL_PX
NO_PICTURES = np.zeros((0, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
STEPS = 65535  # of a coordinate
PROPERTIES = [q.column for q in quantities.TARGETS if q.unit]
# Name, colour in light and in dark: Okabe and Ito's, which stay apart for the colour-blind, lifted for dark.
CLASSES = (
    ("oxides", "#0072B2", "#3D8FE0"),
    ("oxides with another non-metal", "#56B4E9", "#9AD5F5"),
    ("halides", "#009E73", "#1DB98B"),
    ("chalcogenides", "#E69F00", "#F0B429"),
    ("pnictides", "#CC79A7", "#DB8FBA"),
    ("borides, carbides, silicides, hydrides", "#D55E00", "#EF7B2B"),
    ("intermetallics and elements", "#8A8F98", "#7F858F"),
)
ANIONS = (
    ("O",),
    (),
    ("F", "Cl", "Br", "I"),
    ("S", "Se", "Te"),
    ("N", "P", "As", "Sb", "Bi"),
    ("H", "B", "C", "Si", "Ge"),
)
NON_METALS = ("H", "B", "C", "N", "Si", "P", "S", "As", "Se", "Te", "F", "Cl", "Br", "I")


@dataclass(frozen=True)
class Space:
    """Unit vectors of each modality, and the row of the curated set that each belongs to."""

    vectors: Mapping[str, np.ndarray]  # modality -> (n, dim) float32
    of: Mapping[str, np.ndarray]  # modality -> (n,)
    thumbnails: np.ndarray  # (images, THUMBNAIL_PX, width) uint8; micrographs as the model was shown them, or `beside`

    def nearest(self, query: str, target: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and cosines (n, k) of each query's nearest of a modality, less itself."""
        if query == target:
            vectors = self.vectors[query]
            index, cosine = encode.nearest(vectors, vectors, min(k + 1, len(vectors)))
            keep = layout.others(index)
            return index[keep].reshape(len(vectors), -1), cosine[keep].reshape(len(vectors), -1)
        return encode.nearest(self.vectors[query], self.vectors[target], min(k, len(self.of[target])))

    def recall(self, query: str, *, centred: bool) -> float:
        """Share of a modality's items whose own crystal is among the `TOP` nearest crystals.

        Args:
            centred: subtract each modality's mean first (modalities lie apart: Liang et al., NeurIPS 2022); measured to
                tell whether it would help.
        """
        query_vectors, crystals = self.vectors[query], self.vectors["crystal"]
        if centred:
            query_vectors, crystals = (
                (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
                for z in (query_vectors - query_vectors.mean(0), crystals - crystals.mean(0))
            )
        index, _ = encode.nearest(query_vectors, crystals, min(TOP, len(crystals)))
        return float((self.of["crystal"][index] == self.of[query][:, None]).any(1).mean())


def space(curated: Curated, made: Mapping[str, cache.Result]) -> Space:
    """The vectors of a set, as `encode.encoded` made them: crystals, protocols, one micrograph of each crystal."""
    thumbnails = made["image"]["thumbnails"] if "image" in made else NO_PICTURES
    rows = np.arange(len(curated.materials))
    of = {"crystal": rows, "text": curated.materials.mp_id.searchsorted(curated.protocols.mp_id), "image": rows}
    return Space({name: made[name]["embeddings"] for name in NAMES if name in made}, of, thumbnails)


def modalities(curated: Curated, pretrain: Pretrain) -> list[str]:
    """Modalities of the map: those the model was trained on and the set has."""
    return [m for m in NAMES if m in pretrain.modalities.split() and (m != "text" or len(curated.protocols))]


@dataclass(frozen=True)
class Map:
    """Where everything lies, what is near it in the space, and how far the map is to be trusted."""

    points: Mapping[str, np.ndarray]  # modality -> (n, 2)
    nearest: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]  # (query, target) -> rows and cosines (n, k)
    scores: Mapping[str, Any]


def place(cfg: Atlas, found: Space) -> Map:
    """The map: crystals (ValueError below three) by t-SNE, whatever else beside the crystals that are nearest to it."""
    crystals = found.vectors["crystal"]
    if len(crystals) < 3:
        raise ValueError(f"a map needs three crystals or more, got {len(crystals)}")
    k = dict.fromkeys(found.vectors, cfg.neighbours) | {"crystal": max(cfg.neighbours, TOP)}
    near = {(a, b): found.nearest(a, b, k[b]) for a in found.vectors for b in found.vectors}
    own = near["crystal", "crystal"][0]
    rest = [name for name in found.vectors if name != "crystal"]

    def compute() -> cache.Result:
        points = layout.tsne(crystals, attracted=cfg.attracted, iterations=cfg.iterations)
        drawn = {m: layout.place(found.vectors[m], crystals, points, attracted=cfg.attracted) for m in rest}
        return {"crystal": points, **drawn}

    key = {name: hashlib.blake2b(each.data, digest_size=8).hexdigest() for name, each in found.vectors.items()}
    key |= {"attracted": cfg.attracted, "iterations": cfg.iterations, "version": config.version("embed")}
    points = cache.memo("atlas-map", key, compute)
    nearest = {pair: tuple(each[:, : cfg.neighbours] for each in both) for pair, both in near.items()}
    recalls = [
        {"of": NAMES[name], "top": TOP, "centred": centred, "recall": found.recall(name, centred=centred)}
        for name in rest
        for centred in (False, True)
    ]
    scores = {
        "counts": {NAMES[name]: len(xy) for name, xy in points.items()},
        "map": layout.kept(own[:, :TOP], crystals, points["crystal"]),
        "principal_components": layout.kept(own[:, :TOP], crystals, layout.principal(crystals)),
        "own_crystal": recalls,
    }
    return Map(points, nearest, scores)


def classes(structures: Structures) -> np.ndarray:
    """(M,) row of `CLASSES` of each crystal: by its most electronegative element (Pauling), the anion.

    An oxide that has another non-metal beside oxygen (phosphates, silicates, hydroxides, …) is told from those that do
    not. Elements, and compounds whose most electronegative element is no anion, are the last class.
    """
    present = structures.fractions() > 0  # (M, 119)
    anion = np.where(present, np.nan_to_num(elements.ELECTRONEGATIVITY, nan=-1), -2).argmax(1)
    out = np.full(len(structures), len(CLASSES) - 1)
    for row, symbols in enumerate(ANIONS):
        out[np.isin(anion, [elements.SYMBOLS.index(s) for s in symbols])] = row
    second = present[:, [elements.SYMBOLS.index(s) for s in NON_METALS]].any(1)
    out[(out == 0) & second] = 1
    out[present.sum(1) == 1] = len(CLASSES) - 1
    return out


@dataclass(frozen=True)
class Content:
    """What a page shows of a map."""

    profile: str
    curated: Curated
    space: Space
    map: Map
    predictions: pd.DataFrame  # rows as `curated.materials`, columns of `PROPERTIES`; none where no model has said any
    local: bool  # built for oneself

    @property
    def open(self) -> bool:
        """Whether what the sources hold may be shown: the sample is the project's own, a local page stays here."""
        return self.local or self.curated.synthetic

    @property
    def properties(self) -> pd.DataFrame:
        """(M, …) what points are coloured by: labels where they may be shown, else the model's predictions."""
        table = self.curated.materials if self.open else self.predictions
        table = table[[name for name in PROPERTIES if name in table]]
        return table.loc[:, table.notna().any()]


def payload(content: Content) -> dict[str, Any]:
    """What the page's script reads: JSON values, and under `arrays` typed arrays; ids and formulas are lines."""
    materials, found = content.curated.materials, content.map
    low = min(xy.min() for xy in found.points.values())
    step = (max(xy.max() for xy in found.points.values()) - low) / STEPS or 1.0
    table = content.properties
    arrays = {"class": classes(content.curated.structures).astype(np.uint8)}
    for name, column in {"ids": materials.mp_id, "formulas": materials.formula}.items():
        arrays[name] = np.frombuffer("\n".join(column).encode(), np.uint8)
    for name, xy in found.points.items():
        arrays[f"{NAMES[name]}/xy"] = np.round((xy - low) / step).astype(np.uint16)
        arrays[f"{NAMES[name]}/of"] = fitting(content.space.of[name])
    for (query, target), (index, cosine) in found.nearest.items():
        arrays[f"{NAMES[query]}/{NAMES[target]}"] = fitting(index)
        arrays[f"{NAMES[query]}/{NAMES[target]}/cosine"] = np.round(cosine.clip(-1, 1) * 127).astype(np.int8)
    for name in table:
        arrays[f"property/{name}"] = table[name].to_numpy(np.float32)
    labelled = "synthetic" if content.curated.synthetic else "labelled" if content.open else "predicted"
    out = {
        "profile": content.profile,
        "synthetic": content.curated.synthetic,
        "local": content.local,
        "scores": found.scores,
        "classes": [dict(zip(("name", "light", "dark"), each)) for each in CLASSES],
        "properties": [
            {"name": q.column, "label": q.name, "unit": q.unit, "log": q.logarithmic} for q in map(quantities.of, table)
        ],
        "labelled": labelled,
    }
    if content.open:
        out |= opened(content, arrays)
    return out | {"arrays": {name: encoded(array) for name, array in arrays.items()}}


def opened(content: Content, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What an open page has besides: cells (added to `arrays`), recipes and micrographs."""
    s, protocols = content.curated.structures, content.curated.protocols
    arrays["cell/lattice"] = s.lattice.astype(np.float32)
    arrays["cell/first"] = s.ptr.astype(np.uint32)
    arrays["cell/number"] = s.numbers.astype(np.uint8)
    arrays["cell/fraction"] = np.round(s.frac_coords % 1 * 256).astype(np.int64).astype(np.uint8)  # 256 is 0 again
    out: dict[str, Any] = {
        "symbols": elements.SYMBOLS,
        "radius_A": np.nan_to_num(elements.VALUES[:, elements.PROPERTIES.index("radius_A")], nan=1.5).tolist(),
    }
    if "text" in content.map.points:
        out["recipes"] = protocols[["text_L0", "method", "doi"]].to_numpy().tolist()
    if len(content.space.thumbnails):
        out["micrographs"] = {"px": THUMBNAIL_PX, "wide": content.space.thumbnails.shape[2]}
        out["micrographs"] |= sheet(content.space.thumbnails)
    return out


def beside(thumbnails: np.ndarray, curated: Curated, pretrain: Pretrain) -> np.ndarray:
    """Micrographs (n, px, px), and right of each its crystal's pristine picture registered with it, and the residual.

    Args:
        thumbnails: uint8, as `encode.encoded` makes them of all crystals.
        curated: the crystals.
        pretrain: of the model whose views they are.

    Returns:
        (n, px, 3 px) uint8.
    """
    optics = micrographs.Optics(image_px=pretrain.image_px, pixel_A=pretrain.pixel_A)
    rows = np.arange(len(curated.materials))
    keys = encode.view_keys(curated, rows, seed=pretrain.seed, epoch=encode.EVALUATION)
    axis = micrographs.draw_views(curated.structures.lattice, keys, optics=optics).axis.numpy()
    coarse = replace(optics, image_px=THUMBNAIL_PX, pixel_A=pretrain.pixel_A * pretrain.image_px / THUMBNAIL_PX)
    images = torch.from_numpy(thumbnails)[:, None].float()
    refs = references.references(curated.structures, rows, axis, optics=coarse)
    found = registration.register(images, refs, rows, pixel_A=coarse.pixel_A, tolerance=0.01)
    spread = images.std((1, 2, 3), keepdim=True).clamp(min=1.0)
    shown = torch.cat([images, 127.5 + spread * found.reference, 127.5 + found.residual], dim=3)[:, 0]
    return shown.clamp(0, 255).round().byte().numpy()


def fitting(index: np.ndarray) -> np.ndarray:
    """Whole numbers in 16 bits if they fit, else in 32."""
    return index.astype(np.uint16 if index.max(initial=0) <= STEPS else np.uint32)


def encoded(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON: its type, shape, and little-endian bytes, deflated, in base64."""
    array = np.ascontiguousarray(array)
    data = base64.b64encode(zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes(), 9)).decode()
    return {"type": array.dtype.name, "shape": array.shape, "data": data}


def sheet(pictures: np.ndarray) -> dict[str, Any]:
    """Grey pictures (n, px, width) side by side in one JPEG: how many stand in a row, and the image as an address."""
    n, px, wide = pictures.shape
    across = int(np.ceil(np.sqrt(n)))
    padded = np.zeros((across * across, px, wide), np.uint8)
    padded[:n] = pictures
    whole = padded.reshape(across, across, px, wide).swapaxes(1, 2).reshape(across * px, across * wide)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, format="JPEG", quality=60)
    return {"across": across, "image": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}


def page(data: Mapping[str, Any]) -> str:
    """The page: template, style, script and data in one file; ValueError if it would be larger than `MAX_BYTES`."""
    folder = Path(__file__).parent
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    parts = {
        "TITLE": f"matalign atlas – {data['profile']}",
        "STYLE": (folder / "page.css").read_text(),
        "SCRIPT": (folder / "page.js").read_text(),
        "DATA": text.replace("<", "\\u003c"),  # nothing in it ends the element or opens another
    }
    out = (folder / "page.html").read_text()
    for name, part in parts.items():
        out = out.replace(f"@{name}@", part)
    if len(out.encode()) > MAX_BYTES:
        raise ValueError(f"the page has {len(out.encode()):,} bytes, more than {MAX_BYTES:,}")
    return out


def predictions(profile: str, mp_ids: Iterable[str]) -> pd.DataFrame:
    """What the profile's released model says of materials, NaN where it lacks one; no columns without a model."""
    file = paths.results(profile) / "model" / "crystals.parquet"
    if not file.exists():
        return pd.DataFrame(index=range(len(list(mp_ids))))
    return pd.read_parquet(file).set_index("mp_id").reindex(list(mp_ids)).reset_index()


def gather(cfg: Atlas, *, local: bool = False) -> Content:
    """Read a profile's set, its model and its predictions, and make the map; FileNotFoundError: one is not there."""
    torch.set_num_threads(cfg.threads)
    curated = dataset.read(paths.curated(cfg.profile))
    pretrain, _ = encode.settings(paths.results(cfg.profile) / "pretrained")
    made = {m: encode.features(cfg.profile, modality=m) for m in modalities(curated, pretrain)}
    found = space(curated, made)
    if (local or curated.synthetic) and len(found.thumbnails):
        found = replace(found, thumbnails=beside(found.thumbnails, curated, pretrain))
    told = predictions(cfg.profile, curated.materials.mp_id)
    return Content(cfg.profile, curated, found, place(cfg, found), told, local)


def write(content: Content) -> Path:
    """Write `results/<profile>/atlas.html`, or a local `data/index/atlas-<profile>.html`; raises as `page`."""
    results = paths.results(content.profile) / "atlas.html"
    file = paths.DATA / "index" / f"atlas-{content.profile}.html" if content.local else results
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(payload(content)), encoding="utf-8")
    return file
