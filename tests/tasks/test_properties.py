"""Property prediction on 168 binary salts whose labels follow a rule of composition and structure."""

import dataclasses
import itertools
import json

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from joblib.externals.loky import get_reusable_executor
from sklearn.metrics import accuracy_score, f1_score

from matalign import cache, config, elements, paths, stats
from matalign.config import Run
from matalign.data import dataset, splits
from matalign.data.dataset import Curated, Structures
from matalign.pretrain import align, encode, launch
from matalign.quantities import ENERGY as E_F
from matalign.tasks import fit as loop
from matalign.tasks.properties import arms, baselines, fits, networks, properties
from matalign.tasks.properties.arms import Fit
from matalign.tasks.properties.labels import errors
from matalign.tasks.properties.task import _shown, frozen, rows, task
from matalign.towers.text import TextTower

CATIONS = [3, 11, 19, 37, 55, 4, 12, 20, 38, 56, 29, 47, 30, 48]
ANIONS = [9, 17, 35, 53, 8, 16]
FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SITES = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
TWO = {E_F: 1.0, "band_gap_eV": 1.0}
METAL = {E_F: 1.0, "is_metal": 0.1}
FIT = Fit(tuple(TWO.items()), "scratch", "A", "random", 100.0, 0, 1)


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
                        "is_metal": np.nan if len(rows) >= 158 else float(x_a - x_c < 1.6),
                        "bulk_modulus_GPa": np.nan if len(rows) % 3 else 10 ** (2 - a / 10),
                        "shear_modulus_GPa": np.nan if len(rows) % 3 else 10 ** (1.5 - a / 10),
                    }
                )
    materials = pd.DataFrame(rows)
    protocols = pd.DataFrame([protocol(i, k, rows[i]) for i in range(0, len(rows), 2) for k in range(1 + i % 3)])
    parts, protocols["train_ok"] = splits.build(materials, protocols, seed=0)
    return Curated(materials, Structures.pack(crystals), protocols, parts, audit={})


def protocol(i: int, k: int, row: dict) -> dict:
    """Every second salt has one to three; every tenth DOI is that of a neighbour as well."""
    texts = {f"text_L{level}": f"mix the salt and fire at {100 + i + 7 * k + level} in air" for level in range(4)}
    about = {"doi": f"10.1/{i - 2 * (i % 10 == 0)}", "method": "solid-state", "target_formula": row["formula"]}
    about |= {"precursors": [row["formula"]], "max_temperature_C": 100.0 + i}
    return {"protocol_id": f"p{i:03d}-{k}", "mp_id": row["mp_id"], **about, **texts}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project's folder with the salts and an untrained model."""
    folder = tmp_path_factory.mktemp("properties")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ROOT": folder, "DATA": folder / "data", "SCRATCH": folder / ".scratch"}.items():
            patch.setattr(paths, name, value)
        patch.setattr(baselines, "TREES", 80)
        patch.setenv("MATALIGN_ROOT", str(folder))  # for the processes of `fit_all`
        patch.setenv("MATALIGN_SCRATCH", str(folder / ".scratch"))
        dataset.write(paths.curated("salts"), salts())
        towers = {"modalities": "crystal text image", "width": 24, "layers": 2, "order": 2}
        pretrain = tiny.pretrain(tiny.bert(folder / "bert"), **towers)
        model = paths.results("salts") / "pretrained"
        model.mkdir(parents=True)
        align.save(align.build(pretrain), model)
        (model / "control").mkdir()
        align.save(align.build(launch.alone(dataclasses.replace(pretrain, seed=1))), model / "control")
        fingerprint = TextTower(pretrain.text_model).fingerprint
        about = {"pretrain": dataclasses.asdict(pretrain), "text_model_hash": fingerprint}
        (model / "config.json").write_text(json.dumps(about))
        yield folder


