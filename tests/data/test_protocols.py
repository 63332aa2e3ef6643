import copy
import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition

from matalign.data import formulas, protocols, reactions
from matalign.data.formulas import composition, precursor_class, reduced, spells
from matalign.data.protocols import Operation, Protocol, render
from matalign.data.reactions import Reaction
from matalign.elements import NAMES

LIMIT_C = 2500.0
MIRROR = os.environ.get("MATALIGN_MIRROR")


def solid_state(**changes):
    """A reaction in the schema of the solid-state file: lists, C, null conditions."""
    record = {
        "doi": "10.1000/Example.1",
        "targets_string": ["TiBaO3"],
        "reaction_string": "1 BaCO3 + 1 TiO2 == 1 BaTiO3 + 1 CO2",
        "target": {"material_string": "BaTiO3", "material_formula": "BaTiO3", "additives": [], "mp_id": "mp-5986"},
        "precursors": [{"material_formula": "TiO2"}, {"material_formula": "BaCO3"}],
        "operations": [
            {
                "type": "Mixing",
                "token": "ball-milled",
                "conditions": {
                    "heating_temperature": [],
                    "heating_time": [],
                    "heating_atmosphere": [],
                    "mixing_media": ["ethanol"],
                },
            },
            {"type": "Mixing", "token": "mixed", "conditions": None},
            {
                "type": "HeatingOperation",
                "token": "calcined",
                "conditions": {
                    "heating_temperature": [{"max_value": 1100.0, "min_value": None, "values": [1100.0], "units": "C"}],
                    "heating_time": [{"max_value": 90.0, "min_value": None, "values": [90.0], "units": "min"}],
                    "heating_atmosphere": ["air"],
                    "mixing_media": [],
                },
            },
        ],
    }
    return {**record, **changes}


def sol_gel(temperature=900.0, units="°C", medium="water"):
    """A reaction in the schema of the sol-gel file: scalars, °C or K, null entries."""
    heating = {
        "heating_temperature": [{"values": [], "units": units, "min_value": 800.0, "max_value": temperature}],
        "heating_time": None,
        "heating_atmosphere": ["O2"],
        "mixing_media": None,
    }
    return {
        "doi": "10.1000/example.2",
        "targets_string": ["LiMn2O4"],
        "reaction_string": "1 LiNO3 + 2 Mn(NO3)2 == 1 LiMn2O4",
        "target": {"material_string": "LiMn2O4", "material_formula": "LiMn2O4", "material_name": "", "additives": []},
        "precursors": [{"material_formula": "Mn(NO3)2⋅4H2O"}, {"material_formula": "LiNO3"}],
        "operations": [
            {"type": "StartingSynthesis", "token": "prepared", "conditions": {"mixing_media": None}},
            {"type": "MixingOperation", "token": "dissolved", "conditions": {"mixing_media": medium}},
            {"type": "HeatingOperation", "token": "sintered", "conditions": heating},
        ],
    }


def parse(record, *, method, max_temperature_C):
    return reactions.parse(Reaction("mined", 7, "mined:7", method, record), max_temperature_C=max_temperature_C)


def one(record, method="solid-state"):
    found, reasons = parse(record, method=method, max_temperature_C=LIMIT_C)
    assert not reasons
    assert len(found) == 1
    return found[0]


