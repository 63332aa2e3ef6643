"""`matalign register` on a picture of its own making."""

import json

import numpy as np
import pytest
import torch
from frames import PEROVSKITE, view
from PIL import Image
from salt import CIF
from typer.testing import CliRunner

import matalign
from matalign.data.structures import Structures
from matalign.release import cli
from matalign.views import micrographs
from matalign.views.micrographs import ZONE_AXES, Optics

PEROVSKITE_CIF = """data_srtio3
_cell_length_a 3.905
_cell_length_b 3.905
_cell_length_c 3.905
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P m -3 m'
loop_
 _atom_site_label
 _atom_site_type_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 Sr1 Sr 0 0 0
 Ti1 Ti 0.5 0.5 0.5
 O1 O 0.5 0.5 0
"""


@pytest.fixture
def files(tmp_path):
    """SrTiO3 along [110], 64 pixels of 0.2 Å, without its column of Sr nearest to the centre; with two CIFs."""
    optics = Optics(image_px=64, pixel_A=0.2, jitter_A=0.0)
    v = view(
        1,
        axis=[ZONE_AXES.index((1, 1, 0))],
        rotation=[0.5],
        shift_A=[[1.0, 1.5]],
        thickness_A=[50.0],
        dose_e_A2=[2e4],
        probe_sigma_A=[0.5],
    )
    sites = micrographs.project(Structures.pack([PEROVSKITE]), [0], v, optics=optics)
    distance = sites.position_A.norm(dim=1).where(sites.number == 38, torch.inf)
    counts = micrographs.expose(sites.where(distance > distance.min()), v, optics=optics)
    counts = micrographs.detect(counts, [0])[0].numpy()
    Image.fromarray(counts.astype(np.uint16)).save(tmp_path / "image.tif")
    (tmp_path / "srtio3.cif").write_text(PEROVSKITE_CIF)
    (tmp_path / "nacl.cif").write_text(CIF)
    return tmp_path, sites.position_A[distance.argmin()].numpy()


def run(*args):
    return CliRunner().invoke(cli.app, ["register", *map(str, args)])


def test_right_crystal_comes_first_with_its_scale_axis_and_defect(files):
    folder, at = files
    picture = folder / "found.png"
    ended = run(folder / "image.tif", folder / "nacl.cif", folder / "srtio3.cif", "--png", picture, "--json")
    assert ended.exit_code == 0, ended.stderr
    first, second = json.loads(ended.stdout)
    assert [first["formula"], second["formula"]] == ["SrTiO3", "NaCl"]
    assert first["correlation"] > second["correlation"] + 0.05
    assert first["zone_axis"] == "[1 1 0]"
    assert first["pixel_A"] == pytest.approx(0.2, abs=max(4 * first["pixel_error_A"], 0.001))
    defect = first["candidates"][0]
    assert defect["kind"] == "missing"
    assert defect["column"].startswith("Sr")
    assert np.hypot(defect["down_A"] - at[0], defect["right_A"] - at[1]) < 0.5
    with Image.open(picture) as made:
        assert made.size == (3 * 64 * 4, 64 * 4)


def test_scale_that_is_given_is_kept_to(files):
    folder, _ = files
    (found,) = matalign.register(folder / "image.tif", [folder / "srtio3.cif"], pixel_A=0.202)
    assert found.pixel_A == pytest.approx(0.2, abs=0.002)
    (wrong,) = matalign.register(folder / "image.tif", [folder / "srtio3.cif"], pixel_A=0.3)
    assert wrong.correlation < found.correlation - 0.1
    np.testing.assert_allclose(
        found.image - found.residual, found.reference * (found.image * found.reference).mean(), atol=1e-4
    )


def test_what_cannot_be_read_is_named(files, tmp_path):
    folder, _ = files
    ended = run(folder / "absent.tif", folder / "srtio3.cif")
    assert ended.exit_code == 1
    assert "absent.tif" in ended.stderr
    ended = run(folder / "image.tif", folder / "srtio3.cif", folder / "absent.cif")
    assert ended.exit_code == 1
    assert "SrTiO3" in ended.stdout
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "flat.tif")
    assert "contrast" in run(tmp_path / "flat.tif", folder / "srtio3.cif").stderr