def make(**changes) -> config.Properties:
    """A config; `targets` and `runs` are those of one group, if they are not maps of several."""
    values = {**vars(config.load("properties", "tiny")), "profile": "salts", "threads": 1, "seed": 0, "targets": TWO}
    values |= {"arms": ["dummy", "composition", "cgconv", "scratch", "pretrained", "ridge"]}
    values |= {"runs": [Run("random", 100.0, 1), Run("chemsys", 50.0, 2)], "bootstrap": 50}
    values |= {"steps": 120, "min_steps": 60, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 0.01} | changes
    if isinstance(values["runs"], list):
        values |= {"targets": {"group": values["targets"]}, "runs": {"group": values["runs"]}}
    return config.build(config.Properties, values, where="test")


@pytest.fixture(scope="module")
def fitted(root):
    return fit_all(make())


def fit_all(cfg):
    return fits.fit_all(cfg, fits.plan(cfg))


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [Run("random", 100.0, 1, "C")],
        [Run("scaffold", 5.0, 1)],
        [Run("chemsys", 0.0, 1)],
        [Run("chemsys", 101.0, 1)],
        [Run("random", 5.0, 0)],
    ],
)
def test_runs_that_cannot_be_are_refused(runs):
    with pytest.raises(ValueError, match=r"Run\(|runs: group"):
        arms.groups(make(runs=runs))


def test_each_group_of_targets_has_its_weights_and_runs():
    runs = {"one": [{"split": "random", "percent": 100, "seeds": 1, "cohort": "B", "also": ["text"]}]}
    runs["two"] = [Run("chemsys", 20.0, 3), Run("chemsys", 100.0, 1)]
    assert arms.groups(make(targets={"one": METAL, "two": {"bulk_modulus_GPa": 1}}, runs=runs)) == {
        ((E_F, 1.0), ("is_metal", 0.1)): (Run("random", 100.0, 1, "B", ("text",)),),
        (("bulk_modulus_GPa", 1.0),): tuple(runs["two"]),
    }


@pytest.mark.parametrize(
    "profile", sorted(yaml.safe_load(paths.PARAMS.read_text()).keys() - {"base", "profiles", "versions"})
)
def test_every_profile_says_which_groups_run_where(profile):
    found = arms.groups(config.load("properties", profile))
    assert E_F in dict(next(iter(found)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"group": TWO, "other": {"is_metal": 1}}, "targets: group, other, but runs: group"),
        ({"group": {E_F: 0}}, "weight above 0"),
        ({"group": {}}, "expected both of each group"),
        ({"group": {E_F: "x"}}, "targets.group.formation_energy_eV_atom must be float, got 'x'"),
        ({"group": [E_F]}, "targets.group must be a map"),
    ],
)
def test_malformed_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        arms.groups(make(targets=targets, runs={"group": [Run("random", 100.0, 1)]}))


def test_a_target_in_two_groups_is_refused():
    runs = {name: [Run("random", 100.0, 1)] for name in ("one", "two")}
    with pytest.raises(ValueError, match="expected once"):
        arms.groups(make(targets={"one": TWO, "two": {E_F: 1}}, runs=runs))


def test_the_plan_gives_all_networks_of_a_cell_the_same_steps(root):
    runs = [Run("chemsys", 1.0, 2), Run("chemsys", 10.0, 1), Run("chemsys", 100.0, 1, without=("cgconv",))]
    runs = {"one": [*runs, Run("chemsys", 100.0, 1, "B")], "two": [Run("chemsys", 100.0, 1)]}
    targets = {"one": TWO, "two": {"bulk_modulus_GPa": 1.0}}
    cfg = make(targets=targets, runs=runs, arms=["dummy", "cgconv", "scratch", "scratch_long"])
    plan = fits.plan(dataclasses.replace(cfg, steps=1000, min_steps=100, seed=7))
    steps = {(f.arm, f.cohort, f.percent, f.seed): f.steps for f in plan if E_F in f.weights}
    assert steps["scratch", "A", 1, 7] == steps["cgconv", "A", 1, 8] == 100
    assert steps["scratch", "A", 10, 7] == 316  # geometric mean of 100 and 1000
    assert steps["scratch", "A", 100, 7] == 1000
    assert steps["scratch_long", "A", 10, 7] == 948
    assert steps["dummy", "A", 100, 7] == 0
    assert ("cgconv", "A", 100, 7) not in steps
    assert len(steps) == 2 * 4 + 4 + 3 + 4
    # as many as the labels ask for: cohort B has fewer, and a third of the salts a modulus
    assert 300 < steps["cgconv", "B", 100, 7] < 1000
    (bulk,) = (f.steps for f in plan if f.arm == "scratch" and E_F not in f.weights)
    assert bulk == round(1000 * 10 ** (np.log(1 / 3) / np.log(100)))


