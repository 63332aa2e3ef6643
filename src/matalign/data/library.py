"""Recipes by protocol id, from the raw files of this machine: a released model holds ids alone.

The index of downloaded files is one table, `data/index/<folder>.parquet`, made anew when a file is newer; that of the
embedded sample is small and made when it is asked for.
"""

from pathlib import Path

import pandas as pd

from matalign import paths
from matalign.data import protocols, reactions

COLUMNS = ["protocol_id", "doi", "method", "target_formula", "precursors", "max_temperature_C"]
COLUMNS += [f"text_L{level}" for level in protocols.LEVELS]
FILES = ("protocols.jsonl", "solid_state/*.json.xz", "sol_gel/*.json.xz")  # that `reactions.read` reads
FETCH = "run `matalign fetch` for those of real sources"


def present(raw: Path) -> bool:
    """Whether a folder holds synthesis records and the public tests that recommendation is trained beside."""
    return any(any(raw.glob(name)) for name in FILES) and (raw / "public_tests").is_dir()


def read(raw: Path) -> pd.DataFrame:
    """Recipes of a folder of raw files, columns `COLUMNS`, sorted by id; FileNotFoundError if it holds no records."""
    if raw == paths.SAMPLE:
        return table(raw)
    file = paths.DATA / "index" / f"{raw.name}.parquet"
    newest = max((f.stat().st_mtime for name in FILES for f in raw.glob(name)), default=0.0)
    if not file.exists() or file.stat().st_mtime < newest:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        table(raw).to_parquet(temporary, compression="zstd", index=False)
        temporary.rename(file)
    return pd.read_parquet(file)


def table(raw: Path) -> pd.DataFrame:
    """What `read` returns, from the records themselves; ids are those of the curated set."""
    rows = [p.columns() for reaction in reactions.read(raw) for p in reactions.parse(reaction)[0]]
    joined = [{**row, "precursors": " + ".join(row["precursors"])} for row in rows]
    return pd.DataFrame(joined, columns=COLUMNS).sort_values("protocol_id", ignore_index=True)
