from dataclasses import replace

import numpy as np
import pytest
import torch
from five import FIVE, curated

from matalign.tasks.retrieval import matchers, ranking
from matalign.tasks.retrieval.galleries import Gallery, jaccard
from matalign.tasks.retrieval.matchers import Arm


class TestBaselines:
    def arms(self, level):
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3")), level, 3)
        return gallery, matchers.baselines(gallery)

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
        ranking = matchers.rank_protocols(gallery, arms["jaccard"])["full"]
        np.testing.assert_allclose(ranking.metric("R@1"), [0.5, 1.0])
        np.testing.assert_allclose(ranking.metric("MRR"), [0.75, 1.0])
        np.testing.assert_allclose(ranking.metric("R@1", pessimistic=True), [0.0, 1.0])
        asked = matchers.rank_materials(gallery, arms["jaccard"])["full"]  # two protocols of BaTiO3, one of SrTiO3
        np.testing.assert_allclose(asked.metric("MRR"), [0.75, 0.75, 1.0])

    def test_formula_match_solves_L0_and_nothing_else(self):
        gallery, arms = self.arms(0)
        for way in (matchers.rank_protocols, matchers.rank_materials):
            assert way(gallery, arms["formula"])["full"].metric("MRR").min() == 1.0
        gallery, arms = self.arms(1)
        chance = matchers.rank_protocols(gallery, arms["random"])["full"].metric("MRR")
        np.testing.assert_allclose(matchers.rank_protocols(gallery, arms["formula"])["full"].metric("MRR"), chance)

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
        assert matchers.rank_protocols(gallery, arms["tfidf"])["full"].metric("R@1")[1] == 1.0

    @pytest.mark.parametrize("level", [2, 3])
    def test_without_formulas_all_are_chance(self, level):
        gallery, arms = self.arms(level)
        chance = matchers.rank_protocols(gallery, arms["random"])["full"].metric("MRR")
        for name in ("formula", "jaccard", "stoichiometry"):
            got = matchers.rank_protocols(gallery, arms[name])["full"].metric("MRR")
            np.testing.assert_allclose(got, chance, err_msg=name)


class TestHybrid:
    def test_score_by_hand(self):
        """Jaccard of {Ba, Ti} with {Ba, Ti} and {Sr, Ti} is 1 and ⅓; similarities are 0 and 1."""
        counted = Arm(np.array([[1.0, 0, 1]]), np.array([[1.0, 0, 1], [0, 1, 1]]), jaccard)
        learned = Arm(np.array([[1.0, 0]]), np.array([[0.0, 1], [1, 0]]))
        for weight, expected in ((0.1, [1, 1 / 3 + 0.1]), (1.0, [1, 4 / 3])):
            got = matchers.hybrid(counted, learned, weight)
            np.testing.assert_allclose(got.score(got.materials, got.texts), [expected])
            assert got.weight == weight

    def test_weights_on_validation_by_hand(self):
        """BaTiO3 is found at w < 2 (1 + w / 2 against w of NaCl), SrTiO3 at w > ⅓ (⅔ + w against 1 of SrTi2O5)."""
        made = {"BaTiO3": [("BaCO3", "TiO2")], "SrTiO3": [("SrCO3", "TiO2", "BaCO3")]}
        made |= {"SrTi2O5": [("SrCO3", "TiO2")], "NaCl": [("Na2CO3", "HCl")]}
        data = curated(made)
        gallery = Gallery(replace(data, splits=data.splits.assign(pretrain=["val", "val", "train", "train"])), 1, 3)
        like = np.array([[0.5, 0], [0, 1], [0, 0], [1, 0]])
        texts = np.zeros((4, 2))
        texts[gallery.texts[1]] = like
        learned = Arm(np.array([[1.0, 0], [0, 1], [0, 0], [0, 0]]), texts)
        got = matchers.validated(gallery, matchers.baselines(gallery)["jaccard"], learned)
        np.testing.assert_allclose(got, [0.75, 0.75, 0.75, 0.75, 1.0, 0.75, 0.75])
        assert matchers.WEIGHTS[got.argmax()] == 1.0

    def test_nobody_to_validate_on(self):
        gallery = Gallery(curated(FIVE), 1, 3)
        arm = matchers.baselines(gallery)["jaccard"]
        np.testing.assert_array_equal(matchers.validated(gallery, arm, arm), np.zeros(len(matchers.WEIGHTS)))


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
        for way in (matchers.rank_protocols, matchers.rank_materials):
            monkeypatch.setattr(ranking, "QUERIES", 10**6)
            whole = way(gallery, arm)
            monkeypatch.setattr(ranking, "QUERIES", 7)
            parts = way(gallery, arm)
            for name in ("full", "hard"):
                for field in ("above", "wrong", "right"):
                    np.testing.assert_array_equal(getattr(whole[name], field), getattr(parts[name], field))

    def test_best_over_protocols_by_plain_loops(self):
        gallery = self.gallery()
        arm = self.random_arm(gallery)
        got = matchers.rank_protocols(gallery, arm)
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


OPTIONS = {"epochs": 40, "batch_size": 16, "learning_rate": 3e-3, "seed": 0}


class TestFit:
    def task(self):
        gallery = TestRanking().gallery()
        texts = torch.from_numpy(matchers.text_fractions(gallery.texts[0])).float()  # stands for a language model
        return torch.from_numpy(gallery.fractions).float(), texts, gallery

    def test_learns_and_beats_chance_on_held_out_chemistry(self):
        material, texts, gallery = self.task()
        got = matchers.train(material, texts, gallery, **OPTIONS)
        assert got["loss"][-1] < 0.5 * got["loss"][0]
        np.testing.assert_allclose(np.linalg.norm(got["materials"], axis=1), 1.0, atol=1e-5)
        arm = Arm(got["materials"], got["texts"])
        mrr = matchers.rank_protocols(gallery, arm)["full"].metric("MRR").mean()
        chance = matchers.rank_protocols(gallery, matchers.baselines(gallery)["random"])["full"].metric("MRR").mean()
        assert mrr > 3 * chance

    def test_repeats_itself_and_depends_on_the_seed(self):
        task, options = self.task(), {**OPTIONS, "epochs": 2}
        first, again = (matchers.train(*task, **options) for _ in range(2))
        np.testing.assert_array_equal(first["materials"], again["materials"])
        other = matchers.train(*task, **{**options, "seed": 1})
        assert not np.array_equal(first["materials"], other["materials"])

    def test_test_pairs_do_not_matter(self):
        """Whatever the texts of the test materials are, the fit is the same."""
        material, texts, gallery = self.task()
        held = np.setdiff1d(np.arange(len(texts)), gallery.texts[1][gallery.training[1]])
        assert len(held)
        changed = texts.clone()
        changed[torch.from_numpy(held)] = 7.0
        options = {**OPTIONS, "epochs": 2}
        a, b = (matchers.train(material, t, gallery, **options) for t in (texts, changed))
        np.testing.assert_array_equal(a["materials"], b["materials"])
        assert a["loss"] == b["loss"]

    def test_too_little_to_train_on(self):
        gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3", "Ba2TiO4")), 1, 3)
        with pytest.raises(ValueError, match="1 materials"):
            matchers.train(torch.zeros(4, 3), torch.zeros(5, 3), gallery, **OPTIONS)
