"""Crystal towers: descriptors against an explicit loop over angles, invariances, continuity."""

import dataclasses

import jaxtyping
import numpy as np
import pytest
import torch
from numpy.polynomial import legendre
from scipy.spatial.transform import Rotation

from matalign.data.dataset import Structures
from matalign.pretrain.align import Denoiser
from matalign.towers.crystal import (
    ILD,
    CGConvTower,
    CrystalTower,
    compiled_layer,
    corrupt,
    descriptors,
    envelope,
    harmonics,
    statistics,
    table,
)
from matalign.views.graphs import GraphStore

NAMES = ["nacl", "si", "srtio3", "molecule", "one_atom", "isolated", "skewed", "large"]


def batch_of(*crystals, cutoff_A=6.0, neighbours=16):
    store = GraphStore.build(Structures.pack(list(crystals)), cutoff_A=cutoff_A, neighbours=neighbours)
    return store.batch(torch.arange(len(crystals)))


def double(batch):
    return dataclasses.replace(batch, edge_vec=batch.edge_vec.double(), edge_cutoff=batch.edge_cutoff.double())


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return CrystalTower(width=32, layers=3, order=3, cutoff_A=6.0).eval()


@pytest.fixture(scope="module")
def cgconv():
    torch.manual_seed(0)
    return CGConvTower(width=32, layers=3, cutoff_A=6.0).eval()


def assert_close(a, b, rtol=1e-5):
    """Relative to the size of the features, as float32 sums of another order differ."""
    assert (a - b).abs().max() <= rtol * b.abs().max()


def test_harmonics_obey_the_addition_theorem():
    a, b = (torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1) for _ in range(2))
    cosine = (a * b).sum(1).numpy()
    products = harmonics(a, 3) * harmonics(b, 3)
    for order in range(4):
        polynomial = legendre.legval(cosine, np.eye(4)[order])
        np.testing.assert_allclose(products[:, order**2 : (order + 1) ** 2].sum(1).numpy(), polynomial, atol=1e-14)


def test_harmonics_refuse_an_order_without_closed_form():
    with pytest.raises(ValueError, match="order must be 0 to 3, got 4"):
        harmonics(torch.zeros(1, 3), 4)


@pytest.mark.parametrize("name", ["srtio3", "si", "one_atom", "skewed"])
def test_descriptors_equal_an_explicit_sum_over_angles(crystals, name):
    """`descriptors`, and W·ILD as the tower computes it, against a loop over every pair of edges, float64."""
    torch.manual_seed(0)
    batch = double(batch_of(crystals[name]))
    neighbour, vec = table(batch)
    d = vec.norm(dim=-1)
    weight = envelope(d / batch.edge_cutoff[:, None])[..., None]
    x, radial = torch.randn(len(batch.z), 8, dtype=torch.float64), torch.randn(*d.shape, 5, dtype=torch.float64)
    ild = ILD(8, edge_dim=5, order=3, channels=6, out_dim=7).double()
    amplitude = ild.amplitude(x, neighbour, radial, weight)
    sphere = harmonics(vec / d[..., None], 3)

    n, k, channels = amplitude.shape
    count = torch.bincount(batch.edge_index[1], minlength=n)
    expected = np.zeros((n, k, 4, channels))
    unit, a = (vec / d[..., None]).numpy(), amplitude.detach().numpy()
    for v in range(n):
        for u in range(k):
            for w in range(count[v]):
                cosine = float(unit[v, u] @ unit[v, w])
                for order in range(4):
                    expected[v, u, order] += a[v, w] * legendre.legval(cosine, np.eye(4)[order])
    found = descriptors(amplitude, sphere)
    np.testing.assert_allclose(found.detach().numpy(), expected.reshape(n, k, -1), rtol=0, atol=1e-10)
    applied = found @ ild.weight.reshape(-1, 7)
    torch.testing.assert_close(ild(x, neighbour, radial, weight, sphere), applied, rtol=0, atol=1e-10)


