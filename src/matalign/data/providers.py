"""Structures from any OPTIMADE provider by the client of `optimade` (Evans et al., JOSS 6, 3458, 2021).

The client pages through a query; what it lacks is in the one session it is given: every page is kept in the scratch
folder, so that a killed download goes on and a finished one is not repeated; requests are spaced; answers of overload
(429, 5xx) are asked for again, ever later.
"""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urljoin, urlsplit, urlunsplit

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
FIELDS = ("lattice_vectors", "cartesian_site_positions", "species", "species_at_sites", "dimension_types")
SPACING_S = 0.5  # between two requests
ATTEMPTS = 6  # for one page, of which the first pauses are 1, 2, 4 … times
PAUSE_S = 1.0
LONGEST_PAUSE_S = 60
TIMEOUT_S = 60.0
EVERYTHING = 10_000_000  # structures; the client wants a limit


def download(
    provider: str, filter: str, *, max_structures: int = 0, fields: tuple[str, ...] = (), partial: bool = False
) -> tuple[list[Any], str]:
    """The structure records that answer a query.

    Args:
        provider: a name of `URLS`, or a base URL.
        filter: OPTIMADE filter; "" for everything.
        max_structures: stop at so many; 0: all.
        fields: asked for beside `FIELDS`, such as a provider's own.
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
        raise ValueError(f"no provider {provider!r}; one of {', '.join(URLS)}, or the base URL of another")
    _check(filter)
    asked = [*FIELDS, *fields]
    folder = cache.folder("optimade", {"url": url, "filter": filter, "fields": asked})
    with cache.held(folder), tqdm(desc=urlsplit(url).netloc, unit="structure", mininterval=1) as bar:
        query = Query(asked, max_structures or EVERYTHING, bar)
        gap = _query(url, filter, folder, query)
    if gap and not (partial and query.records):
        pages = len(list(folder.glob("*.page")))
        raise ConnectionError(
            f"{url}: {gap}; {pages} pages are kept in {folder}, and the same call goes on from there; partial "
            f"(--partial) takes the {len(query.records)} structures that came"
        )
    return query.records[: max_structures or None], gap


def _check(filter: str) -> None:
    from optimade.exceptions import BadRequest
    from optimade.filterparser import LarkParser

    try:
        LarkParser().parse(filter) if filter else None
    except BadRequest as error:
        raise ValueError(f"{filter!r} is no OPTIMADE filter: {error}") from None


def _query(url: str, filter: str, folder: Path, query: "Query") -> str:
    """Ask page after page; what was wrong, if anything."""
    from optimade.client import OptimadeClient

    client = OptimadeClient(
        url,
        max_results_per_provider=query.limit,
        http_timeout=TIMEOUT_S,
        use_async=False,
        silent=True,
        http_client=type("PagesOfQuery", (Pages,), {"folder": folder}),  # the client makes it, without arguments
        callbacks=[query.take],
    )
    found = client.get_one("structures", quote(filter, safe=""), url, response_fields=query.fields)[url]
    return str(found.errors[0]) if found.errors else query.gap


class Query:
    """What has come of a query, and where its next page is.

    Mended here is what providers do otherwise than the client expects: links that are relative, under another name, or
    without the fields that were asked for; meta and links left out; an end before all of `data_returned` has come.
    """

    def __init__(self, fields: list[str], limit: int, bar: tqdm) -> None:
        self.fields, self.limit, self.bar = fields, limit, bar
        self.records: list[Any] = []
        self.gap = ""  # why not all of it came
        self.seen: set[str] = set()  # ids and pages

    def take(self, url: str, page: dict[str, Any]) -> None:
        """A callback of the client: keeps the records and puts the link to the next page where the client looks."""
        meta, links = page["meta"] or {}, page["links"] or {}
        records = page["data"]
        ids = {str(record.get("id")) if isinstance(record, dict) else repr(record) for record in records}
        repeats = bool(ids) and ids <= self.seen
        self.records += [] if repeats else records
        self.seen |= ids | {url}
        self.bar.total = meta.get("data_returned") or self.bar.total
        self.bar.update(len(records))
        link = links.get("next") or links.get("next_page")
        link = link.get("href") if isinstance(link, dict) else link
        link = self._whole(url, link) if link else None
        total = meta.get("data_returned")
        short = meta.get("more_data_available") is True or (isinstance(total, int) and len(self.records) < total)
        if len(self.records) < self.limit and (repeats or link in self.seen or (short and not link)):
            told = f"{len(self.records)} of {total or 'more'} structures came"
            self.gap = f"{told}: " + ("pages repeat" if link else "there is no link to the next page")
            link = None
        delay = meta.get("request_delay")
        page["meta"] = {"request_delay": delay if isinstance(delay, int | float) else None}  # no counts to stop by
        page["links"] = {"next": link}

    def _whole(self, url: str, link: str) -> str:
        """An absolute link that asks for the fields."""
        parts = urlsplit(urljoin(url, link))
        if "response_fields" in parse_qs(parts.query):
            return urlunsplit(parts)
        fields = f"response_fields={','.join(self.fields)}"
        return urlunsplit(parts._replace(query=f"{parts.query}&{fields}".strip("&")))


class Pages(requests.Session):
    """A session that keeps the pages it gets, spaces its requests and is patient with a busy server."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        retries = Retry(
            total=ATTEMPTS,
            backoff_factor=PAUSE_S,
            backoff_max=LONGEST_PAUSE_S,
            status_forcelist=(429, 500, 502, 503, 504),
            retry_after_max=LONGEST_PAUSE_S,
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(max_retries=retries))
        self.ready = 0.0  # when the next request may go out

    def get(self, url: str, **options: Any) -> requests.Response:
        """The page, from the folder if it is there."""
        file = self.folder / f"{cache.digest(url)}.page"
        if file.exists():
            return _answer(url, file.read_bytes())
        time.sleep(max(0.0, self.ready - time.monotonic()))
        response = super().get(url, **options)
        delay = 0.0
        if response.status_code == 200 and (page := _page(response.content)):
            delay = min(page.get("meta", {}).get("request_delay") or 0.0, LONGEST_PAUSE_S)
            temporary = file.with_suffix(".part")
            temporary.write_bytes(response.content)
            temporary.rename(file)
        self.ready = time.monotonic() + max(SPACING_S, delay)
        return response


def _page(content: bytes) -> dict[str, Any]:
    """The page, {} if it is none: what is kept must be good."""
    try:
        page = json.loads(content)
    except ValueError:
        return {}
    return page if isinstance(page, dict) and isinstance(page.get("data"), list) else {}


def _answer(url: str, content: bytes) -> requests.Response:
    response = requests.Response()
    response.status_code, response.url, response._content = 200, url, content
    response.request = requests.Request("GET", url).prepare()
    return response
