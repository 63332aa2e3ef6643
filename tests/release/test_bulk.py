"""Vectors of shards, made here and by two Dask workers; what happens to a worker, the scheduler or the disk."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import published
import pytest
import tiny

from matalign import cache
from matalign.data import dataset
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
def cluster(folder, *, file_bytes=None):
    """A scheduler and two workers in processes of their own: address, and the three."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    parts = [["scheduler", "--host", address], *2 * [["worker", address, "--nthreads", "1", "--no-nanny"]]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def small():
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    with contextlib.ExitStack() as stack:
        processes = []
        for number, part in enumerate(parts):
            command = [sys.executable, "-m", "dask", *part, "--no-dashboard"]
            log = stack.enter_context(open(folder / f"{number}.log", "w"))
            processes.append(subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, preexec_fn=small))
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


def test_workers_make_what_this_process_makes(model, shards, tmp_path):
    bulk.embed(model, shards, tmp_path / "here")
    with cluster(tmp_path) as (address, _), cache.on_cluster(address):
        assert bulk.embed(model, shards, tmp_path / "there") == 24
    assert (vectors(tmp_path / "there") == vectors(tmp_path / "here")).all()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(model, shards, expected, tmp_path):
    with cluster(tmp_path) as (address, (_, worker, _)):
        ask = command(model, shards, tmp_path / "out", address)
        while not list(tmp_path.glob("out/*.safetensors")):
            assert ask.poll() is None, ask.stderr.read()
            time.sleep(0.005)
        worker.send_signal(signal.SIGKILL)
        said = ask.communicate(timeout=300)[1]
    assert (ask.returncode, said.splitlines()[-1]) == (0, f"24 vectors in {tmp_path / 'out'}"), said
    np.testing.assert_allclose(vectors(tmp_path / "out"), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["scheduler", "disk", "never there"])
def test_what_is_lost_is_told_in_one_line_and_the_rest_goes_on_later(model, shards, tmp_path, lost):
    with cluster(tmp_path, file_bytes=400 if lost == "disk" else None) as (address, (scheduler, *_)):
        if lost == "never there":
            scheduler.kill()
        ask = command(model, shards, tmp_path / "out", address)
        while lost == "scheduler" and not list(tmp_path.glob("out/*.safetensors")):
            assert ask.poll() is None, ask.stderr.read()
            time.sleep(0.005)
        scheduler.send_signal(signal.SIGKILL if lost == "scheduler" else signal.SIGCONT)
        said = ask.communicate(timeout=300)[1]
    assert ask.returncode == 1
    lines = [line for line in re.split(r"[\n\r]", said) if line and not line.startswith("embed:")]
    message = {
        "scheduler": "the cluster is lost .scheduler",
        "disk": "cannot be written: ",
        "never there": "Timed out",
    }[lost]
    assert len(lines) == 1, said
    assert re.match(f"error: .*{message}", lines[0])
    assert not list(tmp_path.glob("out/.*"))
    assert bulk.embed(model, shards, tmp_path / "out") == 24
    assert len(vectors(tmp_path / "out")) == 24
