"""Figures and the paper's section of micrographs registered with crystals."""

import json

import plausible
import pytest
from test_figures import clashes
from test_paper import TITLE, drawings, overflowing, results  # noqa: F401 (fixtures)

from matalign.report import micrographs, paper, style, tables


@pytest.fixture(autouse=True)
def _style():
    style.use()


@pytest.mark.parametrize("experimental", [True, False])
def test_figures_are_those_that_the_profile_has_data_for(experimental):
    drawn = micrographs.drawings(plausible.micrographs(experimental=experimental))
    assert list(drawn) == (["registration", "patches", "few_labels"] if experimental else ["registration"])
    for figure in drawn.values():
        assert clashes(figure) == []


def test_ranks_are_drawn_where_they_are():
    _, rank = micrographs.registration(plausible.micrographs()).axes
    assert {c.get_label(): c.get_offsets().tolist() for c in rank.collections} == {
        "rendered": [[40, 1], [80, 2], [120, 3]],
        "CdTe": [[900, 1], [12000, 4]] * 2,
        "SrTiO3": [[900, 1], [12000, 4]] * 2,
    }


@pytest.mark.parametrize("experimental", [True, False])
def test_the_paper_has_a_section_and_the_claims_where_the_stage_was_run(results, experimental):  # noqa: F811
    folder = results(plausible.metrics())
    found = plausible.micrographs(experimental=experimental)
    (folder / "metrics" / "micrographs.json").write_text(json.dumps(found))
    for name, figure in micrographs.drawings(found).items():
        style.save(figure, folder / "figures", name)
    read = paper.read(folder / "metrics")
    assert tables.claims(read).rows.claim.iloc[-1] == "a crystal calibrates its picture"
    paper.document(folder, title=TITLE)
    assert overflowing(folder, title=TITLE) == []
