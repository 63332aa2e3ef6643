import hashlib
import json
import lzma
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rawfiles

from matalign import paths
from matalign.data import fetch, sources

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks off the first answer for a path in `dropped` half way; knows byte ranges if `ranges`."""

    daemon_threads = True

    def __init__(self, files):
        self.files, self.dropped, self.ranges, self.asked = files, set(), True, []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, wanted = self.path[1:], self.headers.get("Range")
        self.server.asked.append((path, wanted))
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and self.server.ranges else 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if path in self.server.dropped:
            self.server.dropped.discard(path)
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("MATALIGN_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "PAUSE_S", 0.001)
    with Server({"file.bin": CONTENT}) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_dropped_connection_is_resumed_where_it_broke(server, tmp_path):
    server.dropped.add("file.bin")
    fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    whole, rest = (wanted for _, wanted in server.asked)
    assert whole is None
    assert len(CONTENT) // 4 < int(re.fullmatch(r"bytes=(\d+)-", rest)[1]) <= len(CONTENT) // 2
    assert [f.name for f in tmp_path.iterdir()] == ["file.bin"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.dropped.add("file.bin")
    server.ranges = False
    fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1, 12_345, len(CONTENT)])
def test_what_an_earlier_run_left_is_gone_on_with(server, tmp_path, size):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:size])
    fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [("file.bin", f"bytes={size}-")]


def test_the_mirror_gives_the_same_bytes_and_resumes_too(server, tmp_path, monkeypatch):
    file = tmp_path / "mirror" / f"127.0.0.1:{server.server_port}" / "file.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setenv("MATALIGN_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == []


def test_a_wrong_checksum_sets_the_file_aside(server, tmp_path):
    wrong = "0" * 64
    with pytest.raises(ValueError, match=rf"file\.bin: expected hash {wrong}, got {SHA256}.*file\.bin\.bad"):
        fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=wrong)
    assert [f.name for f in tmp_path.iterdir()] == ["file.bin.bad"]


def test_a_part_of_another_version_does_not_pass(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"another version")
    with pytest.raises(ValueError, match="expected hash"):
        fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    fetch.download(server.url("file.bin"), tmp_path / "file.bin", expected=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_good_file_stays_and_a_harmed_one_is_fetched_again(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    fetch.download(server.url("file.bin"), path, expected=SHA256)
    assert server.asked == []
    path.write_bytes(CONTENT[:-1] + b"?")
    fetch.download(server.url("file.bin"), path, expected=SHA256)
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "file.bin.bad").exists()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_mirror_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MATALIGN_MIRROR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        fetch.download("https://example.org/a/b.json", tmp_path / "b.json", expected=SHA256)
    message = one_line(error)
    assert "https://example.org/a/b.json" in message
    assert str(tmp_path / "example.org/a/b.json") in message
    assert "MATALIGN_MIRROR" in message


def test_no_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("MATALIGN_MIRROR", raising=False)
    monkeypatch.setattr(fetch, "PAUSE_S", 0.001)
    with socket.socket() as nobody:  # bound, not listening: refused
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/file.bin"
        with pytest.raises(ConnectionError) as error:
            fetch.download(url, tmp_path / "file.bin", expected=SHA256)
    message = one_line(error)
    assert url in message
    assert "MATALIGN_MIRROR" in message


def test_the_command_says_it_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["fetch", "nonsense"])
    with pytest.raises(SystemExit, match=r"^matalign.data.fetch: no source 'nonsense'; one of megnet, .*$"):
        fetch.main()
    monkeypatch.setattr("sys.argv", ["fetch", "solid_state"])
    monkeypatch.setattr("matalign.paths.RAW", tmp_path)
    monkeypatch.setenv("MATALIGN_MIRROR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^matalign.data.fetch: .*MATALIGN_MIRROR.*$"):
        fetch.main()


def test_the_catalogue_pins_everything():
    entries = sources.catalogue()
    assert set(entries) == {"megnet", "solid_state", "sol_gel", "topology", "public_tests", "stem_patches"}
    for entry in entries.values():
        assert entry["licence"]
        assert entry["citation"]
        assert entry["taken"]
        files = [*entry.get("files", {}).values(), *([{**entry, "url": entry["each"]}] if "each" in entry else [])]
        assert files
        for file in files:
            assert re.search(r"/[0-9a-f]{40}(/|$)", file["url"])
            assert re.fullmatch(r"[0-9a-f]{64}", file.get("sha256") or file["content_sha256"])


# Sources of many files


@pytest.fixture
def small(server, tmp_path, monkeypatch):
    """Two sources on the server, fetched into `tmp_path`: reactions, and the CIFs that they name."""
    monkeypatch.setattr(paths, "RAW", tmp_path)
    named = [rawfiles.reaction("NaCl", mp_id=i) for i in ("mp-1", "mp-2", "mp-2", "mvc-3", None, "mp-4")]
    packed = lzma.compress(json.dumps({"reactions": named}).encode())
    server.files |= {"r.json.xz": packed, **{f"cif/mp-{i}.cif": f"crystal {i}".encode() for i in (1, 2, 5)}}
    lines = "".join(f"{hashlib.sha256(f'crystal {i}'.encode()).hexdigest()}  mp-{i}.cif\n" for i in (1, 2, 5))
    about = {"url": server.url("r.json.xz"), "sha256": hashlib.sha256(packed).hexdigest()}
    entries = {
        "solid_state": {"files": {"r.json.xz": about}},
        "topology": {
            "each": server.url("cif/{mp_id}.cif"),
            "named_by": "solid_state",
            "also": "mp-5",
            "absent": "mp-4",
            "content_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        },
    }
    monkeypatch.setattr(fetch, "catalogue", lambda: entries)


def test_named_files_are_fetched_and_checked_together(small, server, tmp_path):
    server.dropped.add("cif/mp-2.cif")
    folder = fetch.fetch("topology")
    assert {f.name: f.read_text() for f in folder.iterdir()} == {f"mp-{i}.cif": f"crystal {i}" for i in (1, 2, 5)}
    assert (tmp_path / "solid_state" / "r.json.xz").exists()
    server.asked.clear()
    (folder / "mp-9.cif").write_text("of another list")
    fetch.fetch("topology")
    assert server.asked == []
    assert not (folder / "mp-9.cif").exists()


def test_files_that_are_not_there_are_counted(small, server, tmp_path):
    del server.files["cif/mp-2.cif"]
    with pytest.raises(ValueError, match=r"expected hash .* 1 of 3 files were not found, first: .*mp-2\.cif") as error:
        fetch.fetch("topology")
    one_line(error)
    assert not (tmp_path / "topology").exists()
    assert (tmp_path / "topology.bad").is_dir()


def test_an_archive_that_is_none_is_set_aside(server, tmp_path):
    with pytest.raises(ValueError, match="got an unreadable file"):
        fetch.download(server.url("file.bin"), tmp_path / "a.tar.gz", expected=SHA256, hashing=sources.archive_hash)
    assert (tmp_path / "a.tar.gz.bad").exists()
