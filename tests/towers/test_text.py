import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from matalign import paths
from matalign.towers import text
from matalign.towers.text import TextTower

TEXTS = ["mix the salt", "fire at 900 in air", "grind the salt " * 9, "fire at 900 in air"]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.bert(tmp_path_factory.mktemp("text") / "bert"))


def test_forward_pools_the_first_token(bert):
    tower = TextTower(bert)
    pooled, out = tower(TEXTS[:2])
    assert tower.dim == 16
    assert pooled.shape == (2, 16)
    assert torch.equal(pooled, out["tokens"][:, 0])
    assert out["mask"].sum(1).tolist() == [5, 5 + 4]  # [CLS] … [SEP]; 900 is three word pieces
    tokens = tower.tokenizer(TEXTS[1], return_tensors="pt")
    expected = tower.encoder(**tokens).last_hidden_state[0, 0]
    torch.testing.assert_close(pooled[1], expected, rtol=1e-5, atol=1e-6)


def test_features_are_those_of_forward(bert):
    tower = TextTower(bert)
    features = tower.features(TEXTS)
    torch.testing.assert_close(features, torch.cat([tower([t])[0] for t in TEXTS]).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(tower(features)[0], features)
    assert tower.features([]).shape == (0, 16)


def test_a_features_bits_do_not_depend_on_the_texts_beside_it(bert, tmp_path, monkeypatch):
    tower = TextTower(bert)
    alone = tower.features(TEXTS[1:2])
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "other")
    crowd = [f"fire at {i} in air" for i in range(100, 180)]
    assert torch.equal(tower.features([*crowd, *TEXTS])[81], alone[0])


def test_each_distinct_text_is_encoded_once_and_then_read_from_disk(bert, monkeypatch):
    tower, seen = TextTower(bert), []
    encode = TextTower._encode
    monkeypatch.setattr(TextTower, "_encode", lambda self, batch: seen.extend(batch) or encode(self, batch))
    first = tower.features(TEXTS)
    assert sorted(seen) == sorted(set(TEXTS))
    seen.clear()
    assert torch.equal(TextTower(bert).features([*TEXTS, "grind"])[:4], first)
    assert seen == ["grind"]


def test_another_models_features_are_not_taken(bert, tmp_path):
    torch.manual_seed(5)
    other = tiny.bert(tmp_path / "bert")
    tower = TextTower(bert)
    tower.encoder.encoder.layer[0].output.dense.weight.data.mul_(2)
    tower.encoder.save_pretrained(other)
    assert TextTower(str(other)).fingerprint != TextTower(bert).fingerprint
    assert not torch.allclose(TextTower(str(other)).features(TEXTS), TextTower(bert).features(TEXTS), atol=1e-3)


def test_long_texts_are_cut(bert):
    tower = TextTower(bert)
    long = "mix the salt " * 100
    assert tower([long])[1]["tokens"].shape[1] == text.MAX_TOKENS
    assert torch.isfinite(tower.features([long])).all()


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_top_layers_are_trained_and_no_others(bert, k):
    tower = TextTower(bert, unfreeze_layers=k).train()
    layers = tower.encoder.encoder.layer
    assert [all(p.requires_grad for p in layer.parameters()) for layer in layers] == [i >= 2 - k for i in range(2)]
    assert not any(p.requires_grad for p in tower.encoder.embeddings.parameters())
    pooled = tower(TEXTS)[0]
    assert torch.equal(pooled, tower(TEXTS)[0])  # no dropout
    if k:
        pooled.square().sum().backward()
        assert layers[1].output.dense.weight.grad.abs().max() > 0
        assert (layers[0].output.dense.weight.grad is None) == (k == 1)


def test_trained_layers_are_not_read_from_the_cache(bert):
    TextTower(bert).features(TEXTS)
    tower = TextTower(bert, unfreeze_layers=1)
    tower.encoder.encoder.layer[1].output.dense.weight.data.mul_(2)
    torch.testing.assert_close(tower.features(TEXTS), torch.cat([tower([t])[0] for t in TEXTS]).detach())


def test_too_many_layers(bert):
    with pytest.raises(ValueError, match=r"0 to 2 for .*, got 3"):
        TextTower(bert, unfreeze_layers=3)


def test_minilm_comes_from_the_installed_package_and_knows_what_words_mean(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    tower = TextTower("minilm")
    assert tower.dim == 384
    z = F.normalize(
        tower.features(["heated in air for 3 h", "calcined in air for three hours", "quarterly earnings"]), dim=1
    )
    assert z[0] @ z[1] > z[0] @ z[2] + 0.1


# Layouts in which models are published


def as_first_published(source, target):
    """As BERT and SciBERT are: config without a type, vocabulary, pickled weights of the model that was pretrained."""
    target.mkdir()
    settings = json.loads((source / "config.json").read_text())
    settings.pop("model_type")
    (target / "config.json").write_text(json.dumps(settings))
    (target / "vocab.txt").write_text((source / "vocab.txt").read_text())
    weights = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        weights[f"bert.{old}"] = tensor
    weights["cls.predictions.bias"] = torch.zeros(3)
    torch.save(weights, target / "pytorch_model.bin")
    return target


def test_a_model_of_pickled_weights_gives_what_its_safetensors_give(bert, tmp_path):
    published = as_first_published(Path(bert), tmp_path / "published")
    expected = TextTower(bert).features(TEXTS)
    torch.testing.assert_close(TextTower(str(published)).features(TEXTS), expected, rtol=0, atol=0)


def test_a_pickle_that_would_run_code_is_refused(bert, tmp_path):
    published = as_first_published(Path(bert), tmp_path / "published")
    torch.save({"run": Path("x")}, published / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        TextTower(str(published))
    (published / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors, or pytorch_model\.bin"):
        TextTower(str(published))


def test_code_that_comes_with_a_model_is_not_run(bert, tmp_path):
    folder, mark = shutil.copytree(bert, tmp_path / "own"), tmp_path / "it ran"
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n")
    settings = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": own}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        TextTower(str(folder))
    assert not mark.exists()


def test_a_model_without_some_of_its_weights_is_refused(bert, tmp_path):
    published = as_first_published(Path(bert), tmp_path / "published")
    weights = torch.load(published / "pytorch_model.bin", weights_only=True)
    del weights["bert.encoder.layer.1.output.dense.weight"]
    torch.save(weights, published / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"1 weights of the encoder are missing, first encoder\.layer\.1\.output"):
        TextTower(str(published))


@pytest.mark.parametrize(("layout", "cased"), [("bin", True), ("bin", False), ("safetensors", True)])
def test_a_vocabulary_with_capitals_is_not_lower_cased(layout, cased, bert, tmp_path):
    folder = as_first_published(Path(bert), tmp_path / "published") if layout == "bin" else tmp_path / "copy"
    if layout == "safetensors":
        shutil.copytree(bert, folder)
        (folder / "tokenizer_config.json").unlink()
    if cased:
        words = (folder / "vocab.txt").read_text().split()
        words[words.index("##z")] = "TiO"  # one that TEXTS do not need
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokens = TextTower(str(folder)).tokenizer.tokenize("TiO mix")
    assert tokens == (["TiO", "mix"] if cased else ["t", "##i", "##o", "mix"])
