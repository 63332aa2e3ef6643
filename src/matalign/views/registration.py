"""Find a crystal in a micrograph: rotation, shift, pixel size and drift at which its picture fits best.

A crystal seen along a zone axis is periodic, so its noiseless picture is a short sum of plane waves,

    r(q) = Σ_G F_G exp(2πi G·q),      q = s · x T Rᵀ + q₀,

where x is a pixel from the image's centre, s the pixel size, T undoes the drift, R turns and q₀ shifts. Then
1. the correlation of an image with r at any angle and pixel size needs the image's spectrum at the turned and scaled G
   alone, and all shifts at once are a small FFT over the crystal's own cell;
2. the best few are correlated exactly within the frame, and refined by Gauss-Newton on angle, pixel size, drift, shift
   and width of the probe together, with gain and offset by least squares. Pixel size and drift have Gaussian priors,
   which keep noise from bending the crystal.

Correlations are normalised (zero mean, unit variance within the frame), so gain and offset do not enter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matalign.views.micrographs import standardise
from matalign.views.references import References

GRID_A = 0.45  # shifts are tried so far apart
DRIFT = 0.025  # standard deviation of drift over the frame's side, before an image has been seen
BUDGET = 2**20  # numbers in a chunk's largest array
BLUR_A2 = 0.15  # standard deviation of the square of the probe's width
STRONG = 96  # waves of a reference that are looked at before any refinement
FEW = 300  # angles and pixel sizes for which all shifts are tried
MOST_STEP = torch.tensor([0.05, 0.03, 0.03, 0.03, 1.0, 1.0, 0.1])  # of the refinement, in its parameters


@dataclass(frozen=True)
class Registration:
    """How B images, and pictures of crystals in them, belong together."""

    correlation: Tensor  # (B,) normalised, of image and reference
    choice: Tensor  # (B,) long, which of an image's references fits best
    rotation: Tensor  # (B,) rad, as a `View`'s
    shift_A: Tensor  # (B, 2) of the cell's origin from the image's centre, as a `View`'s, up to lattice vectors
    drift_A: Tensor  # (B, 2) over the frame, as a `View`'s
    pixel_A: Tensor  # (B,)
    pixel_error: Tensor  # (B,) standard error of the pixel size over the pixel size
    blur_A2: Tensor  # (B,) square of the probe's width less the reference's
    gain: Tensor  # (B,) image = gain · reference + offset + residual
    offset: Tensor  # (B,)
    reference: Tensor  # (B, 1, H, W) picture of the pristine crystal, zero mean, unit variance
    residual: Tensor  # (B, 1, H, W)


@dataclass(frozen=True)
class Waves:
    """References of N problems, padded: coefficients of zero follow the last."""

    wave: Tensor  # (N, P, 2)
    index: Tensor  # (N, P, 2) long
    coefficient: Tensor  # (N, P) complex
    basis: Tensor  # (N, 2, 2)

    def take(self, problems: Tensor) -> "Waves":
        """Of these problems."""
        return Waves(*(getattr(self, field.name)[problems] for field in fields(self)))


def padded(refs: References, which: np.ndarray, device: torch.device | str = "cpu") -> Waves:
    """The waves of these references (N,)."""
    length = np.diff(refs.ptr)[which]
    at = np.arange(max(1, length.max()))
    source = np.minimum(refs.ptr[which][:, None] + at, refs.ptr[-1] - 1)
    coefficient = np.where(at < length[:, None], refs.coefficient[source], 0)
    return Waves(
        torch.as_tensor(refs.wave[source], dtype=torch.float32, device=device),
        torch.as_tensor(refs.index[source], device=device),
        torch.as_tensor(coefficient, dtype=torch.complex64, device=device),
        torch.as_tensor(refs.basis[which], dtype=torch.float32, device=device),
    )


def register(
    images: Tensor,
    refs: References,
    which: Sequence[int] | np.ndarray,
    *,
    pixel_A: float | tuple[float, float],
    tolerance: float = 0.03,
    keep: int = 4,
    steps: int = 4,
) -> Registration:
    """Find crystals in images.

    Args:
        images: (B, 1, H, W), any gain and offset.
        which: (B,) reference of each image, or (B, C) several, of which the best is chosen.
        pixel_A: Å per pixel; or the range that it is looked for in.
        tolerance: relative standard deviation of a pixel size that is given as one number.
    """
    which = np.asarray(which, np.int64)
    which = which[:, None] if which.ndim == 1 else which
    height, width = images.shape[-2:]
    prior = prior_of(pixel_A, tolerance, device=images.device)
    angles, pixels = _grid(pixel_A, tolerance, side=max(height, width))
    size = np.diff(refs.ptr)[which].max(1)
    order, parts = np.argsort(size, kind="stable"), []
    start = 0
    while start < len(order):
        most = 2 * size[order[start:]] * which.shape[1] * max(keep * 8, 4) * (height + width)
        count = max(1, int(np.searchsorted(most * np.arange(1, len(most) + 1), BUDGET)))
        chunk = order[start : start + count]
        x = images[torch.as_tensor(chunk, device=images.device), 0].float()
        parts.append(_register(x, refs, which[chunk], angles, pixels, prior, keep=keep, steps=steps))
        start += count
    back = torch.as_tensor(np.argsort(order), device=images.device)
    return Registration(*(torch.cat(column)[back] for column in zip(*parts, strict=True)))


def prior_of(pixel_A: float | tuple[float, float], tolerance: float, *, device: torch.device) -> Tensor:
    """(2, 7) mean and precision of the parameters: rotation, log pixel size, two of drift, shift (2), blur."""
    known = isinstance(pixel_A, int | float)
    mean = [0.0, math.log(pixel_A) if known else 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    spread = [math.inf, tolerance if known else math.inf, DRIFT, DRIFT, math.inf, math.inf, BLUR_A2]
    return torch.tensor([mean, [1 / s**2 for s in spread]], device=device)


def _grid(pixel_A: float | tuple[float, float], tolerance: float, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles of half a turn, and pixel sizes, to try: a wave of 0.7/Å loses at most a quarter period at the edge."""
    low, high = (pixel_A, pixel_A) if isinstance(pixel_A, int | float) else pixel_A
    step = 1 / (1.4 * side * math.sqrt(low * high))
    reach = math.log(high / low) / 2 + (tolerance if low == high else 0.0)
    pixels = math.sqrt(low * high) * np.exp(step * np.arange(-math.floor(reach / step), math.floor(reach / step) + 1))
    return np.arange(0, math.pi, math.pi / math.ceil(math.pi / step)), pixels


