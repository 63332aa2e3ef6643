"""Bad input of every kind is refused in words: never silently, never with a traceback."""

import dataclasses
import shutil

import published
import pytest
import refusals
from refusals import KINDS, MODEL

from matalign import paths
from matalign.data import providers
from matalign.release import released


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("refusals")) as made:
        yield made[0], released.load(made[0])


@pytest.fixture(scope="module")
def port():
    with refusals.provider() as port:
        yield port


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """An empty folder with the model, beside a project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    for name, value in {"ATTEMPTS": 0, "SPACING_S": 0.0, "PAUSE_S": 0.0}.items():
        monkeypatch.setattr(providers, name, value)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.named)
def test_it_is_refused_in_words(kind, place, made, port, monkeypatch):
    if kind.area == "params.yaml":
        monkeypatch.setattr(paths, "PARAMS", place / "params.yaml")
    elif kind.area in ("Released models", "Checkpoints and sets"):
        shutil.copytree(made[0], MODEL)
    else:
        monkeypatch.setattr(released, "load", lambda name: made[1])
    asked = kind.ask.replace("{port}", str(port)) if isinstance(kind.ask, str) else kind.ask
    code, out, err = refusals.told(dataclasses.replace(kind, ask=asked))
    assert code in (1, 2), (out, err)
    assert kind.said in err
    assert "Traceback" not in err
    assert "NaCl" not in out


def test_the_table_in_the_documentation_is_of_these_kinds():
    assert refusals.TABLE.read_text() == refusals.table()
    assert len({kind.named for kind in KINDS}) == len(KINDS) >= 60
