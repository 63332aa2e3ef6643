import os
import shutil

import pandas as pd
import pytest

from matalign import paths
from matalign.data import library, reactions


def test_the_sample_has_a_recipe_for_each_record():
    table = library.read(paths.SAMPLE)
    assert list(table) == library.COLUMNS
    assert table.protocol_id.is_unique
    assert table.protocol_id.is_monotonic_increasing
    assert len(table) > 100
    first = table.iloc[0]
    row = int(first.protocol_id.rsplit("-", 2)[1])
    record = next(r for r in reactions.read(paths.SAMPLE) if r.row == row).record
    assert first.doi == record["doi"].lower()
    assert first.precursors.split(" + ")[0] in first.text_L1
    assert first.target_formula in first.text_L0
    assert first.target_formula not in first.text_L1.replace(first.precursors, "")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    folder = tmp_path / "data" / "raw"
    folder.mkdir(parents=True)
    shutil.copy(paths.SAMPLE.parent / "sources.yaml", paths.DATA)
    lines = (paths.SAMPLE / "protocols.jsonl").read_text().splitlines()
    (folder / "protocols.jsonl").write_text("\n".join(lines[:5]) + "\n")
    return folder


def test_the_index_is_made_once_and_anew_when_a_file_is_newer(raw, monkeypatch):
    table = library.read(raw)
    assert len(table) == 5
    file = paths.DATA / "index" / "raw.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet(file), table)
    with monkeypatch.context() as patch:
        patch.setattr(library, "table", lambda folder: pytest.fail("it is there"))
        pd.testing.assert_frame_equal(library.read(raw), table)
    lines = (paths.SAMPLE / "protocols.jsonl").read_text().splitlines()
    (raw / "protocols.jsonl").write_text("\n".join(lines[:7]) + "\n")
    later = file.stat().st_mtime + 5
    os.utime(raw / "protocols.jsonl", (later, later))
    assert len(library.read(raw)) == 7


def test_a_folder_without_records_or_tests_does_not_count(raw):
    assert library.present(paths.SAMPLE)
    assert not library.present(raw)
    shutil.copytree(paths.SAMPLE / "public_tests", raw / "public_tests")
    assert library.present(raw)
    (raw / "protocols.jsonl").unlink()
    assert not library.present(raw)
    with pytest.raises(FileNotFoundError, match="fetch"):
        library.read(raw)
