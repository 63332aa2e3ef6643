import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import rawfiles
from rawfiles import binary, perovskite, reaction

from matalign import config, paths, towers
from matalign.data import chunked, curate, dataset, sources

LABELS = {
    "formation_energy_eV_atom": "-2.0",
    "band_gap_eV": "1.5",
    "bulk_modulus_GPa": "100",
    "shear_modulus_GPa": "50",
}
GOOD = [
    {"mp_id": "mp-1", "cif": perovskite("Ba", "Ti"), **LABELS},
    {"mp_id": "mp-2", "cif": perovskite("Sr", "Ti"), **LABELS, "band_gap_eV": "0.0"},
    {"mp_id": "mp-10", "cif": binary("Cs", "Cl"), **LABELS, "formation_energy_eV_atom": "-2.5"},
]
RECORDS = [
    reaction("BaTiO3", mp_id="mp-1"),
    reaction("SrTiO3", ("SrCO3", "TiO2"), doi="10.1000/x.2"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A root and a scratch folder of our own."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "SCRATCH", tmp_path / "scratch")
    return tmp_path


@pytest.fixture
def curated(project):
    """Curate raw rows with some options changed: the curated set, the metrics, the skipped rows by reason."""

    def do(materials=GOOD, records=RECORDS, **changes):
        rawfiles.write(project / "raw", materials, records)
        values = {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0, **changes}
        metrics = curate.run(config.build(config.Curate, values, where="test"))
        found = dataset.read(paths.curated("tiny"))
        return found, metrics, {row["reason"]: row for row in found.audit["skipped"]}

    return do


def test_good_rows_all_pass(curated):
    found, metrics, skipped = curated()
    assert skipped == {}
    rows = found.materials.set_index("mp_id")
    assert list(rows.index) == ["mp-1", "mp-10", "mp-2"]
    assert rows.formula.to_dict() == {"mp-1": "BaTiO3", "mp-10": "CsCl", "mp-2": "SrTiO3"}
    assert rows.chemsys["mp-2"] == "O-Sr-Ti"
    assert rows.n_atoms.tolist() == [5, 2, 5]
    assert set(rows.space_group) == {221}
    assert rows.is_metal.to_dict() == {"mp-1": 0.0, "mp-10": 0.0, "mp-2": 1.0}
    assert rows.formation_energy_eV_atom["mp-10"] == -2.5
    numbers, frac_coords, lattice = found.structures[1]
    assert sorted(numbers) == [17, 55]
    np.testing.assert_allclose(lattice, 4.12 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.abs(frac_coords[0] - frac_coords[1]), 0.5)
    assert found.protocols.mp_id.tolist() == ["mp-1", "mp-2"]
    assert found.protocols.max_temperature_C.tolist() == [1200.0, 1200.0]
    assert found.protocols.precursors[1] == ["SrCO3", "TiO2"]
    assert "BaTiO3" in found.protocols.text_L0[0]
    assert "BaTiO3" not in found.protocols.text_L1[0]
    assert metrics["counts"]["materials"] == 3
    assert metrics["cohorts"]["B: protocol, formation energy and gap"] == {"materials": 2, "chemical_systems": 2}
    assert metrics["skipped"] == []
    assert not metrics["synthetic"]
    json.dumps(metrics, allow_nan=False)


BAD_MATERIALS = {
    "unreadable CIF": {"cif": binary("K", "Br")[:150]},
    "unknown element": {"cif": binary("K", "Br").replace("K  K0", "Xx  Xx0")},
    "disordered": {"cif": binary("K", "Br").replace("0 0 0  1\n", "0 0 0  0.5\n")},
    "formula mismatch": {"cif": binary("K", "Br").replace("Br  Br1", "Cl  Cl1")},
    "no CIF": {"cif": ""},
    "no mp-id": {"mp_id": ""},
    "duplicate id": {"mp_id": "mp-1"},
}


@pytest.mark.parametrize("reason", BAD_MATERIALS)
def test_a_bad_crystal_is_left_out_and_counted(curated, reason):
    bad = {"mp_id": "mp-3", "cif": binary("K", "Br"), **LABELS, **BAD_MATERIALS[reason]}
    found, metrics, skipped = curated([*GOOD, bad])
    assert list(found.materials.mp_id) == ["mp-1", "mp-10", "mp-2"]
    assert list(skipped) == [reason]
    assert skipped[reason]["rows"] == 1
    (message,) = skipped[reason]["first"]
    assert message.startswith("materials.csv:5")  # the header is row 1
    assert bad["mp_id"] in message
    # What is published holds counts, no rows.
    assert metrics["skipped"] == [{"source": "raw", "reason": reason, "rows": 1}]


BAD_LABELS = [
    ("formation_energy_eV_atom", "", "missing label"),
    ("formation_energy_eV_atom", "nan", "NaN or infinite"),
    ("formation_energy_eV_atom", "-inf", "NaN or infinite"),
    ("formation_energy_eV_atom", "None", "not a number"),
    ("formation_energy_eV_atom", "-5.01", "outlier below -5"),
    ("band_gap_eV", "-0.1", "negative"),
    ("band_gap_eV", "NaN", "NaN or infinite"),
    ("bulk_modulus_GPa", "0", "not positive"),
    ("shear_modulus_GPa", "-3.5", "not positive"),
]


@pytest.mark.parametrize(("column", "written", "reason"), BAD_LABELS)
def test_a_bad_label_is_left_out_and_its_material_stays(curated, column, written, reason):
    found, _, skipped = curated([*GOOD, {"mp_id": "mp-3", "cif": binary("K", "Br"), **LABELS, column: written}])
    row = found.materials.set_index("mp_id").loc["mp-3"]
    assert np.isnan(row[column])
    others = [c for c in LABELS if c != column]
    assert row[others].notna().all()
    assert np.isnan(row.is_metal) == (column == "band_gap_eV")
    assert list(skipped) == [f"{column}: {reason}"]
    assert skipped[f"{column}: {reason}"]["first"] == [f"materials.csv:5: mp-3: {written!r}"]


BAD_RECORDS = {
    "absurd temperature": reaction("BaTiO3", temperature_C=12000.0),
    "formula mismatch": reaction("BaTiO3", mp_id="mp-2"),
    "several targets": reaction("BaTiO3", targets=["BaTiO3", "Ba0.5Sr0.5TiO3"]),
    "no structure of the mp-id": reaction("BaTiO3", mp_id="mp-77"),
    "no structure of the formula": reaction("CaTiO3", ("CaCO3", "TiO2")),
    "target occurs in a precursor": reaction("BaTiO3", ("BaTiO3", "TiO2")),
    "duplicate record": RECORDS[0],
    "no target": reaction("", targets=[""]),
}


@pytest.mark.parametrize("reason", BAD_RECORDS)
def test_a_bad_record_is_left_out_and_counted(curated, reason):
    found, _, skipped = curated(records=[*RECORDS, BAD_RECORDS[reason]])
    assert found.protocols.protocol_id.tolist() == ["raw-00001-0", "raw-00002-0"]
    assert {r: row["rows"] for r, row in skipped.items()} == {reason: 1}
    assert skipped[reason]["first"][0].startswith("protocols.jsonl:3")


def test_a_mismatch_names_both_formulas(curated):
    _, _, skipped = curated(records=[*RECORDS, BAD_RECORDS["formula mismatch"]])
    assert skipped["formula mismatch"]["first"] == ["protocols.jsonl:3: BaTiO3, but mp-2 is SrTiO3"]


def test_nothing_readable_stops_the_run(curated):
    with pytest.raises(ValueError, match="none of 1 materials has a readable structure"):
        curated([{"mp_id": "mp-1", "cif": "nothing"}])


def test_a_record_without_id_goes_to_the_polymorph_that_others_name_or_to_the_most_stable(curated):
    def polymorph(mp_id, energy):
        lattice_A = 3.9 + int(mp_id[3:]) / 1000
        return {"mp_id": mp_id, "cif": perovskite("Ba", "Ti", lattice_A=lattice_A), "formation_energy_eV_atom": energy}

    materials = [
        polymorph("mp-20", "-3.0"),
        polymorph("mp-5", ""),
        polymorph("mp-7", "-3.5"),
        polymorph("mp-8", "-3.5"),
    ]
    unnamed = reaction("Ba0.5Ti0.5O1.5", doi="10.1000/x.3")
    found, _, _ = curated(materials, [unnamed])
    assert found.protocols.mp_id.tolist() == ["mp-7"]
    found, _, _ = curated(materials, [unnamed, reaction("BaTiO3", mp_id="mp-20")])
    assert found.protocols.mp_id.tolist() == ["mp-20", "mp-20"]


def test_the_nitride_of_sodium_is_not_a_missing_value(curated):
    found, _, _ = curated([*GOOD, {"mp_id": "mp-3", "cif": binary("Na", "N"), **LABELS}])
    assert found.materials.set_index("mp_id").formula["mp-3"] == "NaN"


# Several sources


@pytest.fixture
def snapshot(project):
    """Write an archive and a topology folder as they are fetched, curate them."""

    def do(files, topology=()):
        rawfiles.archive(project / "raw" / "megnet" / "MEGNet.tar.gz", "MEGNet-abc", files)
        (project / "raw" / "topology").mkdir()
        for mp_id, text in dict(topology).items():
            (project / "raw" / "topology" / f"{mp_id}.cif").write_text(text)
        (project / "raw" / "protocols.jsonl").write_text(json.dumps(reaction("BaTiO3", mp_id="mp-1")))
        values = {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0}
        metrics = curate.run(config.build(config.Curate, values, where="test"))
        return dataset.read(paths.curated("tiny")).materials.set_index("mp_id"), metrics

    return do


FILES = {
    "data/id_prop.csv": "0,-3.4,1.7,1,1,1\n1,-9.9,0.0,1,1,1\n",
    "data/material_id_hash.csv": "0,mp-1\n1,mp-2\n",
    "data/0.cif": perovskite("Ba", "Ti"),
    "data/1.cif": binary("Cs", "Cl"),
    # the same local ids are other materials here
    "data_elasticity/id_prop.csv": "0,120.0,60.0,0.2\n1,99.0,33.0,0.2\n2,10.0,5.0,0.2\n",
    "data_elasticity/material_id_hash.csv": "0,mp-2\n1,mp-9\n2,mp-8\n",
    "data_elasticity/0.cif": binary("Cs", "Cl"),
    "data_elasticity/1.cif": binary("K", "Br"),
    "data_elasticity/2.cif": "broken",
}


def test_labels_are_joined_by_mp_id_and_the_preferred_source_gives_the_structure(snapshot):
    topology = {"mp-1": perovskite("Ba", "Ti", lattice_A=4.2), "mp-9": binary("K", "Br", lattice_A=3.6)}
    rows, metrics = snapshot(FILES, {**topology, "mp-4": perovskite("Sr", "Ti")})
    assert rows.source.to_dict() == {"mp-1": "megnet", "mp-2": "megnet", "mp-4": "topology", "mp-9": "topology"}
    assert rows.bulk_modulus_GPa.dropna().to_dict() == {"mp-2": 120.0, "mp-9": 99.0}
    assert rows.shear_modulus_GPa.dropna().to_dict() == {"mp-2": 60.0, "mp-9": 33.0}
    assert rows.formation_energy_eV_atom.dropna().to_dict() == {"mp-1": -3.4}  # the other is an outlier
    assert rows.is_metal.dropna().to_dict() == {"mp-1": 0.0, "mp-2": 1.0}
    assert metrics["conflicts"] == []
    assert {(r["source"], r["reason"]): r["rows"] for r in metrics["skipped"]} == {
        ("elasticity", "unreadable CIF"): 1,
        ("megnet", "formation_energy_eV_atom: outlier below -5"): 1,
    }


def test_sources_that_disagree_are_counted(snapshot):
    other = {**FILES, "data_elasticity/0.cif": binary("Rb", "Cl")}
    rows, metrics = snapshot(other, {"mp-1": rawfiles.cif(3.9, ["Ba"], [(0, 0, 0)]), "mp-2": binary("Cs", "Cl")})
    assert rows.formula["mp-2"] == "CsCl"
    assert np.isnan(rows.bulk_modulus_GPa["mp-2"])  # of another compound
    assert metrics["conflicts"] == [
        {"source": "elasticity", "key": "formula", "materials": 1},
        {"source": "topology", "key": "formula", "materials": 1},
        {"source": "topology", "key": "n_atoms", "materials": 1},
    ]


def test_a_source_without_a_readable_structure_gives_way_to_the_next(snapshot):
    rows, _ = snapshot({**FILES, "data/0.cif": "broken"}, {"mp-1": perovskite("Ba", "Ti")})
    assert rows.source["mp-1"] == "topology"
    assert rows.formation_energy_eV_atom["mp-1"] == -3.4


def test_a_modality_gets_numbers_of_the_cell_that_was_taken_and_changes_nothing_else(snapshot):
    files = {**FILES, "data/id_prop.csv": "0,-3.4,1.7,4.5,59.319,-2.5\n1,-2.0,0.0,5.5,None,0\n"}
    topology = {"mp-4": perovskite("Sr", "Ti"), "mp-9": binary("K", "Br")}
    _, metrics = snapshot(files, topology)
    without = dataset.read(paths.curated("tiny"))
    cfg = config.build(
        config.Curate, {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0}, where=""
    )
    more = curate.run(cfg, makers=towers.makers(["crystal", "profile"]))
    found = dataset.read(paths.curated("tiny"))
    # eV, μB and Å³ of one of the five atoms: 3.9³ Å³ is the volume of the CIF's cell
    assert found.extra("profile").shape == (4, 3)
    np.testing.assert_allclose(found.extra("profile")[0], [4.5, 0.5, 3.9**3 / 5], rtol=1e-9)
    assert abs(np.linalg.det(found.structures.lattice[0])) == pytest.approx(59.319)
    assert np.isnan(found.extra("profile")[1:]).all()  # a number unknown; structures of another source
    assert found.digest == without.digest
    assert list(found.materials) == list(without.materials)
    other = [row for row in more["skipped"] if row["source"] != "profile"]
    assert other == metrics["skipped"]
    assert {**more, "skipped": other} == metrics
    (row,) = [row for row in found.audit["skipped"] if row["source"] == "profile"]
    assert (row["reason"], row["rows"]) == ("not available", 3)
    assert row["first"][0] == "mp-2: its source does not give: volume, Å³/atom"


def test_numbers_of_a_cell_that_was_not_taken_are_not_used(snapshot):
    snapshot({**FILES, "data/0.cif": "broken"}, {"mp-1": perovskite("Ba", "Ti")})
    cfg = config.build(
        config.Curate, {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0}, where=""
    )
    curate.run(cfg, makers=towers.makers(["profile"]))
    found = dataset.read(paths.curated("tiny"))
    assert found.materials.source.tolist() == ["topology", "megnet", "elasticity"]
    assert np.isfinite(found.extra("profile")).all(1).tolist() == [False, True, False]


def test_a_csv_may_have_them_too_and_without_any_the_modality_is_refused(curated, project):
    def run(materials):
        rawfiles.write(project / "raw", materials, RECORDS)
        values = {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0}
        curate.run(config.build(config.Curate, values, where="test"), makers=towers.makers(["profile"]))
        return dataset.read(paths.curated("tiny")).extra("profile")

    numbers = {"fermi_level_eV": "1", "volume_A3": "50", "magnetisation_muB": "0"}
    np.testing.assert_allclose(run([{**GOOD[0], **numbers}]), [[1, 0, 10]])
    with pytest.raises(ValueError, match="none of 3 materials has profile; the first: its source does not give: Fermi"):
        run(GOOD)


# Filters


def many(count):
    cations, anions = ("Li", "Na", "K", "Rb", "Cs"), ("F", "Cl", "Br", "I")
    pairs = [(c, a) for c in cations for a in anions][:count]
    return [{"mp_id": f"mp-{i}", "cif": binary(c, a), **LABELS} for i, (c, a) in enumerate(pairs, start=100)]


def test_large_cells_stay_out_unless_they_have_a_protocol(curated):
    found, _, skipped = curated([*GOOD, {"mp_id": "mp-3", "cif": perovskite("Ca", "Ti")}], max_atoms=4)
    assert list(found.materials.mp_id) == ["mp-1", "mp-10", "mp-2"]
    assert skipped["cell of more than 4 atoms"]["rows"] == 1
    found, _, skipped = curated(max_atoms=4, keep_with_protocol=False)
    assert list(found.materials.mp_id) == ["mp-10"]
    assert skipped["cell of more than 4 atoms"]["rows"] == 2
    assert skipped["protocol of a material not kept"]["rows"] == 2
    assert len(found.protocols) == 0


def test_what_limits_leave_out_is_found_again_if_its_energy_is_known(curated):
    unknown = {"mp_id": "mp-3", "cif": perovskite("Ca", "Ti")}
    kept, _, _ = curated([*GOOD, unknown], max_atoms=4, keep_with_protocol=False)
    cfg = config.build(config.Curate, {**vars(config.load("curate", "tiny")), "raw": "raw", "max_atoms": 4}, where="")
    materials, structures = curate.left_out(cfg, kept, 10)
    assert list(materials.mp_id) == ["mp-1", "mp-2"]
    assert [len(numbers) for numbers, _, _ in structures] == [5, 5]
    assert len(curate.left_out(cfg, kept, 1)[0]) == 1
    everything, _, _ = curated()
    cfg = config.build(config.Curate, {**vars(cfg), "max_atoms": 0, "max_materials": 0, "raw": "absent"}, where="")
    assert len(curate.left_out(cfg, everything, 10)[0]) == 0


def test_a_subset_is_chosen_by_hash_and_spares_no_split(curated):
    found, _, skipped = curated([*GOOD, *many(20)], max_materials=15)
    assert len(found.materials) == 15
    assert skipped["beyond 15 materials, chosen by hash"]["rows"] == 8
    assert len(set(found.splits.random)) > 1
    fewer, _, _ = curated([*GOOD, *many(20)], max_materials=7)
    assert set(fewer.materials.mp_id) < set(found.materials.mp_id)
    # Growing the raw data moves nobody to another split.
    everything, _, _ = curated([*GOOD, *many(20)])
    merged = found.splits.merge(everything.splits, on="mp_id")
    assert (merged.chemsys_x == merged.chemsys_y).all()


def test_protocols_that_share_a_doi_with_a_test_material_are_marked(curated):
    materials = many(20)
    everything, _, _ = curated(materials, [reaction("NaCl", ("Na2CO3", "HCl"))])
    tested = set(everything.splits.mp_id[everything.splits.pretrain == "excluded"])
    formulas = dict(zip(everything.materials.mp_id, everything.materials.formula))
    test_one, train_one = (next(m for m in formulas if (m in tested) is wanted) for wanted in (True, False))
    other = next(m for m in formulas if m not in tested and m != train_one)
    records = [
        reaction(formulas[mp_id], ("Al2O3",), mp_id=mp_id, doi=doi)
        for mp_id, doi in ((test_one, "10.1/shared"), (train_one, "10.1/shared"), (other, "10.1/own"))
    ]
    found, metrics, _ = curated(materials, records)
    assert dict(zip(found.protocols.mp_id, found.protocols.train_ok)) == {
        test_one: False,
        train_one: False,
        other: True,
    }
    zeros = [row for row in metrics["audit"] if row["asserted_zero"]]
    assert zeros
    assert all(row["overlap"] == 0 for row in zeros)


# Resuming


def folder_bytes(folder):
    return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir())}


