import ast
import csv
import inspect
import json
import math
import re

import numpy as np
import pytest
import tiny
from PIL import Image
from projects import REPOSITORY
from pymatgen.core import Lattice, Structure

from matalign import config, paths
from matalign.data import dataset, manifest, own_data, providers
from matalign.data.readers.micrographs import model_image
from matalign.pretrain import align, encode
from matalign.quantities import UNITS


def lines(folder, header, *rows):
    """Write a manifest."""
    with open(folder / "manifest.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder


@pytest.fixture
def folder(tmp_path, nacl, srtio3, si):
    """Three crystals, two protocols, two images; manifest to be written."""
    for name, (numbers, sites, lattice) in {"salt": nacl, "sto": srtio3, "si": si}.items():
        Structure(Lattice(lattice), numbers, sites).to(filename=str(tmp_path / f"{name}.cif"))
    Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).to(filename=str(tmp_path / "alloy.cif"))
    counts = np.random.default_rng(0).integers(0, 60000, (150, 160), np.uint16)
    Image.fromarray(counts).save(tmp_path / "stem.tif")
    (tmp_path / "sto.txt").write_text("SrCO3 and TiO2 were ground\nand fired at 1200 °C.")
    fields = {"precursors": ["NaOH", "HCl"], "operations": [{"action": "dried", "temperature_C": 120}]}
    (tmp_path / "salt.json").write_text(json.dumps(fields))
    return tmp_path


def failing(folder, header, *rows):
    """The lines that the error of a bad manifest shows, without the first."""
    with pytest.raises(ValueError) as raised:
        own_data.import_folder(lines(folder, header, *rows))
    first, *found = str(raised.value).splitlines()
    assert str(folder / "manifest.csv") in first
    return [line.strip() for line in found] or [first.partition("manifest.csv: ")[2]]


def test_a_folder_becomes_a_curated_set(folder):
    header = ["id", "structure", "protocol", "image", "pixel_size_nm", "band_gap_meV", "formation_energy_eV_atom"]
    lines(
        folder,
        header,
        ["titanate", "sto.cif", "sto.txt", "stem.tif", "0.01", "1800", "-3.5"],
        ["salt", "salt.cif", "salt.json", "", "", "", ""],
        ["bare", "si.cif"],
        ["recipe", "", "Fired at 900 °C in air.", "", "", "", ""],
    )
    curated = own_data.import_folder(folder)
    table = curated.materials
    assert table.mp_id.tolist() == ["bare", "salt", "titanate"]
    assert table.formula.tolist() == ["Si", "NaCl", "SrTiO3"]
    assert table.space_group.tolist() == [227, 225, 221]
    assert set(table.source) == {"own"}
    np.testing.assert_allclose(table.band_gap_eV, [math.nan, math.nan, 1.8])
    np.testing.assert_allclose(table.formation_energy_eV_atom, [math.nan, math.nan, -3.5])
    assert curated.protocols.mp_id.tolist() == ["salt", "titanate"]
    salt, titanate = curated.protocols.itertuples()
    assert salt.precursors == ["HCl", "NaOH"]
    assert salt.max_temperature_C == 120
    assert salt.target_formula == "NaCl"
    assert salt.text_L1 == "solid-state synthesis. from HCl (chlorine), NaOH (sodium). dried at 120 celsius."
    assert "of NaCl" in salt.text_L0
    assert titanate.text_L3 == titanate.text_L0 == "SrCO3 and TiO2 were ground and fired at 1200 °C."
    assert not curated.synthetic
    assert curated.audit["skipped"] == [
        {"source": "own", "reason": "no structure", "rows": 1, "first": ["manifest.csv:5: recipe"]}
    ]
    assert manifest.read(folder)[3].protocol == "Fired at 900 °C in air."

    rows, images = own_data.micrographs(curated, pixel_A=0.4, px=32)
    assert rows.tolist() == [2]
    expected = model_image(folder / "stem.tif", pixel_A=0.1, to_pixel_A=0.4, px=32)
    np.testing.assert_array_equal(images[0, 0], expected)


