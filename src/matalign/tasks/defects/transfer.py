"""Defect classes of experimental patches: networks that saw simulated pictures alone, and a few labelled patches.

A network is trained on simulated pictures of the patches' own crystal, at their scale and along their zone axis. Zero
labels: a head fitted to simulated pictures names the class. Few labels: logistic regression on the network's features.
Patches overlap, so labelled ones are neighbours in the frame, and those that share a pixel with one are not tested.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matalign import cache, config, stats
from matalign.config import Micrographs
from matalign.data.structures import Structures
from matalign.tasks.defects import networks
from matalign.tasks.defects.defect_scores import macro_f1
from matalign.tasks.defects.hosts import DefectSet
from matalign.tasks.defects.patches import BULK, KEEP, PROBE_A, Patches, Places, labels
from matalign.views import defect_images, draws, references, registration
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import Optics, by_repeat, standardise

SITES = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SEEN = {  # cells whose zone axes of shortest repeat are those of the patches, and how many such axes
    "CdTe": ((np.array([48, 52]), np.array([[0.0] * 3, [0.25] * 3]), 3.241 * (1 - np.eye(3))), 6),
    "SrTiO3": ((np.array([38, 22, 8, 8, 8]), SITES, 3.905 * np.eye(3)), 3),
}
KIND = {BULK: "pristine", "Vacancy_CdTe": "vacancy", "Mis": "vacancy"}
KIND |= dict.fromkeys(("interstitial", "Extra", "IExtra"), "interstitial")
KIND |= dict.fromkeys(("LC", "SF1", "SF2", "Twin_Bound"), "planar_fault")
ARMS = {"image": False, "image_reference": True}  # whether reference and residual are channels, too
NOISES = ("rendered", "measured")
SHOTS = (5, 20)
CLEAN_E_A2 = (1e6, 1e6)  # dose of pictures that get measured noise
RESOLVED = 24  # frequencies of a patch's spectrum that nearest neighbours are found by
TRIES = 50  # draws of labelled patches until every class keeps one to test


@dataclass(frozen=True)
class Noise:
    """What registration leaves of bulk patches, over the pristine picture's standard deviation."""

    power: Tensor  # (px, px // 2 + 1) mean square of the Fourier components
    probe_sigma_A: float

    def draw(self, count: int, *, seed: int) -> Tensor:
        """(count, 1, px, px) Gaussian noise of this spectrum."""
        px = self.power.shape[0]
        white = torch.randn(count, 1, px, px, generator=torch.Generator().manual_seed(seed))
        return torch.fft.irfft2(torch.fft.rfft2(white) * self.power.sqrt() / px, s=(px, px))


