"""Crystals that defects are put in, and labelled micrographs of them: all classes equally and from the same views."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matalign.config import Defects
from matalign.data.dataset import Curated, Structures
from matalign.tasks.defects import pictures
from matalign.views import defect_images, draws
from matalign.views.defect_images import DEFECTS
from matalign.views.micrographs import Optics

SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the hosts
FULL_DOSE_E_A2 = (1e3, 1e5)  # of test images; the others leave out the lowest and highest decile (of the logarithm)
DOSE_DECILES_E_A2 = (10**3.2, 10**4.8)
CHUNK = 125  # images rendered at once
DISTORTION = np.array([[1.15, 0.1, 0], [0, 0.9, 0.1], [0, 0, 1 / 1.035]])  # of a cell; keeps its volume


@dataclass(frozen=True)
class Hosts:
    """n crystals that defects are put in."""

    structures: Structures
    mp_id: np.ndarray  # (n,)
    split: np.ndarray  # (n,) train, val or test, by chemical system
    wrong: Structures  # (n,) of the same composition: a polymorph where the set has one, else the cell distorted
    polymorph: np.ndarray  # (n,) whether it has


@dataclass(frozen=True)
class DefectSet:
    """Labelled micrographs of hosts, all classes from each view."""

    images: Tensor  # (N, 2, px, px) float16: the micrograph, what of it does not repeat; 4: reference and residual too
    kind: np.ndarray  # (N,) row of DEFECTS
    host: np.ndarray  # (N,) row of the hosts
    axis: np.ndarray  # (N,) row of ZONE_AXES, as an arm is told it
    dose_e_A2: np.ndarray  # (N,)
    visibility: np.ndarray  # (N,) signal to noise of the difference to pristine
    right: np.ndarray  # (N, 2) whether that axis shows what the true one shows, and the share that do of those tried


def choose_hosts(curated: Curated, *, hosts: int, seed: int) -> Hosts:
    """Hosts chosen by hash, 70/10/20 of train, val, test by chemical system; ValueError: none to train or test on."""
    ids, split = curated.materials.mp_id.to_numpy(str), curated.splits.chemsys.to_numpy(str)
    order = np.argsort([draws.view_seed(seed, 0, i, -1) for i in ids], kind="stable")
    rows = np.sort(np.concatenate([order[split[order] == s][: max(1, round(f * hosts))] for s, f in SPLITS.items()]))
    for needed in ("train", "test"):
        if needed not in split[rows]:
            raise ValueError(f"no {needed} host among {len(ids)} materials; the split by chemical system has none")
    return Hosts(curated.structures.take(rows), ids[rows], split[rows], *_wrong_structures(curated, rows))


def _wrong_structures(curated: Curated, rows: np.ndarray) -> tuple[Structures, np.ndarray]:
    """Of each material one of its formula in another space group, else its cell distorted; and which is which."""
    same, group = curated.materials.groupby("formula").indices, curated.materials.space_group.to_numpy()
    found = rows.copy()
    for i, row in enumerate(rows):
        rest = same[curated.materials.formula.iat[row]]
        found[i] = next(iter(rest[group[rest] != group[row]]), row)
    crystals, own = curated.structures.take(found), (found == rows)[:, None, None]
    return replace(crystals, lattice=np.where(own, crystals.lattice @ DISTORTION, crystals.lattice)), found != rows


def others(rows: np.ndarray) -> np.ndarray:
    """Each row a fixed other host's: of two or more, nobody keeps its own."""
    return np.roll(rows, len(rows) // 2, axis=0)


def listed(hosts: Hosts, split: str, cfg: Defects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a split, all classes from each view: (N,) rows of hosts, numbers of views, rows of DEFECTS."""
    chosen = np.flatnonzero(hosts.split == split)
    host = np.repeat(chosen, cfg.images_per_class * len(DEFECTS))
    view = np.tile(np.repeat(np.arange(cfg.images_per_class), len(DEFECTS)), len(chosen))
    return host, view, np.tile(np.arange(len(DEFECTS)), len(chosen) * cfg.images_per_class)


def render(
    hosts: Hosts, split: str, cfg: Defects, *, epoch: int, seed: int, reference: str = "", device: str = "cpu"
) -> DefectSet:
    """Render a split's hosts in all five classes.

    Args:
        split: train, val or test; test images have doses and element pairs that the others lack.
        epoch: another number gives other views.
        reference: one of `pictures.REFERENCES`, shown beside each image; "": none.
    """
    test = split == "test"
    dose = FULL_DOSE_E_A2 if test else DOSE_DECILES_E_A2
    optics = Optics(image_px=cfg.image_px, pixel_A=cfg.pixel_A, dose_e_A2=dose)
    host, view, kind = listed(hosts, split, cfg)
    references = _references(hosts, reference)
    nothing = torch.zeros(0, 4 if reference else 2, cfg.image_px, cfg.image_px).half()
    parts = [(nothing, *(torch.zeros(0) for _ in range(3)), torch.zeros(0, 2))]
    for start in tqdm(range(0, len(host), CHUNK), f"{split} images", mininterval=1, disable=len(host) < 20 * CHUNK):
        h, v, k = (each[start : start + CHUNK] for each in (host, view, kind))
        keys = [draws.view_seed(seed, epoch, mp_id, number) for mp_id, number in zip(hosts.mp_id[h], v, strict=True)]
        made = defect_images.render(hosts.structures, h, k, keys, optics=optics, held_out=test, device=device)
        images = [made.images, defect_images.aperiodic(made.images, pixel_A=cfg.pixel_A)]
        axis, right = made.view.axis, torch.ones(len(h), 2)
        if reference:
            beside, axis, right = pictures.beside(made, *references, h, reference, optics=optics)
            images.append(beside)
        columns = (torch.cat(images, dim=1).half(), axis, made.view.dose_e_A2, made.visibility, right)
        parts.append(tuple(column.cpu() for column in columns))
    images, axis, doses, visibility, right = (torch.cat(column) for column in zip(*parts, strict=True))
    told = axis.numpy().astype(np.int64)
    return DefectSet(images, kind, host, told, doses.numpy(), visibility.numpy(), right.numpy())


def _references(hosts: Hosts, reference: str) -> tuple[Structures, np.ndarray]:
    """The crystals that hosts are taken for, at a pixel size known to `pictures.CALIBRATION`, and each host's row."""
    rows = np.arange(len(hosts.mp_id))
    crystals = hosts.wrong if reference == "wrong_structure" else hosts.structures
    if reference != "true_view":
        keys = np.array([draws.view_seed(0, 0, mp_id, -2) for mp_id in hosts.mp_id], np.uint64)
        off = 1 + pictures.CALIBRATION * (2 * draws.uniforms(keys, 1) - 1)
        crystals = replace(crystals, lattice=crystals.lattice * off[:, :, None])  # as if pixels were larger by as much
    return crystals, others(rows) if reference == "other" else rows