class TestFormula:
    @pytest.mark.parametrize(
        ("formula", "expected"),
        [
            ("SrTiO₃", {"Sr": 1, "Ti": 1, "O": 3}),
            ("Ba(Mg1/3Nb2/3)O3", {"Ba": 1, "Mg": Fraction(1, 3), "Nb": Fraction(2, 3), "O": 3}),
            ("Fe(NO3)3·9H2O", {"Fe": 1, "N": 3, "O": 18, "H": 18}),
            ("Fe(NO3)3.9H2O", {"Fe": 1, "N": 3, "O": 18, "H": 18}),
            ("Fe(NO₃)₃ ⋅ 9 H₂O", {"Fe": 1, "N": 3, "O": 18, "H": 18}),
            ("Cu(NO3)2·2.5H2O", {"Cu": 1, "N": 2, "O": Fraction(17, 2), "H": 5}),
            ("In(NO3)3·4·5H2O", {"In": 1, "N": 3, "O": Fraction(27, 2), "H": 9}),
            ("ZrO(NO3)2·xH2O", {"Zr": 1, "O": 8, "N": 2, "H": 2}),
            ("4MgCO3-Mg(OH)2·5H2O", {"Mg": 5, "C": 4, "O": 19, "H": 12}),
            ("[(CH3)2CHO]4Ti", {"C": 12, "H": 28, "O": 4, "Ti": 1}),
            ("SiO2(4N)", {"Si": 1, "O": 2}),
            ("La0.7Sr0.3MnO3", {"La": Fraction(7, 10), "Sr": Fraction(3, 10), "Mn": 1, "O": 3}),
        ],
    )
    def test_composition(self, formula, expected):
        assert composition(formula) == expected

    @pytest.mark.parametrize(
        "formula", ["", "Xx2O3", "La1-xSrxMnO3", "(BaTiO3", "BaTiO3)", "citric acid", "HTlc", "3", "O0"]
    )
    def test_not_a_formula(self, formula):
        with pytest.raises(ValueError):
            composition(formula)

    @pytest.mark.parametrize(
        "formula", ["Ba(Mg1/3Nb2/3)O3", "Li2CO3", "Ca10(PO4)6(OH)2", "Na0.5Bi0.5TiO3", "H3BO3", "S"]
    )
    def test_reduced_groups_as_pymatgen_does(self, formula):
        exact = Composition({s: float(a) for s, a in composition(formula).items()})
        assert Composition(reduced(formula)).reduced_formula == exact.get_integer_formula_and_factor()[0]

    def test_formulas_of_a_text(self):
        text = "synthesis from In, BaCO3 (barium), Fe(NO3)3·9H2O, BaCO3. heated at 900 celsius in air."
        assert formulas.in_text(text) == ["In", "BaCO3", "Fe(NO3)3·9H2O"]

    def test_elements_are_in_the_order_of_the_atomic_number(self):
        from pymatgen.core import Element

        assert [Element(s).Z for s in NAMES] == list(range(1, 119))
        assert NAMES["Co"] == "cobalt"

    @pytest.mark.parametrize(
        ("text", "target", "expected"),
        [
            ("made of O3TiBa here", "BaTiO3", True),
            ("Ba2Ti2O6", "BaTiO3", True),
            ("BaTiO₃,", "BaTiO3", True),
            ("Y2O3:Eu3+", "Y2O3", True),
            ("LiFePO4/C", "LiFePO4", True),
            ("CaSO4·2H2O", "CaSO4", True),
            ("BaCO3 TiO2", "BaTiO3", False),
            ("Li2Co3", "Li2CO3", False),  # cobalt, not carbonate
            ("NaCl", "Na", False),  # no substrings
            ("CoO", "Co", False),
            ("Ba0.5Sr0.5TiO3", "BaTiO3", False),
            ("NaOAc", "NaC2H3O2", True),
            ("ScHOAc", "AcHOSc", False),  # acetate, not actinium
            ("ScHAcO", "AcHOSc", True),
        ],
    )
    def test_spells(self, text, target, expected):
        assert spells(text, target) is expected


