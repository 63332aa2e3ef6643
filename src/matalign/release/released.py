"""A released model: `matalign.load("laptop")`, and what can be asked of it.

It is a folder of weights, an index of vectors and `config.json`, which names every file with its hash. It holds no
structure, recipe or DOI: recipes are looked up in the raw files of this machine (`matalign fetch`), and where there are
none the answers come from the embedded, synthetic sample and say so.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from matalign import cache, config, paths
from matalign.config import Pretrain, Recommendation
from matalign.data import crystals, library, sources
from matalign.data.dataset import Structures
from matalign.data.micrographs import Micrograph, model_image
from matalign.data.recipe_texts import read_protocol
from matalign.pretrain import align, encode
from matalign.release import ensemble, index, packed
from matalign.release.ensemble import Calibration, Predictor
from matalign.release.index import Index
from matalign.tasks.fit import on_threads, weights
from matalign.tasks.regression import METAL
from matalign.tasks.synthesis import precursors, recommendation

FORMAT = 1  # of the folder
PROBABILITY = "metal_probability"
CHOICES = 10  # protocols looked at for each that is wanted: some are alike


@dataclass(frozen=True)
class Recipes:
    """What `Released.recommend` answers."""

    formula: str
    protocols: pd.DataFrame  # the nearest in the space, best first, with similarity, conditions and DOI
    precursor_sets: pd.DataFrame  # ranked, each with its probability and the range of its temperatures, °C
    temperature_C: tuple[float, float]  # lowest and highest of the protocols' highest temperatures; NaN if none is told
    source: str  # where recipes come from
    synthetic: bool  # whether they are of the embedded sample


@dataclass(frozen=True)
class Released:
    """A trained model with predictors and an index.

    A structure is a pymatgen Structure, an ASE Atoms, a path to a CIF or POSCAR, or an OPTIMADE record; a protocol is a
    text, a path or a dict of fields; see `recipe_texts`. `dataset.Structures` do for several structures.
    """

    folder: Path
    about: dict[str, Any]  # its `config.json`
    model: encode.Model
    predictors: tuple[Predictor, ...]
    calibrations: dict[str, Calibration]  # target -> what its intervals are made by
    index: Index

    def embed(
        self,
        *,
        structures: Sequence[Any] | Structures | None = None,
        protocols: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
    ) -> Float[np.ndarray, "n dim"]:
        """Unit vectors in the shared space, compared by their inner product.

        Args:
            structures: n of them; or
            protocols: n texts or structured records; or
            images: n micrographs, each a pair (path or array, Å per pixel; None: as the file states), or from
                `matalign.read_micrograph`.

        Returns:
            (n, embed_dim) float32.

        Raises:
            ValueError: not exactly one kind is given, the model lacks its tower, or an item cannot be read.
        """
        given = {"structures": structures, "protocols": protocols, "images": images}
        named = [name for name, items in given.items() if items is not None]
        if len(named) != 1:
            raise ValueError(f"expected one of structures, protocols and images, got {' and '.join(named) or 'none'}")
        if structures is not None:
            return self.model.embed_structures(packed_structures(structures))
        if protocols is not None:
            level = self.model.config.mask_level
            return self.model.embed_texts([read_protocol(item, level=level) for item in protocols])
        scale = {"to_pixel_A": self.model.config.pixel_A, "px": self.model.config.image_px}
        found = [
            model_image(image, pixel_A=pixel_A, **scale)
            for image, pixel_A in ((i, None) if isinstance(i, Micrograph) else i for i in images)
        ]
        shape = (len(found), 1, scale["px"], scale["px"])
        return self.model.embed_images(torch.from_numpy(np.array(found, np.float32).reshape(shape)))

    def predict(self, structures: Sequence[Any] | Structures) -> pd.DataFrame:
        """Properties of structures.

        Args:
            structures: n of them.

        Returns:
            n rows: `formula`; of each of formation energy (eV/atom), gap (eV), K and G (GPa) the value, `_low` and
            `_high`, an interval meant to hold 90 %, see the model card for what it does hold; and
            `metal_probability`, between the least and the greatest of any member of the ensemble.
        """
        packed = packed_structures(structures)
        out: dict[str, Any] = {"formula": [formula(numbers) for numbers, _, _ in packed]}
        if len(packed):
            members = ensemble.said(self.predictors, self.model.graphs(packed))
        else:
            members = {target: np.zeros((1, 0)) for predictor in self.predictors for target in predictor.targets}
        for target, (value, low, high) in ensemble.values(members, self.calibrations).items():
            name = PROBABILITY if target == METAL else target
            out |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return pd.DataFrame(out)

    def neighbours(self, query: Any, k: int = 10, *, among: str = "crystal") -> pd.DataFrame:
        """What lies nearest in the space.

        Args:
            query: one structure, a list of structures, or the (n, dim) vectors that `embed` gives of any modality.
            k: how many for each.
            among: `crystal`, the materials of the profile (with properties as this model predicts them), or `protocol`.

        Returns:
            Rows {query, rank, similarity} with `mp_id`, `formula`, `chemsys` and predicted properties, or with
            `protocol_id`; `recommend` looks up what stands behind such an id.

        Raises:
            ValueError: no such modality; k is not between 1 and its number of vectors; or an item cannot be read.
        """
        vectors = self._vectors(query)
        rows, similarity = self.index.nearest(vectors, k, among=among)
        place = {"query": np.repeat(np.arange(len(rows)), k), "rank": np.tile(np.arange(1, k + 1), len(rows))}
        found = self.index.tables[among].iloc[rows.ravel()].reset_index(drop=True)
        return pd.concat([pd.DataFrame({**place, "similarity": similarity.ravel()}), found], axis=1)

    def recommend(self, structure: Any, k: int = 5) -> Recipes:
        """How a material might be made: protocols of its neighbours in the space, and precursor sets for its formula.

        Args:
            structure: one.
            k: protocols, and precursor sets.

        Raises:
            ValueError: the structure cannot be read, k is below 1, or the model has no text tower.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        packed = packed_structures(structure if isinstance(structure, Structures) else [structure])
        if len(packed) != 1:
            raise ValueError(f"expected one structure, got {len(packed)}")
        vectors, known = self._protocols
        rows, similarity = encode.nearest(
            self.model.embed_structures(packed) @ self.index.axes.T, vectors, min(k * CHOICES, len(vectors))
        )
        near = known.iloc[rows[0]].assign(similarity=similarity[0])
        near = near.drop_duplicates(["target_formula", "method", "text_L0"]).head(k).reset_index(drop=True)
        near = near.rename(columns={"text_L0": "text"})
        columns = ["similarity", "target_formula", "method", "precursors", "max_temperature_C", "text", "doi"]
        heat = near.max_temperature_C.dropna()
        with on_threads(self._study.cfg.threads):
            sets = recommendation.recommend(self._study, formula(packed[0][0]), k=k)["sets"]
        sets = [{**row, "precursors": " + ".join(map(reduced, row["precursors"].split(" + ")))} for row in sets]
        return Recipes(
            formula=formula(packed[0][0]),
            protocols=near[[*columns, "protocol_id"]],
            precursor_sets=pd.DataFrame(sets),
            temperature_C=(float(heat.min()), float(heat.max())) if len(heat) else (np.nan, np.nan),
            source=self.source,
            synthetic=self.raw == paths.SAMPLE,
        )

    @property
    def raw(self) -> Path:
        """Folder of the raw files that recipes come from."""
        own = paths.ROOT / self.about["recommendation"]["raw"]
        return own if library.present(own) else paths.SAMPLE

    @property
    def source(self) -> str:
        """Where recipes come from, in words."""
        if self.raw == paths.SAMPLE:
            return f"the embedded sample, which is synthetic; {library.FETCH}"
        return f"the raw files in {self.about['recommendation']['raw']}"

    def _vectors(self, query: Any) -> np.ndarray:
        if isinstance(query, np.ndarray):
            vectors = np.atleast_2d(query).astype(np.float32)
            if vectors.shape[1] != self.model.config.embed_dim:
                raise ValueError(f"vectors must have {self.model.config.embed_dim} columns, got {vectors.shape}")
            return vectors
        return self.embed(structures=query if isinstance(query, list | Structures) else [query])

    @cached_property
    def _protocols(self) -> tuple[np.ndarray, pd.DataFrame]:
        """Vectors on the index's axes and recipes of the protocols that can be looked up on this machine."""
        known = library.read(self.raw)
        mine = self.index.tables.get("protocol", pd.DataFrame({"protocol_id": []}))
        there = mine.protocol_id.isin(set(known.protocol_id)).to_numpy()
        if there.any():
            rows = known.set_index("protocol_id").loc[mine.protocol_id[there]].reset_index()
            return self.index.vectors["protocol"][there], rows
        z = self.model.embed_texts(known[f"text_L{self.model.config.mask_level}"].tolist())
        return (z @ self.index.axes.T).astype(np.float32), known

    @cached_property
    def _study(self) -> "Remembered":
        where = str(self.folder / "config.json")
        cfg = config.build(Recommendation, self.about["recommendation"], where=where)
        cfg = replace(cfg, raw=str(self.raw))
        with on_threads(cfg.threads):  # `prepare` sets the number of threads for good
            study = recommendation.prepare(cfg)
        return Remembered(study.cfg, study.known, study.val, study.test, study.conditions)


