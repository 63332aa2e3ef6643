import json
import shutil

import numpy as np
import pytest
import tiny
import torch

from matalign import paths
from matalign.data import dataset
from matalign.data.dataset import Structures
from matalign.pretrain import align, encode, train
from matalign.towers import crystal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a model with three modalities, trained for a step."""
    root = tmp_path_factory.mktemp("embed")
    cfg = tiny.pretrain(tiny.bert(root / "bert"), modalities="crystal text image", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "DATA", root / "data")
        patch.setattr(paths, "SCRATCH", root / "scratch")
        dataset.write(paths.curated("tiny"), tiny.curated())
        (root / "run").mkdir()
        yield train.fit(cfg, root / "run", max_steps=1)


@pytest.fixture(scope="module")
def model(folder):
    return encode.load(folder)


def test_embeddings_are_unit_vectors_one_a_row(model):
    structures = tiny.curated().structures
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for z, n in (
        (model.embed_structures(structures), 24),
        (model.embed_texts(["mix the salt", "grind", "mix the salt"]), 3),
        (model.embed_images(images), 3),
    ):
        assert z.shape == (n, 8)
        assert z.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert model.crystal_features(structures).shape == (24, 8)


def test_embedding_does_not_depend_on_the_batch(model, monkeypatch):
    structures = tiny.curated().structures
    together = model.embed_structures(structures)
    monkeypatch.setattr(encode, "ROWS", 5)
    np.testing.assert_allclose(model.embed_structures(structures), together, atol=1e-6)
    backwards = model.embed_structures(structures.take(np.arange(24)[::-1]))
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_features_are_the_towers_before_the_head(model):
    structures = tiny.curated().structures
    batch = model.graphs(structures).batch(torch.arange(24))
    with torch.no_grad():
        pooled, _ = model.towers["crystal"](batch)
        z = torch.nn.functional.normalize(model.aligned.heads["crystal"](pooled), dim=1)
    np.testing.assert_array_equal(model.crystal_features(structures), pooled.numpy())
    np.testing.assert_allclose(model.embed_structures(structures), z.numpy(), atol=1e-6)


def test_readout_has_the_pooled_features_among_those_of_all_layers(model):
    """Of one layer, with the elements before it and the last features after: three of width 8, three statistics."""
    made = encode.encoded(model, tiny.curated(), modality=crystal.READOUT)
    assert made["pooled"].shape == (24, 3 * 3 * 8)
    np.testing.assert_allclose(
        made["pooled"][:, 16:24], model.crystal_features(tiny.curated().structures), rtol=1e-5, atol=1e-6
    )


def test_loaded_weights_are_the_trained_ones(folder, model):
    fresh = align.build(model.config)
    assert not torch.equal(fresh.heads["crystal"][1].weight, model.aligned.heads["crystal"][1].weight)
    assert model.aligned.training is False
    counts = json.loads((folder / "config.json").read_text())["parameters"]
    assert {name: n for name, n in counts.items() if name != "denoiser"} == model.aligned.parameter_counts()


def test_a_part_of_the_towers_is_loaded_alone(folder, model):
    part = encode.load(folder, modalities=["crystal"])
    assert part.aligned.modalities == ["crystal"]
    whole = model.aligned.weights()
    assert all(torch.equal(weight, whole[name]) for name, weight in part.aligned.weights().items())
    with pytest.raises(ValueError, match="has no text tower; it was trained on crystal text"):
        part.embed_texts(["a"])


def test_nothing_in_nothing_out(model):
    assert model.embed_structures(Structures.pack([])).shape == (0, 8)
    assert model.embed_texts([]).shape == (0, 8)


def test_profile_names_the_folder_in_results(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model in .*results/tiny/pretrained"):
        encode.load("tiny")
    shutil.copytree(folder, paths.results("tiny") / "pretrained")
    assert encode.load("tiny").config.profile == "tiny"


def test_another_text_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    about = json.loads((folder / "config.json").read_text())
    about["text_model_hash"] = "0" * 32
    (tmp_path / "model" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"has hash [0-9a-f]{32}; .*was trained with 0{32}"):
        encode.load(tmp_path / "model")


def test_a_missing_file_of_weights_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "crystal.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights are missing or unknown, first 'towers.crystal"):
        encode.load(tmp_path / "model")


def test_modality_the_model_lacks(model, monkeypatch):
    monkeypatch.delitem(model.aligned.towers._modules, "image")
    with pytest.raises(ValueError, match="no image tower"):
        model.embed_images(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("k", [1, 4, 37])
def test_nearest_is_a_full_sort(monkeypatch, k):
    """Small whole numbers: products are exact and many are equal, within a chunk and between chunks."""
    rng = np.random.default_rng(k)
    queries, vectors = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (9, 37))
    product = queries @ vectors.T
    expected = np.argsort(-product, axis=1, kind="stable")[:, :k]
    assert (np.diff(np.sort(product, axis=1)) == 0).any(1).all()
    for chunk in (5, 36, 4096):
        monkeypatch.setattr(encode, "CHUNK", chunk)
        index, similarity = encode.nearest(queries, vectors, k)
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(similarity, np.take_along_axis(product, expected, 1))


def test_nearest_of_too_few_and_for_nobody():
    with pytest.raises(ValueError, match="between 1 and the 3 vectors, got 4"):
        encode.nearest(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 4)
    assert encode.nearest(np.ones((0, 2), np.float32), np.ones((3, 2), np.float32), 2)[0].shape == (0, 2)
