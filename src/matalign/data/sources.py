"""The raw data: where it comes from, how it gets here unharmed, and one reader per source.

`data/sources.yaml` lists what is taken, with the commit in each url, its hash, licence and citation. With
`MATALIGN_MIRROR=<folder>` the url `https://<host>/<path>` is read from `<folder>/<host>/<path>`; all else is the same
code. `python -m matalign.data.sources <source>` fetches one source into `data/raw/<source>`.

Local ids of the archives end here: what the readers yield is keyed by mp-id.
"""

import csv
import hashlib
import json
import lzma
import os
import re
import sys
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import yaml
from tqdm import tqdm

from matalign import paths

CHUNK = 1 << 16  # bytes
TIMEOUT_S = 30
ATTEMPTS = 5  # connections for one file before giving up; each goes on where the last one broke
PAUSE_S = 0.1  # before the first of these, doubled each time
CONNECTIONS = 8  # at once, for a source of many small files
ARCHIVE = "MEGNet.tar.gz"
ARCHIVE_TABLES = ("id_prop.csv", "material_id_hash.csv")
SYMPREC_A = 0.1  # of space groups: the Materials Project's own tolerance
LABELS = ("formation_energy_eV_atom", "band_gap_eV", "bulk_modulus_GPa", "shear_modulus_GPa")
HEAVIEST = 103  # Lr, the last element that pymatgen has data for

# Fetching


