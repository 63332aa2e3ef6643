"""Absolute roots, so that a process finds the same files wherever it is started.

The project is the folder that `MATALIGN_ROOT` names, else the checkout around the working directory, else the checkout
that the package itself runs from, else (an installed package) the working directory. Resume state goes where
`MATALIGN_SCRATCH` says, else into a checkout's `.scratch` if that can be written, else to the user's cache folder.
"""

import os
from pathlib import Path

from platformdirs import user_cache_path


def _is_checkout(folder: Path) -> bool:
    return (folder / "params.yaml").is_file() and (folder / "src" / "matalign").is_dir()


def _root() -> Path:
    if named := os.environ.get("MATALIGN_ROOT"):
        return Path(named).resolve()
    here = Path.cwd()
    around = (here, *here.parents, *Path(__file__).resolve().parents)
    return next((folder for folder in around if _is_checkout(folder)), here)


def _scratch() -> Path:
    if named := os.environ.get("MATALIGN_SCRATCH"):
        return Path(named).resolve()
    ours = "MATALIGN_ROOT" in os.environ or _is_checkout(ROOT)
    return ROOT / ".scratch" if ours and os.access(ROOT, os.W_OK) else user_cache_path("matalign")


def _shipped(name: str) -> Path:
    """A file of the project, or the copy that an installed package carries."""
    return ROOT / name if (ROOT / name).exists() else Path(__file__).parent / "project" / name


ROOT = _root()
PARAMS = _shipped("params.yaml")
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RAW = DATA / "raw"
SAMPLE = _shipped("data/sample")
SOURCES = _shipped("data/sources.yaml")
SCRATCH = _scratch()


def curated(profile: str) -> Path:
    """Folder of a profile's curated set, the contract between `curate` and everything after."""
    return DATA / "curated" / profile


def results(profile: str) -> Path:
    """Folder of a profile's metrics, tables, figures, model and paper."""
    return ROOT / "results" / profile
