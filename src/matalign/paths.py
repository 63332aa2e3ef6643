"""Absolute roots. `MATALIGN_ROOT` moves the whole project (tests), `MATALIGN_SCRATCH` only the resume state."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("MATALIGN_ROOT", Path(__file__).parents[2])).resolve()
PARAMS = ROOT / "params.yaml"
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RAW = DATA / "raw"
SAMPLE = DATA / "sample"
SCRATCH = Path(os.environ.get("MATALIGN_SCRATCH", ROOT / ".scratch")).resolve()


def curated(profile: str) -> Path:
    """Folder of a profile's curated set, the contract between `curate` and everything after."""
    return DATA / "curated" / profile


def results(profile: str) -> Path:
    """Folder of a profile's metrics, tables, figures, model and paper."""
    return ROOT / "results" / profile
