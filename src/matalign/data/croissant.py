"""Metadata of a curated set in Croissant 1.0 (Akhtar et al., DEEM at SIGMOD 2024): files, columns, units, sources.

The set itself is made on each machine and never in git; its metadata may be, so that a reader knows what a run holds,
and `mlcroissant.Dataset(file).records("materials")` reads it where it has been made.
"""

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from matalign import __version__, cache, paths
from matalign.data import dataset

TYPES = {pa.string(): "TEXT", pa.int64(): "INT64", pa.float64(): "FLOAT64", pa.bool_(): "BOOL"}  # of mlcroissant
FORMATS = {".parquet": "application/x-parquet", ".safetensors": "application/octet-stream"}
LIMITS = (
    "Micrographs are not part of the set: they are simulated from the structures. A protocol is tied to a composition, "
    "not to a polymorph. Records are of syntheses that worked. Energies and gaps are those of one level of theory."
)


def write(profile: str) -> Path:
    """Write `results/<profile>/croissant.json` for the set in `data/curated/<profile>`.

    Raises:
        FileNotFoundError: there is no curated set.
    """
    folder, target = paths.curated(profile), paths.results(profile) / "croissant.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    made = metadata(dataset.read(folder), folder, relative_to=target.parent, profile=profile)
    cache.write_json(target, made)
    return target


def metadata(curated: dataset.Curated, folder: Path, *, relative_to: Path, profile: str) -> dict[str, Any]:
    """The JSON-LD of a curated set.

    Args:
        curated: the set, as `dataset.read` read it.
        folder: where its files are.
        relative_to: folder of the metadata; the files' addresses are relative to it.
        profile: name of the set.
    """
    import mlcroissant as mlc

    context = mlc.Context(conforms_to="http://mlcommons.org/croissant/1.0")
    sources = (
        [] if curated.synthetic else list(yaml.safe_load((paths.ROOT / "data" / "sources.yaml").read_text()).values())
    )
    files = [
        mlc.FileObject(
            ctx=context,
            id=name,
            name=name,
            content_url=os.path.relpath(folder / name, relative_to),
            content_size=f"{(folder / name).stat().st_size} B",
            encoding_formats=[FORMATS[Path(name).suffix]],
            sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        )
        for name in dataset.FILES
    ]
    counts = f"{len(curated.materials):,} materials, {len(curated.protocols):,} synthesis protocols"
    made = "Made up by the project itself; its numbers say nothing about nature. " if curated.synthetic else ""
    table = mlc.Metadata(
        ctx=context,
        name=f"matalign-{profile}",
        description=f"{made}Crystal structures with properties and synthesis protocols, joined by material: {counts}. "
        "Structures are in structures.safetensors (numbers, frac_coords, lattice in Å, ptr).",
        license=["MIT"] if curated.synthetic else [f"{s['title']}: {s['licence']}" for s in sources],
        cite_as="; ".join(dict.fromkeys(s["citation"] for s in sources)) or "the matalign authors",
        version=__version__,
        date_published=datetime.datetime(2026, 11, 1),
        data_limitations=[LIMITS],
        data_collection_raw_data="; ".join(s["title"] for s in sources) or "data/sample/make.py",
        distribution=files,
        record_sets=[_records(mlc, context, name, columns) for name, columns in dataset.CONTRACT.items()],
    )
    return json.loads(json.dumps(table.to_json(), default=str))


def _records(mlc: Any, context: Any, name: str, columns: dict[str, tuple[pa.DataType, str]]) -> Any:
    """A table as a record set, one field a column."""
    return mlc.RecordSet(
        ctx=context,
        id=name,
        name=name,
        key=[f"{name}/{next(iter(columns))}"],
        fields=[
            mlc.Field(
                ctx=context,
                id=f"{name}/{column}",
                name=column,
                description=about,
                data_types=[getattr(mlc.DataType, TYPES[kind.value_type if isinstance(kind, pa.ListType) else kind])],
                repeated=isinstance(kind, pa.ListType),
                source=mlc.Source(
                    ctx=context, file_object=f"{name}.parquet", extract=mlc.Extract(ctx=context, column=column)
                ),
            )
            for column, (kind, about) in columns.items()
        ],
    )
