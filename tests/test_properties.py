"""Property prediction on 168 binary salts whose labels follow a rule of composition and structure."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from matalign import align, config, dataset, elements, paths, properties, scratch, splits
from matalign.dataset import Curated, Structures
from matalign.encoders.text import TextTower
from matalign.properties import Cell, Fit

CATIONS = [3, 11, 19, 37, 55, 4, 12, 20, 38, 56, 29, 47, 30, 48]
ANIONS = [9, 17, 35, 53, 8, 16]
FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SITES = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])


def salts() -> Curated:
    """Each salt as rock salt and as caesium chloride, which lies 0.6 eV/atom higher; the last ten have no gap."""
    rows, crystals = [], []
    for cation in CATIONS:
        for anion in ANIONS:
            for caesium_chloride in (False, True):
                x_c, x_a = elements.VALUES[[cation, anion], 2]
                a = 4.0 + 0.4 * (elements.VALUES[cation, 3] + elements.VALUES[anion, 3])
                crystals.append((np.array([cation, anion]), SITES, a * (0.6 * np.eye(3) if caesium_chloride else FCC)))
                names = [elements.SYMBOLS[cation], elements.SYMBOLS[anion]]
                rows.append(
                    {
                        "mp_id": f"mp-{1000 + len(rows)}",
                        "formula": "".join(names),
                        "chemsys": "-".join(sorted(names)),
                        "n_atoms": 2,
                        "space_group": 221 if caesium_chloride else 225,
                        "source": "test",
                        "formation_energy_eV_atom": -(x_a - x_c) + 0.6 * caesium_chloride,
                        "band_gap_eV": np.nan if len(rows) >= 158 else 2 * (x_a - x_c),
                        "is_metal": np.nan,
                        "bulk_modulus_GPa": np.nan,
                        "shear_modulus_GPa": np.nan,
                    }
                )
    materials = pd.DataFrame(rows)
    protocols = pd.DataFrame({column: [] for column in dataset.PROTOCOLS}, dtype=object).astype({"train_ok": bool})
    parts, _ = splits.build(materials, protocols, seed=0)
    return Curated(materials, Structures.pack(crystals), protocols, parts, audit={})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project's folder with the salts and an untrained model."""
    folder = tmp_path_factory.mktemp("properties")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ROOT": folder, "DATA": folder / "data", "SCRATCH": folder / ".scratch"}.items():
            patch.setattr(paths, name, value)
        patch.setattr(properties, "TREES", 80)
        patch.setenv("MATALIGN_ROOT", str(folder))  # for the processes of `fit_all`
        patch.setenv("MATALIGN_SCRATCH", str(folder / ".scratch"))
        dataset.write(paths.curated("salts"), salts())
        pretrain = tiny.pretrain(tiny.bert(folder / "bert"), width=24, layers=2, order=2)
        model = paths.results("salts") / "model"
        model.mkdir(parents=True)
        align.save(align.build(pretrain), model)
        fingerprint = TextTower(pretrain.text_model).fingerprint
        about = {"pretrain": dataclasses.asdict(pretrain), "text_model_hash": fingerprint}
        (model / "config.json").write_text(json.dumps(about))
        yield folder


def make(**changes) -> config.Properties:
    values = {**vars(config.load("properties", "tiny")), "profile": "salts", "threads": 1, "seed": 0}
    values |= {"arms": "dummy composition cgconv scratch pretrained ridge", "runs": "random:100:1 chemsys:50:2"}
    values |= {"steps": 120, "min_steps": 60, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 0.01}
    return config.build(config.Properties, {**values, "bootstrap": 50} | changes, where="test")


@pytest.fixture(scope="module")
def fitted(root):
    return properties.fit_all(make())


def test_runs_are_read():
    assert properties.cells("chemsys:5:5 random:100:1:-cgconv:-ridge") == [
        Cell("chemsys", 5.0, 5),
        Cell("random", 100.0, 1, ("cgconv", "ridge")),
    ]


@pytest.mark.parametrize(
    "runs", ["chemsys:5", "scaffold:5:1", "chemsys:0:1", "chemsys:101:1", "random:5:0", "random:5:1:cgconv", ""]
)
def test_malformed_runs_are_refused(runs):
    with pytest.raises(ValueError, match="run"):
        properties.cells(runs)


