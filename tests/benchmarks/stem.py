"""Compare the renderer with jarvis-tools' STEMConv, in pictures and in pictures a second.

Twenty crystals along [001] at STEMConv's own settings (Z^1.7, Gaussian and Lorentzian widths 0.5 Å, ratio 0.5, 0.2 Å
pixels), without noise. STEMConv leaves out atoms more than 0.6 Å outside the frame, whose tails would still reach into
it: the columns give the correlation with that rule copied, and with every atom drawn. It also counts atoms of one
element that project onto the same point once (an indexed assignment), which is all that tells its CaF2 from ours.
"""

import numpy as np
import torch
from benchmarks.comparison import Settings, alternate, rates
from jarvis.analysis.stem.convolution_apprx import STEMConv
from jarvis.core.atoms import Atoms

from matalign.data.dataset import Structures
from matalign.views.micrographs import ZONE_AXES, Optics, View, expose, project

SYMBOLS = {3: "Li", 6: "C", 8: "O", 9: "F", 11: "Na", 12: "Mg", 13: "Al", 14: "Si", 16: "S", 17: "Cl", 20: "Ca"}
SYMBOLS |= {22: "Ti", 26: "Fe", 29: "Cu", 30: "Zn", 31: "Ga", 33: "As", 38: "Sr", 42: "Mo", 50: "Sn", 55: "Cs"}
SYMBOLS |= {56: "Ba", 74: "W", 79: "Au", 82: "Pb"}
REPEATS = 5
BATCH = 13  # of the twenty, drawn at once by ours; STEMConv draws one picture at a time, whatever their number
FACE = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]


def centred(*points):
    """Points repeated over the four corners of a face-centred cell."""
    return [tuple(np.add(p, c) % 1) for p in points for c in FACE]


def crystals():
    """Name and (numbers, frac_coords, lattice) of twenty crystals whose third lattice vector is along z."""
    box = np.diag
    hexagonal = lambda a, c: np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]])  # noqa: E731
    fcc, rocksalt = centred((0, 0, 0)), centred((0, 0, 0), (0.5, 0.5, 0.5))
    zincblende = centred((0, 0, 0), (0.25, 0.25, 0.25))
    fluorite = centred((0, 0, 0), (0.25, 0.25, 0.25), (0.75, 0.75, 0.75))
    bcc = [(0, 0, 0), (0.5, 0.5, 0.5)]
    hcp = [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)]
    wurtzite = [(1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0.5), (1 / 3, 2 / 3, 0.382), (2 / 3, 1 / 3, 0.882)]
    perovskite = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    rutile = [(0, 0, 0), (0.5, 0.5, 0.5)]
    rutile += [(0.305, 0.305, 0), (0.695, 0.695, 0), (0.805, 0.195, 0.5), (0.195, 0.805, 0.5)]
    layer = [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.75)]
    layer += [(1 / 3, 2 / 3, 0.62), (1 / 3, 2 / 3, 0.88), (2 / 3, 1 / 3, 0.12), (2 / 3, 1 / 3, 0.38)]
    table = [
        ("Cu", [29] * 4, fcc, box([3.61] * 3)),
        ("Au", [79] * 4, fcc, box([4.08] * 3)),
        ("Al", [13] * 4, fcc, box([4.05] * 3)),
        ("W", [74] * 2, bcc, box([3.16] * 3)),
        ("Fe", [26] * 2, bcc, box([2.87] * 3)),
        ("NaCl", [11] * 4 + [17] * 4, rocksalt, box([5.64] * 3)),
        ("MgO", [12] * 4 + [8] * 4, rocksalt, box([4.21] * 3)),
        ("CsCl", [55, 17], bcc, box([4.12] * 3)),
        ("Si", [14] * 8, zincblende, box([5.43] * 3)),
        ("GaAs", [31] * 4 + [33] * 4, zincblende, box([5.65] * 3)),
        ("ZnS", [30] * 4 + [16] * 4, zincblende, box([5.41] * 3)),
        ("CaF2", [20] * 4 + [9] * 8, fluorite, box([5.46] * 3)),
        ("SrTiO3", [38, 22, 8, 8, 8], perovskite, box([3.905] * 3)),
        ("BaTiO3", [56, 22, 8, 8, 8], perovskite, box([3.99, 3.99, 4.03])),
        ("CaTiO3", [20, 22, 8, 8, 8], perovskite, box([3.83] * 3)),
        ("TiO2", [22, 22, 8, 8, 8, 8], rutile, box([4.59, 4.59, 2.96])),
        ("SnO2", [50, 50, 8, 8, 8, 8], rutile, box([4.74, 4.74, 3.19])),
        ("Mg", [12] * 2, hcp, hexagonal(3.21, 5.21)),
        ("ZnO", [30, 30, 8, 8], wurtzite, hexagonal(3.25, 5.21)),
        ("MoS2", [42, 42, 16, 16, 16, 16], layer, hexagonal(3.16, 12.29)),
    ]
    return [(name, (np.array(z), np.array(x, dtype=float), lattice)) for name, z, x, lattice in table]