def test_the_same_raw_files_give_the_same_bytes(curated, project):
    curated([*GOOD, *many(20)])
    once = folder_bytes(paths.curated("tiny"))
    curated([*reversed([*GOOD, *many(20)])])
    assert folder_bytes(paths.curated("tiny")) == once
    assert set(once) == {*dataset.FILES, "audit.json"}


def test_an_interrupted_run_goes_on_where_it_stopped(curated, monkeypatch):
    monkeypatch.setattr(chunked, "CRYSTALS_PER_TASK", 4)
    parse, seen = sources.parse_cif, []

    def breaking(text):
        if len(seen) == 10:
            raise KeyboardInterrupt
        seen.append(text)
        return parse(text)

    monkeypatch.setattr(sources, "parse_cif", breaking)
    with pytest.raises(KeyboardInterrupt):
        curated(many(20))
    assert len(seen) == 10

    def counting(text):
        seen.append(text)
        return parse(text)

    monkeypatch.setattr(sources, "parse_cif", counting)
    found, _, _ = curated(many(20))
    assert len(found.materials) == 20
    assert len(seen) == 10 + 12  # two whole chunks of four were kept
    curated(many(20), seed=1)
    assert len(seen) == 22  # a parameter that parsing does not depend on


RUN = """
from matalign import paths
from matalign.data import chunked, sources
if __name__ == "__main__":
    chunked.CRYSTALS_PER_TASK = 8
    chunked.parse_cifs([m.cif for m in sources.materials(paths.ROOT / "raw")], workers=2)
"""


