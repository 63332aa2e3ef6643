import numpy as np
import pytest

from matalign.release import build, predictors
from matalign.release.depth import Around
from matalign.release.predictors import Calibration


def around(distance, error=0.0, holds=()):
    """Distance from training, its error nearby, and by number which rows hold an element."""
    distance = np.asarray(distance, float)
    found = Around(
        distance, np.broadcast_to(np.asarray(error, float), distance.shape), np.zeros((len(distance), 119), bool)
    )
    for z, rows in dict(holds).items():
        found.holds[rows, z] = True
    return found


GROUP = {"formation_energy_eV_atom": 1.0, "is_metal": 0.1}
MODULI = {"bulk_modulus_GPa": 1.0, "shear_modulus_GPa": 1.0}


def row(arm, error, *, targets=GROUP, split="random", percent=100.0, cohort="A"):
    place = {"targets": targets, "arm": arm, "cohort": cohort, "split": split, "label_percent": percent}
    return {**place, "val_error": dict(zip(targets, error))}


def test_the_arm_of_least_validation_error_is_taken():
    rows = [
        row("scratch", (0.06, 0.1)),
        row("pretrained", (0.05, 0.9)),  # E_f decides
        row("pretrained", (0.04, 0.9)),  # another seed
        row("cgconv", (0.046, 0.1)),
        row("pretrained_fusion", (0.01, 0.0)),  # sees more than the structure
        row("ridge", (0.01, 0.0)),  # trains no tower
        row("scratch", (0.0, 0.0), split="chemsys"),
        row("scratch", (0.0, 0.0), percent=20.0),
        row("scratch", (0.0, 0.0), cohort="B"),
    ]
    found = build.chosen(rows, GROUP)
    place = {"targets": GROUP, "arm": "pretrained", "split": "random", "label_percent": 100.0}
    assert found == {**place, "val_error": pytest.approx(0.045)}


def test_moduli_are_judged_where_they_were_fitted_by_their_mean():
    rows = [
        row("scratch", (0.1, 0.2), targets=MODULI, split="chemsys"),
        row("auxiliary", (0.05, 0.23), targets=MODULI, split="chemsys"),
        row("scratch", (0.0, 0.0), targets=MODULI, split="chemsys", percent=20.0),
    ]
    found = build.chosen(rows, MODULI)
    assert (found["arm"], found["split"], found["label_percent"]) == ("auxiliary", "chemsys", 100.0)
    with pytest.raises(ValueError, match=r"no fit of formation_energy_eV_atom, is_metal by any of cgconv, scratch"):
        build.chosen(rows, GROUP)


def test_calibration_by_hand():
    """Nine errors 0.1 … 0.9: the floor is 0.5; at 90 % the ⌈10 · 0.9⌉ = 9th of the ratios counts, at 50 % the 5th."""
    true = np.arange(1, 10) / 10
    agreed, near, systems = np.zeros((2, 9)), around(np.full(9, 2.0)), np.array(list("abcdefghi"))
    found = predictors.calibrate(agreed, true, near, systems)
    assert (found.floor, found.factor, found.distance) == pytest.approx((0.5, 1.8, 2.0))
    assert predictors.calibrate(agreed, true, near, systems, level=0.5).factor == pytest.approx(1.0)
    few = predictors.calibrate(agreed, true, near, systems, level=0.95)
    assert few.factor == pytest.approx(1.8)  # 9 are too few: the greatest
    members = np.array([[1.0, 2.0, 1.0, 1.0], [1.0, 4.0, 1.0, 1.0]])  # deviations 0 and √2
    # three times the median distance: three floors; nearest of all: half a floor
    distance = around([2.0, 2.0, 6.0, 0.0])
    expected = [0.9, 1.8 * (2**0.5 + 0.5), 2.7, 0.45]
    np.testing.assert_allclose(found.half_width(members, distance), expected)
    np.testing.assert_allclose(found.half_width(members[:1], distance), [0.9, 0.9, 2.7, 0.45])
    # where training errs by 1.5 nearby, the floor is 2
    np.testing.assert_allclose(found.half_width(members[:1], around([2.0, 6.0, 2.0, 0.0], 1.5)), [3.6, 10.8, 3.6, 1.8])
    with pytest.raises(ValueError, match="no labels"):
        predictors.calibrate(np.zeros((2, 0)), np.zeros(0), around([]), np.zeros(0))