def test_the_plan_gives_all_learned_arms_the_same_steps():
    cfg = make(runs="chemsys:1:2 chemsys:10:1 chemsys:100:1:-cgconv", arms="dummy cgconv scratch scratch_long")
    cfg = dataclasses.replace(cfg, steps=1000, min_steps=100, seed=7)
    steps = {(f.arm, f.percent, f.seed): f.steps for f in properties.plan(cfg)}
    assert steps["scratch", 1, 7] == steps["cgconv", 1, 8] == 100
    assert steps["scratch", 10, 7] == 316  # geometric mean of 100 and 1000
    assert steps["scratch", 100, 7] == 1000
    assert steps["scratch_long", 10, 7] == 948
    assert steps["dummy", 100, 7] == 0
    assert ("cgconv", 100, 7) not in steps
    assert len(steps) == 2 * 4 + 4 + 3


def test_unknown_names_are_refused(root):
    with pytest.raises(ValueError, match="arms: unknown 'ild'"):
        properties.plan(make(arms="dummy ild"))
    with pytest.raises(ValueError, match="targets: no column 'gap'"):
        properties.task(make(targets="gap"))


def test_labelled_sets_are_nested_and_the_test_set_is_whole(root):
    t = properties.task(make())
    parts = [properties.rows(t, Fit("scratch", "chemsys", p, 3, 1)) for p in (30.0, 60.0, 100.0)]
    for smaller, larger in itertools.pairwise(parts):
        for name in ("train", "val"):
            assert set(smaller[name]) < set(larger[name])
        assert (smaller["test"] == larger["test"]).all()
    systems = [set(t.materials.chemsys.iloc[parts[-1][name]]) for name in ("train", "val", "test")]
    assert sum(map(len, systems)) == len(set.union(*systems)) == len(CATIONS) * len(ANIONS)
    other = properties.rows(t, Fit("scratch", "chemsys", 30.0, 4, 1))
    assert set(other["train"]) != set(parts[0]["train"])


def test_an_empty_part_is_an_error(root):
    with pytest.raises(ValueError, match=r"chemsys split at 0.001 % of labels, seed 0: no material in train"):
        properties.rows(properties.task(make()), Fit("scratch", "chemsys", 0.001, 0, 1))


def test_composition_features_by_hand():
    """SrTiO3 and its double cell: fractions, and the five statistics of the electronegativity."""
    numbers, frac, lattice = np.array([38, 22, 8, 8, 8]), np.zeros((5, 3)), np.eye(3)
    structures = Structures.pack([(numbers, frac, lattice), (np.tile(numbers, 2), np.tile(frac, (2, 1)), lattice)])
    x = properties.composition_features(structures)
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
    error = properties.masked_error(predicted, true)
    assert error.item() == pytest.approx((0.5 + 3.0) / 2)
    error.backward()
    assert predicted.grad.tolist() == [[0.25, 0.0, 0.0], [0.0, 0.5, 0.0]]


def test_the_learning_rate_makes_one_cycle():
    rates = np.array([properties.rate(step, 1000) for step in range(1000)])
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[200] == pytest.approx(1)
    assert (np.diff(rates[:201]) > 0).all()
    assert (np.diff(rates[200:]) < 0).all()
    assert 0 < rates[-1] < 1e-4


def test_an_epoch_shows_every_material_once_and_each_epoch_another_order():
    train = np.arange(100, 140)
    epochs = [[properties.draw(train, 4 * e + i, batch_size=10, seed=1).tolist() for i in range(4)] for e in range(2)]
    assert [sorted(itertools.chain(*epoch)) for epoch in epochs] == [list(train)] * 2
    assert epochs[0] != epochs[1]
    assert properties.draw(train, 5, batch_size=64, seed=1).shape == (40,)


def test_every_learned_arm_beats_the_median_and_structure_beats_composition(fitted):
    t = properties.task(make())
    mae = {}
    for fit, result in fitted.items():
        if fit.split == "random":
            mae[fit.arm] = np.nanmean(np.abs(result["test"] - t.labels[result["test_rows"]]), 0)
    for arm in ("composition", "cgconv", "scratch", "pretrained", "ridge"):
        assert (mae[arm] < 0.8 * mae["dummy"]).all(), (arm, mae)
    # Two structures of one composition, 0.6 eV/atom apart: blind to structure, no error is below 0.3.
    assert mae["composition"][0] > 0.25
    assert mae["scratch"][0] < 0.15
    assert mae["pretrained"][0] < 0.15