def transforms(numbers, frac, lattice):
    """The same crystal, written otherwise."""
    rng = np.random.default_rng(3)
    rotation = Rotation.random(random_state=1).as_matrix()
    order = rng.permutation(len(numbers))
    change = np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]])  # integer, determinant one
    double_cell = np.concatenate([frac / [2, 1, 1], frac / [2, 1, 1] + [0.5, 0, 0]])
    return {
        "rotation": (numbers, frac, lattice @ rotation.T),
        "reflection": (numbers, frac, lattice * [1, 1, -1]),
        "translation": (numbers, frac + rng.random(3), lattice),
        "images": (numbers, frac + rng.integers(-3, 4, frac.shape), lattice),
        "order of atoms": (numbers[order], frac[order], lattice),
        "choice of cell": (numbers, frac @ np.linalg.inv(change), change @ lattice),
        "supercell": (np.tile(numbers, 2), double_cell, lattice * [[2], [1], [1]]),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tower", "cgconv"])
def test_a_crystals_features_do_not_depend_on_how_it_is_written(crystals, name, kind, request):
    model = request.getfixturevalue(kind)
    expected = model(batch_of(crystals[name]))[0]
    assert torch.isfinite(expected).all()
    for how, crystal in transforms(*crystals[name]).items():
        found = model(batch_of(crystal))[0]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), how


def test_atoms_follow_a_permutation(srtio3, tower):
    order = torch.tensor([3, 1, 4, 0, 2])
    numbers, frac, lattice = srtio3
    permuted = tower(batch_of((numbers[order], frac[order], lattice)))[1]["atoms"]
    assert_close(permuted, tower(batch_of(srtio3))[1]["atoms"][order])


@pytest.mark.parametrize("kind", ["tower", "cgconv"])
def test_a_crystal_is_the_same_alone_and_in_company(crystals, kind, request):
    model = request.getfixturevalue(kind)
    together, out = model(batch_of(*crystals.values()))
    assert together.shape == (len(crystals), model.dim)
    assert len(out["atoms"]) == sum(len(c[0]) for c in crystals.values())
    assert_close(together, torch.cat([model(batch_of(c))[0] for c in crystals.values()]))


def test_readout_by_hand(nacl, crystals):
    """Two atoms and one, two layers: means, then standard deviations, then maxima."""
    batch = batch_of(nacl, crystals["one_atom"])
    assert batch.ptr.tolist() == [0, 2, 3]
    layers = [torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, -7.0]]), torch.tensor([[0.0], [4.0], [2.0]])]
    want = [[2.0, 4.0, 2.0, 1.0, 2.0, 2.0, 3.0, 6.0, 4.0], [5.0, -7.0, 2.0, 0.0, 0.0, 0.0, 5.0, -7.0, 2.0]]
    np.testing.assert_allclose(statistics(layers, batch), want)


@pytest.mark.parametrize("kind", ["tower", "cgconv"])
def test_layers_are_from_the_elements_to_the_atoms_that_are_pooled(crystals, kind, request):
    model, batch = request.getfixturevalue(kind), batch_of(*crystals.values())
    pooled, out = model(batch)
    assert len(out["layers"]) == 5
    torch.testing.assert_close(out["layers"][0], model.element(batch.z))
    mean = statistics(out["layers"], batch)[:, : 5 * model.dim]
    torch.testing.assert_close(mean[:, -model.dim :], pooled)


def test_isolated_atoms_alone_are_a_valid_batch(isolated, tower):
    assert torch.isfinite(tower(batch_of(isolated, isolated))[0]).all()


def bent(angle_deg):
    """B–A–B with bonds of 0.5 Å, in a box."""
    half = np.deg2rad(angle_deg / 2)
    sites = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    return np.array([8, 1, 1]), (0.5 * sites + 5) / 10, 10.0 * np.eye(3)


