"""Run one stage's notebook, `python -m matalign.pipeline.run <stage> --profile <p>`, and what is needed around it.

The executed notebook is a function of the notebook's source and the stage's parameters: two runs give the same bytes.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from matalign import cache, config, paths
from matalign.pipeline import provenance

# jsonschema would import it for an optional check of addresses; building its grammar takes two seconds in every stage
sys.modules.setdefault("rfc3987_syntax", None)

NUMBERS = ("01", "02", "03", "03b", "04", "04b", "05", "05b", "05c", "06")
NAMES = {stage: f"{number}_{stage}" for number, stage in zip(NUMBERS, config.STAGES, strict=True)}
SOURCES = paths.ROOT / ".source"
# else glibc gives large arrays back to the system after each step of training, and asks for them again in the next
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_TOP_PAD_": str(1 << 26)}
ADDRESS = r" at 0x[0-9a-f]+"  # of an object in memory
STYLED = r"\bT_[0-9a-f]{5}(?=[\s_\"])"  # the random id of a table that pandas has styled


def run(stage: str, profile: str) -> None:
    """Execute a stage's notebook for a profile, and write it and its provenance under `results/<profile>`.

    Raises:
        ValueError: params.yaml is wrong, or the notebook has other parameters than `profile`.
        RuntimeError: another process runs this stage; or the notebook failed.
    """
    import papermill

    # a typing error in a later stage's section stops the first stage, not the fourth an hour later
    cfg = {name: config.load(name, profile) for name in config.STAGES}[stage]
    folder = cache.folder("run", {"stage": stage, "profile": profile})
    notebook, fits = folder / f"{NAMES[stage]}.ipynb", folder / "fits.jsonl"
    with cache.held(folder):
        save(stripped(paths.NOTEBOOKS / notebook.name), notebook)
        if (names := list(papermill.inspect_notebook(notebook))) != ["profile"]:
            raise ValueError(f"{notebook.name}: a notebook has the one parameter 'profile', got {names}")
        fits.unlink(missing_ok=True)
        os.environ["MATALIGN_FITS"] = str(fits)
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
        start = time.monotonic()
        executed = execute(notebook, profile)
        minutes = (time.monotonic() - start) / 60
        save(executed, paths.results(profile) / "notebooks" / notebook.name)
        made = paths.results(profile) / "provenance" / f"{stage}.json"
        made.parent.mkdir(parents=True, exist_ok=True)
        cache.write_json(made, provenance.record(cfg, minutes=minutes, fits=fits, earlier=made))


def stripped(notebook: Path):
    """A notebook's source alone: cells and their tags, ids by position; no outputs, counts or editor's metadata."""
    import nbformat

    nb = nbformat.read(notebook, as_version=4)
    for number, cell in enumerate(nb.cells, start=1):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata = nbformat.from_dict({"kernelspec": python, "language_info": {"name": "python"}})
    nb.nbformat_minor = 5
    return nb


def source(notebook: Path) -> str:
    """A notebook as a py:percent script: what the stages depend on, so that saving outputs or ids re-runs nothing."""
    import jupytext

    nb = stripped(notebook)
    nb.metadata["jupytext"] = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}
    return jupytext.writes(nb, fmt="py:percent")


def execute(notebook: Path, profile: str):
    """Execute a stripped notebook for a profile in a kernel that ends with this process.

    Args:
        notebook: file; what failed, as far as it came, is left beside it.
        profile: section of params.yaml.

    Returns:
        The executed notebook, stripped of what differs between two runs.

    Raises:
        RuntimeError: a cell failed; the message ends with its traceback.
    """
    import papermill

    log_to_terminal(papermill.log.logger)
    progress = notebook.with_suffix(".executed.ipynb")
    # the kernel sits in a session of its own, where no signal to our process group reaches it
    die = f"__import__('matalign.cache').cache.die_with_parent({os.getpid()})"
    try:
        executed = papermill.execute_notebook(
            notebook,
            progress,
            parameters={"profile": profile},
            cwd=paths.ROOT,
            log_output=True,
            progress_bar=False,
            extra_arguments=[f"--IPKernelApp.exec_lines={die}", "--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{notebook.name} failed; as far as it came: {progress}\n{error}") from None
    progress.unlink()
    for number, cell in enumerate(executed.cells):
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.id, cell.source = "cell-parameters", cell.source.removeprefix("# Parameters\n")
        cell.metadata = {"tags": tags} if (tags := cell.metadata.get("tags")) else {}
        if cell.cell_type == "code":
            cell.outputs = repeatable(cell.outputs, number=number)
    executed.metadata = stripped(notebook).metadata
    return executed


def repeatable(outputs: list, *, number: int) -> list:
    """A cell's outputs less what differs between two runs: standard error, split streams, addresses, random ids.

    Args:
        outputs: of the cell.
        number: of the cell, to tell its styled tables from those of others.
    """
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            output.text = re.sub(ADDRESS, "", output.text)
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        for kind in {"text/plain", "text/html"} & set(output.get("data", ())):
            text = re.sub(ADDRESS, "", output.data[kind])
            output.data[kind] = re.sub(STYLED, f"T_{number:02d}{len(kept):03d}", text)
        kept.append(output)
    return kept


def log_to_terminal(logger: logging.Logger) -> None:
    """Send papermill's log, with what the cells print and their progress bars, to standard error as it comes."""

    class Raw(logging.StreamHandler):
        terminator = ""

        def format(self, log: logging.LogRecord) -> str:
            text = log.getMessage()
            # papermill hands on what cells write to standard error as warnings: bars end in no newline
            return text if log.levelno >= logging.WARNING else text.rstrip("\n") + "\n"

    logger.handlers, logger.propagate = [Raw(sys.stderr)], False
    logger.setLevel(logging.INFO)


