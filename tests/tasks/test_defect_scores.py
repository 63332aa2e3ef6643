import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss

from matalign import config, stats
from matalign.tasks.defects import defect_scores
from matalign.tasks.defects.defects import ARMS, PICTURES, TEXT_ARMS, Predictions
from matalign.tasks.defects.hosts import DefectSet
from matalign.views.defect_images import DEFECTS

SEEING = (*ARMS, *(arm for arm in PICTURES if arm != "reference_text"))


@pytest.fixture(scope="module")
def cfg():
    return dataclasses.replace(config.load("defects", "tiny"), threads=1, seeds=2)


def test_macro_f1_by_hand():
    # Class 0: TP 1, FP 1, FN 1 -> 1/2; class 1: TP 1, FP 0, FN 1 -> 2/3; class 2: FP 1 -> 0.
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 0])
    assert defect_scores.macro_f1(true, predicted, classes=3) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(5, size=200), rng.integers(5, size=200)
    assert defect_scores.macro_f1(true, predicted) == pytest.approx(f1_score(true, predicted, average="macro"))


def test_one_answer_to_five_equal_classes_scores_a_fifteenth():
    assert defect_scores.macro_f1(np.repeat(np.arange(5), 7), np.zeros(35, dtype=int)) == pytest.approx(1 / 15)


def test_temperature_mends_an_arm_that_is_too_sure():
    """Answers drawn from known probabilities, then given with their fourth power: T = 4 restores them."""
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(5), size=4000)
    kind = np.array([rng.choice(5, p=p) for p in honest])
    boast = defect_scores.sharpened(honest, 1 / 4)
    np.testing.assert_allclose(boast, honest**4 / (honest**4).sum(1, keepdims=True), atol=1e-9)
    temperature = defect_scores.fit_temperature(boast, kind)
    assert temperature == pytest.approx(4, rel=0.1)
    mended = defect_scores.sharpened(boast, temperature)
    assert log_loss(kind, mended) <= log_loss(kind, honest)
    assert (mended.argmax(1) == boast.argmax(1)).all()
    raw, now = (stats.calibration_error(p.max(1), p.argmax(1) == kind) for p in (boast, mended))
    assert now < 0.03 < 0.2 < raw
    assert defect_scores.fit_temperature(np.zeros((0, 5)), np.zeros(0, dtype=int)) == 1


def judged(answers, cfg, *, seeds=1, hosts=6, arms=SEEING):
    """Predictions of sure arms, right in a share `answers[arm]` of the images and else one class off."""
    kind = np.tile(np.arange(5), hosts)
    n = len(kind)
    right = {arm: np.random.default_rng(1).random((seeds, n)) < answers.get(arm, 0.2) for arm in arms}
    probability = {arm: np.eye(5)[np.where(r, kind, (kind + 1) % 5)] for arm, r in right.items()}
    host = np.repeat(np.arange(hosts), 5)
    visibility = np.where(kind == 0, 0.0, np.where(kind == 4, 50.0, 4.9))
    axis = np.stack([kind < 4, np.full(n, 0.5)], axis=1)  # found but in planar faults
    shots = DefectSet(torch.zeros(n, 2, 4, 4), kind, host, host, np.geomspace(1.1e3, 9e4, n), visibility, axis)
    n_hosts = {"train": 7, "val": 1, "test": hosts}
    has_text = host < hosts // 2
    validation = {arm: [(p, kind) for p in seeds] for arm, seeds in probability.items()}
    told = Predictions(
        shots,
        host.astype(str),
        has_text,
        probability,
        validation,
        np.tile(axis, (seeds, 1, 1)),
        n_hosts,
        polymorphs=0.25,
        synthetic=True,
    )
    return told, right


def test_scores_by_hand(cfg):
    predictions, right = judged({"image": 0.7, "image_structure": 1.0}, cfg, seeds=2)
    metrics = defect_scores.score(predictions, cfg)
    rows = {(r["arm"], r["metric"]): r for r in metrics["results"]}
    assert rows["image", "accuracy"]["value"] == pytest.approx(right["image"].mean())
    assert rows["image_structure", "macro_F1"]["value"] == 1
    assert rows["image", "ECE"]["value"] == pytest.approx(1 - right["image"].mean())  # always sure
    assert rows["image", "accuracy"]["low"] <= rows["image", "accuracy"]["value"] <= rows["image", "accuracy"]["high"]
    assert {r["n_images"] for r in metrics["results"]} == {30}
    assert {r["n_hosts"] for r in metrics["results"]} == {6}
    recall = {(r["arm"], r["defect"]): r["value"] for r in metrics["recall"]}
    for i, defect in enumerate(DEFECTS):
        assert recall["image", defect] == pytest.approx(right["image"][:, i::5].mean())
    assert metrics["ceiling"] == pytest.approx(1 / 4)  # planar faults alone are above the noise
    assert {r["defect"]: r["visible"] for r in metrics["visibility"]} == {
        "vacancy": 0,
        "substitution": 0,
        "interstitial": 0,
        "planar_fault": 1,
    }
    assert sum(r["n"] for r in metrics["dose"] if r["arm"] == "image") == 30
    assert [r["held_out"] for r in metrics["dose"] if r["arm"] == "image"] == [True, False, False, False, False, True]


def test_comparisons_are_paired_and_corrected(cfg):
    predictions, _ = judged({"image": 0.5, "image_other": 0.5, "image_structure": 1.0}, cfg, hosts=12)
    rows = {(r["arm"], r["baseline"]): r for r in defect_scores.score(predictions, cfg)["comparisons"]}
    f1 = {r["arm"]: r["value"] for r in defect_scores.score(predictions, cfg)["results"] if r["metric"] == "macro_F1"}
    for (arm, baseline), row in rows.items():
        assert row["difference"] == pytest.approx(f1[arm] - f1[baseline])
        assert row["p"] <= row["p_holm"] <= 1
    assert rows["image_other", "image"]["low"] == rows["image_other", "image"]["high"] == 0  # the same answers
    assert rows["image_structure", "image"]["low"] > 0


