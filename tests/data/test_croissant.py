"""The metadata against the files they describe, read by the format's own library."""

import hashlib
import json

import mlcroissant
import pytest

from matalign import paths
from matalign.data import croissant, dataset

pytestmark = [  # of rdflib, and of the way that mlcroissant calls pandas
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning"),
]


@pytest.fixture
def written(curated, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "SOURCES", tmp_path / "data" / "sources.yaml")
    (tmp_path / "data").mkdir()
    sources = "megnet:\n  title: Some crystals\n  licence: CC0\n  citation: A. Author (2020)\n"
    paths.SOURCES.write_text(sources)
    dataset.write(paths.curated("salts"), curated)
    return croissant.write("salts")


def read(file):
    return mlcroissant.Dataset(jsonld=str(file))


def test_the_library_accepts_it_and_reads_the_tables(written, curated):
    found = read(written)
    assert not found.metadata.ctx.issues.errors
    rows, protocols = (list(found.records(name)) for name in ("materials", "protocols"))
    assert [row["materials/formula"] for row in rows] == [formula.encode() for formula in curated.materials.formula]
    assert rows[0]["materials/band_gap_eV"] == 5.0
    assert rows[2]["materials/band_gap_eV"] is None
    assert list(protocols[0]["protocols/precursors"]) == [b"SrCO3", b"TiO2"]


def test_every_column_and_file_is_described_with_its_hash(written):
    about = json.loads(written.read_text())
    fields = {r["name"]: [f["name"] for f in r["field"]] for r in about["recordSet"]}
    assert fields == {name: list(columns) for name, columns in dataset.TABLES.items()}
    assert all(f["description"] for r in about["recordSet"] for f in r["field"])
    assert [f["name"] for f in about["distribution"]] == list(dataset.FILES)
    for file in about["distribution"]:
        content = (written.parent / file["contentUrl"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["license"] == "Some crystals: CC0"
    assert "3 materials, 2 synthesis protocols" in about["description"]
    assert str(paths.ROOT) not in written.read_text()


def test_a_changed_file_is_noticed(written):
    (paths.curated("salts") / "materials.parquet").write_bytes(b"")
    with pytest.raises(mlcroissant.GenerationError):
        list(read(written).records("materials"))


def test_the_sample_says_that_it_is_made_up(curated, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    sample = dataset.Curated(
        curated.materials.assign(source="sample"), curated.structures, curated.protocols, curated.splits, {}
    )
    dataset.write(paths.curated("salts"), sample)
    about = json.loads(croissant.write("salts").read_text())
    assert about["description"].startswith("Made up by the project itself")
    assert about["license"] == "MIT"
