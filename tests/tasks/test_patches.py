import io
import tarfile

import numpy as np
import pytest
import torch
from frames import TRICLINIC, ZINCBLENDE, view
from PIL import Image

from matalign.data.structures import Structures
from matalign.tasks.defects import patches
from matalign.views import identification, micrographs
from matalign.views.micrographs import ZONE_AXES, Optics


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Patches of SrTiO3 along [100], four of them without a column of Sr, as the archive has them."""
    size, optics = 8, Optics(image_px=64, pixel_A=0.16, jitter_A=0.0)
    v = view(
        size,
        axis=[ZONE_AXES.index((1, 0, 0))] * size,
        rotation=list(np.linspace(0, 1.2, size)),
        shift_A=[[0.1 * i, -0.2 * i] for i in range(size)],
        thickness_A=[50.0] * size,
        dose_e_A2=[1e5] * size,
        probe_sigma_A=[0.55] * size,
    )
    sites = micrographs.project(patches.CRYSTALS, [1] * size, v, optics=optics)
    distance = sites.position_A.norm(dim=1).where(sites.number == 38, torch.inf)
    nearest = torch.full((size,), torch.inf).scatter_reduce(0, sites.image, distance, "amin")
    kept = (distance > nearest[sites.image]) | (sites.image < 4)
    counts = micrographs.detect(micrographs.expose(sites.where(kept), v, optics=optics), range(size)).numpy()
    path = tmp_path_factory.mktemp("patches") / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for i, image in enumerate(counts):
            stream = io.BytesIO()
            Image.fromarray((255 * image / image.max()).astype(np.uint8)).save(stream, "TIFF")
            name = f"top/Image Data/DataSet_STO/{'Bulk' if i < 4 else 'Mis'}_{10 - i}.tif"
            info = tarfile.TarInfo(name)
            info.size = stream.tell()
            stream.seek(0)
            tar.addfile(info, stream)
    return path


def test_patches_come_by_class_and_number(archive):
    found = patches.read(archive, "SrTiO3")
    assert found.images.shape == (8, 1, 64, 64)
    assert found.label.tolist() == ["Bulk"] * 4 + ["Mis"] * 4
    assert found.number.tolist() == [7, 8, 9, 10, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="no patch of CdTe"):
        patches.read(archive, "CdTe")


def test_scale_axis_and_missing_columns_are_found_without_training(archive):
    found = patches.measure(patches.read(archive, "SrTiO3"), "SrTiO3")
    assert found["zone_axis"] == "100"
    assert found["pixel_A"] == pytest.approx(0.16, rel=5e-3)
    assert found["right"]["Bulk"] == 1
    assert found["known"]["Mis"]["auc"] == 1
    assert found["known"]["Mis"]["kinds"] == {"missing": 4}
    assert found["known"]["Bulk"]["auc"] == 0.5


def test_rank_among_others(archive):
    found, crystals = patches.read(archive, "SrTiO3"), Structures.pack([ZINCBLENDE, patches.CRYSTALS[1], TRICLINIC])
    refs = identification.library(crystals, probe_sigma_A=patches.PROBE_A)
    ranked = patches.ranks(found, crystals, refs, 1, pixel_A=0.16, per_class=2)
    assert ranked["Bulk"]["rank"] == ranked["Mis"]["rank"] == [1, 1]
    assert ranked["Bulk"]["first"] == [1]
    assert ranked["Bulk"]["best"] == ranked["Bulk"]["correlation"]


def test_auc_by_hand():
    assert patches.auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(3.5 / 4)
