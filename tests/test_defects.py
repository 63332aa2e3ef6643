import dataclasses

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import f1_score

from matalign import align, config, dataset, defects, imaging, paths, scratch
from matalign.defects import ARMS, DEFECTS, Hosts, Predictions, Shots


@pytest.fixture(scope="module")
def curated():
    """24 halides, split by chemical system as curation does."""
    made = tiny.curated()
    split = np.array(["train"] * 15 + ["val"] * 3 + ["test"] * 6)
    return dataclasses.replace(made, splits=made.splits.assign(chemsys=split), digest="")


@pytest.fixture(scope="module")
def cfg():
    values = {**vars(config.load("defects", "tiny")), "hosts": 10, "threads": 1, "head_epochs": 2, "seeds": 2}
    return config.build(config.Defects, values, where="test")


@pytest.fixture(scope="module")
def hosts(curated, cfg):
    return defects.choose_hosts(curated, hosts=cfg.hosts, seed=0)


# Hosts and images


def test_hosts_are_shared_out_by_chemical_system(curated, hosts):
    assert {s: int((hosts.split == s).sum()) for s in ("train", "val", "test")} == {"train": 7, "val": 1, "test": 2}
    split = dict(zip(curated.materials.mp_id, curated.splits.chemsys))
    assert [split[i] for i in hosts.mp_id] == hosts.split.tolist()
    assert list(hosts.mp_id) == sorted(hosts.mp_id)
    numbers = dict(zip(curated.materials.mp_id, range(24)))
    for row, mp_id in enumerate(hosts.mp_id):
        np.testing.assert_array_equal(hosts.structures[row][0], curated.structures[numbers[mp_id]][0])


def test_more_hosts_keep_the_ones_there_are(curated, hosts):
    assert set(hosts.mp_id) <= set(defects.choose_hosts(curated, hosts=20, seed=0).mp_id)
    assert set(defects.choose_hosts(curated, hosts=10, seed=1).mp_id) != set(hosts.mp_id)


def test_no_test_host_stops_the_run(curated):
    none = dataclasses.replace(curated, splits=curated.splits.assign(chemsys="train"))
    with pytest.raises(ValueError, match="no test host among 24 materials"):
        defects.choose_hosts(none, hosts=10, seed=0)


@pytest.fixture(scope="module")
def shots(hosts, cfg):
    return {s: defects.shoot(hosts, s, cfg, epoch=0, seed=0) for s in ("train", "val", "test")}


def test_every_host_shows_every_class_equally(hosts, shots):
    for split, made in shots.items():
        table = np.zeros((len(hosts.mp_id), len(DEFECTS)))
        np.add.at(table, (made.host, made.kind), 1)
        np.testing.assert_array_equal(table, np.where(hosts.split == split, 1, 0)[:, None] * np.ones(5))
        assert made.images.shape == (table.sum(), 2, 32, 32)


def test_classes_of_a_view_share_dose_and_zone_axis(shots):
    for made in shots.values():
        for values in (made.dose_e_A2, made.axis):
            assert (values.reshape(-1, 5) == values.reshape(-1, 5)[:, :1]).all()


