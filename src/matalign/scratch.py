"""Resume state of long work: a folder per (stage, config, code), held by one process at a time.

DVC deletes a stage's outputs before it runs, so what a killed run has finished lives here. A result is kept under the hash of
everything it depends on (parameters, data, source code) and is found again by the next run; figures and prose are not part of it.
"""

import ast
import ctypes
import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from matalign import paths

SOURCE = Path(__file__).parent
Result = dict[str, Any]  # arrays and JSON values


def die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when its parent is gone, however that ended."""
    if hasattr(ctypes, "CDLL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def import_closure(*modules: str) -> list[Path]:
    """Source files of this package that the named modules import, themselves included, sorted.

    Args:
        modules: dotted names within the package, for example ``"train"`` or ``"encoders.crystal"``.
    """
    found: set[Path] = set()
    todo = [module_file(name) for name in modules]
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "matalign":
                prefix = node.module.split(".")[1:]
                names = [".".join([*prefix, alias.name]) for alias in node.names] + [".".join(prefix)]
                todo += [f for f in map(module_file, names) if f is not None]
            elif isinstance(node, ast.Import):
                parts = [alias.name.split(".", 1) for alias in node.names]
                todo += [f for p in parts if p[0] == "matalign" and len(p) > 1 and (f := module_file(p[1]))]
    return sorted(found)


def module_file(name: str) -> Path | None:
    """The file of a module of this package, None if there is none of that name."""
    stem = SOURCE.joinpath(*name.split(".")) if name else SOURCE
    candidates = [stem.with_suffix(".py"), stem / "__init__.py"] if name else []
    return next((f for f in candidates if f.exists()), None)


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON value's blake2b hash, keys sorted."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def code_digest(*modules: str) -> str:
    """Hash of the source of the named modules and all they import from this package."""
    return digest([f.read_text() for f in import_closure(*modules)])


def folder(stage: str, key: Mapping[str, Any]) -> Path:
    """The scratch folder of a stage for a key (parameters, data hash, code hash), made if absent; its key in `key.json`."""
    path = paths.SCRATCH / stage / digest(dict(key))
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "key.json", dict(key))
    return path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a scratch folder for this process; a second holder is refused.

    Raises:
        RuntimeError: another process holds it; the message names its pid.
    """
    with open(path / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RuntimeError(f"{path} is held by process {lock.read().strip()}; wait for it, or end it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: temporary name, then rename; keys keep their order."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n")
    temporary.rename(path)


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


def load(path: Path) -> Result:
    """Read what `save` wrote."""
    with safe_open(path, framework="numpy") as file:
        return {**json.loads(file.metadata()["json"]), **{k: file.get_tensor(k) for k in file.keys()}}  # noqa: SIM118


def memo(stage: str, key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
    """The result of `compute`, from scratch if a run with the same key has finished it.

    Args:
        stage: name of the scratch subfolder.
        key: everything the result depends on: parameters, seed, `data` hash, `code` hash (`code_digest`).
        compute: returns numpy arrays and JSON values by name.
    """
    path = folder(stage, key)
    file = path / "result.safetensors"
    if not file.exists():
        with held(path):
            save(file, compute())
    return load(file)