@dataclass(frozen=True)
class Task:
    """Patches of one material, their places, and what registration has found of them."""

    material: str
    patches: Patches
    places: Places
    pixel_A: float
    noise: Noise
    cfg: Micrographs

    def simulated(self, noise: str, *, epoch: int) -> DefectSet:
        """Pictures of the patches' crystal with the classes that they have, all classes from each view."""
        crystal, axes = SEEN[self.material]
        kinds = sorted({DEFECTS.index(KIND[label]) for label in labels(self.patches)})
        kind = np.tile(kinds, self.cfg.views)
        keys = [draws.view_seed(self.cfg.seed, epoch, self.material, view) for view in range(self.cfg.views)]
        options: dict[str, Any] = {"image_px": self.patches.images.shape[-1], "pixel_A": self.pixel_A, "axes": axes}
        if noise == "measured":
            probe = self.noise.probe_sigma_A
            options |= {"dose_e_A2": CLEAN_E_A2, "probe_sigma_A": (0.9 * probe, 1.1 * probe)}
        rows = np.zeros(len(kind), int)
        optics, keys = Optics(**options), np.repeat(np.array(keys, np.uint64), len(kinds))
        made = defect_images.render(Structures.pack([crystal]), rows, kind, keys, optics=optics, held_out=False)
        images = made.images
        if noise == "measured":
            images = standardise((images + self.noise.draw(len(images), seed=self.cfg.seed + epoch))[:, 0])
        none = np.zeros(len(kind))
        return DefectSet(images, kind, rows, rows, none, made.visibility.numpy(), none)

    def channels(self, images: Tensor, *, reference: bool) -> Tensor:
        """(N, 2 or 4, px / 2, px / 2) what a network sees of images (N, 1, px, px)."""
        unit = standardise(images[:, 0])
        seen = [unit, defect_images.aperiodic(unit, pixel_A=self.pixel_A)]
        if reference:
            crystals = Structures.pack([SEEN[self.material][0]])
            refs = references.references(crystals, [0], by_repeat(crystals.lattice)[0, :1], probe_sigma_A=PROBE_A)
            which = np.zeros(len(unit), int)
            found = registration.register(unit, refs, which, pixel_A=self.pixel_A, tolerance=0.02, keep=KEEP)
            seen += [found.reference, found.residual]
        return F.avg_pool2d(torch.cat(seen, dim=1), 2)

    def network(self, arm: str, noise: str) -> cache.Result:
        """`features` (n, d) of the patches, by a network of simulated pictures, and `probability` (n, 5) of classes."""

        def fit() -> cache.Result:
            see = partial(self.channels, reference=ARMS[arm])
            train, again = (self.simulated(noise, epoch=epoch) for epoch in (0, 1))
            shown = DefectSet(see(train.images), *list(vars(train).values())[1:])
            tower = networks.fit_network(shown, self.cfg, seed=self.cfg.seed)
            real = networks.features(tower, see(self.patches.images))
            features = {"train": networks.features(tower, see(again.images)), "val": real[:0], "test": real}
            context = {split: np.zeros((len(x), 1), np.float32) for split, x in features.items()}
            kind = {"train": again.kind, "val": again.kind[:0]}
            schedule = {"epochs": self.cfg.head_epochs, "learning_rate": self.cfg.learning_rate}
            judged = networks.fit_head(features, context, kind, **schedule, seed=self.cfg.seed)
            return {"features": real, "probability": judged["test"]}

        unread = ("profile", "bootstrap", "resplits", "pictures", "ranked", "raw", "threads")
        key = {name: value for name, value in vars(self.cfg).items() if name not in unread}
        key |= {"arm": arm, "noise": noise, "material": self.material, "pixel_A": round(self.pixel_A, 4)}
        key |= {"patches": cache.digest(self.patches.images.double().sum((1, 2, 3)).tolist())}
        return cache.memo("micrographs-network", {**key, "version": config.version("micrographs")}, fit)

    def zero_shot(self) -> list[dict]:
        """Rows {material, shots, arm, noise, macro_F1, low, high, classes}; intervals over regions."""
        true = np.array([DEFECTS.index(KIND[label]) for label in self.patches.label])
        there, rows = np.unique(true), []
        answers = {("majority", ""): np.zeros_like(true)}
        for arm in ARMS:
            for noise in NOISES:
                answers[arm, noise] = there[self.network(arm, noise)["probability"][:, there].argmax(1)]
        for (arm, noise), answer in answers.items():
            both = np.stack([true, answer], axis=1)
            options = {"resamples": self.cfg.bootstrap, "seed": self.cfg.seed}
            found = stats.bootstrap(both[None], self.places.region, statistic=lambda items: f1(*items.T), **options)
            about = {"material": self.material, "shots": 0, "arm": arm, "noise": noise, "classes": len(there)}
            rows.append({**about, **found.bounds("macro_F1")})
        return rows

    def few(self) -> tuple[list[dict], list[dict]]:
        """Few labels, of classes that can be labelled in one place and tested in another.

        Returns:
            Rows {material, shots, split, arm, macro_F1, low, high, classes, n_test, resplits}, and of the reference's
            gain {material, shots, split, value, low, high}; intervals hold 95 % of the resplits.
        """
        names = self.separable()
        number = np.array([names.index(label) if label in names else -1 for label in self.patches.label])
        features = {arm: self.network(arm, NOISES[1])["features"] for arm in ARMS}
        features["nearest"] = spectra(self.patches.images)
        rows, gains = [], []
        for shots in SHOTS:
            for split in ("apart", "random"):
                rng = np.random.default_rng(self.cfg.seed)
                found: dict[str, list[float]] = {arm: [] for arm in ("majority", *features)}
                tested = []
                for _ in range(self.cfg.resplits):
                    labelled, test = drawn(number, self.places, shots, rng, apart=split == "apart", px=self.px)
                    tested.append(len(test))
                    for arm in found:
                        answer = _answers(arm, features.get(arm), number, labelled, test)
                        found[arm].append(f1(number[test], answer))
                about = {"material": self.material, "shots": shots, "split": split, "classes": len(names)}
                about |= {"resplits": self.cfg.resplits, "n_test": int(np.median(tested))}
                rows += [{**about, "arm": arm, **_spread(values, "macro_F1")} for arm, values in found.items()]
                gain = np.subtract(found["image_reference"], found["image"])
                gains.append({**about, **_spread(gain, "value")})
        return rows, gains

    @property
    def px(self) -> int:
        """Side of a patch."""
        return self.patches.images.shape[-1]

    def separable(self) -> list[str]:
        """Classes that have patches without a shared pixel."""
        region = {label: self.places.region[self.patches.label == label] for label in labels(self.patches)}
        return [label for label, of in region.items() if len(set(of.tolist())) > 1]


