"""Heavy work on another machine, in pieces of minutes: `pack` here, `work` there until all is done, `unpack` here.

    python -m matalign.away pack --profile full                          # after `curate`: writes .away/full.tar.xz
    python -m matalign.away work --profile full --minutes 9 --out back   # there, with the project and that file
    python -m matalign.away unpack back/*.tar                            # `dvc repro` then loads what it would compute

What travels is resume state. A result lies in scratch under the hash of its parameters, data and code, so whoever has
the same of these finds it, on whatever machine it was made. The curated set goes, and of the texts their features, as
the language model stays; the towers and what fits predict come back. Pretraining, fits of networks and defects are run
one after the other, those first that most depends on. When time is over they are killed, and the same command goes on
from their last checkpoints. Where the project and its scratch are one for both machines, `work` alone will do.
"""

import argparse
import io
import json
import lzma
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from matalign import check, config, dataset, defects, encoders, fits, launch, paths, provenance, scratch, workers
from matalign.encoders import text
from matalign.fits import Fit

FOLDER = paths.ROOT / ".away"
STAGES = {"pretrain": "train", "properties": "fits", "defects-head": "defects"}  # -> module whose code is in the key
FINISHED = ("model", "result.safetensors")
KEPT = ("key.json", "pretrain.json", "times.jsonl", "seconds.json", *FINISHED)  # of a finished result
MANIFEST = "manifest.json"
PACK_BYTES = 60_000_000  # that the project's files and the pack may have together
PART_BYTES = 15_000_000  # of results in one file
CHUNK_BYTES = 4_000_000  # that are compressed by themselves, side by side


def identity(profile: str) -> dict[str, Any]:
    """What results must have in common to be found: the profile's data, and the code that makes them."""
    code = {stage: scratch.code_digest(module) for stage, module in STAGES.items()}
    return {"profile": profile, "data": dataset.read(paths.curated(profile)).digest, "code": code}


def check_same(theirs: Mapping[str, Any], *, where: str) -> None:
    """Compare a manifest with what is here.

    Raises:
        ValueError: other data or other code; the message says of which stages.
    """
    ours = identity(theirs["profile"])
    if theirs["data"] != ours["data"]:
        raise ValueError(f"{where}: of data {theirs['data']}, here is {ours['data']}; curate both from the same")
    other = [stage for stage, digest in ours["code"].items() if theirs["code"][stage] != digest]
    if other:
        raise ValueError(f"{where}: of other code for {', '.join(other)}; take the commit that it was made with")


