"""The widgets of `notebooks/00_explore.ipynb`: one crystal, picked or pasted, from every side.

A view is a function of the explorer and a few numbers that draws a figure or gives a table (the notebook has them); the
widgets only choose its arguments.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from matalign import config, paths
from matalign.data import dataset
from matalign.data.dataset import Structures
from matalign.data.readers import crystals
from matalign.pretrain import encode
from matalign.release import released
from matalign.report.atlas import build

WORDS = {"continuous_update": False, "layout": widgets.Layout(width="36em")}


class Explorer:
    """A curated set and a released model.

    Args:
        profile: whose curated set is looked at; a name that one's own data were imported under does too.
        formula: reduced; the first pick. "": the material with the most protocols.
        model: the profile whose released model is asked, such as ``"laptop"``. "": the set's own.

    Raises:
        FileNotFoundError: one of these is not there; the message says how to make it.
        ValueError: no material has that formula.
    """

    def __init__(self, profile: str, formula: str = "", model: str = "") -> None:
        self.profile, self.curated = profile, dataset.read(paths.curated(profile))
        self.released, self.atlas = released.load(model or profile), config.load("atlas", model or profile)
        formulas = self.curated.materials.formula
        if formula and formula not in set(formulas):
            raise ValueError(f"no material with formula {formula!r} in the profile {profile!r}")
        most = self.curated.protocols.mp_id.mode().get(0, self.curated.materials.mp_id[0])
        start = formula or formulas[self.curated.materials.mp_id == most].iloc[0]
        options = tuple(sorted(set(formulas)))
        self.formula = widgets.Combobox(value=start, options=options, description="formula", **WORDS)
        self.cif = widgets.Textarea(placeholder="or paste a CIF here", description="CIF", rows=4, **WORDS)

    @property
    def row(self) -> int | None:
        """The first row of the set with the formula; None where a CIF is pasted; ValueError if there is none."""
        if self.cif.value.strip():
            return None
        found = np.flatnonzero(self.curated.materials.formula == self.formula.value)
        if not len(found):
            raise ValueError(f"no material with formula {self.formula.value!r} in the profile {self.profile!r}")
        return int(found[0])

    @property
    def structure(self) -> Structures:
        """The one crystal; raises as `row`, or as `read_structure` where the text is none."""
        if self.row is None:
            return Structures.pack([crystals.read_structure(self.cif.value + "\n").arrays])
        return self.curated.structures.take([self.row])

    @cached_property
    def space(self) -> build.Space:
        """Vectors of everything."""
        torch.set_num_threads(self.atlas.threads)
        wanted = build.modalities(self.curated, self.model.config)
        return build.space(self.curated, {m: encode.encoded(self.model, self.curated, modality=m) for m in wanted})

    @cached_property
    def map(self) -> build.Map:
        """The atlas's map."""
        return build.place(self.atlas, self.space)

    @property
    def model(self) -> encode.Model:
        """The released towers."""
        return self.released.model

    def nearest(self, vector: np.ndarray, modality: str, k: int) -> np.ndarray:
        """Rows (k,) of a modality's nearest to the crystal's vector (1, dim), of crystals less itself."""
        vectors = self.space.vectors[modality]
        index = encode.nearest(vector, vectors, min(k + 1, len(vectors)))[0][0]
        return index[index != (self.row if modality == "crystal" else None)][:k]

    def pick(self) -> widgets.Widget:
        """Where a crystal is picked or pasted; every view below follows."""
        return widgets.VBox([self.formula, self.cif])

    def show(self, view: Callable[..., Any], *, on_demand: bool = False, **controls: widgets.Widget) -> widgets.Widget:
        """A view that is drawn anew when the crystal or a control changes; `on_demand`, when a button is pressed."""
        out, button = widgets.Output(), widgets.Button(description="compute", layout={"display": "none"})

        def draw(_: Any = None) -> None:
            arguments = {name: control.value for name, control in controls.items()}
            out.clear_output(wait=True)
            with out:
                shown(partial(view, self, **arguments))

        if on_demand:
            button.layout.display = None
            button.on_click(draw)
            for each in (self.formula, self.cif):
                each.observe(lambda _: out.clear_output(), "value")
        else:
            for each in (self.formula, self.cif, *controls.values()):
                each.observe(draw, "value")
            draw()
        return widgets.VBox([*controls.values(), button, out])


def shown(view: Callable[[], Any]) -> None:
    """Display what a view gives; what is wrong with the crystal is said in a line."""
    try:
        found = view()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}")
        return
    for each in found if isinstance(found, tuple) else (found,):
        table = isinstance(each, pd.DataFrame)
        display(each.style.format(precision=3, na_rep="").set_properties(**{"text-align": "left"}) if table else each)
    plt.close("all")
