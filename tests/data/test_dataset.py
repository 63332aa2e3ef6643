import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from matalign.data import dataset
from matalign.data.dataset import Structures


def test_a_round_trip_keeps_everything(curated, tmp_path):
    dataset.write(tmp_path, curated)
    back = dataset.read(tmp_path)
    for table in ("materials", "protocols", "splits"):
        pd.testing.assert_frame_equal(getattr(back, table), getattr(curated, table), check_dtype=False)
    for name, dtype in dataset.TENSORS.items():
        assert getattr(back.structures, name).dtype == dtype
        np.testing.assert_array_equal(getattr(back.structures, name), getattr(curated.structures, name))
    assert back.extra("xrd").dtype == np.float16
    np.testing.assert_array_equal(back.extra("xrd"), curated.extra("xrd"))
    assert back.audit == {"counts": {"materials": 3}}
    assert back.digest == curated.digest
    assert back.materials.formula[0] == "NaN"


def test_shards_hold_what_one_file_holds(curated, tmp_path, monkeypatch):
    dataset.write(tmp_path, curated)
    monkeypatch.setattr(dataset, "SHARD", 2)
    dataset.write(tmp_path, curated)
    assert [file.name for file in dataset.shards(tmp_path)] == [
        "structures-00000.safetensors",
        "structures-00001.safetensors",
    ]
    back, whole = dataset.read(tmp_path), curated.structures
    assert back.digest == curated.digest
    for rows in ([2, 0, 2, 1], [1], []):
        got, want = back.structures.take(rows), whole.take(rows)
        for name, dtype in dataset.TENSORS.items():
            np.testing.assert_array_equal(getattr(got, name), np.asarray(getattr(want, name), dtype))
    for name in dataset.TENSORS:
        np.testing.assert_array_equal(getattr(back.structures, name), getattr(whole, name))
    for got, want in zip(back.structures, whole, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    monkeypatch.undo()
    dataset.write(tmp_path, back)
    assert [file.name for file in dataset.shards(tmp_path)] == [dataset.STRUCTURES]
    assert dataset.read(tmp_path).digest == curated.digest


def test_a_shard_that_is_lost_is_missed(curated, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD", 2)
    dataset.write(tmp_path, curated)
    dataset.shards(tmp_path)[0].unlink()
    with pytest.raises(ValueError, match=r"3 materials, but 1 structures.*`curate` makes it"):
        dataset.read(tmp_path)


def test_the_same_content_gives_the_same_bytes(curated, tmp_path):
    dataset.write(tmp_path / "a", curated)
    dataset.write(tmp_path / "b", dataset.read(tmp_path / "a"))
    for file in (*dataset.FILES, "audit.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert pq.read_schema(tmp_path / "a" / "materials.parquet").metadata is None  # no pandas version in the bytes


@pytest.mark.parametrize("change", ["materials", "structures", "protocols", "splits", "extras"])
def test_the_digest_follows_the_content(curated, change):
    if change == "structures":
        other = dataclasses.replace(curated.structures, lattice=curated.structures.lattice * 1.01)
    elif change == "extras":
        other = {"xrd": curated.extra("xrd") / 2}
    else:
        column = {"materials": "band_gap_eV", "protocols": "text_L3", "splits": "pretrain"}[change]
        other = getattr(curated, change).copy()
        other[column] = 1.0 if change == "materials" else "other"
    assert dataclasses.replace(curated, **{change: other}).digest != curated.digest


def test_extras_of_later_modalities_have_digests_of_their_own(curated):
    values = np.arange(6.0).reshape(3, 2)
    one, other = (dataclasses.replace(curated, extras={**curated.extras, "new": v}) for v in (values, values + 1))
    assert one.digest == other.digest == curated.digest
    assert curated.extra_digests == {}
    assert one.extra_digests.keys() == {"new"}
    assert one.extra_digests != other.extra_digests


def test_the_digest_does_not_follow_the_audit(curated):
    assert dataclasses.replace(curated, audit={"counts": {}}).digest == curated.digest


def test_columns_beyond_the_contract_are_kept(curated, tmp_path):
    more = dataclasses.replace(curated, materials=curated.materials.assign(prototype=["rocksalt", None, "perovskite"]))
    dataset.write(tmp_path, more)
    back = dataset.read(tmp_path).materials
    assert list(back.columns) == [*dataset.MATERIALS, "prototype"]
    assert back.prototype[2] == "perovskite"


def test_crystals_come_back_one_by_one(structures, nacl, srtio3):
    assert len(structures) == 3
    for row, expected in ((0, nacl), (2, srtio3), (-1, srtio3)):
        for got, want in zip(structures[row], expected):
            np.testing.assert_allclose(got, want)
    with pytest.raises(IndexError):
        structures[3]
    assert [len(numbers) for numbers, _, _ in structures] == [2, 2, 5]


def test_fractions_by_hand(structures):
    fractions = structures.fractions()
    assert fractions.shape == (3, 119)
    assert [dict(zip(np.flatnonzero(row).tolist(), row[row > 0].tolist())) for row in fractions] == [
        {11: 0.5, 17: 0.5},
        {14: 1.0},
        {8: 0.6, 22: 0.2, 38: 0.2},
    ]


def test_take_follows_the_rows(structures, srtio3):
    taken = structures.take(np.array([2, 0, 2]))
    assert taken.ptr.tolist() == [0, 5, 7, 12]
    for row in (0, 2):
        for got, want in zip(taken[row], srtio3):
            np.testing.assert_allclose(got, want)
    assert taken[1][0].tolist() == [11, 17]
    assert len(structures.take(np.array([], dtype=int))) == 0
    assert len(Structures.pack([])) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"ptr": np.array([0, 2, 2, 9])}, "must rise from 0 to 9"),
        ({"ptr": np.array([0, 2, 4, 8])}, "must rise from 0 to 9"),
        ({"frac_coords": np.zeros((8, 3))}, "do not fit"),
    ],
)
def test_structures_that_do_not_fit_are_refused(structures, broken, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(structures, **broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"materials": lambda c: c.materials.drop(columns="band_gap_eV")}, "materials: no column 'band_gap_eV'"),
        ({"materials": lambda c: c.materials[::-1]}, "sorted and unique"),
        ({"splits": lambda c: c.splits[:2]}, "3 materials, but 3 structures and 2 rows of splits"),
        ({"extras": lambda c: {"xrd": c.extra("xrd")[:2]}}, "3 materials, but 2 rows of xrd"),
        ({"protocols": lambda c: c.protocols.assign(mp_id="mp-9")}, "1 mp-ids are not in materials, first mp-9"),
    ],
)
def test_tables_that_do_not_fit_are_refused(curated, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(curated, **{name: make(curated) for name, make in change.items()})


def test_a_missing_set_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"materials\.parquet: no curated set here; .*`curate`"):
        dataset.read(tmp_path)


def test_a_shard_of_something_else_is_refused(tmp_path):
    save_file({"lattice": np.eye(3)[None]}, file := tmp_path / "structures.safetensors")
    with pytest.raises(ValueError, match=r"structures.safetensors: expected tensors numbers, .*ptr, got lattice"):
        dataset.mapped(file)
