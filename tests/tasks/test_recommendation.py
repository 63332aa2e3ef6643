"""Precursor sets and temperatures: spellings, what training may not share, baselines by hand, beam search, stage."""

import dataclasses
import itertools
import json
import math
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from rawfiles import reaction, write

from matalign import config, elements, paths
from matalign.data import formulas, protocols, recipes
from matalign.data.protocols import Operation, Protocol
from matalign.tasks.synthesis import precursors, recommendation, temperatures

FORBIDDEN = ["extracted_elements", "matching_precursors", "matching_precursors_length", "all_precursors_present"]


def recipe(formula, names, **known):
    values = {"doi": "", "method": "solid-state", **known}
    return Protocol(target_formula=formula, target_names=(), precursors=tuple(names), operations=(), **values)


FIVE = [
    recipe("BaTiO3", ["BaCO3", "TiO2"]),
    recipe("BaZrO3", ["BaCO3", "ZrO2"]),
    recipe("BaHfO3", ["BaO", "HfO2"]),
    recipe("SrTiO3", ["SrCO3", "TiO2"]),
    recipe("LiTi2(PO4)3", ["Li2CO3", "TiO2", "NH4H2PO4"]),
]


def spelt(*sets):
    return [frozenset(map(formulas.anhydrous, names)) for names in sets]


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("NH4H2AsO4", "AsH6NO4"),
        ("(NH4)2HPO4", "PH9(NO2)2"),
        ("FeC2O4·2H2O", "Fe(CO2)2"),
        ("Fe(NO3)3 • 9H2O", "Fe(NO3)3"),
        ("LiOH·H2O", "LiHO"),
        ("ZrOCl2·xH2O", "ZrCl2O"),
        ("Mg(OH)2·4MgCO3·5H2O", "Mg5C4H2O14"),
        ("Na2CO3", "NaC1/2O1.5"),
    ],
)
def test_one_spelling_for_one_precursor(written, same):
    assert formulas.anhydrous(written) == formulas.anhydrous(same)


def test_other_compounds_keep_other_spellings():
    names = ["MnO", "MnO2", "Mn2O3", "Mn3O4", "MnCO3", "H2O", "Fe(OH)2", "FeO", "NH4H2PO4", "(NH4)2HPO4"]
    assert len(set(map(formulas.anhydrous, names))) == len(names)
    with pytest.raises(ValueError, match="cannot read"):
        formulas.anhydrous("Xx2O")


def test_the_order_of_a_reactions_terms_does_not_matter():
    a, b = "1 TiO2 + 1  BaCO3 == 1 BaTiO3 + 1 CO2", "1 BaCO3 + 1 TiO2 == 1 CO2 + 1 BaTiO3"
    other = "2 TiO2 + 1 BaCO3 == 1 BaTi2O5 + 1 CO2"
    one, same, less = (recipe("BaTiO3", ["BaCO3", "TiO2"], reaction=text).equation for text in (a, b, other))
    assert one == same != less


def test_temperatures_are_those_of_the_last_step_of_a_kind():
    steps = [("calcined", 900.0), ("sintered", 1200.0), ("sintered", 1300.0), ("annealed", 700.0), ("sintered", None)]
    made = dataclasses.replace(FIVE[0], operations=tuple(Operation(*step) for step in steps))
    assert [made.temperature_C(kind) for kind in protocols.KINDS] == [1300.0, 700.0]
    heated = dataclasses.replace(FIVE[0], operations=(Operation("heated", 800.0),))
    assert np.isnan([heated.temperature_C(kind) for kind in protocols.KINDS]).all()


