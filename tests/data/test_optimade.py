"""`providers` and `own_data.import_optimade` against the reference server of optimade-python-tools, on loopback."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
import requests
from projects import REPOSITORY
from pymatgen.core import Lattice, Structure

from matalign import paths
from matalign.data import own_data, providers, sources

SERVED = 65  # ordered crystals of the sample; with one more, four pages of 20, which is the server's number
SERVER = Path(__file__).with_name("optimade_server.py")


def sample():
    """id -> crystals of the embedded sample, every sixth."""
    with open(REPOSITORY / "data/sample/materials.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))[::6][:SERVED]
    return {row["mp_id"]: sources.parse_cif(row["cif"]) for row in rows}


def entries():
    """Lines of the server's database: the sample's crystals, and one that is half empty."""
    from optimade.adapters.structures.pymatgen import from_pymatgen

    yield {"x-optimade": {"meta": {"api_version": "1.1.0"}}}
    crystals = {key: Structure(Lattice(c.lattice), c.numbers, c.frac_coords) for key, c in sample().items()}
    crystals["zz-empty"] = Structure(Lattice.cubic(4), ["K"], [[0, 0, 0]])
    half = {"name": "K", "chemical_symbols": ["K", "vacancy"], "concentration": [0.5, 0.5]}
    for key, structure in crystals.items():
        attributes = json.loads(from_pymatgen(structure).model_dump_json())
        attributes |= {"last_modified": {"$date": "2024-01-01T00:00:00Z"}}
        if key == "zz-empty":
            attributes |= {"species": [half], "structure_features": ["disorder"]}
        yield {"id": key, "type": "structures", "attributes": attributes}


class Server:
    """The running server."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def plan(self, **plan):
        requests.get(f"{self.url}/_plan?{urlencode(plan)}", timeout=10).raise_for_status()

    def asked(self):
        return requests.get(f"{self.url}/_asked", timeout=10).json()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimade")
    (folder / "data.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries()))
    settings = {
        "insert_test_data": False,
        "insert_from_jsonl": str(folder / "data.jsonl"),
        "log_dir": str(folder),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    env = {**os.environ, "HOME": str(folder), "OPTIMADE_CONFIG_FILE": str(folder / "config.json")}
    with subprocess.Popen([sys.executable, SERVER], env=env, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = next(filter(None, (re.fullmatch(r"port (\d+)\n", line) for line in process.stdout)))
            yield Server(found[1])
            assert process.poll() is None, "the server died: it called an address other than 127.0.0.1?"
        finally:
            process.kill()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """The server, for one test with a scratch folder of its own and short pauses; this process calls loopback alone."""
    connect = socket.socket.connect

    def only_loopback(self, address):
        assert address[0] == "127.0.0.1", address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    monkeypatch.setattr(providers, "SPACING_S", 0.0)
    monkeypatch.setattr(providers, "PAUSE_S", 0.01)
    running.asked()
    return running


def test_everything_comes_over_all_pages_though_one_fails_twice(server):
    server.plan(match="page_offset=40", status=503, times=2)
    curated = own_data.import_optimade(server.url, "")
    asked = server.asked()
    assert len(asked) == 4 + 2
    assert sum("page_offset=40" in query for query in asked) == 3
    expected = sample()
    assert curated.materials.mp_id.tolist() == sorted(expected)
    for row, key in enumerate(curated.materials.mp_id):
        numbers, frac_coords, lattice = curated.structures[row]
        np.testing.assert_array_equal(numbers, expected[key].numbers)
        np.testing.assert_allclose(frac_coords, expected[key].frac_coords, atol=1e-6)
        np.testing.assert_allclose(lattice, expected[key].lattice, atol=1e-6)
        assert curated.materials.formula[row] == expected[key].formula
        assert curated.materials.space_group[row] == expected[key].space_group
    assert set(curated.materials.source) == {"optimade"}
    (skipped,) = curated.audit["skipped"]
    assert (skipped["reason"], skipped["rows"]) == ("disordered", 1)
    assert "zz-empty" in skipped["first"][0]

    again = own_data.import_optimade(server.url, "")
    assert server.asked() == []  # from the pages that were kept
    assert again.digest == curated.digest


def test_a_filter_and_a_limit(server):
    curated = own_data.import_optimade(server.url, 'elements HAS "O" AND nelements=3', max_structures=5)
    expected = {key: c for key, c in sample().items() if 8 in c.numbers and len(set(c.numbers)) == 3}
    assert len(expected) > 5
    assert curated.materials.mp_id.tolist() == list(expected)[:5]
    assert len(server.asked()) == 1
    assert curated.audit["query"]["filter"] == 'elements HAS "O" AND nelements=3'


def test_a_query_that_fails_for_good_keeps_its_pages_and_goes_on(server):
    server.plan(match="page_offset=40", status=500, times=providers.ATTEMPTS + 1)
    with pytest.raises(ConnectionError, match=r"500 error responses.*; 2 pages are kept in .*goes on from there"):
        providers.download(server.url, "nelements>0")
    assert len(server.asked()) == 2 + providers.ATTEMPTS + 1
    assert len(providers.download(server.url, "nelements>0")[0]) == SERVED + 1
    asked = server.asked()
    assert len(asked) == 2
    assert "page_offset=40" in asked[0]


def test_a_killed_download_goes_on(server, tmp_path):
    server.plan(match="page_offset=40", status=0, times=1)
    code = f"from matalign.data import providers; providers.download({server.url!r}, 'nelements>1')"
    env = {**os.environ, "MATALIGN_SCRATCH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)
    asked, end = [], time.monotonic() + 120
    while len(asked) < 3 and time.monotonic() < end:
        time.sleep(0.2)
        asked += server.asked()
    process.kill()
    process.wait()
    assert len(asked) == 3
    records = providers.download(server.url, "nelements>1")[0]
    assert len({record["id"] for record in records}) == len(records) > 50
    assert [re.search(r"page_offset=\d+", query)[0] for query in server.asked()] == ["page_offset=40", "page_offset=60"]


def test_what_is_no_page_is_not_kept(server):
    server.plan(match="nelements>2", status=200, times=1)
    with pytest.raises(ConnectionError, match="Could not decode response as JSON"):
        providers.download(server.url, "nelements>2")
    assert providers.download(server.url, "nelements>2")[0]


def test_requests_are_spaced_and_a_busy_server_is_given_time(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(providers, "SPACING_S", 1.0)
    monkeypatch.setattr(time, "sleep", pauses.append)  # of the session and of urllib3
    server.plan(match="page_offset=20", status=429, times=1)
    assert len(providers.download(server.url, "nelements<9")[0]) == SERVED + 1
    spaced = [pause for pause in pauses if pause > 0.5]
    assert len(spaced) == 3
    assert len(server.asked()) == 5


def test_a_server_that_is_not_there_is_named(server, monkeypatch):
    monkeypatch.setattr(providers, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"http://127\.0\.0\.1:{port}: .*; 0 pages are kept"):
        providers.download(f"http://127.0.0.1:{port}", "")


def test_a_wrong_question_is_refused_before_it_is_asked(server):
    hook = sys.excepthook
    with pytest.raises(ValueError, match=r"'elements HAS' is no OPTIMADE filter"):
        providers.download(server.url, "elements HAS")
    with pytest.raises(ValueError, match="no provider 'mpp'; providers: mp, oqmd, nomad, alexandria, or the base URL"):
        providers.download("mpp", "")
    assert server.asked() == []
    assert sys.excepthook is hook  # the client's own check leaves it changed
    with pytest.raises(ValueError, match=r"""has no structure that answers to 'elements HAS "Og"'"""):
        own_data.import_optimade(server.url, 'elements HAS "Og"')


# Habits of providers


def crystal_record(number):
    """A cubic CsBr of its own size."""
    side = 4.2 + 0.01 * number
    attributes = {
        "lattice_vectors": [[side, 0, 0], [0, side, 0], [0, 0, side]],
        "cartesian_site_positions": [[0, 0, 0], [side / 2] * 3],
        "species": [{"name": x, "chemical_symbols": [x], "concentration": [1.0]} for x in ("Cs", "Br")],
        "species_at_sites": ["Cs", "Br"],
        "dimension_types": [1, 1, 1],
    }
    return {"id": f"x-{number}", "type": "structures", "attributes": attributes}


class Habits(BaseHTTPRequestHandler):
    """Seven structures in pages of three; the path's first part names what is done otherwise than the standard says."""

    busy = 0  # requests of the second page still to be refused

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        habit, start = parts.path.split("/")[1], int(query.get("page_offset", 0))
        records = [crystal_record(n) for n in range(start, min(start + 3, 7))]
        if "response_fields" not in query and habit == "drops":
            for record in records:
                del record["attributes"]["lattice_vectors"]
        if start >= 3 and habit == "window":
            self.answer(400, {"errors": [{"title": "RequestError", "detail": "Result window is too large"}]})
            return
        if start == 3 and habit == "busy" and Habits.busy:
            Habits.busy -= 1
            self.answer(429, {}, {"Retry-After": "17"})
            return
        if habit == "misshapen" and not start:
            records[0]["attributes"]["species"][0]["concentration"] = []
            records[1]["attributes"] = None
            records[2] = "x-2"
        if habit == "assemblies" and not start:
            records[0]["attributes"]["assemblies"] = [
                {"sites_in_groups": [[0], [1]], "group_probabilities": [0.5, 0.5]}
            ]
        fields = "" if habit == "drops" else f"&response_fields={query.get('response_fields', '')}"
        link = f"/{habit}/v1/structures?page_offset={0 if habit == 'loop' else start + 3}{fields}"
        link = link if start + 3 < 7 or habit == "loop" else None
        name = "next_page" if habit == "renamed" else "next"
        links = {} if habit in ("ends", "uncounted") else {name: link}
        meta = {"more_data_available": bool(link)} | ({} if habit == "uncounted" else {"data_returned": 7})
        self.answer(200, {"data": records, "links": links, "meta": meta})

    def answer(self, status, content, headers=()):
        body = json.dumps(content).encode()
        self.send_response(status)
        for header in dict(headers).items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def habits(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    monkeypatch.setattr(providers, "SPACING_S", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Habits) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("habit", ["relative", "renamed", "drops"])
def test_every_page_is_found_and_has_its_fields(habit, habits):
    curated = own_data.import_optimade(f"{habits}/{habit}", "")
    assert curated.materials.mp_id.tolist() == [f"x-{n}" for n in range(7)]
    assert curated.audit["query"]["gap"] == ""
    assert not curated.audit["skipped"]
    assert len(providers.download(f"{habits}/{habit}", "", max_structures=4)[0]) == 4


@pytest.mark.parametrize(
    ("habit", "said"),
    [
        ("window", "Result window is too large"),
        ("loop", "3 of 7 structures came: pages repeat"),
        ("ends", "3 of 7 structures came: there is no link to the next page"),
        ("uncounted", "3 of more structures came: there is no link to the next page"),
    ],
)
def test_a_gap_is_told_and_what_came_is_kept_on_request(habit, said, habits):
    with pytest.raises(ConnectionError, match=rf"{said}.*; \d pages? .*partial \(--partial\) takes the 3 structures"):
        own_data.import_optimade(f"{habits}/{habit}", "")
    curated = own_data.import_optimade(f"{habits}/{habit}", "", partial=True)
    assert curated.materials.mp_id.tolist() == ["x-0", "x-1", "x-2"]
    assert said in curated.audit["query"]["gap"]


def test_a_busy_provider_is_asked_again_when_it_says(habits, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(Habits, "busy", 2)
    assert len(providers.download(f"{habits}/busy", "")[0]) == 7
    assert [pause for pause in pauses if pause] == [17, 17]


def test_a_misshapen_record_is_counted_and_the_rest_is_taken(habits):
    curated = own_data.import_optimade(f"{habits}/misshapen", "")
    assert curated.materials.mp_id.tolist() == [f"x-{n}" for n in range(3, 7)]
    assert sum(row["rows"] for row in curated.audit["skipped"]) == 3
    curated = own_data.import_optimade(f"{habits}/assemblies", "")
    assert curated.materials.mp_id.tolist() == [f"x-{n}" for n in range(1, 7)]
    assert "assemblies" in str(curated.audit["skipped"])
