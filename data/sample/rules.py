"""Labels of the sample that follow from a stated rule, its CIF layout, and its deterministic draws."""

import hashlib

from prototypes import Decoration, Ion
from pymatgen.core import Element, Structure

# Formal d electrons are group number minus charge; these main-group ions carry a lone pair.
LONE_PAIR = {("Sn", 2), ("Pb", 2), ("Tl", 1), ("Bi", 3), ("Sb", 3), ("In", 1)}
IONIC_ANIONS = {"O", "F", "Cl", "Br", "I"}
# Open shells that conduct even beside an ionic anion: band-like ones, and those that plain GGA makes metals.
CONDUCTING_IONS = {
    *(("Ru", 4), ("Re", 6), ("V", 4), ("Nb", 4), ("Ti", 3)),
    *(("Mn", 3), ("Fe", 2), ("Co", 2), ("Co", 4), ("Ni", 3), ("Ni", 4), ("Cu", 2)),
}


def draw(*key: str | int) -> float:
    """A number in [0, 1) that depends on the key alone (blake2b)."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def pick(options: list[str], *key: str | int) -> str:
    """One of the options, chosen by the key."""
    return options[int(draw(*key) * len(options))]


def d_electrons(ion: Ion) -> int:
    """Formal d electrons of a transition-metal ion, 10 for a filled shell, 0 for none (f elements included)."""
    element = Element(ion.symbol)
    if ion.charge < 0:
        return 0
    if element.is_transition_metal and ion.symbol not in ("La", "Lu"):
        return min(10, max(0, element.group - ion.charge))
    return 10 if element.group >= 13 and element.row >= 4 else 0


def is_open_shell(ion: Ion) -> bool:
    """Partly filled d shell."""
    return 0 < d_electrons(ion) < 10


def band_gap_eV(decoration: Decoration, structure: Structure) -> float:
    """Synthetic gap: electronegativity difference, bond length, and the cations' shells.

    ``E = 0.9 dX^2 + 8 / d^2 - P`` (eV), at least zero, where dX is the difference between the mean Pauling
    electronegativities of anions and cations, d the shortest cation-anion distance in angstrom, and P the largest
    penalty among the cations: 3.5 for an open d shell, 2.0 for an empty one (charge of at least 4), 1.5 for a filled
    one, 1.0 for a lone pair. The gap is zero where a formal charge is zero, an open shell meets an anion other than
    O or a halogen, or a cation is among `CONDUCTING_IONS`.
    """
    cations = [ion for ion in decoration.amounts if ion.charge > 0]
    anions = [ion for ion in decoration.amounts if ion.charge < 0]
    amounts = decoration.amounts
    if any(ion.charge == 0 for ion in amounts):
        return 0.0
    if any((c.symbol, c.charge) in CONDUCTING_IONS for c in cations):
        return 0.0
    if any(map(is_open_shell, cations)) and any(a.symbol not in IONIC_ANIONS for a in anions):
        return 0.0

    def mean_electronegativity(ions: list[Ion]) -> float:
        return sum(amounts[i] * Element(i.symbol).X for i in ions) / sum(amounts[i] for i in ions)

    penalty = max(map(shell_penalty_eV, cations))
    difference = mean_electronegativity(anions) - mean_electronegativity(cations)
    gap = 0.9 * difference**2 + 8 / shortest_bond_A(structure, cations, anions) ** 2 - penalty
    return round(max(0.0, gap), 4)


def shell_penalty_eV(ion: Ion) -> float:
    """How far the cation's own levels narrow the gap."""
    if is_open_shell(ion):
        return 3.5
    if (ion.symbol, ion.charge) in LONE_PAIR:
        return 1.0
    if d_electrons(ion) == 10:
        return 1.5
    return 2.0 if Element(ion.symbol).is_transition_metal and ion.charge >= 4 else 0.0


def shortest_bond_A(structure: Structure, cations: list[Ion], anions: list[Ion]) -> float:
    """Shortest cation-anion distance in angstrom."""
    first, second, _, distances = structure.get_neighbor_list(4.5)
    kinds = [site.specie.symbol for site in structure]
    positive, negative = {c.symbol for c in cations}, {a.symbol for a in anions}
    bonds = [d for u, v, d in zip(first, second, distances) if kinds[u] in positive and kinds[v] in negative]
    return float(min(bonds))


def shortest_contact(structure: Structure) -> float:
    """Smallest distance between two atoms, in units of the sum of their atomic radii."""
    first, second, _, distances = structure.get_neighbor_list(6.0)
    radii = [float(site.specie.atomic_radius) for site in structure]
    return min(d / (radii[u] + radii[v]) for u, v, d in zip(first, second, distances))


def cif(structure: Structure, name: str) -> str:
    """CIF text of a primitive cell, all atoms listed in P1, eight decimals."""
    a, b, c, alpha, beta, gamma = structure.lattice.parameters
    amounts = structure.composition.get_el_amt_dict()
    lines = [
        "# synthetic: matalign sample",
        f"data_{name}",
        "_symmetry_space_group_name_H-M   'P 1'",
        *(f"_cell_length_{axis}   {length:.8f}" for axis, length in zip("abc", (a, b, c))),
        *(f"_cell_angle_{axis}   {angle:.8f}" for axis, angle in zip(("alpha", "beta", "gamma"), (alpha, beta, gamma))),
        "_symmetry_Int_Tables_number   1",
        f"_chemical_formula_structural   {name}",
        f"_chemical_formula_sum   '{' '.join(f'{symbol}{n:.0f}' for symbol, n in amounts.items())}'",
        f"_cell_volume   {structure.volume:.8f}",
        "loop_",
        " _symmetry_equiv_pos_site_id",
        " _symmetry_equiv_pos_as_xyz",
        "  1  'x, y, z'",
        "loop_",
        " _atom_site_type_symbol",
        " _atom_site_label",
        " _atom_site_symmetry_multiplicity",
        " _atom_site_fract_x",
        " _atom_site_fract_y",
        " _atom_site_fract_z",
        " _atom_site_occupancy",
    ]
    for i, site in enumerate(structure):
        x, y, z = (round(float(v), 8) % 1.0 for v in site.frac_coords)
        lines.append(f"  {site.specie.symbol}  {site.specie.symbol}{i}  1  {x:.8f}  {y:.8f}  {z:.8f}  1")
    return "\n".join(lines) + "\n"
