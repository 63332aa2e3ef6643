"""One's own data as a curated set: a folder with a manifest, a CSV with CIFs, or any OPTIMADE provider.

What comes out is what `curate` makes of the project's sources, so that embedding, retrieval and recommendation work on
it; `write` puts it where a profile's set would be. The column `mp_id` holds the user's ids. Splits are those of every
set: what a model was not to see in training, by its elements, is in the test set here as well.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from matalign import config, paths
from matalign.data import chunked, curate, dataset, manifest, protocols, providers, sources
from matalign.data.dataset import Curated
from matalign.data.manifest import Entry
from matalign.data.protocols import Protocol
from matalign.data.readers import crystals
from matalign.data.readers.micrographs import model_image
from matalign.data.sources import LABELS, Crystal, Material, Skipped

SOURCE = "own"
SEED = 0  # of the splits: that of all profiles
# Columns of a CSV with CIFs -> ours. MP-20 has the first three; names with units are ours.
CSV_COLUMNS = {
    "material_id": "mp_id",
    "formation_energy_per_atom": "formation_energy_eV_atom",
    "band_gap": "band_gap_eV",
    "id": "mp_id",
    "mp_id": "mp_id",
    **{label: label for label in LABELS},
}


def import_folder(folder: str | Path) -> Curated:
    """A folder with a `manifest.csv` (see `manifest`).

    The table of materials gets the columns `image` (path; "" where there is none), `image_pixel_A` and `image_frame`
    (−1: the only one), for `micrographs`. A row without a structure has no place in a curated set: `audit["skipped"]`
    counts it.

    Raises:
        FileNotFoundError, ValueError: see `manifest.read`; or no row has a structure.
    """
    entries = manifest.read(folder)
    skipped = Skipped()
    for entry in entries:
        if entry.structure is None:
            skipped.add(SOURCE, "no structure", f"{entry.where}: {entry.id}")
    placed = sorted((e for e in entries if e.structure is not None), key=lambda entry: entry.id)
    if not placed:
        raise ValueError(f"{folder}: none of {len(entries)} rows has a structure; a curated set holds structures")
    listed = [Material(e.id, SOURCE, e.where, e.id, {c: repr(v) for c, v in e.properties.items()}) for e in placed]
    rows = [_protocol_row(entry) for entry in placed if entry.protocol is not None]
    columns = {
        "image": [str(entry.image or "") for entry in placed],
        "image_pixel_A": [math.nan if entry.pixel_A is None else entry.pixel_A for entry in placed],
        "image_frame": [-1 if entry.frame is None else entry.frame for entry in placed],
    }
    return _curated(listed, {e.id: e.structure for e in placed}, skipped, rows=rows, columns=columns)


def import_csv(file: str | Path, *, workers: int = 2) -> Curated:
    """A CSV with a column `cif`, as the benchmarks of CDVAE have it (MP-20, Perov-5, Carbon-24).

    Columns of `CSV_COLUMNS` are taken, others are left and named in `audit["columns"]`: Perov-5's heats and gaps and
    Carbon-24's energies are other quantities than ours. A row whose CIF cannot be used is counted in
    `audit["skipped"]` under its reason.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no rows, no column of CIFs or of ids, or two of one kind; no readable structure at all.
    """
    file = Path(file)
    header, listed = _csv(file)
    skipped = Skipped()
    kept = curate.candidates(listed, skipped)
    parsed = chunked.parse_cifs(list(dict.fromkeys(m.cif for m in kept)), workers=workers)
    used = [column for column in header if column == "cif" or column in CSV_COLUMNS]
    columns = {"taken": used, "left": [column for column in header if column and column not in used]}
    return _curated(kept, parsed, skipped, about={"columns": columns})


def import_optimade(provider: str, filter: str, *, max_structures: int = 0, partial: bool = False) -> Curated:
    """Structures of an OPTIMADE provider, as `providers.download` takes them; `audit["query"]` tells what did not come.

    Raises:
        ValueError: an unknown name, an unreadable filter, or no usable structure.
        ConnectionError: the provider cannot be reached, or does not answer as the standard asks; what has come is kept.
    """
    records, gap = providers.download(provider, filter, max_structures=max_structures, partial=partial)
    if not records:
        raise ValueError(f"{provider} has no structure that answers to {filter!r}")
    skipped, listed, found = Skipped(), [], {}
    source = provider if provider in providers.URLS else "optimade"
    for number, record in enumerate(tqdm(records, desc="crystals", unit="record", mininterval=1)):
        where = f"{provider}:{number}"
        record = record if isinstance(record, dict) else {}
        listed.append(Material(str(record.get("id") or ""), source, where, where, {}))
        try:
            found[where] = sources.described(crystals.read_structure(record))
        except ValueError as error:
            found[where] = str(error).partition(": ")[2]  # after the record's name
    query = {"provider": provider, "filter": filter, "records": len(records), "gap": gap}
    return _curated(curate.candidates(listed, skipped), found, skipped, about={"query": query})


def write(name: str, curated: Curated) -> Path:
    """Put a set into `data/curated/<name>`, where the notebooks find it; raises as `checked_name`."""
    folder = paths.curated(checked_name(name))
    dataset.write(folder, curated)
    return folder


def checked_name(name: str) -> str:
    """The name of a set; raises a ValueError if it is that of a profile of params.yaml, or no folder's name."""
    if name in config.parameters(paths.PARAMS.read_text()) or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"{name!r}: expected a name of letters, digits, _ and - that is no profile of params.yaml")
    return name


