"""Who made a stage's files: time, machine, versions, commit; beside the results, outside the claim of identity."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import joblib

from matalign import paths
from matalign.config import Stage

GOLDEN = "tests/golden/{kind}.json"


def record(cfg: Stage, *, minutes: float, fits: Path, earlier: Path) -> dict[str, Any]:
    """What to keep about one run of a stage; no host name, user or path.

    Args:
        fits: what `cache.note` has written during it.
        earlier: the record of the run before, if there was one. If this run has loaded all its fits, `computed` keeps
            minutes, machine, versions and commit of the run of these parameters that did compute them; a parameter
            that there was not then has changed none of them.
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
        before, now = json.loads(earlier.read_text()), json.loads(json.dumps(made["parameters"]))  # tuples are lists
        if {name: now.get(name) for name in before["parameters"]} == before["parameters"]:
            kept = ("minutes", "machine", "versions", "git")
            made["computed"] = before.get("computed") or {k: before[k] for k in kept}
    return made


def count_fits(log: Path) -> dict[str, dict[str, Any]]:
    """Per kind of fit: how many this run computed, how many it loaded, and the minutes all took when computed."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    counts = Counter((line["stage"], line["state"]) for line in lines)
    return {
        kind: {
            "computed": counts[kind, "computed"],
            "loaded": counts[kind, "loaded"],
            "minutes": round(sum(line["seconds"] for line in lines if line["stage"] == kind) / 60, 2),
        }
        for kind in sorted({line["stage"] for line in lines})
    }


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, graphics processors, system."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), flags=re.MULTILINE) if info.exists() else []
    gpus = answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")  # this process never touches CUDA
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": joblib.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "gpus": (gpus or "").splitlines(),
        "system": f"{platform.system()} {platform.machine()}",
    }


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
    """The commit, the tree of its code, and whether sources differ from it; None outside git.

    What a run itself rewrites is not asked; of params.yaml the parameters are recorded themselves.
    """
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!dvc.lock", ":!params.yaml")
    sha = git("rev-parse", "HEAD")
    return None if sha is None else {"sha": sha, "code": git("rev-parse", "HEAD:src"), "dirty": bool(status)}


def git(*args: str) -> str | None:
    """What git answers in the project's folder; None where it fails."""
    return answer("git", *args)


def ignores(name: str | Path) -> bool:
    """Whether git leaves a file or folder out, be it there or not; False outside git."""
    return git("check-ignore", str(name), f"{name}/") is not None  # the slash: patterns of folders


def ignored(folder: Path) -> list[str]:
    """The names in a folder that git leaves out; none where it leaves out the folder, or there is no git."""
    return [] if ignores(folder) else [file.name for file in folder.iterdir() if ignores(file)]


def answer(*command: str) -> str | None:
    """Standard output of a command run in the project's folder; None where it fails or is not installed."""
    try:
        return subprocess.check_output(command, cwd=paths.ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def stale() -> list[str]:
    """One line for each result that git holds and whose computing code differs from HEAD's.

    Says by how many commits to `src`, and whether the kind's golden numbers, which HEAD's code is tested to give, have
    changed since; or that the commit is not in the history (a shallow clone, or a lost branch).
    """
    lines, now = [], git("rev-parse", "HEAD:src")
    for file in sorted(paths.ROOT.glob("results/*/provenance/*.json")):
        made = json.loads(file.read_text())
        if "git" not in made or git("ls-files", "--", str(file.relative_to(paths.ROOT))) == "":
            continue
        at = made.get("computed", made)["git"] or {}
        sha, name = at.get("sha", "none"), f"{file.parents[1].name}/{file.stem}"
        code = git("rev-parse", "--verify", "--quiet", f"{sha}:src")
        if code is None:
            lines.append(f"{name}: computed by commit {sha[:12]}, which is not in the history")
        elif code != now or at.get("dirty"):
            changed = " with changes" if at.get("dirty") else ""
            count = git("rev-list", "--count", f"{sha}..HEAD", "--", "src")
            golden = GOLDEN.format(kind="synthesis" if file.stem == "recommendation" else file.stem)
            numbers = [git("rev-parse", "--verify", "--quiet", f"{commit}:{golden}") for commit in (sha, "HEAD")]
            same = not changed and None is not numbers[0] == numbers[1]
            state = "golden numbers unchanged since" if same else "awaits its re-run"
            if file.stem == "paper":  # computes nothing
                state = "make check makes it anew"
            lines.append(f"{name}: computed by commit {sha[:12]}{changed}, {count} commits to src ago; {state}")
    return lines