def test_unknown_names_are_refused(root):
    with pytest.raises(ValueError, match="arms: unknown 'pretraned', the nearest is 'pretrained'"):
        fits.plan(make(arms=["dummy", "pretraned"]))
    with pytest.raises(ValueError, match="arms: unknown 'ild'"):
        fits.plan(make(runs=[Run("random", 100.0, 1, also=("ild",))]))
    with pytest.raises(ValueError, match="targets: no column 'gap'"):
        task(make(targets={"gap": 1.0}))


def test_an_arm_without_its_modality_is_refused_when_planned(root):
    with pytest.raises(ValueError, match="text in cohort A: needs text"):
        fits.plan(make(arms=["dummy", "text"]))
    towers = ("crystal", "text")
    for arm, cohort, want in (("early_fusion", "A", "needs image"), ("image", "B", "needs image")):
        with pytest.raises(ValueError, match=want):
            arms.read(arm, cohort, towers)
    assert arms.read("early_fusion", "B", towers) == ["text"]
    assert arms.read("early_fusion", "B", (*towers, "image")) == ["image", "text"]


def test_labelled_sets_are_nested_and_the_test_set_is_whole(root):
    t = task(make())
    parts = [rows(t, dataclasses.replace(FIT, split="chemsys", percent=p, seed=3)) for p in (30.0, 60.0, 100.0)]
    for smaller, larger in itertools.pairwise(parts):
        for name in ("train", "val"):
            assert set(smaller[name]) < set(larger[name])
        assert (smaller["test"] == larger["test"]).all()
    systems = [set(t.curated.materials.chemsys.iloc[parts[-1][name]]) for name in ("train", "val", "test")]
    assert sum(map(len, systems)) == len(set.union(*systems)) == len(CATIONS) * len(ANIONS)
    other = rows(t, dataclasses.replace(FIT, split="chemsys", percent=30.0, seed=4))
    assert set(other["train"]) != set(parts[0]["train"])


def test_an_empty_part_is_an_error(root):
    with pytest.raises(ValueError, match=r"chemsys split at 0.001 % of labels, cohort A, seed 0: no material in train"):
        rows(task(make()), dataclasses.replace(FIT, split="chemsys", percent=0.001))


def test_every_learned_arm_beats_the_median_and_structure_beats_composition(fitted):
    t = task(make())
    mae = {}
    for fit, result in fitted.items():
        if fit.split == "random":
            mae[fit.arm] = np.nanmean(np.abs(result["test"] - t.labels[list(TWO)].to_numpy()[result["test_rows"]]), 0)
    for arm in ("composition", "cgconv", "scratch", "pretrained", "ridge"):
        assert (mae[arm] < 0.8 * mae["dummy"]).all(), (arm, mae)
    # Two structures of one composition, 0.6 eV/atom apart: blind to structure, no error is below 0.3.
    assert mae["composition"][0] > 0.25
    assert mae["scratch"][0] < 0.15
    assert mae["pretrained"][0] < 0.15


def test_composition_gives_both_structures_of_a_salt_the_same_value(fitted):
    fit, result = next((f, r) for f, r in fitted.items() if f.arm == "composition" and f.split == "chemsys")
    t = task(make())
    predicted = pd.Series(result["test"][:, 0], index=t.curated.materials.formula.iloc[result["test_rows"]])
    assert (predicted.groupby(level=0).nunique() == 1).all()
    assert fit.steps == 0


