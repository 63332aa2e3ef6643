"""Vectors of many crystals: a file for each shard of structures, on the cores of this machine or on a Dask cluster."""

import hashlib
import warnings
from functools import partial
from pathlib import Path

from matalign import cache
from matalign.data import dataset


def embed(model: Path, folder: Path, out: Path, *, processes: int = 1, cluster: str = "") -> int:
    """Embed each shard of a folder, on one thread each; what an earlier run has made stays.

    Args:
        model: folder of a released model.
        folder: with `structures*.safetensors`, as a curated set has them: the tensors of `dataset.TENSORS`.
        out: folder; `<shard>.safetensors` there gets `embeddings` (M, embed_dim) float32, and `key`, of what they are.
        processes: shards at a time, on this machine.
        cluster: see `cache.on_cluster`; its workers must see the three folders under these names.

    Returns:
        How many crystals the shards hold.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: one is unreadable.
        OSError: a file cannot be written, or the cluster is lost.
    """
    if not (shards := dataset.shards(folder)):
        raise FileNotFoundError(f"{folder}: no shards, expected files structures*.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    # joblib starts a process anew that keeps memory, as ours are asked to
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
    work = partial(_embedded, model.resolve(), out.resolve())
    how = {"processes": processes, "title": "embed", "unit": "shard", "cluster": cluster}
    return sum(cache.each(work, [shard.resolve() for shard in shards], **how))


def _embedded(model: Path, out: Path, shard: Path) -> int:
    """Crystals of a shard, whose vectors are in their file now."""
    from matalign.pretrain import checkpoint
    from matalign.release import released

    loaded, structures = released.load(model), dataset.mapped(shard)
    with open(shard, "rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    key = cache.digest({"shard": content, "model": loaded.about["files"]})
    target = out / shard.name
    if not target.exists() or cache.about(target)["key"] != key:
        cache.keep_memory()
        with checkpoint.on_threads(1):
            cache.save(target, {"embeddings": loaded.embed(structures=structures), "key": key})
    return len(structures)
