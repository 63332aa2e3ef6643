"""The curated set on disk: the contract between curation and everything after. Needs no crystallography package.

A folder holds `materials.parquet`, `structures.safetensors`, `protocols.parquet`, `splits.parquet`, `audit.json` and
`extras.safetensors` (what single modalities need beyond these; often nothing); `data/README.md` says where the rows
come from. Structures of a large set are in shards, `structures-00000.safetensors` and so on; they are mapped, not read.
Writing the same content twice gives the same bytes.
"""

import functools
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from matalign import cache, paths
from matalign.data.structures import FLAT, Sharded, Structures

TYPES = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "bool": pa.bool_()}
TYPES["texts"] = pa.list_(pa.string())
# Table -> column -> name of its type, and what it holds
CONTRACT = yaml.safe_load(resources.files("matalign.data").joinpath("contract.yaml").read_text(encoding="utf-8"))
TABLES = {table: {name: TYPES[kind] for name, (kind, _) in columns.items()} for table, columns in CONTRACT.items()}
MATERIALS, PROTOCOLS, SPLITS = TABLES.values()
STRUCTURES = "structures.safetensors"
FILES = ("materials.parquet", STRUCTURES, "protocols.parquet", "splits.parquet", "extras.safetensors")
IN_DIGEST = ("xrd",)  # the extra that was first; of any other, what reads it has the hash in its key
SHARD = 1 << 16  # crystals in a file of structures, at most
TENSORS = {"numbers": np.int16, "frac_coords": np.float64, "lattice": np.float64, "ptr": np.int64}


@dataclass(frozen=True)
class Curated:
    """A profile's curated set; `materials`, `structures` and `splits` hold the same materials in the same order.

    Args:
        materials: columns `MATERIALS`.
        structures: one crystal a material.
        protocols: columns `PROTOCOLS`.
        splits: columns `SPLITS`.
        audit: counts, skipped rows with their reasons, leakage table.
        extras: modality -> (M, …) floats that it needs beyond these (see `towers`), NaN where a material has none.

    Raises:
        ValueError: a missing column, rows that do not correspond, an unknown mp-id in `protocols`.
    """

    materials: pd.DataFrame
    structures: Structures
    protocols: pd.DataFrame
    splits: pd.DataFrame
    audit: dict
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, columns in TABLES.items():
            missing = [c for c in columns if c not in getattr(self, name)]
            if missing:
                raise ValueError(f"{name}: no column {missing[0]!r}; the contract asks for {', '.join(columns)}")
        ids = self.materials.mp_id
        if not (ids.is_monotonic_increasing and ids.is_unique):
            raise ValueError("materials: mp_id must be sorted and unique")
        if len(self.structures) != len(ids) or not np.array_equal(self.splits.mp_id, ids):
            raise ValueError(
                f"{len(ids)} materials, but {len(self.structures)} structures and {len(self.splits)} rows of splits"
            )
        for name, values in self.extras.items():
            if len(values) != len(ids):
                raise ValueError(f"{len(ids)} materials, but {len(values)} rows of {name}")
        strangers = sorted(set(self.protocols.mp_id) - set(ids))
        if strangers:
            raise ValueError(f"protocols: {len(strangers)} mp-ids are not in materials, first {strangers[0]}")

    @functools.cached_property
    def digest(self) -> str:
        """Hash of the content but the audit and `extra_digests`; of values, so that a new pyarrow changes nothing."""
        hasher = hashlib.blake2b(digest_size=8)
        for name, types in TABLES.items():
            frame = getattr(self, name)
            for column in sorted(frame):
                made = types.get(column)
                numeric = pd.api.types.is_numeric_dtype(frame[column]) if made is None else pa.types.is_primitive(made)
                values = frame[column].to_numpy(np.float64).tobytes() if numeric else repr(list(frame[column])).encode()
                hasher.update(column.encode() + values)
        parts = getattr(self.structures, "parts", [self.structures])
        for name in sorted([*TENSORS, *(self.extras.keys() - self.extra_digests)]):
            hasher.update(name.encode())
            if name in FLAT:
                pieces = (np.asarray(getattr(part, name), TENSORS[name]) for part in parts)
            else:
                pieces = [self.structures.ptr if name == "ptr" else self.extras[name]]
            for piece in pieces:
                hasher.update(np.ascontiguousarray(piece))
        return hasher.hexdigest()

    @functools.cached_property
    def extra_digests(self) -> dict[str, str]:
        """Modality -> hash of its extra, of those that are not in the digest: a set that has one more is the same."""
        own = {name: np.ascontiguousarray(values) for name, values in self.extras.items() if name not in IN_DIGEST}
        return {name: hashlib.blake2b(values, digest_size=8).hexdigest() for name, values in sorted(own.items())}

    @property
    def synthetic(self) -> bool:
        """Whether all materials are of the embedded sample."""
        return bool((self.materials.source == paths.SAMPLE.name).all())

    def extra(self, modality: str) -> np.ndarray:
        """(M, …) what curation made for a modality.

        Raises:
            ValueError: it made nothing; the message says how to have it made.
        """
        if modality not in self.extras:
            raise ValueError(f"no {modality} in the curated set: name it in `modalities` of the stage `curate` as well")
        return self.extras[modality]


