"""Make everything in this folder: crystals with labels from a universal potential, protocols and tests from rules.

    python data/sample/make_sample.py            # all of it, about ten minutes; needs the extra `sample` (CHGNet)
    python data/sample/make_sample.py --recipes  # protocols and public tests only, from the materials.csv at hand

Structures are relaxed with CHGNet (B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023); weights 0.3.0, shipped in its
package) within the space group of their prototype. Nothing is random: the same versions on the same kind of machine
write the same bytes.
"""

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from prototypes import PROTOTYPES, Decoration, Prototype, decorations
from pymatgen.core import Composition, Element, Lattice, Species, Structure
from recipes import protocols, public_tests, write_csv, write_jsonl
from rules import band_gap_eV, cif, draw, shortest_contact
from tqdm import tqdm

FOLDER = Path(__file__).parent
MAX_FORCE_EV_A = 0.03
MAX_STEPS = 80
STRAIN = 0.005
GPA_PER_EV_A3 = 160.21766208
SHARE_ELASTIC = 0.5  # of the materials with K and G
SHARE_MISSING = 0.015  # of formation energies, and of gaps, left empty
SHORTEST_CONTACT = 0.55  # of the sum of two atomic radii
HIGHEST_ENERGY_EV_ATOM = 0.5  # formation energy above which a decoration is left out


@dataclass(frozen=True)
class Element0K:
    """Reference structure of an element: a prototype with the element on every site."""

    space_group: str
    cell: tuple[float, float, float, float, float]
    coords: tuple[tuple[float, float, float], ...]


CUBE = (1.0, 1.0, 90.0, 90.0, 90.0)
BCC = Element0K("Im-3m", CUBE, ((0, 0, 0),))
FCC = Element0K("Fm-3m", CUBE, ((0, 0, 0),))
HCP = Element0K("P6_3/mmc", (1.0, 1.6, 90.0, 90.0, 120.0), ((1 / 3, 2 / 3, 0.25),))
DIAMOND = Element0K("Fd-3m", CUBE, ((0, 0, 0),))
GRAPHITE = Element0K("P6_3/mmc", (1.0, 2.72, 90.0, 90.0, 120.0), ((0, 0, 0.25), (1 / 3, 2 / 3, 0.25)))
BORON = Element0K("R-3m", (1.0, 2.56, 90.0, 90.0, 120.0), ((0.118, 0.236, 0.893), (0.196, 0.392, 0.024)))
GALLIUM = Element0K("Cmce", (1.69, 1.0, 90.0, 90.0, 90.0), ((0, 0.155, 0.081),))
PHOSPHORUS = Element0K("Cmce", (3.17, 1.32, 90.0, 90.0, 90.0), ((0, 0.1017, 0.0806),))
INDIUM = Element0K("I4/mmm", (1.0, 1.52, 90.0, 90.0, 90.0), ((0, 0, 0),))
ARSENIC = Element0K("R-3m", (1.0, 2.7, 90.0, 90.0, 120.0), ((0, 0, 0.23),))
CHAIN = Element0K("P3_121", (1.0, 1.14, 90.0, 90.0, 120.0), ((0.225, 0, 1 / 3),))
REFERENCES = {
    **dict.fromkeys(["Li", "Na", "K", "Rb", "Cs", "Ba", "V", "Nb", "Ta", "Cr", "Mo", "W", "Mn", "Fe"], BCC),
    **dict.fromkeys(["Ca", "Sr", "Al", "Cu", "Ag", "Ni", "Pd", "Pb", "Ce"], FCC),
    **dict.fromkeys(["Be", "Mg", "Sc", "Y", "La", "Lu", "Ti", "Zr", "Hf", "Re", "Ru", "Co", "Zn", "Cd", "Tl"], HCP),
    **dict.fromkeys(["Si", "Ge", "Sn"], DIAMOND),
    **dict.fromkeys(["As", "Sb", "Bi"], ARSENIC),
    **dict.fromkeys(["S", "Se", "Te"], CHAIN),
    **{"C": GRAPHITE, "B": BORON, "Ga": GALLIUM, "P": PHOSPHORUS, "In": INDIUM},
}
# Nearest-neighbour distance (angstrom) where twice the atomic radius is too far off to start from.
START_A = {"B": 1.7, "C": 1.42, "P": 2.2, "S": 2.1, "Se": 2.4, "Te": 2.9, "As": 2.5, "Sb": 2.9, "Bi": 3.1, "Ga": 2.5}
MOLECULES_A = {"N": 1.10, "O": 1.22, "F": 1.42, "Cl": 2.0, "Br": 2.3, "I": 2.68}  # bond length to start from
BOX_A = 9.0