def pack(profile: str, *, half: bool = False) -> tuple[Path, int]:
    """Write what another machine needs besides the project's files.

    Args:
        profile: curated.
        half: text features in half precision, at half the size.

    Returns:
        The file, and the bytes of the project's own files.

    Raises:
        ValueError: it would be too large beside them; or layers of the text model are to be trained.
    """
    cfg, about = config.load("pretrain", profile), identity(profile)
    files = {f"curated/{file.name}": file.read_bytes() for file in sorted(paths.curated(profile).iterdir())}
    if "text" in cfg.modalities.split():
        if cfg.unfreeze_layers:
            raise ValueError(f"unfreeze_layers is {cfg.unfreeze_layers}: training them needs the text model itself")
        torch.set_num_threads(cfg.threads)
        texts = dataset.read(paths.curated(profile)).protocols[f"text_L{cfg.mask_level}"]
        with tempfile.TemporaryDirectory() as folder:
            text.carry(encoders.build("text", cfg), sorted(set(texts)), Path(folder), half=half)
            where = text.carried(cfg.text_model).relative_to(paths.SCRATCH)
            files[f"scratch/{where}/{text.FEATURES}"] = (Path(folder) / text.FEATURES).read_bytes()
    content = lzma.compress(tarred(files | {MANIFEST: json.dumps(about).encode()}), preset=9)
    names = check.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    own = sum((paths.ROOT / name).stat().st_size for name in set(filter(None, names)) if (paths.ROOT / name).is_file())
    if own + len(content) > PACK_BYTES:
        sizes = f"{len(content) / 1e6:.1f} MB beside the project's {own / 1e6:.1f} MB"
        raise ValueError(f"the pack has {sizes}: over {PACK_BYTES / 1e6:.0f} MB{'' if half else '; try --half'}")
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / f"{profile}.tar.xz"
    target.write_bytes(content)
    return target, own


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A tar file of these, with no name, time or owner of a machine."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def untarred(content: bytes) -> dict[str, bytes]:
    """The files of what `tarred` made, compressed or not.

    Raises:
        ValueError: anything else, or a name that leads out of a folder.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            found = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"damaged, or not of matalign.away: {error}") from None
    if wrong := [name for name in found if ".." in (path := PurePosixPath(name)).parts or path.is_absolute()]:
        raise ValueError(f"{wrong[0]} leads out of the folder")
    return found


def work(
    profile: str, *, minutes: float = 0.0, out: Path | None = None, megabytes: float = 0.0, processes: int = 1
) -> bool:
    """Do what is still to be done.

    Args:
        profile: packed or curated.
        minutes: stop after so many; 0: at the end of all work.
        out: folder for the results, to be unpacked elsewhere.
        megabytes: of these at most; 0: as many as there are.
        processes: fits at a time.

    Returns:
        Whether all is done.

    Raises:
        ValueError: the pack is of other code.
        RuntimeError: some of it failed; what was done until then is in `out`.
    """
    start, file = time.monotonic(), FOLDER / f"{profile}.tar.xz"
    if file.exists():
        found = untarred(file.read_bytes())
        about = json.loads(found.pop(MANIFEST))
        for name, content in found.items():
            root, _, rest = name.partition("/")
            target = {"curated": paths.curated(profile), "scratch": paths.SCRATCH}[root] / rest
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        check_same(about, where=file.name)
    child = multiprocessing.get_context("spawn").Process(target=_work, args=(profile, processes, os.getpid()))
    child.start()
    child.join(max(0.0, start + 60 * minutes - time.monotonic()) if minutes else None)
    over = child.is_alive()
    child.kill()  # with it die those that it has started
    child.join()
    if out:
        parts, left = send(profile, out, room=round(1e6 * megabytes))
        size = sum(part.stat().st_size for part in parts) / 1e6
        print(f"{len(parts)} files, {size:.1f} MB, in {out}; results without room: {left}")
    if child.exitcode and not over:
        raise RuntimeError(f"the work ended with exit code {child.exitcode}")
    print("time is over; the same command goes on from here" if over else "all is done", flush=True)
    return not over


def _work(profile: str, processes: int, parent: int) -> None:
    scratch.die_with_parent(parent)
    model = launch.pretrain(config.load("pretrain", profile))
    epochs = json.loads((model.parent / "provenance" / "pretrain_epochs.json").read_text())
    speed, memory = np.median([e["materials_per_s"] for e in epochs]), epochs[-1]["peak_memory_GiB"]
    print(f"pretrain: {len(epochs)} epochs, {speed:,.0f} materials/s, {memory:.1f} GiB", flush=True)
    cfg = config.load("properties", profile)
    first, others, fused = worth(cfg)
    _fit(cfg, first, processes)
    defects.run(config.load("defects", profile), told_of=lambda part: print(f"defects: {part}", flush=True))
    _fit(cfg, others, processes)
    _fit(cfg, fused, processes)


def worth(cfg: config.Properties) -> tuple[list[Fit], list[Fit], list[Fit]]:
    """The fits that a GPU is for: of the first targets, of the others, and those that see images or texts.

    In each, all of one seed before those of the next, in the order of the cells in `cfg.runs`. Arms that read neither a
    tower nor its features are left to wherever the pipeline runs.
    """
    t, groups = fits.task(cfg), fits.groups(cfg)
    place = {
        (targets, cell.cohort, cell.split, cell.percent): (number, i)
        for number, (targets, cells) in enumerate(groups.items())
        for i, cell in reversed([*enumerate(cells)])
    }
    chosen: tuple[list[Fit], list[Fit], list[Fit]] = ([], [], [])
    for fit in fits.plan(cfg):
        reads = fits.read(t, fit.arm, fit.cohort)
        if fit.arm in fits.NETWORKS or reads:
            group = place[fit.targets, fit.cohort, fit.split, fit.percent][0]
            chosen[2 if set(reads) - {"crystal"} else min(group, 1)].append(fit)
    for part in chosen:
        part.sort(key=lambda f: (f.seed, place[f.targets, f.cohort, f.split, f.percent], fits.ARMS.index(f.arm)))
    return chosen


def _fit(cfg: config.Properties, planned: Sequence[Fit], processes: int) -> None:
    """Fit these in order, with a line for each that says how fast."""
    t = fits.task(cfg)
    fits.freeze(cfg, planned)
    atoms = t.curated.materials.n_atoms.to_numpy()
    for number, (fit, result) in enumerate(workers.solved(partial(fits.solve, cfg), planned, processes), start=1):
        seconds = json.loads((scratch.folder("properties", fits.key(t, fit)) / "seconds.json").read_text())
        what = f"{fit.targets.partition(':')[0]} {fit.cohort} {fit.split} {fit.percent:g} % {fit.arm} seed {fit.seed}"
        shown = fit.steps * min(cfg.batch_size, len(result["train_rows"])) * atoms[result["train_rows"]].mean()
        speed = f", {fit.steps / seconds:,.0f} steps/s, {shown / seconds:,.0f} atoms/s" if fit.steps else ""
        print(f"{number}/{len(planned)} {what}: {seconds:.1f} s{speed}", flush=True)


def send(profile: str, out: Path, *, room: int = 0) -> tuple[list[Path], int]:
    """Write the finished results of a profile, models first, then the newest, as the parts of one file.

    Args:
        profile: whose.
        out: folder.
        room: bytes that all parts may have; 0: as many as there are.

    Returns:
        The parts, and how many results found no room: they are for a later run, when others are not new any more.
    """
    about, found = identity(profile), []
    for key in (key for stage in STAGES for key in (paths.SCRATCH / stage).glob("*/key.json")):
        values, made = json.loads(key.read_text()), [key.with_name(name) for name in FINISHED]
        mine = (values["data"], values["code"]) == (about["data"], about["code"][key.parent.parent.name])
        found += [(file.name != "model", -file.stat().st_mtime, key.parent) for file in made if mine and file.exists()]
    by = provenance.machine() | {"python": platform.python_version(), "torch": torch.__version__}
    if (carried := text.carried(config.load("pretrain", profile).text_model)).exists():
        by["text_features"] = str(scratch.load(carried / text.FEATURES)["features"].dtype)
    results, size = {MANIFEST: json.dumps(about | {"by": by}).encode()}, 20_000  # with tar's own
    for _, _, folder in sorted(found):
        files = sorted(file for name in KEPT for file in (folder / name, *(folder / name).glob("*")) if file.is_file())
        content = compressed(tarred({str(file.relative_to(folder)): file.read_bytes() for file in files}))
        if not room or size + len(content) + 1024 <= room:
            results[f"{folder.relative_to(paths.SCRATCH)}"] = content
            size += len(content) + 1024
    whole = tarred(results)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{profile}-*-of-*.tar"):
        old.unlink()
    count = -(-len(whole) // PART_BYTES)
    parts = [out / f"{profile}-{number + 1:02d}-of-{count:02d}.tar" for number in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(whole[number * PART_BYTES : (number + 1) * PART_BYTES])
    return parts, 1 + len(found) - len(results)


def compressed(content: bytes) -> bytes:
    """Quickly: bits of weights are mostly noise."""
    chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    with ThreadPoolExecutor() as pool:
        return b"".join(pool.map(partial(lzma.compress, preset=1), chunks))


def unpack(parts: Sequence[Path]) -> list[str]:
    """Put the results of one run of `work` into scratch, where none is yet.

    Args:
        parts: all files that the run has written.

    Returns:
        The folders in scratch that are new.

    Raises:
        ValueError: a part is missing, damaged or of another run; other data or code than here.
    """
    parts = sorted(parts)
    if len(parts) != int(parts[0].stem.rpartition("-")[2]):
        raise ValueError(
            f"{parts[0].name} and {len(parts) - 1} more are not all parts of one run, nor those of one alone"
        )
    results = untarred(b"".join(part.read_bytes() for part in parts))
    about = json.loads(results.pop(MANIFEST))
    check_same(about, where=parts[0].name)
    new = []
    for name, content in results.items():
        target = paths.SCRATCH / name
        if any((target / file).exists() for file in FINISHED):
            continue
        files = untarred(content)
        if target.parent.name not in STAGES or scratch.digest(json.loads(files["key.json"])) != target.name:
            raise ValueError(f"{name} is no result of {', '.join(STAGES)}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        for file, data in files.items():
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).write_bytes(data)
        scratch.write_json(temporary / scratch.ELSEWHERE, about["by"])
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        new.append(name)
    return new


def main() -> None:
    """Command line; what is wrong ends in one line, not in a traceback."""
    parser = argparse.ArgumentParser(prog="python -m matalign.away", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing, working, unpacking = (verbs.add_parser(verb) for verb in ("pack", "work", "unpack"))
    for verb in (packing, working):
        verb.add_argument("--profile", required=True, help="section of params.yaml")
    packing.add_argument("--half", action="store_true", help="text features in half precision")
    working.add_argument("--minutes", type=float, default=0.0, help="stop after so many; 0: when all is done")
    working.add_argument("--out", type=Path, help="folder for the results")
    working.add_argument("--megabytes", type=float, default=0.0, help="of results at most; 0: all")
    working.add_argument("--processes", type=int, default=1, help="fits at a time")
    unpacking.add_argument("files", nargs="+", type=Path, help="all that one run of work has written")
    args = parser.parse_args()
    try:
        if args.verb == "pack":
            file, own = pack(args.profile, half=args.half)
            size = f"{file.stat().st_size / 1e6:.1f} MB beside the project's {own / 1e6:.1f} MB"
            print(f"{file.relative_to(paths.ROOT)}: {size}")
        elif args.verb == "work":
            options = {"out": args.out, "megabytes": args.megabytes, "processes": args.processes}
            work(args.profile, minutes=args.minutes, **options)
        else:
            print(f"{len(unpack(args.files))} results are new here")
    except (ValueError, RuntimeError, FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