def write(folder: Path, curated: Curated) -> None:
    """Write the files, each under a temporary name and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    made, n = [], len(curated.structures)

    def put(name: str, content: bytes) -> None:
        temporary = folder / f".{name}"
        temporary.write_bytes(content)
        made.append(temporary.rename(folder / name))

    for number, start in enumerate(range(0, max(n, 1), SHARD)):
        part = curated.structures.take(np.arange(start, min(start + SHARD, n)))
        tensors = {k: np.ascontiguousarray(getattr(part, k), dtype=v) for k, v in TENSORS.items()}
        put(STRUCTURES if n <= SHARD else f"structures-{number:05d}.safetensors", save_tensors(tensors))
    for stale in set(shards(folder)) - set(made):
        stale.unlink()
    extras = {name: np.ascontiguousarray(values) for name, values in curated.extras.items()}
    put("extras.safetensors", save_tensors(extras))
    for name, types in TABLES.items():
        put(f"{name}.parquet", _parquet(getattr(curated, name), types))
    cache.write_json(folder / "audit.json", curated.audit)


def read(folder: Path) -> Curated:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: the folder or one of its files is not there; the message says how to make it.
        ValueError: see `Curated`.
    """
    folder = Path(folder)
    parts = shards(folder)
    try:
        files = {file.name: file.read_bytes() for file in files_of(folder) if file not in parts}
        audit = cache.read_json(folder / "audit.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: no curated set here; the stage `curate` makes it") from None
    try:
        structures = Sharded([mapped(part) for part in parts]) if len(parts) > 1 else mapped(parts[0])
        tables = {name: pq.read_table(io.BytesIO(files[f"{name}.parquet"])).to_pandas() for name in TABLES}
        tables["protocols"]["precursors"] = [list(p) for p in tables["protocols"].precursors]
        extras = load_tensors(files["extras.safetensors"])
        return Curated(structures=structures, audit=audit, extras=extras, **tables)
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a whole curated set ({error}); the stage `curate` makes it") from None


def shards(folder: Path) -> list[Path]:
    """Files of structures, in order."""
    return sorted(folder.glob(f"{Path(STRUCTURES).stem}*.safetensors"))


def files_of(folder: Path) -> list[Path]:
    """All files of a set but the audit, in the order of `FILES`; structures of which there are none by their name."""
    found = shards(folder) or [folder / STRUCTURES]
    return [file for name in FILES for file in (found if name == STRUCTURES else [folder / name])]


def mapped(file: Path) -> Structures:
    """Structures whose arrays stay on disk, each page until it is read; ValueError if the file holds something else."""
    found = {name: tensor.numpy() for name, tensor in cache.tensors(file).items()}
    if found.keys() != TENSORS.keys():
        raise ValueError(f"{file}: expected tensors {', '.join(TENSORS)}, got {', '.join(found) or 'none'}")
    return Structures(**found)


def _parquet(frame: pd.DataFrame, types: dict[str, pa.DataType]) -> bytes:
    """Columns of the contract first, any others after; no pandas metadata, so that its version is not in the bytes."""
    columns = [*types, *(column for column in frame if column not in types)]
    table = pa.table({c: pa.array(frame[c], types.get(c), from_pandas=True) for c in columns})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
