"""`dvc repro` of one profile: `python -m matalign.pipeline.repro --profile laptop`.

The block `profiles:` of params.yaml names what plain `dvc repro` runs. What DVC writes of profiles whose results git
ignores (the sample's) differs from machine to machine: it is kept in .dvc/tmp, not in the dvc.lock that git holds.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from matalign import config, paths
from matalign.pipeline import provenance


def switch(profile: str) -> None:
    """Rewrite the `profiles:` block of params.yaml, and nothing else in it, so that `dvc repro` runs this one.

    Raises:
        ValueError: no such profile, or a parameter is wrong; or no such block.
    """
    block = f"profiles:\n  {profile}:\n    raw: {config.load('curate', profile).raw}\n"
    text, count = re.subn(r"^profiles:.*\n(?:[ \t]+.*\n)*", block, paths.PARAMS.read_text(), flags=re.M)
    if count != 1:
        raise ValueError(f"{paths.PARAMS.name}: expected one block `profiles:` of indented lines, found {count}")
    if text != paths.PARAMS.read_text():
        paths.PARAMS.write_text(text)


def repro(*args: str) -> int:
    """`dvc repro`, which finds the entries kept aside and leaves in dvc.lock what git shall hold.

    Args:
        args: of `dvc repro`.

    Returns:
        DVC's exit code.
    """
    lock, aside = paths.ROOT / "dvc.lock", paths.ROOT / ".dvc" / "tmp" / "local.lock"
    _write(lock, _stages(aside) | _stages(lock))
    # stages say `python`: this one, whether its environment is active or not
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "dvc", "repro", *args]
    try:
        return subprocess.run(command, cwd=paths.ROOT, env=env, check=False).returncode
    finally:
        stages = _stages(lock)
        profiles = {name.partition("@")[2] for name in stages} - {""}
        ignored = {p for p in profiles if provenance.git("check-ignore", f"results/{p}/metrics") is not None}
        kept = {name: entry for name, entry in stages.items() if name.partition("@")[2] not in ignored}
        kept = kept if kept.keys() - {"source"} else {}
        _write(aside, {name: entry for name, entry in stages.items() if name not in kept})
        _write(lock, kept)


def _stages(file: Path) -> dict:
    return yaml.safe_load(file.read_text())["stages"] if file.exists() else {}


def _write(file: Path, stages: dict) -> None:
    """Write a lock's entries as DVC does, unchanged; no file where there are none."""
    if not stages:
        file.unlink(missing_ok=True)
    elif _stages(file) != stages:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


def main() -> None:
    """Command line; a wrong parameter ends in one line."""
    parser = argparse.ArgumentParser(prog="python -m matalign.pipeline.repro", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", help="make this the profile of params.yaml first")
    args, rest = parser.parse_known_args()
    try:
        if args.profile:
            switch(args.profile)
        sys.exit(repro(*rest))
    except (ValueError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
