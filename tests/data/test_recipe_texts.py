"""`read_protocol` on what people write and save: signs, encodings, groups, hydrates, fields."""

import json

import pytest

from matalign.data.readers.recipe_texts import read_protocol

FIELDS = {
    "target": "BaTiO3",
    "precursors": ["TiO2", "BaCO3"],
    "operations": [
        {"action": "milling", "time_min": 90, "medium": "ethanol"},
        {"action": "Calcined", "temperature_K": 1373.15, "time_h": 12, "atmosphere": "air"},
    ],
}


def test_a_structured_protocol_is_rendered_as_those_of_the_curated_sets():
    expected = (
        "solid-state synthesis. from BaCO3 (barium), TiO2 (titanium). milled for 1.5 hours in ethanol. "
        "calcined at 1100 celsius for 12 hours in air."
    )
    assert read_protocol(FIELDS) == expected
    assert "of BaTiO3 (barium titanium)" in read_protocol(FIELDS, level=0)
    assert "a carbonate, an oxide" in read_protocol(FIELDS, level=2)
    assert read_protocol({k: v for k, v in FIELDS.items() if k != "target"}) == expected


def test_a_protocol_of_one_step_is_flat():
    flat = {"precursors": "Li2CO3; Co3O4", "temperature": 850, "temperature_unit": "°C", "method": "sol-gel"}
    assert read_protocol(flat) == "sol-gel synthesis. from Co3O4 (cobalt), Li2CO3 (lithium). heated at 850 celsius."
    assert read_protocol({"precursors": "Li2CO3"}) == "solid-state synthesis. from Li2CO3 (lithium)."


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precursors": []}, "no precursors"),
        ({"precursors": ["BaTiO3", "TiO2"]}, "the target BaTiO3 is among its precursors"),
        ({"target": "BaXx3"}, r"'BaXx3': cannot read 'Xx' \(character 3\)"),
        ({"method": "magic"}, "unknown method 'magic'; one of solid-state, sol-gel"),
        ({"temprature": 3}, "unknown field 'temprature'; known are target"),
        ({"operations": [{"heat": 3}]}, "unknown field 'heat' of an operation"),
        ({"operations": ["heat"]}, "operation 'heat' is no dict"),
        ({"operations": "heat"}, "operations 'heat' are no list of steps"),
        ({"precursors": 5}, "precursors 5 is no list of words"),
        ({"precursors": ["Ba\x07O"]}, r"precursors: no readable text: U\+0007, a control character, in line 1"),
        ({"operations": [{"temperature_C": 10**400}]}, "expected a number"),
        ({"operations": [{"action": "wished"}]}, "unknown action 'wished'; one of calcined"),
        ({"operations": [{"temperature": 3}]}, "temperature 3 has no unit; one of C, K"),
        ({"operations": [{"temperature": 3, "temperature_unit": "F"}]}, "unknown unit 'F'"),
        ({"operations": [{"temperature_C": 3, "temperature_K": 276}]}, "temperature stands there 2 times"),
        ({"operations": [{"temperature_C": "hot"}]}, "temperature_C is 'hot'; expected a number"),
        ({"operations": [{"temperature_C": 9000}]}, "a temperature of 9000 °C; expected at most 3500"),
        ({"operations": [{"temperature_K": -1}]}, "a temperature of -274"),
        ({"operations": [{"time_h": 0}]}, "a time of 0 h"),
    ],
)
def test_a_bad_field_is_named(changed, said):
    with pytest.raises(ValueError, match=said):
        read_protocol(FIELDS | changed)


@pytest.mark.parametrize("nitrogen", ["N₂", "N2", " n2 ", "nitrogen", "N\u00ad₂"])
def test_nitrogen_is_nitrogen_however_it_is_written(nitrogen):
    step = {"action": "sintered", "atmosphere": nitrogen, "medium": "H₂O"}
    text = read_protocol({"precursors": ["TiO₂"], "operations": [step]})
    assert text == "solid-state synthesis. from TiO2 (titanium). sintered in water and nitrogen."


