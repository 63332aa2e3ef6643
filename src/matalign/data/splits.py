"""Deterministic grouped splits, and the leakage audit that checks them.

A split is a pure function of (seed, group key): adding materials moves nobody. Two ladders: `random` (key: mp-id) and
`chemsys` (key: the set of elements). Pretraining sees neither test set.
"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from matalign.data.formulas import composition, reduced

# Ladder -> upper bounds of train and val on [0, 1); the rest is test.
LADDERS = {"random": (0.8, 0.9), "chemsys": (0.7, 0.8)}
PRETRAIN_VAL = 0.05  # share of the chemical systems outside the test sets
VOLUME_TOLERANCE = 0.01  # relative, of two near-duplicate structures
ZERO = {  # (train of, test of) -> keys whose overlap must be nil
    ("random", "random"): {"mp-id", "DOI"},
    ("chemsys", "chemsys"): {"mp-id", "formula", "chemsys", "DOI"},
    ("pretrain", "random"): {"mp-id", "DOI"},
    ("pretrain", "chemsys"): {"mp-id", "formula", "chemsys", "DOI"},
}


def unit_hash(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the key alone (blake2b)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=8).digest(), "big") / 2**64


def chemsys_key(chemsys: str) -> str:
    """The set of elements as one string, whatever order "Sr-Ti-O" was written in."""
    return "-".join(sorted(set(chemsys.split("-"))))


def assign(seed: int, key: str, *, ladder: str) -> str:
    """The part of a ladder that a group belongs to: train, val or test."""
    train, val = LADDERS[ladder]
    u = unit_hash(seed, f"{ladder}|{key}")
    return "train" if u < train else "val" if u < val else "test"


def build(materials: pd.DataFrame, protocols: pd.DataFrame, *, seed: int) -> tuple[pd.DataFrame, pd.Series]:
    """Both ladders, the pretraining set, and which protocols may be trained on.

    Args:
        materials: columns `mp_id`, `chemsys`.
        protocols: columns `mp_id`, `doi` ("" or missing: unknown, shared with nobody).

    Returns:
        Columns `mp_id`, `random`, `chemsys` (train, val or test) and `pretrain` (train, val or excluded: in a test
        set), in the rows of `materials`; and a bool for each protocol: it is of no test material, of either ladder, and
        shares its DOI with none that is.

    Raises:
        ValueError: a protocol of an unknown material.
    """
    systems = materials.chemsys.map(chemsys_key)
    splits = pd.DataFrame({"mp_id": materials.mp_id.to_numpy(dtype=object)})
    splits["random"] = [assign(seed, key, ladder="random") for key in materials.mp_id]
    splits["chemsys"] = [assign(seed, key, ladder="chemsys") for key in systems]
    tested = (splits.random == "test") | (splits.chemsys == "test")
    held = np.array([unit_hash(seed, f"pretrain|{key}") < PRETRAIN_VAL for key in systems], dtype=bool)
    splits["pretrain"] = np.where(tested, "excluded", np.where(held, "val", "train"))

    unknown = ~protocols.mp_id.isin(splits.mp_id)
    if unknown.any():
        raise ValueError(
            f"{unknown.sum()} of {len(protocols)} protocols name no material, first {protocols.mp_id[unknown].iloc[0]}"
        )
    of_test = protocols.mp_id.isin(set(splits.mp_id[tested]))
    dois = set(protocols.doi[of_test]) - {"", None}
    return splits, (~of_test & ~protocols.doi.isin(dois)).rename("train_ok").astype(bool)


def audit(
    materials: pd.DataFrame, lattice: np.ndarray, protocols: pd.DataFrame, splits: pd.DataFrame
) -> list[dict[str, Any]]:
    """Count what training and test share, and stop where it must be nothing.

    A near-duplicate structure is one with the same anonymised formula ("A1B1C3"), space group, number of atoms in the
    cell and, within 1 %, volume per atom: cheap, and blind to which elements sit where, so that an isostructural
    neighbour in another chemical system counts too.

    Args:
        materials: columns `mp_id`, `formula`, `chemsys`, `n_atoms`, `space_group`.
        lattice: (M, 3, 3) cell vectors in Å, rows as `materials`.
        protocols: columns `mp_id`, `doi`, `train_ok`.
        splits: as from `build`, rows as `materials`.

    Returns:
        Rows {ladder, key, overlap, asserted_zero}, for each ladder and for pretraining against each test set. The
        overlap counts keys (of near-duplicates: test structures) found on both sides; training includes validation.

    Raises:
        ValueError: an overlap that must be zero is not.
    """
    if list(materials.mp_id) != list(splits.mp_id):
        raise ValueError("splits and materials must hold the same mp-ids in the same order")
    volume = np.abs(np.linalg.det(np.asarray(lattice, float).reshape(-1, 3, 3))) / materials.n_atoms.to_numpy()
    kind = [(anonymous(f), g, n) for f, g, n in zip(materials.formula, materials.space_group, materials.n_atoms)]
    systems = materials.chemsys.map(chemsys_key)
    rows = []
    for (trained, tested), zero in ZERO.items():
        test = (splits[tested] == "test").to_numpy()
        train = splits[trained].isin(["train", "val"]).to_numpy()
        doi_train = protocols.doi[protocols.mp_id.isin(set(materials.mp_id[train])) & protocols.train_ok]
        doi_test = protocols.doi[protocols.mp_id.isin(set(materials.mp_id[test]))]
        overlap = {
            "mp-id": _shared(materials.mp_id, train, test),
            "formula": _shared(materials.formula, train, test),
            "chemsys": _shared(systems, train, test),
            "DOI": len((set(doi_train) & set(doi_test)) - {"", None}),
            "near-duplicate structure": _near_duplicates(kind, volume, train, test),
        }
        ladder = trained if trained == tested else f"{trained} against {tested}"
        for key, count in overlap.items():
            if key in zero and count:
                raise ValueError(
                    f"leak: {count} {key} keys of the {tested} test set are trained on in {ladder}; expected 0"
                )
            rows.append({"ladder": ladder, "key": key, "overlap": count, "asserted_zero": key in zero})
    return rows


def anonymous(formula: str) -> str:
    """The formula with its elements lettered by rising amount: "SrTiO3" and "BaTiO3" are both "A1B1C3"."""
    amounts = sorted(composition(reduced(formula)).values())
    return "".join(f"{chr(65 + i)}{amount}" for i, amount in enumerate(amounts))


def _shared(keys: pd.Series, train: np.ndarray, test: np.ndarray) -> int:
    return len(set(keys[train]) & set(keys[test]))


def _near_duplicates(kind: list[tuple], volume: np.ndarray, train: np.ndarray, test: np.ndarray) -> int:
    """Test structures that have a training structure of the same kind and, within the tolerance, volume per atom."""
    trained: dict[tuple, list[float]] = {}
    for i in np.flatnonzero(train):
        trained.setdefault(kind[i], []).append(volume[i])
    known = {k: np.array(v) for k, v in trained.items()}
    none = np.zeros(0)
    close = (np.abs(known.get(kind[i], none) / volume[i] - 1) <= VOLUME_TOLERANCE for i in np.flatnonzero(test))
    return sum(bool(c.any()) for c in close)
