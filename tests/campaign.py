"""Kill campaign, outside `make test`: python tests/campaign.py [--tiny 25] [--sample 5] [--seed 0]

A project is run, and disturbed at moments that are drawn: one of its processes or their group gets SIGKILL, the disk is
full, memory is short, the clock jumps, a second run starts, results cannot be written. Each time it is noted what was
said and what still ran, and the next run goes on from there; when the pipeline has come to its end, all bytes are
compared with those of a project that was never disturbed. A moment is a number of seconds of processor time after
it starts, so that a busy machine changes nothing. All is kept in .scratch/campaign: a campaign that is
ended goes on when it is started again. Figures: results/reliability.json, written after each event.

Full disks and folders that cannot be written are tmpfs mounts (root on Linux). There is no second clock: `time.time` of
every Python process jumps by days, and all files get times in the past or the future.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import projects
import psutil
from projects import Project

from matalign import cache, paths
from matalign.pipeline import provenance

FOLDER = paths.ROOT / ".scratch" / "campaign"
REPORT = paths.ROOT / "results" / "reliability.json"
projects.REPRO = (sys.executable, "-m", "matalign.pipeline.repro")  # what `make repro` starts
VICTIMS = {  # part of the command line
    "rank": "matalign.pretrain.train",
    "worker": "joblib.externals.loky",
    "kernel": "ipykernel_launcher",
    "stage": "matalign.pipeline.run",
    "dvc": "-m dvc repro",
    "make": projects.REPRO[-1],
}
MOUNTED = ("full disk", "read-only results")
OTHERS = (*MOUNTED, "memory", "clock", "two runs") * 2
SHARE = 0.25  # of the processor time of a whole run: the latest moment
PATIENCE_S = 900  # of this clock, for processes to end after a kill; a busy machine is slow
CLOCK = """import random, time
_time, _calls = time.time, 0
def jumped():
    global _calls
    _calls += 1
    return _time() + ({days} * 86400 if _calls > {calls} else 0)
time.time = jumped
"""


# Disturbances: each yields what `Project.start_repro` is given


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A tmpfs over a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True)
    try:
        yield {}
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def jumping(project: Project, draw: random.Random) -> Iterator[dict[str, Any]]:
    """A clock that jumps, and files of another time."""
    days, code = draw.choice([-400, -2, 2, 400]), project.root.parent / "clock"
    code.mkdir(exist_ok=True)
    (code / "sitecustomize.py").write_text(CLOCK.format(days=days, calls=draw.randrange(2000)))
    then = time.time() + draw.choice([-400, 400]) * 86400
    for name in (".scratch", "results", "data", ".source"):
        for file in (project.root / name).rglob("*"):
            os.utime(file, (then, then))
    yield {"env": {"PYTHONPATH": f"{code}{os.pathsep}{project.env['PYTHONPATH']}"}}


def disturbed(kind: str, project: Project, draw: random.Random) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """What a run is under."""
    if kind == "full disk":
        name, size = draw.choice(["results", ".scratch", "data/curated"]), draw.choice([64, 256, 1024])
        return mounted(project.root / name, f"size={size}k")
    if kind == "read-only results":
        return mounted(project.root / "results", "ro")
    if kind == "clock":
        return jumping(project, draw)
    if kind == "memory":
        limit = int(draw.choice([1.0, 2.5, 4.0]) * 2**30)
        return contextlib.nullcontext({"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))})
    return contextlib.nullcontext({})


# One event


def running(project: Project) -> dict[str, list[psutil.Process]]:
    """Kind of process -> those of the project."""
    found: dict[str, list[psutil.Process]] = {}
    for process in project.processes():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = next((name for name, part in VICTIMS.items() if part in line), "other")
            found.setdefault(kind, []).append(process)
    return found


def stage(project: Project) -> str:
    """The one that runs."""
    for process in running(project).get("stage", ()):
        with contextlib.suppress(psutil.Error, ValueError):
            words = process.cmdline()
            return words[words.index(VICTIMS["stage"]) + 1]
    return ""


def reaches(project: Project, repro: subprocess.Popen, seconds: float) -> bool:
    """Wait until the project's processes have used so much processor time; whether they did before the run ended."""
    spent: dict[int, float] = {}
    while repro.poll() is None:
        for process in project.processes():
            with contextlib.suppress(psutil.Error):
                spent[process.pid] = sum(process.cpu_times()[:2])
        if sum(spent.values()) >= seconds:
            return True
        time.sleep(0.2)
    return False


def kill(project: Project, repro: subprocess.Popen, draw: random.Random, hits: Counter) -> str:
    """SIGKILL for the kind of process that had the fewest, of those that run, or for their group; which."""
    there = running(project)
    kinds = sorted({"group", *there} - {"other"}, key=lambda kind: (hits[kind], kind))
    victim = draw.choice([kind for kind in kinds if hits[kind] == hits[kinds[0]]])
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if victim == "group":
            os.killpg(repro.pid, signal.SIGKILL)
        else:
            draw.choice(there[victim]).kill()
    return victim


