"""The folder of a released model: what `config.json` must say, and the hashes that its files are compared with.

A folder may come from anywhere. It holds JSON, safetensors and Parquet, none of which runs code. Each file that is read
lies in the folder itself and has the hash that `config.json` names, which holds a hash of itself: damage and edits are
found. Who rewrites the hashes too is not: compare `sha256` with the one that was published.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matalign import cache, config
from matalign.config import Pretrain, Recommendation
from matalign.data import sources
from matalign.quantities import METAL
from matalign.release import depth
from matalign.release.predictors import Calibration

FORMAT = 3  # of the folder
SUFFIXES = (".safetensors", ".parquet")
READ = ("index.safetensors", "crystals.parquet", "protocols.parquet", depth.FILE)  # whatever else is named
OPTIONAL = {"protocols.parquet"}  # a model without text tower has none
SEAL = "sha256"


@dataclass(frozen=True)
class Group:
    """An ensemble of predictors."""

    targets: tuple[str, ...]
    members: int
    arm: str
    steps: int
    tower: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class About:
    """What `config.json` says."""

    format: int
    matalign: str
    profile: str
    synthetic: bool
    pretrain: Pretrain
    text_model_hash: str
    image_init: str
    data: str
    recommendation: Recommendation
    weights: tuple[str, ...]
    predictors: tuple[Group, ...]
    predictor_weights: tuple[str, ...]
    files: Mapping[str, str]  # name -> sha256
    calibrations: Mapping[str, Calibration]
    sha256: str = ""  # of all the rest


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` with the hash of itself."""
    rest = {name: value for name, value in about.items() if name != SEAL}
    return {**rest, SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def checked(folder: Path) -> dict[str, Any]:
    """A released model's `config.json`, it and its files compared with the hashes that it names.

    Raises:
        FileNotFoundError: a file is missing; those of the image tower may be.
        ValueError: another format; a parameter, a name or a file that is not as it must be, or that has changed.
    """
    file = folder / "config.json"
    about = cache.read_json(file)
    if "format" not in about:
        raise ValueError(f"{folder}: not a released model, its config.json has no format")
    if about["format"] != FORMAT:
        raise ValueError(
            f"{folder}: format {about['format']!r}, but this matalign reads {FORMAT}; update it or the model"
        )
    if SEAL in about and about != sealed(about):
        raise ValueError(f"{file}: changed since it was written: expected sha256 {about[SEAL]}")
    _agrees(config.build(About, about, where=str(file)), str(file))
    for name, expected in about["files"].items():
        if not inside(folder, name):
            raise ValueError(f"{file}: {name!r} is no file of this folder that ends in {' or '.join(SUFFIXES)}")
        if (folder / name).exists():
            if (got := sources.file_hash(folder / name)) != expected:
                raise ValueError(f"{folder / name}: expected sha256 {expected}, got {got}")
        elif of(name) != "image":
            raise FileNotFoundError(f"{folder}: {name} is missing; of {len(about['files'])} files, all are needed")
    for name in (*about["weights"], *about["predictor_weights"], *READ):
        if name not in about["files"] and (name not in OPTIONAL or (folder / name).exists()):
            raise ValueError(f"{file}: no hash of {name} in `files`")
    return about


def _agrees(about: About, where: str) -> None:
    """Refuse parts that contradict one another, and recipes from out of the project."""
    for group in about.predictors:
        if not len(group.targets) == len(group.mean) == len(group.std) or group.members < 1:
            raise ValueError(f"{where}: predictors of {', '.join(group.targets)} lack a mean, a scale or members")
        if wanting := {*group.targets} - {METAL, *about.calibrations}:
            raise ValueError(f"{where}: no calibration of {min(wanting)}")
    raw = Path(about.recommendation.raw)
    if raw.is_absolute() or ".." in raw.parts:
        raise ValueError(f"{where}: recommendation: raw is {str(raw)!r}, which leaves the project")


def inside(folder: Path, name: str) -> bool:
    """Whether a name is that of a file of tensors or of a table in the folder itself, through links too."""
    plain = Path(name).name == name and name.endswith(SUFFIXES) and "\0" not in name
    return plain and (folder / name).resolve().parent == folder.resolve()


def of(file: str) -> str:
    """What a file of weights is of: image for image-00001.safetensors."""
    return file.partition(".")[0].partition("-")[0]
