"""The embedded sample: enough of everything, sound, and what its script makes."""

import re
import sys
import warnings
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Element
from pymatgen.io.cif import CifParser
from pymatgen.symmetry.groups import SpaceGroup
from sklearn.ensemble import HistGradientBoostingRegressor

from matalign import config, paths
from matalign.data import curate, formulas, reactions, sources, splits
from matalign.data.sources import Skipped

sys.path.insert(0, str(paths.SAMPLE))
import prototypes
import recipes
import rules

LABELS = {  # column -> least and greatest plausible value
    "formation_energy_eV_atom": (-5.0, 0.5),
    "band_gap_eV": (0.0, 12.0),
    "bulk_modulus_GPa": (0.0, 500.0),
    "shear_modulus_GPa": (0.0, 400.0),
}
FAULTS = {
    "formula mismatch",
    "several targets",
    "absurd temperature",
    "target occurs in a precursor",
    "no structure of the mp-id",
}
PRECURSOR_COLUMNS = [
    *("precursor_formulas", "target_formula", "Reaction", "Year", "Elements Match", "extracted_elements"),
    *("matching_precursors", "matching_precursors_length", "all_precursors_present"),
]
CONDITION_COLUMNS = [
    *("id", "precursor_formulas", "target_formula", "Reaction", "Year"),
    *("Heating Operations", "Heating Temperatures", "Heating Times", "Sintering Temperature", "Sintering Time"),
    *("Calcination Temperature", "Calcination Time", "DOI", "Elements Match"),
]


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(paths.SAMPLE / "materials.csv", index_col="mp_id")


@pytest.fixture(scope="module")
def decorations():
    return {d.mp_id: d for d in prototypes.decorations()}


@pytest.fixture(scope="module")
def structures(table):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rounded to ideal values")  # thirds have eight decimals
        return {
            mp_id: CifParser.from_str(text).parse_structures(primitive=False)[0] for mp_id, text in table.cif.items()
        }


@pytest.fixture(scope="module")
def linked(table, structures):
    """Materials and protocols as curation joins them, and what it skipped."""
    materials = pd.DataFrame(
        {
            "mp_id": list(structures),
            "formula": [s.composition.reduced_formula for s in structures.values()],
            "chemsys": [s.chemical_system for s in structures.values()],
            "formation_energy_eV_atom": table.formation_energy_eV_atom.to_numpy(),
        }
    )
    skipped = Skipped()
    limit = config.load("curate", "sample").max_temperature_C
    return materials, curate.link(reactions.read(paths.SAMPLE), materials, skipped, max_temperature_C=limit), skipped


@pytest.fixture(scope="module")
def split(linked):
    materials, pairs, _ = linked
    return splits.build(materials, pairs, seed=config.load("curate", "sample").seed)


def shortest_A(structure):
    """Shortest distance between two atoms and the sum of their atomic radii, by brute force over the nearest images."""
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    delta = structure.frac_coords[:, None, None] - structure.frac_coords[None, :, None] + shifts
    distance = np.linalg.norm(delta @ structure.lattice.matrix, axis=-1)
    distance[distance < 1e-6] = np.inf
    u, v, _ = np.unravel_index(distance.argmin(), distance.shape)
    return distance.min(), sum(float(structure[int(i)].specie.atomic_radius) for i in (u, v))


def test_there_are_enough_of_everything(table, structures, linked):
    materials, pairs, _ = linked
    assert len(table) >= 400
    assert table.index.is_unique
    assert materials.chemsys.nunique() >= 120
    assert sum(len(s) <= 20 for s in structures.values()) >= 50  # hosts of defects
    assert table.prototype.nunique() >= 30
    assert len(pairs) >= 500
    assert pairs.mp_id.nunique() >= 220
    assert (pairs.method == "sol-gel").sum() >= 30
    assert (table.band_gap_eV == 0).sum() >= 50
    shared = pairs.groupby("doi").mp_id.nunique()
    assert (shared > 1).sum() >= 5


def test_it_is_small_and_text():
    files = [f for f in paths.SAMPLE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) < 2_000_000
    for file in files:
        file.read_text(encoding="utf-8")


def test_crystals_parse_to_their_decoration(table, structures, decorations):
    for mp_id, structure in structures.items():
        expected = Composition(decorations[mp_id].formula).reduced_composition
        assert structure.composition.reduced_composition == expected, mp_id
        assert table.prototype[mp_id] == decorations[mp_id].prototype
        assert structure.is_ordered, mp_id


