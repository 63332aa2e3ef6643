"""Run one stage's notebook, `python -m matalign.pipeline.run <stage> --profile <p>`, and record the run.

The executed notebook is a function of the notebook's source and the stage's parameters: two runs give the same bytes.
"""

import argparse
import builtins
import os
import sys
import time
from pathlib import Path

from matalign import cache, config, paths
from matalign.pipeline import provenance

# jsonschema would import it for an optional check of addresses; building its grammar takes two seconds in every stage
sys.modules.setdefault("rfc3987_syntax", None)

NUMBERS = ("01", "02", "03", "03b", "04", "04b", "05", "05b", "05c", "05d", "06")
NAMES = {stage: f"{number}_{stage}" for number, stage in zip(NUMBERS, config.STAGES, strict=True)}
SOURCES = paths.ROOT / ".source"
ENVIRONMENT = {
    # else glibc gives large arrays back to the system after each step of training, and asks for them again in the next
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 26),
    # else threads that wait for each other spin: on a busy machine most of the processor's time goes there
    "OMP_WAIT_POLICY": "PASSIVE",
}
OUTER = (OSError, ValueError)  # input, disk
SHORT = ("failed to map segment", "allocate memory", "bad_alloc", "MemoryError")  # what libraries say without memory
# in the kernel: IPython's formatting of an error takes memory, and where there is none ends in a traceback of its own
TERSE = "get_ipython().set_custom_exc((MemoryError,), lambda s, kind, e, *_, **__: s._showtraceback(kind, e, []))"
HELP = "source: notebooks without outputs; embed: features of the model; stale: list results of other code"


def run(stage: str, profile: str) -> None:
    """Execute a stage's notebook for a profile, and write it and its provenance under `results/<profile>`.

    Raises:
        ValueError: params.yaml is wrong, or the notebook has other parameters than `profile`.
        RuntimeError: the notebook failed.
    """
    import nbformat

    # a typing error in a later stage's section stops the first stage, not the fourth an hour later
    cfg = {name: config.load(name, profile) for name in config.STAGES}[stage]
    folder = cache.folder("run", {"stage": stage, "profile": profile})
    name, fits = f"{NAMES[stage]}.ipynb", folder / "fits.jsonl"
    executed, made = (paths.results(profile) / part for part in (f"notebooks/{name}", f"provenance/{stage}.json"))
    with cache.held(folder):
        fits.unlink(missing_ok=True)
        os.environ[cache.FITS] = str(fits)
        settle(cfg.threads)
        start = time.monotonic()
        notebook = execute(source(paths.NOTEBOOKS / name), folder / name, profile=profile)
        minutes = (time.monotonic() - start) / 60
        for file in (executed, made):
            file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, executed)
        cache.write_json(made, provenance.record(cfg, minutes=minutes, fits=fits, earlier=made))


def settle(threads: int) -> None:
    """Set what libraries read once, as they are loaded, for this process and its kernel; what the user set stays."""
    for variable, value in {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}.items():
        os.environ.setdefault(variable, value)


def source(notebook: Path):
    """A notebook's cells and tags alone: ids by position; no outputs, counts or editor's metadata."""
    import nbformat

    nb = nbformat.read(notebook, as_version=4)
    for number, cell in enumerate(nb.cells, start=1):
        cell.id = f"cell-{number:02d}"
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nb.nbformat_minor = 5
    return _bare(nb)


def execute(notebook, file: Path, *, profile: str):
    """The notebook, executed for a profile, in a kernel that ends with this process; what failed is left in `file`.

    What differs between two runs is taken out: standard error, and notes of time.

    Raises:
        ValueError: the notebook has other parameters.
        RuntimeError: a cell failed; the message ends with its traceback, or, where the cause is no fault of the code
            (`OUTER`, `SHORT`), in one line.
    """
    import nbformat
    import papermill

    nbformat.write(notebook, file)
    if (names := list(papermill.inspect_notebook(file))) != ["profile"]:
        raise ValueError(f"{file.name}: a notebook has the one parameter 'profile', got {names}")
    # the kernel sits in a session of its own, where no signal to our process group reaches it
    die = f"__import__('matalign.cache').cache.die_with_parent({os.getpid()})"
    try:
        executed = papermill.execute_notebook(
            file,
            file,
            parameters={"profile": profile},
            kernel_name="python3",
            start_timeout=900,  # seconds; where others keep the machine busy, a kernel takes minutes to come up
            cwd=paths.ROOT,
            progress_bar=False,
            stdout_file=sys.stderr,  # what cells print is seen as it comes
            stderr_file=sys.stderr,
            coalesce_streams=True,
            extra_arguments=[*(f"--IPKernelApp.exec_lines={line}" for line in (die, TERSE)), "--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}".strip(": \n")
        if any(sign in said for sign in SHORT):
            why = f": memory is short: {said.splitlines()[-1]}"
        elif "SIGKILL" in said or issubclass(getattr(builtins, error.ename, Exception), OUTER):
            why = f": {said}"
        else:
            why = f"\n{error}"
        raise RuntimeError(f"{file.name} failed; as far as it came: {file}{why}") from None
    for cell in executed.cells:
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.id = "cell-parameters"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return _bare(executed)


def _bare(notebook):
    """The notebook, its metadata cut to the cells' tags."""
    import nbformat

    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := cell.metadata.get("tags")) else {})
    python = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": python, "language_info": {"name": "python"}})
    return notebook


def main() -> None:
    """Command line; a wrong parameter ends in one line, not in a traceback."""
    import nbformat

    cache.die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m matalign.pipeline.run", description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["source", "embed", "stale", *config.STAGES], help=HELP)
    parser.add_argument("--profile", default="sample", help="section of params.yaml, folder of results")
    args = parser.parse_args()
    try:
        if args.stage == "stale":
            print("\n".join(provenance.stale()) or "every committed result was computed by HEAD's code")
        elif args.stage == "source":
            SOURCES.mkdir(exist_ok=True)
            for name in NAMES.values():
                nbformat.write(source(paths.NOTEBOOKS / f"{name}.ipynb"), SOURCES / f"{name}.ipynb")
        elif args.stage == "embed":
            settle(config.load("pretrain", args.profile).threads)
            from matalign.pretrain import encode

            encode.embed(args.profile)
        else:
            run(args.stage, args.profile)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        sys.exit(f"error: {str(error) or type(error).__name__}")


if __name__ == "__main__":
    main()