def test_known_recipes_do_not_depend_on_the_order_of_the_file(tmp_path):
    made = [
        reaction("BaTiO3", temperature_C=1250.0),
        reaction("BaTiO3", doi="10.1000/y"),
        reaction("SrTiO3", ["SrCO3", "TiO2"], temperature_C=2600.0),  # absurd
        reaction("CaTiO3", ["CaCO3", "TiO2"], targets=["CaTiO3", "Ca2Ti2O6", "Ca2TiO4"]),
        reaction("ZnO", ["Zn(x)"]),  # unreadable
    ]
    one, other = (recipes.known(write(tmp_path / n, [], rows)) for n, rows in (("a", made), ("b", made[::-1])))
    assert one == other
    assert [r.target_formula for r in one] == ["BaTiO3", "BaTiO3", "CaTiO3", "Ca2TiO4"]
    assert {r.weight for r in one if r.target_formula.startswith("Ca")} == {0.5}
    assert {r.temperature_C("sintering") for r in one} == {1200.0, 1250.0}
    assert one[0].precursor_set == spelt(["BaCO3", "TiO2"])[0]


def test_nothing_that_training_keeps_is_shared_with_a_test():
    held = [
        recipe("Ba2TiO4", ["BaCO3", "TiO2"]),
        recipe("NaCl", ["Na", "Cl2"], reaction="SrCO3 + TiO2 == CO2 + SrTiO3", doi="10.1/z"),
    ]
    rows = [dataclasses.replace(FIVE[3], reaction="TiO2 + SrCO3 == SrTiO3 + CO2")]
    rows += [FIVE[0], FIVE[1], dataclasses.replace(FIVE[2], doi="10.1/z")]
    assert recipes.without(rows, held, system=True, reaction=True) == [FIVE[1], rows[3]]
    assert recipes.without(rows, held, system=True, doi=True) == [rows[0], FIVE[1]]
    assert recipes.without(rows, held) == rows


def test_distinct_recipes_bring_every_element_and_no_other():
    rows = [FIVE[0], recipe("Ba2TiO4", ["BaCO3", "TiO2"]), recipe("BaTiO3", ["BaO", "TiO2"])]
    rows += [recipe("BaTiO3", ["BaCO3"]), recipe("BaTiO3", ["BaCO3", "TiO2", "ZrO2"])]
    rows += [recipe("BaTiO3", ["BaCO3", "TiO2", "C"]), recipe("BaTiO3", ["BaC2O4", "TiO2"], method="sol-gel")]
    assert recipes.distinct(rows) == [rows[0], rows[2]]


