"""Figures and tables from plausible metrics: what is drawn, which bytes are written, what the cells say."""

import csv
import itertools
import json
import re
import zlib
from unittest import mock

import matplotlib as mpl
import numpy as np
import plausible
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg

from matalign.pretrain import losses
from matalign.report import ablations, figures, printing, style, tables
from matalign.tasks.properties.arms import PROBES

MADE = (
    "curation",
    "proposal_loss_faults",
    "training",
    "learning_curve",
    "parity",
    "fusion",
    "retrieval",
    "gallery_curve",
)
MADE += ("calibration", "recommendation", "defects", "dose", "reliability", "ablations_loss", "ablations_pairs")
STAGE = {
    "curation": "curate",
    "proposal_loss_faults": "proposal_loss_faults",
    "training": "pretrain",
    "learning_curve": "properties",
    "parity": "properties",
    "fusion": "properties",
}
STAGE |= {"retrieval": "retrieval", "recommendation": "recommendation", "defects": "defects", "dose": "defects"}
STAGE |= {"calibration": "release", "gallery_curve": "retrieval", "reliability": "defects"}


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context():
        style.use()
        yield


@pytest.fixture(scope="module")
def metrics():
    return {**plausible.metrics(), "proposal_loss_faults": losses.proposal_loss_faults()}


def draw(name, metrics):
    if name.startswith("ablations"):
        return ablations.figures(metrics["ablations"])[name]
    return getattr(figures, name)(metrics[STAGE[name]])


def clashes(fig):
    """Pairs of texts of a figure (ticks, titles, legends) whose boxes overlap, and texts cut off by the page."""
    drawn = {}

    def note(text, renderer, draw=mpl.text.Text.draw):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer).padded(-0.6)
        draw(text, renderer)

    with mock.patch.object(mpl.text.Text, "draw", note):
        FigureCanvasAgg(fig).draw()
    page = fig.bbox
    cut = [t for t, b in drawn.items() if b.x0 < page.x0 or b.x1 > page.x1 or b.y0 < page.y0 or b.y1 > page.y1]
    clash = [(t, u) for (t, b), (u, c) in itertools.combinations(drawn.items(), 2) if b.overlaps(c)]
    assert drawn
    return [t.get_text() for t in cut] + [(t.get_text(), u.get_text()) for t, u in clash]


def test_clashes_are_seen():
    fig = style.Drawing(figsize=(2, 1))
    fig.text(0.1, 0.5, "one")
    fig.text(0.12, 0.5, "two")
    fig.text(0.9, 0.1, "too long")
    assert sorted(map(str, clashes(fig))) == ["('one', 'two')", "too long"]


@pytest.mark.parametrize("name", MADE)
def test_nothing_overlaps_or_is_cut_off(name, metrics):
    fig = draw(name, metrics)
    assert clashes(fig) == []
    assert fig.get_figwidth() in (style.COLUMN_IN, style.PAGE_IN)


@pytest.mark.parametrize("name", MADE)
def test_axes_are_labelled_and_letters_large_enough(name, metrics):
    fig = draw(name, metrics)
    for ax in fig.axes:
        heatmap = bool(ax.collections) and not ax.get_xlabel()  # its axes are classes and arms
        assert heatmap or ax.get_xlabel() or ax.get_ylabel()
    assert min(t.get_fontsize() for t in fig.findobj(mpl.text.Text) if t.get_text()) >= 6.5


def test_same_figure_same_bytes(tmp_path, metrics):
    for folder in ("a", "b"):
        for name in ("retrieval", "training"):
            style.save(draw(name, metrics), tmp_path / folder, name)
    for file in sorted((tmp_path / "a").iterdir()):
        data = file.read_bytes()
        assert data == (tmp_path / "b" / file.name).read_bytes()
        assert b"CreationDate" not in data
        assert b"Software" not in data


