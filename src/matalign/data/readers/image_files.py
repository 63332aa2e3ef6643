"""Image files -> frames: electron microscopes' formats by rosettasciio, others by `tiff_files` and `pillow_files`.

RosettaSciIO 0.15 takes the signed bytes of MRC (mode 0) for unsigned, and numbers of whatever byte order for those of
this machine; both are mended here.
"""

import importlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from matalign.data.readers import frames, pillow_files, tiff_files
from matalign.data.readers.frames import Frame, Piece, check_decoded, luminance, reading

KINDS = "PNG, JPEG, TIFF, dm3, dm4, emd, mrc, ser"


def read(path: Path) -> list[Frame]:
    """The images in a file, by what its first bytes and its suffix say it is.

    Raises:
        ValueError: of no kind that is read, or broken.
    """
    with open(path, "rb") as stream:
        head = stream.read(1024)
    reader = _reader(head, path.suffix.lower())
    if reader is None:
        raise ValueError(f"unreadable; expected an image of the kinds {KINDS}")
    with reading():
        found = reader(path)
    if not found:
        raise ValueError("no image in it: spectra and curves are not taken")
    return found


def _reader(head: bytes, suffix: str) -> Callable[[Path], list[Frame]] | None:
    if head.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        deep = head[:1] == b"\x89" and head[24:25] == b"\x10" and head[25:26] in b"\2\4\6"
        return pillow_files.read_png16 if deep else pillow_files.read
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return tiff_files.read
    if head[:4] == b"II\x97\x01":
        return lambda path: _rosetta(path, "tia", lazy=False)
    if (head[:4], head[8:12]) == (b"\0\0\0\3", b"\0\0\0\1") or (head[:4], head[12:16]) == (b"\0\0\0\4", b"\0\0\0\1"):
        return _gatan
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return _emd
    if len(head) == 1024 and (head[208:212] == b"MAP " or suffix == ".mrc"):
        return _mrc
    return None


# Formats of electron microscopes


def _rosetta(path: Path, kind: str, *, lazy: bool = True, **options: Any) -> list[Frame]:
    reader = importlib.import_module(f"rsciio.{kind}")
    signals = reader.file_reader(str(path), lazy=lazy, **options)
    return [frame for signal in signals for frame in _planes(signal["data"], signal["axes"])]


def _planes(data: Any, axes: list[dict[str, Any]]) -> Iterator[Frame]:
    """The images of a signal; none if it is a spectrum or a map of spectra."""
    image = [i for i, axis in enumerate(axes) if not axis.get("navigate")]
    image = list(range(data.ndim)) if data.ndim == 2 else image
    if len(image) != 2 or any(str(axes[i].get("units")) == "eV" for i in image):
        return
    stack = [n for i, n in enumerate(data.shape) if i not in image]
    if np.prod(stack, dtype=float) > frames.INDEXED_FRAMES:
        raise ValueError(f"{np.prod(stack, dtype=float):.0f} frames; at most {frames.INDEXED_FRAMES} are counted")
    data = np.moveaxis(data, image, (-2, -1)) if image != [data.ndim - 2, data.ndim - 1] else data
    scales = tuple((float(axes[i].get("scale", 0)), str(axes[i].get("units") or "")) for i in image)
    for index in np.ndindex(*stack):
        plane = data[index]
        yield Frame(plane.shape, _number(plane.dtype), lambda plane=plane: _of_array(plane), scales)


def _number(dtype: np.dtype) -> np.dtype:
    """Of counts; colours of the microscopes' files are bytes."""
    return np.dtype(np.uint8) if dtype.names else dtype


def _of_array(plane: Any) -> Iterator[Piece]:
    """Chunks of a dask array, or rows of one in memory."""
    height, width = plane.shape
    step = max(1, frames.PIECE_BYTES // max(1, width * plane.dtype.itemsize))
    sizes = getattr(plane, "chunks", ((step,) * (height // step) + (height % step,), (width,)))
    rows, columns = (np.concatenate([[0], np.cumsum(size)]).astype(int) for size in sizes)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            block = plane[top:bottom, left:right]
            block = block.compute(scheduler="synchronous") if hasattr(block, "compute") else np.asarray(block)
            if block.dtype.names:
                block = luminance(np.stack([block[name] for name in "RGB"], -1))
            yield (slice(top, bottom), slice(left, right)), block


def _gatan(path: Path) -> list[Frame]:
    try:
        return _rosetta(path, "digitalmicrograph")
    except ValueError as error:  # "Lazy loading of RGBA images is not supported"
        if "Lazy" not in str(error):
            raise
    check_decoded(path.stat().st_size)
    return _rosetta(path, "digitalmicrograph", lazy=False)


def _emd(path: Path) -> list[Frame]:
    import h5py

    sizes: dict[str, int] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: sizes.update({name: item.nbytes} if isinstance(item, h5py.Dataset) else {}))
        chunked = all(item.chunks for item in map(file.get, sizes) if item.ndim > 1)
    if not chunked:  # of which RosettaSciIO makes no pieces
        check_decoded(sum(sizes.values()))
    return _rosetta(path, "emd", lazy=chunked, select_type="images")


def _mrc(path: Path) -> list[Frame]:
    """By https://www.ccpem.ac.uk/mrc-format/mrc2014/: bytes are signed, unless IMOD's flag says otherwise."""
    with open(path, "rb") as stream:
        head = stream.read(1024)
    order = ">" if head[212:214] == b"\x11\x11" else "<"
    sides, (mode, mx, my) = struct.unpack_from(f"{order}3i", head), struct.unpack_from(f"{order}12x1I12x2I", head)
    size = math.prod(sides) * {1: 2, 2: 4, 3: 4, 4: 8, 6: 2, 12: 2}.get(mode, 1)
    if min(sides) < 1 or size > path.stat().st_size:  # of which RosettaSciIO counts pieces without end
        raise ValueError(f"{' × '.join(map(str, sides))} pixels in {path.stat().st_size} bytes")
    stamp, flags = struct.unpack_from(f"{order}2i", head, 152)
    found = _rosetta(path, "mrc", endianness=order, metadata_file=None)
    signed = mode == 0 and (stamp != 1146047817 or flags & 1)
    stored = [np.dtype(np.int8) if signed else frame.dtype.newbyteorder(order) for frame in found]
    found = [replace(frame, dtype=dtype, pieces=_viewed(frame, dtype)) for frame, dtype in zip(found, stored)]
    return found if mx and my else [replace(frame, scales=()) for frame in found]


def _viewed(frame: Frame, dtype: np.dtype) -> Callable[[], Iterator[Piece]]:
    return lambda: ((place, np.ascontiguousarray(block).view(dtype)) for place, block in frame.pieces())