def test_only_the_descriptors_see_angles():
    """Same bonds, another angle: invisible without descriptors, visible with them."""
    torch.manual_seed(0)
    blind, seeing = (CrystalTower(width=16, layers=1, order=order, cutoff_A=0.7) for order in (-1, 2))
    a, b = (batch_of(bent(angle), cutoff_A=0.7) for angle in (100, 150))
    assert len(a.edge_vec) == len(b.edge_vec) == 4  # no B–B edge
    assert_close(blind(a)[0], blind(b)[0], rtol=1e-6)
    assert (seeing(a)[0] - seeing(b)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("cutoff_A", "k"), [(6.0, 2), (2.5, 16)])
def test_nothing_jumps_where_a_neighbour_enters(cutoff_A, k):
    """An atom goes past the rank k + 1, or past the cutoff: the number of edges changes, the features do not jump."""
    torch.manual_seed(0)
    model = CrystalTower(width=16, layers=2, order=3, cutoff_A=cutoff_A).double()

    def at(x):
        sites = np.array([[0, 0, 0], [2.0, 0, 0], [0, 2.2, 0], [0.4, 0.3, x]]) / 15 + 0.2
        return np.array([22, 8, 8, 1]), sites, 15 * np.eye(3)

    positions = np.linspace(1.5, 3.0, 1501)  # steps of 0.001 Å
    batch = double(batch_of(*map(at, positions), cutoff_A=cutoff_A, neighbours=k))
    edges = torch.bincount(batch.batch[batch.edge_index[1]]).numpy()
    features = model(batch)[0].detach().numpy()
    step = np.abs(np.diff(features, axis=0)).max(1)
    assert (np.diff(edges) != 0).sum() >= 2
    assert np.abs(features[-1] - features[0]).max() > 20 * step.max()  # a jump would be of the size of the whole change
    assert step[np.diff(edges) != 0].max() < 2 * step.max()
    assert step.max() < 0.02


def test_envelope_ends_flat():
    x = torch.tensor([0.0, 1 - 1e-3, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    values = envelope(x)
    values.sum().backward()
    np.testing.assert_allclose(values.detach().numpy(), [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), 0, atol=1e-3)


@pytest.mark.parametrize("order", [-1, 0, 3])
def test_every_parameter_learns(crystals, order):
    """Distributed training waits for a gradient of every parameter."""
    torch.manual_seed(0)
    model = CrystalTower(width=16, layers=2, order=order, cutoff_A=6.0)
    model(batch_of(*crystals.values()))[0].square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_gradients_repeat_bit_for_bit(crystals, tower):
    batch = batch_of(*list(crystals.values()) * 5)
    gradients = []
    for _ in range(2):
        tower.zero_grad()
        tower(batch)[0].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tower.parameters()]))
    assert torch.equal(*gradients)


def corrupted(names, crystals, keys, **options):
    options = {"mask_atoms": 0.15, "noise_A": 0.1} | options
    return corrupt(batch_of(*(crystals[name] for name in names)), np.asarray(keys, np.uint64), **options)


def test_corruption_is_the_materials_own_and_moves_every_edge_with_its_atoms(crystals):
    alone = corrupted(["large"], crystals, [7])
    clean = batch_of(crystals["large"])
    after = corrupted(["srtio3", "large"], crystals, [5, 7])  # the draws do not depend on who else is in the batch
    n = len(clean.z)
    for name in ("hidden", "z", "displacement"):
        torch.testing.assert_close(getattr(after, name)[-n:], getattr(alone, name), rtol=0, atol=1e-7)
    assert not torch.equal(alone.hidden, corrupted(["large"], crystals, [8]).hidden)
    neighbour, centre = clean.edge_index
    moved = alone.displacement[neighbour] - alone.displacement[centre]
    torch.testing.assert_close(alone.batch.edge_vec, clean.edge_vec + moved, rtol=0, atol=1e-6)
    assert torch.equal(alone.batch.z, torch.where(alone.hidden, 0, clean.z))
    assert torch.equal(alone.z, clean.z)
    torch.testing.assert_close(alone.displacement.mean(0), torch.zeros(3), rtol=0, atol=1e-7)


