"""`dvc repro` of one profile: `python -m matalign.pipeline.repro --profile laptop`.

The block `profiles:` of params.yaml names what plain `dvc repro` runs. What DVC writes of profiles whose results git
ignores (the sample's) differs from machine to machine: it is kept in .dvc/tmp, not in the dvc.lock that git holds.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from dvc.utils.serialize import dump_yaml, load_yaml  # the lock is written by what DVC writes it with, byte for byte

from matalign import cache, config, paths
from matalign.pipeline import provenance

LOCK, ASIDE = "dvc.lock", ".dvc/tmp/local.lock"


def switch(profile: str, params: Path = paths.PARAMS) -> None:
    """Rewrite the block `profiles:` of params.yaml alone, so that `dvc repro` runs this; ValueError: no profile."""
    block = f"profiles:\n  {profile}:\n    raw: {config.load('curate', profile).raw}\n"
    before = params.read_text()
    text, count = re.subn(r"^profiles:.*\n(?:[ \t]+.*\n)*", block, before, flags=re.M)
    if count != 1:
        raise ValueError(f"{params.name}: expected one block `profiles:` of indented lines, found {count}")
    if text != before:
        params.write_text(text)


def repro(*args: str) -> int:
    """`dvc repro`'s exit code; it finds the entries kept aside and leaves in dvc.lock what git shall hold."""
    lock, aside = paths.ROOT / LOCK, paths.ROOT / ASIDE
    write(lock, stages_of(aside) | stages_of(lock))
    command = [sys.executable, "-m", "dvc", "repro", *args]
    try:
        # without `preexec_fn` DVC would go on when this process is killed; its stages end with it
        how = {"cwd": paths.ROOT, "env": environment(), "preexec_fn": cache.die_with_parent}
        return subprocess.run(command, **how, check=False).returncode
    finally:
        stages = stages_of(lock)
        profiles = {name.partition("@")[2] for name in stages} - {""}
        ignored = {p for p in profiles if provenance.ignores(f"results/{p}/metrics")}
        kept = {name: entry for name, entry in stages.items() if name.partition("@")[2] not in ignored}
        kept = kept if kept.keys() - {"source"} else {}
        write(aside, {name: entry for name, entry in stages.items() if name not in kept})
        write(lock, kept)


def environment() -> dict[str, str]:
    """This process's, for DVC: its stages say `python`, and mean this one, whether its environment is active or not."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def stages_of(lock: Path) -> dict:
    """The entries of a lock by stage; none where there is no file."""
    return load_yaml(lock)["stages"] if lock.exists() else {}


def write(lock: Path, stages: dict) -> None:
    """Write entries as DVC does, unchanged; no file where there are none."""
    if not stages:
        lock.unlink(missing_ok=True)
    elif stages_of(lock) != stages:
        lock.parent.mkdir(parents=True, exist_ok=True)
        dump_yaml(lock, {"schema": "2.0", "stages": stages})


def main() -> None:
    """Command line; a wrong parameter ends in one line."""
    parser = argparse.ArgumentParser(prog="python -m matalign.pipeline.repro", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", help="make this the profile of params.yaml first")
    args, rest = parser.parse_known_args()
    try:
        if args.profile:
            switch(args.profile)
        if (code := repro(*rest)) < 0:
            raise ValueError(f"DVC was killed: {signal.Signals(-code).name}; the same command goes on from there")
        sys.exit(code)
    except (ValueError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
