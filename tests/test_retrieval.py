import dataclasses
import json
from math import comb

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from matalign import align, config, dataset, elements, embed, paths, protocols, retrieval
from matalign.dataset import Curated, Structures
from matalign.retrieval import Arm, Gallery, Ranks

Z = {symbol: z for z, symbol in enumerate(elements.SYMBOLS)}
CUBE = np.eye(3) * 4.0


def material(formula):
    numbers = [Z[s] for s, n in protocols.composition(formula).items() for _ in range(int(n))]
    return np.array(numbers), np.zeros((len(numbers), 3)), CUBE


def curated(recipes, *, test=(), excluded=()):
    """A curated set: formula -> the lists of precursors that it is made from; mp-000, mp-001, … in order."""
    formulas = list(recipes)
    ids = [f"mp-{i:03d}" for i in range(len(formulas))]
    elements_of = ["-".join(sorted(protocols.composition(f))) for f in formulas]
    materials = pd.DataFrame({"mp_id": ids, "formula": formulas, "chemsys": elements_of})
    for column in dataset.MATERIALS:
        if column not in materials:
            materials[column] = np.nan
    rows = []
    for mp_id, (formula, made) in zip(ids, recipes.items()):
        for i, precursors in enumerate(made):
            heating = protocols.Operation("heated", temperature_C=900.0 + i)
            p = protocols.Protocol("10.1/x", "solid-state", formula, (), tuple(sorted(precursors)), (heating,))
            texts = {f"text_L{level}": protocols.render(p, level=level) for level in protocols.LEVELS}
            rows.append({"protocol_id": f"{mp_id}-{i}", "mp_id": mp_id, "train_ok": formula not in test, **texts})
    blank = {"doi": "10.1/x", "method": "solid-state", "target_formula": "", "max_temperature_C": 900.0}
    table = pd.DataFrame(rows).assign(**blank, precursors=[[]] * len(rows))
    held = [f in (*test, *excluded) for f in formulas]
    splits = pd.DataFrame({"mp_id": ids, "random": "train"})
    splits["chemsys"] = ["test" if f in test else "train" for f in formulas]
    splits["pretrain"] = ["excluded" if h else "train" for h in held]
    structures = Structures.pack([material(f) for f in formulas])
    return Curated(materials, structures, table, splits, {})


FIVE = {
    "BaTiO3": [("BaCO3", "TiO2"), ("BaO", "TiO2")],
    "SrTiO3": [("SrCO3", "TiO2")],
    "Ba2TiO4": [("BaCO3", "TiO2")],
    "NaCl": [("Na2CO3", "HCl")],
    "Si": [],
}