@pytest.mark.parametrize(
    ("answers", "verdicts"),
    [
        (
            {"image": 0.5, "image_other": 0.5, "image_structure": 0.9, "image_reference": 0.9, "reference_other": 0.5},
            ["PASS", "PASS", "PASS", "PASS", "PASS"],
        ),
        (
            {"image": 0.5, "image_other": 0.9, "image_structure": 0.9, "image_reference": 0.9, "reference_other": 0.8},
            ["PASS", "PASS", "FAIL", "PASS", "FAIL"],
        ),
        (  # the composition alone has the gain
            {"image": 0.5, "image_composition": 0.9, "image_structure": 0.9, "image_reference": 0.9},
            ["PASS", "PASS", "FAIL", "PASS", "PASS"],
        ),
        (
            {"image": 0.5, "image_structure": 0.5, "image_reference": 0.55, "reference_other": 0.5},  # too little
            ["PASS", "PASS", "FAIL", "FAIL", "PASS"],
        ),
        ({"image": 0.2, "image_structure": 0.2, "context": 0.6}, ["FAIL", "FAIL", "FAIL", "FAIL", "FAIL"]),
    ],
)
def test_claims(cfg, answers, verdicts):
    predictions, _ = judged(answers, cfg, hosts=30)
    assert [c["verdict"] for c in defect_scores.score(predictions, cfg)["claims"]] == verdicts


def test_reliability_and_dose_rows_agree_with_the_scores(cfg):
    predictions, _ = judged({"image": 0.7, "image_structure": 1.0}, cfg)
    metrics = defect_scores.score(predictions, cfg)
    ece = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "ECE"}
    for arm in ARMS:
        rows = [r for r in metrics["reliability"] if r["arm"] == arm]
        assert sum(r["n"] * abs(r["accuracy"] - r["confidence"]) for r in rows) / 30 == pytest.approx(ece[arm])
    for row in metrics["dose"]:
        assert row["low"] <= row["macro_F1"] <= row["high"]
    places = [(r["dose_low"], r["dose_high"], r["held_out"]) for r in metrics["dose_visible"]]
    assert places == [(r["dose_low"], r["dose_high"], r["held_out"]) for r in metrics["dose"] if r["arm"] == "image"]
    assert sum(r["visible"] for r in metrics["dose_visible"]) / len(places) == pytest.approx(1 / 4, abs=0.1)
    # always sure and right in 0.7 of the validation images: hotter, and less far off
    scaled = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "ECE_scaled"}
    assert scaled["image"] < 0.05 < ece["image"]
    assert next(r["temperature"] for r in metrics["temperature"] if r["arm"] == "image") > 2


def test_controls_keep_shares_of_the_gain(cfg):
    """All gain, none of it, half of it, and less than none."""
    scores = {"image_reference": 0.9, "reference_view": 0.9, "reference_other": 0.5, "reference_structure": 0.7}
    predictions, right = judged({"image": 0.5, **scores, "reference_axis": 0.3}, cfg, hosts=60)
    metrics = defect_scores.score(predictions, cfg)
    kept = {r["arm"]: r for r in metrics["kept"]}
    assert (kept["reference_view"]["value"], kept["reference_other"]["value"]) == (1, 0)
    kind = predictions.test.kind
    image, own, half = (
        f1_score(kind, np.where(right[arm][0], kind, (kind + 1) % 5), average="macro")
        for arm in ("image", "image_reference", "reference_structure")
    )
    row = kept["reference_structure"]
    assert row["value"] == pytest.approx((half - image) / (own - image))
    assert 0 < row["low"] < 0.5 < row["high"] < 1
    assert kept["reference_axis"]["high"] < 0
    assert (metrics["axis"]["value"], metrics["axis"]["chance"], metrics["polymorphs"]) == (0.8, 0.5, 0.25)
    pairs = {(r["arm"], r["baseline"]): r["difference"] for r in metrics["comparisons"]}
    assert pairs["image_reference", "reference_other"] == pytest.approx(pairs["image_reference", "image"])


@pytest.mark.parametrize(("other", "verdict"), [(0.5, "PASS"), (0.95, "FAIL")])
def test_text_counts_only_if_another_hosts_does_not_help(cfg, other, verdict):
    answers = {"image": 0.4, "image_structure": 0.5, "image_text": 0.95, "image_text_other": other, "context": 0.1}
    predictions, right = judged(answers, cfg, hosts=40, arms=(*ARMS, *PICTURES, *TEXT_ARMS))
    metrics = defect_scores.score(predictions, cfg)
    assert metrics["claims"][-1]["verdict"] == verdict
    assert metrics["claims"][-1]["claim"] == "the host's protocol helps beyond its structure"
    part = metrics["with_protocol"]  # the first half of the hosts
    assert (part["n_hosts"], part["n_images"]) == (20, 100)
    half = predictions.has_text
    values = {r["arm"]: r["value"] for r in part["results"]}
    answered = np.where(right["image_text"][0], predictions.test.kind, (predictions.test.kind + 1) % 5)
    expected = f1_score(predictions.test.kind[half], answered[half], average="macro")
    assert values["image_text"] == pytest.approx(expected)
    gains = {(r["arm"], r["baseline"]): r for r in part["comparisons"]}
    assert gains["image_text", "image_structure"]["difference"] == pytest.approx(
        values["image_text"] - values["image_structure"]
    )
    assert set(gains) == {("image_structure", "image"), ("image_text", "image_structure"), TEXT_ARMS}
