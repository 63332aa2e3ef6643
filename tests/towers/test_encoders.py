"""Modalities as files: the promise that one file is enough, and the two that keep it, diffraction and composition."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from projects import REPOSITORY

from matalign import elements, paths, towers
from matalign.data import chunked, dataset
from matalign.data.dataset import Structures
from matalign.data.sources import Skipped
from matalign.pretrain import align, checkpoint, encode, train
from matalign.pretrain.batches import VALIDATION, Examples
from matalign.towers import composition, xrd

ALL = "crystal text image xrd composition"
MASS_U = elements.PROPERTIES.index("mass_u")
CU_KA_A = (2 * 1.54056 + 1.54439) / 3  # Kα1 is twice as strong as Kα2


def supercell(crystal):
    """2×1×1, in an oblique setting, atoms in another order."""
    numbers, frac_coords, lattice = crystal
    sites = np.concatenate([frac_coords, frac_coords + np.array([1, 0, 0])]) / [2, 1, 1]
    shear = np.array([[1, 0, 0], [1, 1, 0], [0, 2, 1]])  # rows: the new vectors in terms of the old
    big = lattice * [[2], [1], [1]]
    order = np.argsort(np.sin(np.arange(2 * len(numbers))))
    return np.tile(numbers, 2)[order], (sites @ np.linalg.inv(shear))[order], shear @ big


def reflections(a_A, allowed):
    """2θ of a cubic crystal's reflections within the range, by Bragg's law; of each the indices (h, k, l)."""
    found = {}
    for hkl in np.ndindex(8, 8, 8):
        sine = CU_KA_A * math.hypot(*hkl) / (2 * a_A)
        if allowed(hkl) and 0 < sine < 1 and 10.5 < (angle := 2 * math.degrees(math.asin(sine))) < 89.5:
            found[round(angle, 6)] = hkl
    return dict(sorted(found.items()))


def peaks(pattern, *, above):
    """Places of the maxima, between the points of the grid by a parabola in the logarithm."""
    y = pattern.astype(float)
    at = 1 + np.flatnonzero((y[1:-1] > above) & (y[1:-1] >= y[:-2]) & (y[1:-1] > y[2:]))
    low, top, high = (np.log(np.maximum(y[at + i], 1e-6)) for i in (-1, 0, 1))
    return xrd.TWO_THETA_DEG[at] + xrd.STEP_DEG * 0.5 * (low - high) / (low - 2 * top + high)


def same_parity(hkl):
    return len({i % 2 for i in hkl}) == 1


def test_reflections_of_silicon_and_rock_salt_are_where_bragg_has_them(si, nacl):
    # diamond: all odd, or all even with a sum of four times n; rock salt: all odd or all even
    diamond = reflections(5.431, lambda hkl: same_parity(hkl) and (hkl[0] % 2 or sum(hkl) % 4 == 0))
    assert list(diamond) == pytest.approx([28.46, 47.34, 56.17, 69.19, 76.45, 88.12], abs=0.05)  # (111) … (422)
    np.testing.assert_allclose(peaks(xrd.curate(*si), above=0.02), list(diamond), atol=0.02)
    rock_salt = reflections(5.64, same_parity)
    pattern = xrd.curate(*nacl)
    np.testing.assert_allclose(peaks(pattern, above=0.002), list(rock_salt), atol=0.02)
    strength = {hkl: pattern[np.abs(xrd.TWO_THETA_DEG - angle).argmin()] for angle, hkl in rock_salt.items()}
    by_size = {tuple(sorted(hkl)): float(value) for hkl, value in strength.items()}
    assert by_size[0, 0, 2] == 1  # (200), where Na and Cl scatter in phase
    assert by_size[1, 1, 1] < 0.15  # out of phase
    assert pattern.dtype == np.float16
    assert pattern.shape == (801,)


def test_a_line_is_as_wide_as_it_is_said_to_be(si):
    fine = np.interp(np.arange(27, 30, 1e-3), xrd.TWO_THETA_DEG, xrd.curate(*si))
    assert (fine > 0.5).sum() * 1e-3 == pytest.approx(xrd.FWHM_DEG, abs=0.02)


@pytest.mark.parametrize("name", ["nacl", "srtio3", "skewed"])
def test_pattern_and_composition_do_not_depend_on_the_choice_of_cell(crystals, name):
    one, other = crystals[name], supercell(crystals[name])
    np.testing.assert_allclose(xrd.curate(*other), xrd.curate(*one), atol=2e-3)
    structures = Structures.pack([one, other])
    inputs = composition.Inputs(None, structures_only(structures), None, torch.device("cpu"))
    x = inputs(np.array([0, 1]), None)
    assert torch.equal(x[0], x[1])
    assert x.sum(1).tolist() == pytest.approx([1, 1])
    for z in set(one[0].tolist()):
        assert x[0, z] == pytest.approx((one[0] == z).mean())
    z, _ = composition.CompositionTower(8)(x)
    torch.testing.assert_close(z[0], z[1])


def structures_only(structures):
    """What `Inputs` reads of a curated set."""
    return type("Part", (), {"structures": structures})()


def test_composition_mixes_its_elements_by_their_fractions():
    tower = composition.CompositionTower(8)
    x = torch.zeros(3, 119)
    x[0, 11], x[1, 17], x[2, [11, 17]] = 1, 1, torch.tensor([0.25, 0.75])
    phi = tower.phi(torch.tensor([11, 17]))
    expected = torch.stack([phi[0], phi[1], 0.25 * phi[0] + 0.75 * phi[1]])
    torch.testing.assert_close(tower(x)[0], tower.rho(expected))


def test_a_measured_pattern_follows_its_key_alone(si, nacl):
    clean = torch.from_numpy(np.stack([xrd.curate(*si), xrd.curate(*nacl)])).float()
    keys = np.array([5, 6], np.uint64)
    both = xrd.measured(clean, keys)
    torch.testing.assert_close(xrd.measured(clean[1:], keys[1:]), both[1:])
    assert (xrd.measured(clean, keys[::-1].copy()) - both).abs().max() > 0.05


def test_a_measured_pattern_differs_as_a_diffractometers_do(si):
    clean = torch.from_numpy(xrd.curate(*si)).float().expand(200, -1)
    intensity = xrd.measured(clean, np.arange(200, dtype=np.uint64)).square().double().numpy()
    near = np.abs(xrd.TWO_THETA_DEG - 28.46) < 1.5
    floor = np.median(intensity, 1)
    assert 0 <= floor.min() < 0.01
    assert 0.04 < floor.max() < 0.06
    line = np.clip(intensity[:, near] - floor[:, None] - 0.02, 0, None)
    place = (line * xrd.TWO_THETA_DEG[near]).sum(1) / line.sum(1) - 28.46
    assert 0.07 < np.abs(place).max() < 0.14  # the zero shift
    assert abs(place.mean()) < 0.02
    width = (intensity[:, near] - floor[:, None] > 0.5 * (intensity[:, near].max(1) - floor)[:, None]).sum(1) * 0.1
    assert width.min() <= 0.4
    assert 0.5 <= width.max() <= 0.8
    at_220 = intensity[:, np.abs(xrd.TWO_THETA_DEG - 47.34) < 0.4].max(1) / intensity[:, near].max(1)
    assert at_220.std() > 0.05  # texture


def five():
    """The halides with their patterns; three crystals, the second of them for validation, have none."""
    curated = tiny.curated()
    values = chunked.extra(towers.makers(ALL.split()), curated.materials, curated.structures, Skipped(), workers=1)
    assert list(values) == ["xrd"]
    values["xrd"][[1, 17, 23]] = np.nan
    return dataclasses.replace(curated, extras=values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Parameters, set and folder of a model of five modalities, trained for two steps."""
    root = tmp_path_factory.mktemp("encoders")
    cfg = tiny.pretrain(tiny.bert(root / "bert"), modalities=ALL, batch_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "DATA", root / "data")
        patch.setattr(paths, "SCRATCH", root / "scratch")
        dataset.write(paths.curated("tiny"), five())
        (root / "run").mkdir()
        yield cfg, dataset.read(paths.curated("tiny")), train.fit(cfg, root / "run", max_steps=2)