def stem(crystal, *, px, pixel_A):
    """STEMConv's picture, (px, px), and the crystal's centroid in its plane, Å."""
    numbers, frac_coords, lattice = crystal
    elements = [SYMBOLS[z] for z in numbers]
    atoms = Atoms(lattice_mat=lattice.tolist(), coords=frac_coords.tolist(), elements=elements, cartesian=False)
    image = STEMConv(output_size=[px, px]).simulate_surface(atoms, px_scale=pixel_A)[0]
    cells = (pixel_A * (px - 1) // np.array(atoms.lattice.abc[:2]) + 1).astype(int) * 3  # of its supercell
    return image, (frac_coords @ lattice).mean(0)[:2] + (cells - 1) / 2 @ lattice[:2, :2]


def still(size, origin_A, *, px):
    """Views along [001], unrotated and without drift, with the cell's origin at (size, 2) Å."""
    zero, ones = torch.zeros(size), torch.ones(size)
    return View(
        axis=torch.full((size,), ZONE_AXES.index((0, 0, 1))),
        rotation=zero,
        shift_A=torch.as_tensor(np.array(origin_A), dtype=torch.float32),
        drift_A=torch.zeros(size, 2),
        thickness_A=ones,
        dose_e_A2=ones,
        probe_sigma_A=0.5 * ones,
        jitter_A=torch.zeros(size, px),
    )


def pictures(table, origin_A, *, px, pixel_A, margin_A):
    """Our noiseless pictures at STEMConv's settings, (n, px, px)."""
    optics = Optics(image_px=px, pixel_A=pixel_A, margin_A=margin_A, jitter_A=0.0)  # straight lines, as STEMConv
    structures, view = Structures.pack([crystal for _, crystal in table]), still(len(table), origin_A, px=px)
    return expose(project(structures, range(len(table)), view, optics=optics), view, optics=optics).numpy()


def correlations(*, px=64, pixel_A=0.2):
    """Name, correlation with STEMConv under its margin, and with every atom drawn, of each crystal."""
    table = crystals()
    theirs, centroid = zip(*(stem(crystal, px=px, pixel_A=pixel_A) for _, crystal in table))

    def correlation(margin_A):
        ours = pictures(table, -np.array(centroid), px=px, pixel_A=pixel_A, margin_A=margin_A)
        return [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs)]

    return list(zip([name for name, _ in table], correlation(0.6), correlation(None)))


def measure(settings: Settings, *, px=64, pixel_A=0.2) -> dict:
    """Pictures a second, ours on one thread and on two (STEMConv has no more than one), and the correlations."""
    table = crystals() * BATCH

    def ours(threads: int) -> None:
        torch.set_num_threads(threads)
        pictures(table, np.zeros((len(table), 2)), px=px, pixel_A=pixel_A, margin_A=None)

    peer = "jarvis STEMConv"
    sides = {"imaging": lambda: ours(1), "imaging, two threads": lambda: ours(2)}
    sides[peer] = lambda: [stem(crystal, px=px, pixel_A=pixel_A) for _, crystal in table]
    seconds = alternate(sides, repeats=REPEATS, desc="stem")
    torch.set_num_threads(1)
    found = correlations(px=px, pixel_A=pixel_A)
    what = f"STEM pictures, {px} px, {len(table)} at once"
    return {
        "correlation": {name: {"same_margin": same, "every_atom": full} for name, same, full in found},
        "comparisons": [
            row
            for side in ("imaging", "imaging, two threads")
            for row in rates(what, "pictures/s", len(table), {s: seconds[s] for s in (side, peer)}, side)
        ],
    }