def test_pdf_fonts_are_embedded_as_truetype(tmp_path, metrics):
    _, pdf = style.save(draw("training", metrics), tmp_path, "training")
    data = pdf.read_bytes()
    streams = [
        zlib.decompress(s) for s in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, flags=re.S) if s[:1] == b"x"
    ]
    everything = b"\n".join([data, *streams])
    assert b"/CIDFontType2" in everything
    assert b"/FontFile2" in everything
    assert b"/Type3" not in everything


def test_font_comes_with_matplotlib():
    file = font_manager.findfont(font_manager.FontProperties(family=mpl.rcParams["font.family"]))
    assert mpl.get_data_path() in file


def luminance_lab(colour, matrix):
    """CIE Lab of an sRGB colour as seen with a colour deficiency (Machado et al. 2009 matrices, linear RGB)."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(matrix @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = [np.cbrt(t) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz / [0.9505, 1.0, 1.089]]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


@pytest.mark.parametrize("matrix", [np.eye(3), PROTANOPIA, DEUTERANOPIA], ids=["full", "protanopia", "deuteranopia"])
@pytest.mark.parametrize(
    "arms",
    [
        ["dummy", "composition", "cgconv", "scratch", "scratch_long", "pretrained", "ridge", *PROBES],
        ["random", "aligned", *(arm for arm in plausible.RETRIEVAL_ARMS if arm not in ("random", "pretrained"))],
        ["random", "nearest", "popularity", "assembled", "models", "assembled_models", "GPT-4.1"],
        ["dummy", "boosting", "nearest", "recipes", "SyntMTE"],
        [name for name in style.ARMS if name.startswith(("majority", "context", "image"))],
        ["context", "image", "image_structure", "image_reference", "reference_other", "reference_view"],
    ],
    ids=["properties", "retrieval", "precursors", "temperatures", "defects", "dose"],
)
def test_arms_of_a_figure_differ_in_colour_and_marker(arms, matrix):
    for i, a in enumerate(arms):
        for b in arms[:i]:
            distance = np.linalg.norm(luminance_lab(style.COLOURS[a], matrix) - luminance_lab(style.COLOURS[b], matrix))
            assert distance > 15, (a, b, distance)
            assert style.ARMS[a].marker != style.ARMS[b].marker, (a, b)


def test_an_arm_without_colour_is_named(metrics):
    row = {**metrics["defects"]["dose"][0], "arm": "imagee"}
    with pytest.raises(KeyError, match="imagee"):
        figures.dose({"dose": [row]})


def test_learning_curve_draws_the_split_with_most_label_shares(metrics):
    fig = figures.learning_curve(metrics["properties"])
    line = next(c for c in fig.axes[0].containers if c.get_label() == style.ARMS["scratch"].label)
    rows = metrics["properties"]["results"]
    want = {
        r["label_percent"]: r["value"]
        for r in rows
        if (r["cohort"], r["split"], r["metric"], r["arm"]) == ("A", "chemsys", "MAE", "scratch")
        and r["target"] == "formation_energy_eV_atom"
    }
    np.testing.assert_allclose(line.lines[0].get_xydata(), sorted(want.items()))


@pytest.mark.parametrize("name", [name for name in MADE if name != "proposal_loss_faults"])
def test_sparse_metrics_are_drawn(name):
    sparse = plausible.metrics(runs=[("random", 100, 1)], property_arms={"dummy": 3.0}, levels=(1,))
    sparse["curate"] |= {"skipped": [], "audit": []}
    sparse["pretrain"]["history"] = sparse["pretrain"]["history"][:1]
    sparse["properties"]["parity"] = {"true": [0.5], "predicted": [0.5]}
    sparse["defects"] |= {"dose": [], "recall": []}
    FigureCanvasAgg(draw(name, sparse)).draw()


# ---------------------------------------------------------------------------------------------------------- tables


def test_numbers_are_printed_in_a_fixed_format():
    assert printing.number(-1234.5678, digits=2) == "−1,234.57"
    assert printing.number(float("nan")) == "–"
    assert printing.interval({"value": 0.0491, "low": 0.0453, "high": 0.0528}) == "0.049 [0.045, 0.053]"
    assert printing.interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert printing.span([5, 1, 3]) == "1–5"
    assert printing.interval({"value": 12.34, "low": 10.0, "high": 15.06}, unit="%") == "12.3 [10.0, 15.1]"


def test_property_table_puts_each_run_under_its_column(metrics):
    table = tables.properties(metrics["properties"])["properties_A_formation_energy_eV_atom"]
    assert table.header[1] == "chemsys 1 %\nn = 147, 5 seeds"
    cells = {row[0]: row[1:] for row in table.cells}
    rows = metrics["properties"]["results"]
    row = next(r for r in rows if (r["arm"], r["split"], r["metric"]) == ("ridge", "random", "MAE"))
    assert cells["frozen + ridge"][-1] == printing.interval(row)


def test_cohorts_and_what_is_seen_are_told_apart(metrics):
    b = tables.properties(metrics["properties"])["properties_B"]
    assert [h.split("\n")[0] for h in b.header] == ["arm", "formation energy", "metal"]
    labels = [row[0] for row in b.cells]
    assert [label for label in labels if label.startswith("fused")] == labels[2:5]
    rows = metrics["properties"]["results"]
    row = next(r for r in rows if (r["cohort"], r["arm"], r["metric"]) == ("B", "text", "F1"))
    assert next(cells for cells in b.cells if cells[0] == "protocol only")[2] == printing.interval(row)
    gains = tables.build(metrics)["gains"].rows
    assert set(gains.error[gains.cohort == "B"]) == {"MAE", "error rate"}


def test_fused_arms_are_no_part_of_the_learning_curve(metrics):
    fig = figures.learning_curve(metrics["properties"])
    assert len(fig.axes) == 2
    for ax in fig.axes:
        labels = {c.get_label() for c in ax.containers}
        assert labels == {style.ARMS[arm].label for arm in plausible.PROPERTY_ARMS}
    (ax,) = figures.fusion(metrics["properties"]).axes  # one cell has fused arms
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["ILD, scratch", "ILD, pretrained"]
    assert len(ax.get_yticks()) == len(plausible.FUSED_ARMS)


def test_missing_run_is_a_dash():
    metrics = plausible.metrics()["properties"]
    metrics["results"] = [r for r in metrics["results"] if (r["arm"], r["label_percent"]) != ("ridge", 1)]
    table = tables.properties(metrics)["properties_A_formation_energy_eV_atom"]
    assert next(row for row in table.cells if row[0] == "frozen + ridge")[1] == "–"


def test_tables_are_written_sorted_and_the_same_whatever_the_order(tmp_path, metrics):
    printing.write(tables.build(metrics), tmp_path / "a")
    shuffled = json.loads(json.dumps(metrics))
    rng = np.random.default_rng(0)
    for stage in ("properties", "retrieval", "defects"):
        for key in ("results", "comparisons"):
            rng.shuffle(shuffled[stage][key])
    printing.write(tables.build(shuffled), tmp_path / "b")
    names = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert {"claims.csv", "gains.csv", "retrieval.csv", "defects.csv", "tables.json"} <= set(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_csv_keeps_every_row_and_value(tmp_path, metrics):
    printing.write(tables.build(metrics), tmp_path)
    with open(tmp_path / "retrieval.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(metrics["retrieval"]["results"])
    want = {
        (r["query"], r["target"], r["gallery"], r["arm"], r["metric"], r["level"]): r
        for r in style.retrieval_rows(metrics["retrieval"]["results"])
    }
    assert {"aligned", "structure"} <= {r["arm"] for r in rows}
    for r in rows:
        w = want[(r["query"], r["target"], r["gallery"], r["arm"], r["metric"], int(r["level"]))]
        assert float(r["value"]) == pytest.approx(w["value"], rel=1e-5)
        assert int(r["n_queries"]) == w["n_queries"]


def test_hosts_with_a_protocol_have_rows_of_their_own(metrics):
    table = tables.defect_differences(metrics["defects"])
    own = table[table.hosts == "with protocol"]
    assert own[["difference", "low", "high"]].to_numpy().tolist() == [[0.02, -0.03, 0.07]] * 2
    assert len(table) == len(metrics["defects"]["comparisons"]) + 2