def test_five_modalities_train_and_embed(trained):
    cfg, curated, folder = trained
    metrics = checkpoint.metrics(folder)
    assert len(metrics["steps"]) == 2
    assert all(np.isfinite(step["loss"]) for step in metrics["steps"])
    assert set(metrics["parameters"]) == {*ALL.split(), "heads", "denoiser"}
    recall = {(r["query"], r["target"]): r for r in metrics["history"][0]["recall_val"]}
    assert len(recall) == 5 * 4
    # of five materials to validate on, one has no pattern
    for pair, queries, gallery in [(("xrd", "composition"), 4, 5), (("composition", "xrd"), 4, 4)]:
        assert (recall[pair]["n_queries"], recall[pair]["n_gallery"]) == (queries, gallery)
    model, fresh = encode.load(folder), align.build(cfg)
    for name in ("xrd", "composition"):
        before, after = fresh.towers[name].state_dict(), model.towers[name].state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in after)
    n = {"crystal": 24, "text": 11, "image": 24, "xrd": 21, "composition": 24}  # one pair of texts is never trained on
    for name in ALL.split():
        rows, z = tiny.embed(model, name, curated)
        assert z.shape == (len(rows), 8) == (n[name], 8)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert rows.tolist() == list(range(24))
    assert not {1, 17, 23} & set(tiny.embed(model, "xrd", curated)[0].tolist())
    np.testing.assert_array_equal(tiny.embed(model, "crystal", curated)[1], model.embed_structures(curated.structures))