def test_a_set_is_written_beside_the_profiles_and_read_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    curated = own_data.import_folder(lines(folder, ["id", "structure"], ["a", "salt.cif"], ["b", "sto.cif"]))
    assert own_data.write("lab-1", curated) == tmp_path / "data/curated/lab-1"
    again = dataset.read(paths.curated("lab-1"))
    assert again.digest == curated.digest
    assert again.materials["image"].tolist() == ["", ""]
    assert own_data.micrographs(again, pixel_A=0.2, px=64)[1].shape == (0, 1, 64, 64)
    for name in ("laptop", "sample", "base", "../x", "", "a b"):
        with pytest.raises(ValueError, match=r"letters, digits, _ and - that is no profile"):
            own_data.write(name, curated)


def test_fields_of_a_protocol_stand_in_columns(folder):
    header = ["id", "structure", "precursors", "temperature", "temperature_unit", "time_min", "atmosphere", "action"]
    lines(folder, header, ["a", "sto.cif", "SrCO3; TiO2", "1473.15", "K", "90", "air", "sintered"])
    (row,) = own_data.import_folder(folder).protocols.itertuples()
    assert row.text_L1 == (
        "solid-state synthesis. from SrCO3 (strontium), TiO2 (titanium). sintered at 1200 celsius for 1.5 hours in air."
    )
    assert row.target_formula == "SrTiO3"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"structure": "none.cif"}, "none.cif: no such file"),
        ({"structure": "../secret.cif"}, "../secret.cif: leaves the manifest's folder"),
        ({"structure": "/etc/hostname"}, "/etc/hostname: an absolute path"),
        ({"structure": "link.cif"}, "link.cif: leaves the manifest's folder"),
        ({"structure": "inside/../../secret.cif"}, "leaves the manifest's folder"),
        ({"protocol": "linked/secret.txt"}, "linked/secret.txt: leaves the manifest's folder"),
        ({"structure": "a\0b"}, "null"),
        ({"structure": "x" * 5000}, "name too long"),
        ({"structure": "."}, "no such file"),
        ({"structure": "alloy.cif"}, "alloy.cif: disordered: "),
        ({"image": "stem.tif"}, "stem.tif: no scale: the file states none; give pixel_A"),
        ({"image": "stem.tif", "pixel_size": "0.1"}, "pixel_size '0.1' has no unit; one of A, nm, pm"),
        ({"image": "stem.tif", "pixel_size": "0.1", "pixel_size_unit": "inch"}, "unknown unit 'inch'"),
        ({"image": "stem.tif", "pixel_size": "-1", "pixel_size_unit": "nm"}, "no scale: the pixel size is -10"),
        ({"image": "stem.tif", "pixel_size": "x", "pixel_size_unit": "nm"}, "pixel_size is 'x'; expected a number"),
        ({"image": "huge.png", "pixel_size": "1", "pixel_size_unit": "pm"}, "huge.png: no contrast"),
        ({"image": "sto.txt", "pixel_size": "1", "pixel_size_unit": "pm"}, "sto.txt: unreadable"),
        ({"protocol": "x " * 50_000}, "a text of 99,999 characters; at most 20,000"),
        ({"protocol": "none.txt"}, "none.txt: no such file"),
        ({"protocol": "long.txt"}, "long.txt: a text of 100,000 bytes; at most 20,000"),
        ({"protocol": "bad.json"}, "bad.json: not JSON"),
        ({"structure": "sto.cif", "protocol": "other.json"}, "target is BaTiO3, the structure SrTiO3"),
        ({"structure": "salt.cif", "precursors": "NaCl"}, "the target NaCl is among its precursors"),
        ({"protocol": "sto.txt", "precursors": "NaCl"}, "both a protocol and its fields (precursors); give one"),
        ({"structure": "sto.cif", "band_gap_eV": "-0.1"}, "band_gap is -0.1; expected at least 0"),
        ({"structure": "sto.cif", "band_gap_eV": "nan"}, "band_gap_eV is 'nan'; expected a number"),
        ({"structure": "sto.cif", "bulk_modulus_GPa": "0"}, "bulk_modulus is 0; expected more than 0"),
        ({"band_gap_eV": "1"}, "neither structure nor protocol nor image"),
        ({"id": "", "structure": "sto.cif"}, "no id"),
        ({"id": "good", "structure": "sto.cif"}, "the id 'good' is that of row 2 already"),
    ],
)
def test_a_bad_row_is_named(cells, said, folder):
    (folder.parent / "secret.cif").write_text((folder / "sto.cif").read_text())
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.cif").symlink_to(folder.parent / "secret.cif")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "inside").mkdir()
    (folder / "long.txt").write_text("x" * 100_000)
    (folder / "bad.json").write_text("{")
    (folder / "other.json").write_text(json.dumps({"target": "BaTiO3", "precursors": ["BaCO3", "TiO2"]}))
    Image.new("1", (8000, 5000)).save(folder / "huge.png")
    cells = {"id": "bad", **cells}
    header = ["structure", "image", "protocol", *sorted(cells.keys() - {"structure", "image", "protocol"})]
    good = [{"id": "good", "structure": "salt.cif"}.get(column, "") for column in header]
    found = failing(folder, header, good, [cells.get(column, "") for column in header])
    assert len(found) == 1, found
    assert found[0].startswith("row 3: ")
    assert said in found[0]


