import dataclasses

import numpy as np
import pytest
import torch
from frames import CUBIC, ONE_ATOM, PEROVSKITE, TRICLINIC, ZINCBLENDE, keys, picture, view

from matalign.data.dataset import Structures
from matalign.views import defect_images, draws, micrographs
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import ZONE_AXES, Columns, Optics, View


@pytest.fixture(scope="module")
def hosts():
    return Structures.pack([TRICLINIC, PEROVSKITE, CUBIC, ZINCBLENDE])


def defects(hosts, kinds, *, row=0, held_out=False, seed=0, **optics):
    rows = np.full(len(kinds), row)
    key = [draws.view_seed(seed, 0, f"mp-{row}", 0)] * len(kinds)
    return defect_images.render(hosts, rows, kinds, key, optics=Optics(image_px=32, **optics), held_out=held_out)


def test_kinds_of_one_key_share_their_view(hosts):
    made = defects(hosts, range(5), row=1)
    for field in dataclasses.fields(View):
        values = getattr(made.view, field.name)
        assert (values == values[:1]).all(), field.name
    assert made.kinds.tolist() == [0, 1, 2, 3, 4]
    assert len({image.numpy().tobytes() for image in made.images}) == 5


def test_a_defect_image_depends_on_its_host_kind_and_key_alone(hosts):
    together = defect_images.render(
        hosts, [0, 1, 2, 3], [4, 1, 2, 3], keys(4), optics=Optics(image_px=32), held_out=False
    )
    for i, kind in enumerate([4, 1, 2, 3]):
        alone = defect_images.render(hosts, [i], [kind], keys(4)[i : i + 1], optics=Optics(image_px=32), held_out=False)
        assert torch.equal(alone.images[0], together.images[i])
        assert alone.visibility[0] == together.visibility[i]


def test_pristine_images_are_the_ordinary_ones_up_to_noise(hosts):
    made = defects(hosts, [0], row=1, dose_e_A2=(1e8, 1e8))
    key = [draws.view_seed(0, 0, "mp-1", 0)]
    plain = micrographs.render(hosts, [1], key, optics=Optics(image_px=32, dose_e_A2=(1e8, 1e8)))
    torch.testing.assert_close(made.images, plain, atol=0.1, rtol=0)
    assert made.contrast.item() == made.visibility.item() == 0


def inserted(host, kind, *, u=None, held_out=False, size=1):
    """Columns before and after one attempt at a defect, ten atoms to a site, 64 px of 0.2 Å."""
    structures, optics = Structures.pack([host]), Optics()
    v = view(size, thickness_A=[10 * float(np.linalg.norm(host[2][2]))] * size)
    rows = np.zeros(size, dtype=int)
    before = micrographs.project(structures, rows, v, optics=optics)
    if u is None:
        u = torch.as_tensor(draws.uniforms(np.arange(size), defect_images._DRAWS), dtype=torch.float32)
    kinds = np.full(size, DEFECTS.index(kind))
    after = defect_images._insert(before, structures, rows, kinds, v, u, optics=optics, held_out=held_out)
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
    (seen, n_seen), (held, n_held) = (defect_images.substituents(held_out=flag) for flag in (False, True))
    for z in range(1, 119):
        a, b = set(seen[z, : n_seen[z]]), set(held[z, : n_held[z]])
        assert a
        assert b
        assert not a & b
        assert a | b == {s for s in defect_images.SUBSTITUENTS if abs(s - z) >= 5}
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
    u = torch.full((1, defect_images._DRAWS), 0.5)
    u[0, :2] = torch.tensor([0.55, 0.45])
    u[0, 4:7] = 0.9 - 0.8 * torch.tensor([row == 1, twin, half]).float()
    lattice, axis = torch.as_tensor(host[2])[None], torch.tensor([ZONE_AXES.index((0, 0, 1))])
    along = micrographs.projected_lattice(lattice, axis)[1][0, row].float()
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
        made = defect_images.render(host, [0], [1], [draws.view_seed(0, 0, "mp-1", i)], optics=one, held_out=False)
        if made.visibility > 18.9:
            assert made.visibility.item() == pytest.approx((2 * 180) ** 0.5, rel=0.01)
            assert made.contrast.item() == pytest.approx(1, abs=0.01)
            return
    pytest.fail("no view of 400 shows the column")


def test_defects_are_mostly_visible(hosts):
    n = 40
    rows = np.tile(np.repeat(np.arange(4), 5), n // 4)
    kinds = np.tile(np.arange(5), n)
    key = [draws.view_seed(0, 0, f"mp-{r}", i // 20) for i, r in enumerate(rows)]
    made = defect_images.render(hosts, rows, kinds, key, optics=Optics(image_px=32, pixel_A=0.4), held_out=False)
    seen = (made.contrast >= defect_images.MIN_CONTRAST).numpy()
    assert not seen[kinds == 0].any()
    for kind in range(1, 5):
        assert seen[kinds == kind].mean() > 0.8, DEFECTS[kind]


def test_a_frame_without_atoms_takes_any_defect():
    host = Structures.pack([(np.array([3]), np.zeros((1, 3)), np.diag([90.0, 90.0, 90.0]))])
    made = defect_images.render(host, [0] * 5, range(5), keys(5), optics=Optics(image_px=16, axes=1), held_out=False)
    assert torch.isfinite(made.images).all()
    assert torch.isfinite(made.visibility).all()


def test_columns_add_and_select():
    one = Columns(*(torch.zeros(1) for _ in range(3)), torch.zeros(1, 2), torch.ones(1))
    assert (one + one).atoms.tolist() == [1, 1]
    assert (one + one).where(torch.tensor([True, False])).position_A.shape == (1, 2)


# What does not repeat


def test_a_perfect_crystal_leaves_nothing():
    image = micrographs.standardise(picture(PEROVSKITE, Optics(), rotation=[0.3])[None])
    rest = defect_images.aperiodic(image, pixel_A=0.2)
    assert rest.shape == image.shape
    assert rest.abs().mean() < 0.03  # of a standard deviation: interpolation


def test_a_missing_column_is_what_remains():
    before, after = inserted(CUBIC, "vacancy")
    v = view(1, thickness_A=[36.0])
    images = micrographs.expose(after, v, optics=Optics())
    rest = defect_images.aperiodic(micrographs.standardise(images), pixel_A=0.2)[0, 0]
    row, column = divmod(int(rest.argmin()), 64)
    lost = before.position_A[before.atoms > after.atoms][0]
    found = (torch.tensor([row, column]) - 31.5) * 0.2
    assert (found - lost).norm() < 0.3
    assert rest.min() < -0.5
    assert rest.max() < -0.5 * rest.min()  # ghosts are fainter


def test_what_does_not_repeat_does_not_depend_on_the_batch(hosts):
    images = micrographs.render(hosts, [0, 1, 2, 3], keys(4), optics=Optics(image_px=32))
    together = defect_images.aperiodic(images, pixel_A=0.2)
    alone = defect_images.aperiodic(images[2:3], pixel_A=0.2)
    torch.testing.assert_close(
        together[2:3], alone, rtol=1e-4, atol=1e-4
    )  # one FFT of many rounds as the processor likes


def test_an_empty_image_stays_empty():
    assert defect_images.aperiodic(torch.zeros(1, 1, 32, 32), pixel_A=0.2).abs().max() == 0
