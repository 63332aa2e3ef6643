"""Raw data from where it lies to `data/raw`, unharmed.

`data/sources.yaml` lists what is taken, with the commit in each url, its hash, licence and citation. With
`MATALIGN_MIRROR=<folder>` the url `https://<host>/<path>` is read from `<folder>/<host>/<path>`; all else is the same
code. `python -m matalign.data.fetch <source>` fetches one source into `data/raw/<source>`.
"""

import os
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from matalign import paths
from matalign.data.reactions import named_mp_ids
from matalign.data.sources import archive_hash, catalogue, content_hash, file_hash

CHUNK = 1 << 16  # bytes
TIMEOUT_S = 30
ATTEMPTS = 5  # connections for one file before giving up; each goes on where the last one broke
PAUSE_S = 0.1  # before the first of these, doubled each time
CONNECTIONS = 8  # at once, for a source of many small files


def fetch(name: str) -> Path:
    """Bring one source into its folder, `data/raw/<name>`, and check it; what is there already and right stays.

    Raises:
        ValueError: an unknown source, or a wrong hash (naming file, expected, got); the bad file is renamed to `*.bad`.
        FileNotFoundError: the mirror or the server does not have a url.
        ConnectionError: a url cannot be reached.
    """
    entries = catalogue()
    if name not in entries:
        raise ValueError(f"no source {name!r}; one of {', '.join(entries)}")
    entry, folder = entries[name], paths.RAW / name
    folder.mkdir(parents=True, exist_ok=True)
    if "each" in entry:
        ids = named_mp_ids(fetch(entry["named_by"])) - set(entry["absent"].split()) | set(entry["also"].split())
        _fetch_each(entry["each"], sorted(ids), folder, expected=entry["content_sha256"])
    for file, about in entry.get("files", {}).items():
        content = about.get("content_sha256")
        hashing = archive_hash if content else file_hash
        download(about["url"], folder / file, expected=content or about["sha256"], hashing=hashing)
    return folder


def download(url: str, path: Path, *, expected: str, hashing: Callable[[Path], str] = file_hash) -> None:
    """Download a file, going on where an earlier attempt left `<path>.part`; it gets its name once its hash is right.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: see `fetch`.
    """

    def hashed(file: Path) -> str:
        try:
            return hashing(file)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            return f"an unreadable file ({error})"

    bad, part = path.with_name(f"{path.name}.bad"), path.with_name(f"{path.name}.part")
    if path.exists():
        if hashed(path) == expected:
            return
        path.rename(bad)  # of another version, or harmed since
    _transfer(url, part)
    if (got := hashed(part)) != expected:
        part.rename(bad)
        raise ValueError(f"{path}: expected hash {expected}, got {got}; what {url} gave is set aside as {bad.name}")
    part.rename(path)


def _fetch_each(template: str, ids: Sequence[str], folder: Path, *, expected: str) -> None:
    """Many small files named by id; the hash is over all of them, so one that is missing shows there."""

    def one(mp_id: str) -> str:
        path, part = folder / f"{mp_id}.cif", folder / f"{mp_id}.cif.part"
        try:
            if not path.exists():
                _transfer(template.format(mp_id=mp_id), part, progress=False)
                part.rename(path)
        except FileNotFoundError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(tqdm(pool.map(one, ids), total=len(ids), desc=folder.name, unit="file", mininterval=1))
    wanted = {f"{mp_id}.cif" for mp_id in ids}
    for stray in [f for f in folder.iterdir() if f.name not in wanted]:
        stray.unlink()  # of another version of the list, or half a file
    if (got := content_hash((f.name, f.read_bytes()) for f in folder.iterdir())) != expected:
        bad, absent = folder.with_name(f"{folder.name}.bad"), [answer for answer in answers if answer]
        shutil.rmtree(bad, ignore_errors=True)
        folder.rename(bad)
        lost = f"; {len(absent)} of {len(ids)} files were not found, first: {absent[0]}" if absent else ""
        raise ValueError(f"{folder}: expected hash {expected}, got {got}; the folder is set aside as {bad.name}{lost}")


def _transfer(url: str, part: Path, *, progress: bool = True) -> None:
    """Append to `part` until it is whole, over as many connections as it takes."""
    place = urlsplit(url).netloc + urlsplit(url).path  # in a mirror
    if mirror := os.environ.get("MATALIGN_MIRROR"):
        file = Path(mirror, place)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there; put {url} there, or unset MATALIGN_MIRROR to download it")
        shutil.copyfile(file, part)
        return
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_S * 2**attempt if attempt else 0)
        try:
            return _append(url, part, progress=progress)
        except FileNotFoundError:
            raise FileNotFoundError(f"{url} is not there (404); set MATALIGN_MIRROR to a folder with {place}") from None
        except requests.RequestException as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
    raise ConnectionError(
        f"cannot download {url} ({reason}); connect to it, or set MATALIGN_MIRROR to a folder with {place}"
    )


def _append(url: str, part: Path, *, progress: bool) -> None:
    """The bytes that `part` lacks; all of them if the server cannot resume. requests raises if fewer come than told."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a compressed answer has other byte positions
    headers |= {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 404:
            raise FileNotFoundError
        if answer.status_code == 416:  # nothing beyond `start`: it is whole, or of another version; the hash tells
            return
        answer.raise_for_status()
        start = start if answer.status_code == 206 else 0
        total = start + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        shown = {"desc": part.stem, "unit": "B", "unit_scale": True, "mininterval": 1, "disable": not progress}
        with open(part, "ab") as out, tqdm(total=total, initial=start, **shown) as bar:
            out.truncate(start)
            for chunk in answer.iter_content(CHUNK):
                bar.update(out.write(chunk))


def main() -> None:
    """Fetch the sources named on the command line; an error is one line."""
    try:
        for name in sys.argv[1:]:
            fetch(name)
    except (OSError, ValueError) as error:
        sys.exit(f"matalign.data.fetch: {error}")


if __name__ == "__main__":
    main()
