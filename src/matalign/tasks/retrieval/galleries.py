"""Who is ranked: the materials with a protocol, their texts at a mask level, and the nearest by shared elements."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from matalign.data import formulas, splits
from matalign.data.dataset import Curated
from matalign.elements import NUMBER

COMMON = [NUMBER[symbol] for symbol in sorted(formulas.COMMON)]


@dataclass(frozen=True)
class Gallery:
    """The materials with a protocol, and their protocols' texts at a mask level."""

    curated: Curated  # the curated set
    level: int  # mask level
    hard: int  # size of the hard gallery
    protocols_per_material: int = 0  # keep so many of a material's protocols; 0: all
    asking: int = 0  # keep so many of the queries, chosen by hash; 0: all

    @cached_property
    def protocols(self) -> pd.DataFrame:
        """The protocols, one material after the other; of each at most `protocols_per_material`, chosen by hash."""
        table = self.curated.protocols
        drawn = [splits.unit_hash(0, protocol_id) for protocol_id in table.protocol_id]
        table = table.assign(drawn=drawn).sort_values(["mp_id", "drawn", "protocol_id"])
        if self.protocols_per_material:
            table = table.groupby("mp_id", sort=False).head(self.protocols_per_material)
        return table.drop(columns="drawn").reset_index(drop=True)

    @cached_property
    def rows(self) -> np.ndarray:
        """(N,) rows of the curated set."""
        return np.flatnonzero(self.curated.materials.mp_id.isin(set(self.protocols.mp_id)).to_numpy())

    @cached_property
    def mp_ids(self) -> np.ndarray:
        """(N,)."""
        return self.curated.materials.mp_id.to_numpy()[self.rows]

    @cached_property
    def owner(self) -> np.ndarray:
        """(P,) which material of the gallery a protocol makes; rises."""
        return np.searchsorted(self.mp_ids, self.protocols.mp_id.to_numpy())

    @cached_property
    def texts(self) -> tuple[list[str], np.ndarray]:
        """Distinct texts, and (P,) the number of each protocol's: equal texts get one score, and so tie exactly."""
        distinct, number = np.unique(self.protocols[f"text_L{self.level}"].to_numpy(str), return_inverse=True)
        return distinct.tolist(), number

    @cached_property
    def queries(self) -> np.ndarray:
        """(Q,) materials of the gallery in the chemsys test set."""
        tested = np.flatnonzero(self.curated.splits.chemsys.to_numpy()[self.rows] == "test")
        order = np.argsort([splits.unit_hash(0, f"query|{mp_id}") for mp_id in self.mp_ids[tested]])
        return np.sort(tested[order[: self.asking or None]])

    @cached_property
    def validation(self) -> np.ndarray:
        """(V,) materials of the gallery in pretraining's validation set: nothing is trained on them, nor tested."""
        return np.flatnonzero(self.curated.splits.pretrain.to_numpy()[self.rows] == "val")

    @cached_property
    def asked(self) -> np.ndarray:
        """Protocols of the queries: each is a query of its own where protocols ask."""
        return np.flatnonzero(np.isin(self.owner, self.queries))

    @cached_property
    def chemsys(self) -> np.ndarray:
        """(Q,) chemical system of each query."""
        return self.curated.materials.chemsys.to_numpy()[self.rows[self.queries]]

    @cached_property
    def fractions(self) -> np.ndarray:
        """(N, 119) atomic fraction of each atomic number."""
        return self.curated.structures.take(self.rows).fractions()

    @cached_property
    def neighbours(self) -> np.ndarray:
        """(Q, H) the hard gallery: each query itself, then the others of highest element Jaccard, ties by mp-id."""
        sets = telling(self.fractions)
        near = jaccard(sets[self.queries], sets)
        near[np.arange(len(self.queries)), self.queries] = np.inf
        return np.argsort(-near, axis=1, kind="stable")[:, : self.hard]

    @cached_property
    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """Materials to train on, outside the test sets, with a protocol that may be; (P,) bool of those."""
        allowed = (self.curated.splits.pretrain.to_numpy()[self.rows] == "train")[self.owner]
        allowed &= self.protocols.train_ok.to_numpy(bool)
        return np.unique(self.owner[allowed]), allowed


def telling(fractions: np.ndarray) -> np.ndarray:
    """(n, 119) 0/1: which elements there are, without C, H, O, N."""
    sets = (fractions > 0).astype(float)
    sets[:, COMMON] = 0
    return sets


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of sets given as 0/1 rows; 0 for two empty sets."""
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None, :] - both
    return both / np.maximum(union, 1)
