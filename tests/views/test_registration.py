import math

import numpy as np
import pytest
import torch
from frames import PEROVSKITE, TRICLINIC, ZINCBLENDE, keys, view

from matalign.data.structures import Structures
from matalign.views import anomalies, micrographs, references, registration
from matalign.views.micrographs import ZONE_AXES, Optics

HOSTS = Structures.pack([PEROVSKITE, ZINCBLENDE, TRICLINIC])
PX, PIXEL_A = 48, 0.25
AXIS = ZONE_AXES.index((1, 1, 0))


def shots(pixel_A=PIXEL_A, *, hosts=(0, 1, 2), counts=True, noisy=False, change=None, seed=0, **values):
    """Views of hosts, standardised; `change` edits the columns before they are exposed."""
    size = len(hosts)
    optics = Optics(image_px=PX, pixel_A=pixel_A, jitter_A=0.0)
    given = {
        "axis": [AXIS] * size,
        "rotation": [0.3 + 0.9 * i for i in range(size)],
        "shift_A": [[0.4, -0.7]] * size,
        "thickness_A": [50.0] * size,
        "dose_e_A2": [1e4] * size,
        "probe_sigma_A": [0.52] * size,
    }
    v = view(size, px=PX, **given | values)
    sites = micrographs.project(HOSTS, hosts, v, optics=optics)
    expected = micrographs.expose(change(sites) if change else sites, v, optics=optics)
    seen = micrographs.detect(expected, keys(size, seed=seed)) if noisy else expected
    return micrographs.standardise(micrographs.stabilise(seen) if counts else seen), v


def look(images, hosts=(0, 1, 2), *, pixel_A=PIXEL_A, **options):
    refs = references.references(HOSTS, hosts, [AXIS] * len(hosts))
    return registration.register(images, refs, np.arange(len(hosts)), pixel_A=pixel_A, **options)


def lattice_A(axis=AXIS, hosts=(0, 1, 2)):
    return micrographs.projected_lattice(torch.as_tensor(HOSTS.lattice[list(hosts)]), torch.full((len(hosts),), axis))


def test_reference_is_the_renderers_picture():
    images, _ = shots()
    found = look(images)
    assert (found.correlation > 0.999).all()
    assert ((found.reference * images).mean((1, 2, 3)) > 0.999).all()
    torch.testing.assert_close(found.gain, torch.ones(3), atol=2e-3, rtol=0)


def test_triclinic_crystal_is_found_where_it_was_put():
    """It has no symmetry, so rotation and shift are unique but for lattice vectors."""
    images, v = shots(PIXEL_A * 1.02, noisy=True)
    found = look(images)
    turned = (found.rotation - v.rotation)[2].item()
    assert abs((turned + math.pi) % (2 * math.pi) - math.pi) < math.radians(0.5)
    _, basis, _ = lattice_A()
    cos, sin = v.rotation[2].cos(), v.rotation[2].sin()
    turn = torch.tensor([[cos, sin], [-sin, cos]]).double()
    cells = (found.shift_A - v.shift_A)[2].double() @ torch.linalg.inv(basis[2] @ turn)
    assert (((cells - cells.round()) @ basis[2]).abs() < 0.1).all()
    torch.testing.assert_close(found.pixel_A, torch.full((3,), PIXEL_A * 1.02), rtol=5e-3, atol=0)


def test_drift_and_probe_are_found():
    drift = [[0.3, -0.2]] * 3
    images, _ = shots(drift_A=drift, probe_sigma_A=[0.62] * 3)
    found = look(images)
    assert (found.correlation > 0.997).all()
    torch.testing.assert_close(found.drift_A, torch.tensor(drift), atol=0.05, rtol=0)
    assert ((found.blur_A2 - (0.62**2 - 0.52**2)).abs() < 0.08).all()


def test_unknown_scale_and_zone_axis_are_found():
    images, _ = shots(0.19, noisy=True)
    refs = references.low_index(HOSTS, 2)
    found = registration.register(images[2:], refs, np.arange(len(refs))[None], pixel_A=(0.1, 0.6))
    assert refs.axis[found.choice.item()] == AXIS
    assert abs(found.pixel_A.item() - 0.19) < 4 * found.pixel_error.item() * 0.19 + 1e-4
    assert found.pixel_error.item() < 0.01


