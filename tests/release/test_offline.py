"""Nothing asks the network but a download: not an import, not a prediction."""

import os
import subprocess
import sys

import pytest
from projects import REPOSITORY
from salt import CIF

# an audit hook sees every socket of Python, whoever opened it, and nothing can catch this end
REFUSED = """
import os, sys
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
sys.addaudithook(lambda event, args: event in NETWORK and (os.write(2, f"{event} {args}".encode()), os._exit(9)))
"""
EVERYTHING = """
import importlib, pkgutil, matalign
for module in pkgutil.walk_packages(matalign.__path__, "matalign."):
    importlib.import_module(module.name)
"""
PREDICTION = """
from matalign.release import cli
cli.app(["predict", "salt.cif", "--model", MODEL, "--json"])
"""
ASKING = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')"


def ended(code, folder):
    model = f"MODEL = {str(REPOSITORY / 'results' / 'laptop' / 'model')!r}\n"
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"MATALIGN_SCRATCH": str(folder)}
    command = [sys.executable, "-c", REFUSED + model + code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", [EVERYTHING, PREDICTION], ids=["import", "predict"])
def test_with_sockets_refused(code, tmp_path):
    (tmp_path / "salt.cif").write_text(CIF)
    done = ended(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert code != PREDICTION or '"formula": "NaCl"' in done.stdout


def test_who_asks_is_found(tmp_path):
    done = ended(ASKING, tmp_path)
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.startswith("socket.")