class Potential:
    """CHGNet on one CPU thread: relaxation and elastic constants."""

    def __init__(self) -> None:
        import torch
        from chgnet.model import CHGNet
        from chgnet.model.dynamics import CHGNetCalculator

        torch.set_num_threads(1)
        self.model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
        self.calculator = CHGNetCalculator(self.model, use_device="cpu")

    def relax(self, structure: Structure, *, cell: bool = True) -> tuple[Structure, float]:
        """Relax atoms, and the cell, within the space group.

        Returns:
            The relaxed structure and its energy in eV/atom.

        Raises:
            RuntimeError: forces above MAX_FORCE_EV_A after MAX_STEPS steps, or a step that deforms the cell too far.
        """
        from ase.constraints import FixSymmetry
        from ase.filters import FrechetCellFilter
        from ase.optimize import BFGS
        from pymatgen.io.ase import AseAtomsAdaptor

        atoms = AseAtomsAdaptor.get_atoms(structure)
        atoms.calc = self.calculator
        if cell:
            atoms.set_constraint(FixSymmetry(atoms, symprec=1e-3))
        optimiser = BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
        if not optimiser.run(fmax=MAX_FORCE_EV_A, steps=MAX_STEPS):
            raise RuntimeError(f"not relaxed after {MAX_STEPS} steps")
        relaxed = Structure(atoms.cell.array, atoms.get_chemical_symbols(), atoms.get_scaled_positions())
        return relaxed, float(atoms.get_potential_energy()) / len(atoms)

    def elastic_GPa(self, structure: Structure) -> tuple[float, float]:
        """Voigt averages of bulk and shear modulus from the stress of twelve strained cells, ions clamped.

        Voigt: K = (C11+C22+C33 + 2(C12+C13+C23)) / 9, G = (C11+C22+C33 - C12-C13-C23 + 3(C44+C55+C66)) / 15
        (R. Hill, Proc. Phys. Soc. A 65, 349 (1952)).
        """
        pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
        strained = []
        for i, j in pairs:
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += sign * STRAIN / 2
                strain[j, i] += sign * STRAIN / 2
                lattice = structure.lattice.matrix @ (np.eye(3) + strain)
                strained.append(Structure(lattice, structure.species, structure.frac_coords))
        stresses = [p["s"] for p in self.model.predict_structure(strained, task="efs", batch_size=12)]
        voigt = np.array([[s[i, j] for i, j in pairs] for s in stresses], dtype=float)
        c = (voigt[0::2] - voigt[1::2]) / (
            2 * STRAIN
        )  # a shear of STRAIN/2 on both sides is an engineering strain of STRAIN
        c = (c + c.T) / 2
        diagonal, off = c[0, 0] + c[1, 1] + c[2, 2], c[0, 1] + c[0, 2] + c[1, 2]
        shear = c[3, 3] + c[4, 4] + c[5, 5]
        return float(diagonal + 2 * off) / 9, float(diagonal - off + 3 * shear) / 15


def scaled(structure: Structure, factor: float) -> Structure:
    """The structure with all lengths multiplied by the factor."""
    return Structure(Lattice(structure.lattice.matrix * factor), structure.species, structure.frac_coords)


def primitive(space_group: str, cell: tuple, species: list, coords: list) -> Structure:
    """Primitive cell of a conventional one with a = 5 angstrom."""
    b, c, *angles = cell
    lattice = Lattice.from_parameters(5.0, 5.0 * b, 5.0 * c, *angles)
    return Structure.from_spacegroup(space_group, lattice, species, coords).get_primitive_structure()


def ionic_radius_A(symbol: str, charge: int) -> float:
    """Shannon's radius at sixfold coordination where tabulated, else pymatgen's ionic or atomic radius."""
    species = Species(symbol, charge)
    try:
        return species.get_shannon_radius("VI")
    except KeyError:
        return float(species.ionic_radius or Element(symbol).atomic_radius)


def start(decoration: Decoration) -> Structure:
    """The prototype, scaled so that the tightest contact of unlike ions is the sum of their radii."""
    prototype: Prototype = PROTOTYPES[decoration.prototype]
    species = [decoration.ions[role].symbol for role, _ in prototype.sites]
    structure = primitive(prototype.space_group, prototype.cell, species, [coords for _, coords in prototype.sites])
    if structure.composition.reduced_composition != Composition(decoration.formula).reduced_composition:
        raise ValueError(f"{decoration.prototype}: {structure.formula}, expected multiples of {decoration.formula}")
    charges = {ion.symbol: ion.charge for ion in decoration.amounts}
    covalent = min(charges.values()) <= -3 or 0 in charges.values()
    radii = {s: float(Element(s).atomic_radius) if covalent else ionic_radius_A(s, q) for s, q in charges.items()}
    first, second, _, distances = structure.get_neighbor_list(5.0)
    kinds = [site.specie.symbol for site in structure]
    tightest = max(
        (radii[kinds[u]] + radii[kinds[v]]) / d
        for u, v, d in zip(first, second, distances)
        if kinds[u] != kinds[v] and charges[kinds[u]] * charges[kinds[v]] <= 0
    )
    return scaled(structure, tightest)