def test_gain_and_offset_by_hand():
    images, _ = shots(hosts=[1])
    once, twice = look(images, [1]), look(3 * images - 7, [1])
    torch.testing.assert_close(twice.gain, 3 * once.gain, rtol=1e-4, atol=0)
    assert twice.offset.item() == pytest.approx(-7, abs=1e-4)
    torch.testing.assert_close(twice.residual, 3 * once.residual, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        twice.gain[:, None, None, None] * twice.reference + twice.offset[:, None, None, None] + twice.residual,
        3 * images - 7,
    )


def test_wrong_crystal_correlates_less():
    images, _ = shots(noisy=True)
    assert (look(images).correlation > look(images.roll(1, 0)).correlation + 0.1).all()


def test_cubic_crystal_has_three_axes_that_look_different():
    refs = references.low_index(HOSTS, 0)
    assert [ZONE_AXES[a] for a in refs.axis] == [(1, 0, 0), (1, 1, 0), (1, 1, 1)]
    assert len(references.low_index(HOSTS, 2)) == 13


def test_image_is_registered_the_same_in_any_company():
    images, _ = shots(noisy=True)
    together, alone = look(images), look(images[1:2], [1])
    torch.testing.assert_close(together.correlation[1:2], alone.correlation, rtol=1e-4, atol=0)
    torch.testing.assert_close(together.residual[1:2], alone.residual, rtol=0, atol=0.02)


@pytest.mark.parametrize("sign", [-1, 1])
def test_column_that_is_missing_or_brighter_is_the_strongest_anomaly(sign):
    where = {}

    def change(sites):
        heavy = (sites.number == 38) & (sites.image == 0)
        first = sites.position_A.norm(dim=1).where(heavy, torch.inf).argmin()
        where["at"] = sites.position_A[first].numpy()
        atoms = sites.atoms.clone()
        atoms[first] *= 0 if sign < 0 else 2
        return micrographs.Columns(sites.image, sites.site, sites.number, sites.position_A, atoms)

    images, _ = shots(hosts=[0], noisy=True, change=change)
    refs = references.references(HOSTS, [0], [AXIS])
    found = registration.register(images, refs, [0], pixel_A=PIXEL_A)
    first = anomalies.anomalies(found, refs, [0], HOSTS)[0][0]
    assert first.kind == ("missing" if sign < 0 else "brighter")
    assert np.hypot(first.down_A - where["at"][0], first.right_A - where["at"][1]) < 0.4
    assert first.column.startswith("Sr")
    assert first.contrast * sign > 0
    pristine = look(shots(hosts=[0], noisy=True)[0], [0])
    assert anomalies.score(found) > 3 * anomalies.score(pristine)


def test_pristine_crystals_have_hardly_any_candidates():
    """By `anomalies.CHANCE` one of 24, were noise Gaussian and the probe exactly the image's; five have one."""
    refs = references.references(HOSTS, [0, 1, 2], [AXIS] * 3)
    counts = []
    for seed in range(8):
        images, _ = shots(noisy=True, seed=seed)
        found = registration.register(images, refs, [0, 1, 2], pixel_A=PIXEL_A)
        counts += [len(each) for each in anomalies.anomalies(found, refs, [0, 1, 2], HOSTS)]
    assert np.count_nonzero(counts) <= 8, counts
    assert max(counts) <= 2


def test_columns_stand_where_the_renderer_puts_them():
    images, v = shots(drift_A=[[0.3, -0.2]] * 3)
    refs = references.references(HOSTS, [0, 1, 2], [AXIS] * 3)
    found = registration.register(images, refs, [0, 1, 2], pixel_A=PIXEL_A)
    optics = Optics(image_px=PX, pixel_A=PIXEL_A, margin_A=0.0)
    drawn = micrographs.project(HOSTS, [0, 1, 2], v, optics=optics)
    for i in range(3):
        sites, _ = anomalies.columns(found, i, refs, i, HOSTS)
        heaviest = drawn.number[drawn.image == i].max()
        for position in drawn.position_A[(drawn.image == i) & (drawn.number == heaviest)].numpy():
            assert np.hypot(*(sites - position).T).min() < 0.15