class TestParse:
    def test_solid_state(self):
        got = one(solid_state())
        assert got == Protocol(
            doi="10.1000/example.1",
            method="solid-state",
            target_formula="TiBaO3",
            target_names=("BaTiO3",),
            precursors=("BaCO3", "TiO2"),
            operations=(
                Operation("milled", media=("ethanol",)),
                Operation("mixed"),
                Operation("calcined", temperature_C=1100.0, hours=1.5, atmospheres=("air",)),
            ),
            reaction="1 BaCO3 + 1 TiO2 == 1 BaTiO3 + 1 CO2",
            mp_id="mp-5986",
        )
        assert got.max_temperature_C == 1100.0

    def test_sol_gel(self):
        got = one(sol_gel(), "sol-gel")
        assert got.precursors == ("LiNO3", "Mn(NO3)2·4H2O")
        assert got.mp_id is None
        assert got.operations == (
            Operation("dissolved", media=("water",)),
            Operation("sintered", temperature_C=900.0, atmospheres=("oxygen",)),
        )

    def test_kelvin(self):
        assert one(sol_gel(temperature=1173.15, units="K"), "sol-gel").max_temperature_C == pytest.approx(900.0)

    @pytest.mark.parametrize("units", [None, "", "C", "°C"])
    def test_missing_units_are_celsius(self, units):
        assert one(sol_gel(units=units), "sol-gel").max_temperature_C == 900.0

    def test_no_temperature_is_nan(self):
        assert math.isnan(
            one(solid_state(operations=[{"type": "Mixing", "token": "mixed", "conditions": None}])).max_temperature_C
        )

    @pytest.mark.parametrize("value", [2500.1, 12001600.0, -300.0])
    def test_absurd_temperature(self, value):
        assert parse(sol_gel(temperature=value), method="sol-gel", max_temperature_C=LIMIT_C) == (
            [],
            ["absurd temperature"],
        )

    def test_limit_itself_is_kept(self):
        assert one(sol_gel(temperature=2500.0), "sol-gel").max_temperature_C == 2500.0

    def test_unknown_unit(self):
        found, reasons = parse(sol_gel(units="furlong"), method="sol-gel", max_temperature_C=LIMIT_C)
        assert found == []
        assert reasons == ["temperature unit 'furlong' unknown"]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"targets_string": []}, "no target"),
            ({"target": None, "targets_string": None}, "no target"),
            ({"precursors": []}, "no precursors"),
            ({"targets_string": ["La1-xSrxMnO3"]}, "unreadable target formula"),
            ({"targets_string": ["Ba-1.3TiO3"]}, "unreadable target formula"),
            ({"targets_string": ["Qq2O3"]}, "unreadable target formula"),
            ({"precursors": [{"material_formula": "BaTiO3"}]}, "target occurs in a precursor"),
            ({"precursors": [{"material_formula": "Ba₂Ti₂O₆·4H2O"}]}, "target occurs in a precursor"),
            ({"target": {"material_formula": "BaTiOx"}, "targets_string": ["BaTiO"]}, "oxygen content unknown"),
        ],
    )
    def test_skipped_with_reason(self, changes, reason):
        assert parse(solid_state(**changes), method="solid-state", max_temperature_C=LIMIT_C) == ([], [reason])

    def test_several_targets_give_one_record_each(self):
        """A series La(1-x)Sr(x)MnO3: duplicates merged, each member with the precursors that supply its metals."""
        record = solid_state(
            targets_string=["LaMnO3", "La0.5Sr0.5MnO3", "LaMnO3", "SrMnO3", "La1-xSrxMnO3"],
            target={"material_string": "La1-xSrxMnO3", "material_formula": "La1-xSrxMnO3", "mp_id": "mp-1"},
            precursors=[{"material_formula": f} for f in ("La2O3", "SrCO3", "MnO2", "NH4OH")],
        )
        found, reasons = parse(record, method="solid-state", max_temperature_C=LIMIT_C)
        assert {p.target_formula: p.precursors for p in found} == {
            "LaMnO3": ("La2O3", "MnO2", "NH4OH"),
            "La0.5Sr0.5MnO3": ("La2O3", "MnO2", "NH4OH", "SrCO3"),
            "SrMnO3": ("MnO2", "NH4OH", "SrCO3"),
        }
        assert reasons == ["unreadable target formula"]
        assert all(p.mp_id is None for p in found)  # the id, if any, is of one member only

    def test_unknown_method(self):
        with pytest.raises(ValueError, match="solid-state, sol-gel"):
            parse(solid_state(), method="hydrothermal", max_temperature_C=LIMIT_C)

    def test_record_is_not_changed(self):
        record = solid_state()
        before = copy.deepcopy(record)
        parse(record, method="solid-state", max_temperature_C=LIMIT_C)
        assert record == before


