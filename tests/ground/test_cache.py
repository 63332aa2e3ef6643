import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from matalign import cache, paths


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    monkeypatch.delenv("MATALIGN_FITS", raising=False)


def test_memo_computes_once_per_key():
    calls = []

    def compute():
        calls.append(1)
        return {"loss": np.arange(3.0), "best": 2, "name": "a"}

    first = cache.memo("fit", {"seed": 0, "data": "x"}, compute)
    again = cache.memo("fit", {"data": "x", "seed": 0}, compute)
    assert len(calls) == 1
    assert again["loss"].tolist() == first["loss"].tolist() == [0, 1, 2]
    assert (again["best"], again["name"]) == (2, "a")
    cache.memo("fit", {"seed": 1, "data": "x"}, compute)
    assert len(calls) == 2


def test_memo_of_a_failure_is_not_kept():
    with pytest.raises(ZeroDivisionError):
        cache.memo("fit", {"seed": 0}, lambda: {"x": 1 / 0})
    assert cache.memo("fit", {"seed": 0}, lambda: {"x": 1}) == {"x": 1}


def test_memo_tells_what_was_computed_and_what_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("MATALIGN_FITS", str(tmp_path / "fits.jsonl"))
    for _ in range(2):
        cache.memo("fit", {"seed": 0}, lambda: (time.sleep(0.05), {"x": 1})[1])
    lines = [json.loads(line) for line in (tmp_path / "fits.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["computed", "loaded"]
    assert lines[0]["seconds"] == lines[1]["seconds"] >= 0.05  # the cost when it was computed


def test_save_and_load_keep_types(tmp_path):
    result = {
        "a": np.array([[1, 2]], dtype=np.int16),
        "b": [1.5, None],
        "c": np.float64(2.5),
        "empty": np.zeros((0, 3)),
    }
    cache.save(tmp_path / "r", result)
    found = cache.load(tmp_path / "r")
    assert found["a"].dtype == np.int16
    assert found["a"].tolist() == [[1, 2]]
    assert found["empty"].shape == (0, 3)
    assert (found["b"], found["c"]) == ([1.5, None], 2.5)


def test_write_json_is_all_or_nothing(tmp_path):
    file = tmp_path / "m.json"
    cache.write_json(file, {"b": np.int64(1), "a": np.array([1.0, 2.0])})
    assert file.read_text().index('"b"') < file.read_text().index('"a"')
    assert json.loads(file.read_text()) == {"b": 1, "a": [1.0, 2.0]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.write_json(file, {"a": float("nan")})
    with pytest.raises(TypeError, match="not JSON: set"):
        cache.write_json(file, {"a": {1}})
    assert json.loads(file.read_text())["b"] == 1
    assert os.listdir(tmp_path) == ["m.json"]


def test_a_second_process_waits_for_the_first_and_names_it(tmp_path, capfd):
    code = (
        "import sys; from pathlib import Path; from matalign import cache\n"
        "with cache.held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read(); print('done', flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], text=True, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.5, holder.stdin.close).start()
        with cache.held(tmp_path):
            assert holder.stdout.readline() == "done\n"
    assert f"is held by process {holder.pid} on " in capfd.readouterr().err
    with cache.held(tmp_path):
        assert capfd.readouterr().err == ""


def test_a_killed_holder_holds_nothing(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from matalign import cache\n"
        "with cache.held(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -signal.SIGKILL
    with cache.held(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_says_what_to_set(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=rf"cannot be locked \({os.strerror(number)}\); set MATALIGN_SCRATCH"):
        cache.memo("fit", {"seed": 0}, dict)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_ends_with_its_killed_parent():
    child = "from matalign import cache; cache.die_with_parent(); import time; print('up', flush=True); time.sleep(60)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); p.wait()"
    code = f"import subprocess, sys; {start}"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    process = psutil.Process(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    psutil.wait_procs([process], timeout=5)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_whose_parent_is_gone_already_ends_at_once():
    code = "from matalign import cache; cache.die_with_parent(1_000_000_000); print('alive')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "")
