"""The widgets of `notebooks/00_explore.ipynb`: one crystal, picked or pasted, from every side.

A view is a function of a crystal and a few numbers that draws a figure or gives a table; the widgets only choose its
arguments.
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
from matplotlib.figure import Figure

from matalign import config, paths
from matalign.data import dataset, protocols
from matalign.data.dataset import Structures
from matalign.data.readers import crystals
from matalign.pretrain import encode
from matalign.release import cli, released
from matalign.report import style
from matalign.report.atlas import build, layout
from matalign.tasks.retrieval import galleries
from matalign.views import draws, graphs, micrographs

NEAREST = 5  # of each modality
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

    # What is looked at

    @property
    def row(self) -> int | None:
        """Row of the curated set, the first of the formula; None where a CIF is pasted.

        Raises:
            ValueError: the set has no such formula.
        """
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

    # The space, made when a view first asks

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

    # Views

    def properties(self) -> pd.DataFrame:
        """What is known, and what the released model predicts with its intervals."""
        told = pd.DataFrame(cli.ranges(self.released.predict(self.structure).to_dict("records"))).T
        told.columns = ["predicted"]
        if self.row is not None:
            told.insert(0, "in the set", self.curated.materials.iloc[self.row])
        return told

    def surroundings(self, cutoff_A: float = 6.0, neighbours: int = 16) -> Figure:
        """Each atom's neighbours by distance, and its own cutoff, as the crystal tower sees them."""
        numbers, frac_coords, lattice = self.structure[0]
        graph = graphs.neighbours(numbers, frac_coords, lattice, cutoff_A=cutoff_A, neighbours=neighbours)
        distance = np.linalg.norm(graph.edge_vec, axis=1)
        fig, ax = plt.subplots(figsize=(style.COLUMN_IN, 1 + 0.12 * len(numbers)), layout="constrained")
        colours = style.COLOURS["structure"], style.COLOURS["scratch"]
        ax.scatter(distance, graph.edge_index[1], s=12, lw=0, color=colours[0], label="neighbour")
        ax.scatter(graph.edge_cutoff, range(len(numbers)), marker="|", s=60, color=colours[1], label="cutoff")
        ax.set(xlabel="distance (Å)", ylabel="atom", yticks=range(len(numbers)))
        fig.legend(loc="outside upper center", ncols=2)
        return fig

    def micrographs(
        self, pixel_A: float = 0.2, thickness_nm: float = 5.0, log10_dose: float = 4.0, draw: int = 0
    ) -> Figure:
        """Four views along low-index zone axes; `draw` takes others, dose in electrons per Å²."""
        optics = micrographs.Optics(
            image_px=128, pixel_A=pixel_A, thickness_nm=(thickness_nm,) * 2, dose_e_A2=(10**log10_dose,) * 2
        )
        structure, keys = self.structure, [draws.view_seed(draw, 0, self.profile, view) for view in range(4)]
        view = micrographs.draw_views(np.repeat(structure.lattice, 4, axis=0), keys, optics=optics)
        images = micrographs.render(structure, [0] * 4, keys, optics=optics)
        side = optics.image_px * pixel_A
        fig, axes = plt.subplots(1, 4, figsize=(style.PAGE_IN, 2), layout="constrained")
        for ax, image, axis in zip(axes, images[:, 0].numpy(), view.axis):
            ax.imshow(image, cmap="gray", extent=(0, side, 0, side))
            ax.set(xlabel="Å", yticks=[], title="[{} {} {}]".format(*micrographs.ZONE_AXES[axis]))
        return fig

    def protocols(self) -> pd.DataFrame:
        """How it was made: the first record at each mask level; of a pasted crystal none is known."""
        table = self.curated.protocols
        known = table[table.mp_id == self.curated.materials.mp_id[self.row]] if self.row is not None else table[:0]
        if not len(known):
            return pd.DataFrame({"text": ["the set has no protocol of it"]})
        return known[[f"text_L{level}" for level in protocols.LEVELS]].head(1).T.set_axis(["text"], axis=1)

    def neighbours(self) -> tuple[pd.DataFrame, Figure]:
        """The nearest of each modality in the space, and by shared elements, which a model has to beat.

        Returns:
            Formulas by rank, and the micrographs that lie nearest.
        """
        materials, of, structure = self.curated.materials, self.space.of, self.structure
        vector = self.model.embed_structures(structure)
        found = {m: self._nearest(vector, m)[0] for m in self.space.vectors}
        columns = {build.NAMES[m]: materials.formula[of[m][index]].tolist() for m, index in found.items()}
        elements, mine = ((s.fractions() > 0).astype(int) for s in (self.curated.structures, structure))
        order = np.argsort(-galleries.jaccard(mine, elements)[0], kind="stable")
        columns["by shared elements"] = materials.formula[order[order != self.row][:NEAREST]].tolist()
        table = pd.DataFrame({name: pd.Series(each, dtype=str) for name, each in columns.items()}).rename_axis("rank")
        table.index += 1
        fig, axes = plt.subplots(1, NEAREST, figsize=(style.PAGE_IN, 1.6), layout="constrained", squeeze=False)
        for ax in axes[0]:
            ax.axis("off")
        for ax, number, formula in zip(axes[0], found.get("image", ()), columns.get("micrographs", ())):
            ax.imshow(self.space.thumbnails[number], cmap="gray")
            ax.set_title(formula, fontsize=7)
        return table, fig

    def place(self) -> Figure:
        """Where it lies among the crystals of the atlas."""
        points = self.map.points["crystal"]
        if self.row is None:
            vector = self.model.embed_structures(self.structure)
            at = layout.place(vector, self.space.vectors["crystal"], points, attracted=self.atlas.attracted)[0]
        else:
            at = points[self.row]
        kinds = build.classes(self.curated.structures)
        fig, ax = plt.subplots(figsize=(style.PAGE_IN, 3.6), layout="constrained")
        for number, (name, colour, _) in enumerate(build.CLASSES):
            ax.scatter(*points[kinds == number].T, s=6, lw=0, color=colour, label=name)
        ax.scatter(*at, s=160, marker="*", color="black", edgecolor="white", label="this crystal", zorder=3)
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.5)
        return fig

    def recipes(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Known protocols that lie nearest, and precursor sets with temperatures, as the released model recommends."""
        told = self.released.recommend(self.structure, NEAREST)
        return told.protocols.drop(columns="protocol_id"), told.precursor_sets

    def _nearest(self, vector: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and cosines (k,) of a modality's nearest to the crystal's vector (1, dim), of crystals less itself."""
        vectors = self.space.vectors[modality]
        index, cosine = encode.nearest(vector, vectors, min(NEAREST + 1, len(vectors)))
        keep = index[0] != (self.row if modality == "crystal" else None)
        return index[0, keep][:NEAREST], cosine[0, keep][:NEAREST]

    # Widgets

    def pick(self) -> widgets.Widget:
        """Where a crystal is picked or pasted; every view below follows."""
        return widgets.VBox([self.formula, self.cif])

    def show(self, view: Callable[..., Any], *, on_demand: bool = False, **controls: widgets.Widget) -> widgets.Widget:
        """A view that is drawn anew when the crystal or a control changes.

        Args:
            view: one of this explorer's.
            on_demand: only when a button is pressed, for what takes minutes the first time.
            controls: a widget for each of its arguments.
        """
        out, button = widgets.Output(), widgets.Button(description="compute", layout={"display": "none"})

        def draw(_: Any = None) -> None:
            arguments = {name: control.value for name, control in controls.items()}
            out.clear_output(wait=True)
            with out:
                shown(partial(view, **arguments))

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
