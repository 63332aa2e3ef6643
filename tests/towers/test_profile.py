"""The modality of calculated numbers: values by hand, and what it does not know."""

import dataclasses
import inspect

import numpy as np
import pytest
import tiny
import torch

from matalign import towers
from matalign.data import chunked, sources
from matalign.towers import profile


def test_magnetisation_and_volume_are_those_of_an_atom(nacl):
    # two atoms in a cell of a³/4
    volume = 5.64**3 / 4
    values = profile.curate(*nacl, fermi_level_eV=-0.9, magnetisation_muB=-3.0, volume_A3=volume)
    np.testing.assert_allclose(values, [-0.9, 1.5, 5.64**3 / 8], rtol=1e-12)
    assert volume == pytest.approx(abs(np.linalg.det(nacl[2])))


def test_a_crystal_with_a_number_unknown_has_none(nacl):
    with pytest.raises(ValueError, match="its source does not give: Fermi level, eV; volume, Å³/atom"):
        profile.curate(*nacl, np.nan, 1.0, np.inf)


def test_numbers_are_on_one_scale_by_constants_alone():
    one = np.array([[4.0 + 2.8, np.exp(-4.0) - 0.01, np.exp(2.9 - 0.37)]])
    np.testing.assert_allclose(profile.standardised(one), [[1, 0, -1]], atol=1e-12)
    other = np.array([[0.0, 0.0, 20.0], [np.nan, 2.2, 11.0]])
    both = profile.standardised(np.concatenate([one, other]))
    np.testing.assert_array_equal(both[1:], profile.standardised(other))  # whatever set they are in
    assert both[1, 1] == pytest.approx((np.log(0.01) + 4) / 1.3)
    assert np.isnan(both[2]).tolist() == [True, False, False]


def test_no_target_is_in_it():
    assert chunked.asked(profile.curate) == ["fermi_level_eV", "magnetisation_muB", "volume_A3"]
    assert not {*inspect.signature(profile.curate).parameters} & {*sources.LABELS}
    assert {*chunked.asked(profile.curate)} == {*sources.OTHERS}
    assert chunked.asked(towers.load("xrd").curate) == []


def test_the_tower_is_shown_what_there_is():
    found = tiny.curated()
    values = np.abs(np.random.default_rng(0).normal(size=(24, 3)))
    values[[3, 7]] = np.nan
    made = dataclasses.replace(found, extras={"profile": values})
    cfg = tiny.pretrain("", modalities="crystal profile")
    tower = towers.build("profile", cfg)
    inputs = profile.Inputs(cfg, made, tower, torch.device("cpu"))
    assert np.flatnonzero(~inputs.has).tolist() == [3, 7]
    rows = np.array([5, 0])
    pooled, _ = tower(inputs(rows, rows))
    assert pooled.shape == (2, tower.dim) == (2, cfg.width)
    alone, _ = tower(torch.from_numpy(profile.standardised(values[[0]])).float())
    torch.testing.assert_close(pooled[1:], alone)
