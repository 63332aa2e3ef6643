"""From raw files to the curated set: one structure a mp-id, labels joined to it, protocols linked to it, splits, audit.

Nothing is dropped silently: each row left out is counted under its reason, with the first few named, in `audit.json`.
"""

import functools
import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from matalign import cache, config, paths
from matalign.config import Curate
from matalign.data import dataset, reactions, sources, splits
from matalign.data.dataset import Curated, Structures
from matalign.data.formulas import reduced, same_composition
from matalign.data.protocols import METHODS, Protocol
from matalign.data.reactions import Reaction
from matalign.data.sources import LABELS, Crystal, Material

CRYSTALS_PER_TASK = 256  # what a killed run may lose, in each worker
EXAMPLES = 3  # rows named for each reason
Maker = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # numbers, frac_coords, lattice -> floats of a shape


@dataclass
class Skipped:
    """Rows left out, by source and reason."""

    rows: Counter = field(default_factory=Counter)
    first: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, source: str, reason: str, message: str, *, rows: int = 1) -> None:
        """Count; keep the message (file, row, value) if it is one of the first."""
        self.rows[source, reason] += rows
        if len(self.first[source, reason]) < EXAMPLES:
            self.first[source, reason].append(message)

    def table(self) -> list[dict[str, Any]]:
        """Rows {source, reason, rows, first}, sorted."""
        return [
            {"source": source, "reason": reason, "rows": count, "first": self.first[source, reason]}
            for (source, reason), count in sorted(self.rows.items())
        ]


def run(cfg: Curate, *, makers: Mapping[str, Maker] | None = None) -> dict[str, Any]:
    """Curate a profile into `data/curated/<profile>`.

    Args:
        cfg: the stage's parameters.
        makers: modality -> what makes its part of the set (`towers.makers`); a modality without one needs none.

    Returns:
        The stage's metrics: `counts`, `cohorts`, `splits`, `skipped`, `conflicts`, `audit`.

    Raises:
        FileNotFoundError: no raw files.
        ValueError: no material survives, or the leakage audit fails.
    """
    raw, skipped = paths.ROOT / cfg.raw, Skipped()
    listed = candidates(sources.materials(raw), skipped)
    crystals = parse_cifs(list(dict.fromkeys(material.cif for material in listed)), workers=cfg.workers)
    materials, structures, conflicts = merge(
        listed, crystals, skipped, min_formation_energy_eV_atom=cfg.min_formation_energy_eV_atom
    )
    pairs = link(reactions.read(raw), materials, skipped, max_temperature_C=cfg.max_temperature_C)
    kept = select(materials, pairs, cfg, skipped)
    materials, structures = materials[kept].reset_index(drop=True), structures.take(np.flatnonzero(kept))
    pairs = pairs[pairs.mp_id.isin(set(materials.mp_id))].reset_index(drop=True)
    table, pairs["train_ok"] = splits.build(materials, pairs, seed=cfg.seed)
    extras = extra(makers or {}, materials, structures, skipped, workers=cfg.workers)
    metrics = {
        "stage": "curate",
        "profile": cfg.profile,
        "synthetic": bool((materials.source == paths.SAMPLE.name).all()),
        "seed": cfg.seed,
        "counts": count(materials, pairs),
        "cohorts": cohorts(materials, pairs),
        "splits": {ladder: table[ladder].value_counts().sort_index().to_dict() for ladder in table.columns[1:]},
        "skipped": skipped.table(),
        "conflicts": conflicts,
        "audit": splits.audit(materials, structures.lattice, pairs, table),
    }
    curated = Curated(materials, structures, pairs, table, metrics, extras=extras)
    dataset.write(paths.curated(cfg.profile), curated)
    # The examples name rows of the raw files: they stay beside the curated set and out of what is published.
    return {**metrics, "skipped": [{k: v for k, v in row.items() if k != "first"} for row in metrics["skipped"]]}


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