@pytest.mark.parametrize(
    ("precursor", "shown"),
    [
        ("Zn(OAc)2·2H2O", "Zn(OAc)2·2H2O (zinc)"),
        ("NaAc", "NaAc (sodium)"),
        ("Pb(Ac)2", "Pb(Ac)2 (lead)"),
        ("Zr(OPr)4", "Zr(OPr)4 (zirconium)"),
        ("PVP", "PVP (carbon hydrogen nitrogen oxygen)"),
        ("Mg(NO3)2 6H2O", "Mg(NO3)2·6H2O (magnesium)"),
        ("Ac2O3", "Ac2O3 (actinium)"),
        ("Pr6O11", "Pr6O11 (praseodymium)"),
    ],
)
def test_groups_are_no_elements_and_hydrates_have_dots(precursor, shown):
    assert read_protocol({"precursors": [precursor]}) == f"solid-state synthesis. from {shown}."


def test_free_text_stays_but_for_blanks_marks_and_compatibility_signs():
    assert read_protocol(" BaCO3 and\n TiO2\twere fired. ") == "BaCO3 and TiO2 were fired."
    assert read_protocol("\ufeffTiO₂ pow\u00adders, 900\u00a0℃") == "TiO2 powders, 900 °C"
    assert read_protocol("calcined for 4½ h, then ¾ h") == "calcined for 4 1/2 h, then 3/4 h"  # not 41/2
    assert len(read_protocol("x" * 20_000)) == 20_000
    with pytest.raises(ValueError, match="a text of 100,000 characters; at most 20,000"):
        read_protocol("x" * 100_000)
    for text in ("", " \n", "\u00ad"):
        with pytest.raises(ValueError, match="an empty text"):
            read_protocol(text)
    with pytest.raises(ValueError, match="int is no protocol"):
        read_protocol(5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Mixed.\nFired at 1500 \uf0b0C", r"U\+F0B0, a sign of one font alone, in line 2, character 15, after .*1500'"),
        ("a\0b", r"U\+0000, a control character, in line 1, character 2, after 'a'"),
        ("a\ud800", r"U\+D800, half a character, in line 1, character 2"),
    ],
)
def test_a_sign_that_is_no_text_is_named_with_its_place(text, said):
    with pytest.raises(ValueError, match=said):
        read_protocol(text)


def test_a_file_of_text_or_fields(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(FIELDS))
    assert read_protocol(tmp_path / "a.json") == read_protocol(FIELDS)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_text("Fired  at 900 °C.", encoding=encoding)
        assert read_protocol(tmp_path / "a.txt") == "Fired at 900 °C."
        (tmp_path / "b.json").write_text(json.dumps(FIELDS), encoding=encoding)
        assert read_protocol(tmp_path / "b.json") == read_protocol(FIELDS)
    for name, content, said in [
        ("b.json", b"{", "not JSON"),
        ("deep.json", b"[" * 70_000, "not JSON"),
        ("c.json", b"[1]", "a JSON list; expected an object"),
        ("d.txt", b"\xff\xfe900", "not UTF-16 text: byte 30 in line 1"),
        ("latin.txt", b"Mixed.\nFired at 900 \xb0C", "not UTF-8 text: byte b0 in line 2, byte 20 of the file; save"),
        ("e.txt", b"x" * 100_000, "a text of 100,000 bytes"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^{name}: {said}"):
            read_protocol(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        read_protocol(tmp_path / "none.txt")


def test_a_path_may_be_a_string_and_a_sentence_is_none(tmp_path):
    file = tmp_path / "salt.txt"
    file.write_text("Grind the salt\nat 20 °C.")
    assert read_protocol(str(file)) == read_protocol(file) == "Grind the salt at 20 °C."
    assert read_protocol("as told in notes.txt") == "as told in notes.txt"
    with pytest.raises(FileNotFoundError, match=r"absent\.json: no such file"):
        read_protocol("absent.json")