def test_a_chemical_system_counts_once_by_its_greatest_error():
    """Of errors 1, 2, 3 of one system and 4, 5 of two others, floor 3, the 50 % quantile is the 2nd of 1, 4/3, 5/3."""
    true, near = np.array([3.0, 5.0, 1.0, 2.0, 4.0]), around(np.ones(5))
    assert predictors.calibrate(
        np.zeros((1, 5)), true, near, np.array(list("abaac")), level=0.5
    ).factor == pytest.approx(4 / 3)
    assert predictors.calibrate(
        np.zeros((1, 5)), true, near, np.array(list("abcde")), level=0.5
    ).factor == pytest.approx(1.0)


def test_the_worst_group_by_distance_counts():
    """200 systems in two groups: errors of the far are thrice those that their distance explains."""
    true = np.tile(np.arange(1, 101) / 100, 2)
    distance = np.repeat([1.0, 2.0], 100)
    true[100:] *= 6
    found = predictors.calibrate(np.zeros((1, 200)), true, around(distance), np.arange(200))
    scale = found.floor * distance / 1.5  # the median of the distances
    # of 100 scores the ⌈101 · 0.9⌉ = 91st: an error of 5.46 among the far
    assert found.factor == pytest.approx(5.46 / scale[-1])


def test_an_element_that_is_hard_has_its_own_quantile():
    """Of 200 errors those of 50 crystals with iron are five times as large; 49 with cobalt are too few."""
    true = np.concatenate([np.arange(1, 151) / 150, np.arange(1, 51) / 10])
    near = around(np.ones(200), holds={26: np.arange(150, 200), 27: np.arange(151, 200), 8: np.arange(100)})
    found = predictors.calibrate(np.zeros((1, 200)), true, near, np.arange(200))
    # the ⌈51 · 0.9⌉ = 46th of 50 errors; the median of all is the floor
    assert found.elements == {"Fe": pytest.approx(4.6 / found.floor)}
    half = found.half_width(np.zeros((1, 2)), around([1.0, 1.0], holds={26: [0], 27: [1]}))
    np.testing.assert_allclose(half, [4.6, found.factor * found.floor])


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_hold_the_nominal_share_of_exchangeable_labels(level):
    """Members scatter with a spread of their own at each point, and so does the truth."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 2, 8000)
    members, true = spread * rng.normal(size=(3, 8000)), spread * rng.normal(size=8000)
    distance, systems = around(np.ones(8000)), np.arange(8000)
    found = predictors.calibrate(
        members[:, :4000], true[:4000], distance.take(np.arange(4000)), systems[:4000], level=level
    )
    half = found.half_width(members[:, 4000:], distance.take(np.arange(4000, 8000)))
    held = np.abs(members[:, 4000:].mean(0) - true[4000:]) <= half
    assert held.mean() == pytest.approx(level, abs=0.04)
    wide = spread[4000:] > 1
    assert half[wide].mean() > 1.5 * half[~wide].mean()


def test_intervals_hold_far_from_training_where_errors_grow_with_distance():
    """Members agree whatever the distance, errors are proportional to it; what is asked lies farther out."""
    rng = np.random.default_rng(0)
    distance = np.concatenate([rng.uniform(0.5, 2, 2000), rng.uniform(1.5, 6, 2000)])
    true, members = distance * rng.normal(size=4000), 0.01 * rng.normal(size=(2, 4000))
    near = predictors.calibrate(members[:, :2000], true[:2000], around(distance[:2000]), np.arange(2000))
    held = np.abs(members.mean(0) - true)[2000:] <= near.half_width(members, around(distance))[2000:]
    assert 0.88 < held.mean() < 0.95
    blind = predictors.calibrate(members[:, :2000], true[:2000], around(np.ones(2000)), np.arange(2000))
    assert (
        np.abs(members.mean(0) - true)[2000:] <= blind.half_width(members, around(np.ones(4000)))[2000:]
    ).mean() < 0.6


def test_values_are_in_the_units_of_the_data():
    members = {
        "band_gap_eV": np.array([[0.1], [0.1]]),
        "bulk_modulus_GPa": np.array([[2.0], [2.0]]),
        "is_metal": np.array([[0.2], [0.8]]),
    }
    calibrations = {"band_gap_eV": Calibration(0.5, 1.0), "bulk_modulus_GPa": Calibration(1.0, 1.0)}
    found = predictors.values(members, calibrations, dict.fromkeys(calibrations, around([1.0])))
    assert {name: [float(x[0]) for x in each] for name, each in found.items()} == {
        "band_gap_eV": pytest.approx([0.1, 0.0, 0.6]),
        "bulk_modulus_GPa": pytest.approx([100.0, 10.0, 1000.0]),
        "is_metal": pytest.approx([0.5, 0.2, 0.8]),
    }
