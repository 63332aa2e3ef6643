from itertools import product

import numpy as np
import pytest
import torch
from benchmarks import stem
from frames import CUBIC, ONE_ATOM, PEROVSKITE, TRICLINIC, ZINCBLENDE, keys, picture

from matalign.data.dataset import Structures
from matalign.views import micrographs
from matalign.views.micrographs import ZONE_AXES, Optics


@pytest.fixture(scope="module")
def hosts():
    return Structures.pack([TRICLINIC, PEROVSKITE, CUBIC, ZINCBLENDE])


def test_zone_axes_are_all_low_index_directions_once():
    assert len(ZONE_AXES) == 13
    assert {tuple(s * i for i in axis) for axis in ZONE_AXES for s in (1, -1)} == set(product((-1, 0, 1), repeat=3)) - {
        (0, 0, 0)
    }


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, 0, 0), (0, 1, -1), (1, 1, 1), (1, -1, 0)])
def test_image_is_the_sum_over_the_atoms_of_a_slab(axis):
    """Against every atom of a slab one repeat thick, drawn one by one."""
    optics = Optics(image_px=48, pixel_A=0.15, tail_ratio=0.0, tail_width_A=1.0)
    angle, shift, drift, sigma, dose = 0.7, np.array([0.4, -1.1]), np.array([0.3, -0.2]), 0.45, 5e3
    numbers, frac_coords, lattice = TRICLINIC
    zone = np.array(axis) @ lattice
    repeat = np.linalg.norm(zone)
    ours = picture(
        TRICLINIC,
        optics,
        axis=[ZONE_AXES.index(axis)],
        rotation=[angle],
        shift_A=shift[None].astype("f4"),
        drift_A=drift[None].astype("f4"),
        thickness_A=[3.2 * repeat],
        dose_e_A2=[dose],
        probe_sigma_A=[sigma],
    )

    w = zone / repeat
    pivot = np.flatnonzero(axis)[0]
    a = lattice[next(i for i in range(3) if i != pivot)]
    e1 = a - a @ w * w
    e1 /= np.linalg.norm(e1)
    e2 = np.cross(w, e1)
    extent = optics.image_px * optics.pixel_A
    x = (np.arange(optics.image_px) - (optics.image_px - 1) / 2) * optics.pixel_A
    expected = np.zeros((optics.image_px,) * 2)
    for z, f in zip(numbers, frac_coords):
        for n in product(range(-7, 8), repeat=3):
            r = (f + n) @ lattice
            if not 0 <= r @ w / repeat < 1:
                continue
            p, q = r @ e1, r @ e2
            row, col = (
                np.cos(angle) * p - np.sin(angle) * q + shift[0],
                np.sin(angle) * p + np.cos(angle) * q + shift[1],
            )
            row, col = row + row * drift[0] / extent, col + row * drift[1] / extent
            strength = 3 * dose * 0.02 * (z / 79) ** 1.7  # three atoms above one another
            spot = np.exp(-((x[:, None] - row) ** 2 + (x - col) ** 2) / (2 * sigma**2))
            expected += strength * spot / (2 * np.pi * sigma**2) * optics.pixel_A**2
    # Dealing a site to four pixels widens the spots a little.
    assert np.corrcoef(ours.numpy().ravel(), expected.ravel())[0, 1] > 0.9995
    np.testing.assert_allclose(ours, expected, atol=0.04 * expected.max())


def test_image_does_not_depend_on_the_cell():
    numbers, frac_coords, lattice = TRICLINIC
    double = np.diag([2, 1, 1])
    sheared = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])  # a, a + b, c
    doubled = (
        np.tile(numbers, 2),
        np.concatenate([frac_coords, np.add(frac_coords, [1, 0, 0])]) / [2, 1, 1],
        double @ lattice,
    )
    other = (numbers, frac_coords @ np.linalg.inv(sheared) + [3, -2, 1], sheared @ lattice)
    optics = Optics(image_px=32)
    reference = picture(TRICLINIC, optics, thickness_A=[40.0])
    for crystal in (doubled, other):
        torch.testing.assert_close(picture(crystal, optics, thickness_A=[40.0]), reference, rtol=1e-3, atol=1e-6)


def test_counts_of_one_column_by_hand():
    # Nine atoms of gold (35 Å / 4 Å, rounded) of 0.02 Å² at 1000 electrons/Å² scatter 180 electrons.
    image = picture(ONE_ATOM, Optics(), thickness_A=[35.0], dose_e_A2=[1000.0])
    assert image.sum() == pytest.approx(180, rel=1e-4)
    # Centred between the four pixels in the middle.
    assert image[31:33, 31:33].min() == image.max()


@pytest.mark.parametrize("sigma", [0.4, 0.65])
def test_defocus_widens_a_column_and_keeps_its_counts(sigma):
    optics = Optics(tail_ratio=0.0, tail_width_A=1.2)
    image = picture(ONE_ATOM, optics, probe_sigma_A=[sigma], thickness_A=[35.0], dose_e_A2=[1000.0])
    assert image.sum() == pytest.approx(180, rel=1e-4)
    x = (torch.arange(64) - 31.5) * 0.2
    for axis in (0, 1):
        variance = (image.sum(1 - axis) * x**2).sum() / 180
        assert variance == pytest.approx(sigma**2 + 0.1**2, rel=1e-3)  # dealt to pixels 0.1 Å away


