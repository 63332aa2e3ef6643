import dataclasses
import hashlib
from itertools import product

import numpy as np
import pytest
import torch
from benchmarks import stem

from matalign.data.dataset import Structures
from matalign.views import imaging
from matalign.views.imaging import DEFECTS, ZONE_AXES, Columns, Optics, View

TRICLINIC = (
    np.array([38, 22, 8]),
    np.array([[0.1, 0.2, 0.3], [0.62, 0.71, 0.05], [0.33, 0.9, 0.8]]),
    np.array([[4.1, 0.2, -0.3], [0.7, 5.0, 0.4], [-0.6, 0.9, 6.2]]),
)
CUBIC = (np.array([29]), np.zeros((1, 3)), 3.6 * np.eye(3))
PEROVSKITE = dict(stem.crystals())["SrTiO3"]
ZINCBLENDE = dict(stem.crystals())["GaAs"]
ONE_ATOM = (np.array([79]), np.zeros((1, 3)), np.diag([30.0, 30.0, 4.0]))


@pytest.fixture(scope="module")
def hosts():
    return Structures.pack([TRICLINIC, PEROVSKITE, CUBIC, ZINCBLENDE])


def keys(n, *, seed=0):
    return [imaging.view_seed(seed, 0, f"mp-{i}", 0) for i in range(n)]


def view(size, **values):
    """A still, unrotated view along [001] at unit dose, with what is given instead."""
    still = vars(stem.still(size, np.zeros((size, 2)), px=values.pop("px", 64)))
    return View(**{**still, **{k: torch.as_tensor(v) for k, v in values.items()}})


def picture(crystal, optics, **values):
    v = view(1, px=optics.image_px, **values)
    return imaging.expose(imaging.project(Structures.pack([crystal]), [0], v, optics=optics), v, optics=optics)[0]


def test_splitmix_gives_the_published_sequence():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert imaging.bits(np.array([1234567]), 3)[0].tolist() == expected
    assert imaging.uniforms(np.array([1234567]), 1)[0, 0] == (expected[0] >> 11) / 2**53


def test_view_seed_is_a_hash_of_all_its_parts():
    digest = hashlib.blake2b(b"1/2/mp-3/4", digest_size=8).digest()
    assert imaging.view_seed(1, 2, "mp-3", 4) == int.from_bytes(digest, "little") // 2
    assert (
        len({imaging.view_seed(s, e, m, v) for s, e, m, v in product((0, 1), (0, 1), ("mp-1", "mp-2"), (0, 1))}) == 16
    )


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
    assert imaging.standardise(image[None]).abs().max() == 0


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
    together = imaging.render(hosts, [0, 1, 2, 3, 1], [*keys(4), keys(2)[1]], optics=optics)
    torch.manual_seed(7)
    alone = imaging.render(hosts.take(np.array([1])), [0], [keys(2)[1]], optics=optics)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[1], together[4])
    assert not torch.allclose(together[1], imaging.render(hosts, [1], keys(2, seed=1)[1:], optics=optics)[0])


