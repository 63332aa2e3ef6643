"""The command `matalign`, on the model of 24 salts; one command in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import published
import pytest
from PIL import Image
from safetensors import safe_open
from salt import CIF
from typer.testing import CliRunner

from matalign import paths
from matalign.data import dataset, sources
from matalign.release import cli, released


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("cli")) as made:
        yield made[0]


@pytest.fixture(scope="module")
def model(folder):
    return released.load(folder)


@pytest.fixture
def run(folder, model, monkeypatch):
    """Run the command in this process, on the model as it was loaded once."""
    monkeypatch.setattr(released, "load", lambda name: model if name == str(folder) else pytest.fail(name))

    def run(*args):
        return CliRunner().invoke(cli.app, [str(arg) for arg in (*args, "--model", folder)])

    return run


@pytest.fixture
def files(tmp_path):
    """A good crystal, one whose site is half full, and one that is not there."""
    (tmp_path / "good.cif").write_text(CIF)
    (tmp_path / "half.cif").write_text(CIF.replace("0 0 0 1", "0 0 0 0.5"))
    return [tmp_path / name for name in ("good.cif", "half.cif", "absent.cif")]


def test_all_is_well_with_good_files(run, files, model):
    ended = run("predict", files[0], "--json")
    assert ended.exit_code == 0, ended.stderr
    (row,) = json.loads(ended.stdout)
    assert row["file"] == str(files[0])
    assert row["formula"] == "NaCl"
    expected = model.predict([files[0]]).iloc[0]
    for name in ("formation_energy_eV_atom", "band_gap_eV_low", "metal_probability", "bulk_modulus_GPa_high"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)


def test_a_wrong_file_is_named_and_the_rest_goes_on(run, files):
    ended = run("predict", *files, "--csv")
    assert ended.exit_code == 1
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("file,formula,formation_energy_eV_atom,formation_energy_eV_atom_low")
    assert [line.split(",")[0] for line in lines[1:]] == [str(files[0])]
    said = ended.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith("error: half.cif: disordered")
    assert said[1].startswith("error: ")
    assert "absent.cif: no such file" in said[1]
    assert run("predict", *files[1:]).exit_code == 1


def test_people_get_a_table(run, files):
    ended = run("predict", files[0])
    header, row = ended.stdout.splitlines()
    assert set(header.split()) == {"file", "formula", "metal_probability", "warning", *published.LABELS}
    assert row.count("[") == 5


def test_usage_is_checked(run, files):
    assert run("predict").exit_code == 2
    assert run("predict", files[0], "--json", "--csv").exit_code == 2
    assert run("embed", files[0]).exit_code == 2
    assert run("embed", files[0], "--out", "vectors.txt").exit_code == 2
    assert run("embed", files[0], "--out", "vectors.npy", "--workers", 2).exit_code == 2
    assert run("embed", files[0].parent, "--out", "vectors", "--json").exit_code == 2
    assert run("neighbours", files[0], "-k", 0).exit_code == 2
    ended = run("neighbours", files[0], "--among", "image", "-k", 1)
    assert ended.exit_code == 2
    assert "crystal, protocol" in ended.stderr
    missing = CliRunner().invoke(cli.app, ["fetch", "nowhere"])
    assert missing.exit_code == 2


def test_a_model_that_is_not_there_is_an_error_of_usage(files, folder):
    ended = CliRunner().invoke(cli.app, ["predict", str(files[0]), "--model", "nowhere"])
    assert ended.exit_code == 2
    assert "no model in" in ended.stderr


@pytest.fixture
def mixed(tmp_path, files):
    """A protocol, an image, a crystal, an OPTIMADE record."""
    (tmp_path / "p.txt").write_text("mix the salt\n")
    (tmp_path / "fields.json").write_text(json.dumps({"precursors": ["NaCl"], "target": "NaBr"}))
    grey = (255 * np.random.default_rng(0).random((40, 40))).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "i.png")
    record = {"lattice_vectors": (4 * np.eye(3)).tolist(), "species_at_sites": ["Cs", "Cl"]}
    record["cartesian_site_positions"] = [[0, 0, 0], [2, 2, 2]]
    (tmp_path / "record.json").write_text(json.dumps({"id": "a/1", "attributes": record}))
    return [tmp_path / name for name in ("p.txt", "i.png", "good.cif", "record.json", "fields.json")]


def test_vectors_of_anything_in_the_order_given(run, mixed, model, tmp_path):
    out = tmp_path / "z.npy"
    ended = run("embed", *mixed, "--out", out, "--pixel-A", 0.4)
    assert ended.exit_code == 0, ended.stderr
    z = np.load(out)
    assert z.shape == (5, 8)
    np.testing.assert_allclose(z[0], model.embed(protocols=["mix the salt"])[0], atol=1e-6)
    np.testing.assert_allclose(z[1], model.embed(images=[(mixed[1], 0.4)])[0], atol=1e-5)
    np.testing.assert_allclose(z[2], model.embed(structures=[mixed[2]])[0], atol=1e-6)
    np.testing.assert_allclose(z[4], model.embed(protocols=[mixed[4]])[0], atol=1e-6)
    assert run("embed", "absent.cif", "--out", out).exit_code == 1
    assert len(np.load(out)) == len(z)  # what stood there stays where nothing could be read
    assert run("embed", *mixed, "--out", tmp_path / "z.safetensors", "--pixel-A", 0.4).exit_code == 0
    with safe_open(tmp_path / "z.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("embeddings"), z)
        assert json.loads(file.metadata()["files"]) == [str(f) for f in mixed]


def test_an_image_without_a_scale_is_told_of(run, mixed):
    ended = run("embed", mixed[0], mixed[1], "--csv")
    assert ended.exit_code == 1
    assert "error: i.png: no scale" in ended.stderr
    assert len(pd.read_csv(pd.io.common.StringIO(ended.stdout))) == 1


def test_neighbours_of_anything(run, mixed):
    ended = run("neighbours", *mixed[:3], "-k", 2, "--pixel-A", 0.4, "--json")
    assert ended.exit_code == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [(row["file"], row["rank"]) for row in rows] == [(str(f), rank) for f in mixed[:3] for rank in (1, 2)]
    assert all(row["mp_id"].startswith("mp-") for row in rows)
    ended = run("neighbours", mixed[2], "-k", 1, "--among", "protocol")
    assert "protocol_id" in ended.stdout


def test_recipes_say_where_they_come_from(run, files):
    ended = run("recommend", *files[:2], "-k", 2, "--json")
    assert ended.exit_code == 1
    assert "recipes are from the embedded sample, which is synthetic" in ended.stderr
    (told,) = json.loads(ended.stdout)
    assert told["synthetic"] is True
    assert told["formula"] == "NaCl"
    assert len(told["protocols"]) == 2
    assert told["protocols"][0]["doi"]
    assert len(told["temperature_C"]) == 2
    assert "probability" in told["precursor_sets"][0]
    rows = pd.read_csv(pd.io.common.StringIO(run("recommend", files[0], "-k", 2, "--csv").stdout))
    assert rows.part.tolist().count("protocol") == 2
    printed = run("recommend", files[0]).stdout
    assert "precursor sets" in printed
    assert "e+0" not in printed  # temperatures are whole degrees


def test_fetch_takes_sources_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RAW", tmp_path / "raw")
    known = list(sources.catalogue(cli_sources()))
    asked = []

    def fetch(name):
        asked.append(name)
        if name == known[1]:
            raise ConnectionError("cannot download it; set MATALIGN_MIRROR")
        return tmp_path / name

    monkeypatch.setattr(sources, "catalogue", lambda: dict.fromkeys(known))
    monkeypatch.setattr("matalign.data.fetch.fetch", fetch)
    assert CliRunner().invoke(cli.app, ["fetch", known[0]]).exit_code == 0
    ended = CliRunner().invoke(cli.app, ["fetch"])
    assert asked == [known[0], *known]
    assert ended.exit_code == 1
    assert f"error: {known[1]}: cannot download it; set MATALIGN_MIRROR" in ended.stderr


def cli_sources():
    return paths.SAMPLE.parent / "sources.yaml"


def test_the_installed_command_starts_fast_and_works(folder, files):
    """`--help` imports no torch; a real command in a process of its own gives what it gives here."""
    script = "import sys; from matalign.release import cli\ntry: cli.app(['--help'])\nexcept SystemExit: pass\n"
    script += "print({'torch', 'pandas', 'pymatgen'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "recommend" in ended.stdout
    assert ended.stdout.endswith("set()\n")
    command = [sys.executable, "-m", "matalign.release.cli", "predict", str(files[0]), str(files[1]), "--json"]
    ended = subprocess.run(
        [*command, "--model", str(folder)], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)[0]["formula"] == "NaCl"
    assert "half.cif: disordered" in ended.stderr


def test_a_prediction_imports_no_more_than_it_needs(files):
    """The released model of the profile laptop, asked of a CIF: packages of slow import stay out."""
    heavy = {"torch_geometric", "torchvision", "sklearn", "torch._dynamo", "transformers", "pymatgen", "pandas"}
    model = Path(__file__).parents[2] / "results" / "laptop" / "model"
    script = "import sys; from matalign.release import cli\n"
    script += f"try: cli.app(['predict', {str(files[0])!r}, '--model', {str(model)!r}, '--json'])\n"
    script += f"except SystemExit as end: print(end.code, sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "0 []"
    assert json.loads(ended.stdout)[0]["formula"] == "NaCl"


def test_ones_own_folder_becomes_a_set(folder, files, tmp_path):
    (tmp_path / "manifest.csv").write_text("id,structure\nsalt,good.cif\n")
    ended = CliRunner().invoke(cli.app, ["import", str(tmp_path), "lab"])
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout == f"1 materials, 0 protocols in {paths.curated('lab')}\n"
    assert dataset.read(paths.curated("lab")).materials.formula.tolist() == ["NaCl"]
    table = tmp_path / "table.csv"
    pd.DataFrame({"material_id": ["a", "b"], "cif": [CIF, "nothing"]}).to_csv(table, index=False)
    ended = CliRunner().invoke(cli.app, ["import", str(table), "csv"])
    assert ended.exit_code == 0, ended.stderr
    assert "left out: 1 × " in ended.stderr


def test_a_bad_folder_is_told_by_row_and_a_profiles_name_is_refused_first(folder, files, tmp_path):
    (tmp_path / "manifest.csv").write_text("id,structure\nsalt,half.cif\n")
    ended = CliRunner().invoke(cli.app, ["import", str(tmp_path), "bad"])
    assert ended.exit_code == 1
    assert "row 2: half.cif: disordered" in ended.stderr
    assert not paths.curated("bad").exists()
    ended = CliRunner().invoke(cli.app, ["import", str(tmp_path / "absent"), "laptop"])
    assert "that is no profile" in ended.stderr
    ended = CliRunner().invoke(cli.app, ["import", "nowhere", "lab-2"])
    assert ended.exit_code == 1
    assert "no folder, no CSV and no provider 'nowhere'; providers: mp, oqmd" in ended.stderr
