import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from matalign.towers.image import ImageTower


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A ResNet-50 with statistics that are not those of initialisation, and its state dict on disk."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(net.state_dict(), file)
    return net.eval(), file


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return ImageTower()


@pytest.mark.parametrize(("px", "cells"), [(32, 1), (64, 2), (128, 4)])
def test_shapes(tower, px, cells):
    pooled, out = tower(torch.randn(2, 1, px, px))
    assert pooled.shape == (2, tower.dim) == (2, 2048)
    assert out["map"].shape == (2, 2048, cells, cells)
    torch.testing.assert_close(pooled, out["map"].mean((2, 3)))


@pytest.mark.parametrize(("depth", "parameters"), [(10, 4_899_520), (18, 11_170_240)])
def test_shallow_towers(depth, parameters):
    """Parameters as in the published networks (18 layers: 11.69 M with three channels and 1,000 classes)."""
    tower = ImageTower(depth=depth)
    assert tower(torch.randn(1, 1, 64, 64))[0].shape == (1, tower.dim) == (1, 512)
    assert sum(p.numel() for p in tower.parameters()) == parameters


def test_random_initialisation_takes_group_norm(tower):
    kinds = {type(m) for m in tower.modules()}
    assert nn.GroupNorm in kinds
    assert not kinds & {nn.BatchNorm2d, FrozenBatchNorm2d}
    assert {m.num_groups for m in tower.modules() if isinstance(m, nn.GroupNorm)} == {32}
    assert tower.initialisation == "random, GroupNorm(32)"


def test_an_image_is_encoded_alike_in_any_batch(tower):
    images = torch.randn(3, 1, 32, 32)
    tower.train()
    torch.testing.assert_close(tower(images)[0][1:2], tower(images[1:2])[0], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(tower):
    tower.zero_grad()
    tower(torch.randn(2, 1, 32, 32))[0].square().sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


def test_loaded_weights_give_the_network_that_was_saved(pretrained):
    net, file = pretrained
    tower = ImageTower(weights=str(file))
    assert tower.initialisation == "resnet50.safetensors, frozen batch statistics"
    kinds = {type(m) for m in tower.modules()}
    assert FrozenBatchNorm2d in kinds
    assert not kinds & {nn.BatchNorm2d, nn.GroupNorm}

    images = torch.randn(2, 1, 64, 64)
    net.fc = nn.Identity()
    tower.train()  # statistics stay frozen
    with torch.no_grad():  # a grey image in three channels
        torch.testing.assert_close(tower(images)[0], net(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_every_key_of_the_file_is_used(pretrained):
    _, file = pretrained
    tower = ImageTower(weights=str(file))
    ours = {k.removeprefix("resnet."): v for k, v in tower.state_dict().items()}
    theirs = {k: v for k, v in load_file(file).items() if not k.startswith("fc.") and "num_batches" not in k}
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"conv1.weight"}:
        assert torch.equal(ours[key], theirs[key]), key
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"].sum(1, keepdim=True))


def test_a_saved_tower_loads_without_the_original_file(pretrained):
    _, file = pretrained
    tower = ImageTower(weights=str(file))
    again = ImageTower(frozen_statistics=True)
    again.load_state_dict(tower.state_dict())
    images = torch.randn(1, 1, 32, 32)
    assert torch.equal(again(images)[0], tower(images)[0])


def test_wrong_weights_are_refused(tmp_path, pretrained):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        ImageTower(weights=str(tmp_path / "nowhere.safetensors"))
    state = load_file(pretrained[1])
    del state["layer3.2.bn1.running_var"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"1 parameters missing .*layer3\.2\.bn1\.running_var"):
        ImageTower(weights=str(tmp_path / "short.safetensors"))
    save_file({**load_file(pretrained[1]), "head.weight": torch.zeros(1)}, tmp_path / "long.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown .*head\.weight"):
        ImageTower(weights=str(tmp_path / "long.safetensors"))
