"""The command `matalign`: a released model asked from a shell.

Tables are for people, `--json` and `--csv` for programs. A file that cannot be read is named on standard error with
what is wrong in it, and the others go on. Exit code: 0 all went well, 1 some or all failed, 2 the command is wrong.
"""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matalign.release.printed import plain, ranges, records, show, with_files

if TYPE_CHECKING:  # they take seconds to import, and `--help` needs none
    import numpy as np

    from matalign.data.structures import Structures
    from matalign.release.released import Released

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dm3", ".dm4", ".emd", ".mrc", ".ser")
SUFFIXES = (".npy", ".safetensors")  # of what `embed` writes

Files = Annotated[list[Path], typer.Argument(help="CIF, POSCAR, JSON …; embed and neighbours: images, protocols too")]
Block = Annotated[str | None, typer.Option("--block", help="data block of a CIF with several crystals")]
Frame = Annotated[
    int | None, typer.Option("--frame", help="which of several structures or images, from 0; -1: the last")
]
ModelName = Annotated[str, typer.Option("--model", "-m", help="profile with a released model, or its folder")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
AsCsv = Annotated[bool, typer.Option("--csv", help="print CSV")]
Pixel = Annotated[float | None, typer.Option("--pixel-A", help="Å per pixel of images that state no scale")]

app = typer.Typer(
    help="Crystals, synthesis protocols and micrographs in one space.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and errors: no message is broken by a frame
)


@app.command()
def predict(
    files: Files,
    model: ModelName = "laptop",
    block: Block = None,
    frame: Frame = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Formation energy, gap, P(metal), K and G of crystals, each with an interval; and what is out of its depth."""
    one_of(as_json, as_csv)
    loaded = load(model)
    names, structures = crystals(files, block, frame)
    rows = with_files(names, records(loaded.properties(structures)))
    show(rows if as_json or as_csv else ranges(rows), as_json=as_json, as_csv=as_csv)
    end(files, names)


@app.command()
def embed(
    files: Files,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write: .npy or .safetensors")] = None,
    model: ModelName = "laptop",
    pixel_A: Pixel = None,
    block: Block = None,
    frame: Frame = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    cluster: Annotated[str, typer.Option(help="of a folder: Dask scheduler (tcp://…), or YAML for dask-jobqueue")] = "",
    workers: Annotated[int, typer.Option(min=1, help="of a folder: processes on this machine")] = 1,
) -> None:
    """Vectors of crystals, images (.tif, .dm4, .png …) and protocols (.txt, .json) in the shared space.

    A folder of structures*.safetensors, such as a curated set: --out is a folder, which gets a file for each of them.
    """
    one_of(as_json, as_csv)
    if files[0].is_dir() and out is not None:
        if len(files) > 1 or as_json or as_csv:
            raise typer.BadParameter("expected one folder of shards and --out, nothing else")
        from matalign.release import bulk

        count = bulk.embed(load(model).folder, files[0], out, processes=workers, cluster=cluster)
        print(f"{count:,} vectors in {out}", file=sys.stderr)
        return
    if cluster or workers > 1:
        raise typer.BadParameter("--cluster and --workers are for a folder of shards")
    if out is None and not (as_json or as_csv):
        raise typer.BadParameter("expected --out, --json or --csv")
    if out is not None and out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    names, embeddings = vectors(files, load(model), pixel_A, block, frame)
    if out is not None and names:
        save(out, embeddings, names)
        print(f"{len(embeddings)} vectors of {embeddings.shape[1]} numbers in {out}", file=sys.stderr)
    if as_json or as_csv:
        rows = records({f"z{i}": column for i, column in enumerate(embeddings.T)})
        show(with_files(names, rows), as_json=as_json, as_csv=as_csv)
    end(files, names)


@app.command()
def neighbours(
    files: Files,
    k: Annotated[int, typer.Option("-k", min=1, help="how many for each file")] = 10,
    among: Annotated[str, typer.Option(help="crystal or protocol")] = "crystal",
    model: ModelName = "laptop",
    pixel_A: Pixel = None,
    block: Block = None,
    frame: Frame = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What lies nearest to a crystal, an image or a protocol."""
    one_of(as_json, as_csv)
    loaded = load(model)
    names, embeddings = vectors(files, loaded, pixel_A, block, frame)
    try:
        rows = loaded.neighbours(embeddings, k, among=among).to_dict("records")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    show(with_files([names[row.pop("query")] for row in rows], rows), as_json=as_json, as_csv=as_csv)
    end(files, names)


@app.command()
def recommend(
    files: Files,
    k: Annotated[int, typer.Option("-k", min=1, help="protocols, and precursor sets")] = 5,
    model: ModelName = "laptop",
    block: Block = None,
    frame: Frame = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """How a crystal might be made: protocols of its neighbours in the space, and precursor sets with temperatures."""
    one_of(as_json, as_csv)
    loaded = load(model)
    print(f"recipes are from {loaded.cookbook.source}", file=sys.stderr)
    names, structures = crystals(files, block, frame)
    answers = {name: loaded.recommend(structures.take([i]), k) for i, name in enumerate(names)}
    if as_json:
        print(json.dumps([{"file": name, **plain(vars(answer))} for name, answer in answers.items()], indent=1))
    elif as_csv:
        parts = {"protocol": "protocols", "precursor set": "precursor_sets"}
        rows = [
            {**row, "file": name, "part": part}
            for name, answer in answers.items()
            for part, field in parts.items()
            for row in getattr(answer, field).to_dict("records")
        ]
        show(rows, as_json=False, as_csv=True)
    else:
        for name, answer in answers.items():
            low, high = answer.temperature_C
            print(f"{name}: {answer.formula}\n\nprotocols nearby, highest temperatures {low:.0f} to {high:.0f} °C")
            show(answer.protocols.to_dict("records"), as_json=False, as_csv=False)
            print("\nprecursor sets, temperatures in °C")
            show(answer.precursor_sets.to_dict("records"), as_json=False, as_csv=False)
            print()
    end(files, names)


@app.command()
def register(
    image: Annotated[Path, typer.Argument(help="micrograph: .tif, .dm4, .png …")],
    files: Files,
    out: Annotated[
        Path | None, typer.Option("--png", help="file for image, pristine picture and residual of the best")
    ] = None,
    pixel_A: Pixel = None,
    frame: Frame = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Which crystal a micrograph shows: correlation, zone axis, pixel size, and where it departs from the crystal."""
    one_of(as_json, as_csv)
    from matalign.release import registering

    names, structures = crystals(files, None, None)

    def registered(file: Path) -> list[registering.Match]:
        return registering.register(registering.read_micrograph(file, pixel_A=pixel_A, frame=frame), structures)

    _, found = taken([image], registered)
    if not found or not names:
        raise typer.Exit(1)
    matches = sorted(zip(names, found[0]), key=lambda pair: -pair[1].correlation)
    if out is not None:
        registering.write_png(matches[0][1], out)
    rows = with_files([name for name, _ in matches], [registering.summary(match) for _, match in matches])
    if as_json:
        for row, (_, match) in zip(rows, matches):
            row["candidates"] = [vars(candidate) for candidate in match.candidates]
    show(rows, as_json=as_json, as_csv=as_csv)
    if not (as_json or as_csv) and matches[0][1].candidates:
        print(f"\nwhere the image departs from {matches[0][0]}, Å down and right of its centre")
        show([vars(candidate) for candidate in matches[0][1].candidates], as_json=False, as_csv=False)
    end(files, names)


@app.command()
def fetch(names: Annotated[list[str] | None, typer.Argument(help="sources; all if none is named")] = None) -> None:
    """Download the sources that recipes are looked up in; from MATALIGN_MIRROR where that is set."""
    from matalign import paths
    from matalign.data import library, sources
    from matalign.data.fetch import fetch as bring

    known, failed = list(sources.catalogue()), False
    if unknown := [name for name in names or () if name not in known]:
        raise typer.BadParameter(f"no source {unknown[0]!r}; one of {', '.join(known)}")
    for name in names or known:
        try:
            print(bring(name))
        except (OSError, ValueError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = True
    if not failed and library.present(paths.RAW):
        print(f"{len(library.read(paths.RAW)):,} recipes in {paths.DATA / 'index'}")
    raise typer.Exit(int(failed))


@app.command(name="import")
def import_(
    source: Annotated[
        str, typer.Argument(help="folder with manifest.csv, CSV with a column cif, or OPTIMADE provider")
    ],
    name: Annotated[str, typer.Argument(help="of the set: data/curated/<name>")],
    filter: Annotated[str, typer.Option(help="OPTIMADE query, such as 'elements HAS \"Ti\" AND nsites<=20'")] = "",
    limit: Annotated[int, typer.Option("--max", min=0, help="take so many of a provider's structures; 0: all")] = 0,
    partial: Annotated[bool, typer.Option("--partial", help="take what came of a provider that gives not all")] = False,
) -> None:
    """Make a curated set of one's own data; what is wrong with a manifest is told by row, and nothing is imported."""
    from matalign.data import own_data

    try:
        own_data.checked_name(name)
        if Path(source).is_dir():
            found = own_data.import_folder(source)
        elif Path(source).suffix.lower() == ".csv":
            found = own_data.import_csv(source)
        else:
            found = own_data.import_optimade(source, filter, max_structures=limit, partial=partial)
        folder = own_data.write(name, found)
    except (OSError, ValueError) as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        raise typer.Exit(1) from None
    if gap := found.audit.get("query", {}).get("gap"):
        print(f"not all of it: {gap}", file=sys.stderr)
    for row in found.audit["skipped"]:
        print("left out: {rows} × {reason}, first {first}".format(**row), file=sys.stderr)
    print(f"{len(found.materials):,} materials, {len(found.protocols):,} protocols in {folder}")


def load(model: str) -> "Released":
    """The model; one that is not there or not whole is an error of usage."""
    from matalign.release import integrity, released

    try:
        loaded = released.load(model)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None
    if integrity.SEAL not in loaded.about:
        print(f"note: {loaded.folder}: config.json holds no hash of itself: edits of it are not seen", file=sys.stderr)
    return loaded


def taken(files: list[Path], read: Callable[[Path], Any]) -> tuple[list[str], list[Any]]:
    """Names and contents of the files that can be read; of the others standard error tells what is wrong."""
    names, items = [], []
    for file in files:
        try:
            items.append(read(file))
            names.append(str(file))
        except (OSError, ValueError) as error:
            print(f"error: {error}" if file.name in str(error) else f"error: {file}: {error}", file=sys.stderr)
    return names, items


def end(files: list[Path], names: list[str]) -> None:
    """Leave with the exit code."""
    raise typer.Exit(int(len(names) < len(files)))


def crystal(file: Path, block: str | None, frame: int | None) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """The structure in a file; what its reading assumed is told on standard error."""
    from matalign import read_structure

    cell = read_structure(file, block=block, frame=frame)
    for note in cell.notes:
        print(f"note: {file}: {note}", file=sys.stderr)
    return cell.arrays


def crystals(files: list[Path], block: str | None, frame: int | None) -> "tuple[list[str], Structures]":
    """Names and structures of the files that hold one."""
    from matalign.data.structures import Structures

    names, items = taken(files, lambda file: crystal(file, block, frame))
    return names, Structures.pack(items)


def vectors(
    files: list[Path], loaded: "Released", pixel_A: float | None, block: str | None, frame: int | None
) -> "tuple[list[str], np.ndarray]":
    """Names and embeddings of the files that can be read, whatever they hold."""
    import numpy as np

    from matalign.data.readers.micrographs import model_image
    from matalign.data.readers.recipe_texts import read_protocol
    from matalign.data.structures import Structures

    cfg = loaded.config

    def read(file: Path) -> tuple[str, Any]:
        if file.suffix.lower() in IMAGES:
            image = model_image(file, pixel_A=pixel_A, frame=frame, to_pixel_A=cfg.pixel_A, px=cfg.image_px)
            return "images", (image, cfg.pixel_A)
        if file.suffix.lower() == ".txt" or (file.suffix.lower() == ".json" and not of_crystal(file)):
            return "protocols", read_protocol(file, level=cfg.mask_level)
        return "structures", crystal(file, block, frame)

    names, items = taken(files, read)
    out = np.zeros((len(items), cfg.embed_dim), np.float32)
    for kind in sorted({kind for kind, _ in items}):
        rows = [i for i, (other, _) in enumerate(items) if other == kind]
        each = [items[i][1] for i in rows]
        out[rows] = loaded.embed(**{kind: Structures.pack(each) if kind == "structures" else each})
    return names, out


def of_crystal(file: Path) -> bool:
    """Whether a JSON file holds a structure; if not, it is taken for a protocol, whose reader says what is wrong."""
    from matalign.data.readers import records

    try:
        return records.holds_structure(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, RecursionError):
        return False


def save(out: Path, found: "np.ndarray", names: list[str]) -> None:
    """Write vectors; beside those in safetensors stand the names of their files."""
    import numpy as np
    from safetensors.numpy import save_file

    if out.suffix == ".npy":
        np.save(out, found)
    else:
        save_file({"embeddings": found}, out, metadata={"files": json.dumps(names)})


def one_of(as_json: bool, as_csv: bool) -> None:
    """Refuse two forms at once."""
    if as_json and as_csv:
        raise typer.BadParameter("expected --json or --csv, not both")


def main() -> None:
    """The command; what this machine refuses, or a model that cannot answer, is one line, not a traceback."""
    try:
        app()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {explained(error)}")


def explained(error: Exception) -> str:
    """What went wrong, and what to set where a folder cannot be written."""
    refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return f"{error}{'; set MATALIGN_ROOT or MATALIGN_SCRATCH to a folder that can be written' if refused else ''}"


if __name__ == "__main__":
    main()