def test_composition_gives_both_structures_of_a_salt_the_same_value(fitted):
    fit, result = next((f, r) for f, r in fitted.items() if f.arm == "composition" and f.split == "chemsys")
    t = properties.task(make())
    predicted = pd.Series(result["test"][:, 0], index=t.materials.formula.iloc[result["test_rows"]])
    assert (predicted.groupby(level=0).nunique() == 1).all()
    assert fit.steps == 0


def test_composition_learns_where_most_labels_are_zero(root):
    t = properties.task(make())
    gap = np.maximum(t.materials.formula.str.contains("Cl|Br").to_numpy(float) * 3 - 0.5, 0)
    zero_inflated = dataclasses.replace(t, labels=np.stack([t.labels[:, 0], gap], 1))
    assert (gap == 0).mean() > 0.6
    parts = properties.rows(zero_inflated, Fit("composition", "random", 100.0, 0, 0))
    out = properties.fit_composition(zero_inflated, parts)
    truth = zero_inflated.labels[parts["test"], 1]
    assert np.abs(out["test"][:, 1] - truth).mean() < 0.3 * np.abs(truth - np.median(gap)).mean()


def test_ridge_recovers_a_linear_rule(root):
    t = properties.task(make())
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(t.labels), 5))
    linear = dataclasses.replace(t, labels=features @ rng.normal(size=(5, 2)) + 3)
    parts = properties.rows(linear, Fit("ridge", "random", 100.0, 0, 0))
    out = properties.fit_ridge(linear, parts, features)
    np.testing.assert_allclose(out["test"], linear.labels[parts["test"]], atol=1e-3)


def test_pretrained_starts_from_the_released_tower_and_scratch_does_not(root):
    t = properties.task(make())
    released = t.model.towers["crystal"].state_dict()
    for arm, same in (("pretrained", True), ("scratch", False)):
        mine = properties.regressor(t, Fit(arm, "random", 100.0, 5, 1)).tower.state_dict()
        assert mine.keys() == released.keys()
        assert all(torch.equal(mine[name], released[name]) for name in mine) == same


def test_a_new_pretrained_model_refits_only_the_arms_that_use_it(root):
    t = properties.task(make())
    other = dataclasses.replace(t, weights="another")
    changed = {
        arm
        for arm in properties.ARMS
        if properties.key(t, fit := Fit(arm, "random", 100.0, 0, 1)) != properties.key(other, fit)
    }
    assert changed == {"pretrained", "ridge"}


def test_finished_fits_are_not_fitted_again(fitted, monkeypatch):
    for name in ("fit_tower", "fit_composition", "fit_ridge", "fit_dummy"):
        monkeypatch.setattr(properties, name, None)
    again = properties.fit_all(make(bootstrap=7))
    assert list(again) == list(fitted)
    for fit, result in again.items():
        np.testing.assert_array_equal(result["test"], fitted[fit]["test"])
    with pytest.raises(TypeError):
        properties.fit_all(make(learning_rate=1e-4))


