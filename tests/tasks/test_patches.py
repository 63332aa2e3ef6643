import base64
import dataclasses
import io
import tarfile
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from frames import TRICLINIC, ZINCBLENDE, view
from PIL import Image

from matalign import config, paths
from matalign.data.structures import Structures
from matalign.pretrain import encode
from matalign.report import micrographs as micrographs_figures
from matalign.tasks.defects import experimental, patches, transfer
from matalign.views import identification, micrographs
from matalign.views.micrographs import ZONE_AXES, Optics


def packed(path, files):
    """An archive as GitHub makes it, of name -> grey image."""
    with tarfile.open(path, "w:gz") as tar:
        for name, image in files.items():
            stream = io.BytesIO()
            Image.fromarray(image.astype(np.uint8)).save(stream, "TIFF")
            info = tarfile.TarInfo(f"top/{name}")
            info.size = stream.tell()
            stream.seek(0)
            tar.addfile(info, stream)
    return path


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
    files = {
        f"Image Data/DataSet_STO/{'Bulk' if i < 4 else 'Mis'}_{10 - i}.tif": 255 * image / image.max()
        for i, image in enumerate(counts)
    }
    files["STO_Training_Image.tif"] = np.concatenate(list(files.values()), axis=1)
    return packed(tmp_path_factory.mktemp("patches") / "archive.tar.gz", files)


def test_patches_come_by_class_and_number(archive):
    found = patches.read(archive, "SrTiO3")
    assert found.images.shape == (8, 1, 64, 64)
    assert found.label.tolist() == ["Bulk"] * 4 + ["Mis"] * 4
    assert found.number.tolist() == [7, 8, 9, 10, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="no patch of CdTe"):
        patches.read(archive, "CdTe")


@pytest.fixture(scope="module")
def cut():
    """A frame, three patches of it 20 and 100 pixels apart, the third painted; two that overlap of another."""
    rng = np.random.default_rng(0)
    frame, other = (torch.as_tensor(rng.integers(0, 256, (80, 200)), dtype=torch.float32) for _ in range(2))
    corner = np.array([[3, 5], [3, 25], [10, 120]])
    images = torch.cat([patches.windows(frame, corner, 64), patches.windows(other, np.array([[0, 9], [7, 39]]), 64)])
    images[2, 8:16, 8:24] = (images[2, 8:16, 8:24] + 128) % 256
    return patches.Patches(images[:, None], np.array(["Bulk", "Bulk", "Mis", "Extra", "Extra"]), np.arange(5), frame)


def test_patches_are_found_where_they_were_cut(cut):
    places = patches.located(cut)
    np.testing.assert_array_equal(places.corner, [[3, 5], [3, 25], [10, 120], [0, 0], [7, 30]])
    np.testing.assert_array_equal(places.own, [True] * 3 + [False] * 2)
    np.testing.assert_allclose(places.painted, [0, 0, 128 / 4096, np.nan, np.nan])
    np.testing.assert_array_equal(places.region, [0, 0, 1, 2, 2])


def test_what_is_tested_shares_no_pixel_with_what_is_labelled():
    corner = np.array([[0, column] for column in range(0, 200, 10)] * 2)
    own = np.repeat([True, False], 20)
    places = patches.Places(corner, own, np.zeros(40), np.zeros(40, int))
    number = np.repeat([0, 1], 20)
    for apart in (True, False):
        labelled, test = transfer.drawn(number, places, 3, np.random.default_rng(0), apart=apart, px=64)
        np.testing.assert_array_equal(np.bincount(number[labelled]), [3, 3])
        assert places.overlap(test, labelled, px=64).any() == (not apart)
        assert set(number[test]) == {0, 1}
    labelled, test = transfer.drawn(number, places, 3, np.random.default_rng(0), apart=True, px=64)
    for kind in (0, 1):
        chosen = corner[labelled[number[labelled] == kind], 1]
        assert np.ptp(chosen) <= 40  # neighbours
        rest = corner[number == kind, 1]
        apart = (np.abs(rest[:, None] - chosen) >= 64).all(1)
        np.testing.assert_array_equal(np.sort(corner[test[number[test] == kind], 1]), rest[apart])