def test_no_atoms_overlap_and_volumes_are_sane(structures):
    for mp_id, structure in structures.items():
        shortest, radii = shortest_A(structure)
        assert shortest > 1.1, mp_id
        assert shortest > 0.55 * radii, mp_id
    outside = [mp_id for mp_id, s in structures.items() if not 5 < s.volume / len(s) < 60]
    assert len(outside) <= 0.03 * len(structures), outside


def test_space_groups_are_those_of_the_prototypes(table):
    for prototype, ids in table.groupby("prototype").groups.items():
        for mp_id in ids[:2]:
            found = sources.parse_cif(table.cif[mp_id]).space_group
            assert found == SpaceGroup(prototypes.PROTOTYPES[prototype].space_group).int_number, mp_id


def test_labels_are_finite_where_present(table):
    for column, (low, high) in LABELS.items():
        known = table[column].dropna()
        assert np.isfinite(known).all(), column
        assert known.between(low, high).mean() >= 0.97, column
        assert known.nunique() > 0.4 * len(known), column
    for column in ("formation_energy_eV_atom", "band_gap_eV"):
        assert 0 < table[column].isna().sum() < 0.05 * len(table), column
    for column in ("bulk_modulus_GPa", "shear_modulus_GPa"):
        assert 0.35 < table[column].notna().mean() < 0.65, column
        assert (table[column].dropna() > 0).all()


def test_formation_energies_order_as_in_nature(table, decorations):
    energy = {(decorations[i].formula, decorations[i].prototype): e for i, e in table.formation_energy_eV_atom.items()}
    halides = [energy[f"Na{x}", "rocksalt"] for x in ("F", "Cl", "Br", "I")]
    assert halides == sorted(halides)
    for formula, stable, other in (
        ("MgO", "rocksalt", "wurtzite"),
        ("ZnO", "wurtzite", "rocksalt"),
        ("KCl", "rocksalt", "CsCl"),
        ("CdS", "wurtzite", "rocksalt"),
        ("MgTiO3", "ilmenite", "perovskite"),
    ):
        assert energy[formula, stable] < energy[formula, other], formula


def test_compositions_balance_their_charges(decorations):
    for mp_id, decoration in decorations.items():
        assert sum(ion.charge * n for ion, n in decoration.amounts.items()) == 0, mp_id
        for ion in decoration.amounts:
            known = {*Element(ion.symbol).oxidation_states, *Element(ion.symbol).icsd_oxidation_states, 0}
            exceptional = ion in (prototypes.Ion("S", -1), prototypes.Ion("Bi", -3))
            assert ion.charge in known or exceptional, (mp_id, ion)


def test_gaps_follow_the_rule(table, structures, decorations):
    for mp_id, gap in table.band_gap_eV.dropna().items():
        assert rules.band_gap_eV(decorations[mp_id], structures[mp_id]) == pytest.approx(gap, abs=3e-4), mp_id


def test_gap_rule_by_hand(structures, decorations):
    rocksalt = next(i for i, d in decorations.items() if (d.formula, d.prototype) == ("NaCl", "rocksalt"))
    bond = shortest_A(structures[rocksalt])[0]
    assert bond == pytest.approx(2.82, abs=0.1)
    expected = 0.9 * (3.16 - 0.93) ** 2 + 8 / bond**2
    assert rules.band_gap_eV(decorations[rocksalt], structures[rocksalt]) == pytest.approx(expected, abs=1e-3)


def test_recipes_and_public_tests_are_what_the_script_makes(tmp_path, table):
    recipes.write_jsonl(tmp_path / "protocols.jsonl", recipes.protocols(table.reset_index()))
    for name, frame in recipes.public_tests().items():
        recipes.write_csv(tmp_path / "public_tests" / name, frame)
    made = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(made) == 6
    for file in made:
        assert file.read_bytes() == (paths.SAMPLE / file.relative_to(tmp_path)).read_bytes(), file.name


def test_protocols_make_existing_materials_and_each_fault_is_skipped_once(linked):
    materials, pairs, skipped = linked
    assert {row["reason"]: row["rows"] for row in skipped.table()} == dict.fromkeys(FAULTS, 1)
    formula = dict(zip(materials.mp_id, materials.formula))
    assert all(formulas.same_composition(p.target_formula, formula[p.mp_id]) for p in pairs.itertuples())
    assert pairs.max_temperature_C.between(200, 2000).all()
    assert pairs.groupby("mp_id").size().max() <= 4
    invented = re.compile(r"10\.0000/sample\.\d{4}")
    assert all(invented.fullmatch(doi) for doi in pairs.doi)


