"""How far crystals are from training, and what predictions say of it."""

import json

import numpy as np
import pandas as pd
import published
import pytest
import tiny

import matalign
from matalign.data.structures import Structures
from matalign.release import build, depth
from matalign.release.depth import STRANGE, UNLIKE, Depth
from matalign.towers import crystal

HALITE = np.array([[0, 0, 0], [0.5] * 3])


def salts(*cells: tuple[int, int, float]) -> Structures:
    """Rock salts of two elements and an edge, Å: (a³ / 8) Å³ an atom."""
    return Structures.pack([(np.array(cell[:2]), HALITE, tiny.FCC * cell[2]) for cell in cells])


TRAINED = salts(*((11, 17, 5.9 + 0.04 * i) for i in range(6)))  # NaCl, 25.7 to 28.5 Å³ an atom
FEATURES = np.array([[0, 0], [2, 0], [0, 2], [2, 2], [1, 1], [1, 1]], np.float32)


ERRORS = np.array([[1], [2], [3], [np.nan], [4], [9]], np.float64)  # the mean stands for what is not known: 2.5


@pytest.fixture(scope="module")
def known():
    return Depth.fit(FEATURES, ERRORS, TRAINED, train=np.arange(5), val=np.array([5]))


def test_distance_is_the_mean_to_the_five_nearest_over_their_deviations(known):
    std = np.std([0, 2, 0, 2, 1])  # of either feature
    asked = np.array([[1, 1], [-3, 0]], np.float32)
    # four at √2 and one at nil; (0,0), (2,0), (0,2), (2,2), (1,1) from (−3, 0)
    expected = np.array([4 * 2**0.5, 3 + 5 + 13**0.5 + 29**0.5 + 17**0.5]) / 5 / std
    distance, errors = known.around(asked)
    np.testing.assert_allclose(distance, expected, rtol=0.01)  # int8
    np.testing.assert_allclose(known.reach, expected[0], rtol=0.01)  # validation is the middle
    np.testing.assert_allclose(errors, 2.5)  # of five in all


def test_the_error_nearby_is_a_mean_over_neighbours_of_means_over_neighbours():
    """Two clusters of five on a line: errors 1 … 5 and 11 … 15; no single error is kept."""
    features = np.repeat([[0.0], [10.0]], 5, 0).astype(np.float32) + np.tile(np.arange(5) / 10, 2)[:, None]
    errors = np.concatenate([np.arange(1, 6), np.arange(11, 16)])[:, None].astype(float)
    found = Depth.fit(
        features.astype(np.float32), errors, salts(*((11, 17, 6.0),) * 10), train=np.arange(10), val=np.arange(10)
    )
    np.testing.assert_allclose(found.errors[:, 0], [3] * 5 + [13] * 5)
    np.testing.assert_allclose(found.around(np.array([[-1], [11]], np.float32))[1][:, 0], [3, 13])


def test_reasons_and_what_counts_as_far(known):
    crystals = salts((11, 17, 6.0), (11, 36, 6.0), (11, 17, 9.0), (11, 17, 6.0))
    middle, outside = FEATURES[4], np.array([9, 9], np.float32)
    found, reasons = known(np.stack([middle, middle, middle, outside]), crystals)
    assert reasons == [[], ["hardly any training with Kr"], [STRANGE], [UNLIKE]]
    distance, farthest = found[0].distance, known.reach[1].item()
    np.testing.assert_allclose(distance[:3], farthest)
    assert distance[3] > 5 * farthest


def test_a_reason_of_some_targets_names_them():
    both, one = ("energy", "gap"), ("modulus",)
    told = depth.warnings({both: [["a"], [], ["b"]], one: [["a", "c"], [], []]})
    assert told == ["a; modulus: c", "", "energy, gap: b"]


def test_it_is_written_and_read(known, tmp_path):
    assert depth.write(tmp_path, [known, known]) == [depth.FILE]
    found = depth.read(tmp_path)
    assert len(found) == 2
    asked = np.array([[1, 1], [-3, 0]], np.float32)
    np.testing.assert_allclose(found[1].around(asked)[0], known.around(asked)[0], rtol=1e-6)


# In a released model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("depth")) as made:
        yield made


@pytest.fixture(scope="module")
def model(made):
    return matalign.load(made[0])


def test_an_unseen_element_warns_and_widens_and_the_familiar_does_not(model):
    curated = published.curated()
    row = int(np.flatnonzero((curated.splits.random == "train") & curated.materials.shear_modulus_GPa.notna())[4])
    numbers, frac_coords, lattice = curated.structures[row]
    foreign = np.where(numbers == numbers[0], 92, numbers)
    found = model.predict(Structures.pack([(numbers, frac_coords, lattice), (foreign, frac_coords, lattice)]))
    assert found.warning[0] == ""
    assert "hardly any training with U" in found.warning[1]
    width = found.formation_energy_eV_atom_high - found.formation_energy_eV_atom_low
    ratio = found.bulk_modulus_GPa_high / found.bulk_modulus_GPa_low
    assert width[1] > width[0]
    assert ratio[1] > ratio[0]


def test_intervals_are_as_wide_as_distance_says(model, made):
    curated = published.curated()
    found, about = model.predict(curated.structures), json.loads((made[0] / "config.json").read_text())
    store = crystal.graphs(model.config, curated.structures)
    (said, features), known = model.predictors[0](store), depth.read(made[0])[0]
    found_around, _ = known(features, curated.structures)
    distance, error = found_around[0].distance, found_around[0].error
    row = about["calibrations"]["formation_energy_eV_atom"]
    s = said[:, :, 0].std(0, ddof=1) + (row["floor"] + error) * np.maximum(distance / row["distance"], 0.5)
    half = (found.formation_energy_eV_atom_high - found.formation_energy_eV_atom_low) / 2
    np.testing.assert_allclose(half, row["factor"] * s, rtol=1e-6)


def test_what_is_warned_of_is_measured(made, model):
    curated = published.curated()
    _, features = model.predictors[0](crystal.graphs(model.config, curated.structures))
    _, reasons = depth.read(made[0])[0](features, curated.structures)
    warned = np.array([bool(each) for each in reasons]) & (curated.splits.random == "test").to_numpy()
    assert warned.any()
    table = pd.DataFrame(made[1]["coverage"])
    rows = table[(table.materials == build.WARNED) & (table.target == "formation_energy_eV_atom")]
    assert set(rows.n_test) == {warned.sum()}
    found, true = model.predict(curated.structures), curated.materials.formation_energy_eV_atom
    held = (found.formation_energy_eV_atom_low <= true) & (true <= found.formation_energy_eV_atom_high)
    assert rows[rows.nominal == 0.9].value.item() == pytest.approx(held[warned].mean())
    half = (found.formation_energy_eV_atom_high - found.formation_energy_eV_atom_low)[warned].mean() / 2
    assert rows[rows.nominal == 0.9].half_width_mean.item() == pytest.approx(half)
