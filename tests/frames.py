"""Crystals and views of them, for the tests of micrographs."""

import numpy as np
import torch
from benchmarks import stem

from matalign.data.dataset import Structures
from matalign.views import draws, micrographs
from matalign.views.micrographs import View

TRICLINIC = (
    np.array([38, 22, 8]),
    np.array([[0.1, 0.2, 0.3], [0.62, 0.71, 0.05], [0.33, 0.9, 0.8]]),
    np.array([[4.1, 0.2, -0.3], [0.7, 5.0, 0.4], [-0.6, 0.9, 6.2]]),
)
CUBIC = (np.array([29]), np.zeros((1, 3)), 3.6 * np.eye(3))
PEROVSKITE = dict(stem.crystals())["SrTiO3"]
ZINCBLENDE = dict(stem.crystals())["GaAs"]
ONE_ATOM = (np.array([79]), np.zeros((1, 3)), np.diag([30.0, 30.0, 4.0]))


def keys(n, *, seed=0):
    return [draws.view_seed(seed, 0, f"mp-{i}", 0) for i in range(n)]


def view(size, **values):
    """A still, unrotated view along [001] at unit dose, with what is given instead."""
    still = vars(stem.still(size, np.zeros((size, 2)), px=values.pop("px", 64)))
    return View(**{**still, **{k: torch.as_tensor(v) for k, v in values.items()}})


def picture(crystal, optics, **values):
    v = view(1, px=optics.image_px, **values)
    columns = micrographs.project(Structures.pack([crystal]), [0], v, optics=optics)
    return micrographs.expose(columns, v, optics=optics)[0]
