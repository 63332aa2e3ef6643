"""A released model: `matalign.load("laptop")`, and what can be asked of it.

It is a folder of weights, an index of vectors and `config.json`; `integrity` compares them with their hashes. Each part
is read when a question first needs it, and what answers it is imported then: a prediction reads the predictors alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from matalign import config, paths, read_structure
from matalign.config import Pretrain
from matalign.data import formulas
from matalign.data.structures import Structures
from matalign.quantities import METAL
from matalign.release import depth, integrity, predictors, weights
from matalign.release.predictors import Calibration, Predictor
from matalign.towers import crystal

if TYPE_CHECKING:
    import pandas as pd

    from matalign.pretrain.encode import Model
    from matalign.release.index import Index
    from matalign.release.recipes import Cookbook, Recipes

PROBABILITY = "metal_probability"
TRUNK = "the image tower's files {files} are not in {folder}; copy them from results/{profile}/model of the repository"


@dataclass(frozen=True)
class Released:
    """A trained model with predictors and an index.

    A structure is a pymatgen Structure, an ASE Atoms, a path to a CIF or POSCAR, or an OPTIMADE record; a protocol is a
    text, a path or a dict of fields; see `recipe_texts`. `Structures` do for several structures.
    """

    folder: Path
    about: dict[str, Any]  # its `config.json`

    @cached_property
    def config(self) -> Pretrain:
        """How its towers were made."""
        return config.build(Pretrain, self.about["pretrain"], where=str(self.folder / "config.json"))

    @cached_property
    def model(self) -> "Model":
        """All its towers."""
        return towers(self.folder, self.about, self.config.modalities.split())

    @cached_property
    def predictors(self) -> tuple[Predictor, ...]:
        """An ensemble for each group of targets."""
        return ensembles(self.folder, self.about)

    @cached_property
    def depths(self) -> list[depth.Depth]:
        """Of each ensemble the crystals that it was trained on."""
        return depth.read(self.folder)

    @cached_property
    def index(self) -> "Index":
        """What neighbours are looked for in."""
        from matalign.release import index

        return index.read(self.folder)

    @cached_property
    def cookbook(self) -> "Cookbook":
        """The recipes of this machine."""
        from matalign.release import recipes

        return recipes.Cookbook(self)

    def tower(self, modality: str) -> "Model":
        """A model of one tower and its head.

        Raises:
            ValueError: the model has no such tower.
            FileNotFoundError: its files are not here.
        """
        if modality not in self._towers:
            self._towers[modality] = towers(self.folder, self.about, [modality])
        return self._towers[modality]

    def embed(
        self,
        *,
        structures: Sequence[Any] | Structures | None = None,
        protocols: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
    ) -> Float[np.ndarray, "n dim"]:
        """(n, embed_dim) float32 unit vectors in the shared space, compared by their inner product.

        Args:
            structures: n of them; or
            protocols: n texts or structured records; or
            images: n micrographs, each a pair (path or array, Å per pixel; None: as the file states), or from
                `matalign.read_micrograph`.

        Raises:
            ValueError: not exactly one kind is given, the model lacks its tower, or an item cannot be read.
            FileNotFoundError: the tower's files are not here.
        """
        given = {"structures": structures, "protocols": protocols, "images": images}
        named = [name for name, items in given.items() if items is not None]
        if len(named) != 1:
            raise ValueError(f"expected one of structures, protocols and images, got {' and '.join(named) or 'none'}")
        if structures is not None:
            return self.tower("crystal").embed_structures(packed(structures))
        if protocols is not None:
            from matalign.data.readers.recipe_texts import read_protocol

            texts = [read_protocol(item, level=self.config.mask_level) for item in protocols]
            return self.tower("text").embed_texts(texts)
        import torch

        from matalign.data.readers.micrographs import Micrograph, model_image

        pairs = ((image, None) if isinstance(image, Micrograph) else image for image in images)
        scale = {"to_pixel_A": self.config.pixel_A, "px": self.config.image_px}
        views = [model_image(image, pixel_A=pixel_A, **scale) for image, pixel_A in pairs]
        shape = (len(views), 1, scale["px"], scale["px"])
        return self.tower("image").embed_images(torch.from_numpy(np.array(views, np.float32).reshape(shape)))

    def predict(self, structures: Sequence[Any] | Structures) -> "pd.DataFrame":
        """Properties of structures.

        Returns:
            n rows: `formula`; of each of formation energy (eV/atom), gap (eV), K and G (GPa) the value, `_low` and
            `_high`, an interval meant to hold 90 %, see the model card for what it does hold; `metal_probability`,
            between the least and the greatest of any member of the ensemble; and `warning`: what about a crystal is out
            of the model's depth, or "". Intervals widen with the distance from training.
        """
        import pandas as pd

        return pd.DataFrame(self.properties(structures))

    def properties(self, structures: Sequence[Any] | Structures) -> dict[str, Any]:
        """The columns of `predict`."""
        crystals = packed(structures)
        out: dict[str, Any] = {"formula": [formulas.spelled(numbers) for numbers, _, _ in crystals]}
        groups = [predictor.targets for predictor in self.predictors]
        members = {target: np.zeros((1, 0)) for targets in groups for target in targets}
        features = [np.zeros((0, 1), np.float32)] * len(self.predictors)
        if len(crystals):
            store = crystal.graphs(self.config, crystals)
            members, features = predictors.member_predictions(self.predictors, store)
        found = [each(z, crystals) for each, z in zip(self.depths, features, strict=True)]
        around = {t: each for targets, (all_, _) in zip(groups, found) for t, each in zip(targets, all_, strict=True)}
        warnings = depth.warnings({targets: reasons for targets, (_, reasons) in zip(groups, found)})
        calibrations = {target: Calibration(**row) for target, row in self.about["calibrations"].items()}
        for target, (value, low, high) in predictors.values(members, calibrations, around).items():
            name = PROBABILITY if target == METAL else target
            out |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return out | {"warning": warnings}

    def neighbours(self, query: Any, k: int = 10, *, among: str = "crystal") -> "pd.DataFrame":
        """What lies nearest in the space.

        Args:
            query: one structure, a list of structures, or the (n, dim) vectors that `embed` gives of any modality.
            among: `crystal`, the materials of the profile (with properties as this model predicts them), or `protocol`.

        Returns:
            Rows {query, rank, similarity} with `mp_id`, `formula`, `chemsys` and predicted properties, or with
            `protocol_id`; `recommend` looks up what stands behind such an id.

        Raises:
            ValueError: no such modality; k is not between 1 and its number of vectors; or an item cannot be read.
        """
        import pandas as pd

        if isinstance(query, np.ndarray):
            vectors = np.atleast_2d(query).astype(np.float32)
            if vectors.shape[1] != self.config.embed_dim:
                raise ValueError(f"vectors must have {self.config.embed_dim} columns, got {vectors.shape}")
        else:
            vectors = self.embed(structures=query if isinstance(query, list | Structures) else [query])
        rows, similarity = self.index.nearest(vectors, k, among=among)
        place = {"query": np.repeat(np.arange(len(rows)), k), "rank": np.tile(np.arange(1, k + 1), len(rows))}
        near = self.index.tables[among].iloc[rows.ravel()].reset_index(drop=True)
        return pd.concat([pd.DataFrame({**place, "similarity": similarity.ravel()}), near], axis=1)

    def recommend(self, structure: Any, k: int = 5) -> "Recipes":
        """How a material might be made: protocols of its neighbours in the space, and precursor sets for its formula.

        Raises:
            ValueError: the structure cannot be read, k is below 1, or the model has no text tower.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        crystals = packed(structure if isinstance(structure, Structures) else [structure])
        if len(crystals) != 1:
            raise ValueError(f"expected one structure, got {len(crystals)}")
        return self.cookbook.recommend(crystals, k)

    @cached_property
    def _towers(self) -> dict[str, "Model"]:
        return {}