def test_corruption_has_the_share_and_the_spread_it_was_asked_for(crystals):
    made = corrupted(["large"] * 40, crystals, range(40), mask_atoms=0.3, noise_A=0.05)
    atoms = len(made.z)
    assert abs(made.hidden.float().mean() - 0.3) < 4 * (0.3 * 0.7 / atoms) ** 0.5
    assert abs(made.displacement.std() / 0.05 - 1) < 4 / (6 * atoms) ** 0.5 + 1 / len(crystals["large"][0])


def test_denoiser_does_not_see_a_rotation_and_learns_what_was_done(tower, crystals):
    torch.manual_seed(0)
    denoiser = Denoiser(32, cutoff_A=6.0, noise_A=0.1)
    made = corrupted(["srtio3", "large"], crystals, [1, 2])
    turn = torch.from_numpy(Rotation.random(random_state=0).as_matrix()).float()
    batch = dataclasses.replace(made.batch, edge_vec=made.batch.edge_vec @ turn.T)
    turned = made._replace(batch=batch, displacement=made.displacement @ turn.T)
    loss, again = (denoiser(tower(m.batch)[1]["atoms"], m) for m in (made, turned))
    assert loss.shape == (2,)
    torch.testing.assert_close(loss, again, rtol=1e-4, atol=1e-5)
    atoms = tower(made.batch)[1]["atoms"].detach()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        denoiser(atoms, made).sum().backward()
        optimizer.step()
    assert denoiser(atoms, made).sum() < 0.3 * loss.sum()


def test_denoiser_counts_hidden_atoms_alone(tower, crystals):
    denoiser = Denoiser(32, cutoff_A=6.0, noise_A=0.1)
    made = corrupted(["srtio3"], crystals, [3], mask_atoms=0.5)
    atoms = tower(made.batch)[1]["atoms"]
    with torch.no_grad():
        by_hand = torch.nn.functional.cross_entropy(denoiser.element(atoms[made.hidden]), made.z[made.hidden])
        nothing = made._replace(hidden=torch.zeros_like(made.hidden))
        assert 0 < made.hidden.sum() < len(made.z)
        torch.testing.assert_close(denoiser(atoms, made)[0] - denoiser(atoms, nothing)[0], by_hand)


def test_a_compiled_tower_says_what_it_needs(crystals, monkeypatch):
    model = CrystalTower(width=16, layers=1, order=2, cutoff_A=6.0)
    model.compiled = True
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled_layer.cache_clear()
    batch = batch_of(*crystals.values())
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        model(batch)
    model.eval()(batch)  # predictions are not compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile, of its own imports and of what it looks at
def test_a_compiled_tower_learns_what_the_other_does(crystals, monkeypatch):
    """Within bfloat16's 8 bits while it trains, the very same when it predicts; batches of other sizes need no more."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a check in every function stops the compiler
    torch.manual_seed(0)
    model = CrystalTower(width=32, layers=2, order=3, cutoff_A=6.0)
    for batch in (batch_of(*crystals.values()), batch_of(*[crystals["srtio3"]] * 3)):
        found = {}
        for model.compiled in (False, True):
            model.train().zero_grad()
            pooled, _ = model(batch)
            pooled.square().sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            found[model.compiled] = pooled.detach(), gradient, model.eval()(batch)[0].detach()
        assert pooled.dtype == torch.float32
        for plain, fast in list(zip(*found.values(), strict=True))[:2]:
            assert not torch.equal(plain, fast)
            assert (plain - fast).norm() < 0.02 * plain.norm()
        assert torch.equal(found[False][2], found[True][2])
