"""Resume state of long work: a folder per (stage, config, code), held by one process at a time.

DVC deletes a stage's outputs before it runs, so what a killed run has finished lives here. A result is kept under the
hash of everything it depends on (parameters, data, source code) and is found again by the next run; figures and prose
are not part of it.
"""

import ast
import ctypes
import fcntl
import functools
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from matalign import paths

SOURCE = Path(__file__).parent
ELSEWHERE = "elsewhere.json"  # in a result's folder: which other machine made it (`away.unpack`)
Result = dict[str, Any]  # arrays and JSON values


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel (Linux) to end this process when its parent is gone, however that ended.

    Args:
        parent: process that started this one, where the starter passed its pid on: if it is gone already, so are we.

    Note:
        The signal comes when the *thread* that started this process ends, so start it from a thread that stays.
    """
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def import_closure(*modules: str) -> list[Path]:
    """Source files of this package that the named modules import, themselves included, sorted.

    Who imports a subpackage itself, and not one of its modules, has all of its modules.

    Args:
        modules: dotted names within the package, for example ``"train"`` or ``"encoders.crystal"``.

    Raises:
        ValueError: there is no such module.
    """
    unknown = [name for name in modules if module_file(name) is None]
    if unknown:
        raise ValueError(f"no module {unknown[0]!r} in {SOURCE.name}")
    found: set[Path] = set()
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        file = module_file(name)
        if file is None or name in seen:
            continue
        seen.add(name)
        files = {file}
        if file.name == "__init__.py":  # a subpackage may load any of its modules by name
            todo += [f"{name}.{other.stem}" for other in file.parent.glob("*.py") if other != file]
        if package := name.rpartition(".")[0]:  # Python runs its __init__.py first
            files.add(module_file(package))
        for each in files - found:
            todo += imported(each.read_text())
        found |= files
    return sorted(found)


@functools.cache
def imported(code: str) -> frozenset[str]:
    """Dotted names within this package that Python code imports; some may be functions or classes of a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(name.removeprefix("matalign.") for name in names if name.startswith("matalign."))


def module_file(name: str) -> Path | None:
    """The file of a module of this package, None if there is none of that name."""
    stem = SOURCE.joinpath(*name.split("."))
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.exists()), None)


def digest(value: Any) -> str:
    """Sixteen hex digits of a JSON value's blake2b hash, keys sorted."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def code_digest(*modules: str) -> str:
    """Hash of the code of modules and all they import from this package, without comments, docstrings and layout.

    Without `config` too: what it reads is part of every key, and a new parameter of one stage is not news to another.
    """
    return digest([_without_prose(f.read_text()) for f in import_closure(*modules) if f != SOURCE / "config.py"])


@functools.cache
def _without_prose(code: str) -> str:
    """Hash of a module's syntax tree less its docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return digest(_nodes(tree))


def _nodes(node: Any) -> Any:
    """A syntax tree as nested lists, without what differs between versions of Python.

    That are fields that say nothing, and empty pieces of an f-string.
    """
    if isinstance(node, ast.JoinedStr):
        return [_nodes(piece) for piece in node.values if not (isinstance(piece, ast.Constant) and piece.value == "")]
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return [type(node).__name__, *([name, _nodes(value)] for name, value in fields)]
    return [_nodes(each) for each in node] if isinstance(node, list) else repr(node)


def folder(stage: str, key: Mapping[str, Any]) -> Path:
    """The scratch folder of a stage for a key (parameters, data and code hash), made if absent; `key.json` tells it."""
    path = paths.SCRATCH / stage / digest(dict(key))
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "key.json", dict(key))
    return path


@contextmanager
def held(path: Path, *, patience_s: float = 5.0) -> Iterator[None]:
    """Hold a scratch folder for this process; a second holder is refused.

    Args:
        path: the folder.
        patience_s: seconds to wait for a holder that is just ending.

    Raises:
        RuntimeError: another process holds it; the message names its pid.
    """
    deadline = time.monotonic() + patience_s
    with open(path / "lock", "a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    holder = lock.read().strip()
                    raise RuntimeError(f"{path} is held by process {holder}; wait for it, or end it") from None
                time.sleep(0.1)
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
    note(stage, state, json.loads(cost.read_text()), path)
    return load(file)


def note(stage: str, state: str, seconds: float, path: Path) -> None:
    """Tell the provenance of the running stage of a fit, by a line in the file that `MATALIGN_FITS` names, if it does.

    Args:
        stage: which kind of fit.
        state: ``"computed"`` now, or ``"loaded"`` from an earlier run.
        seconds: what it cost when it was computed.
        path: its folder, which tells if another machine computed it.
    """
    if log := os.environ.get("MATALIGN_FITS"):
        line = {"stage": stage, "state": state, "seconds": round(seconds, 3)}
        if (path / ELSEWHERE).exists():
            line["elsewhere"] = json.loads((path / ELSEWHERE).read_text())
        with open(log, "a") as file:
            file.write(json.dumps(line) + "\n")