class TestRanks:
    scores = np.array(
        [
            [0.9, 0.5, 0.5, 0.1],  # correct: 1; one above, one tied: rank 2 or 3
            [0.2, 0.2, 0.2, 0.2],  # all tied, two correct
            [0.1, 0.8, 0.3, 0.9],  # correct: 0 and 1; the better one is second
        ]
    )
    correct = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]], dtype=bool)

    def test_by_hand(self):
        ranks = Ranks.of(self.scores, self.correct)
        np.testing.assert_array_equal(ranks.above, [1, 0, 1])
        np.testing.assert_array_equal(ranks.wrong, [1, 2, 0])
        np.testing.assert_array_equal(ranks.right, [1, 2, 1])
        # Query 1, four tied, two correct: the first correct one is 1st, 2nd, 3rd with 1/2, 1/3, 1/6.
        np.testing.assert_allclose(ranks.metric("R@1"), [0, 1 / 2, 0])
        np.testing.assert_allclose(ranks.metric("R@2"), [1 / 2, 5 / 6, 1])
        np.testing.assert_allclose(ranks.metric("R@5"), [1, 1, 1])
        np.testing.assert_allclose(ranks.metric("MRR"), [(1 / 2 + 1 / 3) / 2, 1 / 2 + 1 / 6 + 1 / 18, 1 / 2])

    def test_pessimistic_by_hand(self):
        ranks = Ranks.of(self.scores, self.correct)
        np.testing.assert_allclose(ranks.metric("R@2", pessimistic=True), [0, 0, 1])
        np.testing.assert_allclose(ranks.metric("MRR", pessimistic=True), [1 / 3, 1 / 3, 1 / 2])

    def test_expectation_over_ties_is_the_mean_over_shuffles(self):
        rng = np.random.default_rng(0)
        scores = rng.integers(3, size=(1, 9)).astype(float)
        correct = np.zeros((1, 9), bool)
        correct[0, [1, 4]] = True
        expected = Ranks.of(scores, correct)
        shuffled = [Ranks.of(scores + rng.random((1, 9)) * 1e-3, correct) for _ in range(4000)]
        for metric in ("R@1", "R@5", "MRR"):
            assert np.mean([r.metric(metric) for r in shuffled]) == pytest.approx(expected.metric(metric)[0], abs=0.02)

    def test_hypergeometric(self):
        """Ten tied, three correct: all of the first k wrong with probability C(7, k) / C(10, k)."""
        correct = np.zeros((1, 10), bool)
        correct[0, :3] = True
        ranks = Ranks.of(np.zeros((1, 10)), correct)
        for k in (1, 4, 7, 8):
            assert ranks.metric(f"R@{k}")[0] == pytest.approx(1 - comb(7, k) / comb(10, k))

    def test_one_answer_as_scikit_learn(self):
        """Without ties, and one correct answer: Recall@k is top-k accuracy, MRR label ranking average precision."""
        rng = np.random.default_rng(0)
        scores, answer = rng.random((200, 30)), rng.integers(30, size=200)
        ranks = Ranks.of(scores, np.arange(30) == answer[:, None])
        for k in (1, 5, 10):
            expected = top_k_accuracy_score(answer, scores, k=k, labels=range(30))
            assert ranks.metric(f"R@{k}").mean() == pytest.approx(expected)
        expected = label_ranking_average_precision_score(np.arange(30) == answer[:, None], scores)
        assert ranks.metric("MRR").mean() == pytest.approx(expected)

    def test_pessimistic_is_scikit_learns_average_precision_with_ties(self):
        rng = np.random.default_rng(1)
        scores, answer = rng.integers(5, size=(200, 30)).astype(float), rng.integers(30, size=200)
        correct = np.arange(30) == answer[:, None]
        expected = label_ranking_average_precision_score(correct, scores)
        assert Ranks.of(scores, correct).metric("MRR", pessimistic=True).mean() == pytest.approx(expected)

    def test_perfect_worst_and_random(self):
        answer = np.eye(20, dtype=bool)
        assert Ranks.of(answer.astype(float), answer).metric("R@1").mean() == 1.0
        assert Ranks.of(-answer.astype(float), answer).metric("MRR").mean() == pytest.approx(1 / 20)
        chance = Ranks.of(np.zeros((20, 20)), answer)
        assert chance.metric("R@5").mean() == pytest.approx(5 / 20)
        assert chance.metric("MRR").mean() == pytest.approx((1 / np.arange(1, 21)).mean())

    def test_no_query(self):
        ranks = Ranks.of(np.zeros((0, 4)), np.zeros((0, 4), bool))
        assert ranks.metric("MRR").shape == (0,)

    def test_bad_scores(self):
        with pytest.raises(ValueError, match="1 of 2 queries"):
            Ranks.of(np.array([[0.0, np.nan], [0.0, 1.0]]), np.eye(2, dtype=bool))
        with pytest.raises(ValueError, match="query 1 has no correct answer"):
            Ranks.of(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


class TestGallery:
    def test_members_and_queries(self):
        gallery = Gallery(curated(FIVE, test=("SrTiO3",)), 1, 3)
        assert list(gallery.mp_ids) == ["mp-000", "mp-001", "mp-002", "mp-003"]  # silicon has no protocol
        np.testing.assert_array_equal(gallery.owner, [0, 0, 1, 2, 3])
        np.testing.assert_array_equal(gallery.queries, [1])
        np.testing.assert_array_equal(gallery.asked, [2])
        assert list(gallery.chemsys) == ["O-Sr-Ti"]
        np.testing.assert_allclose(gallery.fractions[0, [Z["Ba"], Z["Ti"], Z["O"]]], [0.2, 0.2, 0.6])

    def test_equal_texts_are_one(self):
        distinct, number = Gallery(curated(FIVE), 1, 3).texts
        assert len(distinct) == 4
        gallery = Gallery(curated(FIVE), 1, 3)
        of = {m: set(number[gallery.owner == i]) for i, m in enumerate(["BaTiO3", "SrTiO3", "Ba2TiO4", "NaCl"])}
        assert of["Ba2TiO4"] < of["BaTiO3"]

    def test_hard_gallery_by_hand(self):
        """Of BaTiO3: itself, Ba2TiO4 (same elements), SrTiO3 (one of three). Of NaCl: none shares anything."""
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "NaCl")), 1, 3)
        np.testing.assert_array_equal(gallery.neighbours, [[0, 2, 1], [3, 0, 1]])

    def test_hard_gallery_of_a_small_set_is_the_set(self):
        gallery = Gallery(curated(FIVE, test=("BaTiO3",)), 1, 50)
        assert sorted(gallery.neighbours[0]) == [0, 1, 2, 3]

    def test_trains_on_nothing_held_out(self):
        gallery = Gallery(curated(FIVE, test=("SrTiO3",), excluded=("NaCl",)), 1, 3)
        trained, allowed = gallery.training
        np.testing.assert_array_equal(trained, [0, 2])
        np.testing.assert_array_equal(allowed, [True, True, False, True, False])

    def test_cap_on_protocols_is_nested_and_keeps_every_material(self):
        many = {**FIVE, "SrTiO3": [("SrCO3", "TiO2")] * 20}
        sizes, kept = [], None
        for cap in (1, 3, 7, 0):
            gallery = Gallery(curated(many), 1, 3, cap)
            assert list(gallery.mp_ids) == ["mp-000", "mp-001", "mp-002", "mp-003"]
            ids = set(gallery.protocols.protocol_id)
            assert kept is None or kept <= ids
            kept = ids
            sizes.append(int((gallery.owner == 1).sum()))
        assert sizes == [1, 3, 7, 20]


