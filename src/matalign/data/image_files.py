"""Image files -> frames: electron microscopes' formats by rosettasciio, TIFF by tifffile, PNG and JPEG by Pillow.

A frame says its size and the file's own scale before a pixel is decoded, and gives its pixels in pieces. Where a reader
falls short it is helped here: RosettaSciIO 0.15 takes the signed bytes of MRC (mode 0) for unsigned; tifffile leaves
WhiteIsZero, orientations and colours to its caller; Pillow 13 reads PNGs of 16-bit colour with 8 bits.
"""

import importlib
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

KINDS = "PNG, JPEG, TIFF, dm3, dm4, emd, mrc, ser"
MAX_DECODED_BYTES = 2**29  # of what a decoder gives in one piece
PIECE_BYTES = 2**26
INDEXED_FRAMES = 100_000
# Of red, green and blue in ITU-R 601 luminance, in 1/65536, as Pillow has them.
LUMINANCE = np.array([19595, 38470, 7471]) / 65536
Piece = tuple[tuple[slice, slice], np.ndarray]  # where in the stored image, (rows, columns) of counts
Scale = tuple[float, str]  # length of a pixel's side, its unit


@dataclass(frozen=True)
class Frame:
    """One image of a file, not yet decoded.

    Attributes:
        shape: (height, width) as stored.
        dtype: of the stored numbers.
        pieces: gives the pixels, piece after piece.
        scales: of rows and columns by the file; () where it states none.
        orientation: TIFF's number, 1: the first row is the top, the first column the left.
        notes: what was done to the numbers.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    pieces: Callable[[], Iterator[Piece]]
    scales: tuple[Scale, ...] = ()
    orientation: int = 1
    notes: tuple[str, ...] = ()


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a parser raises of a broken file is a ValueError; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ValueError as error:
            raise ValueError(f"unreadable: {_line(error)}") from None if "unreadable" not in str(error) else error
        except Exception as error:
            raise ValueError(f"unreadable: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def frames(path: Path) -> list[Frame]:
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
        return _png16 if head[:1] == b"\x89" and head[24:25] == b"\x10" and head[25:26] in b"\2\4\6" else _pillow
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff
    if head[:4] == b"II\x97\x01":
        return lambda path: _rosetta(path, "tia", lazy=False)
    if head[:4] in (b"\0\0\0\3", b"\0\0\0\4") and suffix in (".dm3", ".dm4"):
        return _gatan
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return lambda path: _rosetta(path, "emd", select_type="image")
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
    if np.prod(stack, dtype=float) > INDEXED_FRAMES:
        raise ValueError(f"{np.prod(stack, dtype=float):.0f} frames; at most {INDEXED_FRAMES} are counted")
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
    step = max(1, PIECE_BYTES // max(1, width * plane.dtype.itemsize))
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
        if "Lazy" not in str(error) or path.stat().st_size > MAX_DECODED_BYTES:
            raise
    return _rosetta(path, "digitalmicrograph", lazy=False)


def _mrc(path: Path) -> list[Frame]:
    """By https://www.ccpem.ac.uk/mrc-format/mrc2014/: bytes are signed, unless IMOD's flag says otherwise."""
    with open(path, "rb") as stream:
        head = stream.read(1024)
    order = ">" if head[212:214] == b"\x11\x11" else "<"
    mode, mx, my = struct.unpack_from(f"{order}12x1I12x2I", head)
    stamp, flags = struct.unpack_from(f"{order}2i", head, 152)
    signed = mode == 0 and (stamp != 1146047817 or flags & 1)
    found = _rosetta(path, "mrc", endianness=order, metadata_file=None)
    if signed:
        found = [replace(frame, dtype=np.dtype(np.int8), pieces=_signed(frame)) for frame in found]
    return found if mx and my else [replace(frame, scales=()) for frame in found]


def _signed(frame: Frame) -> Callable[[], Iterator[Piece]]:
    return lambda: ((place, np.ascontiguousarray(block).view(np.int8)) for place, block in frame.pieces())


# PNG and JPEG


def _pillow(path: Path) -> list[Frame]:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        grey = _grey(image.mode)
        dtype = _pillow_dtype(image.mode)
        notes = () if grey else ("colours made luminance",)
        orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)
        shape = (image.size[1], image.size[0])
        return [
            Frame(shape, dtype, lambda k=k: _pillow_pieces(path, k), (), orientation, notes)
            for k in range(getattr(image, "n_frames", 1))
        ]


def _grey(mode: str) -> bool:
    return mode in ("1", "L", "I", "F") or mode.startswith("I;16")


