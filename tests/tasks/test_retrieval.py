import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import tiny
from five import FIVE, curated

from matalign import cache, config, paths
from matalign.data import dataset
from matalign.pretrain import align, encode
from matalign.tasks.retrieval import retrieval
from matalign.tasks.retrieval.galleries import Gallery
from matalign.tasks.retrieval.ranking import Ranks


def test_per_material_mean_where_protocols_ask():
    gallery = Gallery(curated(FIVE, test=("BaTiO3", "SrTiO3")), 1, 3)
    ranks = Ranks(np.array([0, 1, 3]), np.array([0, 0, 0]), np.array([1, 1, 1]))
    found = retrieval.outcome(gallery, {"full": ranks}, query="text", target="structure", arm="structure")
    np.testing.assert_allclose(found[0].scores["MRR"], [0.75, 0.25])
    found = retrieval.outcome(
        gallery, {"full": Ranks(*(f[:2] for f in vars(ranks).values()))}, query="structure", target="text", arm="x"
    )
    np.testing.assert_allclose(found[0].scores["MRR"], [1.0, 0.5])
    assert found[0].n_gallery == 4


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
        cell["arm"] = "structure"
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
        hybrid = {"arm": "structure_hybrid", "difference": 0.02, "low": 0.01, "high": 0.03}
        differences += [{**cell, **hybrid, "level": 1, "baseline": "jaccard", "p_holm": 0.04}]
        differences += [{**cell, **hybrid, "level": 1, "baseline": "composition_hybrid", "p_holm": 0.06}]
        rows += [self.row(f"{arm}_hybrid", "MRR", 0.8, 0.7) for arm in ("structure", "composition")]
        got = retrieval.claims(rows, differences)
        assert [c["verdict"] for c in got] == ["PASS", "PASS", "FAIL", "FAIL", "PASS", "FAIL"]
        assert "Jaccard" in got[0]["note"]
        assert "also passes" in got[0]["note"]
        rows[0] = self.row("structure", "R@10", 0.85, 0.79)
        assert retrieval.claims(rows, differences)[0]["verdict"] == "FAIL"

    def test_no_learned_level_no_claim(self):
        assert retrieval.claims([], []) == []


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The 24 halides of `tiny`, three of them tested, with an untrained model of all three modalities."""
    for name, folder in {"ROOT": "", "DATA": "data", "SCRATCH": "scratch"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    data = tiny.curated()
    splits = data.splits.assign(chemsys=np.where(data.splits.pretrain == "excluded", "test", "train"))
    data = dataclasses.replace(data, splits=splits)
    about = tiny.pretrain(tiny.bert(tmp_path / "bert"), modalities="crystal text image", image_px=16, pixel_A=0.8)
    cfg = dataclasses.replace(config.load("retrieval", "tiny"), threads=1, learned_levels="1", levels="0 1")
    dataset.write(paths.curated("tiny"), data)
    folder = paths.results("tiny") / "pretrained"
    folder.mkdir(parents=True)
    aligned = align.build(about).eval()
    align.save(aligned, folder)
    known = {"pretrain": dataclasses.asdict(about), "text_model_hash": aligned.towers["text"].fingerprint}
    cache.write_json(folder / "config.json", known)
    return retrieval.Study(cfg, data, encode.Model(about, aligned))


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
        assert arms["text", 1] == {*counted, "composition", "structure", "pretrained", *retrieval.HYBRIDS}
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
        assert set(table[table.weight.notna()].arm) == set(retrieval.HYBRIDS)
        assert {(c["arm"], c["baseline"]) for c in got["comparisons"]} == {
            *itertools.product(["structure"], ["jaccard", "composition"]),
            *itertools.product(["structure_hybrid"], ["jaccard", "composition_hybrid"]),
        }
        assert len(got["claims"]) == 5  # level 2 was not learned

        paired = table.groupby("arm").paired.unique().map(list)
        assert paired[["pretrained", "image"]].map(set).tolist() == [{True}, {True}]
        assert all(label is None for arm in paired.index.difference(["pretrained", "image"]) for label in paired[arm])
        curve = pd.DataFrame(got["gallery_curve"])  # all 12 materials, the smaller sizes being larger
        assert set(curve.arm) == {"jaccard", "composition", "structure", "pretrained"}
        asked = table[(table["query"] == "structure") & (table.target == "text") & (table.gallery == "full")]
        both = curve.merge(asked, on=["arm", "level", "metric", "n_gallery"], suffixes=("", "_full"))
        assert len(both) == len(curve) == 4 * 2
        np.testing.assert_allclose(both[["value", "low", "high"]], both[["value_full", "low_full", "high_full"]])

    def test_registration_asks_with_the_embeddings_images_in_its_gallery(self, study):
        """Halides that differ in their lattice by 2 %, seen in frames of 13 Å."""
        ranked = retrieval.registered(study)
        assert {(o.query, o.target, o.arm) for o in ranked} == {
            ("image", "structure", arm) for arm in ("random", "image", "registration")
        }
        got = pd.DataFrame(retrieval.metrics(study, [], ranked)["registration"])
        full = got[(got.gallery == "full") & (got.metric == "MRR")].set_index("arm").value
        whole = retrieval.image_outcomes(study)  # as many queries
        (same,) = (o for o in whole if (o.query, o.gallery, o.arm) == ("image", "full", "image"))
        assert full["image"] == same.scores["MRR"].mean()
        assert full["random"] == pytest.approx((1 / np.arange(1, 13)).mean())
        assert full["registration"] > 0.5
        (row,) = (r for r in retrieval.comparisons(study, ranked) if r["gallery"] == "full")
        assert row["difference"] == pytest.approx(full["registration"] - full["image"])

    def test_gallery_curve(self, study, monkeypatch):
        """Smaller galleries are easier, at the rate of their own expectation."""
        monkeypatch.setattr(retrieval, "CURVE_SIZES", (3, 7, 50))
        found = [o for o in retrieval.outcomes(study, level=1) if o.arm == "jaccard"]
        curve = [r for r in retrieval.gallery_curve(study, found) if r["metric"] == "MRR"]
        assert [r["n_gallery"] for r in curve] == [3, 7, 12]
        ranks = next(o.ranks for o in found if (o.query, o.gallery) == ("structure", "full"))
        assert curve[0]["value"] == pytest.approx(ranks.metric_among("MRR", 3, gallery=12).mean())
        assert curve[0]["value"] > curve[1]["value"] > curve[2]["value"]

    def test_what_the_anchored_loss_never_paired(self, study):
        model = dataclasses.replace(study.model, config=dataclasses.replace(study.model.config, loss="anchored"))
        anchored = dataclasses.replace(study, model=model)
        assert study.paired("image", "text", "image") is True
        assert anchored.paired("image", "text", "image") is anchored.paired("text", "image", "image") is False
        assert anchored.paired("image", "structure", "image") is True
        assert anchored.paired("structure", "text", "pretrained") is True
        assert anchored.paired("structure", "text", "composition") is None

    def test_second_run_trains_nothing_and_says_the_same(self, study, monkeypatch):
        first = retrieval.metrics(study, self.found(study))
        monkeypatch.setattr(retrieval.matchers, "train", None)
        monkeypatch.setattr(retrieval.encode.Model, "micrographs", None)
        assert retrieval.metrics(study, self.found(study)) == first

    def test_aligned_arm_is_the_models_own_space(self, study):
        gallery = study.gallery(1)
        arm = study.arms(gallery)["pretrained"]
        structures = study.curated.structures.take(gallery.rows)
        np.testing.assert_allclose(arm.materials, study.model.embed_structures(structures), atol=1e-6)
        np.testing.assert_allclose(arm.texts, study.model.embed_texts(gallery.texts[0]), atol=1e-6)

    def test_no_query(self, study, monkeypatch):
        nobody = study.curated.splits.assign(chemsys="train")
        data = dataclasses.replace(study.curated, splits=nobody)
        monkeypatch.setattr(retrieval.dataset, "read", lambda folder: data)
        monkeypatch.setattr(retrieval.encode, "load", lambda profile: study.model)
        with pytest.raises(ValueError, match="none of the 12 materials with a protocol"):
            retrieval.prepare(study.cfg)