class TestBaselines:
    def arms(self, level):
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3")), level, 3)
        return gallery, retrieval.baselines(gallery)

    def test_jaccard_by_hand(self):
        """SrTiO3 {Sr, Ti} with texts naming {Ba, Ti}, {Ba, Ti}, {Cl, Na}, {Sr, Ti}; C, H, O, N do not count."""
        gallery, arms = self.arms(1)
        distinct, _ = gallery.texts
        got = dict(zip(distinct, arms["jaccard"].score(arms["jaccard"].materials, arms["jaccard"].texts)[1]))
        expected = {"Ba": 1 / 3, "Na": 0.0, "Sr": 1.0}
        assert all(got[text] == pytest.approx(next(v for k, v in expected.items() if k in text)) for text in distinct)

    def test_ranking_by_counting_elements(self):
        """SrTiO3 is found at once; BaTiO3 ties with Ba2TiO4, whose protocol names the same elements."""
        gallery, arms = self.arms(1)
        ranks = retrieval.rank_protocols(gallery, arms["jaccard"])["full"]
        np.testing.assert_allclose(ranks.metric("R@1"), [0.5, 1.0])
        np.testing.assert_allclose(ranks.metric("MRR"), [0.75, 1.0])
        np.testing.assert_allclose(ranks.metric("R@1", pessimistic=True), [0.0, 1.0])
        asked = retrieval.rank_materials(gallery, arms["jaccard"])["full"]  # two protocols of BaTiO3, one of SrTiO3
        np.testing.assert_allclose(asked.metric("MRR"), [0.75, 0.75, 1.0])

    def test_formula_match_solves_L0_and_nothing_else(self):
        gallery, arms = self.arms(0)
        for way in (retrieval.rank_protocols, retrieval.rank_materials):
            assert way(gallery, arms["formula"])["full"].metric("MRR").min() == 1.0
        gallery, arms = self.arms(1)
        chance = retrieval.rank_protocols(gallery, arms["random"])["full"].metric("MRR")
        np.testing.assert_allclose(retrieval.rank_protocols(gallery, arms["formula"])["full"].metric("MRR"), chance)

    def test_stoichiometry_by_hand(self):
        """Without O: BaTiO3 is Ba ½ Ti ½, as its precursors are; Ba2TiO4 is Ba ⅔ Ti ⅓, at a distance of ⅓ from them."""
        gallery, arms = self.arms(1)
        arm = arms["stoichiometry"]
        scores = arm.score(arm.materials, arm.texts)
        barium = [i for i, text in enumerate(gallery.texts[0]) if "Ba" in text]
        np.testing.assert_allclose(scores[0, barium], 0.0, atol=1e-12)
        np.testing.assert_allclose(scores[2, barium], -1 / 3)

    def test_tfidf_finds_shared_words(self):
        gallery, arms = self.arms(1)
        assert retrieval.rank_protocols(gallery, arms["tfidf"])["full"].metric("R@1")[1] == 1.0

    @pytest.mark.parametrize("level", [2, 3])
    def test_without_formulas_all_are_chance(self, level):
        gallery, arms = self.arms(level)
        chance = retrieval.rank_protocols(gallery, arms["random"])["full"].metric("MRR")
        for name in ("formula", "jaccard", "stoichiometry"):
            got = retrieval.rank_protocols(gallery, arms[name])["full"].metric("MRR")
            np.testing.assert_allclose(got, chance, err_msg=name)

    def test_C_H_O_N_alone_share_nothing(self):
        assert retrieval.telling(np.eye(119))[[1, 6, 7, 8]].sum() == 0
        assert retrieval.jaccard(np.zeros((1, 119)), np.zeros((1, 119))) == 0.0


