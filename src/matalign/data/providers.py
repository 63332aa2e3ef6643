"""Structures from any OPTIMADE provider (Evans et al., JOSS 6, 3458, 2021), page by page.

Every page is kept in the scratch folder, so that a killed download goes on and a finished one is not repeated; requests
are spaced; answers of overload (429, 5xx) are asked for again, ever later. Taken as well are links that are relative,
under another name, or without the fields that were asked for, and records that end before all have come.
"""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from matalign import cache

URLS = {
    "mp": "https://optimade.materialsproject.org",
    "oqmd": "https://oqmd.org/optimade",
    "nomad": "https://nomad-lab.eu/prod/v1/optimade",
    "alexandria": "https://alexandria.icams.rub.de/pbe",
}
FIELDS = "response_fields=lattice_vectors,cartesian_site_positions,species,species_at_sites,dimension_types"
SPACING_S = 0.5  # between two requests
ATTEMPTS = 6  # for one page, of which the first pauses are 1, 2, 4 … times
PAUSE_S = 1.0
LONGEST_PAUSE_S = 60
TIMEOUT_S = 60.0


def download(provider: str, filter: str, *, max_structures: int = 0, partial: bool = False) -> tuple[list[Any], str]:
    """The structure records that answer a query.

    Args:
        provider: a name of `URLS`, or a base URL.
        filter: OPTIMADE filter; "" for everything.
        max_structures: stop at so many; 0: all.
        partial: where the provider will not give all of it, take what came.

    Returns:
        The records, as `crystals.read_structure` takes them, in the provider's order; and why not all of it came, "" if
        it did.

    Raises:
        ValueError: an unknown name, or a filter that is none.
        ConnectionError: the query could not be completed; the pages that came are kept for the next call.
    """
    url = URLS.get(provider, provider).rstrip("/")
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(
            f"no folder, no CSV and no provider {provider!r}; providers: {', '.join(URLS)}, or the base URL of another"
        )
    _check(filter)
    first = f"{url}/v1/structures?{f'filter={quote(filter)}&' if filter else ''}{FIELDS}"
    folder = cache.folder("optimade", {"first": first})
    with cache.held(folder), tqdm(desc=urlsplit(url).netloc, unit="structure", mininterval=1) as bar:
        records, gap = _records(first, folder, max_structures, bar)
    if gap and not (partial and records):
        pages = len(list(folder.glob("*.page")))
        raise ConnectionError(
            f"{url}: {gap}; {pages} pages are kept in {folder}, and the same call goes on from there; partial "
            f"(--partial) takes the {len(records)} structures that came"
        )
    return records[: max_structures or None], gap


def _check(filter: str) -> None:
    from optimade.exceptions import BadRequest
    from optimade.filterparser import LarkParser

    try:
        LarkParser().parse(filter) if filter else None
    except BadRequest as error:
        raise ValueError(f"{filter!r} is no OPTIMADE filter: {error}") from None


def _records(url: str, folder: Path, limit: int, bar: tqdm) -> tuple[list[Any], str]:
    """Records of page after page, and why not all of it came."""
    session, pause, records, seen = _session(), 0.0, [], set()
    while True:
        try:
            page = _page(session, url, folder, pause)
        except (requests.RequestException, ValueError) as error:
            return records, str(error)
        meta, links = page.get("meta") or {}, page.get("links") or {}
        ids = {str(record.get("id")) if isinstance(record, dict) else repr(record) for record in page["data"]}
        repeats = bool(ids) and ids <= seen
        records += [] if repeats else page["data"]
        seen |= ids | {url}
        total = meta.get("data_returned")
        total = bar.total = total if isinstance(total, int) else None
        bar.update(len(page["data"]))
        link = links.get("next") or links.get("next_page")
        link = link.get("href") if isinstance(link, dict) else link
        if limit and len(records) >= limit:
            return records, ""
        told = f"{len(records)} of {total or 'more'} structures came"
        if not link:
            short = meta.get("more_data_available") is True or (isinstance(total, int) and len(records) < total)
            return records, f"{told}: there is no link to the next page" if short else ""
        if not isinstance(link, str):
            return records, f"{told}: the link to the next page is {link!r}"
        link = urljoin(url, link)
        link += "" if "response_fields=" in link else f"{'&' if '?' in link else '?'}{FIELDS}"
        if repeats or link in seen:
            return records, f"{told}: pages repeat"
        delay = meta.get("request_delay")
        pause = min(delay, LONGEST_PAUSE_S) if isinstance(delay, int | float) else 0.0
        url, pause = link, max(SPACING_S, pause)


def _session() -> requests.Session:
    """One that is patient with a busy server."""
    retries = Retry(
        total=ATTEMPTS,
        backoff_factor=PAUSE_S,
        backoff_max=LONGEST_PAUSE_S,
        status_forcelist=(429, 500, 502, 503, 504),
        retry_after_max=LONGEST_PAUSE_S,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
    return session


def _page(session: requests.Session, url: str, folder: Path, pause: float) -> dict[str, Any]:
    """The page, from the folder if it is there; what is kept is good."""
    file = folder / f"{cache.digest(url)}.page"
    if file.exists():
        return json.loads(file.read_bytes())
    time.sleep(pause)
    answer = session.get(url, timeout=TIMEOUT_S)
    try:
        page = answer.json()
    except ValueError:
        raise ValueError(f"Could not decode response as JSON: {answer.text[:80]!r}") from None
    parts = page if isinstance(page, dict) else {}
    good = isinstance(parts.get("data"), list) and all(isinstance(parts.get(n), dict | None) for n in ("links", "meta"))
    if answer.status_code != 200 or not good:
        errors = parts.get("errors")
        raise ValueError(f"{answer.status_code}: {str(errors or page)[:200]}")
    cache.write_json(file, page)
    return page
