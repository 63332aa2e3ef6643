"""Networks and baselines of the property fits, on small tensors."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from matalign import config, elements
from matalign.data.dataset import Structures
from matalign.quantities import ENERGY
from matalign.tasks.fit import rate
from matalign.tasks.properties import baselines, networks
from matalign.tasks.properties.labels import errors, masked_error
from matalign.towers.crystal import CrystalTower, Regressor
from matalign.views.graphs import GraphStore


def test_composition_features_by_hand():
    """SrTiO3 and its double cell: fractions, and the five statistics of the electronegativity."""
    numbers, frac, lattice = np.array([38, 22, 8, 8, 8]), np.zeros((5, 3)), np.eye(3)
    structures = Structures.pack([(numbers, frac, lattice), (np.tile(numbers, 2), np.tile(frac, (2, 1)), lattice)])
    x = baselines.composition_features(structures)
    np.testing.assert_allclose(x[0], x[1])
    assert x[0, [8, 22, 38]].tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert x[0, :119].sum() == pytest.approx(1)
    k = elements.PROPERTIES.index("electronegativity")
    mean = (0.95 + 1.54 + 3 * 3.44) / 5
    deviation = (abs(0.95 - mean) + abs(1.54 - mean) + 3 * abs(3.44 - mean)) / 5
    found = x[0, 119:].reshape(5, len(elements.PROPERTIES))[:, k]
    np.testing.assert_allclose(found, [mean, deviation, 0.95, 3.44, 2.49])


def test_masked_error_by_hand():
    nan = float("nan")
    true = torch.tensor([[1.0, nan, nan], [3.0, 2.0, nan]])
    predicted = torch.tensor([[2.0, 9.0, 1.0], [3.0, 5.0, 1.0]], requires_grad=True)
    error = masked_error(predicted, true)
    assert error.item() == pytest.approx((0.5 + 3.0) / 2)
    error.backward()
    assert predicted.grad.tolist() == [[0.25, 0.0, 0.0], [0.0, 0.5, 0.0]]


def test_the_learning_rate_makes_one_cycle():
    rates = np.array([rate(step, 1000) for step in range(1000)])
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[200] == pytest.approx(1)
    assert (np.diff(rates[:201]) > 0).all()
    assert (np.diff(rates[200:]) < 0).all()
    assert 0 < rates[-1] < 1e-4


def test_an_epoch_shows_every_material_once_and_each_epoch_another_order():
    train = np.arange(100, 140)
    epochs = [[networks.draw(train, 4 * e + i, batch_size=10, seed=1).tolist() for i in range(4)] for e in range(2)]
    assert [sorted(itertools.chain(*epoch)) for epoch in epochs] == [list(train)] * 2
    assert epochs[0] != epochs[1]
    assert networks.draw(train, 5, batch_size=64, seed=1).shape == (40,)


def test_error_with_a_class_and_weights_by_hand():
    """|2 − 1| = 1 with weight 1; log(1 + e^−0.5) and log(1 + e^0.5) for a right and a wrong logit, weight 0.1."""
    true = torch.tensor([[1.0, 1.0], [float("nan"), 0.0], [float("nan"), float("nan")]])
    predicted = torch.tensor([[2.0, 0.5], [7.0, 0.5], [7.0, 7.0]], requires_grad=True)
    options = {"weights": torch.tensor([1.0, 0.1]), "classes": torch.tensor([False, True])}
    error = masked_error(predicted, true, **options)
    entropy = (np.log1p(np.exp(-0.5)) + np.log1p(np.exp(0.5))) / 2
    assert error.item() == pytest.approx((1 + 0.1 * entropy) / 1.1)
    error.backward()
    sigmoid = 1 / (1 + np.exp(-0.5))
    want = [[1 / 1.1, 0.1 / 1.1 * (sigmoid - 1) / 2], [0, 0.1 / 1.1 * sigmoid / 2], [0, 0]]
    np.testing.assert_allclose(predicted.grad, want, rtol=1e-5)


def test_errors_of_a_class_and_of_a_number():
    nan = float("nan")
    found = errors(np.array([0.4, 0.6, 0.5, 0.9]), np.array([0.0, 0.0, 1.0, nan]), "is_metal")
    np.testing.assert_array_equal(found, [0, 1, 1, nan])
    found = errors(np.array([0.4, 0.6]), np.array([0.0, nan]), "band_gap_eV")
    np.testing.assert_array_equal(found, [0.4, nan])


@pytest.fixture
def parts():
    return {"train": np.arange(60), "val": np.arange(60, 80), "test": np.arange(80, 120)}


def test_ridge_recovers_a_linear_rule_and_a_class(parts):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5))
    y = x @ rng.normal(size=(5, 2)) + 3
    y[:, 1] = y[:, 1] > 3
    y[:7, 0] = np.nan
    out = baselines.each_target(baselines.ridge, x, ["band_gap_eV", "is_metal"], y, parts)
    np.testing.assert_allclose(out["test"][:, 0], y[parts["test"], 0], atol=1e-3)
    assert errors(out["test"][:, 1], y[parts["test"], 1], "is_metal").mean() < 0.15


def test_a_feature_that_nobody_knows_counts_as_its_mean(parts):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 3)), rng.normal(size=(120, 1))
    x[90, 1] = np.nan
    filled = x.copy()
    filled[90, 1] = x[:60, 1].mean()
    one, other = (baselines.each_target(baselines.ridge, values, ["band_gap_eV"], y, parts) for values in (x, filled))
    np.testing.assert_allclose(one["test"], other["test"], atol=1e-9)
    x[3, 1] = np.nan
    found = baselines.each_target(baselines.ridge, x, ["band_gap_eV"], y, parts)
    np.testing.assert_allclose(found["test"], one["test"], atol=0.3)


def test_ridge_with_one_penalty_is_scikit_learns(parts, monkeypatch):
    monkeypatch.setattr(baselines, "PENALTIES", [3.0])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 90)), rng.normal(size=(120, 1))  # more features than materials to train on
    out = baselines.each_target(baselines.ridge, x, ["band_gap_eV"], y, parts)
    reference = make_pipeline(StandardScaler(), Ridge(3.0)).fit(x[parts["train"]], y[parts["train"], 0])
    np.testing.assert_allclose(out["test"][:, 0], reference.predict(x[parts["test"]]), rtol=1e-6)


def test_kernel_ridge_with_all_landmarks_is_scikit_learns(parts, monkeypatch):
    monkeypatch.setattr(baselines, "WIDTHS", [2.0])
    monkeypatch.setattr(baselines, "KERNEL_PENALTIES", [0.1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = np.sin(2 * x[:, :1]) + 1
    out = baselines.each_target(baselines.kernel_ridge, x, ["band_gap_eV"], y, parts)["test"][:, 0]
    scaled = StandardScaler().fit(x[parts["train"]]).transform(x)
    mean = y[parts["train"], 0].mean()
    reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / 32).fit(
        scaled[parts["train"]], y[parts["train"], 0] - mean
    )
    np.testing.assert_allclose(out, reference.predict(scaled[parts["test"]]) + mean, rtol=1e-4)


def test_boosting_learns_a_class_and_bears_one_without_the_other(parts, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 30)
    x = np.random.default_rng(0).normal(size=(120, 3))
    y = (x[:, :1] > 0).astype(float)
    out = baselines.each_target(baselines.boosting, x, ["is_metal"], y, parts)["test"][:, 0]
    assert errors(out, y[parts["test"], 0], "is_metal").mean() < 0.1
    assert ((out >= 0) & (out <= 1)).all()
    y[parts["train"]] = 1
    out = baselines.each_target(baselines.boosting, x, ["is_metal"], y, parts)
    assert (out["test"] == 1).all()


def test_knowing_nothing_is_the_median_and_the_majority(parts):
    y = np.stack([np.arange(120.0), np.arange(120) % 3 == 0, np.arange(120) % 3 > 0], 1)
    out = baselines.each_target(baselines.constant, np.zeros((120, 1)), ["x", "is_metal", "is_metal"], y, parts)
    assert (out["test"] == [29.5, 0, 1]).all()


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.fixture
def store(nacl, srtio3, skewed):
    """Three crystals, and the second with its atoms in another order."""
    numbers, frac, lattice = srtio3
    order = [3, 0, 4, 2, 1]
    crystals = [nacl, srtio3, skewed, (numbers[order], frac[order], lattice)]
    return GraphStore.build(Structures.pack(crystals), cutoff_A=5.0, neighbours=12)


def all_networks(*, dims=(6, 3)):
    """All kinds, with random weights; the others see features of these dimensions."""
    out = []
    for kind in (Regressor, networks.Fusion, networks.CrossAttention):
        torch.manual_seed(0)
        tower = CrystalTower(width=8, layers=1, order=2, cutoff_A=5.0)
        others = () if kind is Regressor else ([torch.randn(9, d) for d in dims],)
        out.append(kind(tower, 2, *others).eval())
    return out


def others(rows, *, tokens=(4, 1), dims=(6, 3)):
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(4, t, d, generator=rng)[rows] for t, d in zip(tokens, dims)]


@torch.no_grad()
def test_no_network_depends_on_the_order_of_atoms_or_on_the_other_crystals_of_a_batch(store):
    """In a batch with larger crystals, atoms are padded; another order of the atoms is the same crystal."""
    for model in all_networks():
        seen = [] if isinstance(model, Regressor) else others([1, 1])
        same = model(store.batch(torch.tensor([1, 3])), *seen)
        torch.testing.assert_close(same[0], same[1], rtol=1e-5, atol=1e-5)
        alone = model(store.batch(torch.tensor([0])), *(x[:1] for x in seen))
        beside = model(store.batch(torch.tensor([0, 1])), *seen)
        torch.testing.assert_close(alone[0], beside[0], rtol=1e-5, atol=1e-5)
        assert (beside[0] - beside[1]).abs().max() > 1e-3


@torch.no_grad()
def test_attention_sees_every_token_and_early_fusion_their_mean(store):
    _, fusion, attention = all_networks()
    batch, (image, text) = store.batch(torch.tensor([0, 1])), others([0, 1])
    for model in (fusion, attention):
        for changed in ((image + 1, text), (image, text + 1)):
            assert (model(batch, *changed) - model(batch, image, text)).abs().max() > 1e-4
        # tokens are a set
        torch.testing.assert_close(model(batch, image.flip(1), text), model(batch, image, text))
    blurred = image.mean(1, keepdim=True).expand_as(image)
    torch.testing.assert_close(fusion(batch, blurred, text), fusion(batch, image, text))
    assert (attention(batch, blurred, text) - attention(batch, image, text)).abs().max() > 1e-5


def test_everything_is_trained_end_to_end(store):
    for model in all_networks()[1:]:
        model(store.batch(torch.tensor([0, 1])), *others([0, 1])).square().sum().backward()
        without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert without <= {"attention.in_proj_bias", "tower.readout.0.bias"}, without


def test_other_modalities_are_standardised_on_training():
    pooled = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    project = networks.Projection(pooled, 2)
    torch.nn.init.eye_(project.linear.weight)
    torch.nn.init.zeros_(project.linear.bias)
    np.testing.assert_allclose(project(pooled[:, None])[:, 0].detach(), [[-1, -1], [1, 1]], atol=1e-2)


SCHEDULE = dataclasses.replace(config.load("properties", "tiny"), batch_size=3, learning_rate=0.1, weight_decay=0.0)


class Constant(torch.nn.Module):
    """Two outputs that do not depend on the crystal."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return self.out.expand(len(batch.ptr) - 1, 2)