def test_rendered_images_are_standardised(hosts):
    images = imaging.render(hosts, [0, 1, 2, 3], keys(4), optics=Optics())
    assert images.shape == (4, 1, 64, 64)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.square().mean((1, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_views_are_drawn_from_their_ranges(hosts):
    optics = Optics(image_px=32, axes=4, jitter_A=0.1)
    n = 4000
    v = imaging.draw_views(hosts.lattice[np.zeros(n, dtype=int)], keys(n), optics=optics)
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
    counts = imaging.detect(expected, [1, 2])
    assert counts.mean((1, 2)).tolist() == pytest.approx([4, 30], rel=0.02)
    assert counts.var((1, 2)).tolist() == pytest.approx([4, 30], rel=0.03)
    assert imaging.stabilise(counts).var((1, 2)).tolist() == pytest.approx([1, 1], rel=0.05)


# Defects


def defects(hosts, kinds, *, row=0, held_out=False, seed=0, **optics):
    rows = np.full(len(kinds), row)
    key = [imaging.view_seed(seed, 0, f"mp-{row}", 0)] * len(kinds)
    return imaging.defect_images(hosts, rows, kinds, key, optics=Optics(image_px=32, **optics), held_out=held_out)


def test_kinds_of_one_key_share_their_view(hosts):
    made = defects(hosts, range(5), row=1)
    for field in dataclasses.fields(View):
        values = getattr(made.view, field.name)
        assert (values == values[:1]).all(), field.name
    assert made.kinds.tolist() == [0, 1, 2, 3, 4]
    assert len({image.numpy().tobytes() for image in made.images}) == 5


def test_a_defect_image_depends_on_its_host_kind_and_key_alone(hosts):
    together = imaging.defect_images(
        hosts, [0, 1, 2, 3], [4, 1, 2, 3], keys(4), optics=Optics(image_px=32), held_out=False
    )
    for i, kind in enumerate([4, 1, 2, 3]):
        alone = imaging.defect_images(
            hosts, [i], [kind], keys(4)[i : i + 1], optics=Optics(image_px=32), held_out=False
        )
        assert torch.equal(alone.images[0], together.images[i])
        assert alone.visibility[0] == together.visibility[i]


def test_pristine_images_are_the_ordinary_ones_up_to_noise(hosts):
    made = defects(hosts, [0], row=1, dose_e_A2=(1e8, 1e8))
    key = [imaging.view_seed(0, 0, "mp-1", 0)]
    plain = imaging.render(hosts, [1], key, optics=Optics(image_px=32, dose_e_A2=(1e8, 1e8)))
    torch.testing.assert_close(made.images, plain, atol=0.1, rtol=0)
    assert made.contrast.item() == made.visibility.item() == 0


def inserted(host, kind, *, u=None, held_out=False, size=1):
    """Columns before and after one attempt at a defect, ten atoms to a site, 64 px of 0.2 Å."""
    structures, optics = Structures.pack([host]), Optics()
    v = view(size, thickness_A=[10 * float(np.linalg.norm(host[2][2]))] * size)
    rows = np.zeros(size, dtype=int)
    before = imaging.project(structures, rows, v, optics=optics)
    if u is None:
        u = torch.as_tensor(imaging.uniforms(np.arange(size), imaging._DRAWS), dtype=torch.float32)
    kinds = np.full(size, DEFECTS.index(kind))
    after = imaging._insert(before, structures, rows, kinds, v, u, optics=optics, held_out=held_out)
    return before, after


def atoms(columns):
    return torch.zeros(int(columns.image.max()) + 1).index_add(0, columns.image, columns.atoms)


def test_vacancy_takes_half_to_all_atoms_of_one_site():
    before, after = inserted(PEROVSKITE, "vacancy", size=200)
    lost = before.atoms - after.atoms
    assert (torch.bincount(before.image[lost > 0], minlength=200) == 1).all()
    assert set(lost[lost > 0].tolist()) == {5.0, 6.0, 7.0, 8.0, 9.0, 10.0} - (
        {5.0} if lost[lost > 0].min() > 5 else set()
    )
    assert before.position_A[lost > 0].abs().max() < 6.4  # inside the frame
    assert set(before.number[lost > 0].tolist()) == {8.0, 22.0, 38.0}


def test_substitution_keeps_the_number_of_atoms():
    before, after = inserted(PEROVSKITE, "substitution", size=200)
    torch.testing.assert_close(atoms(after), atoms(before))
    new = after.where(torch.arange(len(after.image)) >= len(before.image))
    assert len(new.image) == 200
    old = (before.atoms - after.atoms[: len(before.image)]).nonzero()[:, 0]
    assert torch.equal(before.image[old], new.image)
    torch.testing.assert_close(before.position_A[old], new.position_A)
    assert ((before.number[old] - new.number).abs() >= 5).all()


def test_substitution_pairs_of_test_are_never_trained_on():
    (seen, n_seen), (held, n_held) = (imaging.substituents(held_out=flag) for flag in (False, True))
    for z in range(1, 119):
        a, b = set(seen[z, : n_seen[z]]), set(held[z, : n_held[z]])
        assert a
        assert b
        assert not a & b
        assert a | b == {s for s in imaging.SUBSTITUENTS if abs(s - z) >= 5}
        for other in b & set(range(1, 119)):
            assert z not in seen[other, : n_seen[other]]  # nor the other way round
    assert n_held.sum() / (n_held.sum() + n_seen.sum()) == pytest.approx(0.2, abs=0.03)
    _, after = inserted(PEROVSKITE, "substitution", held_out=True, size=100)
    assert set(after.number[-100:].int().tolist()) <= set().union(*(set(held[z, : n_held[z]]) for z in (8, 22, 38)))


def test_interstitial_stands_in_the_gap():
    before, after = inserted(CUBIC, "interstitial", size=50)
    assert len(after.image) == len(before.image) + 50
    new = after.where(torch.arange(len(after.image)) >= len(before.image))
    assert (new.number == 29).all()
    assert ((new.atoms >= 5) & (new.atoms <= 10)).all()
    nearest = [
        (before.position_A[before.image == i] - p).norm(dim=1).min()
        for i, p in zip(new.image, new.position_A, strict=True)
    ]
    # The widest gap of a square lattice of 3.6 Å is 2.55 Å from its corners; 48 random places come near it.
    assert max(nearest) <= 3.6 / 2**0.5 + 1e-4
    assert np.mean(nearest) > 2.2


def fault(host, *, row, twin, half=True):
    """Columns before and after a fault along a row of the projected lattice, through p0, and that row, Å."""
    u = torch.full((1, imaging._DRAWS), 0.5)
    u[0, :2] = torch.tensor([0.55, 0.45])
    u[0, 4:7] = 0.9 - 0.8 * torch.tensor([row == 1, twin, half]).float()
    lattice, axis = torch.as_tensor(host[2])[None], torch.tensor([ZONE_AXES.index((0, 0, 1))])
    along = imaging.projected_lattice(lattice, axis)[1][0, row].float()
    return *inserted(host, "planar_fault", u=u), (u[0, :2] - 0.5) * 6.4, along


def inner(positions):
    """Positions well inside of the frame, sorted, to compare as sets."""
    return sorted((p for p in positions.tolist() if max(map(abs, p)) < 6), key=lambda p: (round(p[0], 2), p[1]))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("half", [True, False])
def test_antiphase_fault_glides_the_far_half(row, half):
    before, after, p0, along = fault(CUBIC, row=row, twin=False, half=half)
    assert along.abs().sum() == pytest.approx(3.6)
    normal = torch.stack([-along[1], along[0]])

    def beyond(p):
        return (p - p0) @ normal > 0

    moved = before.position_A + along * (1 / 2 if half else 1 / 3)
    expected = torch.cat([before.position_A[~beyond(before.position_A)], moved[beyond(moved)]])
    np.testing.assert_allclose(inner(after.position_A), inner(expected), atol=1e-4)
    assert len(inner(after.position_A)) >= 9


@pytest.mark.parametrize("row", [0, 1])
def test_twin_mirrors_the_crystal_in_its_boundary(row):
    before, after, p0, along = fault(TRICLINIC, row=row, twin=True)
    unit = along / along.norm()
    normal = torch.stack([-unit[1], unit[0]])
    far = (after.position_A - p0) @ normal > 0
    assert 0.2 < far.float().mean() < 0.8
    kept = before.position_A[(before.position_A - p0) @ normal <= 0]
    np.testing.assert_allclose(inner(after.position_A[~far]), inner(kept), atol=1e-4)
    mirrored = after.position_A[far] - 2 * ((after.position_A[far] - p0) @ normal)[:, None] * normal
    distance = torch.cdist(
        torch.tensor(inner(mirrored)), before.position_A, compute_mode="donot_use_mm_for_euclid_dist"
    ).amin(1)
    assert distance.max() < 1e-4  # every site beyond is the mirror image of one of the crystal's


def test_visibility_by_hand():
    """All 180 electrons of a single column missing, under Poisson noise: √(2 · 180) standard deviations."""
    host = Structures.pack([ONE_ATOM])
    one = Optics(thickness_nm=(3.6, 3.6), dose_e_A2=(1e3, 1e3), drift_A=0.0, jitter_A=0.0, axes=1)
    for i in range(400):  # until the column stands in the frame, and loses all its atoms
        made = imaging.defect_images(host, [0], [1], [imaging.view_seed(0, 0, "mp-1", i)], optics=one, held_out=False)
        if made.visibility > 18.9:
            assert made.visibility.item() == pytest.approx((2 * 180) ** 0.5, rel=0.01)
            assert made.contrast.item() == pytest.approx(1, abs=0.01)
            return
    pytest.fail("no view of 400 shows the column")


def test_defects_are_mostly_visible(hosts):
    n = 40
    rows = np.tile(np.repeat(np.arange(4), 5), n // 4)
    kinds = np.tile(np.arange(5), n)
    key = [imaging.view_seed(0, 0, f"mp-{r}", i // 20) for i, r in enumerate(rows)]
    made = imaging.defect_images(hosts, rows, kinds, key, optics=Optics(image_px=32, pixel_A=0.4), held_out=False)
    seen = (made.contrast >= imaging.MIN_CONTRAST).numpy()
    assert not seen[kinds == 0].any()
    for kind in range(1, 5):
        assert seen[kinds == kind].mean() > 0.8, DEFECTS[kind]


def test_a_frame_without_atoms_takes_any_defect():
    host = Structures.pack([(np.array([3]), np.zeros((1, 3)), np.diag([90.0, 90.0, 90.0]))])
    made = imaging.defect_images(host, [0] * 5, range(5), keys(5), optics=Optics(image_px=16, axes=1), held_out=False)
    assert torch.isfinite(made.images).all()
    assert torch.isfinite(made.visibility).all()


def test_columns_add_and_select():
    one = Columns(*(torch.zeros(1) for _ in range(3)), torch.zeros(1, 2), torch.ones(1))
    assert (one + one).atoms.tolist() == [1, 1]
    assert (one + one).where(torch.tensor([True, False])).position_A.shape == (1, 2)


# What does not repeat


def test_a_perfect_crystal_leaves_nothing():
    image = imaging.standardise(picture(PEROVSKITE, Optics(), rotation=[0.3])[None])
    rest = imaging.aperiodic(image, pixel_A=0.2)
    assert rest.shape == image.shape
    assert rest.abs().mean() < 0.03  # of a standard deviation: interpolation


def test_a_missing_column_is_what_remains():
    before, after = inserted(CUBIC, "vacancy")
    v = view(1, thickness_A=[36.0])
    images = imaging.expose(after, v, optics=Optics())
    rest = imaging.aperiodic(imaging.standardise(images), pixel_A=0.2)[0, 0]
    row, column = divmod(int(rest.argmin()), 64)
    lost = before.position_A[before.atoms > after.atoms][0]
    found = (torch.tensor([row, column]) - 31.5) * 0.2
    assert (found - lost).norm() < 0.3
    assert rest.min() < -0.5
    assert rest.max() < -0.5 * rest.min()  # ghosts are fainter


def test_what_does_not_repeat_does_not_depend_on_the_batch(hosts):
    images = imaging.render(hosts, [0, 1, 2, 3], keys(4), optics=Optics(image_px=32))
    together = imaging.aperiodic(images, pixel_A=0.2)
    alone = imaging.aperiodic(images[2:3], pixel_A=0.2)
    torch.testing.assert_close(
        together[2:3], alone, rtol=1e-4, atol=1e-4
    )  # one FFT of many rounds as the processor likes


def test_an_empty_image_stays_empty():
    assert imaging.aperiodic(torch.zeros(1, 1, 32, 32), pixel_A=0.2).abs().max() == 0
