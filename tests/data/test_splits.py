import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matalign.data import splits

SEED = 3


def table(systems):
    """Materials mp-0, mp-1, … of the given chemical systems, one cubic cell of one atom per element each."""
    elements = [s.split("-") for s in systems]
    return pd.DataFrame(
        {
            "mp_id": [f"mp-{i}" for i in range(len(systems))],
            "formula": ["".join(e) for e in elements],
            "chemsys": systems,
            "n_atoms": [len(e) for e in elements],
            "space_group": 221,
        }
    )


def many(n=3000):
    rng = np.random.default_rng(0)
    symbols = np.array(
        ["Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Ti", "Zr", "V", "Mn", "Fe", "Co", "Ni", "O", "S", "N", "F"]
    )
    return table(["-".join(sorted(rng.choice(symbols, size=rng.integers(2, 5), replace=False))) for _ in range(n)])


def protocols(materials, rng=None, per_doi=4):
    rng = rng or np.random.default_rng(1)
    rows = rng.integers(len(materials), size=2000)
    doi = [f"10.1/{d}" for d in rng.integers(len(rows) // per_doi, size=len(rows))]
    return pd.DataFrame({"mp_id": materials.mp_id.to_numpy()[rows], "doi": doi})


class TestHash:
    def test_known_values(self):
        """The digest of `printf "0|mp-1" | b2sum -l 64`, over 2^64: pins the function for good."""
        assert splits.unit_hash(0, "mp-1") == 0x1B2617AD6A1E7F9C / 2**64
        assert splits.unit_hash(1, "mp-1") != splits.unit_hash(0, "mp-1")

    def test_uniform(self):
        u = np.array([splits.unit_hash(0, str(i)) for i in range(20000)])
        counts, _ = np.histogram(u, bins=10, range=(0, 1))
        assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001

    @pytest.mark.parametrize(("ladder", "expected"), [("random", (0.8, 0.1, 0.1)), ("chemsys", (0.7, 0.1, 0.2))])
    def test_shares(self, ladder, expected):
        parts = [splits.assign(0, str(i), ladder=ladder) for i in range(20000)]
        share = [parts.count(p) / 20000 for p in ("train", "val", "test")]
        np.testing.assert_allclose(share, expected, atol=0.012)

    def test_order_of_elements_does_not_matter(self):
        assert splits.chemsys_key("Sr-Ti-O") == splits.chemsys_key("O-Sr-Ti") == "O-Sr-Ti"


class TestBuild:
    def test_adding_data_moves_nobody(self):
        small, large = many(500), many(3000)
        few, _ = splits.build(small, protocols(small), seed=SEED)
        lots, _ = splits.build(large, protocols(large), seed=SEED)
        pd.testing.assert_frame_equal(few, lots.iloc[:500])

    def test_order_does_not_matter(self):
        materials = many(300)
        shuffled = materials.sample(frac=1, random_state=0)
        a, _ = splits.build(materials, protocols(materials), seed=SEED)
        b, _ = splits.build(shuffled, protocols(materials), seed=SEED)
        pd.testing.assert_frame_equal(a, b.set_index("mp_id").loc[a.mp_id].reset_index())

    def test_seed_moves(self):
        materials = many(300)
        a, b = (splits.build(materials, protocols(materials), seed=s)[0] for s in (0, 1))
        assert not a.equals(b)

    def test_chemical_systems_stay_together(self):
        materials = many()
        built, _ = splits.build(materials, protocols(materials), seed=SEED)
        assert built.groupby(materials.chemsys).chemsys.nunique().max() == 1

    def test_pretraining_is_outside_both_test_sets(self):
        materials = many()
        built, _ = splits.build(materials, protocols(materials), seed=SEED)
        tested = (built.random == "test") | (built.chemsys == "test")
        assert tested.any()
        assert (built.pretrain[tested] == "excluded").all()
        assert set(built.pretrain[~tested]) == {"train", "val"}
        part = built.pretrain[~tested].groupby(materials.chemsys[~tested])
        assert part.nunique().max() == 1  # its validation slice is cut by chemical system
        assert (built.pretrain == "val").mean() == pytest.approx(0.72 * 0.05, abs=0.02)

    def test_doi_rule(self):
        """Five systems; mp ids are taken by what the hash makes of them, so that each case is known."""
        materials = many(400)
        built, _ = splits.build(materials, protocols(materials), seed=SEED)
        outside = built.pretrain != "excluded"
        a, b = built.mp_id[outside].iloc[:2]
        by_random = built.mp_id[(built.random == "test") & (built.chemsys == "train")].iloc[0]
        by_chemsys = built.mp_id[(built.random == "train") & (built.chemsys == "test")].iloc[0]
        rows = [
            (a, "10.1/shared", False),
            (by_chemsys, "10.1/shared", False),
            (a, "10.1/other", False),
            (by_random, "10.1/other", False),
            (a, "10.1/own", True),
            (b, "10.1/own", True),
            (b, "", True),  # an unknown DOI is shared with nobody
            (by_chemsys, "", False),
        ]
        frame = pd.DataFrame(rows, columns=["mp_id", "doi", "expected"])
        _, train_ok = splits.build(materials, frame[["mp_id", "doi"]], seed=SEED)
        assert list(train_ok) == list(frame.expected)
        assert train_ok.dtype == bool

    def test_protocol_of_no_material(self):
        materials = many(10)
        with pytest.raises(ValueError, match=r"1 of 1 protocols .* mp-none"):
            splits.build(materials, pd.DataFrame({"mp_id": ["mp-none"], "doi": ["10.1/a"]}), seed=0)

    def test_empty(self):
        built, train_ok = splits.build(table([]), pd.DataFrame({"mp_id": [], "doi": []}), seed=0)
        assert len(built) == len(train_ok) == 0


class TestAudit:
    def built(self):
        materials = many()
        frame = protocols(materials)
        built, frame["train_ok"] = splits.build(materials, frame, seed=SEED)
        lattice = np.eye(3)[None] * 4.0 * np.ones((len(materials), 1, 1))
        return materials, lattice, frame, built

    def test_zeros_and_counts(self):
        rows = pd.DataFrame(splits.audit(*self.built())).set_index(["ladder", "key"])
        ladders = ["random", "chemsys", "pretrain against random", "pretrain against chemsys"]
        assert list(rows.index.get_level_values(0).unique()) == ladders
        assert (rows.overlap[rows.asserted_zero] == 0).all()
        zero = {
            ladder: set(part.index.get_level_values(1)) for ladder, part in rows[rows.asserted_zero].groupby(level=0)
        }
        assert zero["random"] == {"mp-id", "DOI"}
        assert zero["chemsys"] == {"mp-id", "formula", "chemsys", "DOI"}
        assert rows.overlap["random", "chemsys"] > 0  # many systems of several materials: they must meet
        assert rows.overlap["chemsys", "near-duplicate structure"] > 0

    @pytest.mark.parametrize("key", ["mp-id", "chemsys", "DOI"])
    def test_a_leak_stops(self, key):
        materials, lattice, frame, built = self.built()
        test = built.index[built.chemsys == "test"]
        train = built.index[built.chemsys == "train"]
        if key == "mp-id":
            materials.loc[train[0], "mp_id"] = built.loc[train[0], "mp_id"] = built.mp_id[test[0]]
        elif key == "chemsys":
            materials.loc[train[0], "chemsys"] = materials.chemsys[test[0]]
        else:
            frame = pd.concat([frame, frame[frame.mp_id.isin(set(built.mp_id[test]))].head(1)], ignore_index=True)
            frame.loc[len(frame) - 1, ["mp_id", "train_ok"]] = [built.mp_id[train[0]], True]
        with pytest.raises(ValueError, match=rf"leak: 1 {key} keys .* expected 0"):
            splits.audit(materials, lattice, frame, built)

    def test_near_duplicates_by_hand(self):
        """SrTiO3 is tested. Trained: BaZrO3 0.5 % larger (counts), CaTiO3 3 % larger, NaCl of equal volume per atom."""
        materials = table(["O-Sr-Ti", "Ba-O-Zr", "Ca-O-Ti", "Cl-Na"])
        materials["formula"] = ["SrTiO3", "BaZrO3", "CaTiO3", "NaCl"]
        materials["n_atoms"] = [5, 5, 5, 2]
        edge = np.array([60.0, 60.3, 61.8, 24.0]) ** (1 / 3)
        lattice = np.eye(3) * edge[:, None, None]
        built = pd.DataFrame({"mp_id": materials.mp_id, "pretrain": ["excluded", *["train"] * 3]})
        built["random"] = built["chemsys"] = ["test", "train", "train", "val"]
        none = pd.DataFrame({"mp_id": [], "doi": [], "train_ok": np.array([], dtype=bool)})

        def count():
            rows = splits.audit(materials, lattice, none, built)
            return next(
                r["overlap"] for r in rows if r["ladder"] == "chemsys" and r["key"] == "near-duplicate structure"
            )

        assert count() == 1
        materials.loc[1, "space_group"] = 62
        assert count() == 0

    def test_rows_must_match(self):
        materials, lattice, frame, built = self.built()
        with pytest.raises(ValueError, match="same order"):
            splits.audit(materials, lattice, frame, built.iloc[::-1])


def test_anonymous():
    assert splits.anonymous("SrTiO3") == splits.anonymous("BaZrO3") == "A1B1C3"
    assert splits.anonymous("Ti2Ba2O6") == "A1B1C3"
    assert splits.anonymous("Al2O3") == "A2B3"


@given(st.integers(0, 10**6), st.text(min_size=1))
def test_hash_is_in_the_unit_interval(seed, key):
    assert 0 <= splits.unit_hash(seed, key) < 1