class TestRanking:
    def random_arm(self, gallery):
        rng = np.random.default_rng(0)
        draw = lambda n: rng.integers(-2, 3, size=(n, 4)).astype(float)  # noqa: E731, whole numbers: exact, with ties
        return Arm(draw(len(gallery.rows)), draw(len(gallery.texts[0])))

    def gallery(self):
        metals = ["Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"]
        recipes = {f"{m}{x}{n}": [(m, x)] * (n + 1) for m in metals for x in ("S", "Cl", "F") for n in (2, 3)}
        return Gallery(curated(recipes, test=tuple(recipes)[::3]), 1, 10)

    def test_parts_equal_the_whole(self, monkeypatch):
        gallery = self.gallery()
        arm = self.random_arm(gallery)
        for way in (retrieval.rank_protocols, retrieval.rank_materials):
            monkeypatch.setattr(retrieval, "QUERIES", 10**6)
            whole = way(gallery, arm)
            monkeypatch.setattr(retrieval, "QUERIES", 7)
            parts = way(gallery, arm)
            for name in ("full", "hard"):
                for field in ("above", "wrong", "right"):
                    np.testing.assert_array_equal(getattr(whole[name], field), getattr(parts[name], field))

    def test_best_over_protocols_by_plain_loops(self):
        gallery = self.gallery()
        arm = self.random_arm(gallery)
        got = retrieval.rank_protocols(gallery, arm)
        number = gallery.texts[1]
        for i, q in enumerate(gallery.queries):
            best = [
                max(arm.materials[q] @ arm.texts[number[p]] for p in np.flatnonzero(gallery.owner == m))
                for m in range(len(gallery.rows))
            ]
            assert got["full"].above[i] == sum(b > best[q] for b in best)
            assert got["full"].wrong[i] == sum(b == best[q] for b in best) - 1
            hard = gallery.neighbours[i]
            assert got["hard"].above[i] == sum(best[m] > best[q] for m in hard)

    def test_per_material_mean_where_protocols_ask(self):
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3")), 1, 3)
        ranks = Ranks(np.array([0, 1, 3]), np.array([0, 0, 0]), np.array([1, 1, 1]))
        found = retrieval.outcome(gallery, {"full": ranks}, query="text", target="structure", arm="structure")
        np.testing.assert_allclose(found[0].scores["MRR"], [0.75, 0.25])
        found = retrieval.outcome(
            gallery, {"full": Ranks(*(f[:2] for f in vars(ranks).values()))}, query="structure", target="text", arm="x"
        )
        np.testing.assert_allclose(found[0].scores["MRR"], [1.0, 0.5])
        assert found[0].n_gallery == 4