@pytest.fixture
def altered(tmp_path):
    """The sample's raw files, whose columns with the answer are changed by a function."""

    def make(change):
        folder = tmp_path / "raw"
        shutil.copytree(paths.SAMPLE, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        for name in ("val.csv", "test_reduced.csv"):
            file = folder / "public_tests" / name
            change(pd.read_csv(file, na_filter=False)).to_csv(file, index=False)
        return folder

    return make


@pytest.fixture(scope="module")
def tiny():
    return dataclasses.replace(config.load("recommendation", "tiny"), threads=1)


@pytest.mark.parametrize(
    "change", [lambda t: t.drop(columns=FORBIDDEN), lambda t: t.assign(**dict.fromkeys(FORBIDDEN, "the answer"))]
)
def test_the_columns_with_the_answer_are_never_read(altered, tiny, change, monkeypatch):
    read, seen = pd.read_csv, []

    def spy(*args, **kwargs):
        seen.append(read(*args, **kwargs))
        return seen[-1]

    expected = recommendation.prepare(tiny)
    folder = altered(change)
    monkeypatch.setattr(pd, "read_csv", spy)
    study = recommendation.prepare(dataclasses.replace(tiny, raw=str(folder)))
    assert (study.val, study.test, study.training) == (expected.val, expected.test, expected.training)
    assert len(seen) == 5
    for table in seen:
        assert not set(table) & set(FORBIDDEN)
        assert not table.isin(["the answer"]).any(axis=None)


def test_popularity_by_hand():
    counts = precursors.popular(FIVE)
    barium = {formulas.anhydrous("BaCO3"): 2, formulas.anhydrous("BaO"): 1}
    assert counts["Ba"] == barium
    assert counts["P"] == Counter([formulas.anhydrous("NH4H2PO4")])
    found = precursors.popularity(formulas.fractions("BaTi2O5"), counts, beam=10, k=10)
    assert found == spelt(["BaCO3", "TiO2"], ["BaO", "TiO2"])  # 2/3, 1/3
    assert precursors.popularity(formulas.fractions("BaTi2O5"), counts, beam=10, k=1) == found[:1]


def test_popularity_leaves_out_precursors_with_foreign_elements():
    counts = precursors.popular([*FIVE, *[recipe("BaSnO3", ["BaSnO3"])] * 9])
    found = precursors.popularity(formulas.fractions("Ba2TiO4"), counts, beam=10, k=3)
    assert found == spelt(["BaCO3", "TiO2"], ["BaO", "TiO2"])


def test_nearest_copies_the_closest_target_first():
    found = precursors.nearest([formulas.fractions("Ba1.1Ti0.9O3")], FIVE, k=2)
    assert found[0][0] == spelt(["BaCO3", "TiO2"])[0]
    assert len(found[0]) == 2


def test_exact_sets_count_in_any_order_and_only_whole():
    truth = spelt(["TiO2", "BaCO3"])
    right, part = spelt(["BaCO3", "TiO2"], ["TiO2"])
    assert precursors.hits([[right]], truth)[:, 0].tolist() == [1, 1, 1]
    assert precursors.hits([[part] * 4 + [right]], truth)[:, 0].tolist() == [0, 1, 1]
    assert precursors.hits([[part] * 9 + [right]], truth)[:, 0].tolist() == [0, 0, 1]
    assert precursors.hits([[part]], truth)[:, 0].tolist() == [0, 0, 0]


def test_ranks_of_several_lists_are_fused_by_their_reciprocals():
    x, y, z = spelt(["TiO2"], ["BaO2"], ["BaCO3"])
    # x: 1/61 = 0.0164; y: 1/62 + 1/61 = 0.0325; z: 1/62 = 0.0161
    assert precursors.fused([[[x, y], None], [[y, z], [x]]]) == [[y, x, z], None]


def test_proposals_are_found_by_target_and_true_set_and_each_set_counts_once(tmp_path):
    test = [recipe("BaTiO3", ["BaCO3", "TiO2"]), recipe("SrTiO3", ["SrCO3", "TiO2"])]
    asked = {"target": "BaTiO3", "ground_truth": ["TiO2", "BaCO3"]}
    sets = [["BaO", "Ti metal"], ["TiO2", "BaCO3"], ["BaCO3", "TiO2"], []]
    summary = {"target": "SUMMARY", "ground_truth": [], "response": {}}
    (tmp_path / "proposed_x.json").write_text(json.dumps([{**asked, "response": sets}, summary]))
    found = recipes.proposals(tmp_path / "proposed_x.json", test)
    assert found == [[frozenset({"Ba1O1", "Ti metal"}), test[0].precursor_set, frozenset()], None]


def by_brute_force(system, vocabulary, score):
    """Every path of choices, followed to its end: set -> probability."""
    found = Counter()

    def follow(elements, chosen, added, probability):
        if not elements:
            found[frozenset(vocabulary.names[i] for i in chosen)] += probability
            return
        free = vocabulary.candidates(system, elements[0], chosen)
        if not free:
            follow(elements[1:], chosen, 0, probability)
            return
        weights = np.exp(score([(0, elements[0], chosen)])[0][free])
        for i, weight in zip(free, weights / weights.sum()):
            if i == len(vocabulary.names):
                follow(elements[1:], chosen, 0, probability * weight)
            elif added < precursors.FRESH:
                follow(elements, chosen | {i}, added + 1, probability * weight)

    follow(precursors.order(system), frozenset(), 0, 1.0)
    return found


@pytest.mark.parametrize("formula", ["BaTiO3", "LiBaPO4", "BaZrTi2O7"])
def test_beam_search_is_brute_force_where_the_beam_holds_everything(formula):
    extra = recipe("LiBaPO4", ["LiH2PO4", "BaHPO4", "Ba", "Li3PO4"])
    vocabulary = precursors.Vocabulary.of([*FIVE, extra])
    table = np.random.default_rng(0).normal(size=(1 << 10, len(vocabulary.names) + 1))

    def score(queries):
        return np.stack([table[(31 * len(e) + ord(e[0]) + 7 * sum(c) + len(c)) % len(table)] for _, e, c in queries])

    target = formulas.fractions(formula)
    expected = by_brute_force(frozenset(s for s, _ in target), vocabulary, score)
    (found,) = precursors.assemble([target], vocabulary, score, beam=10_000, k=10_000)
    assert {names: math.exp(value) for names, value in found} == pytest.approx(dict(expected))
    assert len(found) >= 2
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)


