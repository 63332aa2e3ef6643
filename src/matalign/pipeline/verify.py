"""Re-run one stage in a copy of what git holds, and compare: `python -m matalign.pipeline.verify --profile laptop`.

From raw data: every stage before it runs again too, in a clone with no resume state and no cache, so that nothing of an
earlier run is read but raw files, whose hashes data/dvc.lock has. `--load` takes the results of earlier stages that are
here instead, and the report says so. The paper is made from metrics and always loads them. Around the re-run all that
git holds of the profile is checked: against the lock, the history, and the hashes of the released model.
"""

import argparse
import dataclasses
import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matalign import config, paths
from matalign.data import sources
from matalign.pipeline import provenance, repro

# (relative, absolute) of a number that another machine or other versions computed: |made - kept| <= absolute +
# relative * |kept|, by the metric of its row, else its own name, else OTHER. Set by hand: training amplifies rounding
# to about what another seed does. None: not compared. Where machine and versions are the same: equal.
TOLERANCES: dict[str, tuple[float, float] | None] = {
    "MAE": (0.05, 0.0),
    "RMSE": (0.10, 0.0),
    "accuracy": (0.0, 0.02),
    "F1": (0.0, 0.02),
    "macro_F1": (0.0, 0.03),
    "ECE": (0.0, 0.03),
    "ECE_scaled": (0.0, 0.03),
    "MRR": (0.0, 0.02),
    **dict.fromkeys(("R@1", "R@5", "R@10", "R@50"), (0.0, 0.03)),
    "gain_percent": (0.0, 5.0),
    "loss_train": (0.05, 0.0),
    "loss_val": (0.05, 0.0),
    # single draws, and words with numbers in them
    **dict.fromkeys(("steps", "parity", "fits", "p", "p_holm", "note", "statement", "best_epoch"), None),
}
OTHER = (0.05, 0.02)
REPORT = "verify.md"
SHOWN = 25  # differences that the page has room for
PAPER = "paper"  # its raw data are metrics
MADE = ("pretrained", "features")  # by stages whose results git ignores everywhere


def differences(old: Any, new: Any, *, exact: bool, where: str = "", name: str = "") -> Iterator[str]:
    """Places where two metrics files differ, a line each."""
    allowed = TOLERANCES.get(name, OTHER)
    if not exact and allowed is None:
        return
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            named = old.get("metric", key) if TOLERANCES.get(key, OTHER) else key
            yield from differences(old[key], new[key], exact=exact, where=f"{where}.{key}".lstrip("."), name=named)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, exact=exact, where=f"{where}[{i}]", name=name)
    elif isinstance(old, float) and isinstance(new, float) and not exact:
        relative, absolute = allowed
        if not abs(new - old) <= absolute + relative * abs(old):
            yield f"{where}: {old!r} kept, {new!r} made, {absolute:g} + {100 * relative:g} % allowed"
    elif old != new:
        yield f"{where}: {_short(old)} kept, {_short(new)} made"


def _short(value: Any) -> str:
    return repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"


def stages(profile: str) -> list[str]:
    """Those whose results are here."""
    return [s for s in config.STAGES if (paths.results(profile) / "provenance" / f"{s}.json").exists()]


def record(profile: str, stage: str) -> dict[str, Any]:
    """The provenance of a stage, of the run that computed its result. Raises ValueError: the file is none."""
    file = paths.results(profile) / "provenance" / f"{stage}.json"
    made = json.loads(file.read_text())
    made |= made.get("computed", {})
    if missing := {"parameters", "minutes", "machine", "versions", "git"} - made.keys():
        raise ValueError(f"{file.relative_to(paths.ROOT)}: no record of a run, it lacks {', '.join(sorted(missing))}")
    return made


def history(profile: str) -> Iterator[str]:
    """What is wrong with the records of the profile's stages: parameters, commit, code and versions of each.

    A record states what computed a result: that commit is in the history, with that tree of code and those versions in
    its lock, and its parameters are today's.
    """
    for stage in config.STAGES:
        if stage not in stages(profile):
            if (paths.results(profile) / "metrics" / f"{stage}.json").exists():
                yield f"{stage}: metrics without provenance"
            continue
        made = record(profile, stage)
        if made["parameters"] != json.loads(json.dumps(dataclasses.asdict(config.load(stage, profile)))):
            yield f"{stage}: provenance has other parameters than params.yaml"
        commit = made["git"] or {"sha": "none"}
        sha = commit["sha"]
        if provenance.git("merge-base", "--is-ancestor", sha, "HEAD") is None:
            yield f"{stage}: computed by commit {sha[:12]}, which is not in the history"
            continue
        if commit["dirty"] or commit.get("code", "") not in ("", provenance.git("rev-parse", f"{sha}:src")):
            yield f"{stage}: computed by other code than that of commit {sha[:12]}"
        lock = provenance.git("show", f"{sha}:requirements.txt") or ""
        pins = dict(re.findall(r"^([\w.-]+)==([^\s\\;]+)", lock, flags=re.M))
        for name, version in made["versions"].items():
            if pins.get(re.sub(r"[-_.]+", "-", name).lower(), version) != version:
                yield f"{stage}: computed with {name} {version}, commit {sha[:12]} pins another"