def test_composition_learns_where_most_labels_are_zero(root):
    t = task(make())
    gap = np.maximum(t.curated.materials.formula.str.contains("Cl|Br").to_numpy(float) * 3 - 0.5, 0)
    assert (gap == 0).mean() > 0.6
    parts = rows(t, FIT)
    x = baselines.composition_features(t.curated.structures)
    out = baselines.each_target(baselines.boosting, x, ["band_gap_eV"], gap[:, None], parts)
    truth = gap[parts["test"]]
    assert np.abs(out["test"][:, 0] - truth).mean() < 0.3 * np.abs(truth - np.median(gap)).mean()


def test_networks_start_from_the_released_tower_only_where_they_should(root):
    t = task(make())
    released = t.model.towers["crystal"].state_dict()
    pooled = [torch.zeros(3, 5)]
    for arm in ("scratch", "pretrained", "early_fusion", "cross_attention", "pretrained_fusion"):
        mine = fits.network(t, dataclasses.replace(FIT, arm=arm, seed=5), pooled).tower.state_dict()
        assert mine.keys() == released.keys()
        assert all(torch.equal(mine[name], released[name]) for name in mine) == arm.startswith("pretrained")


def test_a_new_pretrained_model_refits_only_the_arms_that_use_it(root, monkeypatch):
    t = task(make())
    every = [dataclasses.replace(FIT, arm=arm, cohort="B") for arm in arms.ARMS]
    before = [fits.key(t, fit) for fit in every]
    monkeypatch.setattr(encode, "fingerprint", lambda *_: "another")
    changed = {fit.arm for fit, key in zip(every, before) if fits.key(t, fit) != key}
    assert changed == {"pretrained", "slow_tower", "auxiliary", "ridge", "probe", *arms.FUSED, *arms.SINGLE}


def test_finished_fits_are_not_fitted_again(fitted, monkeypatch):
    monkeypatch.setattr(networks, "train", None)
    monkeypatch.setattr(baselines, "each_target", None)
    again = fit_all(make(bootstrap=7))
    assert list(again) == list(fitted)
    for fit, result in again.items():
        np.testing.assert_array_equal(result["test"], fitted[fit]["test"])
    with pytest.raises(TypeError):
        fit_all(make(learning_rate=1e-4))


def test_compiled_networks_have_keys_of_their_own_and_the_others_keep_theirs(root):
    plain, fast = make(), make(compiled=True)
    assert "compiled" not in fits.key(task(plain), FIT)
    for arm, fit in ((arm, dataclasses.replace(FIT, arm=arm, cohort="B")) for arm in arms.ARMS):
        assert (fits.key(task(plain), fit) != fits.key(task(fast), fit)) == (arm in arms.NETWORKS)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of torch.compile, of its own imports
def test_a_killed_fit_goes_on_to_the_same_predictions(root, monkeypatch, compiled):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", compiled)  # its checks stop the compiler
    cfg = make(batch_size=16, arms=["scratch"], compiled=compiled)
    fit = dataclasses.replace(FIT, percent=50.0, steps=12)
    monkeypatch.setattr(networks, "CHECKPOINT_STEPS", 5)
    whole = fits.fit_or_load(dataclasses.replace(cfg, weight_decay=0.01), fit)
    state = cache.folder("properties", fits.key(task(cfg), fit)) / "state.pt"
    assert not state.exists()
    (state.parent / "result.safetensors").unlink()

    write, steps = loop._save, []

    def killed(*args, step, **rest):
        write(*args, step=step, **rest)
        steps.append(step)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        fits.fit_or_load(cfg, fit)
    assert state.exists()
    again = fits.fit_or_load(cfg, fit)
    assert steps == [5, 10]  # the second run did not begin anew
    for name in ("val", "test"):
        np.testing.assert_array_equal(again[name], whole[name])
    assert not state.exists()