def _pillow_dtype(mode: str) -> np.dtype:
    return np.dtype({"I": np.int32, "F": np.float32}.get(mode, np.uint16 if mode.startswith("I;16") else np.uint8))


def _pillow_pieces(path: Path, number: int) -> Iterator[Piece]:
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
        image.seek(number)
        width, height = image.size
        step = max(1, PIECE_BYTES // (4 * width))
        for top in range(0, height, step):
            part = image.crop((0, top, width, min(height, top + step)))
            block = np.asarray(part if _grey(image.mode) else part.convert("L"))
            yield (slice(top, top + len(block)), slice(0, width)), block


def _png16(path: Path) -> list[Frame]:
    """A PNG of 16-bit colours, or of grey with alpha."""
    with open(path, "rb") as stream:
        width, height, _, colour = struct.unpack(">IIBB", stream.read(26)[16:])
    samples = {2: 3, 4: 2, 6: 4}[colour]
    _check_decoded(height * width * samples * 2)
    notes = ("colours made luminance",) if samples > 2 else ()
    return [Frame((height, width), np.dtype(np.float32), lambda: _png16_pieces(path, samples), (), 1, notes)]


def _png16_pieces(path: Path, samples: int) -> Iterator[Piece]:
    import torch
    from torchvision.io import decode_png

    found = decode_png(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)).numpy()
    step = max(1, PIECE_BYTES // (16 * found.shape[2]))
    for top in range(0, found.shape[1], step):
        block = np.moveaxis(found[:, top : top + step], 0, -1)
        yield (
            (slice(top, top + len(block)), slice(0, block.shape[1])),
            luminance(block[..., :3]) if samples > 2 else block[..., 0],
        )


def luminance(colours: np.ndarray) -> np.ndarray:
    """(…, 3) red, green, blue -> (…); of bytes in whole numbers, as Pillow makes them."""
    grey = colours.astype(np.float64) @ LUMINANCE
    return np.floor(grey + 0.5).astype(np.uint8) if colours.dtype == np.uint8 else grey


def _check_decoded(size: int) -> None:
    if size > MAX_DECODED_BYTES:
        raise ValueError(f"{size / 2**20:.0f} MB in one piece; at most {MAX_DECODED_BYTES // 2**20} MB: crop or bin it")


# TIFF


def _tiff(path: Path) -> list[Frame]:
    import tifffile

    out: list[Frame] = []
    with tifffile.TiffFile(path) as tiff:
        scales = _tiff_scales(tiff)
        for number, series in enumerate(tiff.series):
            page = series.keyframe
            if number and page.is_reduced:  # a thumbnail or a level of a pyramid
                continue
            if not _tifffile_decodes(page):
                return [replace(frame, scales=scales) for frame in _pillow_tiff(path, page)]
            if not series.axes.replace("S", "").endswith("YX"):
                continue
            shape = (series.shape[series.axes.index("Y")], series.shape[series.axes.index("X")])
            stack = int(np.prod([n for n, axis in zip(series.shape, series.axes) if axis not in "YXS"], dtype=float))
            if stack > INDEXED_FRAMES:
                raise ValueError(f"{stack} frames; at most {INDEXED_FRAMES} are counted")
            dtype, notes = _tiff_meaning(page)
            turned = int(page.tags.valueof(274, default=1))
            out += [
                Frame(shape, dtype, lambda n=number, k=k: _tiff_pieces(path, n, k), scales, turned, notes)
                for k in range(stack)
            ]
    return out


def _tifffile_decodes(page: Any) -> bool:
    from tifffile import TIFF

    colours = page.photometric in (0, 1, 2, 3, 4)  # others are YCbCr, CMYK, Lab
    return colours and page.compression in TIFF.DECOMPRESSORS and page.predictor in TIFF.UNPREDICTORS


def _pillow_tiff(path: Path, page: Any) -> list[Frame]:
    """Of kinds of compression that tifffile leaves to another package; Pillow turns them as their orientation asks."""
    found = _pillow(path)
    if page.photometric == 0 and page.bitspersample == 16:  # which Pillow turns over in 8 bits alone
        turned = ("white is zero: turned over",)
        found = [replace(frame, pieces=_turned_over(frame), notes=turned) for frame in found]
    return found


def _turned_over(frame: Frame) -> Callable[[], Iterator[Piece]]:
    return lambda: ((place, 65535 - block) for place, block in frame.pieces())


def _tiff_meaning(page: Any) -> tuple[np.dtype, tuple[str, ...]]:
    """Type of the counts, and what is done to them."""
    if page.photometric == 0:
        return page.dtype, ("white is zero: turned over",)
    if page.photometric == 3:
        return np.dtype(np.uint8), ("colours made luminance",)
    if page.photometric == 2:
        return page.dtype, ("colours made luminance",)
    return page.dtype, ()


def _tiff_pieces(path: Path, number: int, plane: int) -> Iterator[Piece]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[number]
        page = series.keyframe
        if page.compression == 1 and page.bitspersample in (8, 16, 32, 64) and series.dataoffset is not None:
            order = page.dtype.newbyteorder(tiff.byteorder)
            stored = np.memmap(path, order, "r", series.dataoffset, series.shape)  # nothing of it is read yet
            axes = series.axes
            if "S" in axes:
                stored, axes = np.moveaxis(stored, axes.index("S"), -1), axes.replace("S", "") + "S"
            images = stored.reshape(-1, *stored.shape[-2 - ("S" in axes) :]) if stored.ndim > 2 else stored[None]
            for place, block in _rows(images[plane]):
                yield place, _counts(block, page)
            return
        if len(series.pages) <= plane or series.pages[plane] is None:
            raise ValueError(f"frame {plane} is missing")
        one = series.pages[plane].aspage()
        if one.planarconfig == 2 and one.samplesperpixel > 1:
            _check_decoded(one.nbytes)
            for place, block in _rows(np.moveaxis(one.asarray(), 0, -1)):
                yield place, _counts(block, page)
            return
        _check_decoded(int(np.prod(one.chunks, dtype=float)) * page.dtype.itemsize)
        for block, (_, _, top, left, _), _ in one.segments(maxworkers=1):
            if block is not None:
                block = block[0, : one.imagelength - top, : one.imagewidth - left]
                block = block if one.samplesperpixel > 1 else block[..., 0]
                place = (slice(top, top + block.shape[0]), slice(left, left + block.shape[1]))
                yield place, _counts(block, page)


def _rows(image: np.ndarray) -> Iterator[Piece]:
    step = max(1, PIECE_BYTES // max(1, image[0].nbytes))
    for top in range(0, len(image), step):
        block = image[top : top + step]
        yield (slice(top, top + len(block)), slice(0, image.shape[1])), block


def _counts(block: np.ndarray, page: Any) -> np.ndarray:
    """(rows, columns) or (rows, columns, samples) as stored -> (rows, columns)."""
    if page.photometric == 3:  # 16-bit colours of which Pillow, too, takes the upper byte
        return luminance((page.colormap[:, block] >> 8).astype(np.uint8).transpose(1, 2, 0))
    if page.photometric == 2:
        return luminance(block[..., :3])
    block = block[..., 0] if block.ndim == 3 else block  # the rest is transparency
    if page.photometric == 0:
        top = 2**page.bitspersample - 1 if block.dtype.kind in "ub" else -1 if block.dtype.kind == "i" else 0
        return top - block.astype(np.float64)
    return block


def _tiff_scales(tiff: Any) -> tuple[Scale, ...]:
    """Of ImageJ, OME, the microscopes' own tags, or of the resolution tags where these are no printer's."""
    page = tiff.pages[0]
    resolution = [page.tags.valueof(code) for code in (283, 282)]  # rows, columns; pixels per unit
    sides = [r[1] / r[0] if isinstance(r, tuple) and r[0] else 0.0 for r in resolution]
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit") or "")
        return tuple((side, unit) for side in sides) if any(sides) and set(sides) != {1.0} else ()
    if tiff.is_ome and tiff.ome_metadata:
        return _ome(tiff.ome_metadata)
    if tiff.flags & {"fei", "sem", "tvips", "sis"} or 65009 in page.tags or page.software.startswith("SightX"):
        from rsciio.tiff import file_reader

        axes = file_reader(tiff.filehandle.path, lazy=True)[0]["axes"]
        return tuple((float(axis["scale"]), str(axis["units"] or "")) for axis in axes if not axis["navigate"])
    length = {2: 2.54e8, 3: 1e8}.get(page.tags.valueof(296, default=2), 0.0)  # inch, centimetre
    if all(0 < side * length < PRINTED_A for side in sides):
        return tuple((side * length, "Å") for side in sides)
    return ()


PRINTED_A = 1e4  # 25,400 dots an inch: coarser resolution tags are a printer's


def _ome(text: str) -> tuple[Scale, ...]:
    head = re.search(r"<Pixels\b[^>]*>", text)
    found = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', head[0]) if head else None
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]*)"', head[0]) if head else None
        if size:
            found.append((float(size[1]), unit[1] if unit else "µm"))
    return tuple(found) if len(found) == 2 else ()