def packed(items: Sequence[Any] | Structures) -> Structures:
    """Structures of any kind as the model takes them; raises as `read_structure`, with the item's number from 0."""
    if isinstance(items, Structures):
        return items
    cells = []
    for number, item in enumerate(items):
        try:
            cells.append(read_structure(item).arrays)
        except ValueError as error:
            raise ValueError(f"item {number}: {error}") from None
    return Structures.pack(cells)


def load(profile_or_path: str | Path) -> Released:
    """Load a released model, and check that it is whole; without the image tower's files it answers all but images.

    Args:
        profile_or_path: folder of a model, or a profile whose model is in the folder that `MATALIGN_HOME` names (itself
            a model's, or with `<profile>/model`), else in `results/<profile>/model` of the project.

    Raises:
        FileNotFoundError: there is no model, or one of its files is missing.
        ValueError: see `integrity.checked`.
    """
    home = os.environ.get("MATALIGN_HOME")
    named = [Path(home), Path(home) / str(profile_or_path) / "model"] if home else []
    places = [Path(profile_or_path), *named, paths.results(str(profile_or_path)) / "model"]
    for folder in places:
        if (folder / "config.json").exists():
            return Released(folder, integrity.checked(folder))
    raise FileNotFoundError(
        f"no model in {places[-1]}; set MATALIGN_HOME to the folder that holds {profile_or_path}/model (`results` of a "
        "checkout), give the model's own folder, or make it by the stage `release`"
    )