def test_the_number_of_processes_changes_nothing(root, monkeypatch):
    monkeypatch.setattr(fits, "WORTH_A_PROCESS", 0)
    options = {"arms": ["scratch", "ridge"], "runs": [Run("random", 50.0, 1)], "steps": 6, "min_steps": 6}
    one, two = (make(threads=n, **options) for n in (1, 2))
    first = fit_all(one)
    for folder in (paths.SCRATCH / "properties").iterdir():
        made = json.loads((folder / "key.json").read_text())["fit"]
        if any(made == json.loads(json.dumps(vars(fit))) for fit in first):
            (folder / "result.safetensors").unlink()
    get_reusable_executor().shutdown()  # processes of other tests have another root
    second = fit_all(two)
    assert list(first) == list(second)
    for fit in first:
        np.testing.assert_array_equal(first[fit]["test"], second[fit]["test"])


def test_metrics_by_hand(root):
    """Errors of known size in every arm: the tables, gains and verdicts follow."""
    cfg = make(
        arms=["dummy", "scratch", "pretrained"], runs=[Run("chemsys", 5.0, 5), Run("random", 100.0, 1)], bootstrap=200
    )
    t = task(cfg)
    size = {"dummy": 1.0, "scratch": 0.2, "pretrained": 0.15}
    labels = t.labels[list(TWO)].to_numpy()
    results = {}
    for fit in fits.plan(cfg):
        test = np.flatnonzero(t.curated.splits[fit.split] == "test")
        val = np.flatnonzero(t.curated.splits[fit.split] == "val")
        results[fit] = {
            "test": labels[test] + size[fit.arm],
            "val": labels[val] - size[fit.arm],
            "test_rows": test,
            "val_rows": val,
            "train_rows": np.flatnonzero(t.curated.splits[fit.split] == "train"),
        }
    metrics = properties.metrics(cfg, results)
    assert json.loads(json.dumps(metrics, allow_nan=False))["synthetic"] is False
    row = next(
        r
        for r in metrics["results"]
        if (r["split"], r["target"], r["arm"], r["metric"]) == ("chemsys", E_F, "scratch", "MAE")
    )
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.2] * 3)
    test = t.curated.splits.chemsys == "test"
    assert (row["n_test"], row["n_chemsys"]) == (test.sum(), t.curated.materials.chemsys[test].nunique())
    assert (row["seeds"], row["unit"], row["label_percent"]) == (5, "eV/atom", 5)
    gap = next(r for r in metrics["results"] if r["split"] == "chemsys" and r["target"] == "band_gap_eV")
    assert gap["n_test"] == (test & t.curated.materials.band_gap_eV.notna()).sum() < test.sum()
    assert {r["metric"] for r in metrics["results"]} == {"MAE", "RMSE"}

    gain = next(r for r in metrics["comparisons"] if r["split"] == "chemsys" and r["target"] == E_F)
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
    assert len(true) == (t.curated.splits.random == "test").sum()


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
    row = {"gain_percent": gain, "low": low, "high": 40, "arm": "pretrained", "baseline": "scratch"}
    row |= {"cohort": "A", "split": "random", "label_percent": 5.0, "target": E_F}
    assert properties._gain_claim("c", row, None, "n", prereg=prereg)["verdict"] == verdict