def parse_cifs(
    texts: Sequence[str], *, workers: int, read: Callable[[str], Crystal] | None = None
) -> dict[str, Crystal | str]:
    """Parse CIFs in parallel; what a killed run has parsed is found again.

    Args:
        texts: of the CIFs, distinct.
        workers: processes; with one, this process does it.
        read: raises a ValueError of a text that it cannot read; by default `sources.parse_cif`.

    Returns:
        Text -> the crystal, or the reason why it has none.
    """
    chunks = [texts[i : i + CRYSTALS_PER_TASK] for i in range(0, len(texts), CRYSTALS_PER_TASK)]
    parsed: dict[str, Crystal | str] = {}
    with tqdm(total=len(texts), desc="crystals", unit="CIF", mininterval=1) as bar:
        for chunk, crystals in zip(chunks, _each(functools.partial(_parse_chunk, read=read), chunks, workers=workers)):
            parsed.update(zip(chunk, crystals))
            bar.update(len(chunk))
    return parsed


def _each(work: Callable, chunks: list, *, workers: int) -> Iterator:
    if workers < 2 or len(chunks) < 2 * workers:  # starting the processes would take longer
        yield from map(work, chunks)
        return
    # Spawned, not forked: a notebook's kernel has threads. Should this process be killed, so are the workers.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cache.die_with_parent, initargs=(os.getpid(),)
    ) as pool:
        yield from pool.map(work, chunks)


def _parse_chunk(texts: Sequence[str], *, read: Callable[[str], Crystal] | None) -> list[Crystal | str]:
    key = {
        "data": hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest(),
        "version": config.version("curate"),
        **({"reader": read.__qualname__} if read else {}),
    }
    found = cache.memo("curate", key, lambda: _pack([_crystal(text, read or sources.parse_cif) for text in texts]))
    structures = Structures(*(found[name] for name in dataset.TENSORS))
    rows = zip(structures, found["formula"], found["chemsys"], found["space_group"].tolist())
    crystals = (Crystal(*structure, formula, chemsys, number) for structure, formula, chemsys, number in rows)
    return [failure or next(crystals) for failure in found["failures"]]


def _crystal(text: str, read: Callable[[str], Crystal]) -> Crystal | str:
    try:
        return read(text)
    except ValueError as error:
        return str(error)


def _pack(parsed: list[Crystal | str]) -> cache.Result:
    crystals = [c for c in parsed if isinstance(c, Crystal)]
    structures = Structures.pack([(c.numbers, c.frac_coords, c.lattice) for c in crystals])
    return {
        **{name: getattr(structures, name) for name in dataset.TENSORS},
        "space_group": np.array([c.space_group for c in crystals], dtype=np.int64),
        "formula": [c.formula for c in crystals],
        "chemsys": [c.chemsys for c in crystals],
        "failures": [c if isinstance(c, str) else "" for c in parsed],
    }


def extra(
    makers: Mapping[str, Maker], materials: pd.DataFrame, structures: Structures, skipped: Skipped, *, workers: int
) -> dict[str, np.ndarray]:
    """What modalities need beyond structures and protocols.

    Args:
        makers: modality -> what makes its values of a crystal; ValueError where a crystal has none.
        materials: column `mp_id`.
        structures: the same materials.
        skipped: gets the materials that lack a modality.
        workers: processes; what a killed run has made is found again.

    Returns:
        Modality -> (M, …), NaN in the rows of the materials that lack it.

    Raises:
        ValueError: a modality that no material has.
    """
    starts = range(0, len(structures), CRYSTALS_PER_TASK)
    chunks = [structures.take(np.arange(i, min(i + CRYSTALS_PER_TASK, len(structures)))) for i in starts]
    extras = {}
    for name, maker in makers.items():
        parts, reasons = [], []
        with tqdm(total=len(structures), desc=name, unit="crystal", mininterval=1) as bar:
            work = functools.partial(_extra_chunk, modality=name, maker=maker)
            for values, failures in _each(work, chunks, workers=workers):
                parts.append(values)
                reasons += failures
                bar.update(len(failures))
        has = np.array([not reason for reason in reasons])
        if not has.any():
            raise ValueError(f"none of {len(has)} materials has {name}; the first: {reasons[0]}")
        values = np.concatenate([part for part in parts if len(part)])
        extras[name] = np.full((len(has), *values.shape[1:]), np.nan, values.dtype)
        extras[name][has] = values
        for mp_id, reason in zip(materials.mp_id[~has], filter(None, reasons)):
            skipped.add(name, "not available", f"{mp_id}: {reason}")
    return extras