def _register(
    images: Tensor,
    refs: References,
    which: np.ndarray,
    angles: np.ndarray,
    pixels: np.ndarray,
    prior: Tensor,
    *,
    keep: int,
    steps: int,
) -> tuple[Tensor, ...]:
    """`register` of one chunk: images (B, H, W), which (B, C); the fields of a `Registration`."""
    device, (size, choices) = images.device, which.shape
    unit = standardise(images)[:, 0]
    waves = padded(refs, which.ravel(), device)
    grid = np.stack(np.meshgrid(angles, np.log(pixels), indexing="ij"), axis=-1)
    grid = torch.as_tensor(grid, dtype=torch.float32, device=device)
    first = torch.arange(size, device=device)[:, None]

    problem, values = _search(unit, waves, grid, choices=choices, keep=4 * keep)  # (B, M), (B, M, 7)
    flat, image = problem.flatten(), unit[problem.flatten() // choices]
    correlation = correlated(image, waves.take(flat), values.flatten(0, 1))
    best = correlation.view(problem.shape).topk(min(keep, problem.shape[1]), dim=1).indices
    problem, values = problem[first, best], values[first, best]
    flat = problem.flatten()
    fit = refine(unit[flat // choices], waves.take(flat), values.flatten(0, 1), prior, steps=steps)
    best = fit.cost.view(size, -1).argmin(1) + first[:, 0] * problem.shape[1]
    fit = Fit(*(getattr(fit, field.name)[best] for field in fields(Fit)))
    return _result(fit, images, waves.basis[flat[best]], flat[best] % choices)


def spectra(unit: Tensor) -> Tensor:
    """(B, 2, n, n) real and imaginary part of images' conjugate spectra, four times finer; phases from the centre."""
    height, width = unit.shape[1:]
    n = 4 * max(height, width)
    k = torch.fft.fftfreq(n, device=unit.device)
    turn = torch.exp(2j * math.pi * k * (height - 1) / 2)[:, None] * torch.exp(2j * math.pi * k * (width - 1) / 2)
    found = torch.fft.fftshift(torch.fft.fft2(unit, s=(n, n)) * turn, dim=(1, 2))
    return torch.stack([found.real, -found.imag], dim=1) * 2 / (height * width)


def _sampled(spectrum: Tensor, wave: Tensor, place: Tensor) -> Tensor:
    """Spectra (N, c, n, n) at the waves (N, P, 2) of crystals that are turned and scaled by (N, K, 2): (N, c, K, P)."""
    n = spectrum.shape[-1]
    cos, sin = (place[..., 0].cos()[..., None], place[..., 0].sin()[..., None])  # (N, K, 1)
    g1, g2 = wave[:, None].unbind(-1)  # (N, 1, P)
    row, column = cos * g1 - sin * g2, sin * g1 + cos * g2
    at = torch.stack([column, row], dim=-1) * place[..., 1].exp()[..., None, None]  # cycles a pixel
    return F.grid_sample(spectrum, (at * n + n // 2) * 2 / (n - 1) - 1, align_corners=True)


def shifts(spectrum: Tensor, waves: Waves, place: Tensor) -> tuple[Tensor, Tensor]:
    """The best of all shifts at each angle and logarithm of a pixel size, `place` (N, K, 2), of spectra (N, 2, n, n).

    Returns:
        (N, K) correlation, with the reference's variance in the cell for that in the frame; (N, K, 2) q₀ in Å.
    """
    problems, tried = place.shape[:2]
    found = torch.view_as_complex(_sampled(spectrum, waves.wave, place).permute(0, 2, 3, 1).contiguous())
    found = waves.coefficient[:, None] * found
    sides = waves.basis.norm(dim=2).amax(0) / GRID_A
    m1, m2 = (max(8, 2 ** math.ceil(math.log2(side))) for side in (sides[0].item(), sides[1].item()))
    index = waves.index[..., 0] % m1 * m2 + waves.index[..., 1] % m2  # the sum of waves on m1 × m2 points is exact
    cell = found.new_zeros(problems, tried, m1 * m2).scatter_add_(2, index[:, None].expand(-1, tried, -1), found)
    picture = torch.fft.ifft2(cell.view(problems, tried, m1, m2), norm="forward").real
    score, at = picture.flatten(2).max(2)
    step = torch.stack([at // m2 / m1, at % m2 / m2], dim=-1)
    return score, step @ waves.basis


def _search(unit: Tensor, waves: Waves, grid: Tensor, *, choices: int, keep: int) -> tuple[Tensor, Tensor]:
    """(B, M) the most promising references of images (B, H, W), each with `choices`; (B, M, 7) parameters.

    Tried are angles of half a turn and logarithms of pixel sizes, `grid` (A, S, 2), and all shifts.
    """
    size, spectrum = len(unit), spectra(unit)
    strong = replace(waves, **{name: getattr(waves, name)[:, :STRONG] for name in ("wave", "index", "coefficient")})
    turned = torch.stack([grid[..., 0] + math.pi, grid[..., 1]], dim=-1)
    image = torch.arange(size * choices, device=unit.device) // choices
    if grid[..., 0].numel() <= FEW:
        place = torch.cat([grid, turned])
        score, shift = shifts(spectrum[image], strong, place.flatten(0, 1).expand(len(image), -1, -1))
        peak = _peaks(score.view(len(image), *place.shape[:2])).view(size, -1)
        score, at = peak.topk(min(keep, peak.shape[1]), dim=1)
        tried = place[..., 0].numel()
        first = torch.arange(size, device=unit.device)[:, None]
        problem = first * choices + at // tried
        chosen, shift = place.flatten(0, 1)[at % tried], shift.view(size, -1, 2)[first, at]
    else:
        amplitude = spectrum.square().sum(1, keepdim=True).sqrt()
        weight = strong.coefficient.abs()[:, None, None]
        spread = [
            (_sampled(amplitude[image], strong.wave, part.expand(len(image), -1, -1)) * weight).sum((1, 3))
            for part in grid.unbind(1)
        ]
        peak = _peaks(torch.stack(spread, dim=2)).view(size, -1)
        at = peak.topk(min(4 * keep, peak.shape[1]), dim=1).indices
        tried = grid[..., 0].numel()
        first = torch.arange(size, device=unit.device)[:, None]
        problem = first * choices + at // tried
        chosen = torch.stack([part.flatten(0, 1)[at % tried] for part in (grid, turned)], dim=2)  # (B, M, 2, 2)
        score, shift = shifts(
            spectrum[problem.flatten() // choices], strong.take(problem.flatten()), chosen.flatten(0, 1)
        )
        score, side = score.max(1)
        shift = shift[torch.arange(len(side)), side].view(*problem.shape, 2)
        chosen = chosen.flatten(0, 1)[torch.arange(len(side)), side].view(*problem.shape, 2)
        best = score.view(problem.shape).topk(min(keep, problem.shape[1]), dim=1).indices
        problem, chosen, shift = problem[first, best], chosen[first, best], shift[first, best]
    zero = torch.zeros_like(shift)
    return problem, torch.cat([chosen, zero, shift, zero[..., :1]], dim=-1)


def _peaks(score: Tensor) -> Tensor:
    """Scores (N, A, S) where no neighbour is higher, else -inf; angles are a circle."""
    around = torch.cat([score[:, -1:], score, score[:, :1]], dim=1)
    highest = F.max_pool2d(around[:, None], 3, stride=1, padding=(0, 1))[:, 0]
    return torch.where(score == highest, score, -math.inf)


@dataclass(frozen=True)
class Fit:
    """N problems at their parameters."""

    values: Tensor  # (N, 7): rotation, log pixel size, drift of rows and of columns, q₀ (2), blur
    picture: Tensor  # (N, H · W) of the reference, zero mean
    correlation: Tensor  # (N,)
    cost: Tensor  # (N,) twice the negative logarithm of the posterior density
    normal: Tensor  # (N, 7, 7) of the least squares in the parameters, the shift in pixels; gain and offset are free
    gradient: Tensor  # (N, 7)


def pictures(shape: tuple[int, int], waves: Waves, values: Tensor, *, derivatives: bool) -> Tensor:
    """(N, 1, H · W) pictures at parameters (N, 7), or (N, 8, H · W) with their derivatives; zero mean each."""
    rotation, scale, e0, e1 = (column[:, None] for column in values[:, :4].unbind(1))
    cos, sin, scale = rotation.cos(), rotation.sin(), scale.exp()
    g1, g2 = waves.wave.unbind(-1)  # (N, P)
    k1, k2, power = scale * (cos * g1 - sin * g2), scale * (sin * g1 + cos * g2), g1**2 + g2**2
    row, column = (torch.arange(n, device=values.device) - (n - 1) / 2 for n in shape)
    phase = (waves.wave @ values[:, 4:6, None])[..., 0]
    size = 2 * waves.coefficient.abs() * torch.exp(-2 * math.pi**2 * values[:, 6:] * power)
    by_row = 2 * math.pi * (((1 + e0) * k1 + e1 * k2)[..., None] * row + phase[..., None])
    by_row = by_row + waves.coefficient.angle()[..., None]
    by_column = 2 * math.pi * k2[..., None] * column
    u, v = size[..., None] * by_row.cos(), size[..., None] * by_row.sin()  # (N, P, H)
    parts = [torch.cat([u, -v], dim=1)]
    if derivatives:
        parts += [torch.cat([-v * k, -u * k], dim=1) for k in (2 * math.pi * k[..., None] for k in (k1, k2))]
        parts += [torch.cat([u * k, -v * k], dim=1) for k in (-2 * math.pi**2 * power[..., None],)]
    waved = torch.cat([by_column.cos(), by_column.sin()], dim=1)  # (N, 2 P, W)
    made = (torch.cat(parts, dim=2).transpose(1, 2) @ waved).view(len(values), -1, *shape)
    if derivatives:
        picture, down, right, blurred = made.unbind(1)
        y1 = (1 + e0[..., None]) * row[:, None]
        y2 = e1[..., None] * row[:, None] + column
        turned, grown = y2 * down - y1 * right, y1 * down + y2 * right
        sheared = (row[:, None] * down, row[:, None] * right)
        made = torch.stack([picture, turned, grown, *sheared, down, right, blurred], dim=1)
    made = made.flatten(2)
    return made - made.mean(2, keepdim=True)


def correlated(image: Tensor, waves: Waves, values: Tensor) -> Tensor:
    """(N,) correlation of images (N, H, W) of unit variance with pictures at parameters (N, 7)."""
    made = pictures(image.shape[1:], waves, values, derivatives=False)[:, 0]
    return (made * image.flatten(1)).mean(1) / made.square().mean(1).sqrt().clamp(min=1e-12)


def _evaluate(image: Tensor, waves: Waves, values: Tensor, prior: Tensor) -> Fit:
    """Problems at parameters (N, 7): images (N, H, W) of unit variance against references."""
    made = pictures(image.shape[1:], waves, values, derivatives=True)
    gram, along = made @ made.transpose(1, 2), (made @ image.flatten(1)[..., None])[..., 0]
    pixels, energy = made.shape[2], gram[:, 0, 0].clamp(min=1e-12)
    gain = along[:, 0] / energy
    correlation = along[:, 0] / (energy * pixels).sqrt()
    noise = (1 - correlation**2).clamp(min=1e-4)
    across = gram[:, 1:, 0]  # what of the derivatives is gain
    square = gram[:, 1:, 1:] - across[:, :, None] * across[:, None] / energy[:, None, None]
    slope = along[:, 1:] - gain[:, None] * across
    mean, precision = prior
    normal = (gain**2 / noise)[:, None, None] * square + torch.diag(precision)
    gradient = (gain / noise)[:, None] * slope - precision * (values - mean)
    cost = pixels * noise.log() * correlation.sign() + (precision * (values - mean) ** 2).sum(1)
    return Fit(values, made[:, 0], correlation, cost, normal, gradient)


def refine(image: Tensor, waves: Waves, values: Tensor, prior: Tensor, *, steps: int) -> Fit:
    """Levenberg-Marquardt, all problems at once."""
    best = _evaluate(image, waves, values, prior)
    damping = torch.full_like(best.cost, 1e-2)
    for _ in range(steps):
        curve = best.normal.diagonal(dim1=1, dim2=2)
        step = torch.linalg.solve(best.normal + torch.diag_embed(damping[:, None] * curve + 1e-6), best.gradient)
        step = step.clamp(-MOST_STEP.to(step), MOST_STEP.to(step))
        fit = _evaluate(image, waves, _moved(best.values, step), prior)
        better = fit.cost < best.cost
        damping = torch.where(better, damping / 5, damping * 8)
        pairs = ((getattr(fit, f.name), getattr(best, f.name)) for f in fields(Fit))
        best = Fit(*(torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old) for new, old in pairs))
    return best


def _moved(values: Tensor, step: Tensor) -> Tensor:
    """Parameters after a step, whose shift is in pixels of the frame."""
    rotation, scale = values[:, 0], values[:, 1].exp()
    cos, sin = rotation.cos() * scale, rotation.sin() * scale
    down, right = step[:, 4], step[:, 5]
    shift = torch.stack([cos * down + sin * right, cos * right - sin * down], dim=1)
    return values + torch.cat([step[:, :4], shift, step[:, 6:]], dim=1)


def _result(fit: Fit, images: Tensor, basis: Tensor, choice: Tensor) -> tuple[Tensor, ...]:
    """The fields of a `Registration`."""
    shape, (rotation, scale, e0, e1) = images.shape[1:], fit.values[:, :4].unbind(1)
    pixel_A = scale.exp()
    reference = fit.picture / fit.picture.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    pixels, offset = images.flatten(1), images.mean((1, 2))
    gain = (pixels * reference).mean(1)
    residual = pixels - gain[:, None] * reference - offset[:, None]
    # A view's positions are (q · turn + shift) · shear, from the image's centre.
    cos, sin = rotation.cos(), rotation.sin()
    turn = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2)
    cells = torch.linalg.solve(basis.transpose(1, 2), fit.values[:, 4:6, None])
    origin = -(fit.values[:, None, 4:6] - cells.round().transpose(1, 2) @ basis)
    drift = torch.stack([-e0 / (1 + e0), -e1 / (1 + e0)], dim=1) * (pixel_A * shape[0])[:, None]
    error = (torch.linalg.inv(fit.normal)[:, 1, 1].clamp(min=0) * _correlated(residual.view(-1, *shape))).sqrt()
    pictures = (each.view(-1, 1, *shape) for each in (reference, residual))
    shift = (origin @ turn)[:, 0]
    return fit.correlation, choice, rotation, shift, drift, pixel_A, error, fit.values[:, 6], gain, offset, *pictures


def _correlated(residual: Tensor) -> Tensor:
    """(B,) by how much a variance grows as the noise in residuals (B, H, W) is correlated: Σ ρ² over short lags."""
    full = [2 * n for n in residual.shape[1:]]
    power = torch.fft.irfft2(torch.fft.rfft2(residual, s=full).abs().square(), s=full)
    near = [torch.cat([torch.arange(n // 8 + 1), torch.arange(-(n // 8), 0)]) for n in residual.shape[1:]]
    lags = power[:, near[0]][:, :, near[1]] / power[:, :1, :1].clamp(min=1e-12)
    return lags.square().sum((1, 2))
