"""TIFF -> frames by tifffile, which leaves WhiteIsZero, orientations and colours to its caller.

Kinds of compression that it leaves to other packages (LZW, JPEG, fax) and colours other than red, green and blue are
Pillow's.
"""

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from matalign.data.readers import image_files
from matalign.data.readers.image_files import COLOURED, Frame, Scale, luminance

PRINTED_A = 1e4  # 25,400 dots an inch: coarser resolution tags are a printer's
WHITE_IS_ZERO, RGB, PALETTE = 0, 2, 3
TURNED_OVER = ("white is zero: turned over",)


def read(path: Path) -> list[Frame]:
    """The images of a TIFF, but for thumbnails and lower levels of pyramids."""
    out: list[Frame] = []
    with tifffile.TiffFile(path) as tiff:
        scales = _scales(tiff)
        for number, series in enumerate(tiff.series):
            page, sizes = series.keyframe, dict(zip(series.axes, series.shape))
            if number and page.is_reduced:  # a thumbnail or a level of a pyramid
                continue
            if not _tifffile_decodes(page):
                return [replace(frame, scales=scales) for frame in _by_pillow(path, page)]
            if not series.axes.replace("S", "").endswith("YX"):
                continue
            stack = int(np.prod([n for n, axis in zip(series.shape, series.axes) if axis not in "YXS"], dtype=float))
            image_files.check_count(stack)
            if page.dtype is None:
                raise ValueError(f"pixels of {page.bitspersample} bits, sample format {page.sampleformat}")
            notes = {WHITE_IS_ZERO: TURNED_OVER, RGB: COLOURED, PALETTE: COLOURED}.get(page.photometric, ())
            dtype = np.dtype(np.uint8) if page.photometric == PALETTE else page.dtype
            about = {"scales": scales, "orientation": int(page.tags.valueof(274, default=1)), "notes": notes}
            about |= {"shape": (sizes["Y"], sizes["X"]), "dtype": dtype, "samples": page.samplesperpixel}
            out += [Frame(decode=lambda n=number, k=k: _decoded(path, n, k), **about) for k in range(stack)]
    return out


def _tifffile_decodes(page: Any) -> bool:
    known = tifffile.TIFF
    colours = page.photometric in (0, 1, RGB, PALETTE, 4)  # others are YCbCr, CMYK, Lab
    return colours and page.compression in known.DECOMPRESSORS and page.predictor in known.UNPREDICTORS


def _by_pillow(path: Path, page: Any) -> list[Frame]:
    """Pillow turns images as their orientation asks, and white that is zero over, but of 16 and 32 bits.

    Whole numbers of 32 bits have a sign in Pillow, whatever the file says.
    """
    found = image_files.pillow(path)
    if page.dtype == np.uint32:
        return [replace(f, decode=lambda f=f: f.decode().view(np.uint32), dtype=page.dtype) for f in found]
    if page.photometric == WHITE_IS_ZERO and page.bitspersample in (16, 32):
        top = 65535 if page.bitspersample == 16 else 0
        return [replace(frame, decode=lambda f=frame: top - f.decode(), notes=TURNED_OVER) for frame in found]
    return found


def _decoded(path: Path, number: int, plane: int) -> np.ndarray:
    """(height, width) of an image of a series."""
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[number]
        page, axes = series.keyframe, series.axes
        if series.dataoffset is not None:  # ImageJ has stacks with one directory alone
            stored = tifffile.memmap(path, series=number, mode="r")
        elif len(series.pages) <= plane or series.pages[plane] is None:
            raise ValueError(f"frame {plane} is missing")
        else:
            one = series.pages[plane].aspage()
            stored, axes, plane = one.asarray(maxworkers=1), one.axes, 0
    if "S" in axes:
        stored = np.moveaxis(stored, axes.index("S"), -1)
    image = stored.reshape(-1, *stored.shape[-2 - ("S" in axes) :])[plane]
    if page.photometric == PALETTE:  # 16-bit colours of which Pillow, too, takes the upper byte
        return luminance((page.colormap >> 8).astype(np.uint8).T[image])
    if page.photometric == RGB:
        return luminance(image[..., :3])
    image = image[..., 0] if "S" in axes else image  # the rest is transparency
    if page.photometric != WHITE_IS_ZERO:
        return image
    top = 2**page.bitspersample - 1 if image.dtype.kind in "ub" else -1 if image.dtype.kind == "i" else 0
    return top - image.astype(np.float64)


def _scales(tiff: Any) -> tuple[Scale, ...]:
    """Of ImageJ, OME, the microscopes' own tags, or of the resolution tags where these are no printer's."""
    page = tiff.pages[0]
    resolution = [page.tags.valueof(code) for code in (283, 282)]  # rows, columns; pixels per unit
    sides = [r[1] / r[0] if isinstance(r, tuple) and r[0] else 0.0 for r in resolution]
    if tiff.is_imagej:
        unit = str((tiff.imagej_metadata or {}).get("unit") or "")
        return tuple((side, unit) for side in sides) if any(sides) and set(sides) != {1.0} else ()
    if tiff.is_ome and tiff.ome_metadata:
        head = re.search(r"<Pixels\b[^>]*>", tiff.ome_metadata)
        stated = dict(re.findall(r'PhysicalSize(\w+)="([^"]*)"', head[0] if head else ""))
        return tuple((float(stated[k]), stated.get(f"{k}Unit", "µm")) for k in "YX" if stated.keys() >= {*"YX"})
    if 65009 in page.tags:  # Gatan's, of columns; then of rows
        gatan = [(page.tags.valueof(side), page.tags.valueof(unit)) for side, unit in ((65010, 65004), (65009, 65003))]
        return tuple((float(side or 0), str(unit or "")) for side, unit in gatan)
    if tiff.flags & {"fei", "sem", "tvips", "sis"} or str(page.tags.valueof(271)).startswith("JEOL"):
        return _microscopes(tiff.filehandle.path)
    length = {2: 2.54e8, 3: 1e8}.get(page.tags.valueof(296, default=2), 0.0)  # inch, centimetre
    return tuple((side * length, "Å") for side in sides) if all(0 < side * length < PRINTED_A for side in sides) else ()


def _microscopes(path: str) -> tuple[Scale, ...]:
    """Of the tags of FEI, Zeiss, TVIPS, Olympus and JEOL."""
    from rsciio.tiff import file_reader

    try:
        axes = file_reader(path, lazy=True)[0]["axes"]
    except Exception:  # it knows not all their versions
        axes = []
    gc.collect()  # it leaves the file open
    return tuple((float(axis["scale"]), str(axis["units"] or "")) for axis in axes if not axis["navigate"])