def packed_structures(items: Sequence[Any] | Structures) -> Structures:
    """Structures of any kind as the model takes them; raises as `read_structure`, with the item's number from 0."""
    if isinstance(items, Structures):
        return items
    found = []
    for number, item in enumerate(items):
        try:
            found.append(crystals.read_structure(item).arrays)
        except ValueError as error:
            raise ValueError(f"item {number}: {error}") from None
    return Structures.pack(found)


def formula(numbers: np.ndarray) -> str:
    """The reduced formula of atoms by their numbers, as the curated sets spell it."""
    from pymatgen.core import Composition, Element

    return Composition(Counter(Element.from_Z(int(z)).symbol for z in numbers)).reduced_formula


def reduced(written: str) -> str:
    """A formula as chemists spell it: SrCO3 for C1O3Sr1."""
    from pymatgen.core import Composition

    return Composition(written).reduced_formula


class Remembered(recommendation.Study):
    """A study whose networks are trained once a machine: they are kept in scratch."""

    @cached_property
    def networks(self) -> list[precursors.Towers]:
        """The learned scorer, as `recommendation.Study.networks`."""
        names = ("width", "dropout", "networks", "epochs", "batch_size", "learning_rate", "seed", "threads")
        key = {name: getattr(self.cfg, name) for name in names} | {"version": config.version("synthesis")}
        key["training"] = cache.digest([(r.fractions, sorted(r.precursors)) for r in self.training])

        def compute() -> dict[str, np.ndarray]:
            trained = recommendation.Study.networks.func(self)
            return {f"{i}.{k}": w.numpy() for i, model in enumerate(trained) for k, w in weights(model).items()}

        kept, out = cache.memo("recommend", key, compute), []
        for i in range(self.cfg.networks):
            model = precursors.Towers(self.vocabulary, width=self.cfg.width, dropout=self.cfg.dropout)
            mine = {k.partition(".")[2]: torch.from_numpy(w) for k, w in kept.items() if k.startswith(f"{i}.")}
            model.load_state_dict(mine)
            out.append(model.eval())
        return out


