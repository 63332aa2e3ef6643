"""Resume state of long work: a folder per (kind, key), held by one process at a time.

DVC deletes a stage's outputs before it runs, so what a killed run has finished lives here. A result's key is its
parameters, the digest of its data, the fingerprints of the results it is made from, and the version of its kind
(`config.version`), which a person raises when numbers change on purpose; golden numbers (tests/golden) guard it. Code
is no part of a key: a move, a new name or a comment re-runs nothing.
"""

import ctypes
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from matalign import paths

FITS = "MATALIGN_FITS"  # see `note`
CONNECT_S, WORKERS_S = 60, 3600  # to wait for a scheduler, and for its first worker, which may stand in a queue
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


def keep_memory() -> None:
    """Have glibc keep what is freed for the next step: to give it back and ask again takes half of a small step."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in ((-4, 0), (-1, 1 << 30), (-2, 1 << 26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(parameter, value)


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
    cluster: str = "",
) -> Iterator[Made]:
    """What is made of each item, in order, side by side in processes of this machine or on a Dask cluster.

    Args:
        work: a function of a module, or a partial of one; it and the items are sent to the processes.
        processes: one or fewer: all is done here. Those of this machine (loky's) end with this one.
        size: of an item, in units.
        cluster: see `on_cluster`, as many processes as it has threads; "": what `MATALIGN_CLUSTER` says, if anything.

    Raises:
        OSError: see `on_cluster`; and what `work` raises.
    """
    import joblib  # here: the command `predict` has no use for it

    with on_cluster(cluster or os.environ.get("MATALIGN_CLUSTER", "")):
        parallel = joblib.Parallel(max(processes, 1), return_as="generator", batch_size=1)
        made = parallel(joblib.delayed(_work)(os.getpid(), os.environ.get(FITS), work, item) for item in items)
        with tqdm(total=sum(map(size, items)), desc=title, unit=unit, mininterval=1) as bar:
            for item, result in zip(items, made):
                bar.update(size(item))
                yield result


@contextmanager
def on_cluster(where: str) -> Iterator[None]:
    """Have joblib send its tasks to a Dask cluster, whose workers see the same files under the same names.

    What a lost worker had is done again by another, three times at most.

    Args:
        where: address of a scheduler; a YAML file {class of dask_jobqueue: {jobs: how many, and its options}}, whose
            jobs are queued and end with this process; or "": stay on this machine.

    Raises:
        OSError: there is no scheduler, no worker or no command that submits jobs, or they are lost.
        ValueError: the file holds something else.
    """
    if not where:
        yield
        return
    import joblib

    try:
        import distributed
    except ImportError:
        raise OSError("a cluster needs the extra `cluster`: distributed and dask-jobqueue") from None
    for name in ("distributed", "distributed.client", "tornado", "asyncio"):  # the error tells what was lost
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with ExitStack() as stack:
            if where.endswith((".yaml", ".yml")):
                where = stack.enter_context(_queued(Path(where)))
            stack.enter_context(distributed.Client(where, timeout=CONNECT_S))
            stack.enter_context(joblib.parallel_config("dask", wait_for_workers_timeout=WORKERS_S))
            yield
    except (CancelledError, distributed.scheduler.KilledWorker) as error:
        why = str(error).strip().splitlines()[0].rpartition("reason: ")[2].rstrip(".")
        raise OSError(f"the cluster is lost ({why}); the same command goes on from what is done") from None


def _queued(file: Path) -> Any:
    """A cluster of the jobs that a file describes."""
    import dask_jobqueue

    try:
        ((kind, options),) = yaml.safe_load(file.read_text()).items()
        cluster = getattr(dask_jobqueue, kind)
        command = getattr(cluster.job_cls, "submit_command", None)
        options = dict(options)
        jobs = options.pop("jobs")
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        raise ValueError(f"{file}: expected {{class of dask_jobqueue: {{jobs: number, and its options}}}}") from None
    if command and not shutil.which(command):
        raise OSError(f"{file}: {kind} submits its jobs by {command}, which is not on this machine")
    made = cluster(**options)
    made.scale(jobs=jobs)
    return made


def _work(starter: int, fits: str | None, work: Callable[[Item], Made], item: Item) -> Made:
    if fits:
        os.environ[FITS] = fits
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
    try:
        save_file(arrays, temporary, metadata={"json": json.dumps(rest, default=_plain)})
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from None
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


def about(path: Path) -> dict[str, Any]:
    """The JSON values of what `save` wrote, without the arrays; raises as `opened`."""
    with opened(path, "numpy") as file:
        return json.loads(file.metadata()["json"])


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
    """Tell the running stage of a fit ("computed" or "loaded"), by a line in the file that `FITS` names, if it does."""
    if log := os.environ.get(FITS):
        line = {"stage": stage, "state": state, "seconds": round(seconds, 3)}
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