def test_macro_f1_of_the_classes_that_are_there():
    assert transfer.f1(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)


def test_noise_has_the_power_that_it_is_told():
    power = torch.ones(32, 17)
    power[0, 3] = 400.0
    noise = transfer.Noise(32**2 * power, 0.6).draw(400, seed=0)
    found = torch.fft.rfft2(noise[:, 0]).abs().square().mean(0) / 32**2
    assert found[0, 3].item() == pytest.approx(400, rel=0.2)
    assert found[4:12, 4:12].mean().item() == pytest.approx(1, rel=0.02)


def test_power_in_rings_of_a_wave():
    x = torch.arange(64)
    wave = torch.cos(2 * np.pi * 8 * x / 64)[None, None, None].expand(1, 1, 64, 64)
    power = np.array(transfer.radial(wave))
    assert power.argmax() == 7  # eight periods
    ring = (np.hypot(*np.meshgrid(*[np.fft.fftfreq(64) * 64] * 2)).round() == 8).sum()
    assert power[7] == pytest.approx(2 * 64**2 / 2 / ring, rel=1e-4)


@pytest.fixture(scope="module")
def measured(archive):
    return patches.measure(patches.read(archive, "SrTiO3"), "SrTiO3")


def test_scale_axis_and_missing_columns_are_found_without_training(measured):
    found = patches.summary(measured)
    assert found["zone_axis"] == "100"
    assert found["pixel_A"] == pytest.approx(0.16, rel=5e-3)
    of = {(row["scale"], row["label"]): row for row in found["classes"]}
    assert of["unknown", "Bulk"]["right"] == 1
    assert of["known", "Mis"]["kinds"] == {"missing": 4}
    cfg = config.load("micrographs", "tiny")
    rows = experimental.left("SrTiO3", measured, np.arange(8) // 2, "largest significance", cfg)
    area = {(row["score"], row["label"], row["against"]): row["value"] for row in rows}
    assert area["largest residual", "Mis", "Bulk"] == area["largest residual", "all", "Bulk"] == 1
    assert 0.5 < area[experimental.NO_CRYSTAL, "all", "Bulk"] <= 1
    assert {row["chosen_on_other"] for row in rows if row["score"] == "largest significance"} == {True}


def test_the_page_quotes_one_patch_a_class_with_its_verdict(measured):
    bulk, missing = experimental.page({"SrTiO3": measured})
    assert (bulk["label"], missing["label"]) == ("Bulk", "Mis")
    assert missing["verdict"].startswith("missing, -")
    with Image.open(io.BytesIO(base64.b64decode(missing["png"]))) as picture:
        shown = np.asarray(picture).astype(float)
    assert shown.shape == (64, 3 * 64)
    assert np.corrcoef(shown[:, :64].ravel(), measured.patches.images[6, 0].ravel())[0, 1] > 0.95
    drawn = micrographs_figures.page([bulk, missing])
    assert [ax.get_title() for ax in drawn.axes[:2]] == ["SrTiO3\nbulk", "SrTiO3\nmissing"]
    assert drawn.axes[5].get_xlabel() == f"{missing['verdict']}\nr = {missing['correlation']:.2f}"
    np.testing.assert_allclose(drawn.axes[3].get_images()[0].get_array() * 255, shown[:, 64:128], atol=1)


def test_few_labels_and_none_by_networks_of_simulated_pictures(archive, measured, tmp_path, monkeypatch):
    """That it runs and says what it must; eight patches tell nothing about how well."""
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    monkeypatch.setattr(transfer, "SHOTS", (1,))
    cfg = dataclasses.replace(config.load("micrographs", "tiny"), views=2, epochs=1, head_epochs=1, resplits=2)
    each = measured.patches
    places = patches.located(each)
    task = experimental.task_of("SrTiO3", each, places, measured, cfg)
    assert task.separable() == ["Bulk", "Mis"]
    zero = task.zero_shot()
    assert [(row["arm"], row["noise"]) for row in zero] == [
        ("majority", ""),
        *((arm, noise) for arm in transfer.ARMS for noise in transfer.NOISES),
    ]
    assert zero[0]["macro_F1"] == pytest.approx(1 / 3)  # of two equal classes one is named: (2/3 + 0) / 2
    rows, gains = task.few()
    assert {row["arm"] for row in rows} == {"majority", "nearest", "image", "image_reference"}
    assert [row["split"] for row in gains] == ["apart", "random"]
    assert all(row["low"] <= row["macro_F1"] <= row["high"] for row in rows)


def test_rank_among_others(archive):
    found, crystals = patches.read(archive, "SrTiO3"), Structures.pack([ZINCBLENDE, patches.CRYSTALS[1], TRICLINIC])
    refs = identification.library(crystals, probe_sigma_A=patches.PROBE_A)
    ranked = patches.ranks(found, crystals, refs, 1, pixel_A=0.16, per_class=2)
    assert ranked["Bulk"]["rank"] == ranked["Mis"]["rank"] == [1, 1]
    assert ranked["Bulk"]["first"] == [1]
    assert ranked["Bulk"]["best"] == ranked["Bulk"]["correlation"]


def test_auc_by_hand():
    assert patches.auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(3.5 / 4)


def test_rendered_pictures_are_calibrated_and_their_crystals_ranked(monkeypatch):
    """A tower that takes every picture for the last crystal ranks the true one by how like that it is told to be."""
    curated, size = tiny.curated(), 24
    model = SimpleNamespace(config=SimpleNamespace(pixel_A=0.4, image_px=32))
    seen = []
    model.embed_images = lambda images: seen.append(images.shape) or np.eye(size)[[size - 1] * len(images)]
    likeness = np.eye(size)
    likeness[:, -1] = np.arange(size)
    monkeypatch.setattr(encode, "load", lambda profile: model)
    monkeypatch.setattr(encode, "features", lambda profile, *, modality: {"embeddings": likeness})
    cfg = config.load("micrographs", "tiny")
    found = experimental.calibration(curated, cfg)
    assert len(found["pictures"]) == cfg.pictures
    assert np.mean([row["right"] for row in found["pictures"]]) >= 0.75
    assert all(row["agreement"] > 0.95 for row in found["pictures"] if row["right"])
    (rank,) = found["ranks"]
    assert rank["embedding"] == size - curated.materials.mp_id.tolist().index(rank["mp_id"])
    assert 1 <= rank["registration"] <= 4  # silver and rubidium halides of like cells look alike
    assert seen == [(cfg.ranked, 1, 32, 32)]
    (claim,) = experimental._claims(found, {}, cfg)
    assert claim["value"] == np.mean([row["right"] for row in found["pictures"]])


def test_ranks_stand_beside_those_of_the_aligned_space(archive, measured, monkeypatch):
    crystals = Structures.pack([ZINCBLENDE, patches.CRYSTALS[1], TRICLINIC])
    materials = pd.DataFrame({"mp_id": ["mp-1", "mp-4651", "mp-9"], "formula": ["ZnS", "SrTiO3", "X"]})
    monkeypatch.setattr(encode, "load", lambda profile: None)
    near = np.array([[0.9, 0.5, 0.7]])
    monkeypatch.setattr(experimental.Space, "embedded", lambda self, images, *, pixel_A: near.repeat(len(images), 0))
    cfg = config.load("micrographs", "tiny")
    curated = SimpleNamespace(structures=crystals, materials=materials)
    rows = experimental.ranks({"SrTiO3": measured.patches}, {"SrTiO3": measured}, curated, cfg)
    assert [(row["scale"], row["label"]) for row in rows] == list(product(("known", "unknown"), ("Bulk", "Mis")))
    for row in rows:
        assert (row["rank"], row["embedding"], row["first"], row["crystals"]) == ([1], [3], ["SrTiO3"], 3)