def micrographs(
    curated: Curated, *, pixel_A: float, px: int
) -> tuple[Int[np.ndarray, " n"], Float[Tensor, "n 1 height width"]]:
    """The images of an imported folder, as the image tower of a model with `pixel_A` (Å) and `image_px` takes them.

    Returns:
        (n,) rows of the materials that have an image; (n, 1, px, px) for `encode.Model.embed_images`.
    """
    table = curated.materials
    rows = np.flatnonzero(table["image"] != "") if "image" in table else np.zeros(0, int)
    frames = [None if number < 0 else number for number in table.get("image_frame", np.full(len(table), -1))]
    scales, look = table.get("image_pixel_A"), {"to_pixel_A": pixel_A, "px": px}
    images = [model_image(table["image"][row], pixel_A=scales[row], frame=frames[row], **look) for row in rows]
    return rows, torch.from_numpy(np.array(images, np.float32).reshape(-1, 1, px, px))


def _csv(file: Path) -> tuple[list[str], list[Material]]:
    """Columns and rows; the CIF's text is not looked at."""
    header, rows = manifest.table(file)
    names = [CSV_COLUMNS.get(column, column) for column in header]
    for number, name in enumerate(names):
        if name in CSV_COLUMNS.values() and name in names[:number]:
            both = f"{header[names.index(name)]!r} and {header[number]!r}"
            raise ValueError(f"{file}: the columns {both} both are {name}; drop one")
    for asked, name in (("cif", "cif"), ("material_id", "mp_id")):
        if name not in names:
            raise ValueError(f"{file}: no column {asked!r}; the columns are {', '.join(header)}")
    listed = []
    for number, cells in enumerate(rows, start=2):
        row = dict(zip(names, cells + [""] * (len(names) - len(cells))))
        labels = {name: row[name] for name in LABELS if name in names}
        if any(cells):
            listed.append(Material(row["mp_id"], SOURCE, f"{file.name}:{number}", row["cif"] or None, labels))
    return header, listed


def _protocol_row(entry: Entry) -> dict[str, Any]:
    """A row of the table of protocols, without `train_ok`; a free text stands as it is at every mask level."""
    row = {"protocol_id": entry.id, "mp_id": entry.id}
    if isinstance(entry.protocol, Protocol):
        return {**entry.protocol.columns(), **row}
    nothing = {"doi": "", "method": "", "target_formula": entry.structure.formula, "precursors": []}
    texts = {f"text_L{level}": entry.protocol for level in protocols.LEVELS}
    return {**row, **nothing, "max_temperature_C": math.nan, **texts}


def _curated(
    listed: Sequence[Material],
    parsed: Mapping[str, Crystal | str],
    skipped: Skipped,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Curated:
    """What `curate.run` makes of a profile; `cif` of the materials is a key of `parsed`, `rows` are of protocols."""
    materials, structures, conflicts = curate.merge(listed, parsed, skipped, min_formation_energy_eV_atom=-math.inf)
    pairs = pd.DataFrame(rows, columns=[column for column in dataset.PROTOCOLS if column != "train_ok"])
    told = {"stage": "import", "synthetic": False, "seed": SEED, "conflicts": conflicts, **(about or {})}
    return curate.finished(materials.assign(**columns or {}), structures, pairs, skipped, about=told)
