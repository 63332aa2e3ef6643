"""The views and widgets of 00_explore, driven by their values as a browser would, on the model of 24 salts."""

import ast
import json
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import published
import pytest
from pymatgen.core import Lattice, Structure

from matalign import paths
from matalign.pretrain import encode
from matalign.report import widgets


@pytest.fixture(scope="module")
def x(tmp_path_factory):
    with published.model(tmp_path_factory.mktemp("explore")):
        yield widgets.Explorer("tiny")


@pytest.fixture(scope="module")
def views():
    """What the notebook defines."""
    found = {}
    for cell in json.loads((paths.NOTEBOOKS / "00_explore.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            keep = (ast.FunctionDef, ast.Import, ast.ImportFrom)
            body = ast.parse("".join(cell["source"])).body
            body = [n for n in body if isinstance(n, keep) or ast.unparse(n).startswith("NEAREST")]
            exec(compile(ast.Module(body, []), "00_explore", "exec"), found)
    return SimpleNamespace(**found)


@pytest.fixture(autouse=True)
def _as_found(x):
    start = x.formula.value
    yield
    x.formula.value, x.cif.value = start, ""
    plt.close("all")


@pytest.fixture
def pasted(x):
    """A crystal of the set, written as a CIF."""
    numbers, frac_coords, lattice = x.curated.structures[3]
    return Structure(Lattice(lattice), numbers, frac_coords).to(fmt="cif")


@pytest.fixture
def said(monkeypatch):
    """What the views display."""
    out = []
    monkeypatch.setattr(widgets, "display", out.append)
    return out


def test_a_formula_is_picked_and_an_unknown_one_refused(x):
    x.formula.value = x.curated.materials.formula[5]
    assert x.row == 5
    np.testing.assert_array_equal(x.structure.lattice[0], x.curated.structures.lattice[5])
    with pytest.raises(ValueError, match="no material with formula 'XeF9'"):
        widgets.Explorer("tiny", "XeF9")


def test_a_pasted_crystal_goes_first_and_has_the_neighbours_of_its_twin(x, views, pasted):
    x.formula.value = x.curated.materials.formula[3]
    known = views.properties(x).predicted.tolist()
    first = views.neighbours(x)[0].crystals.tolist()
    place = views.place(x).axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(place[0], x.map.points["crystal"][3], rtol=1e-6)
    x.cif.value = pasted
    assert x.row is None
    assert views.properties(x).columns.tolist() == ["predicted"]
    for mine, its in zip(views.properties(x).predicted, known, strict=True):
        assert [float(n) for n in re.findall(r"-?[\d.]+", mine)] == pytest.approx(
            [float(n) for n in re.findall(r"-?[\d.]+", its)], rel=0.02
        )
    table = views.neighbours(x)[0]
    assert table.crystals[1] == x.curated.materials.formula[3]  # itself, as nothing says that it is in the set
    assert table.crystals.iloc[1:].tolist() == first[:4]
    assert views.protocols(x).text.tolist() == ["the set has no protocol of it"]


def test_a_known_protocol_is_shown_at_each_level(x, views):
    known = x.curated.protocols[x.curated.protocols.mp_id == x.curated.materials.mp_id[x.row]].iloc[0]
    assert views.protocols(x).text.tolist() == [known[f"text_L{level}"] for level in range(4)]


def test_neighbours_are_those_of_the_space(x, views):
    table, fig = views.neighbours(x)
    vector, materials = x.model.embed_structures(x.structure), x.curated.materials
    index = encode.nearest(vector, x.space.vectors["text"], views.NEAREST)[0][0]
    assert table.protocols.tolist() == materials.formula[x.space.of["text"][index]].tolist()
    mine = set(materials.chemsys[x.row].split("-"))
    shared = [mine & set(materials.chemsys[materials.formula == f].iloc[0].split("-")) for f in table.iloc[:, -1]]
    assert all(shared)
    assert sum(bool(ax.images) for ax in fig.axes) == views.NEAREST


def test_the_controls_of_the_image_reach_the_microscope(x, views):
    def pixels(**controls):
        return np.stack([ax.images[0].get_array() for ax in views.views(x, **controls).axes])

    assert not np.array_equal(pixels(), pixels(draw=1))
    assert np.array_equal(pixels(), pixels())
    coarse = views.views(x, pixel_A=0.4).axes[0].images[0].get_extent()
    assert coarse[1] == pytest.approx(2 * views.views(x, pixel_A=0.2).axes[0].images[0].get_extent()[1])
    few, many = (np.diff(pixels(log10_dose=dose), axis=2).std() for dose in (2, 6))
    assert few > many  # noise from pixel to pixel


def test_a_view_follows_its_widgets(x, said, pasted):
    calls = []

    def view(_, **controls):
        calls.append((x.formula.value, bool(x.cif.value), controls))
        return pd.DataFrame()

    import ipywidgets

    slider = ipywidgets.IntSlider(2)
    x.show(view, draw=slider)
    slider.value = 7
    x.formula.value = x.curated.materials.formula[5]
    x.cif.value = pasted
    assert [c[2]["draw"] for c in calls] == [2, 7, 7, 7]
    assert calls[2][0] == x.curated.materials.formula[5]
    assert [c[1] for c in calls] == [False, False, False, True]
    assert len(said) == 4


def test_what_takes_long_waits_for_its_button(x):
    calls = []
    shown = x.show(lambda _: calls.append(1), on_demand=True)
    assert not calls
    shown.children[0].click()
    assert calls == [1]


def test_a_wrong_cif_is_told_in_a_line(x, views, said, capsys):
    x.cif.value = "no crystal"
    said.clear()
    widgets.shown(lambda: views.properties(x))
    assert "error: text: unreadable: a text that is no CIF" in capsys.readouterr().out
    assert not said


def test_recipes_are_the_released_models(x, views):
    protocols, sets = views.recipes(x)
    assert len(protocols) == len(sets) == views.NEAREST
    assert protocols.similarity.is_monotonic_decreasing


def test_ones_own_set_is_looked_at_with_another_profiles_model(x, views, tmp_path):
    from matalign.data import own_data

    (tmp_path / "manifest.csv").write_text("id,structure\n" + "".join(f"{i},{i}.cif\n" for i in range(4)))
    for row in range(4):
        numbers, frac_coords, lattice = x.curated.structures[row]
        Structure(Lattice(lattice), numbers, frac_coords).to(filename=str(tmp_path / f"{row}.cif"))
    own_data.write("lab", own_data.import_folder(tmp_path))
    mine = widgets.Explorer("lab", model="tiny")
    assert views.neighbours(mine)[0].columns.tolist() == ["crystals", "micrographs", "by shared elements"]
    assert views.place(mine).axes


def test_surroundings_have_a_row_of_neighbours_and_a_cutoff_for_each_atom(x, views):
    (ax,) = views.surroundings(x).axes
    atoms = len(x.structure[0][0])
    neighbours, cutoffs = (drawn.get_offsets() for drawn in ax.collections)
    assert len(cutoffs) == atoms
    assert set(neighbours[:, 1]) == set(range(atoms))
    assert neighbours[:, 0].max() <= 6.0
