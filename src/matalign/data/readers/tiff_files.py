"""TIFF -> frames by tifffile, which leaves WhiteIsZero, orientations and colours to its caller.

Kinds of compression that it leaves to other packages (LZW, JPEG, fax) and colours other than red, green and blue are
Pillow's.
"""

import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matalign.data.readers import frames, pillow_files
from matalign.data.readers.frames import Frame, Piece, Scale, check_decoded, luminance

PRINTED_A = 1e4  # 25,400 dots an inch: coarser resolution tags are a printer's


def read(path: Path) -> list[Frame]:
    """The images of a TIFF, but for thumbnails and lower levels of pyramids."""
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
            if stack > frames.INDEXED_FRAMES:
                raise ValueError(f"{stack} frames; at most {frames.INDEXED_FRAMES} are counted")
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
    found = pillow_files.read(path)
    if page.photometric == 0 and page.bitspersample == 16:  # which Pillow turns over in 8 bits alone
        turned = ("white is zero: turned over",)
        found = [replace(frame, pieces=_turned_over(frame), notes=turned) for frame in found]
    return found


def _turned_over(frame: Frame) -> Callable[[], Iterator[Piece]]:
    return lambda: ((place, 65535 - block) for place, block in frame.pieces())


def _tiff_meaning(page: Any) -> tuple[np.dtype, tuple[str, ...]]:
    """Type of the counts, and what is done to them."""
    if page.dtype is None:
        raise ValueError(f"pixels of {page.bitspersample} bits, sample format {page.sampleformat}")
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
            check_decoded(one.nbytes)
            for place, block in _rows(np.moveaxis(one.asarray(), 0, -1)):
                yield place, _counts(block, page)
            return
        check_decoded(int(np.prod(one.chunks, dtype=float)) * page.dtype.itemsize)
        for block, (_, _, top, left, _), _ in one.segments(maxworkers=1):
            if block is not None:
                block = block[0, : one.imagelength - top, : one.imagewidth - left]
                block = block if one.samplesperpixel > 1 else block[..., 0]
                place = (slice(top, top + block.shape[0]), slice(left, left + block.shape[1]))
                yield place, _counts(block, page)


def _rows(image: np.ndarray) -> Iterator[Piece]:
    step = max(1, frames.PIECE_BYTES // max(1, image[0].nbytes))
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
    if 65009 in page.tags:  # Gatan's, of columns; then of rows
        gatan = [(page.tags.valueof(side), page.tags.valueof(unit)) for side, unit in ((65010, 65004), (65009, 65003))]
        return tuple((float(side or 0), str(unit or "")) for side, unit in gatan)
    if tiff.flags & {"fei", "sem", "tvips", "sis"} or str(page.tags.valueof(271)).startswith("JEOL"):
        return _microscope_tiff(tiff.filehandle.path)
    length = {2: 2.54e8, 3: 1e8}.get(page.tags.valueof(296, default=2), 0.0)  # inch, centimetre
    if all(0 < side * length < PRINTED_A for side in sides):
        return tuple((side * length, "Å") for side in sides)
    return ()


def _microscope_tiff(path: str) -> tuple[Scale, ...]:
    """Of the tags of FEI, Zeiss, TVIPS, Olympus and JEOL."""
    from rsciio.tiff import file_reader

    try:
        axes = file_reader(path, lazy=True)[0]["axes"]
    except Exception:  # it knows not all their versions
        axes = []
    gc.collect()  # it leaves the file open
    return tuple((float(axis["scale"]), str(axis["units"] or "")) for axis in axes if not axis["navigate"])


def _ome(text: str) -> tuple[Scale, ...]:
    head = re.search(r"<Pixels\b[^>]*>", text)
    found = []
    for axis in "YX":
        size = re.search(rf'PhysicalSize{axis}="([^"]+)"', head[0]) if head else None
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]*)"', head[0]) if head else None
        if size:
            found.append((float(size[1]), unit[1] if unit else "µm"))
    return tuple(found) if len(found) == 2 else ()
