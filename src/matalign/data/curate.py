"""From raw files to the curated set: one structure a mp-id, labels joined to it, protocols linked to it, splits, audit.

Nothing is dropped silently: each row left out is counted under its reason, with the first few named, in `audit.json`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from matalign import paths
from matalign.config import Curate
from matalign.data import chunked, dataset, reactions, sources, splits
from matalign.data.chunked import Maker
from matalign.data.dataset import Curated, Structures
from matalign.data.formulas import reduced, same_composition
from matalign.data.protocols import METHODS, Protocol
from matalign.data.reactions import Reaction
from matalign.data.sources import LABELS, Crystal, Material, Skipped
from matalign.quantities import ENERGY


def run(cfg: Curate, *, makers: Mapping[str, Maker] | None = None) -> dict[str, Any]:
    """Curate a profile into `data/curated/<profile>`; gives the stage's metrics.

    Args:
        makers: modality -> what makes its part of the set (`towers.makers`); a modality without one needs none.

    Raises:
        FileNotFoundError: no raw files.
        ValueError: no material survives, or the leakage audit fails.
    """
    skipped = Skipped()
    makers = makers or {}
    others = list(dict.fromkeys(name for maker in makers.values() for name in chunked.asked(maker)))
    materials, structures, conflicts = read(cfg, skipped, others=others)
    pairs = link(reactions.read(paths.ROOT / cfg.raw), materials, skipped, max_temperature_C=cfg.max_temperature_C)
    kept = select(materials, pairs, cfg, skipped)
    materials, structures = materials[kept].reset_index(drop=True), structures.take(np.flatnonzero(kept))
    pairs = pairs[pairs.mp_id.isin(set(materials.mp_id))].reset_index(drop=True)
    extras = chunked.extra(makers, materials, structures, skipped, workers=cfg.workers)
    about = cfg.head(synthetic=bool((materials.source == paths.SAMPLE.name).all())) | {"conflicts": conflicts}
    curated = finished(materials.drop(columns=others), structures, pairs, skipped, about=about, extras=extras)
    metrics = curated.audit
    dataset.write(paths.curated(cfg.profile), curated)
    # The examples name rows of the raw files: they stay beside the curated set and out of what is published.
    return {**metrics, "skipped": [{k: v for k, v in row.items() if k != "first"} for row in metrics["skipped"]]}


def read(
    cfg: Curate, skipped: Skipped, *, others: Sequence[str] = ()
) -> tuple[pd.DataFrame, Structures, list[dict[str, Any]]]:
    """All materials of the raw files, as `merge` gives them."""
    listed = candidates(sources.materials(paths.ROOT / cfg.raw), skipped)
    crystals = chunked.parse_cifs(list(dict.fromkeys(material.cif for material in listed)), workers=cfg.workers)
    least = cfg.min_formation_energy_eV_atom
    return merge(listed, crystals, skipped, min_formation_energy_eV_atom=least, others=others)


def left_out(cfg: Curate, curated: Curated, count: int) -> tuple[pd.DataFrame, Structures]:
    """Materials with a formation energy that a profile leaves out by its limits: `count` at most, drawn at random."""
    materials, structures = curated.materials, curated.structures
    if cfg.max_atoms or cfg.max_materials:
        materials, structures, _ = read(cfg, Skipped())
    rows = np.flatnonzero(materials[ENERGY].notna() & ~materials.mp_id.isin(curated.materials.mp_id))
    rows = np.sort(np.random.default_rng(cfg.seed).permutation(rows)[:count])
    return materials.iloc[rows].reset_index(drop=True), structures.take(rows)


def finished(
    materials: pd.DataFrame,
    structures: Structures,
    pairs: pd.DataFrame,
    skipped: Skipped,
    *,
    about: Mapping[str, Any],
    extras: Mapping[str, np.ndarray] | None = None,
) -> Curated:
    """The set with its splits (seed: `about`) and its audit; ValueError where the leakage audit fails."""
    table, train_ok = splits.build(materials, pairs, seed=about["seed"])
    pairs = pairs.assign(train_ok=train_ok)
    audit = {
        **about,
        "counts": count(materials, pairs),
        "cohorts": cohorts(materials, pairs),
        "splits": {ladder: table[ladder].value_counts().sort_index().to_dict() for ladder in table.columns[1:]},
        "skipped": skipped.table(),
        "audit": splits.audit(materials, structures.lattice, pairs, table),
    }
    return Curated(materials, structures, pairs, table, audit, extras=extras or {})


def candidates(materials: Iterable[Material], skipped: Skipped) -> list[Material]:
    """The materials with an id and a CIF, the first of each (source, mp-id)."""
    seen: dict[tuple[str, str], Material] = {}
    for material in materials:
        if not material.mp_id:
            skipped.add(material.source, "no mp-id", material.where)
        elif material.cif is None:
            skipped.add(material.source, "no CIF", f"{material.where}: {material.mp_id}")
        elif (key := (material.source, material.mp_id)) in seen:
            first = seen[key].where
            skipped.add(material.source, "duplicate id", f"{material.where}: {material.mp_id} is also in {first}")
        else:
            seen[key] = material
    return list(seen.values())


def merge(
    listed: Sequence[Material],
    crystals: dict[str, Crystal | str],
    skipped: Skipped,
    *,
    min_formation_energy_eV_atom: float,
    others: Sequence[str] = (),
) -> tuple[pd.DataFrame, Structures, list[dict[str, Any]]]:
    """One row a mp-id: the structure of the first source that has a good one, the labels of all.

    Args:
        listed: preferred sources first.
        crystals: of every CIF text, or the reason why there is none.
        others: further columns of the materials, of `sources.OTHERS`: what the source of the structure says of its
            cell, NaN where that is no number.

    Returns:
        Materials sorted by mp-id; their structures; rows {source, key, materials}: where a later source says otherwise.

    Raises:
        ValueError: no structure at all.
    """
    chosen, conflicts = _first_structures(listed, crystals, skipped)
    if not chosen:
        raise ValueError(f"none of {len(listed)} materials has a readable structure; {skipped.table()}")
    labels: dict[str, dict[str, float]] = defaultdict(dict)
    for material in listed:
        if material.mp_id not in chosen:
            continue
        own, crystal, mine = crystals[material.cif], chosen[material.mp_id][1], labels[material.mp_id]
        other = isinstance(own, Crystal) and own.formula != crystal.formula
        for column, written in material.labels.items():
            reason, value = _label(column, written, min_formation_energy_eV_atom)
            reason = "formula mismatch with the structure" if other else reason
            if reason:
                skipped.add(material.source, f"{column}: {reason}", f"{material.where}: {material.mp_id}: {written!r}")
            else:
                conflicts[material.source, column] += mine.setdefault(column, value) != value
    ids = sorted(chosen)
    picked = [chosen[mp_id][1] for mp_id in ids]
    frame = pd.DataFrame(
        {
            "mp_id": ids,
            "formula": [c.formula for c in picked],
            "chemsys": [c.chemsys for c in picked],
            "n_atoms": [len(c.numbers) for c in picked],
            "space_group": [c.space_group for c in picked],
            "source": [chosen[mp_id][0].source for mp_id in ids],
            **{column: [labels[mp_id].get(column, math.nan) for mp_id in ids] for column in LABELS},
        }
    )
    frame["is_metal"] = (frame.band_gap_eV == 0).astype(float).where(frame.band_gap_eV.notna())
    structures = Structures.pack([(c.numbers, c.frac_coords, c.lattice) for c in picked])
    rows = [{"source": source, "key": key, "materials": n} for (source, key), n in sorted(conflicts.items()) if n]
    frame = frame[list(dataset.MATERIALS)]
    for column in others:
        written = pd.Series([chosen[mp_id][0].others.get(column) for mp_id in ids], dtype=object)
        frame = frame.assign(**{column: pd.to_numeric(written, errors="coerce")})
    return frame, structures, rows


def _first_structures(
    listed: Sequence[Material], crystals: dict[str, Crystal | str], skipped: Skipped
) -> tuple[dict[str, tuple[Material, Crystal]], Counter]:
    """Of each mp-id the first good structure; in how many materials (source, property) of a later one differs."""
    chosen: dict[str, tuple[Material, Crystal]] = {}
    conflicts: Counter = Counter()
    for material in listed:
        crystal = crystals[material.cif]
        if isinstance(crystal, str):
            reason, _, cause = crystal.partition(": ")
            skipped.add(material.source, reason, f"{material.where}: {material.mp_id}: {cause}")
            continue
        _, first = chosen.setdefault(material.mp_id, (material, crystal))
        for key in ("formula", "space_group"):
            conflicts[material.source, key] += getattr(crystal, key) != getattr(first, key)
        conflicts[material.source, "n_atoms"] += len(crystal.numbers) != len(first.numbers)
    return chosen, conflicts


def _label(column: str, written: str, min_formation_energy_eV_atom: float) -> tuple[str, float]:
    """Why a label is not used ("" if it is), and its value."""
    if written is None or not written.strip():
        return "missing label", math.nan
    try:
        value = float(written)
    except ValueError:
        return "not a number", math.nan
    if not math.isfinite(value):
        return "NaN or infinite", value
    if column == "formation_energy_eV_atom" and value < min_formation_energy_eV_atom:
        return f"outlier below {min_formation_energy_eV_atom:g}", value
    if column == "band_gap_eV" and value < 0:
        return "negative", value
    if column.endswith("_GPa") and value <= 0:  # its logarithm is the target
        return "not positive", value
    return "", value


def link(
    records: Iterable[Reaction], materials: pd.DataFrame, skipped: Skipped, *, max_temperature_C: float
) -> pd.DataFrame:
    """Protocols with the material that each makes.

    A record of several targets is a series with a variable, filled in with values that the paper may not report: it is
    left out. A record that names a mp-id must agree with it in formula. One that names none goes to a material of its
    formula: to the one that agreeing records name; else to the one of lowest formation energy (an unknown energy last),
    then of lowest number. Either way a protocol knows the composition, not the polymorph.

    Read are the materials' `mp_id`, `formula` and `formation_energy_eV_atom`; what comes out has the columns of
    `dataset.PROTOCOLS` but `train_ok`, sorted by id.
    """
    formula = dict(zip(materials.mp_id, materials.formula))
    named: list[tuple[str, Protocol]] = []  # mp-id, protocol
    unnamed: list[Protocol] = []
    for protocol in _single(records, skipped, max_temperature_C=max_temperature_C):
        mp_id = protocol.mp_id
        if not mp_id:
            unnamed.append(protocol)
        elif mp_id not in formula:
            skipped.add(protocol.source, "no structure of the mp-id", f"{protocol.where}: {mp_id}")
        elif not same_composition(protocol.target_formula, formula[mp_id]):
            message = f"{protocol.where}: {protocol.target_formula}, but {mp_id} is {formula[mp_id]}"
            skipped.add(protocol.source, "formula mismatch", message)
        else:
            named.append((mp_id, protocol))
    by_formula = _by_formula(materials, Counter(mp_id for mp_id, _ in named))
    for protocol in unnamed:
        if mp_id := by_formula.get(reduced(protocol.target_formula)):
            named.append((mp_id, protocol))
        else:
            message = f"{protocol.where}: {protocol.target_formula}"
            skipped.add(protocol.source, "no structure of the formula", message)
    pairs: dict[tuple[str, Protocol], None] = {}
    for pair in sorted(named, key=lambda pair: pair[1].protocol_id):
        if pair in pairs:
            skipped.add(pair[1].source, "duplicate record", pair[1].where)
        pairs.setdefault(pair)
    rows = [{"mp_id": mp_id, **protocol.columns()} for mp_id, protocol in pairs]
    return pd.DataFrame(rows, columns=[c for c in dataset.PROTOCOLS if c != "train_ok"])


def _single(records: Iterable[Reaction], skipped: Skipped, *, max_temperature_C: float) -> Iterator[Protocol]:
    """The protocols of the records of one target."""
    for reaction in tqdm(records, desc="reactions", unit="record", mininterval=1):
        if len(reactions.targets_of(reaction.record)) > 1:
            skipped.add(reaction.source, "several targets", reaction.where)
            continue
        protocols, reasons = reactions.parse(reaction, max_temperature_C=max_temperature_C)
        for reason in reasons:
            skipped.add(reaction.source, reason, reaction.where)
        yield from protocols


def _by_formula(materials: pd.DataFrame, named: Counter) -> dict[str, str]:
    """Reduced formula -> the mp-id that a record without one goes to."""
    energy = materials.formation_energy_eV_atom.fillna(math.inf)
    order = sorted(
        zip(materials.mp_id, materials.formula, energy),
        key=lambda m: (-named[m[0]], m[2], int("0" + "".join(filter(str.isdigit, m[0]))), m[0]),
    )
    by_formula: dict[str, str] = {}
    for mp_id, formula, _ in order:
        by_formula.setdefault(reduced(formula), mp_id)
    return by_formula


def select(materials: pd.DataFrame, pairs: pd.DataFrame, cfg: Curate, skipped: Skipped) -> np.ndarray:
    """Which materials a profile keeps: (M,) bool."""
    kept = np.ones(len(materials), dtype=bool)
    if cfg.max_atoms:
        kept = materials.n_atoms.to_numpy() <= cfg.max_atoms
        if cfg.keep_with_protocol:
            kept = kept | materials.mp_id.isin(set(pairs.mp_id)).to_numpy()
        _note(skipped, materials.mp_id, ~kept, f"cell of more than {cfg.max_atoms} atoms")
    if cfg.max_materials and kept.sum() > cfg.max_materials:
        # Not the splits' hash: the lowest of those would all be training materials.
        place = np.array([splits.unit_hash(cfg.seed, f"keep|{mp_id}") for mp_id in materials.mp_id])
        beyond = kept & (place > np.sort(place[kept])[cfg.max_materials - 1])
        _note(skipped, materials.mp_id, beyond, f"beyond {cfg.max_materials} materials, chosen by hash")
        kept = kept & ~beyond
    lost = ~pairs.mp_id.isin(set(materials.mp_id[kept]))
    _note(skipped, pairs.protocol_id, lost, "protocol of a material not kept")
    return kept


def _note(skipped: Skipped, ids: pd.Series, dropped: np.ndarray, reason: str) -> None:
    if dropped.any():
        skipped.add("filter", reason, ids[dropped].iloc[0], rows=int(dropped.sum()))


def count(materials: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, int]:
    """What is there, each a number of materials unless its name says otherwise."""
    return {
        "materials": len(materials),
        **{f"materials_from_{source}": int(n) for source, n in materials.source.value_counts().sort_index().items()},
        "chemical_systems": int(materials.chemsys.nunique()),
        "with_formation_energy": int(materials.formation_energy_eV_atom.notna().sum()),
        "with_band_gap": int(materials.band_gap_eV.notna().sum()),
        "metals": int((materials.is_metal == 1).sum()),
        "with_moduli": int((materials.bulk_modulus_GPa.notna() & materials.shear_modulus_GPa.notna()).sum()),
        "with_protocol": int(pairs.mp_id.nunique()),
        "protocols": len(pairs),
        **{f"protocols_{method}": int((pairs.method == method).sum()) for method in METHODS},
        "protocols_never_trained_on": int((~pairs.train_ok).sum()),
        "dois": int(pairs.doi.nunique()),
    }


def cohorts(materials: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Materials and chemical systems of each cohort: A labelled; B labelled and with a protocol."""
    energy_gap = materials.formation_energy_eV_atom.notna() & materials.band_gap_eV.notna()
    moduli = materials.bulk_modulus_GPa.notna() & materials.shear_modulus_GPa.notna()
    protocol = materials.mp_id.isin(set(pairs.mp_id))
    members = {
        "A: formation energy and gap": energy_gap,
        "A: moduli": moduli,
        "B: protocol, formation energy and gap": energy_gap & protocol,
        "B: protocol and moduli": moduli & protocol,
        "retrieval: protocol": protocol,
    }
    return {
        name: {"materials": int(rows.sum()), "chemical_systems": int(materials.chemsys[rows].nunique())}
        for name, rows in members.items()
    }
