"""Who made a stage's files: time, machine, versions, commit; beside the results, outside the claim of identity."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from matalign import paths
from matalign.config import Stage


def record(cfg: Stage, *, minutes: float, fits: Path, earlier: Path) -> dict[str, Any]:
    """What to keep about one run of a stage; no host name, user or path.

    Args:
        cfg: the stage's parameters.
        minutes: wall time of the run.
        fits: what `scratch.note` has written during it.
        earlier: the record of the run before, if there was one. If this run has loaded all its fits, `computed` keeps
            minutes, machine and commit of the run of these parameters that did compute them.
    """
    made = {
        "parameters": dataclasses.asdict(cfg),
        "minutes": round(minutes, 2),
        "fits": count_fits(fits),
        "machine": machine(),
        "versions": versions(),
        "git": commit(),
    }
    if made["fits"] and not any(kind["computed"] for kind in made["fits"].values()) and earlier.exists():
        before = json.loads(earlier.read_text())
        if before["parameters"] == made["parameters"]:
            made["computed"] = before.get("computed") or {k: before[k] for k in ("minutes", "machine", "git")}
    return made


def count_fits(log: Path) -> dict[str, dict[str, Any]]:
    """Per kind of fit: how many this run computed, how many it loaded, and the minutes all took when computed.

    Where other machines computed some (`away`), `elsewhere` lists these, each with its fits and their minutes.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    counts = Counter((line["stage"], line["state"]) for line in lines)
    out = {}
    for kind in sorted({line["stage"] for line in lines}):
        own, away = [line for line in lines if line["stage"] == kind], {}
        for line in own:
            if "elsewhere" in line:
                away.setdefault(json.dumps(line["elsewhere"]), []).append(line)
        out[kind] = {
            "computed": counts[kind, "computed"],
            "loaded": counts[kind, "loaded"],
            "minutes": _minutes(own),
        }
        if away:
            made = [json.loads(by) | {"fits": len(each), "minutes": _minutes(each)} for by, each in away.items()]
            out[kind]["elsewhere"] = made
    return out


def _minutes(lines: list[dict[str, Any]]) -> float:
    return round(sum(line["seconds"] for line in lines) / 60, 2)


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, graphics processors, system."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), flags=re.MULTILINE) if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def gpus() -> list[str]:
    """Names of the GPUs, asked of the driver's tool so that this process never touches CUDA."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that this one names in its metadata and finds installed."""
    found = {"python": platform.python_version()}
    for requirement in importlib.metadata.requires("matalign") or []:
        name = re.match(r"[\w.-]+", requirement)[0]
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
    return found


def commit() -> dict[str, Any] | None:
    """The commit, and whether sources differ from it (what a run itself rewrites is not asked); None outside git."""
    made = [":!results", ":!dvc.lock", ":!params.yaml"]  # params.yaml: the parameters are recorded themselves
    status = ["status", "--porcelain", "--untracked-files=no", "--", ".", *made]
    git = [
        subprocess.run(["git", *args], cwd=paths.ROOT, capture_output=True, text=True, check=False)
        for args in (["rev-parse", "HEAD"], status)
    ]
    if git[0].returncode != 0:
        return None
    return {"sha": git[0].stdout.strip(), "dirty": bool(git[1].stdout.strip())}
