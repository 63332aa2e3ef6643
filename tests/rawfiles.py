"""Raw files as the sources give them, small and made up: CIFs, a snapshot's archive, synthesis records."""

import csv
import gzip
import io
import json
import tarfile

SITES = {
    "caesium chloride": [(0, 0, 0), (0.5, 0.5, 0.5)],
    "perovskite": [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
}


def cif(lattice_A, symbols, frac_coords, *, formula=None):
    """A cubic crystal in P1, as pymatgen writes it."""
    sites = "".join(f"  {s}  {s}{i}  1  {x} {y} {z}  1\n" for i, (s, (x, y, z)) in enumerate(zip(symbols, frac_coords)))
    lengths = "".join(f"_cell_length_{axis}   {lattice_A}\n" for axis in "abc")
    angles = "".join(f"_cell_angle_{angle}   90.0\n" for angle in ("alpha", "beta", "gamma"))
    tags = ("type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy")
    header = "".join(f" _atom_site_{tag}\n" for tag in tags)
    stated = f"_chemical_formula_sum   '{formula}'\n" if formula else ""
    operations = "loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
    return f"data_x\n{lengths}{angles}{stated}{operations}loop_\n{header}{sites}"


def binary(cation, anion, *, lattice_A=4.12):
    """Caesium chloride's structure."""
    return cif(lattice_A, [cation, anion], SITES["caesium chloride"], formula=f"{cation}1 {anion}1")


def perovskite(a, b, *, lattice_A=3.9):
    """A cubic perovskite oxide."""
    return cif(lattice_A, [a, b, "O", "O", "O"], SITES["perovskite"], formula=f"{a}1 {b}1 O3")


def archive(path, top, files, *, mtime=0):
    """A gzipped tar of path -> text under a top folder."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mtime = len(text.encode()), mtime
            tar.addfile(member, io.BytesIO(text.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=mtime))
    return path


def reaction(
    formula, precursors=("BaCO3", "TiO2"), *, mp_id=None, doi="10.1000/x.1", temperature_C=1200.0, targets=None
):
    """A record in the schema of the text-mined solid-state reactions."""
    heating = {"heating_temperature": [{"max_value": temperature_C, "values": [temperature_C], "units": "C"}]}
    return {
        "doi": doi,
        "targets_string": targets or [formula],
        "reaction_string": "",
        "target": {"material_string": formula, "material_formula": formula, "additives": [], "mp_id": mp_id},
        "precursors": [{"material_formula": p} for p in precursors],
        "operations": [{"token": "sintered", "type": "HeatingOperation", "conditions": heating}],
    }


def write(folder, materials, reactions):
    """`materials.csv` (rows of column -> value) and `protocols.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(c for row in materials for c in row))
    with open(folder / "materials.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(materials)
    (folder / "protocols.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reactions))
    return folder