def test_killed_in_the_middle_it_leaves_no_process_and_goes_on(project, monkeypatch):
    """SIGKILL to the process alone: its workers end too; the next run uses what they had done, with the same result."""
    rows = [{"mp_id": f"mp-{i}", "cif": binary("Cs", "Cl", lattice_A=4 + i / 10000), **LABELS} for i in range(1, 401)]
    rawfiles.write(project / "raw", rows, [reaction("CsCl", ("Cs2CO3", "HCl"), mp_id="mp-1")])
    (project / "run.py").write_text(RUN)
    shutil.copy(paths.PARAMS, project)
    environment = {**os.environ, "MATALIGN_ROOT": str(project), "MATALIGN_SCRATCH": str(project / "scratch")}

    def done():
        return {f: f.stat().st_mtime_ns for f in project.glob("scratch/curate/*/result.safetensors")}

    process = subprocess.Popen([sys.executable, project / "run.py"], env=environment, stderr=subprocess.DEVNULL)
    while len(done()) < 3 and process.poll() is None:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    before = done()
    assert 3 <= len(before) < 50

    monkeypatch.setattr(chunked, "CRYSTALS_PER_TASK", 8)
    cfg = config.build(
        config.Curate, {**vars(config.load("curate", "tiny")), "raw": "raw", "max_materials": 0}, where="test"
    )
    curate.run(cfg)
    resumed, after = folder_bytes(paths.curated("tiny")), done()
    assert len(after) == 50  # 400 CIFs, 8 a task
    assert {f: after[f] for f in before} == before
    monkeypatch.setattr(paths, "SCRATCH", project / "fresh")
    curate.run(cfg)
    assert folder_bytes(paths.curated("tiny")) == resumed