# Reading the folder


def load(profile_or_path: str | Path) -> Released:
    """Load a released model, and check that it is whole.

    Args:
        profile_or_path: a profile whose model is in `results/<profile>/model`, or a folder of that kind.

    Raises:
        FileNotFoundError: there is no model, or one of its files is missing.
        ValueError: a newer format, a file that has changed, weights that do not fit, or another text model here.
    """
    folder = Path(profile_or_path)
    if not (folder / "config.json").exists():
        folder = paths.results(str(profile_or_path)) / "model"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model in {folder}; the stage `release` makes it, or give its folder")
    about = checked(folder)
    calibrations = {target: Calibration(**row) for target, row in about["calibrations"].items()}
    return Released(folder, about, towers(folder, about), ensembles(folder, about), calibrations, index.read(folder))


def checked(folder: Path) -> dict[str, Any]:
    """A released model's `config.json`, its files compared with the hashes that it names; raises as `load`."""
    about = json.loads((folder / "config.json").read_text())
    if "format" not in about:
        raise ValueError(f"{folder}: not a released model, its config.json has no format")
    if about["format"] > FORMAT:
        raise ValueError(f"{folder}: format {about['format']} is newer than {FORMAT}, update matalign to read it")
    for name, expected in about["files"].items():
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: {name} is missing; of {len(about['files'])} files, all are needed")
        if (got := sources.file_hash(folder / name)) != expected:
            raise ValueError(f"{folder / name}: expected sha256 {expected}, got {got}")
    return about


def towers(folder: Path, about: dict[str, Any]) -> encode.Model:
    """The aligned model of a folder; raises as `load`."""
    cfg = config.build(Pretrain, about["pretrain"], where=str(folder / "config.json"))
    model = align.build(cfg, initialise=False)
    kept = packed.read(folder, about["weights"])
    try:
        model.load_weights(packed.restored(kept, model.weights(), bits=about["image_bits"]))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if "text" in model.towers and model.towers["text"].fingerprint != about["text_model_hash"]:
        here, then = model.towers["text"].fingerprint, about["text_model_hash"]
        raise ValueError(f"text model {cfg.text_model!r} has hash {here}; {folder} was trained with {then}")
    return encode.Model(cfg, model.eval())


def ensembles(folder: Path, about: dict[str, Any]) -> tuple[Predictor, ...]:
    """The predictors of a folder; raises as `load`."""
    cfg = config.build(Pretrain, about["pretrain"], where=str(folder / "config.json"))
    kept, out = packed.read(folder, about["predictor_weights"]), []
    for number, group in enumerate(about["predictors"]):
        members = []
        for seed in range(group["members"]):
            member, start = ensemble.network(cfg, group["tower"], len(group["targets"])), f"{number}.{seed}."
            mine = {k.removeprefix(start): w for k, w in kept.items() if k.startswith(start)}
            try:
                member.load_state_dict(packed.restored(mine, member.state_dict(), bits=about["image_bits"]))
            except ValueError as error:
                raise ValueError(f"{folder}: member {seed} for {', '.join(group['targets'])}: {error}") from None
            members.append(member)
        scale = np.array(group["mean"]), np.array(group["std"])
        out.append(Predictor(tuple(group["targets"]), tuple(members), *scale))
    return tuple(out)
