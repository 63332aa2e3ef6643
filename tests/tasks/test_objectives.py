"""What variants add to the auxiliary objective, on three crystals whose tokens are random."""

import dataclasses

import numpy as np
import pytest
import torch

from matalign.data.dataset import Structures
from matalign.pretrain.align import Denoiser
from matalign.tasks.ablations.objectives import Attending, Supervised, Tokens
from matalign.towers.crystal import Corrupted, CrystalTower, corrupt
from matalign.views.graphs import GraphStore

SHOWN = torch.tensor([[0, 1, 1, 1, 1], [1, -1, 1, 0, 0], [2, 0, 1, 1, 0]])  # material, text, crystal, text, image


@pytest.fixture
def made(crystals):
    packed = Structures.pack([crystals[name] for name in ("srtio3", "large", "nacl")])
    batch = GraphStore.build(packed, cutoff_A=6.0, neighbours=16).batch(torch.arange(3))
    return corrupt(batch, np.arange(3, dtype=np.uint64), mask_atoms=0.9, noise_A=0.1)


@pytest.fixture
def atoms(made):
    torch.manual_seed(0)
    tower = CrystalTower(width=8, layers=1, order=1, cutoff_A=6.0)
    return tower(made.batch)[1]["atoms"].detach()


@pytest.fixture
def tokens():
    draw = torch.Generator().manual_seed(0)
    text, image = (torch.randn(shape, generator=draw).half() for shape in [(2, 5, 6), (3, 4, 7)])
    return Tokens(text, torch.tensor([3, 5]), image, column=4)


def attending(tokens):
    torch.manual_seed(1)
    return Attending(Denoiser(8, cutoff_A=6.0, noise_A=0.1), 8, tokens)


def changed(tokens, name, where):
    values = getattr(tokens, name).clone()
    values[where] *= -1  # a constant would be lost in normalisation
    return dataclasses.replace(tokens, **{name: values})


def test_elements_are_told_from_what_the_material_shows(made, atoms, tokens):
    assert all(made.hidden[made.batch.batch == i].any() for i in range(3))
    plain = attending(tokens).denoiser(atoms, made)
    loss = attending(tokens)(atoms, made, SHOWN)
    assert (loss != plain).tolist() == [True, False, True]  # the second has neither text nor image

    def moved(name, where):
        return (attending(changed(tokens, name, where))(atoms, made, SHOWN) != loss).tolist()

    assert moved("text", 1) == [True, False, False]
    assert moved("text", 0) == [False, False, True]
    assert moved("text", (0, slice(3, None))) == [False] * 3  # beyond the end of the text
    assert moved("image", 0) == [True, False, False]
    assert moved("image", [1, 2]) == [False] * 3  # not shown
    unseen = attending(dataclasses.replace(tokens, column=None))(atoms, made, SHOWN)
    assert (unseen != loss).tolist() == [True, False, False]
    nothing = torch.tensor([[i, -1, 1, 0, 0] for i in range(3)])
    torch.testing.assert_close(attending(tokens)(atoms, made, nothing), plain, rtol=0, atol=0)


def test_attention_knows_neither_order_nor_neighbours_in_the_batch(made, atoms, tokens):
    loss = attending(tokens)(atoms, made, SHOWN)
    order = torch.tensor([2, 0, 1, 4, 3])  # of the tokens of a text
    mixed = tokens.text.clone()
    mixed[1] = mixed[1, order]
    shuffled = dataclasses.replace(tokens, text=mixed)
    torch.testing.assert_close(attending(shuffled)(atoms, made, SHOWN), loss, rtol=1e-5, atol=1e-6)
    longer = dataclasses.replace(tokens, text=torch.nn.functional.pad(tokens.text, (0, 0, 0, 9), value=7.0))
    torch.testing.assert_close(attending(longer)(atoms, made, SHOWN), loss, rtol=1e-5, atol=1e-6)
    alone, own = one(made, 2)
    torch.testing.assert_close(attending(tokens)(atoms[own], alone, SHOWN[2:]), loss[2:], rtol=1e-5, atol=1e-6)


def one(made, crystal):
    """A crystal of a batch by itself, and which atoms are its."""
    batch, own = made.batch, made.batch.batch == crystal
    first, edge = int(batch.ptr[crystal]), own[batch.edge_index[1]]
    alone = dataclasses.replace(
        batch,
        z=batch.z[own],
        edge_index=batch.edge_index[:, edge] - first,
        edge_vec=batch.edge_vec[edge],
        edge_cutoff=batch.edge_cutoff[own],
        batch=torch.zeros(int(own.sum()), dtype=torch.long),
        ptr=torch.tensor([0, int(own.sum())]),
    )
    return Corrupted(alone, made.hidden[own], made.z[own], made.displacement[own]), own


def test_what_is_added_learns_and_all_of_it_has_a_gradient(made, atoms, tokens):
    for module in (attending(tokens), Supervised(Denoiser(8, cutoff_A=6.0, noise_A=0.1), 8, torch.ones(3, 2))):
        module(atoms, made, SHOWN).sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in module.parameters())
        assert not [name for name in module.state_dict() if "numbers" in name or "tokens" in name]  # no data in weights


def test_known_numbers_are_predicted_and_unknown_ones_left_out(made, atoms):
    numbers = torch.tensor([[1.0, -2.0], [0.5, 0.0], [float("nan"), 3.0]])
    torch.manual_seed(0)
    module = Supervised(Denoiser(8, cutoff_A=6.0, noise_A=0.1), 8, numbers)
    rows = SHOWN[[2, 0, 1]]  # the crystals of the batch are other materials
    added = module(atoms, made, rows) - module.denoiser(atoms, made)
    for i, material in enumerate([2, 0, 1]):
        mean = atoms[made.batch.batch == i].mean(0)
        error = ((module.head(mean) - numbers[material]) ** 2).mean() if material < 2 else torch.zeros(())
        torch.testing.assert_close(added[i], error, rtol=1e-4, atol=1e-5)
    added.sum().backward()
    assert module.head.weight.grad.isfinite().all()