def _extra_chunk(structures: Structures, *, modality: str, maker: Maker) -> tuple[np.ndarray, list[str]]:
    """Values of the crystals that have them, and of each crystal why it has none ("" if it has)."""

    def compute() -> cache.Result:
        values, failures = [], []
        for crystal in structures:
            try:
                values.append(maker(*crystal))
                failures.append("")
            except ValueError as error:
                failures.append(str(error))
        return {"values": np.array(values), "failures": failures}

    data = hashlib.blake2b(digest_size=16)
    for name in dataset.TENSORS:
        data.update(np.ascontiguousarray(getattr(structures, name)))
    key = {"modality": modality, "data": data.hexdigest(), "version": config.version("curate")}
    stored = cache.memo("curate", key, compute)
    return stored["values"], stored["failures"]


def merge(
    listed: Sequence[Material],
    crystals: dict[str, Crystal | str],
    skipped: Skipped,
    *,
    min_formation_energy_eV_atom: float,
) -> tuple[pd.DataFrame, Structures, list[dict[str, Any]]]:
    """One row a mp-id: the structure of the first source that has a good one, the labels of all.

    Args:
        listed: preferred sources first.
        crystals: of every CIF text, or the reason why there is none.
        skipped: gets the CIFs and labels left out.
        min_formation_energy_eV_atom: below, the label is an outlier.

    Returns:
        Materials sorted by mp-id; their structures; rows {source, key, materials}: where a later source says otherwise.

    Raises:
        ValueError: no structure at all.
    """
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
    if not chosen:
        raise ValueError(f"none of {len(listed)} materials has a readable structure; {skipped.table()}")
    labels: dict[str, dict[str, float]] = defaultdict(dict)
    for material in listed:
        if material.mp_id not in chosen:
            continue
        crystal, mine = chosen[material.mp_id][1], labels[material.mp_id]
        own = crystals[material.cif]
        for column, written in material.labels.items():
            if isinstance(own, Crystal) and own.formula != crystal.formula:
                reason, value = "formula mismatch with the structure", math.nan
            else:
                reason, value = _label(column, written, min_formation_energy_eV_atom)
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
    told = [{"source": source, "key": key, "materials": n} for (source, key), n in sorted(conflicts.items()) if n]
    return frame[list(dataset.MATERIALS)], structures, told


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

    Args:
        records: as the sources give them.
        materials: columns `mp_id`, `formula`, `formation_energy_eV_atom`.
        skipped: gets the records and targets left out.
        max_temperature_C: above, a temperature is absurd.

    Returns:
        Columns of `dataset.PROTOCOLS` but `train_ok`, sorted by id.
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
    found: dict[str, str] = {}
    for mp_id, formula, _ in order:
        found.setdefault(reduced(formula), mp_id)
    return found


def select(materials: pd.DataFrame, pairs: pd.DataFrame, cfg: Curate, skipped: Skipped) -> np.ndarray:
    """Which materials a profile keeps: (M,) bool."""
    kept = np.ones(len(materials), dtype=bool)
    if cfg.max_atoms:
        kept = materials.n_atoms.to_numpy() <= cfg.max_atoms
        if cfg.keep_with_protocol:
            kept = kept | materials.mp_id.isin(set(pairs.mp_id)).to_numpy()
        _note(skipped, materials, ~kept, f"cell of more than {cfg.max_atoms} atoms")
    if cfg.max_materials and kept.sum() > cfg.max_materials:
        # Not the splits' hash: the lowest of those would all be training materials.
        place = np.array([splits.unit_hash(cfg.seed, f"keep|{mp_id}") for mp_id in materials.mp_id])
        beyond = kept & (place > np.sort(place[kept])[cfg.max_materials - 1])
        _note(skipped, materials, beyond, f"beyond {cfg.max_materials} materials, chosen by hash")
        kept = kept & ~beyond
    lost = ~pairs.mp_id.isin(set(materials.mp_id[kept]))
    if lost.any():
        skipped.add("filter", "protocol of a material not kept", pairs.protocol_id[lost].iloc[0], rows=int(lost.sum()))
    return kept


def _note(skipped: Skipped, materials: pd.DataFrame, dropped: np.ndarray, reason: str) -> None:
    if dropped.any():
        skipped.add("filter", reason, materials.mp_id[dropped].iloc[0], rows=int(dropped.sum()))


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
