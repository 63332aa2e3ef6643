"""How a material might be made, by a released model: recipes near it in the space, and ranked sets of precursors.

The model holds no recipe. They are looked up in the raw files of this machine (`matalign fetch`); where there are none
the answers come from the embedded, synthetic sample and say so.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from matalign import cache, config, paths
from matalign.config import Recommendation
from matalign.data import formulas, library
from matalign.data.structures import Structures
from matalign.pretrain import checkpoint, encode
from matalign.tasks import fit
from matalign.tasks.synthesis import precursors, recommendation

if TYPE_CHECKING:
    from matalign.release.released import Released

CHOICES = 10  # protocols looked at for each that is wanted: some are alike
COLUMNS = ["similarity", "target_formula", "method", "precursors", "max_temperature_C", "text", "doi", "protocol_id"]


@dataclass(frozen=True)
class Recipes:
    """What `Released.recommend` answers."""

    formula: str
    protocols: pd.DataFrame  # the nearest in the space, best first, with similarity, conditions and DOI
    precursor_sets: pd.DataFrame  # ranked, each with its probability and the range of its temperatures, °C
    temperature_C: tuple[float, float]  # lowest and highest of the protocols' highest temperatures; NaN if none is told
    source: str  # where recipes come from
    synthetic: bool  # whether they are of the embedded sample


class Cookbook:
    """The recipes that can be looked up on this machine, as a released model sees them."""

    def __init__(self, released: "Released") -> None:
        self.released = released
        own = paths.ROOT / released.about["recommendation"]["raw"]
        self.raw = own if library.present(own) else paths.SAMPLE

    @property
    def source(self) -> str:
        """Where recipes come from, in words."""
        if self.raw == paths.SAMPLE:
            return f"the embedded sample, which is synthetic; {library.FETCH}"
        return f"the raw files in {self.released.about['recommendation']['raw']}"

    def recommend(self, crystal: Structures, k: int) -> Recipes:
        """See `Released.recommend`; of one crystal."""
        vectors, known = self._protocols
        z = self.released.embed(structures=crystal) @ self.released.index.axes.T
        rows, similarity = encode.nearest(z, vectors, min(k * CHOICES, len(vectors)))
        near = known.iloc[rows[0]].assign(similarity=similarity[0])
        near = near.drop_duplicates(["target_formula", "method", "text_L0"]).head(k).reset_index(drop=True)
        heat = near.max_temperature_C.dropna()
        formula = formulas.spelled(crystal.numbers)
        with checkpoint.on_threads(self._study.cfg.threads):
            sets = recommendation.recommend(self._study, formula, k=k)["sets"]
        spelled = [" + ".join(map(formulas.spelled, row["precursors"].split(" + "))) for row in sets]
        return Recipes(
            formula=formula,
            protocols=near.rename(columns={"text_L0": "text"})[COLUMNS],
            precursor_sets=pd.DataFrame([{**row, "precursors": text} for row, text in zip(sets, spelled)]),
            temperature_C=(float(heat.min()), float(heat.max())) if len(heat) else (np.nan, np.nan),
            source=self.source,
            synthetic=self.raw == paths.SAMPLE,
        )

    @cached_property
    def _protocols(self) -> tuple[np.ndarray, pd.DataFrame]:
        """Vectors on the index's axes and recipes of the protocols that can be looked up on this machine."""
        known, index = library.read(self.raw), self.released.index
        mine = index.tables.get("protocol", pd.DataFrame({"protocol_id": []}))
        there = mine.protocol_id.isin(set(known.protocol_id)).to_numpy()
        if there.any():
            rows = known.set_index("protocol_id").loc[mine.protocol_id[there]].reset_index()
            return index.vectors["protocol"][there], rows
        z = self.released.tower("text").embed_texts(known[f"text_L{self.released.config.mask_level}"].tolist())
        return (z @ index.axes.T).astype(np.float32), known

    @cached_property
    def _study(self) -> "Remembered":
        where = str(self.released.folder / "config.json")
        cfg = config.build(Recommendation, self.released.about["recommendation"], where=where)
        cfg = replace(cfg, raw=str(self.raw))
        with checkpoint.on_threads(cfg.threads):  # `prepare` sets the number of threads for good
            study = recommendation.prepare(cfg)
        return Remembered(study.cfg, study.known, study.val, study.test, study.conditions)


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
            return {f"{i}.{k}": w.numpy() for i, model in enumerate(trained) for k, w in fit.weights(model).items()}

        kept, out = cache.memo("recommend", key, compute), []
        for i in range(self.cfg.networks):
            model = precursors.Towers(self.vocabulary, width=self.cfg.width, dropout=self.cfg.dropout)
            mine = {k.partition(".")[2]: torch.from_numpy(w) for k, w in kept.items() if k.startswith(f"{i}.")}
            model.load_state_dict(mine)
            out.append(model.eval())
        return out
