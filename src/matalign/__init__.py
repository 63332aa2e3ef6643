"""matalign: crystal structures, synthesis protocols and micrographs in one space."""

import importlib
import os
from typing import Any

# Threads that wait for one another sleep instead of spinning: beside any other busy process a step on two cores is
# otherwise ten times slower. OpenMP reads this when torch is loaded, so it stands before all other imports.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
_PUBLIC = {  # name -> the module that has it, imported when it is first asked for: torch and the rest take seconds
    "load": "release.released",
    "register": "release.registering",
    "read_structure": "data.readers.crystals",
    "read_micrograph": "data.readers.micrographs",
    "read_protocol": "data.readers.recipe_texts",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
