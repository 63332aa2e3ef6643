"""Named crystals: atomic numbers (n,), fractional coordinates (n, 3), lattice rows (3, 3) in angstrom."""

from multiprocessing import set_forkserver_preload

import numpy as np
import pandas as pd
import pytest
from jaxtyping import install_import_hook

set_forkserver_preload(["matalign.pretrain.train"])  # ranks that tests start need not import it again

# Shapes and types of these modules' tensors are checked under pytest, and only there.
install_import_hook(
    [
        "matalign.views.graphs",
        "matalign.towers.crystal",
        "matalign.pretrain.align",
        "matalign.towers.xrd",
        "matalign.towers.profile",
        "matalign.tasks.properties.labels",
        "matalign.tasks.properties.baselines",
        "matalign.tasks.properties.networks",
        "matalign.tasks.ablations.objectives",
        "matalign.pretrain.losses",
        "matalign.data.readers.micrographs",
        "matalign.data.own_data",
        "matalign.release.weights",
        "matalign.release.index",
        "matalign.release.predictors",
        "matalign.release.released",
    ],
    "beartype.beartype",
)

from matalign.data import dataset  # noqa: E402, after the hook

FCC = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
Crystal = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def nacl() -> Crystal:
    """Rock salt, primitive; a = 5.64 Å: six neighbours at a/2, twelve at a/√2."""
    return np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 5.64 * FCC


@pytest.fixture(scope="session")
def si() -> Crystal:
    """Diamond, primitive; a = 5.431 Å: four neighbours at √3a/4, twelve at a/√2, twelve at √11a/4."""
    return np.array([14, 14]), np.array([[0, 0, 0], [0.25, 0.25, 0.25]]), 5.431 * FCC


@pytest.fixture(scope="session")
def srtio3() -> Crystal:
    """Cubic perovskite, a = 3.905 Å; Ti in the centre."""
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return np.array([38, 22, 8, 8, 8]), sites, 3.905 * np.eye(3)


@pytest.fixture(scope="session")
def molecule() -> Crystal:
    """Water (O–H 0.958 Å, 104.5°) in a box of 12 Å."""
    half = np.deg2rad(104.5 / 2)
    sites = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    return np.array([8, 1, 1]), (0.958 * sites + 6) / 12, 12.0 * np.eye(3)


@pytest.fixture(scope="session")
def one_atom() -> Crystal:
    """Copper, primitive face-centred cubic; a = 3.61 Å: every neighbour is an image of the atom itself."""
    return np.array([29]), np.zeros((1, 3)), 3.61 * FCC


@pytest.fixture(scope="session")
def isolated() -> Crystal:
    """One argon atom in a box of 20 Å: no neighbour within any cutoff used here."""
    return np.array([18]), np.full((1, 3), 0.3), 20.0 * np.eye(3)


@pytest.fixture(scope="session")
def skewed() -> Crystal:
    """Three atoms in general position in a flat, oblique cell."""
    lattice = np.array([[4.1, 0.0, 0.0], [3.0, 3.3, 0.0], [-2.6, 1.9, 4.4]])
    return np.array([56, 22, 8]), np.array([[0.03, 0.11, 0.92], [0.47, 0.55, 0.38], [0.81, 0.29, 0.66]]), lattice


@pytest.fixture(scope="session")
def large() -> Crystal:
    """200 atoms: 5 × 4 × 2 cells of cubic perovskite, each atom moved by 0.05 Å or so."""
    cells = np.stack(np.meshgrid(*map(np.arange, (5, 4, 2)), indexing="ij"), -1).reshape(-1, 1, 3)
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    moved = (cells + sites).reshape(-1, 3) + np.random.default_rng(0).normal(scale=0.05 / 3.905, size=(200, 3))
    return np.tile([38, 22, 8, 8, 8], 40), moved / [5, 4, 2], 3.905 * np.diag([5.0, 4.0, 2.0])


@pytest.fixture(scope="session")
def crystals(nacl, si, srtio3, molecule, one_atom, isolated, skewed, large) -> dict[str, Crystal]:
    """All of them, by name."""
    return {
        "nacl": nacl,
        "si": si,
        "srtio3": srtio3,
        "molecule": molecule,
        "one_atom": one_atom,
        "isolated": isolated,
        "skewed": skewed,
        "large": large,
    }


@pytest.fixture
def structures(nacl, si, srtio3):
    """Three of them in one."""
    return dataset.Structures.pack([nacl, si, srtio3])


@pytest.fixture
def curated(structures):
    """Three materials, one with a formula that pandas may take for a missing value, one without labels."""
    materials = pd.DataFrame(
        {
            "mp_id": ["mp-1", "mp-2", "mp-3"],
            "formula": ["NaN", "Si", "SrTiO3"],
            "chemsys": ["N-Na", "Si", "O-Sr-Ti"],
            "n_atoms": [2, 2, 5],
            "space_group": [225, 227, 221],
            "source": "megnet",
            "formation_energy_eV_atom": [-2.1, 0.0, np.nan],
            "band_gap_eV": [5.0, 0.0, np.nan],
            "is_metal": [0.0, 1.0, np.nan],
            "bulk_modulus_GPa": np.nan,
            "shear_modulus_GPa": np.nan,
        }
    )
    protocols = pd.DataFrame(
        {
            "protocol_id": ["a-1", "a-2"],
            "mp_id": ["mp-3", "mp-3"],
            "doi": ["10.1/x", ""],
            "method": ["solid-state", "sol-gel"],
            "target_formula": "SrTiO3",
            "precursors": [["SrCO3", "TiO2"], ["SrO"]],
            "max_temperature_C": [1200.0, np.nan],
            **{f"text_L{level}": f"level {level}" for level in range(4)},
            "train_ok": [True, False],
        }
    )
    splits = pd.DataFrame({"mp_id": materials.mp_id, "random": "train", "chemsys": "test", "pretrain": "excluded"})
    extras = {"xrd": np.array([[0.5, 1], [1, 0.25], [np.nan, np.nan]], np.float16)}
    return dataset.Curated(materials, structures, protocols, splits, {"counts": {"materials": 3}}, extras=extras)