def model(folder: Path) -> Iterator[str]:
    """Files of a released model that are not those its `config.json` names by their hashes."""
    if not (folder / "config.json").exists():
        return
    named = json.loads((folder / "config.json").read_text())["files"]
    here = {f.name for f in folder.iterdir()} - {"config.json", "README.md"}
    for name in sorted(named.keys() | here):
        if name not in named:
            yield f"model/{name}: not named by its config.json"
        elif name not in here:
            yield f"model/{name}: missing"
        elif sources.file_hash(folder / name) != named[name]:
            yield f"model/{name}: other bytes than config.json names"


def uncommitted(profile: str) -> Iterator[str]:
    """Files that git holds and that differ here: the re-run has HEAD's."""
    own = f":!results/{profile}/{REPORT}"
    held = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!params.yaml", ":!dvc.lock", own)
    for line in (provenance.git(*held) or "").splitlines():
        yield f"{line.split(maxsplit=1)[-1]}: not as in HEAD"


@dataclasses.dataclass(frozen=True)
class Clone:
    """HEAD in a folder of its own, with the results that git ignores, raw files, and the entries of the lock."""

    root: Path
    profile: str
    lock: dict[str, Any]
    loaded: tuple[str, ...]  # files of this machine

    @classmethod
    def make(cls, root: Path, profile: str, *, load: bool) -> "Clone":
        """Clone, and copy what a re-run reads; with `load` also what earlier stages have made."""
        sha = provenance.git("rev-parse", "HEAD")
        subprocess.run(["git", "clone", "-q", str(paths.ROOT), str(root)], check=True)
        subprocess.run(["git", "-C", str(root), "checkout", "-q", "--detach", sha], check=True)
        names = [config.load("curate", profile).raw]
        names += [f"data/curated/{profile}", *(f"results/{profile}/{name}" for name in MADE)] if load else []
        loaded = [name for name in names if (paths.ROOT / name).exists() and not (root / name).exists()]
        results = paths.results(profile)
        if provenance.ignores(f"results/{profile}/metrics") and results.exists():
            shutil.copytree(results, root / "results" / profile, ignore=shutil.ignore_patterns(*MADE))
        for name in loaded:
            shutil.copytree(paths.ROOT / name, root / name)
        lock = repro.stages_of(paths.ROOT / repro.ASIDE) | repro.stages_of(paths.ROOT / repro.LOCK)
        repro.write(root / repro.LOCK, lock)
        repro.switch(profile, root / "params.yaml")
        return cls(root, profile, lock, tuple(loaded))

    def run(self, *args: str, **how: Any) -> subprocess.CompletedProcess:
        """A Python module, with HEAD's code and no resume state but the clone's own."""
        places = {"MATALIGN_ROOT": ".", "MATALIGN_SCRATCH": ".scratch", "PYTHONPATH": "src"}
        env = repro.environment() | {name: str(self.root / part) for name, part in places.items()}
        return subprocess.run([sys.executable, "-m", *args], cwd=self.root, env=env, check=False, text=True, **how)

    def disagreements(self) -> Iterator[str]:
        """Files, parameters and commands that are not those of the lock, by `dvc status`."""
        self.run("matalign.pipeline.run", "source", stdout=subprocess.DEVNULL)
        if not any(name.endswith(f"@{self.profile}") for name in self.lock):
            yield f"{repro.LOCK} has no entry of this profile"
            return
        answer = self.run("dvc", "status", "--json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if answer.returncode:
            yield "dvc status failed"
            return
        for stage, changes in json.loads(answer.stdout).items():
            for change in changes:
                files = {"command": "modified"} if isinstance(change, str) else next(iter(change.values()))
                for name, state in files.items():
                    if isinstance(state, dict):  # the parameters of a file
                        yield from (f"{stage}: {key} is not as in the lock" for key in state)
                    elif state == "modified" or (state == "deleted" and not provenance.ignores(name)):
                        yield f"{stage}: {name} is not as in the lock"

    def rerun(self, stage: str, *, single: bool) -> tuple[list[str], bool]:
        """Run a stage, and unless single all before it: each that ran, with its minutes; and whether all went well."""
        start, flags = time.time(), ["--force", *(["--single-item"] if single else [])]
        ended = self.run("dvc", "repro", *flags, f"{stage}@{self.profile}", stdout=sys.stderr)
        records = sorted((self.results / "provenance").glob("*.json"), key=lambda file: file.stat().st_mtime)
        new = [file for file in records if file.stat().st_mtime >= start and file.stem in config.STAGES]
        return [f"{f.stem} ({json.loads(f.read_text())['minutes']} min)" for f in new], ended.returncode == 0

    @property
    def results(self) -> Path:
        """Of the profile."""
        return self.root / "results" / self.profile

    def compared(self, stage: str, *, exact: bool) -> dict[str, list[str]]:
        """What of a stage the re-run made otherwise: numbers; on the same machine, and of the paper, bytes."""
        name, path = f"{stage}@{self.profile}", f"results/{self.profile}/metrics/{stage}.json"
        found = {}
        if (self.root / path).exists():
            old, new = (
                (root / path).read_text() if (root / path).exists() else "{}" for root in (paths.ROOT, self.root)
            )
            found[f"metrics of {stage}"] = list(differences(json.loads(old), json.loads(new), exact=exact))
        if exact or not found:
            made = {out["path"]: out["md5"] for out in repro.stages_of(self.root / repro.LOCK)[name]["outs"]}
            kept = {out["path"]: out["md5"] for out in self.lock.get(name, {"outs": []})["outs"]}
            found[f"bytes of {stage}"] = [f"{file}: other bytes" for file in kept if made.get(file) != kept[file]]
        return found


def verify(profile: str, stage: str, *, load: bool) -> list[str]:
    """Check, re-run, compare, and write the report; gives what differs."""
    then, here = record(profile, stage), {"machine": provenance.machine(), "versions": provenance.versions()}
    exact = all(then[name] == here[name] for name in here)
    found = {
        "files as in HEAD": list(uncommitted(profile)),
        "provenance, history": list(history(profile)),
        "released model, hashes": list(model(paths.results(profile) / "model")),
    }
    with tempfile.TemporaryDirectory(prefix="matalign-verify-") as folder:
        clone = Clone.make(Path(folder) / "clone", profile, load=load)
        found["lock and files"] = list(clone.disagreements())
        ran, well = clone.rerun(stage, single=load)
        found |= clone.compared(stage, exact=exact) if well else {"re-run": [f"{stage} failed"]}
    about = {
        "re-run": ", ".join(ran),
        "loaded from this machine": ", ".join(clone.loaded) or "nothing",
        "machine and versions": "the same: all must be equal"
        if exact
        else "others: within the tolerances of verify.py",
        "commit": provenance.git("rev-parse", "HEAD"),
        "machine": _line(here["machine"]),
        "machine that computed it": _line(then["machine"]),
        "minutes then": then["minutes"],
        "versions that differ": _changed(then["versions"], here["versions"]) or "none",
    }
    (paths.results(profile) / REPORT).write_text(page(profile, stage, about, found))
    return [line for lines in found.values() for line in lines]


def _line(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value)


def _changed(then: dict[str, str], now: dict[str, str]) -> str:
    names = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    return ", ".join(f"{name} {then.get(name, 'absent')} (now {now.get(name, 'absent')})" for name in names)


def page(profile: str, stage: str, about: dict[str, Any], found: dict[str, list[str]]) -> str:
    """The report, of one page: what was run and compared, and the first differences."""
    lines = [line for found_here in found.values() for line in found_here]
    verdict = f"{len(lines)} differences" if lines else "agrees"
    text = [f"# `{stage}` of `{profile}`: {verdict}", "", f"By `make verify PROFILE={profile} STAGE={stage}`.", ""]
    text += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in about.items())]
    text += ["", "| checked | differences |", "| --- | --- |"]
    text += [f"| {name} | {len(each) or 'none'} |" for name, each in found.items()]
    text += ["", *(f"- {line}" for line in lines[:SHOWN])] if lines else []
    return "\n".join([*text, *([f"- and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []), ""])


def main() -> None:
    """Command line; ends with 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m matalign.pipeline.verify", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="sample", help="whose results")
    parser.add_argument("--stage", choices=config.STAGES, help="without it, one drawn at random")
    parser.add_argument("--load", action="store_true", help="take results of earlier stages that are here")
    args = parser.parse_args()
    try:
        shallow = provenance.git("rev-parse", "--is-shallow-repository")
        if shallow != "false":
            why = "has the last commits alone: git fetch --unshallow" if shallow else "is not here: clone with git"
            raise ValueError(f"results are compared with the history, which {why}")
        if not (done := stages(args.profile)) or (args.stage or done[0]) not in done:
            raise ValueError(f"no results of {args.stage or 'any stage'} in results/{args.profile}")
        stage = args.stage or secrets.choice(done)
        lines = verify(args.profile, stage, load=args.load or stage == PAPER)
    except (ValueError, FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines) or f"{stage} of {args.profile} agrees")
    print(f"report: results/{args.profile}/{REPORT}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