class TestRender:
    def test_levels(self):
        protocol = one(solid_state())
        steps = "milled in ethanol. mixed. calcined at 1100 celsius for 1.5 hours in air."
        assert render(protocol, level=0) == (
            "solid-state synthesis of TiBaO3 (titanium barium). BaTiO3. "
            "reaction: 1 BaCO3 + 1 TiO2 == 1 BaTiO3 + 1 CO2. "
            f"from BaCO3 (barium), TiO2 (titanium). {steps}"
        )
        assert render(protocol, level=1) == f"solid-state synthesis. from BaCO3 (barium), TiO2 (titanium). {steps}"
        assert render(protocol, level=2) == f"solid-state synthesis. from a carbonate, an oxide. {steps}"
        assert render(protocol, level=3) == f"solid-state synthesis. {steps}"

    @pytest.mark.parametrize("level", [-1, 4, None])
    def test_no_such_level(self, level):
        with pytest.raises(ValueError, match="mask level"):
            render(one(solid_state()), level=level)

    def test_order_of_precursors_does_not_show(self):
        record = solid_state()
        swapped = solid_state(precursors=record["precursors"][::-1])
        assert render(one(record), level=1) == render(one(swapped), level=1)

    def test_element_names_tell_cobalt_from_carbon_monoxide(self):
        protocol = Protocol("", "solid-state", "LiCoO2", (), ("Co", "CO"), ())
        assert "Co (cobalt), CO (carbon oxygen)" in render(protocol, level=1)

    def test_atmosphere_that_is_the_target_is_masked(self):
        heating = Operation("heated", atmospheres=("carbon dioxide",))
        protocol = Protocol("", "solid-state", "CO2", (), ("C",), (heating,))
        assert render(protocol, level=1) == "solid-state synthesis. from C (carbon). heated in other."
        assert "carbon dioxide" in render(protocol, level=0)

    def test_unknown_words_are_other(self):
        record = sol_gel(medium="LiMn2O4 in barium titanate")
        assert one(record, "sol-gel").operations[0].media == ("other",)

    def test_element_name_of_an_elemental_target_is_masked(self):
        protocol = Protocol("", "sol-gel", "Cu", (), ("CuO",), ())
        assert "copper" not in render(protocol, level=1)

    @pytest.mark.parametrize(
        ("formula", "expected"),
        [
            ("BaCO3", "a carbonate"),
            ("BaCo3", "an alloy"),
            ("Fe(NO3)3·9H2O", "a nitrate"),
            ("LiOH·H2O", "a hydroxide"),
            ("Mn(CH3COO)2·4H2O", "an acetate"),
            ("FeC2O4·2H2O", "an oxalate"),
            ("NH4H2PO4", "a phosphate"),
            ("NH4VO3", "an oxide"),
            ("NH4F", "a fluoride"),
            ("H3BO3", "an acid"),
            ("Ti(OC4H9)4", "an alkoxide"),
            ("BaCl2·2H2O", "a chloride"),
            ("SiC", "a carbide"),
            ("P2S5", "a sulfide"),
            ("Si3N4", "a nitride"),
            ("TiO2", "an oxide"),
            ("Fe", "an element"),
            ("H2O", "water"),
            ("C2H5OH", "an organic compound"),
            ("citric acid", "another compound"),
        ],
    )
    def test_precursor_class(self, formula, expected):
        assert precursor_class(formula) == expected


# What a property-based test feeds: targets, every way to spell one, and records that try to smuggle a spelling in.
SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
elements = st.sampled_from([s for s in NAMES if s not in ("He", "Ne", "Ar", "Kr", "Xe", "Rn")])
amounts = st.dictionaries(elements, st.integers(1, 12), min_size=1, max_size=5)
others = st.sampled_from(
    ["TiO2", "BaCO3", "Fe(NO3)3·9H2O", "C", "S", "Cu", "NH4H2PO4", "citric acid", "Ba2Ti", "x", "CO"]
)


@st.composite
def spellings(draw, atoms):
    """One composition as written, reordered, multiplied, with subscripts, decimals, brackets, doped or hydrated."""
    factor = draw(st.sampled_from([1, 2, 3, Fraction(1, 2)]))
    order = draw(st.permutations(sorted(atoms)))

    def written(n):
        return "" if n == 1 else str(n.numerator) if n.denominator == 1 else f"{float(n):g}"

    parts = [s + written(Fraction(atoms[s]) * factor) for s in order]
    if draw(st.booleans()) and len(parts) > 1:
        parts = [f"({parts[0]})", *parts[1:]]
    text = "".join(parts)
    if draw(st.booleans()):
        text = text.translate(SUBSCRIPT)
    dress = draw(st.sampled_from(["{}", "{}:Eu3+", "{}:Ce", "{}·2H2O", "{}/C", "Eu:{}"]))
    return dress.format(text)


