"""matalign: crystal structures, synthesis protocols and micrographs in one space."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Threads that wait for one another sleep instead of spinning: beside any other busy process a step on two cores is
# otherwise ten times slower. OpenMP reads this when torch is loaded, so it stands before all other imports.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from matalign.data.readers.micrographs import Micrograph
    from matalign.data.readers.unit_cell import Cell
    from matalign.release.registering import Match
    from matalign.release.released import Released

__version__ = "0.1.0"


def load(profile_or_path: str | Path) -> "Released":
    """A released model by its profile ("laptop") or its folder; see `released.load`."""
    from matalign.release import released  # here: torch and the rest take seconds

    return released.load(profile_or_path)


def register(
    image: Any, structures: Sequence[Any], *, pixel_A: float | None = None, frame: int | None = None
) -> "list[Match]":
    """Each crystal as it fits a micrograph: scale, zone axis, rotation, residual; see `registering.register`."""
    from matalign.release import registering

    return registering.register(image, structures, pixel_A=pixel_A, frame=frame)


def read_structure(item: Any, *, block: str | None = None, frame: int | None = None) -> "Cell":
    """A crystal from a file, text, record or object of pymatgen or ASE; see `crystals.read_structure`."""
    from matalign.data.readers import crystals

    return crystals.read_structure(item, block=block, frame=frame)


def read_micrograph(item: Any, *, pixel_A: float | None = None, frame: int | None = None) -> "Micrograph":
    """A micrograph and its scale; see `data.micrographs.read_micrograph`."""
    from matalign.data.readers import micrographs

    return micrographs.read_micrograph(item, pixel_A=pixel_A, frame=frame)


def read_protocol(item: Any, *, level: int = 1) -> str:
    """A protocol as the text tower takes it; see `data.recipe_texts.read_protocol`."""
    from matalign.data.readers import recipe_texts

    return recipe_texts.read_protocol(item, level=level)