def test_an_unknown_element_leaves_the_rest_of_the_set():
    vocabulary = precursors.Vocabulary.of(FIVE)
    flat = lambda queries: np.zeros((len(queries), len(vocabulary.names) + 1))  # noqa: E731
    (found,) = precursors.assemble([formulas.fractions("UTiO4")], vocabulary, flat, beam=5, k=5)
    assert found[0][0] == spelt(["TiO2"])[0]


def test_choices_lead_to_the_recipes_set_and_nowhere_else():
    training = [*FIVE, recipe("LiBaPO4", ["LiH2PO4", "BaCO3", "Li2CO3"])]
    vocabulary = precursors.Vocabulary.of(training)
    row = {name: i for i, name in enumerate(vocabulary.names)}
    made = precursors.choices(training[-1], vocabulary, row)
    chosen = {right for *_, right in made} - {len(vocabulary.names)}
    assert chosen <= {row[p] for p in training[-1].precursor_set}
    for element, before, free, right in made:
        assert free == vocabulary.candidates(training[-1].system, element, before)
        assert right in free
        assert right not in before


@pytest.fixture(scope="module")
def learned():
    """Sulfides from sulfides, oxides from oxides: the same metals, told apart by the anion alone."""
    metals = ("Ba", "Sr", "Ca", "Zn", "Mn", "Fe", "Cd", "Sn")
    rows = []
    for a, b in itertools.combinations(metals, 2):
        rows.append(recipe(f"{a}{b}O2", [f"{a}O", f"{b}O"]))
        rows.append(recipe(f"{a}{b}S2", [f"{a}S", f"{b}S"]))
    held = frozenset({"Zn", "Cd"})
    train = sorted((r for r in rows if not held <= r.system), key=lambda r: r.fractions)
    shape = {"width": 16, "dropout": 0.0, "epochs": 30, "batch_size": 32, "learning_rate": 0.01}
    shape = dataclasses.replace(config.load("recommendation", "tiny"), **shape)
    vocabulary = precursors.Vocabulary.of(train)
    return train, vocabulary, shape, precursors.train(train, vocabulary, shape, seed=0)


def test_the_scorer_learns_what_counting_cannot(learned):
    train, vocabulary, _, model = learned
    targets = [formulas.fractions(f) for f in ("ZnCdO2", "ZnCdS2")]
    found = precursors.assemble(targets, vocabulary, precursors.scorer([model], targets), beam=10, k=1)
    assert [ranked[0][0] for ranked in found] == spelt(["ZnO", "CdO"], ["ZnS", "CdS"])
    counts = precursors.popular(train)
    oxide = precursors.popularity(targets[0], counts, beam=10, k=1)
    assert oxide == precursors.popularity((*targets[0][:1], *targets[0][2:]), counts, beam=10, k=1)