def reference_energy(symbol: str, potential: Potential) -> float:
    """Energy of an element in its reference structure, eV/atom."""
    if symbol in MOLECULES_A:
        z = MOLECULES_A[symbol] / BOX_A / 2
        molecule = Structure(Lattice.cubic(BOX_A), [symbol] * 2, [(0.5, 0.5, 0.5 - z), (0.5, 0.5, 0.5 + z)])
        return potential.relax(molecule, cell=False)[1]
    reference = REFERENCES[symbol]
    structure = primitive(
        reference.space_group, reference.cell, [symbol] * len(reference.coords), list(reference.coords)
    )
    nearest = min(structure.get_neighbor_list(6.0)[3])
    bond = START_A.get(symbol, 2 * float(Element(symbol).atomic_radius))
    return potential.relax(scaled(structure, bond / nearest))[1]


def crystals(potential: Potential) -> pd.DataFrame:
    """Relax and label every decoration that holds together; one line on standard error for each that does not."""
    table = decorations()
    elements = sorted({ion.symbol for d in table for ion in d.amounts})
    energies = {e: reference_energy(e, potential) for e in tqdm(elements, desc="elements", mininterval=1)}
    rows = []
    for decoration in tqdm(table, desc="crystals", mininterval=1):
        try:
            structure, energy = potential.relax(start(decoration))
        except (RuntimeError, ValueError) as error:
            tqdm.write(
                f"left out {decoration.mp_id} {decoration.formula} {decoration.prototype}: {error}", file=sys.stderr
            )
            continue
        composition = structure.composition
        formation = energy - sum(composition.get_atomic_fraction(e) * energies[e.symbol] for e in composition)
        problem = fault(decoration, structure, formation)
        if problem:
            tqdm.write(
                f"left out {decoration.mp_id} {decoration.formula} {decoration.prototype}: {problem}", file=sys.stderr
            )
            continue
        bulk, shear = (None, None)
        if draw("elastic", decoration.mp_id) < SHARE_ELASTIC:
            bulk, shear = potential.elastic_GPa(structure)
            if min(bulk, shear) <= 0:  # the prototype is a saddle point for these ions
                bulk, shear = None, None
        rows.append(row(decoration, structure, formation, bulk, shear))
    return pd.DataFrame(rows)


def fault(decoration: Decoration, structure: Structure, formation: float) -> str:
    """Why a relaxed decoration is left out; empty if it is kept."""
    contact = shortest_contact(structure)
    if contact < SHORTEST_CONTACT:
        return f"two atoms at {contact:.2f} of the sum of their atomic radii, expected at least {SHORTEST_CONTACT}"
    if formation > HIGHEST_ENERGY_EV_ATOM:
        return f"formation energy {formation:.2f} eV/atom, expected at most {HIGHEST_ENERGY_EV_ATOM}"
    if structure.composition.reduced_composition != Composition(decoration.formula).reduced_composition:
        return "composition changed"
    return ""


def row(
    decoration: Decoration, structure: Structure, formation: float, bulk: float | None, shear: float | None
) -> dict:
    """A row of materials.csv; a label drawn to be missing is None."""
    known = {kind: draw("missing", kind, decoration.mp_id) >= SHARE_MISSING for kind in ("energy", "gap")}
    return {
        "mp_id": decoration.mp_id,
        "cif": cif(structure, decoration.formula),
        "formation_energy_eV_atom": round(formation, 5) if known["energy"] else None,
        "band_gap_eV": band_gap_eV(decoration, structure) if known["gap"] else None,
        "bulk_modulus_GPa": None if bulk is None else round(bulk, 2),
        "shear_modulus_GPa": None if shear is None else round(shear, 2),
        "prototype": decoration.prototype,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", action="store_true", help="keep materials.csv, make only what follows from it")
    arguments = parser.parse_args()
    if not arguments.recipes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party deprecations and CHGNet's notes on scalars
            write_csv(FOLDER / "materials.csv", crystals(Potential()))
    materials = pd.read_csv(FOLDER / "materials.csv", keep_default_na=False)
    write_jsonl(FOLDER / "protocols.jsonl", protocols(materials))
    for name, table in public_tests().items():
        write_csv(FOLDER / "public_tests" / name, table)


if __name__ == "__main__":
    main()
