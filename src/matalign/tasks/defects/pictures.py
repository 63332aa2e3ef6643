"""What should be there, as a picture: micrographs registered with a pristine crystal, their own or a wrong one."""

import numpy as np
import torch
from torch import Tensor

from matalign.data.structures import Structures
from matalign.views import references, registration
from matalign.views.defect_images import DefectImages
from matalign.views.micrographs import ZONE_AXES, Optics, by_repeat, expose, project, stabilise, standardise

# The host's own, with the view found; another host's, or its composition in a wrong structure; its own along a wrong
# axis, or along that of all axes which fits best; its own in the true view: the upper bound.
REFERENCES = ("own", "other", "wrong_structure", "wrong_axis", "unknown_axis", "true_view")
CALIBRATION = 0.03  # a pixel size is off by at most so much
ALIKE = 0.999  # correlation of two axes' power over spatial frequency from which they cannot be told
RINGS = np.linspace(0, references.FINEST, 64)  # 1/Å


def beside(
    made: DefectImages, structures: Structures, row: np.ndarray, host: np.ndarray, reference: str, *, optics: Optics
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference and residual of each image.

    Args:
        structures: crystals that hosts are taken for.
        row: (n,) which of them each host is taken for.
        host: (B,) of each image.
        reference: one of `REFERENCES`; it says which zone axes are tried.

    Returns:
        (B, 2, px, px) picture of a pristine crystal, of zero mean and unit variance, and what it leaves of the image;
        (B,) zone axis that is taken; (B, 2) whether that shows what the true one does, and the share that do of those
        tried.
    """
    axis, images = made.view.axis.cpu().numpy(), np.arange(len(host))
    if reference == "true_view":
        pristine = expose(project(structures, row[host], made.view, optics=optics), made.view, optics=optics)
        picture = standardise(stabilise(pristine))
        left = made.images - (made.images * picture).mean((1, 2, 3), keepdim=True) * picture
        return torch.cat([picture, left], dim=1), made.view.axis, torch.ones(len(host), 2)
    rows, which = np.unique(row[host], return_inverse=True)
    crystals, tried, same = structures.take(rows), axis[:, None], np.arange(len(ZONE_AXES)) == axis[:, None]
    if reference in ("wrong_axis", "unknown_axis"):
        order, same = by_repeat(crystals.lattice)[which], alike(crystals)[which, axis]
        wrong = ~np.take_along_axis(same, order, axis=1)
        tried = order[:, : optics.axes] if reference == "unknown_axis" else order[images, wrong.argmax(1)][:, None]
    pairs, index = np.unique(which[:, None] * len(ZONE_AXES) + tried, return_inverse=True)
    refs = references.references(crystals, pairs // len(ZONE_AXES), pairs % len(ZONE_AXES), optics=optics)
    found = registration.register(
        made.images, refs, index.reshape(tried.shape), pixel_A=optics.pixel_A, tolerance=CALIBRATION
    )
    taken, fits = tried[images, found.choice.cpu().numpy()], np.take_along_axis(same, tried, axis=1)
    right = np.stack([same[images, taken], fits.mean(1)], axis=1)
    return torch.cat([found.reference, found.residual], dim=1), torch.as_tensor(taken), torch.as_tensor(right).float()


def alike(structures: Structures) -> np.ndarray:
    """(n, 13, 13) which zone axes of a crystal show pictures of the same power at all spatial frequencies."""
    n, axes = len(structures), len(ZONE_AXES)
    refs = references.references(structures, np.repeat(np.arange(n), axes), np.tile(np.arange(axes), n))
    ring = np.exp(-(((np.linalg.norm(refs.wave, axis=1)[:, None] - RINGS) / RINGS[1]) ** 2) / 2)
    power = np.add.reduceat(np.abs(refs.coefficient[:, None]) ** 2 * ring, refs.ptr[:-1]).reshape(n, axes, -1)
    unit = power / np.linalg.norm(power, axis=2, keepdims=True)
    return unit @ unit.transpose(0, 2, 1) > ALIKE