def test_a_set_curated_without_the_patterns_says_so(trained):
    cfg, _, _ = trained
    examples = Examples(cfg, tiny.curated(), align.build(cfg), torch.device("cpu"))
    with pytest.raises(ValueError, match="no xrd in the curated set: name it in `modalities` of the stage `curate`"):
        examples.inputs  # noqa: B018


def test_a_crystal_without_a_pattern_is_counted(nacl, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SCRATCH", tmp_path)
    skipped, materials = Skipped(), tiny.curated().materials[:2]
    tight = (np.array([1]), np.zeros((1, 3)), 0.7 * np.eye(3))  # its first reflection is beyond 90°
    structures = Structures.pack([tight, nacl])
    values = chunked.extra(towers.makers(["crystal", "xrd"]), materials, structures, skipped, workers=1)["xrd"]
    assert np.isnan(values[0]).all()
    np.testing.assert_array_equal(values[1], xrd.curate(*nacl))
    (row,) = skipped.table()
    assert (row["source"], row["reason"], row["rows"]) == ("xrd", "not available", 1)
    assert row["first"][0].startswith("mp-100: ")
    with pytest.raises(ValueError, match="none of 1 materials has xrd; the first: "):
        chunked.extra(towers.makers(["xrd"]), materials[:1], structures.take(np.array([0])), skipped, workers=1)
    with pytest.raises(ValueError, match="no modality 'raman'; one of composition, crystal"):
        towers.makers(["raman"])


def test_validation_shows_what_embed_shows(trained):
    cfg, curated, folder = trained
    model = encode.load(folder)
    examples = Examples(cfg, curated, model.aligned, torch.device("cpu"))
    views = examples.views("val", VALIDATION)
    has = examples.inputs["xrd"].has[views.rows]
    assert views.rows[~has].tolist() == [17]
    rows, z = tiny.embed(model, "xrd", curated, epoch=VALIDATION)
    with torch.no_grad():
        own = model.aligned.encode("xrd", examples.inputs["xrd"](views.rows[has], views.keys[has]))
    np.testing.assert_allclose(own.numpy(), z[rows.searchsorted(views.rows[has])], atol=1e-6)


DENSITY = '''"""Mass density of a crystal: one number."""

import numpy as np
import torch
from torch import nn


class DensityTower(nn.Module):
    """log10 of the density (n, 1) -> (n, 8)."""

    dim = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))

    def forward(self, density):
        return self.layers(density), {}


def build(cfg, *, initialise=True):
    return DensityTower()


def curate(numbers, frac_coords, lattice):
    from pymatgen.core import Structure

    return np.array([Structure(lattice, numbers.tolist(), frac_coords).density], np.float32)


class Inputs:
    def __init__(self, cfg, curated, tower, device):
        self.density = torch.from_numpy(curated.extra("density")).to(device)
        self.has = curated.extra("density")[:, 0] > 4  # g/cm³

    def __call__(self, rows, keys):
        return self.density[rows].log10()
'''
TWO_STEPS = """
from matalign import config, paths, towers
from matalign.data import curate
from matalign.pretrain import train
cfg = config.load("curate", "tiny")
curate.run(cfg, makers=towers.makers(cfg.modalities.split()))
(paths.ROOT / "run").mkdir()
train.fit(config.load("pretrain", "tiny"), paths.ROOT / "run", max_steps=2)
"""


def test_a_new_modality_is_one_file_and_one_entry(tmp_path):
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(paths.SAMPLE)
    parameters = (REPOSITORY / "params.yaml").read_text()
    entry = "modalities: &modalities crystal text image\n"
    assert parameters.count(entry) == 1
    # the two steps of the promise
    (tmp_path / "src" / "matalign" / "towers" / "density.py").write_text(DENSITY)
    (tmp_path / "params.yaml").write_text(parameters.replace(entry, "modalities: &modalities crystal density\n"))

    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "MATALIGN_ROOT": str(tmp_path)}
    env["MATALIGN_SCRATCH"] = str(tmp_path / "scratch")
    ended = subprocess.run(
        [sys.executable, "-c", TWO_STEPS], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    about = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert about["pretrain"]["modalities"] == "crystal density"
    assert set(about["parameters"]) == {"crystal", "density", "heads", "denoiser"}
    steps = [json.loads(line) for line in (tmp_path / "run" / "model" / "log.jsonl").read_text().splitlines()]
    assert sum("step" in line for line in steps) == 2
    curated = dataset.read(tmp_path / "data" / "curated" / "tiny")
    numbers, _, lattice = curated.structures[0]
    assert curated.extra("density").shape == (24, 1)
    grams = sum(float(elements.VALUES[z, MASS_U]) for z in numbers) / 6.02214076e23
    density = grams / (abs(np.linalg.det(lattice)) * 1e-24)
    assert curated.extra("density")[0, 0] == pytest.approx(density, rel=1e-3)
