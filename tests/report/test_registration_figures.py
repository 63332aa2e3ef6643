"""Figures of micrographs registered with crystals."""

import plausible
import pytest
from test_figures import clashes

from matalign.report import micrographs, style


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
