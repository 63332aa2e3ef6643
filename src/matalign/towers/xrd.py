"""Powder X-ray diffraction: the pattern of a crystal in Cu Kα, simulated at curation, and a small 1-D network on it.

A pattern is intensity over 2θ, 10° to 90° in steps of 0.1°; each reflection is a Gaussian 0.3° wide (full width at half
maximum, a good laboratory instrument), the strongest point of the pattern is 1. It is kinematic (pymatgen's
`XRDCalculator`, at the mean wavelength of 1.54184 Å): structure factors, multiplicities, Lorentz and polarisation
factors; no thermal motion, no absorption, no splitting of Kα. What differs from one measurement to the next is drawn
when a pattern is shown: zero shift, width (that of small grains, but the same at all angles), uneven intensities
(texture), background and counting noise.
"""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16
from torch import Tensor, nn

from matalign.config import Pretrain
from matalign.data.dataset import Curated

TWO_THETA_DEG = np.linspace(10, 90, 801)
STEP_DEG = 0.1
FWHM_DEG = 0.3  # at curation
GAUSSIAN = math.sqrt(8 * math.log(2))  # full width at half maximum over standard deviation

WIDEST_DEG = 0.6  # FWHM when shown, from 0.3°; by Scherrer's equation grains of 16 nm, at 2θ = 30°
ZERO_SHIFT_DEG = 0.1  # at most, to either side
TEXTURE = 0.2  # standard deviation of the logarithm of intensity, independent every 2°
BACKGROUND = 0.05  # at most, of the strongest reflection
COUNTS = (1e3, 1e5)  # at the strongest point


def curate(numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray) -> Float16[np.ndarray, " two_theta"]:
    """(801,) intensities, the strongest 1: the powder pattern of a crystal, on `TWO_THETA_DEG`.

    Args:
        numbers: (n,) atomic numbers.
        frac_coords: (n, 3).
        lattice: (3, 3) rows are vectors, Å.

    Raises:
        ValueError: no reflection in the range, or an element without scattering factors.
    """
    from pymatgen.analysis.diffraction.xrd import XRDCalculator
    from pymatgen.core import Structure

    crystal = Structure(lattice, numbers.tolist(), frac_coords)
    low, high = TWO_THETA_DEG[[0, -1]]
    # a degree more on either side, for the tails of reflections outside
    lines = XRDCalculator("CuKa").get_pattern(crystal, scaled=False, two_theta_range=(low - 1, high + 1))
    if not ((low <= lines.x) & (lines.x <= high)).any():
        raise ValueError(f"no reflection between {low:g}° and {high:g}°")
    away = (TWO_THETA_DEG[:, None] - lines.x) / FWHM_DEG
    pattern = np.exp(-0.5 * (GAUSSIAN * away) ** 2) @ lines.y
    return (pattern / pattern.max()).astype(np.float16)


def measured(patterns: Float[Tensor, "n two_theta"], keys: np.ndarray) -> Float[Tensor, "n two_theta"]:
    """Patterns as a diffractometer, its draws by keys (n,), would record them: root of intensity, strongest about 1."""
    points, knots = len(TWO_THETA_DEG), len(TWO_THETA_DEG) // 20 + 1
    draws = [torch.Generator().manual_seed(int(key)) for key in keys]
    u = torch.stack([torch.rand(4, generator=g) for g in draws]).to(patterns.device)
    normal = torch.stack([torch.randn(knots + points, generator=g) for g in draws]).to(patterns.device)
    width, shift, background, counts = u.unsqueeze(-1).unbind(1)  # (n, 1) each

    # wider and shifted: a product in Fourier space, with room for what is shifted out
    variance = ((FWHM_DEG + (WIDEST_DEG - FWHM_DEG) * width) ** 2 - FWHM_DEG**2) / GAUSSIAN**2  # degrees²
    shift = ZERO_SHIFT_DEG * (2 * shift - 1)
    room = points + 99
    frequency = 2 * math.pi * torch.fft.rfftfreq(room, STEP_DEG, device=patterns.device)
    factor = torch.polar(torch.exp(-0.5 * variance * frequency**2), -shift * frequency)
    x = torch.fft.irfft(torch.fft.rfft(patterns, room) * factor, room)[:, :points]

    texture = F.interpolate(normal[:, None, :knots], points, mode="linear", align_corners=True)[:, 0]
    x = x.clamp(min=0) * torch.exp(TEXTURE * texture)
    x = x / x.amax(1, keepdim=True) + BACKGROUND * background
    counts = COUNTS[0] * (COUNTS[1] / COUNTS[0]) ** counts
    return (x + (x / counts).sqrt() * normal[:, knots:]).clamp(min=0).sqrt()


class XRDTower(nn.Module):
    """Five convolutions, each of half the points of the one before, then a linear layer that knows where a line is."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, channels, points = 128, [1, 16, 32, 64, 64, 64], len(TWO_THETA_DEG)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv1d(before, after, 7, stride=2, padding=3, bias=False), nn.GroupNorm(8, after), nn.GELU()]
            points = (points + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(channels[-1] * points, self.dim), nn.GELU())

    def forward(self, patterns: Float[Tensor, "n two_theta"]) -> tuple[Float[Tensor, "n dim"], dict[str, Tensor]]:
        """Features (n, dim) of patterns from `measured`, and `map` (n, 64, 26), the last convolution's."""
        x = self.convolutions(patterns[:, None])
        return self.out(x), {"map": x}


def build(cfg: Pretrain, *, initialise: bool = True) -> XRDTower:
    """The tower; its weights are random either way."""
    return XRDTower()


class Inputs:
    """A material shows its pattern, as measured anew each time."""

    def __init__(self, cfg: Pretrain, curated: Curated, tower: nn.Module, device: torch.device) -> None:
        patterns = curated.extra("xrd")
        self.has = np.isfinite(patterns).all(1)
        self.patterns, self.device = torch.from_numpy(patterns), device

    def __call__(self, rows: np.ndarray, keys: np.ndarray) -> Float[Tensor, "n two_theta"]:
        """(n, 801) square roots of intensity."""
        return measured(self.patterns[rows].to(self.device).float(), keys)