def test_all_errors_are_told_together(folder):
    header = ["id", "structure", "protocol", "image"]
    found = failing(
        folder,
        header,
        ["a", "none.cif", "none.txt", "none.png"],
        ["b", "salt.cif", "", ""],
        ["b", "alloy.cif", "", ""],
    )
    assert [line.partition(": ")[0] for line in found] == ["row 2"] * 3 + ["row 4"] * 2
    found = failing(folder, header, *([str(n), "none.cif", "", ""] for n in range(50)))
    assert len(found) == 21
    assert found[-1] == "… and 30 more"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            ["name", "structure"],
            ["row 1: unknown column 'name'; known are id, structure, protocol, image", "no column"],
        ),
        (["id", "strcture"], ["row 1: unknown column 'strcture'; is it 'structure'?"]),
        (["id", "temperature_F"], ["row 1: unknown unit 'F' in the column 'temperature_F'; one of C, K"]),
        (["id", "band_gap_ev"], ["row 1: unknown unit 'ev' in the column 'band_gap_ev'; one of eV, meV"]),
        (["id", "structure", "structure"], ["row 1: the column 'structure' stands there twice"]),
        (["id;structure"], ["row 1: unknown column 'id;structure'", "row 1: no column 'id'"]),
    ],
)
def test_bad_columns_are_named(header, said, folder):
    found = failing(folder, header, ["a"] * len(header))
    assert len(found) == len(said)
    for line, expected in zip(found, said):
        assert expected in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows; expected a header"),
        (b"id,structure\n", "no rows; expected a header"),
        ("id,structure\nné,salt.cif\n".encode("latin-1"), "not UTF-8 (byte 14)"),
        ("id,structure\n".encode("utf-16"), "not UTF-8"),
        (b"id,structure\na,salt.cif,b\n", "row 2: 3 cells for 2 columns"),
    ],
)
def test_a_file_that_is_no_table_is_named(content, said, folder):
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(ValueError) as raised:
        own_data.import_folder(folder)
    assert str(folder / "manifest.csv") in str(raised.value)
    assert said in str(raised.value)


def test_a_byte_order_mark_and_blank_cells_do_no_harm(folder):
    (folder / "manifest.csv").write_bytes("\ufeffid , structure\r\n a , salt.cif \r\n".encode())
    assert own_data.import_folder(folder).materials.mp_id.tolist() == ["a"]


def test_a_folder_without_manifest_or_without_any_structure(folder):
    with pytest.raises(FileNotFoundError, match=r"manifest\.csv: no such file; expected a table"):
        own_data.import_folder(folder)
    lines(folder, ["id", "protocol"], ["a", "Fired."])
    with pytest.raises(ValueError, match="none of 1 rows has a structure"):
        own_data.import_folder(folder)


def test_the_models_take_an_imported_set(folder):
    header = ["id", "structure", "protocol", "image", "pixel_size_A"]
    lines(folder, header, ["a", "sto.cif", "sto.txt", "stem.tif", "0.2"], ["b", "salt.cif"], ["c", "si.cif"])
    curated = own_data.import_folder(folder)
    cfg = config.load("pretrain", "tiny")
    model = encode.Model(cfg, align.build(cfg).eval())
    for modality, expected in {"crystal": 3, "text": int(curated.protocols.train_ok.sum()), "image": 3}.items():
        rows, vectors = tiny.embed(model, modality, curated)
        assert len(rows) == expected
        assert np.isfinite(vectors).all()
    assert model.embed_texts(curated.protocols.text_L1).shape == (1, cfg.embed_dim)
    rows, images = own_data.micrographs(curated, pixel_A=cfg.pixel_A, px=cfg.image_px)
    assert model.embed_images(images).shape == (1, cfg.embed_dim)


