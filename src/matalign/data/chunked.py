"""What is made of each crystal, in chunks on several processes: a killed run goes on with the chunks it has done."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import joblib
import numpy as np
import pandas as pd

from matalign import cache, config
from matalign.data import dataset, sources
from matalign.data.dataset import Structures
from matalign.data.sources import Crystal, Skipped

CRYSTALS_PER_TASK = 256  # what a killed run may lose, in each worker
Maker = Callable[..., np.ndarray]  # numbers, frac_coords, lattice, then what is `asked` -> floats of a shape


def parse_cifs(texts: Sequence[str], *, workers: int) -> dict[str, Crystal | str]:
    """Text -> its crystal, or the reason why it has none, of distinct CIFs; what a killed run has parsed is found."""
    chunks = _chunks(sources.parse_cif, _pack, texts, key={}, workers=workers, what="crystals")
    return dict(zip(texts, chain.from_iterable(map(_unpacked, chunks))))


def _pack(crystals: list[Crystal]) -> cache.Result:
    structures = Structures.pack([(c.numbers, c.frac_coords, c.lattice) for c in crystals])
    about = {name: [getattr(c, name) for c in crystals] for name in ("formula", "chemsys", "space_group")}
    return {**{name: getattr(structures, name) for name in dataset.TENSORS}, **about}


def _unpacked(stored: cache.Result) -> Iterator[Crystal | str]:
    structures = Structures(*(stored[name] for name in dataset.TENSORS))
    about = zip(structures, stored["formula"], stored["chemsys"], stored["space_group"])
    crystals = (Crystal(*structure, *rest) for structure, *rest in about)
    return (failure or next(crystals) for failure in stored["failures"])


def asked(maker: Maker) -> list[str]:
    """Numbers of `sources.OTHERS` that a maker takes after the crystal, by the names of its parameters."""
    return list(inspect.signature(maker).parameters)[3:]


def extra(
    makers: Mapping[str, Maker], materials: pd.DataFrame, structures: Structures, skipped: Skipped, *, workers: int
) -> dict[str, np.ndarray]:
    """Modality -> (M, …), what it needs beyond structures and protocols, NaN in the rows of materials that lack it.

    Args:
        makers: modality -> what makes its values of a crystal; ValueError where a crystal has none.
        materials: with columns of what any of them has `asked` for.
        skipped: gets the materials that lack a modality.

    Raises:
        ValueError: a modality that no material has.
    """
    extras = {}
    for name, maker in makers.items():
        stack = lambda values: {"values": np.array(values)}  # noqa: E731
        others = materials[asked(maker)].to_numpy(np.float64)
        items = [(*crystal, *numbers) for crystal, numbers in zip(structures, others, strict=True)]
        chunks = _chunks(maker, stack, items, key={"modality": name}, workers=workers, what=name)
        reasons = list(chain.from_iterable(chunk["failures"] for chunk in chunks))
        has = np.array([not reason for reason in reasons])
        if not has.any():
            raise ValueError(f"none of {len(has)} materials has {name}; the first: {reasons[0]}")
        values = np.concatenate([chunk["values"] for chunk in chunks if len(chunk["values"])])
        extras[name] = np.full((len(has), *values.shape[1:]), np.nan, values.dtype)
        extras[name][has] = values
        for mp_id, reason in zip(materials.mp_id[~has], filter(None, reasons)):
            skipped.add(name, "not available", f"{mp_id}: {reason}")
    return extras


def _chunks(
    make: Callable, pack: Callable, items: Sequence, *, key: Mapping[str, Any], workers: int, what: str
) -> list[cache.Result]:
    """Of each chunk of items what could be made, packed, and `failures`: of each item the reason, or ""."""
    chunks = [items[i : i + CRYSTALS_PER_TASK] for i in range(0, len(items), CRYSTALS_PER_TASK)]
    processes = workers if len(chunks) >= 2 * workers else 1  # else starting the processes would take longer
    work = functools.partial(_chunk, make, pack, key)
    return list(cache.each(work, chunks, processes=processes, title=what, unit="crystal", size=len))


def _chunk(make: Callable, pack: Callable, key: Mapping[str, Any], items: Sequence) -> cache.Result:
    def compute() -> cache.Result:
        made = [_attempt(make, item) for item in items]
        good = [each for each in made if not isinstance(each, str)]
        return {**pack(good), "failures": [each if isinstance(each, str) else "" for each in made]}

    return cache.memo("curate", {**key, "data": joblib.hash(items), "version": config.version("curate")}, compute)


def _attempt(make: Callable, item: Any) -> Any:
    """What is made, or the reason why it cannot be."""
    try:
        return make(*item) if isinstance(item, tuple) else make(item)
    except ValueError as error:
        return str(error)