def catalogue(file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Source name -> its entry in `sources.yaml`."""
    return yaml.safe_load((file or paths.DATA / "sources.yaml").read_text())


def fetch(name: str, *, raw: Path | None = None, entries: dict[str, dict[str, Any]] | None = None) -> Path:
    """Bring one source into `<raw>/<name>` and check it; what is there already and right stays.

    Args:
        name: a key of `sources.yaml`.
        raw: folder of the raw files.
        entries: the catalogue.

    Returns:
        The source's folder.

    Raises:
        ValueError: an unknown source, or a wrong hash (naming file, expected, got); the bad file is renamed to `*.bad`.
        FileNotFoundError: the mirror or the server does not have a url.
        ConnectionError: a url cannot be reached.
    """
    raw, entries = raw or paths.RAW, entries or catalogue()
    if name not in entries:
        raise ValueError(f"no source {name!r}; one of {', '.join(entries)}")
    entry, folder = entries[name], raw / name
    folder.mkdir(parents=True, exist_ok=True)
    if "each" in entry:
        reactions = fetch(entry["named_by"], raw=raw, entries=entries)
        ids = named_mp_ids(reactions) - set(entry["absent"].split()) | set(entry["also"].split())
        _fetch_each(entry["each"], ids, folder, expected=entry["content_sha256"])
    for file, about in entry.get("files", {}).items():
        if "content_sha256" in about:
            download(about["url"], folder / file, expected=about["content_sha256"], hashing=archive_hash)
        else:
            download(about["url"], folder / file, expected=about["sha256"])
    return folder


def download(url: str, path: Path, *, expected: str, hashing: Callable[[Path], str] | None = None) -> None:
    """Download a file, going on where an earlier attempt left `<path>.part`; it gets its name once its hash is right.

    Args:
        url: where from; read from the mirror where `MATALIGN_MIRROR` is set.
        path: where to.
        expected: hex digits of the hash.
        hashing: how to hash the file; sha256 of its bytes if not given.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: see `fetch`.
    """
    if path.exists():
        if _hash(path, hashing) == expected:
            return
        path.rename(_bad(path))  # of another version, or harmed since
    part = path.with_name(path.name + ".part")
    _transfer(url, part)
    got = _hash(part, hashing)
    if got != expected:
        part.rename(_bad(path))
        raise ValueError(
            f"{path}: expected hash {expected}, got {got}; what {url} gave is set aside as {_bad(path).name}"
        )
    part.rename(path)


def _hash(path: Path, hashing: Callable[[Path], str] | None) -> str:
    try:
        return (hashing or file_hash)(path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        return f"an unreadable file ({error})"


def _bad(path: Path) -> Path:
    return path.with_name(path.name + ".bad")


def _fetch_each(template: str, ids: Iterable[str], folder: Path, *, expected: str) -> None:
    """Many small files named by id; the hash is over all of them, so one that is missing shows there."""
    ids = sorted(ids)

    def one(mp_id: str) -> str | None:
        path = folder / f"{mp_id}.cif"
        part = path.with_name(path.name + ".part")
        if not path.exists():
            try:
                _transfer(template.format(mp_id=mp_id), part, progress=False)
            except FileNotFoundError as error:
                return str(error)
            part.rename(path)
        return None

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(tqdm(pool.map(one, ids), total=len(ids), desc=folder.name, unit="file", mininterval=1))
    absent = [answer for answer in answers if answer]
    wanted = {f"{mp_id}.cif" for mp_id in ids}
    for stray in [f for f in folder.iterdir() if f.name not in wanted]:
        stray.unlink()  # of another version of the list, or half a file
    got = content_hash((f.name, f.read_bytes()) for f in folder.iterdir())
    if got != expected:
        bad = _bad(folder)
        _remove(bad)
        folder.rename(bad)
        lost = f"; {len(absent)} of {len(ids)} files were not found, first: {absent[0]}" if absent else ""
        raise ValueError(f"{folder}: expected hash {expected}, got {got}; the folder is set aside as {bad.name}{lost}")


def _remove(folder: Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _transfer(url: str, part: Path, *, progress: bool = True) -> None:
    """Append to `part` until it is whole, over as many connections as it takes."""
    broken: Exception | None = None
    for attempt in range(ATTEMPTS):
        if broken:
            time.sleep(PAUSE_S * 2**attempt)
        try:
            with _open(url, part.stat().st_size if part.exists() else 0) as (chunks, start, total):
                shown = {"desc": part.stem, "unit": "B", "unit_scale": True, "mininterval": 1, "disable": not progress}
                with open(part, "ab") as out, tqdm(total=total, initial=start, **shown) as bar:
                    out.truncate(start)
                    for chunk in chunks:
                        out.write(chunk)
                        bar.update(len(chunk))
            if total is None or part.stat().st_size == total:
                return
            broken = OSError(f"{part.stat().st_size} of {total} bytes came")
        except requests.RequestException as error:
            broken = error
    reason = f"{type(broken).__name__}: {broken}".replace("\n", " ")
    raise ConnectionError(
        f"cannot download {url} ({reason}); connect to it, or set MATALIGN_MIRROR to a folder with {_mirrored(url)}"
    )


def _mirrored(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc + parts.path


@contextmanager
def _open(url: str, start: int) -> Iterator[tuple[Iterator[bytes], int, int | None]]:
    """Yield (chunks, the byte they start at, total bytes if known); they start at 0 if the server cannot resume."""
    if mirror := os.environ.get("MATALIGN_MIRROR"):
        file = Path(mirror, _mirrored(url))
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there; put {url} there, or unset MATALIGN_MIRROR to download it")
        total = file.stat().st_size
        start = start if start <= total else 0
        with open(file, "rb") as stream:
            stream.seek(start)
            yield iter(lambda: stream.read(CHUNK), b""), start, total
        return
    headers = {"Accept-Encoding": "identity"}  # a compressed answer has other byte positions
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 404:
            raise FileNotFoundError(f"{url} is not there (404); set MATALIGN_MIRROR to a folder with {_mirrored(url)}")
        if answer.status_code == 416:  # nothing beyond `start`: it is whole, or of another version; the hash tells
            yield iter(()), start, start
            return
        answer.raise_for_status()
        start = start if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        yield answer.iter_content(CHUNK), start, start + int(length) if length is not None else None


def file_hash(path: Path) -> str:
    """Sha256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(files: Iterable[tuple[str, bytes]]) -> str:
    """Sha256 over the lines `<sha256 of the file>  <path>`, as `sha256sum` prints them, sorted by path."""
    sums = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files)
    return hashlib.sha256("".join(f"{digest}  {path}\n" for path, digest in sums).encode()).hexdigest()


