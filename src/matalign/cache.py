"""Resume state of long work: a folder per (kind, key), held by one process at a time.

DVC deletes a stage's outputs before it runs, so what a killed run has finished lives here. A result's key is its
parameters, the digest of its data, the fingerprints of the results it is made from, and the version of its kind
(`config.version`), which a person raises when numbers change on purpose; golden numbers (tests/golden) guard it. Code
is no part of a key: a move, a new name or a comment re-runs nothing.
"""

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from matalign import paths

Result = dict[str, Any]  # arrays and JSON values
Item = TypeVar("Item")
Made = TypeVar("Made")


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel (Linux) to end this process when its parent is gone, however that ended.

    The signal comes when the *thread* that started this process ends, so start it from a thread that stays. If the
    process `parent`, where the starter passed its pid on, is gone already, so are we.
    """
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON value's blake2b hash, keys sorted."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def folder(stage: str, key: Mapping[str, Any]) -> Path:
    """The scratch folder of a stage for a key, made if absent; `key.json` tells it."""
    path = paths.SCRATCH / stage / digest(dict(key))
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "key.json", dict(key))
    return path


def has(stage: str, key: Mapping[str, Any]) -> bool:
    """Whether a result with this key is there."""
    return (paths.SCRATCH / stage / digest(dict(key)) / "result.safetensors").exists()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a scratch folder for this process; a second one waits, and says for whom. OSError: it cannot be locked."""
    lock = FileLock(path / "lock", fallback_to_soft=False)  # a soft lock outlives a killed holder
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = (path / "lock").read_text().strip()
            print(f"{path} is held by {holder}; waiting for it to end", file=sys.stderr, flush=True)
            lock.acquire()
        (path / "lock").write_text(f"process {os.getpid()} on {os.uname().nodename}")
    except OSError as error:
        raise OSError(f"{path} cannot be locked ({error.strerror}); set MATALIGN_SCRATCH to a local folder") from None
    try:
        yield
    finally:
        lock.release()


def each(
    work: Callable[[Item], Made],
    items: Sequence[Item],
    *,
    processes: int,
    title: str,
    unit: str = "fit",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Made]:
    """What is made of each item, in order, side by side in processes of joblib's backend.

    Args:
        work: a function of a module, or a partial of one; it and the items are sent to the processes.
        processes: one or fewer: all is done here. Those of this machine (loky's) end with this one; under
            `joblib.parallel_config` they are a cluster's.
        size: of an item, in units.
    """
    import joblib  # here: the command `predict` has no use for it

    parallel = joblib.Parallel(max(processes, 1), return_as="generator", batch_size=1)
    made = parallel(joblib.delayed(_work)(os.getpid(), work, item) for item in items)
    with tqdm(total=sum(map(size, items)), desc=title, unit=unit, mininterval=1) as bar:
        for item, result in zip(items, made):
            bar.update(size(item))
            yield result


def _work(starter: int, work: Callable[[Item], Made], item: Item) -> Made:
    # not so here, nor in a process of a cluster; one of ours may begin when its starter is gone already
    if multiprocessing.current_process().name.startswith("Loky"):
        die_with_parent(starter)
    return work(item)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: temporary name, then rename; keys keep their order."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n")
    temporary.rename(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds none.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}; expected an object")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"not JSON: {type(value).__name__}")


def save(path: Path, result: Result) -> None:
    """Write a result (numpy arrays and JSON values) as one safetensors file, atomically."""
    arrays = {k: np.ascontiguousarray(v) for k, v in result.items() if isinstance(v, np.ndarray)}
    rest = {k: v for k, v in result.items() if k not in arrays}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(arrays, temporary, metadata={"json": json.dumps(rest, default=_plain)})
    temporary.rename(path)


@contextmanager
def opened(path: Path, framework: str) -> Iterator[Any]:
    """A safetensors file, open for reading. Raises ValueError: it is none, or not whole."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: unreadable ({error}); delete it, and make it anew") from None


def tensors(path: Path) -> dict[str, Any]:
    """The torch tensors of a safetensors file; raises as `opened`."""
    with opened(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def load(path: Path) -> Result:
    """Read what `save` wrote; raises as `opened`."""
    with opened(path, "numpy") as file:
        return {**json.loads(file.metadata()["json"]), **{k: file.get_tensor(k) for k in file.keys()}}  # noqa: SIM118


def memo(stage: str, key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
    """The result of `compute`, from scratch if a run with the same key, all that it depends on, has finished it."""
    path = folder(stage, key)
    file, cost = path / "result.safetensors", path / "seconds.json"
    state = "loaded"
    if not file.exists():
        with held(path):
            if not file.exists():
                start = time.monotonic()
                result = compute()
                write_json(cost, time.monotonic() - start)
                save(file, result)
                state = "computed"
    note(stage, state, json.loads(cost.read_text()))
    return load(file)


def note(stage: str, state: str, seconds: float) -> None:
    """Tell the running stage of a fit ("computed", or "loaded"), by a line in the file that `MATALIGN_FITS` names."""
    if log := os.environ.get("MATALIGN_FITS"):
        line = {"stage": stage, "state": state, "seconds": round(seconds, 3)}
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