def test_a_killed_fit_goes_on_to_the_same_predictions(root, monkeypatch):
    cfg = make(batch_size=16, arms="scratch")
    fit = Fit("scratch", "random", 50.0, 0, 12)
    monkeypatch.setattr(properties, "CHECKPOINT_STEPS", 5)
    whole = properties.solve(dataclasses.replace(cfg, weight_decay=0.01), fit)
    state = scratch.folder("properties", properties.key(properties.task(cfg), fit)) / "state.safetensors"
    assert not state.exists()
    (state.parent / "result.safetensors").unlink()

    write, steps = properties.checkpoint, []

    def killed(file, model, optimizer, *, step, **rest):
        write(file, model, optimizer, step=step, **rest)
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(properties, "checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        properties.solve(cfg, fit)
    assert state.exists()
    again = properties.solve(cfg, fit)
    assert steps == [5, 10]  # the second run did not begin anew
    for name in ("val", "test"):
        np.testing.assert_array_equal(again[name], whole[name])
    assert not state.exists()


def test_the_number_of_processes_changes_nothing(root, monkeypatch):
    monkeypatch.setattr(properties, "WORTH_A_PROCESS", 0)
    one, two = (make(threads=n, arms="scratch ridge", runs="random:50:1", steps=6, min_steps=6) for n in (1, 2))
    first = properties.fit_all(one)
    for folder in (paths.SCRATCH / "properties").iterdir():
        if any(json.loads((folder / "key.json").read_text())["fit"] == vars(fit) for fit in first):
            (folder / "result.safetensors").unlink()
    second = properties.fit_all(two)
    assert list(first) == list(second)
    for fit in first:
        np.testing.assert_array_equal(first[fit]["test"], second[fit]["test"])


def test_metrics_by_hand(root):
    """Errors of known size in every arm: the tables, gains and verdicts follow."""
    cfg = make(arms="dummy scratch pretrained", runs="chemsys:5:5 random:100:1", bootstrap=200)
    t = properties.task(cfg)
    size = {"dummy": 1.0, "scratch": 0.2, "pretrained": 0.15}
    results = {}
    for fit in properties.plan(cfg):
        test = np.flatnonzero(t.splits[fit.split] == "test")
        val = np.flatnonzero(t.splits[fit.split] == "val")
        results[fit] = {
            "test": t.labels[test] + size[fit.arm],
            "val": t.labels[val] - size[fit.arm],
            "test_rows": test,
            "val_rows": val,
            "train_rows": np.flatnonzero(t.splits[fit.split] == "train"),
        }
    metrics = properties.metrics(cfg, results)
    assert json.loads(json.dumps(metrics, allow_nan=False))["synthetic"] is False
    row = next(
        r
        for r in metrics["results"]
        if (r["split"], r["target"], r["arm"], r["metric"]) == ("chemsys", properties.E_F, "scratch", "MAE")
    )
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.2] * 3)
    test = t.splits.chemsys == "test"
    assert (row["n_test"], row["n_chemsys"]) == (test.sum(), t.materials.chemsys[test].nunique())
    assert (row["seeds"], row["unit"], row["label_percent"]) == (5, "eV/atom", 5)
    gap = next(r for r in metrics["results"] if r["split"] == "chemsys" and r["target"] == "band_gap_eV")
    assert gap["n_test"] == (test & t.materials.band_gap_eV.notna()).sum() < test.sum()
    assert {r["metric"] for r in metrics["results"]} == {"MAE", "RMSE"}

    gain = next(r for r in metrics["comparisons"] if r["split"] == "chemsys" and r["target"] == properties.E_F)
    assert (gain["baseline"], gain["gain_percent"]) == ("scratch", pytest.approx(25))
    assert all(r["p_holm"] >= r["p"] for r in metrics["comparisons"])
    claims = {c["claim"]: c for c in metrics["claims"]}
    prereg = claims["pre-registered: E_f, pretrained against scratch"]
    assert prereg["verdict"] == "STRONG"
    assert "; the pre-registered cell" in prereg["note"]
    assert claims["E_f gain of at least 15 %, all labels, random split"]["verdict"] == "PASS"
    assert "E_f gain of at least 15 %, all labels, chemsys split" not in claims
    below = claims["E_f MAE below 0.1 eV/atom, random split"]
    assert (below["value"], below["verdict"]) == (pytest.approx(0.15), "FAIL")
    assert below["note"].startswith("pretrained")  # best on validation
    true, predicted = metrics["parity"]["true"], metrics["parity"]["predicted"]
    np.testing.assert_allclose(np.subtract(predicted, true), 0.15)
    assert len(true) == (t.splits.random == "test").sum()


@pytest.mark.parametrize(
    ("gain", "low", "prereg", "verdict"),
    [
        (14.9, 5, True, "FAIL"),
        (20, -1, True, "FAIL"),
        (20, 1, True, "PASS"),
        (20, 15, True, "STRONG"),
        (20, 16, False, "PASS"),
    ],
)
def test_verdicts(gain, low, prereg, verdict):
    row = {"gain_percent": gain, "low": low, "high": 40}
    assert properties._gain_claim("c", row, "n", prereg=prereg)["verdict"] == verdict


def test_another_cell_than_the_pre_registered_one_says_so(fitted):
    metrics = properties.metrics(make(), fitted)
    note = next(c["note"] for c in metrics["claims"] if c["claim"].startswith("pre-registered"))
    assert "50 % of labels" in note
    assert "not the pre-registered cell" in note
    assert {r["baseline"] for r in metrics["comparisons"]} == {"composition", "cgconv", "scratch", "ridge"}
    assert metrics["fits"] == sorted(metrics["fits"], key=lambda r: tuple(r.values())[:4])