def archive_hash(path: Path) -> str:
    """`content_hash` of the archive's files that are used; the archive's own bytes differ from day to day."""
    return content_hash(_archive(path))


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """(path without the archive's top folder, content) of the CIFs, labels and id tables, in the archive's order."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            folder, _, file = name.partition("/")
            if folder in ("data", "data_elasticity") and (file.endswith(".cif") or file in ARCHIVE_TABLES):
                yield name, archive.extractfile(member).read()


# Reading


@dataclass(frozen=True)
class Material:
    """A crystal as a source gives it, unchecked.

    Args:
        mp_id: "" where the source has none for it.
        source: the source's name.
        where: file and row, for messages.
        cif: text; None where the source has no file for it.
        labels: column of `dataset.MATERIALS` -> value as written.
    """

    mp_id: str
    source: str
    where: str
    cif: str | None
    labels: dict[str, str]


@dataclass(frozen=True)
class Reaction:
    """A synthesis record as a source gives it, unchecked: `protocols.parse` reads it."""

    source: str
    row: int
    where: str  # file and row, for messages
    method: str  # solid-state or sol-gel
    record: dict[str, Any]


def megnet(folder: Path) -> Iterator[Material]:
    """The Materials Project snapshot: formation energies and gaps."""
    return _snapshot(folder / ARCHIVE, "data", "megnet", ("formation_energy_eV_atom", "band_gap_eV"))


def elasticity(folder: Path) -> Iterator[Material]:
    """Bulk and shear moduli in the same archive, under local ids of their own."""
    return _snapshot(folder / ARCHIVE, "data_elasticity", "elasticity", ("bulk_modulus_GPa", "shear_modulus_GPa"))


def _snapshot(archive: Path, part: str, source: str, columns: tuple[str, ...]) -> Iterator[Material]:
    files = {path: content for path, content in _archive(archive) if path.startswith(f"{part}/")}
    labels = {row[0]: row[1:] for row in _rows(files[f"{part}/id_prop.csv"]) if row}
    rows = [row for row in _rows(files[f"{part}/material_id_hash.csv"]) if row]
    ids = [(f"{part}/{local_id}.cif", local_id, mp_id) for local_id, mp_id in rows]
    known = {path for path, _, _ in ids}
    ids += [(path, "", "") for path in sorted(files) if path.endswith(".cif") and path not in known]
    for path, local_id, mp_id in ids:
        cif = files[path].decode(errors="replace") if path in files else None
        written = [*labels.get(local_id, ()), *[""] * len(columns)]
        yield Material(mp_id, source, f"{archive.name}:{path}", cif, dict(zip(columns, written)))


def _rows(content: bytes) -> Iterator[list[str]]:
    return csv.reader(content.decode().splitlines())


def topology(folder: Path) -> Iterator[Material]:
    """Crystals that reactions name, one CIF each; no labels."""
    for file in sorted(folder.glob("*.cif")):
        yield Material(file.stem, "topology", file.name, file.read_text(errors="replace"), {})


def table(file: Path) -> Iterator[Material]:
    """A CSV with `mp_id`, `cif` (the text) and any of the columns `LABELS`: the embedded sample, or one's own data."""
    csv.field_size_limit(1 << 24)
    with open(file, newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            labels = {column: row[column] for column in LABELS if column in row}
            where = f"{file.name}:{number}"
            yield Material(row.get("mp_id") or "", file.parent.name, where, row.get("cif") or None, labels)


def solid_state(folder: Path) -> Iterator[Reaction]:
    """Text-mined solid-state reactions (Kononova et al., Sci. Data 6, 203, 2019)."""
    return _mined(folder, "solid-state")


def sol_gel(folder: Path) -> Iterator[Reaction]:
    """Text-mined sol-gel reactions, of the same makers; no mp-ids."""
    return _mined(folder, "sol-gel")


def _mined(folder: Path, method: str) -> Iterator[Reaction]:
    for file in sorted(folder.glob("*.json.xz")):
        with lzma.open(file, "rt") as stream:
            for number, record in enumerate(json.load(stream)["reactions"]):
                yield Reaction(folder.name, number, f"{file.name}:{number}", method, record)


def records(file: Path) -> Iterator[Reaction]:
    """A file of one JSON record a line, in the solid-state schema; `synthesis_type` "sol-gel" makes it one of those."""
    with open(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: expected a JSON record, got {line[:60]!r} ({error})") from None
            method = "sol-gel" if record.get("synthesis_type") == "sol-gel" else "solid-state"
            yield Reaction(file.parent.name, number, f"{file.name}:{number}", method, record)


def named_mp_ids(folder: Path) -> set[str]:
    """The mp-ids that the solid-state reactions name as targets; `mvc-` ids, of a closed project, are left out."""
    named = (reaction.record["target"].get("mp_id") or "" for reaction in solid_state(folder))
    return {mp_id for mp_id in named if mp_id.startswith("mp-")}


def materials(raw: Path) -> Iterator[Material]:
    """All crystals under a folder, the source to be preferred for a structure first.

    Raises:
        FileNotFoundError: the folder holds no source.
    """
    return _every(raw, [("materials.csv", table), ("megnet", megnet), ("topology", topology), ("megnet", elasticity)])


def reactions(raw: Path) -> Iterator[Reaction]:
    """All synthesis records under a folder.

    Raises:
        FileNotFoundError: the folder holds no source.
    """
    return _every(raw, [("protocols.jsonl", records), ("solid_state", solid_state), ("sol_gel", sol_gel)])


def _every(raw: Path, readers: list[tuple[str, Callable[[Path], Iterator[Any]]]]) -> Iterator[Any]:
    there = [(raw / name, read) for name, read in readers if (raw / name).exists()]
    if not there:
        names = ", ".join(dict.fromkeys(name for name, _ in readers))
        fetching = f"python -m matalign.data.sources {' '.join(catalogue())}"
        raise FileNotFoundError(f"{raw} has none of {names}; fetch them with: {fetching}")
    for path, read in there:
        yield from read(path)


# One crystal


@dataclass(frozen=True)
class Crystal:
    """What a CIF says; see `parse_cif`."""

    numbers: np.ndarray  # (n,) atomic numbers
    frac_coords: np.ndarray  # (n, 3)
    lattice: np.ndarray  # (3, 3) rows are the lattice vectors, Å
    formula: str  # reduced
    chemsys: str
    space_group: int  # international number; 0: none found


def parse_cif(text: str) -> Crystal:
    """Read one ordered crystal.

    The space group is spglib's at a tolerance of 0.1 Å, or at a tenth or a hundredth of that where it finds none.

    Raises:
        ValueError: "unreadable CIF", "unknown element", "disordered" or "formula mismatch" (the sites make another
            formula than `_chemical_formula_sum`), then ": " and the cause.
    """
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # of tolerances that it lowers by itself
    import spglib  # here: fetching works without a crystallography package
    from pymatgen.core import Composition, DummySpecies
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings(record=True) as said:  # what is wrong with a CIF comes as a warning
        warnings.simplefilter("always")
        try:
            structure = CifParser.from_str(text).parse_structures(primitive=False)[0]
        except Exception as error:  # the parser raises whatever its parts raise
            causes = [str(w.message).splitlines()[-1] for w in said if issubclass(w.category, UserWarning)]
            raise ValueError(f"unreadable CIF: {(causes or [str(error) or type(error).__name__])[-1]}") from None
        species = [specie for site in structure for specie in site.species]
        unknown = [s for s in species if isinstance(s, DummySpecies) or not 1 <= s.Z <= HEAVIEST]
        if unknown:
            raise ValueError(f"unknown element: {unknown[0].symbol}")
        if not structure.is_ordered:
            raise ValueError(f"disordered: {structure.composition.formula}")
        lattice, frac_coords = structure.lattice.matrix, structure.frac_coords
        if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all() and structure.volume > 0):
            raise ValueError("unreadable CIF: cell or coordinates are not finite")
        formula = structure.composition.element_composition.reduced_formula
        if stated := re.search(r"^_chemical_formula_sum\s+(?:'([^']+)'|(\S+))", text, re.MULTILINE):
            stated_formula = Composition(stated[1] or stated[2]).reduced_formula
            if stated_formula != formula:
                raise ValueError(
                    f"formula mismatch: _chemical_formula_sum is {stated_formula}, the sites are {formula}"
                )
        numbers = np.array([s.Z for s in species], dtype=np.int16)
        cell = (lattice, frac_coords, numbers)
        symmetries = (spglib.get_symmetry_dataset(cell, symprec=SYMPREC_A * scale) for scale in (1, 0.1, 0.01))
        space_group = next((found.number for found in symmetries if found is not None), 0)
    return Crystal(numbers, frac_coords, lattice, formula, structure.chemical_system, space_group)


def main() -> None:
    """Fetch the sources named on the command line; an error is one line."""
    try:
        for name in sys.argv[1:]:
            fetch(name)
    except (OSError, ValueError) as error:
        sys.exit(f"matalign.data.sources: {error}")


if __name__ == "__main__":
    main()
