"""Metadata of a curated set in Croissant 1.0 (Akhtar et al., DEEM at SIGMOD 2024): files, columns, units, sources.

The set itself is made on each machine and never in git; its metadata may be, so that a reader knows what a run holds,
and `mlcroissant.Dataset(file).records("materials")` reads it where it has been made.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from matalign import __version__, cache, paths
from matalign.data import dataset
from matalign.data.sources import catalogue, file_hash

TYPES = {"text": "TEXT", "texts": "TEXT", "integer": "INT64", "number": "FLOAT64", "bool": "BOOL"}  # of mlcroissant
FORMATS = {".parquet": "application/x-parquet", ".safetensors": "application/octet-stream"}
LIMITS = (
    "Micrographs are not part of the set: they are simulated from the structures. A protocol is tied to a composition, "
    "not to a polymorph. Records are of syntheses that worked. Energies and gaps are those of one level of theory."
)


def write(profile: str) -> Path:
    """Write `results/<profile>/croissant.json`; FileNotFoundError where there is no set in `data/curated/<profile>`."""
    folder, target = paths.curated(profile), paths.results(profile) / "croissant.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    cache.write_json(target, _metadata(dataset.read(folder), folder, relative_to=target.parent, profile=profile))
    return target


def _metadata(curated: dataset.Curated, folder: Path, *, relative_to: Path, profile: str) -> dict[str, Any]:
    """The JSON-LD; addresses of the files are relative to the folder of the metadata."""
    import mlcroissant as mlc

    context = mlc.Context(conforms_to="http://mlcommons.org/croissant/1.0")
    sources = [] if curated.synthetic else list(catalogue().values())
    counts = f"{len(curated.materials):,} materials, {len(curated.protocols):,} synthesis protocols"
    made = "Made up by the project itself; its numbers say nothing about nature. " if curated.synthetic else ""

    def file(path: Path) -> mlc.FileObject:
        about = {"content_size": f"{path.stat().st_size} B", "encoding_formats": [FORMATS[path.suffix]]}
        about |= {"content_url": os.path.relpath(path, relative_to), "sha256": file_hash(path)}
        return mlc.FileObject(ctx=context, id=path.name, name=path.name, **about)

    def field(table: str, column: str, kind: str, about: str) -> mlc.Field:
        extract = mlc.Extract(ctx=context, column=column)
        source = mlc.Source(ctx=context, file_object=f"{table}.parquet", extract=extract)
        kinds = {"data_types": [getattr(mlc.DataType, TYPES[kind])], "repeated": kind == "texts"}
        return mlc.Field(ctx=context, id=f"{table}/{column}", name=column, description=about, source=source, **kinds)

    def records(table: str) -> mlc.RecordSet:
        fields = [field(table, column, *about) for column, about in dataset.CONTRACT[table].items()]
        return mlc.RecordSet(ctx=context, id=table, name=table, key=[fields[0].id], fields=fields)

    described = mlc.Metadata(
        ctx=context,
        name=f"matalign-{profile}",
        description=f"{made}Crystal structures with properties and synthesis protocols, joined by material: {counts}. "
        "Structures are in structures.safetensors (numbers, frac_coords, lattice in Å, ptr).",
        license=[f"{s['title']}: {s['licence']}" for s in sources] or ["MIT"],
        cite_as="; ".join(dict.fromkeys(s["citation"] for s in sources)) or "the matalign authors",
        version=__version__,
        date_published=datetime.datetime(2026, 11, 1),
        data_limitations=[LIMITS],
        data_collection_raw_data="; ".join(s["title"] for s in sources) or "data/sample/make.py",
        distribution=[file(path) for path in dataset.files_of(folder)],
        record_sets=[records(table) for table in dataset.CONTRACT],
    )
    return json.loads(json.dumps(described.to_json(), default=str))