def test_a_second_fit_is_the_same(learned):
    train, vocabulary, shape, model = learned
    again = precursors.train(train, vocabulary, shape, seed=0)
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_strict_split_shares_neither_system_nor_paper():
    test = [recipe("BaTiO3", ["BaCO3", "TiO2"], doi="10.1/a")]
    own = [recipe("Ba2TiO4", ["BaCO3", "TiO2"], doi="10.1/b"), recipe("SrTiO3", ["SrO", "TiO2"], doi="10.1/a")]
    own += [recipe("CaTiO3", ["CaO", "TiO2"], doi="10.1/c")]
    known = [
        recipe("BaTi2O5", ["BaO", "TiO2"], doi="10.1/d"),
        recipe("MgTiO3", ["MgO", "TiO2"], doi="10.1/a"),
        recipe("ZnTiO3", ["ZnO", "TiO2"], doi="10.1/e"),
        recipe("CaTiO3", ["CaO", "TiO2"], doi="10.1/c"),
    ]
    strict = temperatures.split("strict", own, test, known)
    assert (strict.own, strict.mined) == (own[2:], known[2:3])
    official = temperatures.split("official", own, test, known)
    assert (official.own, official.mined) == (own, [known[0], known[2]])
    with pytest.raises(ValueError, match="all 1 training rows share"):
        temperatures.split("strict", own[:1], test, known)
    with pytest.raises(ValueError, match="split 'loose'; one of official, strict"):
        temperatures.split("loose", own, test, known)


def heated(formula, sintering_C, method="solid-state"):
    steps = (Operation("sintered", sintering_C), Operation("calcined", sintering_C - 300))
    return dataclasses.replace(recipe(formula, ["MgO", "TiO2"], method=method), operations=steps)


def test_the_nearest_lend_their_weighted_median_and_sol_gels_nothing():
    mined = [heated("Mg0.999TiO3", 1300.0), heated("Mg1.001TiO3", 1000.0), heated("MgO", 1800.0)]
    left_out = [heated("MgTiO3", 2000.0), heated("MgTiO3", 500.0, "sol-gel")]  # above 1,900 °C nobody sinters
    training = temperatures.Split([heated("TiO2", 700.0, "")], [*mined, *left_out])
    assert training.labelled("sintering") == mined
    test = [heated("MgTiO3", 0.0), heated("TiO2", 0.0)]
    # weights by temperature .02, .33, .33 and 0: half of them is reached at 1,000; of TiO2 the nearest has it all
    assert temperatures.nearest(training, test, "sintering").tolist() == [1000.0, 700.0]
    trusted = temperatures.Split([heated("MgTiO3", 1400.0, "")], mined[:2])
    assert temperatures.nearest(trusted, test[:1], "sintering").tolist() == [1400.0]  # weight 1 against twice .33


def test_features_of_a_composition_by_hand():
    row = recipe("BaTiO3", ["BaCO3", "TiO2"])
    x = temperatures.features([row], [formulas.anhydrous(n) for n in ("TiO2", "ZrO2")])[0]
    assert (x[56], x[22], x[8]) == pytest.approx((0.2, 0.2, 0.6))
    mass = 119 + elements.PROPERTIES.index("mass_u")
    assert x[mass] == pytest.approx(0.2 * 137.327 + 0.2 * 47.867 + 0.6 * 15.999, rel=1e-5)
    assert x[-8:].tolist() == [1, 0, 1, 0, 1, 0, 0, 0]  # TiO2 used, ZrO2 not; one carbonate, one oxide


@pytest.fixture(scope="module")
def evaluated(tiny):
    study = recommendation.prepare(tiny)
    return study, recommendation.metrics(study, recommendation.sets(study, study.test))


def test_language_models_are_compared_on_the_targets_they_were_asked_for(evaluated):
    study, _ = evaluated
    truth = [r.precursor_set for r in study.test]
    right_first = [None, *([each, frozenset({"X"})] for each in truth[1:])]  # was not asked for the first
    wrong = [[frozenset({"X"})] for _ in truth]
    study = dataclasses.replace(study)
    vars(study)["proposed"] = {"right": right_first, "wrong": wrong}  # in place of files
    metrics = recommendation.metrics(study, recommendation.sets(study, study.test))
    top = {(r["arm"], r["k"]): r for r in metrics["precursors"]}
    assert (top["right", 1]["value"], top["right", 1]["n"]) == (1, len(truth) - 1)
    assert top["wrong", 10]["value"] == 0
    assert top["models", 5]["value"] == 1
    own = top["assembled", 5]["value"]
    by_pair = {(r["arm"], r["baseline"], r["task"]): r for r in metrics["comparisons"]}
    assert by_pair["assembled", "wrong", "precursors, top-5"]["value"] == pytest.approx(own)
    assert by_pair["assembled_models", "models", "precursors, top-10"]["value"] <= 0
    outside = metrics["outside_vocabulary"]
    vocabulary = next(c["value"] for c in metrics["ceilings"] if c["ceiling"] == "vocabulary")
    assert outside["targets"] == round((1 - vocabulary) * len(truth))


