import numpy as np
import pytest

from matalign.release import ensemble, predictors
from matalign.release.predictors import Calibration

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
    found = ensemble.chosen(rows, GROUP)
    place = {"targets": GROUP, "arm": "pretrained", "split": "random", "label_percent": 100.0}
    assert found == {**place, "val_error": pytest.approx(0.045)}


def test_moduli_are_judged_where_they_were_fitted_by_their_mean():
    rows = [
        row("scratch", (0.1, 0.2), targets=MODULI, split="chemsys"),
        row("auxiliary", (0.05, 0.23), targets=MODULI, split="chemsys"),
        row("scratch", (0.0, 0.0), targets=MODULI, split="chemsys", percent=20.0),
    ]
    found = ensemble.chosen(rows, MODULI)
    assert (found["arm"], found["split"], found["label_percent"]) == ("auxiliary", "chemsys", 100.0)
    with pytest.raises(ValueError, match=r"no fit of formation_energy_eV_atom, is_metal by any of cgconv, scratch"):
        ensemble.chosen(rows, GROUP)


def test_calibration_by_hand():
    """Nine errors 0.1 … 0.9: the floor is 0.5; at 90 % the ⌈10 · 0.9⌉ = 9th of the ratios counts, at 50 % the 5th."""
    true = np.arange(1, 10) / 10
    agreed = np.zeros((2, 9))
    found = predictors.calibrate(agreed, true)
    assert (found.floor, found.factor) == pytest.approx((0.5, 1.8))
    assert predictors.calibrate(agreed, true, level=0.5).factor == pytest.approx(1.0)
    assert predictors.calibrate(agreed, true, level=0.95).factor == pytest.approx(1.8)  # 9 are too few: the greatest
    members = np.array([[1.0, 2.0], [1.0, 4.0]])  # deviations 0 and √2
    np.testing.assert_allclose(found.half_width(members), [0.9, 1.8 * (2**0.5 + 0.5)])
    np.testing.assert_allclose(found.half_width(members[:1]), [0.9, 0.9])
    with pytest.raises(ValueError, match="no labels"):
        predictors.calibrate(np.zeros((2, 0)), np.zeros(0))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_hold_the_nominal_share_of_exchangeable_labels(level):
    """Members scatter with a spread of their own at each point, and so does the truth."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.1, 2, 8000)
    members, true = spread * rng.normal(size=(3, 8000)), spread * rng.normal(size=8000)
    found = predictors.calibrate(members[:, :4000], true[:4000], level=level)
    half = found.half_width(members[:, 4000:])
    held = np.abs(members[:, 4000:].mean(0) - true[4000:]) <= half
    assert held.mean() == pytest.approx(level, abs=0.025)
    wide = spread[4000:] > 1
    assert half[wide].mean() > 1.5 * half[~wide].mean()


def test_values_are_in_the_units_of_the_data():
    members = {
        "band_gap_eV": np.array([[0.1], [0.1]]),
        "bulk_modulus_GPa": np.array([[2.0], [2.0]]),
        "is_metal": np.array([[0.2], [0.8]]),
    }
    calibrations = {"band_gap_eV": Calibration(0.5, 1.0), "bulk_modulus_GPa": Calibration(1.0, 1.0)}
    found = predictors.values(members, calibrations)
    assert {name: [float(x[0]) for x in each] for name, each in found.items()} == {
        "band_gap_eV": pytest.approx([0.1, 0.0, 0.6]),
        "bulk_modulus_GPa": pytest.approx([100.0, 10.0, 1000.0]),
        "is_metal": pytest.approx([0.5, 0.2, 0.8]),
    }