@pytest.mark.parametrize(("size", "verdict"), [(0.15, "FAIL"), (0.25, "PASS")])
def test_a_gain_that_the_control_shares_is_not_the_contrastive_losses(root, size, verdict):
    compared = ["scratch", "auxiliary", "pretrained"]
    cfg = make(arms=compared, runs=[Run("chemsys", 5.0, 5)], targets={E_F: 1.0}, bootstrap=2000)
    t, sizes = task(cfg), {"scratch": 0.2, "auxiliary": size, "pretrained": 0.15}
    labels, part = t.labels[[E_F]].to_numpy(), t.curated.splits.chemsys
    rows = {f"{name}_rows": np.flatnonzero(part == name) for name in ("train", "val", "test")}
    results = {
        fit: rows | {name: labels[rows[f"{name}_rows"]] + sizes[fit.arm] for name in ("val", "test")}
        for fit in fits.plan(cfg)
    }
    claims = {c["claim"]: c for c in properties.metrics(cfg, results)["claims"]}
    assert claims["pre-registered: E_f, pretrained against scratch"]["verdict"] == "STRONG"
    share = claims["of that gain, the contrastive loss has a share"]
    assert share["verdict"] == verdict
    assert share["value"] == pytest.approx(100 * (1 - 0.15 / size))
    gain = 100 * (1 - size / 0.2)
    assert f"which gains {0 + gain:.1f} [{0 + gain:.1f}, {0 + gain:.1f}] % on scratch" in share["note"]


@pytest.mark.parametrize(("size", "verdict"), [(0.15, "PASS"), (0.25, "FAIL")])
def test_the_probe_is_to_beat_composition_at_every_share(root, size, verdict):
    """At all labels its error is 0.1 against 0.2 everywhere; at 50 % it is `size`."""
    cfg = make(arms=["composition", "probe"], runs=[Run("chemsys", 50.0, 2), Run("chemsys", 100.0, 1)], bootstrap=2000)
    t = task(cfg)
    labels, part = t.labels[list(TWO)].to_numpy(), t.curated.splits.chemsys
    rows = {f"{name}_rows": np.flatnonzero(part == name) for name in ("train", "val", "test")}
    off = {("composition", 50.0): 0.2, ("composition", 100.0): 0.2, ("probe", 50.0): size, ("probe", 100.0): 0.1}
    results = {
        fit: rows | {name: labels[rows[f"{name}_rows"]] + off[fit.arm, fit.percent] for name in ("val", "test")}
        for fit in fits.plan(cfg)
    }
    (claim,) = (c for c in properties.metrics(cfg, results)["claims"] if "probe" in c["claim"])
    assert claim["verdict"] == verdict
    assert claim["value"] == pytest.approx(100 * (1 - size / 0.2))
    assert "labels: 50 % (chemsys), 100 % (chemsys); here the least: 50 %" in claim["note"]


def test_a_probe_of_all_layers_tells_structures_apart(root):
    """Two structures of a composition, 0.6 eV/atom apart: an untrained tower's layers tell, the elements cannot."""
    t, mae = task(make()), {}
    for arm in arms.PROBES:
        fit = dataclasses.replace(FIT, arm=arm, steps=0)
        found = fits.fit_or_load(make(), fit)
        mae[arm] = np.nanmean(np.abs(found["test"] - t.labels[list(TWO)].to_numpy()[found["test_rows"]]), 0)[0]
    assert mae["composition_probe"] > 0.25
    assert mae["probe"] < 0.15


def test_another_cell_than_the_pre_registered_one_says_so(fitted):
    metrics = properties.metrics(make(), fitted)
    note = next(c["note"] for c in metrics["claims"] if c["claim"].startswith("pre-registered"))
    assert "50 % of labels" in note
    assert "not the pre-registered cell" in note
    assert {r["baseline"] for r in metrics["comparisons"]} == {"composition", "cgconv", "scratch", "ridge"}
    assert metrics["fits"] == sorted(metrics["fits"], key=lambda r: str(tuple(r.values())[:6]))


# ------------------------------------------------------------------------------------------- cohort B and other inputs


def test_cohort_b_is_made_of_materials_with_a_protocol(root):
    t = task(make())
    made = t.curated.protocols
    parts = rows(t, dataclasses.replace(FIT, cohort="B", split="chemsys"))
    ids = {name: set(t.curated.materials.mp_id.iloc[part]) for name, part in parts.items()}
    everybody = rows(t, dataclasses.replace(FIT, split="chemsys"))
    assert ids["test"] == set(t.curated.materials.mp_id.iloc[everybody["test"]]) & set(made.mp_id)
    for name in ("train", "val"):
        mine = set(t.curated.materials.mp_id.iloc[everybody[name]]) & set(made.mp_id)
        assert ids[name] == mine & set(made.mp_id[made.train_ok])
        assert (ids[name] < mine) == (name == "train")  # of some, all protocols share a DOI with one that is tested