OPTIONS = {"epochs": 40, "batch_size": 16, "learning_rate": 3e-3, "seed": 0}


class TestFit:
    def task(self):
        gallery = TestRanking().gallery()
        texts = torch.from_numpy(retrieval.text_fractions(gallery.texts[0])).float()  # stands for a language model
        return torch.from_numpy(gallery.fractions).float(), texts, gallery

    def test_learns_and_beats_chance_on_held_out_chemistry(self):
        material, texts, gallery = self.task()
        got = retrieval.fit(material, texts, gallery, **OPTIONS)
        assert got["loss"][-1] < 0.5 * got["loss"][0]
        np.testing.assert_allclose(np.linalg.norm(got["materials"], axis=1), 1.0, atol=1e-5)
        arm = Arm(got["materials"], got["texts"])
        mrr = retrieval.rank_protocols(gallery, arm)["full"].metric("MRR").mean()
        chance = retrieval.rank_protocols(gallery, retrieval.baselines(gallery)["random"])["full"].metric("MRR").mean()
        assert mrr > 3 * chance

    def test_repeats_itself_and_depends_on_the_seed(self):
        task, options = self.task(), {**OPTIONS, "epochs": 2}
        first, again = (retrieval.fit(*task, **options) for _ in range(2))
        np.testing.assert_array_equal(first["materials"], again["materials"])
        other = retrieval.fit(*task, **{**options, "seed": 1})
        assert not np.array_equal(first["materials"], other["materials"])

    def test_test_pairs_do_not_matter(self):
        """Whatever the texts of the test materials are, the fit is the same."""
        material, texts, gallery = self.task()
        held = np.setdiff1d(np.arange(len(texts)), gallery.texts[1][gallery.training[1]])
        assert len(held)
        changed = texts.clone()
        changed[torch.from_numpy(held)] = 7.0
        options = {**OPTIONS, "epochs": 2}
        a, b = (retrieval.fit(material, t, gallery, **options) for t in (texts, changed))
        np.testing.assert_array_equal(a["materials"], b["materials"])
        assert a["loss"] == b["loss"]

    def test_too_little_to_train_on(self):
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3", "Ba2TiO4")), 1, 3)
        with pytest.raises(ValueError, match="1 materials"):
            retrieval.fit(torch.zeros(4, 3), torch.zeros(5, 3), gallery, **OPTIONS)


