"""What is made of each crystal, in chunks on several processes: a killed run goes on with the chunks it has done."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import chain
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from matalign import cache, config
from matalign.data import dataset, sources
from matalign.data.dataset import Structures
from matalign.data.skipped import Skipped
from matalign.data.sources import Crystal

CRYSTALS_PER_TASK = 256  # what a killed run may lose, in each worker
Maker = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # numbers, frac_coords, lattice -> floats of a shape


def parse_cifs(
    texts: Sequence[str], *, workers: int, read: Callable[[str], Crystal] | None = None
) -> dict[str, Crystal | str]:
    """Parse CIFs in parallel; what a killed run has parsed is found again.

    Args:
        texts: of the CIFs, distinct.
        workers: processes; with one, this process does it.
        read: raises a ValueError of a text that it cannot read; by default `sources.parse_cif`.

    Returns:
        Text -> the crystal, or the reason why it has none.
    """
    chunks = [texts[i : i + CRYSTALS_PER_TASK] for i in range(0, len(texts), CRYSTALS_PER_TASK)]
    parsed = _each(functools.partial(_parse_chunk, read=read), chunks, workers=workers, what="crystals")
    return dict(zip(texts, chain.from_iterable(parsed)))


def _each(work: Callable, chunks: list, *, workers: int, what: str) -> Iterator:
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=sum(map(len, chunks)), desc=what, unit="crystal", mininterval=1))
        run = map
        if workers > 1 and len(chunks) >= 2 * workers:  # else starting the processes would take longer
            # Spawned, not forked: a notebook's kernel has threads. Should this process be killed, so are the workers.
            spawn = {"mp_context": get_context("spawn"), "initializer": cache.die_with_parent}
            run = stack.enter_context(ProcessPoolExecutor(workers, **spawn, initargs=(os.getpid(),))).map
        for chunk, made in zip(chunks, run(work, chunks)):
            bar.update(len(chunk))
            yield made


def _attempt(make: Callable, *args: Any) -> Any:
    """What is made, or the reason why it cannot be."""
    try:
        return make(*args)
    except ValueError as error:
        return str(error)


def _parse_chunk(texts: Sequence[str], *, read: Callable[[str], Crystal] | None) -> list[Crystal | str]:
    key = {
        "data": hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest(),
        "version": config.version("curate"),
        **({"reader": read.__qualname__} if read else {}),
    }
    stored = cache.memo("curate", key, lambda: _pack([_attempt(read or sources.parse_cif, text) for text in texts]))
    structures = Structures(*(stored[name] for name in dataset.TENSORS))
    rows = zip(structures, stored["formula"], stored["chemsys"], stored["space_group"].tolist())
    crystals = (Crystal(*structure, formula, chemsys, number) for structure, formula, chemsys, number in rows)
    return [failure or next(crystals) for failure in stored["failures"]]


def _pack(parsed: list[Crystal | str]) -> cache.Result:
    crystals = [c for c in parsed if isinstance(c, Crystal)]
    structures = Structures.pack([(c.numbers, c.frac_coords, c.lattice) for c in crystals])
    return {
        **{name: getattr(structures, name) for name in dataset.TENSORS},
        "space_group": np.array([c.space_group for c in crystals], dtype=np.int64),
        "formula": [c.formula for c in crystals],
        "chemsys": [c.chemsys for c in crystals],
        "failures": [c if isinstance(c, str) else "" for c in parsed],
    }


def extra(
    makers: Mapping[str, Maker], materials: pd.DataFrame, structures: Structures, skipped: Skipped, *, workers: int
) -> dict[str, np.ndarray]:
    """What modalities need beyond structures and protocols.

    Args:
        makers: modality -> what makes its values of a crystal; ValueError where a crystal has none.
        materials: column `mp_id`.
        structures: the same materials.
        skipped: gets the materials that lack a modality.
        workers: processes; what a killed run has made is found again.

    Returns:
        Modality -> (M, …), NaN in the rows of the materials that lack it.

    Raises:
        ValueError: a modality that no material has.
    """
    starts = range(0, len(structures), CRYSTALS_PER_TASK)
    chunks = [structures.take(np.arange(i, min(i + CRYSTALS_PER_TASK, len(structures)))) for i in starts]
    extras = {}
    for name, maker in makers.items():
        work = functools.partial(_extra_chunk, modality=name, maker=maker)
        parts, failures = zip(*_each(work, chunks, workers=workers, what=name))
        reasons = list(chain.from_iterable(failures))
        has = np.array([not reason for reason in reasons])
        if not has.any():
            raise ValueError(f"none of {len(has)} materials has {name}; the first: {reasons[0]}")
        values = np.concatenate([part for part in parts if len(part)])
        extras[name] = np.full((len(has), *values.shape[1:]), np.nan, values.dtype)
        extras[name][has] = values
        for mp_id, reason in zip(materials.mp_id[~has], filter(None, reasons)):
            skipped.add(name, "not available", f"{mp_id}: {reason}")
    return extras


def _extra_chunk(structures: Structures, *, modality: str, maker: Maker) -> tuple[np.ndarray, list[str]]:
    """Values of the crystals that have them, and of each crystal why it has none ("" if it has)."""

    def compute() -> cache.Result:
        made = [_attempt(maker, *crystal) for crystal in structures]
        values = np.array([value for value in made if not isinstance(value, str)])
        return {"values": values, "failures": [value if isinstance(value, str) else "" for value in made]}

    data = hashlib.blake2b(digest_size=16)
    for name in dataset.TENSORS:
        data.update(np.ascontiguousarray(getattr(structures, name)))
    key = {"modality": modality, "data": data.hexdigest(), "version": config.version("curate")}
    stored = cache.memo("curate", key, compute)
    return stored["values"], stored["failures"]