def test_drift_shears_and_stretches_the_frame():
    drift = np.array([[1.0, -1.0]], dtype="f4")
    places = [(0.0, 0.0), (4.0, 2.0)]  # 4 Å down the frame of 12.8 Å
    for place, moved in zip(places, [(0.0, 0.0), (4.0 + 4 / 12.8, 2.0 - 4 / 12.8)]):
        image = picture(ONE_ATOM, Optics(), shift_A=np.array([place], dtype="f4"), drift_A=drift)
        x = (torch.arange(64) - 31.5) * 0.2
        centre = [((image.sum(1 - axis) * x).sum() / image.sum()).item() for axis in (0, 1)]
        assert centre == pytest.approx(moved, abs=0.01)


def test_contrast_is_a_power_of_the_atomic_number():
    light = (np.array([14]), *ONE_ATOM[1:])
    ratio = picture(ONE_ATOM, Optics(gamma=2.0)).sum() / picture(light, Optics(gamma=2.0)).sum()
    assert ratio == pytest.approx((79 / 14) ** 2, rel=1e-3)


def test_a_scan_line_shifts_with_its_jitter():
    optics = Optics(jitter_A=1.0)
    still = picture(ONE_ATOM, optics)
    jitter = torch.zeros(1, 64)
    jitter[0, 32] = 0.4  # two pixels
    moved = picture(ONE_ATOM, optics, jitter_A=jitter)
    torch.testing.assert_close(moved[32, 2:], still[32, :-2], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[:32], still[:32], rtol=1e-3, atol=1e-6)


def test_a_frame_without_atoms_stays_zero():
    image = picture(ONE_ATOM, Optics(image_px=32), shift_A=np.array([[15.0, 15.0]], dtype="f4"))
    assert image.abs().max() == 0
    assert micrographs.standardise(image[None]).abs().max() == 0


def test_twenty_crystals_look_as_stemconv_draws_them():
    rows = stem.correlations(px=64)
    assert len(rows) == 20
    same_margin = {name: r for name, r, _ in rows}
    assert np.mean(list(same_margin.values())) > 0.99
    assert np.mean([r for _, _, r in rows]) > 0.99  # every atom drawn, those outside the frame too
    assert min(r for name, r in same_margin.items() if name != "CaF2") > 0.9999


def test_stemconv_counts_atoms_on_one_point_once():
    """Why CaF2 differs: half of its fluorine is hidden under the other half."""
    numbers, frac_coords, lattice = dict(stem.crystals())["CaF2"]
    image, centroid = stem.stem((numbers, frac_coords, lattice), px=64, pixel_A=0.2)
    seen = frac_coords[:, 2] < 0.7  # one fluorine of each pair
    seen &= (numbers == 20) | (frac_coords[:, 2] < 0.3)
    once = [("once", (numbers[seen], frac_coords[seen], lattice))]
    ours = stem.pictures(once, -centroid[None], px=64, pixel_A=0.2, margin_A=0.6)
    assert np.corrcoef(ours.ravel(), image.ravel())[0, 1] > 0.9999


def test_an_image_depends_on_its_crystal_and_its_key_alone(hosts):
    optics = Optics(image_px=32)
    together = micrographs.render(hosts, [0, 1, 2, 3, 1], [*keys(4), keys(2)[1]], optics=optics)
    torch.manual_seed(7)
    alone = micrographs.render(hosts.take(np.array([1])), [0], [keys(2)[1]], optics=optics)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[1], together[4])
    assert not torch.allclose(together[1], micrographs.render(hosts, [1], keys(2, seed=1)[1:], optics=optics)[0])


def test_rendered_images_are_standardised(hosts):
    images = micrographs.render(hosts, [0, 1, 2, 3], keys(4), optics=Optics())
    assert images.shape == (4, 1, 64, 64)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.square().mean((1, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_views_are_drawn_from_their_ranges(hosts):
    optics = Optics(image_px=32, axes=4, jitter_A=0.1)
    n = 4000
    v = micrographs.draw_views(hosts.lattice[np.zeros(n, dtype=int)], keys(n), optics=optics)
    repeat = np.linalg.norm(np.array(ZONE_AXES) @ TRICLINIC[2], axis=1)
    assert set(v.axis.tolist()) == set(np.argsort(repeat)[:4].tolist())  # the shortest repeats
    for drawn, low, high in [
        (v.thickness_A, 20, 80),
        (v.dose_e_A2.log10(), 3, 5),
        (v.probe_sigma_A, 0.4, 0.65),
        (v.rotation, 0, 2 * np.pi),
        (v.drift_A, -0.5, 0.5),
    ]:
        assert low <= drawn.min()
        assert drawn.max() <= high
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert v.jitter_A.std() == pytest.approx(0.1, rel=0.02)
    assert v.jitter_A.mean() == pytest.approx(0, abs=2e-3)


def test_noise_is_poisson_and_stabilised_to_unit_variance():
    expected = torch.tensor([4.0, 30.0])[:, None, None].expand(2, 200, 200).contiguous()
    counts = micrographs.detect(expected, [1, 2])
    assert counts.mean((1, 2)).tolist() == pytest.approx([4, 30], rel=0.02)
    assert counts.var((1, 2)).tolist() == pytest.approx([4, 30], rel=0.03)
    assert micrographs.stabilise(counts).var((1, 2)).tolist() == pytest.approx([1, 1], rel=0.05)
