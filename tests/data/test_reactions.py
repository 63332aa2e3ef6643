import json

import pytest
import rawfiles

from matalign.data import reactions


def test_records_know_their_method_and_row(tmp_path):
    record = rawfiles.reaction("NaCl")
    lines = [json.dumps(record), json.dumps({**record, "synthesis_type": "sol-gel"})]
    (tmp_path / "protocols.jsonl").write_text("\n".join(lines))
    found = list(reactions.read(tmp_path))
    assert [(r.method, r.where) for r in found] == [
        ("solid-state", "protocols.jsonl:1"),
        ("sol-gel", "protocols.jsonl:2"),
    ]
    (tmp_path / "protocols.jsonl").write_text('{"target": \n')
    with pytest.raises(ValueError, match=r"protocols\.jsonl:1: expected a JSON record, got '{\"target\""):
        list(reactions.read(tmp_path))


def test_protocols_know_their_record(tmp_path):
    records = [
        rawfiles.reaction("ZnO", ["Zn(x)O"]),
        rawfiles.reaction("CaTiO3", targets=["CaTiO3", "La1-xTiO3", "Ca2TiO4"]),
    ]
    (tmp_path / "protocols.jsonl").write_text("\n".join(map(json.dumps, records)))
    *_, series = reactions.read(tmp_path)
    made, reasons = reactions.parse(series)
    assert [(p.protocol_id, p.where) for p in made] == [
        (f"{tmp_path.name}-00002-{i}", "protocols.jsonl:2") for i in (0, 1)
    ]
    assert reasons == ["unreadable target formula"]


def test_an_empty_folder_says_what_fetches(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fetch them with: python -m matalign\.data\.fetch megnet"):
        list(reactions.read(tmp_path))