class TestClaims:
    def row(self, arm, metric, value, low, level=1):
        cell = {"query": "structure", "target": "text", "gallery": "full", "level": level}
        return {**cell, "arm": arm, "metric": metric, "value": value, "low": low, "high": value}

    def test_verdicts(self):
        rows = [self.row("structure", "R@10", 0.97, 0.95), self.row("jaccard", "R@10", 0.96, 0.94)]
        rows += [
            self.row(arm, "MRR", 0.8, 0.7, level)
            for arm in ("structure", "jaccard", "composition", "pretrained")
            for level in (1, 2)
        ]
        cell = {"query": "structure", "target": "text", "gallery": "full"}
        differences = [
            {**cell, "level": 1, "baseline": "jaccard", "difference": 0.05, "low": 0.01, "high": 0.1, "p_holm": 0.01},
            {
                **cell,
                "level": 1,
                "baseline": "composition",
                "difference": 0.02,
                "low": -0.01,
                "high": 0.1,
                "p_holm": 0.2,
            },
            {
                **cell,
                "level": 2,
                "baseline": "composition",
                "difference": 0.02,
                "low": 0.001,
                "high": 0.1,
                "p_holm": 0.07,
            },
        ]
        got = retrieval.claims(rows, differences)
        assert [c["verdict"] for c in got] == ["PASS", "PASS", "FAIL", "FAIL"]
        assert "Jaccard" in got[0]["note"]
        assert "also passes" in got[0]["note"]
        rows[0] = self.row("structure", "R@10", 0.85, 0.79)
        assert retrieval.claims(rows, differences)[0]["verdict"] == "FAIL"

    def test_no_learned_level_no_claim(self):
        assert retrieval.claims([], []) == []


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The 24 halides of `tiny`, three of them tested, with an untrained model of all three modalities."""
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    data = tiny.curated()
    splits = data.splits.assign(chemsys=np.where(data.splits.pretrain == "excluded", "test", "train"))
    data = dataclasses.replace(data, splits=splits, digest="")
    about = tiny.pretrain(tiny.bert(tmp_path / "bert"), modalities="crystal text image", image_px=16, pixel_A=0.8)
    cfg = dataclasses.replace(config.load("retrieval", "tiny"), threads=1, learned_levels="1", levels="0 1")
    return retrieval.Study(cfg, data, embed.Model(about, align.build(about).eval()))


class TestStudy:
    def found(self, study):
        return [
            *(o for level in (0, 1) for o in retrieval.outcomes(study, level=level)),
            *retrieval.image_outcomes(study),
        ]

    def test_metrics(self, study):
        got = retrieval.metrics(study, self.found(study))
        json.dumps(got, allow_nan=False)
        assert {k: got[k] for k in ("stage", "profile", "synthetic", "seed")} == {
            "stage": "retrieval", "profile": "tiny", "synthetic": False, "seed": 0,
        }  # fmt: skip
        table = pd.DataFrame(got["results"])
        arms = table[table["query"] == "structure"].groupby(["target", "level"]).arm.unique().map(set)
        counted = {"random", "formula", "jaccard", "stoichiometry", "tfidf"}
        assert arms["text", 0] == counted
        assert arms["text", 1] == {*counted, "composition", "structure", "pretrained"}
        assert arms["image", 0] == {"random", "image"}
        pairs = {(a, b) for a in ("structure", "text", "image") for b in ("structure", "text", "image") if a != b}
        assert set(zip(table["query"], table.target)) == pairs
        assert (table.value_pessimistic <= table.value + 1e-12).all()
        assert table[["low", "value", "high"]].to_numpy().min() >= 0
        assert (table.n_queries == 2).all()  # of three test materials two have a protocol
        assert (table.n_gallery == 12).all()  # fewer than the hard gallery's size
        chance = table[(table.arm == "random") & (table.metric == "R@5")].value
        np.testing.assert_allclose(chance, 5 / 12)
        assert not table.duplicated(["query", "target", "level", "gallery", "arm", "metric"]).any()
        assert {c["baseline"] for c in got["comparisons"]} == {"jaccard", "composition"}
        assert len(got["claims"]) == 3  # level 2 was not learned

    def test_second_run_trains_nothing_and_says_the_same(self, study, monkeypatch):
        first = retrieval.metrics(study, self.found(study))
        monkeypatch.setattr(retrieval, "fit", None)
        monkeypatch.setattr(retrieval.imaging, "render", None)
        assert retrieval.metrics(study, self.found(study)) == first

    def test_other_model_other_fit(self, study):
        key = study.fingerprint
        with torch.no_grad():
            study.model.aligned.log_temperature += 1.0
        assert dataclasses.replace(study).fingerprint != key

    def test_aligned_arm_is_the_models_own_space(self, study):
        gallery = study.gallery(1)
        arm = study.arms(gallery)["pretrained"]
        structures = study.curated.structures.take(gallery.rows)
        np.testing.assert_allclose(arm.materials, study.model.embed_structures(structures), atol=1e-6)
        np.testing.assert_allclose(arm.texts, study.model.embed_texts(gallery.texts[0]), atol=1e-6)

    def test_no_query(self, study, monkeypatch):
        nobody = study.curated.splits.assign(chemsys="train")
        data = dataclasses.replace(study.curated, splits=nobody, digest="")
        monkeypatch.setattr(retrieval.dataset, "read", lambda folder: data)
        monkeypatch.setattr(retrieval.embed, "load", lambda profile: study.model)
        with pytest.raises(ValueError, match="none of the 12 materials with a protocol"):
            retrieval.prepare(study.cfg)