@pytest.mark.parametrize(("target", "decides"), [(ENERGY, True), ("x", False)])
def test_the_weights_kept_are_the_best_of_the_deciding_target(store, tmp_path, target, decides):
    """Training pulls the first output down and the second up; on validation that suits the first target alone."""
    labels = np.array([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 0.0]])
    parts = {"train": np.arange(3), "val": np.array([3]), "test": np.array([3])}
    options = {"steps": 20, "schedule": SCHEDULE, "seed": 0, "state": tmp_path / "state"}
    options["targets"] = {target: 1e-3, "is_metal": 1.0}
    out = networks.train(Constant(), networks.Inputs(store), labels, parts, **options)["test"][0]
    assert out[0] < 1  # in the target's unit, where it began at the mean
    assert 0.5 < out[1] < 1  # a probability
    assert (out[1] > 0.6) == decides  # trained to the end, or as at the first check


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_tower_moves_at_its_share_of_the_rate(store, tmp_path, share):
    """AdamW's first step is as long as the rate, whatever the gradient."""
    model = all_networks()[0]
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    options = {"steps": 1, "schedule": SCHEDULE, "seed": 0, "state": tmp_path / "state", "tower_rate": share}
    options["targets"] = {"x": 1.0, "y": 1.0}
    labels, parts = np.arange(8.0).reshape(4, 2), {"train": np.arange(3), "val": np.array([3]), "test": np.array([3])}
    networks.train(model, networks.Inputs(store), labels, parts, **options)
    moved = {name: float((w.detach() - before[name]).abs().max()) for name, w in model.named_parameters()}
    head, tower = moved["head.weight"], max(size for name, size in moved.items() if name.startswith("tower."))
    assert head > 1e-3
    assert tower == pytest.approx(share * head, rel=1e-3)
