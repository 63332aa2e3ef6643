"""Curated sets of a few materials, each with the precursors that it is made from."""

import numpy as np
import pandas as pd

from matalign import elements
from matalign.data import dataset, protocols
from matalign.data.dataset import Curated, Structures
from matalign.data.formulas import composition

Z = {symbol: z for z, symbol in enumerate(elements.SYMBOLS)}
CUBE = np.eye(3) * 4.0


def material(formula):
    numbers = [Z[s] for s, n in composition(formula).items() for _ in range(int(n))]
    return np.array(numbers), np.zeros((len(numbers), 3)), CUBE


def curated(recipes, *, test=(), excluded=()):
    """A curated set: formula -> the lists of precursors that it is made from; mp-000, mp-001, … in order."""
    formulas = list(recipes)
    ids = [f"mp-{i:03d}" for i in range(len(formulas))]
    elements_of = ["-".join(sorted(composition(f))) for f in formulas]
    materials = pd.DataFrame({"mp_id": ids, "formula": formulas, "chemsys": elements_of})
    for column in dataset.MATERIALS:
        if column not in materials:
            materials[column] = np.nan
    rows = []
    for mp_id, (formula, made) in zip(ids, recipes.items()):
        for i, precursors in enumerate(made):
            heating = protocols.Operation("heated", temperature_C=900.0 + i)
            p = protocols.Protocol("10.1/x", "solid-state", formula, (), tuple(sorted(precursors)), (heating,))
            texts = {f"text_L{level}": protocols.render(p, level=level) for level in protocols.LEVELS}
            rows.append({"protocol_id": f"{mp_id}-{i}", "mp_id": mp_id, "train_ok": formula not in test, **texts})
    blank = {"doi": "10.1/x", "method": "solid-state", "target_formula": "", "max_temperature_C": 900.0}
    table = pd.DataFrame(rows).assign(**blank, precursors=[[]] * len(rows))
    held = [f in (*test, *excluded) for f in formulas]
    splits = pd.DataFrame({"mp_id": ids, "random": "train"})
    splits["chemsys"] = ["test" if f in test else "train" for f in formulas]
    splits["pretrain"] = ["excluded" if h else "train" for h in held]
    structures = Structures.pack([material(f) for f in formulas])
    return Curated(materials, structures, table, splits, {})


FIVE = {
    "BaTiO3": [("BaCO3", "TiO2"), ("BaO", "TiO2")],
    "SrTiO3": [("SrCO3", "TiO2")],
    "Ba2TiO4": [("BaCO3", "TiO2")],
    "NaCl": [("Na2CO3", "HCl")],
    "Si": [],
}