def test_no_text_of_a_test_protocol_is_trained_on(root):
    """Other words in all protocols that must not be trained on change the features of test materials alone."""
    t = task(make())
    table = t.curated.protocols.copy()
    table.loc[~table.train_ok, "text_L1"] = "grind the salt"
    other = dataclasses.replace(t, curated=dataclasses.replace(t.curated, protocols=table))
    model = encode.load(t.cfg.profile, modalities=["text"])
    made = (encode.encoded(model, each.curated, modality="text")["pooled"] for each in (t, other))
    before, after = (_shown(each, values)[:, 0] for each, values in zip((t, other), made, strict=True))
    for name, part in rows(t, dataclasses.replace(FIT, cohort="B", split="chemsys")).items():
        assert np.isfinite(before[part]).all()
        assert ((before[part] == after[part]).all(1) == (name != "test")).all()
    without = ~t.curated.materials.mp_id.isin(set(table.mp_id)).to_numpy()
    assert np.isnan(before[without]).all()


def test_text_features_are_the_mean_over_the_protocols_at_the_mask_level_of_pretraining(root):
    t = task(make())
    material = t.curated.materials.mp_id[t.curated.materials.mp_id.isin(t.protocols.mp_id.value_counts().index[:1])]
    texts = t.protocols.text_L1[t.protocols.mp_id == material.iloc[0]].tolist()
    assert len(texts) == 3
    made = frozen(t.cfg, "text")
    model = encode.load(t.cfg.profile)
    want = model.towers["text"].features(texts).mean(0)
    np.testing.assert_allclose(made["tokens"][material.index[0], 0], want, rtol=1e-5)
    aligned = model.embed_texts(texts).mean(0)
    np.testing.assert_allclose(made["embeddings"][material.index[0], 0], aligned, rtol=1e-4, atol=1e-6)


def test_an_image_is_one_view_and_its_tokens_are_the_cells_of_the_feature_map(root):
    t = task(make())
    found = frozen(t.cfg, "image")
    assert found["tokens"].shape == (168, 1, 2048)  # 32 px end as one cell
    pooled = encode.load(t.cfg.profile).aligned.heads["image"](
        torch.from_numpy(found["tokens"][:5].mean(1, dtype=np.float32))
    )
    cosine = torch.nn.functional.cosine_similarity(pooled, torch.from_numpy(found["embeddings"][:5, 0]))
    assert cosine.min() > 0.999


@pytest.mark.parametrize("arm", ["scratch", "pretrained", "ridge", *arms.FUSED, *arms.SINGLE])
def test_fused_arms_see_the_other_modalities_and_the_rest_do_not(root, monkeypatch, arm):
    """Another material's image and text, in test alone: who sees them predicts something else."""
    cfg = make(targets=METAL, batch_size=16)
    fit = dataclasses.replace(FIT, targets=tuple(METAL.items()), arm=arm, cohort="B", steps=3 * (arm in arms.NETWORKS))
    test = rows(task(cfg), fit)["test"]
    monkeypatch.setattr(cache, "memo", lambda stage, key, compute: compute())
    own = {m: frozen(cfg, m) for m in ("crystal", "image", "text")}
    found = {}
    for swapped in ("", "image", "text"):
        given = {m: dict(values) for m, values in own.items()}
        for name, values in given.get(swapped, {}).items():
            given[swapped][name] = values.copy()
            given[swapped][name][test] = values[np.roll(test, 1)]
        monkeypatch.setattr(fits, "frozen", lambda cfg, modality, given=given: given[modality])
        found[swapped] = fits.fit_or_load(cfg, fit)
        np.testing.assert_array_equal(found[swapped]["val"], found[""]["val"])
    for modality in ("image", "text"):
        sees = arm in arms.FUSED or arm == modality
        assert (found[modality]["test"][:, 0] != found[""]["test"][:, 0]).any() == sees