def test_extreme_doses_and_some_element_pairs_are_for_the_test(hosts, cfg, monkeypatch):
    many = dataclasses.replace(cfg, images_per_class=60, image_px=8)
    asked = []
    real = imaging.substituents
    monkeypatch.setattr(imaging, "substituents", lambda *, held_out: asked.append(held_out) or real(held_out=held_out))
    dose = {s: defects.shoot(hosts, s, many, epoch=0, seed=0).dose_e_A2 for s in ("val", "test")}
    assert 10**3.2 <= dose["val"].min() < dose["val"].max() <= 10**4.8
    assert dose["test"].min() < 10**3.2
    assert dose["test"].max() > 10**4.8
    assert set(asked[: len(asked) // 3]) == {False}
    assert asked[-1] is True


def test_another_epoch_shows_other_views(hosts, shots, cfg):
    again = defects.shoot(hosts, "val", cfg, epoch=0, seed=0)
    other = defects.shoot(hosts, "val", cfg, epoch=1, seed=0)
    assert torch.equal(again.images, shots["val"].images)
    assert not torch.equal(other.images, shots["val"].images)


# Context


def test_contexts(hosts):
    embeddings = np.random.default_rng(0).normal(size=(len(hosts.mp_id), 4))
    told = defects.contexts(hosts, embeddings)
    assert set(told) == set(ARMS) - {"majority"}
    assert told["image"].shape == (len(hosts.mp_id), 0)
    np.testing.assert_array_equal(told["image_structure"], embeddings)
    assert not (told["image_other"] == embeddings).all(1).any()  # nobody keeps its own
    assert sorted(told["image_other"][:, 0]) == sorted(embeddings[:, 0])
    for row in range(len(hosts.mp_id)):
        fractions = told["image_composition"][row]
        assert {z: fractions[z] for z in np.flatnonzero(fractions)} == dict.fromkeys(hosts.structures[row][0], 0.5)


def test_view_context():
    told = defects.view_context(np.array([3, 0]), pixel_A=0.2)
    assert told.shape == (2, 14)
    assert told[:, :13].argmax(1).tolist() == [3, 0]
    assert told[:, 13].tolist() == pytest.approx([np.log(0.2)] * 2)


# Heads and network


def synthetic(n, *, seed, informative):
    """Classes written into the features; or into features and context together, so that neither alone tells them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(5, size=n)
    context = rng.choice([-1.0, 1.0], size=(n, 1))
    x = rng.normal(scale=0.1, size=(n, 5))
    x[np.arange(n), kind] += 1 if informative == "features" else context[:, 0]
    return x, context, kind


@pytest.mark.parametrize("informative", ["features", "both"])
def test_head_learns_what_context_tells_of_features(informative):
    data = {s: synthetic(n, seed=i, informative=informative) for i, (s, n) in enumerate([("train", 800), ("val", 100)])}
    data["test"] = synthetic(200, seed=9, informative=informative)
    features, context, kind = ({s: d[j] for s, d in data.items()} for j in range(3))
    probability = defects.fit_head(features, context, kind, epochs=40, learning_rate=1e-2, seed=0)
    assert probability.shape == (200, 5)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-5)
    assert (probability.argmax(1) == kind["test"]).mean() > 0.95


def test_head_never_reads_the_test_labels():
    data = {s: synthetic(60, seed=i, informative="features") for i, s in enumerate(("train", "val", "test"))}
    features, context, kind = ({s: d[j] for s, d in data.items()} for j in range(3))
    options = {"epochs": 2, "learning_rate": 1e-2, "seed": 0}
    del kind["test"]
    np.testing.assert_array_equal(
        defects.fit_head(features, context, kind, **options), defects.fit_head(features, context, kind, **options)
    )


def test_network_tells_a_bright_image_from_a_dark_one(cfg):
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 40)
    images = torch.as_tensor(rng.normal(size=(80, 2, 32, 32)) + 2 * kind[:, None, None, None]).half()
    shots = Shots(images, kind, kind, kind, np.ones(80), np.full(80, 9.0))
    quick = dataclasses.replace(cfg, epochs=3, batch_size=16)
    tower = defects.fit_network(shots, quick, seed=0)
    x = defects.features(tower, images)
    assert x.shape == (80, 512)
    gap = x[kind == 1].mean(0) - x[kind == 0].mean(0)
    projected = (x - x.mean(0)) @ gap
    assert ((projected > 0) == (kind == 1)).mean() > 0.95
    np.testing.assert_array_equal(defects.features(defects.fit_network(shots, quick, seed=0), images), x)


# Measures


def test_macro_f1_by_hand():
    # Class 0: TP 1, FP 1, FN 1 -> 1/2; class 1: TP 1, FP 0, FN 1 -> 2/3; class 2: FP 1 -> 0.
    true, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 0])
    assert defects.macro_f1(true, predicted, classes=3) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(5, size=200), rng.integers(5, size=200)
    assert defects.macro_f1(true, predicted) == pytest.approx(f1_score(true, predicted, average="macro"))


def test_one_answer_to_five_equal_classes_scores_a_fifteenth():
    assert defects.macro_f1(np.repeat(np.arange(5), 7), np.zeros(35, dtype=int)) == pytest.approx(1 / 15)


def test_calibration_error_by_hand():
    # Bins of 1/2: three images at .3, .4, .5 (one right), one at .9 (right); their gaps are |1 - 1.2| and |1 - .9|.
    confidence, correct = np.array([0.3, 0.4, 0.5, 0.9]), np.array([1, 0, 0, 1])
    assert defects.calibration_error(confidence, correct, bins=2) == pytest.approx((0.2 + 0.1) / 4)


def test_calibration_error_passes_over_empty_bins():
    assert defects.calibration_error(np.array([0.95, 0.95]), np.array([1, 0]), bins=10) == pytest.approx(0.45)
    assert defects.calibration_error(np.array([0.0, 1.0]), np.array([0, 1]), bins=10) == 0


# Scores


def judged(answers, cfg, *, seeds=1, hosts=6):
    """Predictions of sure arms, right in a share `answers[arm]` of the images and else one class off."""
    kind = np.tile(np.arange(5), hosts)
    n = len(kind)
    right = {arm: np.random.default_rng(1).random((seeds, n)) < answers.get(arm, 0.2) for arm in ARMS}
    probability = {arm: np.eye(5)[np.where(r, kind, (kind + 1) % 5)] for arm, r in right.items()}
    host = np.repeat(np.arange(hosts), 5)
    visibility = np.where(kind == 0, 0.0, np.where(kind == 4, 50.0, 4.9))
    shots = Shots(torch.zeros(n, 2, 4, 4), kind, host, host, np.geomspace(1.1e3, 9e4, n), visibility)
    n_hosts = {"train": 7, "val": 1, "test": hosts}
    return Predictions(shots, host.astype(str), probability, n_hosts, synthetic=True), right


def test_scores_by_hand(cfg):
    predictions, right = judged({"image": 0.7, "image_structure": 1.0}, cfg, seeds=2)
    metrics = defects.score(predictions, cfg)
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
    rows = {(r["arm"], r["baseline"]): r for r in defects.score(predictions, cfg)["comparisons"]}
    f1 = {r["arm"]: r["value"] for r in defects.score(predictions, cfg)["results"] if r["metric"] == "macro_F1"}
    for (arm, baseline), row in rows.items():
        assert row["difference"] == pytest.approx(f1[arm] - f1[baseline])
        assert row["p"] <= row["p_holm"] <= 1
    assert rows["image_other", "image"]["low"] == rows["image_other", "image"]["high"] == 0  # the same answers
    assert rows["image_structure", "image"]["low"] > 0


@pytest.mark.parametrize(
    ("answers", "verdicts"),
    [
        ({"image": 0.5, "image_other": 0.5, "image_structure": 0.9, "context": 0.1}, ["PASS", "PASS", "PASS"]),
        ({"image": 0.5, "image_other": 0.9, "image_structure": 0.9, "context": 0.1}, ["PASS", "PASS", "FAIL"]),
        ({"image": 0.2, "image_structure": 0.2, "context": 0.6}, ["FAIL", "FAIL", "FAIL"]),
    ],
)
def test_claims(cfg, answers, verdicts):
    predictions, _ = judged(answers, cfg, hosts=30)
    assert [c["verdict"] for c in defects.score(predictions, cfg)["claims"]] == verdicts


# The stage


@pytest.fixture
def project(curated, tmp_path, monkeypatch):
    """A project with the curated set and a model, untrained."""
    for name, folder in {"ROOT": "", "DATA": "data", "SCRATCH": "scratch"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    dataset.write(paths.curated("tiny"), curated)
    pretrain = tiny.pretrain(tiny.bert(tmp_path / "bert"), modalities="crystal image")
    model = paths.results("tiny") / "model"
    model.mkdir(parents=True)
    align.save(align.build(pretrain), model)
    scratch.write_json(model / "config.json", {"pretrain": dataclasses.asdict(pretrain)})
    return tmp_path


def test_the_stage_from_end_to_end(project, cfg, monkeypatch):
    metrics = defects.evaluate(cfg)
    assert {(r["arm"], r["metric"]) for r in metrics["results"]} == {
        (arm, metric) for arm in ARMS for metric in ("macro_F1", "accuracy", "ECE")
    }
    assert metrics["hosts"] == {"train": 7, "val": 1, "test": 2}
    assert metrics["synthetic"] is False
    f1 = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "macro_F1"}
    assert f1["majority"] == pytest.approx(1 / 15)
    accuracy = {r["arm"]: r["value"] for r in metrics["results"] if r["metric"] == "accuracy"}
    assert accuracy["context"] == pytest.approx(0.2)  # the same answer to all classes of a view: exactly chance
    scratch.write_json(project / "metrics.json", metrics)  # plain values

    def unwanted(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr(defects, "fit_network", unwanted)
    monkeypatch.setattr(defects, "fit_head", unwanted)
    assert defects.evaluate(cfg) == metrics
    assert (
        defects.evaluate(dataclasses.replace(cfg, bootstrap=10))["results"][0]["value"]
        == metrics["results"][0]["value"]
    )
    with pytest.raises(AssertionError, match="fitted again"):
        defects.evaluate(dataclasses.replace(cfg, epochs=2))


def test_hosts_without_validation_keep_the_last_epoch(hosts, cfg):
    rest = hosts.split != "val"
    fewer = Hosts(hosts.structures.take(np.flatnonzero(rest)), hosts.mp_id[rest], hosts.split[rest])
    made = defects.shoot(fewer, "val", cfg, epoch=0, seed=0)
    assert made.images.shape == (0, 2, 32, 32)
    n = {"train": 20, "val": 0, "test": 5}
    features = {s: np.random.default_rng(0).normal(size=(k, 3)) for s, k in n.items()}
    context = {s: np.ones((k, 2)) for s, k in n.items()}
    kind = {s: np.arange(k) % 5 for s, k in n.items()}
    assert defects.fit_head(features, context, kind, epochs=1, learning_rate=1e-2, seed=0).shape == (5, 5)