@st.composite
def records(draw):
    atoms = draw(amounts)
    target = "".join(f"{s}{n}" for s, n in atoms.items())
    spelling = spellings(atoms)
    smuggled = st.one_of(spelling, others)
    word = st.one_of(spelling, st.sampled_from(["air", "Ar", "H2", "CO2", "N2", "water", "HNO3", "C", "oxygen"]))
    step = st.fixed_dictionaries(
        {
            "type": st.sampled_from([*protocols.TYPES, "Unheard"]),
            "token": st.one_of(spelling, st.sampled_from(["calcined", "mixed", "In", "No"])),
            "conditions": st.one_of(
                st.none(),
                st.fixed_dictionaries(
                    {
                        "heating_temperature": st.one_of(st.none(), st.just([{"max_value": 900.0, "units": "°C"}])),
                        "heating_time": st.one_of(st.none(), st.just([{"max_value": 2.0, "units": "day"}])),
                        "heating_atmosphere": st.one_of(st.none(), st.lists(word, max_size=2)),
                        "mixing_media": st.one_of(st.none(), word),
                    }
                ),
            ),
        }
    )
    return {
        "doi": draw(spelling),
        "targets_string": [target],
        "reaction_string": f"1 {draw(spelling)} == 1 {target}",
        "target": {"material_string": draw(spelling), "material_formula": target, "material_name": "some titanate"},
        "precursors": [{"material_formula": p} for p in draw(st.lists(smuggled, min_size=1, max_size=4))],
        "operations": draw(st.lists(step, max_size=4)),
    }


def formulas_in(text):
    """What pymatgen reads as a formula in the text: words, and the parts of words. Independent of `spells`."""
    found = []
    for word in re.findall(r"[^\s,;:=/·⋅]+", text.translate({ord("₀") + i: str(i) for i in range(10)})):
        token = word.strip(".()-")
        if re.fullmatch(r"(?:[A-Z][a-z]?|[()\[\]\d.])+", token) and re.search("[A-Z]", token):
            try:
                found.append(Composition(token))
            except ValueError:
                continue
    return found


class TestMasking:
    @settings(max_examples=300, deadline=None)
    @given(records(), st.sampled_from(protocols.METHODS))
    def test_no_spelling_of_the_target_from_L1_and_no_formula_at_L3(self, record, method):
        target = Composition(record["targets_string"][0]).fractional_composition
        written = record["target"]["material_string"]
        for protocol in parse(record, method=method, max_temperature_C=LIMIT_C)[0]:
            for level in (1, 2, 3):
                text = render(protocol, level=level)
                assert not any(f.fractional_composition.almost_equals(target, 0, 1e-6) for f in formulas_in(text)), text
                assert not spells(text, record["targets_string"][0])
                assert written not in text.replace(",", " ").split()
                assert "titanate" not in text
                assert "==" not in text
            assert formulas_in(render(protocol, level=2)) == []
            assert formulas_in(render(protocol, level=3)) == []
            assert render(protocol, level=3) == render(protocol, level=3).lower()

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_every_spelling_is_found(self, data):
        atoms = data.draw(amounts)
        target = "".join(f"{s}{n}" for s, n in atoms.items())
        written = data.draw(spellings(atoms))
        parts = re.split(r"[:·/]", formulas.plain(written))
        read = [formulas.spelled_out(formulas.normalise(part)) for part in parts]
        assume(read == parts)  # else an acetate or a propoxide, as ScHOAc, or water, as H20
        assert spells(f"from BaCO3, {written} and more", target)

    def test_the_check_sees_a_leak(self):
        """The test's own eye: at L0 the target is there, and is found."""
        text = render(one(solid_state()), level=0)
        assert any(f.reduced_formula == "BaTiO3" for f in formulas_in(text))


@pytest.mark.real
@pytest.mark.skipif(not MIRROR, reason="MATALIGN_MIRROR is not set")
@pytest.mark.parametrize(("method", "records_in_file"), [("solid-state", 30031), ("sol-gel", 9518)])
def test_real_protocols_do_not_name_their_target(method, records_in_file):
    import lzma

    (file,) = Path(MIRROR).glob(f"raw.githubusercontent.com/CederGroupHub/*/*/{method}*.json.xz")
    reactions = json.loads(lzma.decompress(file.read_bytes()))["reactions"]
    assert len(reactions) == records_in_file
    for record in reactions[::20]:
        for protocol in parse(record, method=method, max_temperature_C=LIMIT_C)[0]:
            target = Composition(protocol.target_formula)
            text = render(protocol, level=1)
            assert not any(f.reduced_formula == target.reduced_formula for f in formulas_in(text)), text
            assert formulas_in(render(protocol, level=3)) == []