def test_every_arm_and_target_is_scored_in_both_cohorts(root):
    fused = Run("random", 100.0, 1, "B", also=("text", "image"))
    runs = {"one": [Run("random", 100.0, 1), fused], "two": [Run("random", 100.0, 1)]}
    targets = {"one": TWO | {"is_metal": 0.1}, "two": {"bulk_modulus_GPa": 1.0, "shear_modulus_GPa": 1.0}}
    both = [arm for arm in arms.ARMS if arm not in arms.SINGLE]
    cfg = make(targets=targets, runs=runs, arms=both, steps=2, min_steps=2)
    metrics = json.loads(json.dumps(properties.run(cfg), allow_nan=False))
    rows = {(r["cohort"], r["target"], r["arm"]): r for r in metrics["results"]}
    assert {arm for cohort, _, arm in rows if cohort == "B"} == set(arms.ARMS)
    assert {target for cohort, target, _ in rows if cohort == "A"} == {*list(TWO), "is_metal"} | {
        "bulk_modulus_GPa",
        "shear_modulus_GPa",
    }
    assert {r["metric"] for r in metrics["results"] if r["target"] == "is_metal"} == {"accuracy", "F1"}
    pairs = {(r["cohort"], r["arm"], r["baseline"]) for r in metrics["comparisons"]}
    assert {("A", "pretrained", "scratch"), ("B", "pretrained", "ridge")} < pairs
    assert {("A", "pretrained_fusion", "early_fusion"), ("B", "pretrained_fusion", "text")} < pairs
    assert not {(arm, baseline) for _, arm, baseline in pairs} & {
        ("pretrained", "early_fusion"),
        ("pretrained", "text"),
    }
    assert {r["error"] for r in metrics["comparisons"] if r["target"] == "is_metal"} == {"error rate"}
    best = [c["note"].split(",")[0] for c in metrics["claims"] if "MAE below" in c["claim"]]
    assert best
    assert set(best) <= set(arms.STRUCTURE_ONLY)  # a fused arm may be better; the claims are not about it


def test_accuracy_and_f1_are_scikit_learns(root):
    rng = np.random.default_rng(0)
    true, p = rng.integers(2, size=40).astype(float), rng.random((3, 40))
    wrong = np.stack([errors(row, true, "is_metal") for row in p])
    scores = properties.Scores(p, true, wrong, np.arange(40), n_train=1, val_error=0.0)
    for metric, reference in (("accuracy", accuracy_score), ("F1", f1_score)):
        values, statistic = scores.values(metric)
        found = stats.bootstrap(values, scores.clusters, statistic=statistic, resamples=5, seed=0).value
        assert found == pytest.approx(np.mean([reference(true, row > 0.5) for row in p]))


def test_a_gain_in_a_class_is_a_reduction_of_the_error_rate(root):
    cfg = make(targets={"is_metal": 1.0}, arms=["scratch", "pretrained"], runs=[Run("random", 100.0, 1)])
    t = task(cfg)
    results = {}
    for fit in fits.plan(cfg):
        parts = rows(t, fit)
        wrong = {"scratch": 4, "pretrained": 3}[fit.arm]
        out = {f"{name}_rows": r for name, r in parts.items()}
        for name in ("val", "test"):
            true = t.labels.is_metal.to_numpy()[parts[name]]
            out[name] = np.where(np.arange(len(true)) < wrong, 1 - true, true)[:, None]
        results[fit] = out
    (row,) = properties.metrics(cfg, results)["comparisons"]
    assert row["gain_percent"] == pytest.approx(25)
    assert row["difference"] == pytest.approx(1 / row["n_test"])  # of the accuracy