def towers(folder: Path, about: dict[str, Any], modalities: Sequence[str]) -> "Model":
    """Some towers of a folder with their heads.

    Raises:
        FileNotFoundError: the image tower is asked for and its files are not here.
        ValueError: no such tower, weights that do not fit, or another text model here.
    """
    from matalign.pretrain import align, encode

    cfg = config.build(Pretrain, about["pretrain"], where=str(folder / "config.json"))
    if unknown := set(modalities) - set(cfg.modalities.split()):
        raise ValueError(f"this model has no {min(unknown)} tower; it was trained on {cfg.modalities}")
    files = [file for file in about["weights"] if integrity.of(file) in ("heads", *modalities)]
    if absent := [file for file in files if not (folder / file).exists()]:
        raise FileNotFoundError(TRUNK.format(files=", ".join(absent), folder=folder, profile=about["profile"]))
    mine = ("log_temperature", *(f"{part}.{name}." for part in ("towers", "heads") for name in modalities))
    kept = {name: tensor for name, tensor in weights.read(folder, files).items() if name.startswith(mine)}
    model = align.part(cfg, modalities)
    try:
        model.load_weights(weights.restored(kept, model.weights()))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if "text" in modalities and model.towers["text"].fingerprint != about["text_model_hash"]:
        here, then = model.towers["text"].fingerprint, about["text_model_hash"]
        raise ValueError(f"text model {cfg.text_model!r} has hash {here}; {folder} was trained with {then}")
    return encode.Model(cfg, model.eval())


def ensembles(folder: Path, about: dict[str, Any]) -> tuple[Predictor, ...]:
    """The predictors of a folder. Raises ValueError: weights that do not fit."""
    cfg = config.build(Pretrain, about["pretrain"], where=str(folder / "config.json"))
    kept, out = weights.read(folder, about["predictor_weights"]), []
    for number, group in enumerate(about["predictors"]):
        members = []
        for seed in range(group["members"]):
            member, start = predictors.network(cfg, group["tower"], len(group["targets"])), f"{number}.{seed}."
            mine = {k.removeprefix(start): w for k, w in kept.items() if k.startswith(start)}
            try:
                member.load_state_dict(weights.restored(mine, member.state_dict()))
            except ValueError as error:
                raise ValueError(f"{folder}: member {seed} for {', '.join(group['targets'])}: {error}") from None
            members.append(member)
        scale = np.array(group["mean"]), np.array(group["std"])
        out.append(Predictor(tuple(group["targets"]), tuple(members), *scale))
    return tuple(out)
