"""A record of a structure, as OPTIMADE's own adapters take it."""

from optimade.adapters import Structure


def record(species, **attributes):
    """A structure as a provider answers it: a cube of 4 Å with an atom in its corner and one in its middle."""
    content = {
        "last_modified": None,
        "elements": ["Cl", "Na"],
        "nelements": 2,
        "elements_ratios": [0.5, 0.5],
        "chemical_formula_descriptive": "NaCl",
        "chemical_formula_reduced": "ClNa",
        "chemical_formula_anonymous": "AB",
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]],
        "cartesian_site_positions": [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]],
        "nsites": 2,
        "species": species,
        "species_at_sites": [kind["name"] for kind in species],
        "structure_features": [],
    }
    return Structure({"id": "1", "type": "structures", "attributes": {**content, **attributes}})