# A CSV with CIFs


@pytest.fixture
def mp_20(tmp_path, nacl, srtio3, si, monkeypatch):
    """Rows as CDVAE's train.csv of MP-20 has them."""
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    header = ["", "material_id", "formation_energy_per_atom", "band_gap", "pretty_formula", "e_above_hull", "cif"]
    rows = []
    for number, (numbers, sites, lattice) in enumerate([nacl, srtio3, si]):
        text = Structure(Lattice(lattice), numbers, sites).to(fmt="cif")
        rows.append([number, f"mp-{number}", -1.5 * number, 0.5 * number, "x", 0.0, text])
    return tmp_path / "train.csv", header, rows


def table(file, header, rows):
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def test_a_benchmarks_csv_drops_in(mp_20):
    curated = own_data.import_csv(table(*mp_20), workers=1)
    assert curated.materials.mp_id.tolist() == ["mp-0", "mp-1", "mp-2"]
    assert curated.materials.formula.tolist() == ["NaCl", "SrTiO3", "Si"]
    assert curated.materials.formation_energy_eV_atom.tolist() == [0, -1.5, -3]
    assert curated.materials.is_metal.tolist() == [1, 0, 0]
    assert curated.audit["columns"]["left"] == ["pretty_formula", "e_above_hull"]
    assert len(curated.protocols) == 0
    assert curated.splits.columns.tolist() == ["mp_id", "random", "chemsys", "pretrain"]


def test_rows_of_a_csv_that_cannot_be_used_are_counted(mp_20):
    file, header, rows = mp_20
    overlapping = rows[2][-1].replace("0.25000000", "0.01000000")
    assert overlapping != rows[2][-1]
    bad = [["", "mp-0", 0, 0, "", 0, rows[0][-1]], ["", "mp-7", 0, 0, "", 0, "nothing"], ["", "mp-8", 0, 0, "", 0, ""]]
    bad += [["", "mp-9", 0, 0, "", 0, overlapping]]
    curated = own_data.import_csv(table(file, header, rows + bad), workers=1)
    assert len(curated.materials) == 3
    counted = {row["reason"]: row["first"][0].partition(":")[2] for row in curated.audit["skipped"]}
    assert counted.keys() == {"duplicate id", "unreadable CIF", "no CIF", "overlapping atoms"}
    assert counted["overlapping atoms"].startswith("8: mp-9")


def test_a_csv_that_cannot_be_read_is_named(mp_20):
    file, header, rows = mp_20
    for changed, said in [
        ([*header[:-1], "structure"], "no column 'cif'"),
        (["", "name", *header[2:]], "no column 'material_id'"),
        (["id", *header[1:]], "the columns 'id' and 'material_id' both are mp_id"),
    ]:
        with pytest.raises(ValueError, match=rf"train\.csv: {said}"):
            own_data.import_csv(table(file, changed, rows), workers=1)
    with pytest.raises(ValueError, match=r"train\.csv: no rows"):
        own_data.import_csv(table(file, header, []), workers=1)
    file.write_bytes(b"material_id,cif\n\xff,\n")
    with pytest.raises(ValueError, match=r"train\.csv: not UTF-8"):
        own_data.import_csv(file, workers=1)


def test_the_datasheet_lists_every_column_and_unit():
    section = (REPOSITORY / "data/README.md").read_text().partition("## Your own data")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    listed = {name.strip("`"): units for name, _, units in rows}
    assert set(listed) == {*manifest.WORDS, *UNITS}
    assert {name: listed[name].split(", ") for name in UNITS} == {k: [*v] for k, v in UNITS.items()}


def test_what_the_readme_shows_is_there():
    text = (REPOSITORY / "docs" / "extend.md").read_text()
    shown = "".join(re.findall(r"^```py\n(.*?)^```", text, flags=re.M | re.S))
    calls = [node for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.Call)]
    for call in calls:
        signature = inspect.signature(getattr(own_data, call.func.attr))
        signature.bind(*call.args, **{keyword.arg: None for keyword in call.keywords})
    assert {call.func.attr for call in calls} == {"import_folder", "import_csv", "import_optimade", "micrographs"}
    names = re.search(r"by name \((.*?)\)", text)[1]
    assert names == ", ".join(f"`{name}`" for name in providers.URLS)