def waited(condition: Callable[[], bool]) -> bool:
    """Whether it holds within `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.5)
    return condition()


def left(project: Project, repro: subprocess.Popen) -> list[str]:
    """Names of processes that do not end; they are killed."""
    waited(lambda: repro.poll() is not None and not project.processes())
    found = []
    for process in project.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.name())
            process.kill()
    if repro.poll() is None:
        os.killpg(repro.pid, signal.SIGKILL)
    repro.wait()
    return found


def event(project: Project, kind: str, draw: random.Random, seconds: float, hits: Counter) -> dict[str, Any]:
    """Run the project under a disturbance until it ends or the moment has come, at which something is killed.

    Returns:
        {kind, moment_s, stage, victim ("": it ended first), exit, said, traceback, left}.
    """
    latest, log = SHARE * seconds, project.root.parent / "output.txt"
    moment = (
        draw.uniform(0, latest) if kind in ("kill", "clock", "two runs") else latest
    )  # the others end it, if it can
    row: dict[str, Any] = {"kind": kind, "moment_s": round(moment, 2), "victim": ""}
    with disturbed(kind, project, draw) as how, open(log, "w") as output:
        repro = project.start_repro(output=output, **how)
        if kind == "two runs":
            waited(lambda: repro.poll() is not None or stage(project) != "")
            second = project.command(*projects.REPRO)
            row["second"] = {"exit": second.returncode, "said": said(project, second.stdout)}
        if reaches(project, repro, moment):
            row["stage"] = stage(project)
            row["victim"] = kill(project, repro, draw, hits)
        row["left"] = left(project, repro)
    text = log.read_text(errors="replace")
    row |= {"exit": repro.returncode, "said": said(project, text), "traceback": "Traceback (most recent" in text}
    return row


def said(project: Project, text: str) -> list[str]:
    """The lines that tell of an error, without the paths of the project and of its packages."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return [
        line.replace(str(project.root), "").replace(sys.prefix, "")[:300]
        for line in lines
        if line.lower().startswith("error:")
    ]


# The campaign


def digests(project: Project) -> dict[str, str]:
    """Name of each file that a second run must repeat -> its hash."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in project.files().items()}


def reference(profile: str, known: dict[str, Any]) -> None:
    """Run a project that is not disturbed, of which another is kept as it was: files' hashes, and processor time."""
    for name in ("fresh", "undisturbed"):
        shutil.rmtree(FOLDER / profile / name, ignore_errors=True)
    project = projects.make(FOLDER / profile / "fresh", profile).copy(FOLDER / profile / "undisturbed")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    project.repro()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    known["files"], known["commit"] = digests(project), provenance.git("rev-parse", "HEAD")
    known["seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ended(project: Project, known: dict[str, Any]) -> None:
    """Note a pipeline that has come to its end: which files are others than the reference's."""
    found = digests(project)
    differ = sorted(
        name for name in found.keys() | known["files"].keys() if found.get(name) != known["files"].get(name)
    )
    known["ends"].append({"after": len(known["events"]), "files": len(found), "differ": differ})


def campaign(profile: str, kinds: list[str], seed: int) -> dict[str, Any]:
    """All events of a profile, from where it stands; its part of the report."""
    folder = FOLDER / profile
    folder.mkdir(parents=True, exist_ok=True)
    file, root = folder / "state.json", folder / "disturbed"
    known = json.loads(file.read_text()) if file.exists() else {"mark": "", "events": [], "ends": [], "files": {}}
    if not known["files"]:
        reference(profile, known)
    project = Project(root, profile, known["mark"]) if root.exists() and known["mark"] else None
    if project:  # of a campaign that was ended, maybe within an event
        for process in project.processes():
            process.kill()
        for line in Path("/proc/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{root}/"):
                subprocess.run(["umount", "-l", place], check=True)
    random.Random(seed).shuffle(kinds)
    while True:
        cache.write_json(file, known)
        report(profile, known, kinds)
        n = len(known["events"])
        if n >= len(kinds):
            if project is None:
                return known
            project.repro()
            ended(project, known)
            project, known["mark"] = None, ""
            continue
        if project is None:
            shutil.rmtree(root, ignore_errors=True)
            project = Project(folder / "fresh", profile).copy(root)
            known["mark"] = project.mark
            cache.write_json(file, known)
        hits = Counter(row["victim"] for row in known["events"])
        draw = random.Random(f"{seed} {n} {len(known['ends'])}")
        row = event(project, kinds[n], draw, known["seconds"], hits)
        print(json.dumps(row), flush=True)
        if row["exit"] == 0 and not row["victim"] and kinds[n] not in MOUNTED:  # it came to its end before the moment
            ended(project, known)
            project, known["mark"] = None, ""
            if kinds[n] == "kill":  # which is still to come, in a project made anew
                continue
        known["events"].append(row)


def report(profile: str, known: dict[str, Any], kinds: list[str]) -> None:
    """Write the figures of a profile into results/reliability.json."""
    rows = known["events"]
    part = {
        "events": f"{len(rows)} of {len(kinds)}",
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "victims": dict(Counter(row["victim"] for row in rows if row["victim"])),
        "left_running": sum(len(row["left"]) for row in rows),
        "tracebacks": sum(row["traceback"] for row in rows),
        "ends": known["ends"],
        "commit": known.get("commit"),
        "processor_s": round(known.get("seconds", 0), 1),
        "each": rows,
    }
    versions = {name: importlib.metadata.version(name) for name in ("dvc", "torch", "numpy", "papermill", "joblib")}
    about = {"seed": ARGS.seed, "python": sys.version.split()[0]}
    whole = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    cache.write_json(REPORT, {**whole, **about, "versions": versions, profile: part})


def failed(known: dict[str, Any]) -> bool:
    """Whether anything was not as it must be."""
    return any(row["left"] or row["traceback"] for row in known["events"]) or any(e["differ"] for e in known["ends"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", type=int, default=25, help="kills in the tiny pipeline; 0: none, nor anything else")
    parser.add_argument("--sample", type=int, default=5, help="kills in the pipeline of the sample")
    parser.add_argument("--seed", type=int, default=0)
    ARGS = parser.parse_args()
    plans = {"tiny": ["kill"] * ARGS.tiny + list(OTHERS) * (ARGS.tiny > 3), "sample": ["kill"] * ARGS.sample}
    made = [campaign(profile, kinds, ARGS.seed) for profile, kinds in plans.items() if kinds]
    sys.exit(int(any(map(failed, made))))