def _spread(values: Any, name: str) -> dict[str, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return {name: float(np.mean(values)), "low": float(low), "high": float(high)}


def f1(true: np.ndarray, answer: np.ndarray) -> float:
    """Macro-F1 over the classes that are there; classes are small integers."""
    classes = int(max(true.max(), answer.max())) + 1
    return macro_f1(true, answer, classes=classes) * classes / len(set(true.tolist()))  # others count zero


def drawn(
    number: np.ndarray, places: Places, shots: int, rng: np.random.Generator, *, apart: bool, px: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose labelled patches of each class, and those to test.

    Args:
        number: (n,) class of each patch; -1: in neither.
        apart: label neighbours, and test what shares no pixel with any labelled patch; else label anywhere, and test
            all others.

    Returns:
        Rows that are labelled and rows to test: of `TRIES` draws the first that leaves every class one to test.
    """
    best: tuple[np.ndarray, np.ndarray] = (np.zeros(0, int), np.zeros(0, int))
    for _ in range(TRIES):
        labelled = []
        for kind in range(number.max() + 1):
            rows = rng.permutation(np.flatnonzero(number == kind))
            if apart:
                distance = np.abs(places.corner[rows] - places.corner[rows[0]]).max(1)
                rows = rows[np.argsort(distance + 1e6 * (places.own[rows] != places.own[rows[0]]), kind="stable")]
            labelled.append(rows[:shots])
        chosen = np.concatenate(labelled)
        rest = np.setdiff1d(np.flatnonzero(number >= 0), chosen)
        test = rest[~places.overlap(rest, chosen, px=px).any(1)] if apart else rest
        if len(set(number[test])) > len(set(number[best[1]])):
            best = chosen, test
        if len(set(number[best[1]])) == number.max() + 1:
            break
    return best


def spectra(images: Tensor) -> np.ndarray:
    """(n, d) root of the amplitudes of images (n, 1, px, px), which no shift changes, of unit length."""
    amplitude = torch.fft.rfft2(standardise(images[:, 0])[:, 0]).abs().sqrt()
    half = torch.cat([amplitude[:, :RESOLVED, :RESOLVED], amplitude[:, -RESOLVED:, :RESOLVED]], dim=1).flatten(1)
    return F.normalize(half - half.mean(0), dim=1).numpy()


def _answers(
    arm: str, features: np.ndarray | None, number: np.ndarray, labelled: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Classes of the tested patches: the first, that of the most similar labelled patch, or by logistic regression."""
    if features is None:
        return np.zeros(len(test), int)
    if arm == "nearest":
        return number[labelled][(features[test] @ features[labelled].T).argmax(1)]
    from sklearn.linear_model import LogisticRegression  # here: its import takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return model.fit(features[labelled], number[labelled]).predict(features[test])


def radial(images: Tensor) -> list[float]:
    """Mean power of images (n, 1, px, px) of unit variance in rings of spatial frequency, from 1 to px/2 per frame."""
    power = torch.fft.fft2(standardise(images[:, 0])[:, 0]).abs().square().mean(0) / images.shape[-1] ** 2
    k = torch.fft.fftfreq(power.shape[0]) * power.shape[0]
    ring = (k[:, None] ** 2 + k**2).sqrt().round().long().flatten()
    total, count = torch.bincount(ring, power.flatten().double()), torch.bincount(ring)
    return (total / count)[1 : power.shape[0] // 2 + 1].tolist()
