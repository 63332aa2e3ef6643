"""Do results repeat: a second run gives the same bytes, or committed metrics give the committed paper."""

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from matalign import paths

COMPARED = ("metrics", "tables", "figures", "paper.pdf")  # of results/<profile>


def again(profile: str) -> str:
    """Do a profile's results again in a copy of the project, with fresh resume state, and compare them byte by byte.

    Where git holds the profile's metrics, the copy is a bare clone and the tables, figures and paper are made again
    from the committed metrics; else everything is run again from the data.

    Returns:
        What was compared.

    Raises:
        RuntimeError: a file differs, is missing or is new; or there is nothing to compare with.
    """
    results = paths.results(profile).relative_to(paths.ROOT)
    committed = bool(git("ls-files", str(results / "metrics")))
    if not (paths.ROOT / results / "metrics").is_dir():
        raise RuntimeError(f"{results} is not there; run it first: make repro PROFILE={profile}")
    with tempfile.TemporaryDirectory(prefix="matalign-check-") as folder:
        copy = Path(folder) / "copy"
        if committed:
            subprocess.run(["git", "clone", "-q", paths.ROOT, copy], check=True)
            before = Path(folder) / "before"
            subprocess.run(["cp", "-a", copy / results, before], check=True)
            for name in COMPARED[1:]:
                subprocess.run(["rm", "-rf", copy / results / name], check=True)
            stages = ["-s", "source", f"paper@{profile}"]
        else:
            before, stages = paths.ROOT / results, []
            files = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
            copy.mkdir()
            archive = ["tar", "--null", "--files-from=-", "--ignore-failed-read", "-cf", "-"]
            packed = subprocess.run(archive, cwd=paths.ROOT, input=files.encode(), capture_output=True, check=True)
            subprocess.run(["tar", "-xf", "-"], cwd=copy, input=packed.stdout, check=True)
            subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
        env = {k: v for k, v in os.environ.items() if k not in ("MATALIGN_ROOT", "GIT_DIR")}
        env |= {"MATALIGN_SCRATCH": f"{folder}/scratch", "PYTHONPATH": str(copy / "src")}
        for command in (["-m", "matalign.run", "--switch", profile], ["-m", "dvc", "repro", "--force", *stages]):
            subprocess.run([sys.executable, *command], cwd=copy, env=env, check=True)
        found = differences(before, copy / results)
    if found:
        raise RuntimeError(f"{results} does not repeat: {', '.join(found)}")
    return f"{results}: {', '.join(COMPARED)} are identical" + (" to git's" if committed else " in a second run")


def git(*args: str) -> str:
    """What git answers in the project's folder."""
    return subprocess.run(["git", *args], cwd=paths.ROOT, check=True, capture_output=True, text=True).stdout


def differences(before: Path, after: Path) -> list[str]:
    """Files of `COMPARED`, relative and sorted, that two folders of results do not share to the byte."""
    files: set[Path] = set()
    for root in (before, after):
        for name in COMPARED:
            files |= {f.relative_to(root) for f in [root / name, *(root / name).rglob("*")] if f.is_file()}
    same = filecmp.cmpfiles(before, after, [str(f) for f in files], shallow=False)[0]
    return sorted({str(f) for f in files} - set(same))
