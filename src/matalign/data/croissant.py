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

COLUMNS = {  # table -> column -> what it holds; types and units are those of `dataset`
    "materials": {
        "mp_id": "Materials Project identifier, the key of every table; elsewhere one of the set's own",
        "formula": "reduced formula",
        "chemsys": "chemical system: element symbols, sorted, joined by hyphens",
        "n_atoms": "atoms in the cell",
        "space_group": "international number, from the coordinates",
        "source": "where the structure comes from",
        "formation_energy_eV_atom": "formation energy, eV/atom; missing: no label",
        "band_gap_eV": "band gap, eV; missing: no label",
        "is_metal": "1 where the gap is zero, else 0; missing: no label",
        "bulk_modulus_GPa": "bulk modulus K, GPa; missing: no label",
        "shear_modulus_GPa": "shear modulus G, GPa; missing: no label",
    },
    "protocols": {
        "protocol_id": "source and row of the record",
        "mp_id": "the material that the record makes, tied by composition",
        "doi": "the article that the record was mined from",
        "method": "solid-state or sol-gel",
        "target_formula": "the target as written",
        "precursors": "formulas of the precursors",
        "max_temperature_C": "highest temperature named, °C",
        "text_L0": "rendered text, nothing masked",
        "text_L1": "rendered text, the target masked",
        "text_L2": "rendered text, each precursor by its class",
        "text_L3": "rendered text, conditions alone",
        "train_ok": "false: shares its DOI with a test protocol and is never trained on",
    },
    "splits": {
        "mp_id": "the rows of materials, in their order",
        "random": "train, val or test by material",
        "chemsys": "train, val or test by chemical system",
        "pretrain": "train, val or excluded: the union of both test sets is excluded",
    },
}
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
        record_sets=[_records(mlc, context, name, columns) for name, columns in dataset.TABLES.items()],
    )
    return json.loads(json.dumps(table.to_json(), default=str))


def _records(mlc: Any, context: Any, name: str, columns: dict[str, pa.DataType]) -> Any:
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
                description=COLUMNS[name][column],
                data_types=[getattr(mlc.DataType, TYPES[kind.value_type if isinstance(kind, pa.ListType) else kind])],
                repeated=isinstance(kind, pa.ListType),
                source=mlc.Source(
                    ctx=context, file_object=f"{name}.parquet", extract=mlc.Extract(ctx=context, column=column)
                ),
            )
            for column, kind in columns.items()
        ],
    )
