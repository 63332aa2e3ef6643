import dataclasses

import pytest
import tiny
import torch
from torch import nn

from matalign.pretrain import align
from matalign.pretrain.align import AlignModel


class Plain(nn.Module):
    """A tower for vectors."""

    dim = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 6)

    def forward(self, inputs):
        return self.layer(inputs), {}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AlignModel({m: Plain() for m in ("a", "b", "c", "d")}, embed_dim=4, temperature=0.07)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("align") / "bert")


def test_any_modality_may_be_missing(model):
    present = {
        "a": torch.tensor([True, True, True]),
        "b": torch.tensor([False, True, False]),
        "c": torch.tensor([True, False, True]),
        "d": torch.zeros(3, dtype=torch.bool),
    }
    x = torch.randn(3, 3)
    z = model({"a": x, "b": x[1:2], "c": x[[0, 2]]}, present)  # no input for d
    for m, has in present.items():
        torch.testing.assert_close(z[m].norm(dim=1), has.float())
        torch.testing.assert_close(z[m][has], model.encode(m, x)[has])
    sum(v.sum() for v in z.values()).backward()
    assert all(p.grad is None for p in model.towers["d"].parameters())
    assert all(p.grad is not None for p in model.heads["c"].parameters())


def test_temperature(model):
    assert model.temperature == pytest.approx(0.07)
    assert model.log_temperature.requires_grad


def test_the_seed_makes_the_weights_whatever_was_drawn_before(bert):
    cfg = tiny.pretrain(bert)
    first = align.build(cfg).state_dict()
    torch.randn(7)
    again, other = align.build(cfg).state_dict(), align.build(dataclasses.replace(cfg, seed=1)).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["heads.crystal.1.weight"], other["heads.crystal.1.weight"])


@pytest.mark.parametrize("modalities", ["crystal", "crystal crystal", ""])
def test_fewer_than_two_modalities(bert, modalities):
    with pytest.raises(ValueError, match="two or more of composition, crystal, image, profile, text, xrd, each once"):
        align.build(tiny.pretrain(bert, modalities=modalities, auxiliary_weight=0.0))


def test_auxiliary_objective_is_the_crystals(bert):
    assert align.build(tiny.pretrain(bert, modalities="crystal")).denoiser is not None
    assert align.build(tiny.pretrain(bert, auxiliary_weight=0.0)).denoiser is None
    with pytest.raises(ValueError, match="auxiliary_weight 1 needs the modality crystal, got \\['text', 'image'\\]"):
        align.build(tiny.pretrain(bert, modalities="text image"))


def test_unknown_modality_and_tower(bert):
    with pytest.raises(
        ValueError, match="no modality 'spectrum'; one of composition, crystal, image, profile, text, xrd"
    ):
        align.build(tiny.pretrain(bert, modalities="crystal spectrum"))
    with pytest.raises(ValueError, match="ild or cgconv, got 'gat'"):
        align.build(tiny.pretrain(bert, crystal_tower="gat"))


@pytest.mark.parametrize("unfreeze_layers", [0, 1])
def test_saved_weights_are_those_that_training_makes(bert, tmp_path, unfreeze_layers):
    cfg = tiny.pretrain(bert, unfreeze_layers=unfreeze_layers, modalities="crystal text image")
    model = align.build(cfg)
    align.save(model, tmp_path)
    towers = ("crystal", "heads", "image", *(("text",) if unfreeze_layers else ()))
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{tower}.safetensors" for tower in towers]
    text = [name for name in model.weights() if name.startswith("towers.text.")]
    assert all("layer.1." in name for name in text)
    assert len(text) == (16 if unfreeze_layers else 0)  # four attention, two feed-forward, two norms; weight and bias

    other = align.build(dataclasses.replace(cfg, seed=1))
    align.load(other, tmp_path)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_weights_of_another_config(bert, tmp_path):
    align.save(align.build(tiny.pretrain(bert, layers=2)), tmp_path)
    with pytest.raises(ValueError, match=r"weights are missing or unknown, first 'towers.crystal.layers.1"):
        align.load(align.build(tiny.pretrain(bert)), tmp_path)


def test_parameter_counts(bert):
    model = align.build(tiny.pretrain(bert))
    counts = model.parameter_counts()
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters()) - 1  # the temperature
    assert counts["text"] == sum(p.numel() for p in model.towers["text"].parameters())