def test_reactions_balance():
    checked = 0
    for reaction in reactions.read(paths.SAMPLE):
        left, right = reaction.record["reaction_string"].split(" == ")
        excess: dict[str, Fraction] = defaultdict(Fraction)
        for sign, side in ((1, left), (-1, right)):
            for term in side.split(" + "):
                amount, name = term.split(" ")
                for symbol, n in formulas.composition(name).items():
                    excess[symbol] += sign * Fraction(amount) * n
        assert all(abs(n) < 0.05 for n in excess.values()), reaction.record[
            "reaction_string"
        ]  # amounts have 3 decimals
        checked += 1
    assert checked >= 500


def test_polymorphs_differ_in_their_conditions(linked, table):
    materials, pairs, _ = linked
    formula = dict(zip(materials.mp_id, materials.formula))
    polymorphs = Counter(materials.formula)
    assert sum(n > 1 for n in polymorphs.values()) >= 40
    conditions = pairs.groupby("mp_id").text_L3.apply(lambda texts: {re.sub(r"\d+", "", t) for t in texts})
    by_formula = defaultdict(list)
    for mp_id, texts in conditions.items():
        if polymorphs[formula[mp_id]] > 1:
            by_formula[formula[mp_id]].append(texts)
    several = [texts for texts in by_formula.values() if len(texts) > 1]
    assert len(several) >= 10
    assert np.mean([a.isdisjoint(b) for a, b, *_ in several]) > 0.8


def test_every_split_has_members(table, linked, split):
    materials, pairs, _ = linked
    parts, train_ok = split
    labels = table.loc[materials.mp_id].reset_index()
    for ladder, least in (("random", 40), ("chemsys", 80)):
        part_of = dict(zip(parts.mp_id, parts[ladder]))
        counts = parts[ladder].value_counts()
        assert set(counts.index) == {"train", "val", "test"}
        assert counts["test"] >= least
        made = pairs.mp_id.map(part_of).value_counts()
        assert made["test"] >= 40
        assert made["val"] >= 20
        for part in ("train", "val", "test"):
            of = labels[(parts[ladder] == part).to_numpy()]
            assert of.bulk_modulus_GPa.notna().sum() >= 5, (ladder, part)
            assert (of.band_gap_eV == 0).sum() >= 2, (ladder, part)
            assert (of.band_gap_eV > 0).sum() >= 10, (ladder, part)
    assert set(parts["pretrain"]) == {"train", "val", "excluded"}
    assert 0.5 < train_ok.mean() < 0.95
    tested = set(parts.mp_id[(parts.random == "test") | (parts.chemsys == "test")])
    assert (~train_ok & ~pairs.mp_id.isin(tested)).sum() >= 5  # dropped for their DOI alone


def test_learning_beats_the_mean(table, structures, split):
    parts, _ = split
    features = np.zeros((len(structures), 120))
    for row, structure in enumerate(structures.values()):
        for element, amount in structure.composition.items():
            features[row, element.Z] = structure.composition.get_atomic_fraction(element)
            assert amount > 0
    energy = table.formation_energy_eV_atom.to_numpy()
    test = (parts.chemsys == "test").to_numpy() & ~np.isnan(energy)
    train = (parts.chemsys != "test").to_numpy() & ~np.isnan(energy)
    model = HistGradientBoostingRegressor(min_samples_leaf=4, random_state=0).fit(features[train], energy[train])
    error = np.abs(model.predict(features[test]) - energy[test]).mean()
    assert error < 0.5 * np.abs(energy[train].mean() - energy[test]).mean()


def test_public_stand_ins_have_the_files_columns_and_share_no_system():
    systems: dict[str, str] = {}
    for name in ("val.csv", "test_reduced.csv", "train_data.csv", "val_data.csv", "test_data.csv"):
        frame = pd.read_csv(paths.SAMPLE / "public_tests" / name)
        assert list(frame.columns) == (CONDITION_COLUMNS if "_data" in name else PRECURSOR_COLUMNS), name
        assert len(frame) == 30
        for formula in frame.target_formula:
            system = Composition(formula.strip("[']")).chemical_system
            assert systems.setdefault(system, name) == name
        for text in frame.precursor_formulas:
            assert re.fullmatch(r"\[('[A-Za-z0-9()]+'(, )?)+\]", text)
    train, test = (pd.read_csv(paths.SAMPLE / "public_tests" / f"{part}_data.csv") for part in ("train", "test"))
    assert 0 < len(set(train.DOI) & set(test.DOI)) < 10