def test_the_stage_writes_every_arm_and_claim(evaluated):
    _, metrics = evaluated
    assert metrics["synthetic"]
    assert {(r["arm"], r["k"]) for r in metrics["precursors"]} == set(
        itertools.product(recommendation.SET_ARMS, precursors.TOP)
    )  # published scores belong to the public tests
    cells = {(r["split"], r["kind"], r["arm"]) for r in metrics["temperatures"]}
    assert cells == set(itertools.product(temperatures.SPLITS, protocols.KINDS, temperatures.ARMS))
    assert all(r["low"] <= r["value"] <= r["high"] for r in [*metrics["precursors"], *metrics["temperatures"]])
    assert all(r["p"] <= r["p_holm"] <= 1 for r in metrics["comparisons"])
    assert len(metrics["claims"]) == 3
    top = {(r["arm"], r["k"]): r["value"] for r in metrics["precursors"]}
    difference = next(r for r in metrics["comparisons"] if r["task"] == "precursors, top-5")
    assert difference["value"] == pytest.approx(top["assembled", 5] - top["popularity", 5])
    ceiling = {r["ceiling"]: r["value"] for r in metrics["ceilings"]}
    assert max(v for (arm, _), v in top.items() if arm != "random") <= ceiling["vocabulary"]


def test_a_claim_needs_the_interval_and_holm():
    def row(task, baseline, value, low, high, p):
        about = {"task": task, "arm": "a", "baseline": baseline, "unit": ""}
        return {**about, "value": value, "low": low, "high": high, "p_holm": p}

    table = [{"arm": arm, "k": 1, "value": 0.5} for arm in recommendation.SET_ARMS]
    heat = [
        {"split": "strict", "kind": kind, "arm": arm, "value": 100.0}
        for kind in protocols.KINDS
        for arm in temperatures.ARMS
    ]
    rows = [row("precursors, top-1", "popularity", 0.03, 0.01, 0.05, 0.06)]
    rows += [row("sintering temperature, strict", "nearest", -9.0, -12.0, -6.0, 0.01)]
    rows += [row("calcination temperature, strict", "nearest", -9.0, -19.0, 1.0, 0.2)]
    verdicts = [c["verdict"] for c in recommendation.claims(table, heat, rows)]
    assert verdicts == ["FAIL", "PASS", "FAIL"]
    rows[0]["p_holm"] = 0.04
    assert recommendation.claims(table, heat, rows)[0]["verdict"] == "PASS"


def test_a_recommendation_comes_with_its_evidence(evaluated):
    study, _ = evaluated
    answer = recommendation.recommend(study, study.test[0].target_formula, k=3)
    assert 1 <= len(answer["sets"]) <= 3
    chances = [row["probability"] for row in answer["sets"]]
    assert chances == sorted(chances, reverse=True)
    assert 0 < sum(chances) <= 1 + 1e-9
    assert all(row["sintering_low_C"] <= row["sintering_high_C"] for row in answer["sets"])
    assert len(answer["nearest"]) == 3
    dois = {r.doi for r in study.known}
    assert all(row["doi"] in dois and row["doi"].startswith("10.0000/sample") for row in answer["nearest"])
    assert [row["distance"] for row in answer["nearest"]] == sorted(row["distance"] for row in answer["nearest"])
    with pytest.raises(ValueError, match="cannot read"):
        recommendation.recommend(study, "Xx2O3", k=1)
