import numpy as np
from five import FIVE, Z, curated

from matalign.tasks.retrieval import galleries
from matalign.tasks.retrieval.galleries import Gallery


class TestGallery:
    def test_members_and_queries(self):
        gallery = Gallery(curated(FIVE, test=("SrTiO3",)), 1, 3)
        assert list(gallery.mp_ids) == ["mp-000", "mp-001", "mp-002", "mp-003"]  # silicon has no protocol
        np.testing.assert_array_equal(gallery.owner, [0, 0, 1, 2, 3])
        np.testing.assert_array_equal(gallery.queries, [1])
        np.testing.assert_array_equal(gallery.asked, [2])
        assert list(gallery.chemsys) == ["O-Sr-Ti"]
        np.testing.assert_allclose(gallery.fractions[0, [Z["Ba"], Z["Ti"], Z["O"]]], [0.2, 0.2, 0.6])

    def test_fewer_ask_by_hash_and_nested(self):
        data, asked = curated(FIVE, test=tuple(FIVE)), set()
        for asking in (1, 2, 4, 0):
            gallery = Gallery(data, 1, 3, asking=asking)
            assert asked <= set(gallery.queries)
            assert len(gallery.queries) == len(gallery.neighbours) == len(gallery.chemsys) == (asking or 4)
            asked = set(gallery.queries)

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


def test_C_H_O_N_alone_share_nothing():
    assert galleries.telling(np.eye(119))[[1, 6, 7, 8]].sum() == 0
    assert galleries.jaccard(np.zeros((1, 119)), np.zeros((1, 119))) == 0.0