def save(notebook, file: Path) -> None:
    """Write a notebook, its folder made if absent."""
    import nbformat

    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)


def switch(profiles: Sequence[str]) -> None:
    """Rewrite the `profiles:` block of params.yaml, and nothing else in it, so that `dvc repro` runs these.

    Raises:
        ValueError: no such profile, or a parameter is wrong; or no such block.
    """
    raw = {profile: config.load("curate", profile).raw for profile in profiles}
    block = "".join(f"  {profile}:\n    raw: {folder}\n" for profile, folder in raw.items())
    text, found = re.subn(r"^profiles:.*\n(?:[ \t]+.*\n)*", f"profiles:\n{block}", paths.PARAMS.read_text(), flags=re.M)
    if found != 1:
        raise ValueError(f"{paths.PARAMS.name}: expected one block `profiles:` of indented lines, found {found}")
    paths.PARAMS.write_text(text)


def repro() -> int:
    """`dvc repro`, after which dvc.lock holds what git shall hold, and nothing of profiles whose results git ignores.

    Entries of those (the sample's) differ from machine to machine. They wait in .dvc/tmp for the next run, unchanged.

    Returns:
        DVC's exit code.
    """
    lock, local = paths.ROOT / "dvc.lock", paths.ROOT / ".dvc" / "tmp" / "local.lock"
    own, mine = (yaml.safe_load(f.read_text())["stages"] if f.exists() else {} for f in (lock, local))
    _write_lock(lock, mine | own)
    try:
        return subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=paths.ROOT, check=False).returncode
    finally:
        stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
        profiles = {name.partition("@")[2] for name in stages} - {""}
        ignored = {p for p in profiles if provenance.git("check-ignore", f"results/{p}/metrics") is not None}
        kept = {name: entry for name, entry in stages.items() if name.partition("@")[2] not in ignored}
        kept = kept if kept.keys() - {"source"} else {}
        _write_lock(local, {name: entry for name, entry in stages.items() if name not in kept})
        _write_lock(lock, kept)


def _write_lock(file: Path, stages: dict) -> None:
    """Write a lock as DVC does; none where there are no stages."""
    if not stages:
        file.unlink(missing_ok=True)
    elif not file.exists() or yaml.safe_load(file.read_text())["stages"] != stages:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


def main() -> None:
    """Command line; a wrong parameter ends in one line, not in a traceback."""
    cache.die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m matalign.pipeline.run", description=__doc__.split("\n")[0])
    parser.add_argument("stage", nargs="?", choices=["source", *config.STAGES], help="source: py:percent copies")
    parser.add_argument("--profile", default="sample", help="section of params.yaml, folder of results")
    parser.add_argument("--switch", nargs="+", metavar="PROFILE", help="make these the profiles that dvc repro runs")
    parser.add_argument(
        "--repro", action="store_true", help="dvc repro; of profiles that git ignores, nothing stays in dvc.lock"
    )
    parser.add_argument("--stale", action="store_true", help="list committed results that other code has computed")
    args = parser.parse_args()
    try:
        if args.switch:
            switch(args.switch)
        elif args.repro:
            sys.exit(repro())
        elif args.stale:
            print("\n".join(provenance.stale()) or "every committed result was computed by HEAD's code")
        elif args.stage == "source":
            SOURCES.mkdir(exist_ok=True)
            for name in NAMES.values():
                (SOURCES / f"{name}.py").write_text(source(paths.NOTEBOOKS / f"{name}.ipynb"))
        elif args.stage:
            run(args.stage, args.profile)
        else:
            parser.error("a stage, --switch, --repro or --stale")
    except (ValueError, RuntimeError, yaml.YAMLError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
