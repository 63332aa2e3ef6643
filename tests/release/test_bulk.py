"""Vectors of shards, made here and by two Dask workers; what happens to a worker, the scheduler or the disk."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import published
import pytest
import tiny
from salt import CIF

from matalign import cache, paths
from matalign.data import chunked, dataset
from matalign.release import bulk, released

CRYSTALS = tiny.curated().structures


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("bulk")) as made:
        yield made[0]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A curated set of 24 crystals in five files."""
    monkeypatch.setattr(dataset, "SHARD", 5)
    dataset.write(tmp_path / "shards", tiny.curated())
    return tmp_path / "shards"


@pytest.fixture
def expected(model):
    """Vectors of the 24 crystals."""
    return released.load(model).embed(structures=CRYSTALS)


def vectors(out):
    """All that were made, in the order of the shards."""
    return np.concatenate([cache.load(file)["embeddings"] for file in sorted(out.glob("*.safetensors"))])


def test_each_shard_gets_its_vectors(model, shards, expected, tmp_path):
    assert bulk.embed(model, shards, tmp_path / "out") == 24
    assert [len(cache.load(file)["embeddings"]) for file in sorted((tmp_path / "out").iterdir())] == [5, 5, 5, 5, 4]
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, rtol=0, atol=1e-6)


def test_only_what_is_absent_or_of_other_crystals_is_made_again(model, shards, tmp_path):
    bulk.embed(model, shards, out := tmp_path / "out")
    names = [file.name for file in dataset.shards(shards)]
    (out / names[3]).unlink()
    (shards / names[1]).write_bytes((shards / names[2]).read_bytes())
    before = {name: (out / name).stat().st_mtime_ns for name in names if (out / name).exists()}
    bulk.embed(model, shards, out)
    assert [name for name in names if before.get(name) != (out / name).stat().st_mtime_ns] == [names[1], names[3]]
    assert (cache.load(out / names[1])["embeddings"] == cache.load(out / names[2])["embeddings"]).all()


@contextlib.contextmanager
def cluster(folder):
    """A scheduler and two workers in processes of their own: address, and the three."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    parts = [["scheduler", "--host", address], *2 * [["worker", address, "--nthreads", "1", "--no-nanny"]]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    env["MATALIGN_SCRATCH"] = str(folder / "scratch-there")

    with contextlib.ExitStack() as stack:
        processes = []
        for number, part in enumerate(parts):
            command = [sys.executable, "-m", "dask", *part, "--no-dashboard"]
            log = stack.enter_context(open(folder / f"{number}.log", "w"))
            processes.append(subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log))
        try:
            yield address, processes
        finally:
            for process in processes:
                process.kill()
                process.wait()


def command(model, shards, out, address):
    """The command, in a process of its own."""
    ask = ["embed", shards, "--out", out, "--model", model, "--cluster", address]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "matalign.release.cli", *ask], env=env, stderr=subprocess.PIPE, text=True
    )


def test_workers_make_what_this_process_makes(model, shards, tmp_path, monkeypatch):
    bulk.embed(model, shards, tmp_path / "here")
    texts = [CIF.replace("3.99", f"3.9{number}") for number in range(6)]
    monkeypatch.setattr(chunked, "CRYSTALS_PER_TASK", 2)
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    parsed = chunked.parse_cifs(texts, workers=1)
    with cluster(tmp_path) as (address, _):
        assert bulk.embed(model, shards, tmp_path / "there", cluster=address) == 24
        monkeypatch.setenv("MATALIGN_CLUSTER", address)
        again = chunked.parse_cifs(texts, workers=1)
    assert (vectors(tmp_path / "there") == vectors(tmp_path / "here")).all()
    assert len(list((tmp_path / "scratch-there").glob("curate/*/result.safetensors"))) == 3
    assert list(again) == list(parsed)
    for a, b in zip(again.values(), parsed.values(), strict=True):
        assert a.formula == b.formula == "NaCl"
        assert (a.lattice == b.lattice).all()


def test_a_scheduler_that_is_not_there_is_told(model, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CONNECT_S", 0.5)
    with pytest.raises(OSError, match="Timed out trying to connect to tcp"):
        bulk.embed(model, shards, tmp_path / "out", cluster="tcp://127.0.0.1:9")


def test_a_folder_without_shards_is_told(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards, expected files structures"):
        bulk.embed(model, tmp_path, tmp_path / "out")


def ended(ask):
    """What a command said besides its bar, when it has ended, and its exit code."""
    lines = re.split(r"[\n\r]+", ask.communicate(timeout=300)[1])
    return [line for line in lines if line and not line.startswith("embed:")], ask.returncode


def first_made(ask, out):
    """Wait until the command has made a file."""
    while not list(out.glob("*.safetensors")):
        assert ask.poll() is None, ask.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(model, shards, expected, tmp_path):
    with cluster(tmp_path) as (address, (_, worker, _)):
        ask = command(model, shards, out := tmp_path / "out", address)
        first_made(ask, out)
        worker.kill()
        assert ended(ask) == ([f"24 vectors in {out}"], 0)
    np.testing.assert_allclose(vectors(out), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_lost_scheduler_is_told_in_one_line_and_the_rest_is_made_later(model, shards, expected, tmp_path):
    with cluster(tmp_path) as (address, (scheduler, *_)):
        ask = command(model, shards, out := tmp_path / "out", address)
        first_made(ask, out)
        scheduler.kill()
        lines, code = ended(ask)
    (line,) = lines
    assert line.startswith("error: the cluster is lost (scheduler-connection-lost")
    assert code == 1
    bulk.embed(model, shards, out)
    np.testing.assert_allclose(vectors(out), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root mounts the disk that is full")
def test_a_full_disk_is_told_in_one_line(model, shards, tmp_path):
    (out := tmp_path / "out").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", out], check=True)
    try:
        (out / "full").write_bytes(bytes(4096))
        with cluster(tmp_path) as (address, _):
            (line,), code = ended(command(model, shards, out, address))
        assert [file.name for file in out.iterdir()] == ["full"]
    finally:
        subprocess.run(["umount", "-l", out], check=True)
    assert re.match(r"error: .*structures-0000\d.safetensors cannot be written: .*No space left on device", line)
    assert code == 1
